//! What the device says of its own state: the SMART / Health Information log (02h) and the events of its
//! warnings.

use zerocopy::IntoBytes;

use super::ctl::Ctl;
use super::events::Event;
use crate::spec::log_page::{Smart, warning};
use crate::spec::{NSID_BROADCAST, Status};

/// Available Spare Threshold in percent.
const SPARE_THRESHOLD: u8 = 10;

/// The log page. It is kept for the controller only (LPA bit 0 is 0).
pub(super) fn smart(ctl: &Ctl<'_>, nsid: u32) -> Result<Vec<u8>, Status> {
    if nsid != 0 && nsid != NSID_BROADCAST {
        ctl.shared.namespaces.load().get(nsid)?;
        return Err(Status::INVALID_FIELD.dnr());
    }
    let counters = &ctl.shared.counters;
    let units = |bytes: u64| u128::from(bytes.div_ceil(512_000)).into();
    let count = |value: u64| u128::from(value).into();
    let mut smart = Smart::default();
    smart.critical_warning = critical_warning(ctl);
    smart.temperature = ctl.admin.health.temperature.into();
    smart.spare = ctl.admin.health.spare;
    smart.spare_threshold = SPARE_THRESHOLD;
    smart.data_units_read = units(counters.sum(|tally| &tally.bytes_read));
    smart.data_units_written = units(counters.sum(|tally| &tally.bytes_written));
    smart.host_reads = count(counters.sum(|tally| &tally.reads));
    smart.host_writes = count(counters.sum(|tally| &tally.writes));
    smart.power_cycles = count(1);
    smart.power_on_hours = count(ctl.admin.started.elapsed().as_secs() / 3600);
    smart.media_errors = count(counters.sum(|tally| &tally.media_errors));
    smart.error_entries = count(ctl.shared.errors.count());
    Ok(smart.as_bytes().to_vec())
}

/// Reports the warnings that there are and whose events are asked for. Called when the host has changed what it asks for, or
/// a threshold.
pub(super) fn report_warnings(ctl: &mut Ctl<'_>) {
    ctl.admin.warned = 0;
    queue_new_warnings(ctl);
}

/// Reports the warnings that are new, likewise. Called when namespaces or health may have changed.
pub fn report_new_warnings(ctl: &mut Ctl<'_>) {
    queue_new_warnings(ctl);
    super::async_event::deliver(ctl);
}

fn queue_new_warnings(ctl: &mut Ctl<'_>) {
    let warnings = critical_warning(ctl);
    let new = u32::from(warnings & !ctl.admin.warned);
    ctl.admin.warned = warnings;
    let asked = ctl.admin.features.async_event;
    for event in Event::WARNINGS {
        if new & event.asked != 0 {
            ctl.admin.events.push(event, asked);
        }
    }
}

/// Critical Warning.
///
/// The media is read-only when each namespace's is, whatever the reason. The specification leaves out the states of
/// Namespace Write Protection, which is not offered.
pub fn critical_warning(ctl: &Ctl<'_>) -> u8 {
    let health = &ctl.admin.health;
    let namespaces = ctl.shared.namespaces.load();
    let mut all = namespaces.iter().peekable();
    let read_only = all.peek().is_some() && all.all(|ns| ns.facts.read_only);
    let bit = |warns: bool, bit: u8| if warns { bit } else { 0 };
    health.warnings
        | bit(health.spare < SPARE_THRESHOLD, warning::SPARE)
        | bit(ctl.admin.features.temperature_warns(health.temperature), warning::TEMPERATURE)
        | bit(read_only, warning::READ_ONLY)
}
