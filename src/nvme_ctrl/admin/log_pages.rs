//! Get Log Page (02h).

use super::ctl::{Ctl, Reply};
use super::features::SUPPORTED;
use super::health;
use crate::spec::commands::{AdminCommand, NvmCommand};
use crate::spec::identify::ascii;
use crate::spec::log_page::lid;
use crate::spec::{Sqe, Status};

/// CDW10 bit 15: Retain Asynchronous Event.
const RAE: u32 = 1 << 15;

pub(super) fn get_log_page(ctl: &mut Ctl<'_>, sqe: &Sqe) -> Result<Reply, Status> {
    let log = sqe.cdw10.get() as u8;
    let numd = u64::from(sqe.cdw11.get() as u16) << 16 | u64::from(sqe.cdw10.get() >> 16);
    let len = (numd + 1) * 4;
    let offset = u64::from(sqe.cdw13.get()) << 32 | u64::from(sqe.cdw12.get());
    let csi = (sqe.cdw14.get() >> 24) as u8;
    if len > ctl.shared.limits.max_transfer() || offset % 4 != 0 {
        return Err(Status::INVALID_FIELD.dnr());
    }
    let data = match log {
        lid::SUPPORTED => supported(),
        lid::ERROR => ctl.shared.errors.bytes(),
        lid::SMART => health::smart(ctl, sqe.nsid.get())?,
        lid::FIRMWARE => firmware(ctl),
        lid::CHANGED_NS => ctl.admin.changed.bytes(),
        lid::EFFECTS if csi == 0 => effects(ctl),
        lid::FEATURE_EFFECTS => feature_effects(),
        // QEMU, SPDK and Linux's target answer Invalid Field; the specification has a status of its own.
        lid::EFFECTS => return Err(Status::INVALID_FIELD.dnr()),
        _ => return Err(Status::INVALID_LOG_PAGE.dnr()),
    };
    let rest = usize::try_from(offset).ok().filter(|offset| *offset < data.len()).map(|at| &data[at..]);
    let rest = rest.ok_or(Status::INVALID_FIELD.dnr())?;
    let reply = ctl.send_data(sqe, &rest[..rest.len().min(len as usize)])?;
    ctl.admin.counts.log_read(log);
    if sqe.cdw10.get() & RAE == 0 {
        ctl.admin.events.clear(log);
        if log == lid::CHANGED_NS {
            ctl.admin.changed.clear();
        }
    }
    Ok(reply)
}

/// Commands Supported and Effects: admin commands from dword 0, I/O commands from dword 256.
fn effects(ctl: &Ctl<'_>) -> Vec<u8> {
    let admin = AdminCommand::ALL.iter().filter(|command| ctl.offers(**command));
    let admin = admin.map(|command| (usize::from(command.opcode()), command.effects()));
    let nvm = NvmCommand::ALL.iter().filter(|command| ctl.offers_nvm(**command));
    let nvm = nvm.map(|command| (256 + usize::from(command.opcode()), command.effects()));
    dwords(1024, admin.chain(nvm))
}

fn firmware(ctl: &Ctl<'_>) -> Vec<u8> {
    let mut log = vec![0; 512];
    log[0] = 1; // slot 1 is active
    log[8..16].copy_from_slice(&ascii::<8>(&ctl.config.firmware));
    log
}

/// Supported Log Pages: one dword each, bit 0.
fn supported() -> Vec<u8> {
    const PAGES: [u8; 7] = [
        lid::SUPPORTED,
        lid::ERROR,
        lid::SMART,
        lid::FIRMWARE,
        lid::CHANGED_NS,
        lid::EFFECTS,
        lid::FEATURE_EFFECTS,
    ];
    dwords(256, PAGES.map(|page| (usize::from(page), 1)))
}

/// Feature Identifiers Supported and Effects: bit 0 supported, scope namespace (20) or controller (21).
fn feature_effects() -> Vec<u8> {
    let scope = |feature| if feature == crate::spec::feature::ERROR_RECOVERY { 1 << 20 } else { 1 << 21 };
    dwords(256, SUPPORTED.map(|feature| (usize::from(feature), 1 | scope(feature))))
}

fn dwords(count: usize, set: impl IntoIterator<Item = (usize, u32)>) -> Vec<u8> {
    let mut table = vec![0_u32; count];
    for (index, value) in set {
        if let Some(place) = table.get_mut(index) {
            *place = value;
        }
    }
    table.into_iter().flat_map(u32::to_le_bytes).collect()
}
