//! Set Features (09h). Checks in QEMU's order: saveable, known, namespace, value.

use std::time::Instant;

use super::ctl::{Ctl, Reply, pending};
use super::features::{DULBE, Timestamp, threshold_selectors};
use super::get_features::{check_feature, number_of_queues};
use super::health::report_warnings;
use crate::namespace::Namespace;
use crate::nvme_ctrl::flushes::Asker;
use crate::nvme_ctrl::pending::Then;
use crate::spec::feature as fid;
use crate::spec::{NSID_BROADCAST, Sqe, Status};

/// CDW10 bit 31.
const SV: u32 = 1 << 31;

pub(super) fn set_features(ctl: &mut Ctl<'_>, sqe: &Sqe) -> Result<Reply, Status> {
    let feature = sqe.cdw10.get() as u8;
    let (cdw11, nsid) = (sqe.cdw11.get(), sqe.nsid.get());
    if sqe.cdw10.get() & SV != 0 {
        return Err(Status::FEATURE_NOT_SAVEABLE.dnr());
    }
    check_feature(ctl, feature)?;
    if feature != fid::ERROR_RECOVERY && nsid != 0 && nsid != NSID_BROADCAST {
        ctl.shared.namespaces.load().get(nsid)?;
        return Err(Status::FEATURE_NOT_NS_SPECIFIC.dnr());
    }
    let features = &mut ctl.admin.features;
    match feature {
        fid::POWER_MANAGEMENT if cdw11 & 0x1f != 0 => return Err(Status::INVALID_FIELD.dnr()), // NPSS is 0
        fid::TEMPERATURE_THRESHOLD => return set_temperature(ctl, cdw11),
        fid::ERROR_RECOVERY => return set_error_recovery(ctl, nsid, cdw11),
        fid::VOLATILE_WRITE_CACHE => return set_write_cache(ctl, sqe, cdw11 & 1 != 0),
        fid::NUMBER_OF_QUEUES => {
            if ctl.queues.any() {
                return Err(Status::COMMAND_SEQUENCE_ERROR.dnr());
            }
            if cdw11 as u16 == 0xffff || cdw11 >> 16 == 0xffff {
                return Err(Status::INVALID_FIELD.dnr());
            }
            return Ok(number_of_queues(ctl));
        }
        fid::INTERRUPT_VECTOR => {
            let place = features.vector_cd.get_mut(usize::from(cdw11 as u16));
            *place.ok_or(Status::INVALID_FIELD.dnr())? = cdw11 & 1 << 16 != 0;
            ctl.apply_features();
        }
        fid::TIMESTAMP => {
            let data = ctl.take_data(sqe, 8)?;
            let value = data.try_into().map_or(0, u64::from_le_bytes);
            let millis = value & 0xffff_ffff_ffff;
            ctl.admin.features.timestamp = Timestamp { millis, set: Instant::now(), by_host: true };
        }
        fid::HOST_BEHAVIOR => {
            let data = ctl.take_data(sqe, fid::HOST_BEHAVIOR_SIZE)?;
            // Bits of formats that are not offered are kept: Copy asks OCFS as well, and a host that writes
            // one mask to every device gets what there is.
            ctl.admin.features.host_behavior.copy_from_slice(&data);
            ctl.apply_features();
        }
        _ => {
            *features.dword(feature).ok_or(Status::INVALID_FIELD.dnr())? = cdw11;
            if feature == fid::KEEP_ALIVE {
                ctl.admin.keep_alive.set(cdw11);
            }
            if feature == fid::ASYNC_EVENT {
                report_warnings(ctl);
            }
            ctl.apply_features();
        }
    }
    Ok(Status::SUCCESS.into())
}

fn set_temperature(ctl: &mut Ctl<'_>, cdw11: u32) -> Result<Reply, Status> {
    let features = &mut ctl.admin.features;
    let value = cdw11 as u16;
    match threshold_selectors(cdw11) {
        // 0 is the composite temperature, Fh all that are implemented, which is the same here.
        (0 | 0xf, 0) => features.threshold_over = value,
        (0 | 0xf, 1) => features.threshold_under = value,
        _ => return Err(Status::INVALID_FIELD.dnr()),
    }
    report_warnings(ctl);
    Ok(Status::SUCCESS.into())
}

fn set_error_recovery(ctl: &mut Ctl<'_>, nsid: u32, cdw11: u32) -> Result<Reply, Status> {
    let namespaces = ctl.shared.namespaces.load();
    let able = |ns: &Namespace| ns.facts.allocation_unit.is_some();
    // For all at once, those that cannot are left out, as QEMU does: a host with a mixed set could not use
    // the broadcast otherwise. But it must not be told that something is enabled when nothing is.
    let possible = match nsid {
        NSID_BROADCAST => namespaces.iter().any(|ns| able(ns)),
        nsid => able(namespaces.get(nsid)?),
    };
    if cdw11 & DULBE != 0 && !possible {
        return Err(Status::INVALID_FIELD.dnr());
    }
    let values = &mut ctl.admin.features.error_recovery;
    values.resize(namespaces.nn() as usize + 1, 0);
    for ns in namespaces.iter().filter(|ns| nsid == NSID_BROADCAST || ns.nsid == nsid) {
        if let Some(place) = values.get_mut(ns.nsid as usize) {
            *place = if able(ns) { cdw11 } else { cdw11 & !DULBE };
        }
    }
    ctl.apply_features();
    Ok(Status::SUCCESS.into())
}

/// Turning the cache off completes once everything written before is durable.
fn set_write_cache(ctl: &mut Ctl<'_>, sqe: &Sqe, on: bool) -> Result<Reply, Status> {
    ctl.admin.features.write_cache = on;
    ctl.apply_features();
    if on {
        return Ok(Status::SUCCESS.into());
    }
    // Even where it was off before: the flush of that may not have ended yet.
    ctl.workers.flush_for(Asker::Admin(pending(sqe, Then::CacheFlushed)));
    Ok(Reply::Later)
}
