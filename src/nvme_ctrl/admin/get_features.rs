//! Get Features (0Ah).

use super::ctl::{Ctl, Reply};
use super::features::{CDFE, Features, SUPPORTED, threshold_selectors};
use crate::spec::feature::{self as fid, Select};
use crate::spec::{Sqe, Status};

pub(super) fn get_features(ctl: &mut Ctl<'_>, sqe: &Sqe) -> Result<Reply, Status> {
    let feature = sqe.cdw10.get() as u8;
    let (cdw11, nsid) = (sqe.cdw11.get(), sqe.nsid.get());
    let select = Select::from_bits((sqe.cdw10.get() >> 8 & 7) as u8).ok_or(Status::INVALID_FIELD.dnr())?;
    check_feature(ctl, feature)?;
    if feature == fid::ERROR_RECOVERY {
        ctl.shared.namespaces.load().get(nsid)?;
    }
    let mut defaults;
    let features = match select {
        Select::Capabilities => {
            let changeable = 1 << 2;
            let namespace = u32::from(feature == fid::ERROR_RECOVERY) << 1;
            return Ok(Reply::value(changeable | namespace));
        }
        Select::Current => &mut ctl.admin.features,
        Select::Default | Select::Saved => {
            defaults = Features::new(ctl.config);
            &mut defaults
        }
    };
    let dword = match feature {
        fid::TEMPERATURE_THRESHOLD => match threshold_selectors(cdw11) {
            (0, 0) => features.threshold_over.into(),
            (0, 1) => features.threshold_under.into(),
            _ => return Err(Status::INVALID_FIELD.dnr()),
        },
        fid::ERROR_RECOVERY => features.error_recovery(nsid),
        fid::VOLATILE_WRITE_CACHE => features.write_cache.into(),
        fid::NUMBER_OF_QUEUES => return Ok(number_of_queues(ctl)),
        fid::INTERRUPT_VECTOR => {
            let vector = cdw11 as u16;
            let cd = features.vector_cd.get(usize::from(vector)).ok_or(Status::INVALID_FIELD.dnr())?;
            u32::from(vector) | u32::from(*cd) << 16
        }
        fid::TIMESTAMP => {
            let data = features.timestamp.bytes();
            return ctl.send_data(sqe, &data);
        }
        fid::HOST_BEHAVIOR => {
            let mut data = features.host_behavior;
            let effective = features.host_cdfe() | ctl.config.cdfe;
            if let Some(bytes) = data.get_mut(CDFE) {
                bytes.copy_from_slice(&effective.to_le_bytes());
            }
            return ctl.send_data(sqe, &data);
        }
        _ => *features.dword(feature).ok_or(Status::INVALID_FIELD.dnr())?,
    };
    Ok(Reply::value(dword))
}

/// Is there such a feature?
pub(super) fn check_feature(ctl: &Ctl<'_>, feature: u8) -> Result<(), Status> {
    // Without a cache there is nothing to ask about it.
    let absent = feature == fid::VOLATILE_WRITE_CACHE && !ctl.shared.has_volatile_cache();
    if SUPPORTED.contains(&feature) && !absent { Ok(()) } else { Err(Status::INVALID_FIELD.dnr()) }
}

/// What both commands answer for Number of Queues.
pub(super) fn number_of_queues(ctl: &Ctl<'_>) -> Reply {
    let count = u32::from(ctl.config.max_ioqpairs - 1); // NSQA and NCQA are 0-based
    Reply::value(count | count << 16)
}
