//! What the device says of its own state: the SMART / Health Information log (02h) and the events of its
//! warnings.

use zerocopy::IntoBytes;

use super::ctl::Ctl;
use super::events::Event;
use super::features::TEMPERATURE;
use crate::spec::log_page::{Smart, warning};
use crate::spec::{NSID_BROADCAST, Status};

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
    smart.temperature = TEMPERATURE.into();
    smart.spare = 100;
    smart.spare_threshold = 10;
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

/// Reports the warnings that there are and whose events are asked for. Called when either may have changed.
pub(super) fn report_warnings(ctl: &mut Ctl<'_>) {
    let warnings = u32::from(critical_warning(ctl));
    let asked = ctl.admin.features.async_event;
    for event in [Event::READ_ONLY, Event::TEMPERATURE] {
        if warnings & event.asked != 0 {
            ctl.admin.events.push(event, asked);
        }
    }
}

/// Critical Warning.
///
/// The media is read-only when each namespace's is, whatever the reason. The specification leaves out the
/// states of Namespace Write Protection, which is not offered.
fn critical_warning(ctl: &Ctl<'_>) -> u8 {
    let namespaces = ctl.shared.namespaces.load();
    let mut all = namespaces.iter().peekable();
    let read_only = all.peek().is_some() && all.all(|ns| ns.facts.read_only);
    let bit = |warns: bool, bit: u8| if warns { bit } else { 0 };
    bit(ctl.admin.features.temperature_warns(), warning::TEMPERATURE) | bit(read_only, warning::READ_ONLY)
}
