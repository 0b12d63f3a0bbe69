//! Get Log Page (02h).

use zerocopy::IntoBytes;

use super::super::controller::Controller;
use super::Reply;
use super::features::{SUPPORTED, TEMPERATURE};
use crate::memory::DmaMap;
use crate::spec::commands::{AdminCommand, NvmCommand};
use crate::spec::identify::ascii;
use crate::spec::log_page::{Smart, lid};
use crate::spec::{NSID_BROADCAST, Sqe, Status};

/// CDW10 bit 15: Retain Asynchronous Event.
const RAE: u32 = 1 << 15;

impl Controller {
    pub(super) fn get_log_page(&mut self, memory: &DmaMap, sqe: &Sqe) -> Result<Reply, Status> {
        let log = sqe.cdw10.get() as u8;
        let numd = u64::from(sqe.cdw11.get() as u16) << 16 | u64::from(sqe.cdw10.get() >> 16);
        let len = (numd + 1) * 4;
        let offset = u64::from(sqe.cdw13.get()) << 32 | u64::from(sqe.cdw12.get());
        let csi = (sqe.cdw14.get() >> 24) as u8;
        if len > self.shared.limits.max_transfer || offset % 4 != 0 {
            return Err(Status::INVALID_FIELD.dnr());
        }
        let data = match log {
            lid::SUPPORTED => supported(),
            lid::ERROR => self.shared.errors.bytes(),
            lid::SMART => self.smart(sqe.nsid.get())?,
            lid::FIRMWARE => self.firmware(),
            lid::CHANGED_NS => self.admin.changed.bytes(),
            lid::EFFECTS if csi == 0 => self.effects(),
            lid::FEATURE_EFFECTS => feature_effects(),
            // QEMU, SPDK and Linux's target answer Invalid Field; the specification has a status of its own.
            lid::EFFECTS => return Err(Status::INVALID_FIELD.dnr()),
            _ => return Err(Status::INVALID_LOG_PAGE.dnr()),
        };
        let rest = usize::try_from(offset).ok().filter(|offset| *offset < data.len()).map(|at| &data[at..]);
        let rest = rest.ok_or(Status::INVALID_FIELD.dnr())?;
        let reply = self.send_data(memory, sqe, &rest[..rest.len().min(len as usize)])?;
        if sqe.cdw10.get() & RAE == 0 {
            self.admin.events.clear(log);
            if log == lid::CHANGED_NS {
                self.admin.changed.clear();
            }
        }
        Ok(reply)
    }

    /// SMART is kept for the controller only (LPA bit 0 is 0).
    fn smart(&self, nsid: u32) -> Result<Vec<u8>, Status> {
        if nsid != 0 && nsid != NSID_BROADCAST {
            self.shared.namespaces.load().get(nsid)?;
            return Err(Status::INVALID_FIELD.dnr());
        }
        let counters = &self.shared.counters;
        let units = |bytes: u64| u128::from(bytes.div_ceil(512_000)).into();
        let count = |value: u64| u128::from(value).into();
        let mut smart = Smart::default();
        smart.critical_warning = self.critical_warning();
        smart.temperature = TEMPERATURE.into();
        smart.spare = 100;
        smart.spare_threshold = 10;
        smart.data_units_read = units(counters.sum(|tally| &tally.bytes_read));
        smart.data_units_written = units(counters.sum(|tally| &tally.bytes_written));
        smart.host_reads = count(counters.sum(|tally| &tally.reads));
        smart.host_writes = count(counters.sum(|tally| &tally.writes));
        smart.power_cycles = count(1);
        smart.power_on_hours = count(self.admin.started.elapsed().as_secs() / 3600);
        smart.media_errors = count(counters.sum(|tally| &tally.media_errors));
        smart.error_entries = count(self.shared.errors.count());
        Ok(smart.as_bytes().to_vec())
    }

    /// Commands Supported and Effects: admin commands from dword 0, I/O commands from dword 256.
    fn effects(&self) -> Vec<u8> {
        let admin = AdminCommand::ALL.iter().filter(|command| self.offers(**command));
        let admin = admin.map(|command| (usize::from(command.opcode()), command.effects()));
        let nvm =
            NvmCommand::ALL.iter().map(|command| (256 + usize::from(command.opcode()), command.effects()));
        dwords(1024, admin.chain(nvm))
    }

    fn firmware(&self) -> Vec<u8> {
        let mut log = vec![0; 512];
        log[0] = 1; // slot 1 is active
        log[8..16].copy_from_slice(&ascii::<8>(&self.config.firmware));
        log
    }
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
