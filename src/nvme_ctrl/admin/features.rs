//! Set Features (09h) and Get Features (0Ah).
//!
//! Nothing is saveable: a saved value reads as the default. Checks in QEMU's order: saveable, known, namespace,
//! value.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::super::controller::{Controller, ControllerConfig};
use super::super::error_log::Failed;
use super::super::flushes::Asker;
use super::super::io::Outcome;
use super::events::Event;
use super::{Pending, Reply, Then};
use crate::memory::DmaMap;
use crate::namespace::Namespace;
use crate::spec::feature::{self as fid, Select};
use crate::spec::log_page::warning;
use crate::spec::{NSID_BROADCAST, Sqe, Status};

/// Composite temperature in kelvin, as SMART reports it: a drive at 37 degrees.
pub(super) const TEMPERATURE: u16 = 310;
/// WCTEMP in kelvin, the default of the over-temperature threshold.
pub(super) const WCTEMP: u16 = 343;

/// CDW10 bit 31 of Set Features.
const SV: u32 = 1 << 31;
/// Error Recovery DULBE; for namespaces that have NSFEAT bit 2.
const DULBE: u32 = 1 << 16;
/// Bytes 5:4 of Host Behavior Support.
const CDFE: std::ops::Range<usize> = 4..6;

/// Features this controller has.
pub(super) const SUPPORTED: [u8; 13] = [
    fid::ARBITRATION,
    fid::POWER_MANAGEMENT,
    fid::TEMPERATURE_THRESHOLD,
    fid::ERROR_RECOVERY,
    fid::VOLATILE_WRITE_CACHE,
    fid::NUMBER_OF_QUEUES,
    fid::INTERRUPT_COALESCING,
    fid::INTERRUPT_VECTOR,
    fid::WRITE_ATOMICITY,
    fid::ASYNC_EVENT,
    fid::TIMESTAMP,
    fid::KEEP_ALIVE,
    fid::HOST_BEHAVIOR,
];

/// Current values. The same constructor gives the defaults.
#[derive(Debug)]
pub struct Features {
    arbitration: u32,
    power: u32,
    threshold_over: u16,
    threshold_under: u16,
    /// By NSID, from 1.
    error_recovery: Vec<u32>,
    pub(super) write_cache: bool,
    coalescing: u32,
    /// Coalescing disabled, by vector.
    vector_cd: Vec<bool>,
    atomicity: u32,
    async_event: u32,
    timestamp: Timestamp,
    keep_alive: u32,
    host_behavior: [u8; fid::HOST_BEHAVIOR_SIZE],
}

#[derive(Debug)]
struct Timestamp {
    millis: u64,
    set: Instant,
    by_host: bool,
}

impl Timestamp {
    /// The data structure: milliseconds in 47:0, origin in byte 6 bits 3:1.
    fn bytes(&self) -> [u8; 8] {
        let now = self.millis.wrapping_add(self.set.elapsed().as_millis() as u64) & 0xffff_ffff_ffff;
        (now | u64::from(self.by_host) << 49).to_le_bytes()
    }
}

impl Features {
    /// Values after a reset.
    pub fn new(config: &ControllerConfig) -> Self {
        Self {
            arbitration: 7, // AB: no limit
            power: 0,
            threshold_over: WCTEMP,
            threshold_under: 0,
            error_recovery: Vec::new(),
            write_cache: true,
            coalescing: 0,
            vector_cd: (0..config.vectors).map(|vector| vector == 0).collect(),
            atomicity: 0,
            async_event: 0,
            timestamp: Timestamp { millis: 0, set: Instant::now(), by_host: false },
            keep_alive: 0,
            host_behavior: [0; fid::HOST_BEHAVIOR_SIZE],
        }
    }

    fn error_recovery(&self, nsid: u32) -> u32 {
        self.error_recovery.get(nsid as usize).copied().unwrap_or(0)
    }

    /// Is the temperature at or beyond one of its thresholds?
    fn temperature_warns(&self) -> bool {
        TEMPERATURE >= self.threshold_over || TEMPERATURE <= self.threshold_under
    }

    fn host_cdfe(&self) -> u16 {
        self.host_behavior.get(CDFE).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes)
    }

    /// Does the host want events of this kind (Asynchronous Event Configuration)?
    pub(super) fn wants(&self, bit: u32) -> bool {
        self.async_event & bit != 0
    }

    /// The dword of a feature that is one; `None` for those with data or another shape.
    fn dword(&mut self, feature: u8) -> Option<&mut u32> {
        Some(match feature {
            fid::ARBITRATION => &mut self.arbitration,
            fid::POWER_MANAGEMENT => &mut self.power,
            fid::INTERRUPT_COALESCING => &mut self.coalescing,
            fid::WRITE_ATOMICITY => &mut self.atomicity,
            fid::ASYNC_EVENT => &mut self.async_event,
            fid::KEEP_ALIVE => &mut self.keep_alive,
            _ => return None,
        })
    }
}

/// Host-given selectors in CDW11 of the temperature threshold.
fn threshold_selectors(cdw11: u32) -> (u8, u8) {
    ((cdw11 >> 16 & 0xf) as u8, (cdw11 >> 20 & 3) as u8)
}

impl Controller {
    /// Makes the workers see what the features say.
    pub(in super::super) fn apply_features(&self) {
        let features = &self.admin.features;
        self.shared.write_cache.store(features.write_cache, Ordering::SeqCst);
        self.shared.cdfe.store(features.host_cdfe() | self.config.cdfe, Ordering::SeqCst);
        for ns in self.shared.namespaces.load().iter() {
            ns.set_dulbe(self.shared.cntlid, features.error_recovery(ns.nsid) & DULBE != 0);
        }
        self.shared.coalescing.store(features.coalescing, Ordering::Relaxed);
        for (shared, cd) in self.shared.vector_cd.iter().zip(&features.vector_cd) {
            shared.store(*cd, Ordering::Relaxed);
        }
    }

    pub(super) fn set_features(&mut self, memory: &DmaMap, sqe: &Sqe) -> Result<Reply, Status> {
        let feature = sqe.cdw10.get() as u8;
        let (cdw11, nsid) = (sqe.cdw11.get(), sqe.nsid.get());
        if sqe.cdw10.get() & SV != 0 {
            return Err(Status::FEATURE_NOT_SAVEABLE.dnr());
        }
        self.check_feature(feature)?;
        if feature != fid::ERROR_RECOVERY && nsid != 0 && nsid != NSID_BROADCAST {
            self.shared.namespaces.load().get(nsid)?;
            return Err(Status::FEATURE_NOT_NS_SPECIFIC.dnr());
        }
        let features = &mut self.admin.features;
        match feature {
            fid::POWER_MANAGEMENT if cdw11 & 0x1f != 0 => return Err(Status::INVALID_FIELD.dnr()), // NPSS is 0
            fid::TEMPERATURE_THRESHOLD => return self.set_temperature(cdw11),
            fid::ERROR_RECOVERY => return self.set_error_recovery(nsid, cdw11),
            fid::VOLATILE_WRITE_CACHE => return self.set_write_cache(sqe, cdw11 & 1 != 0),
            fid::NUMBER_OF_QUEUES => {
                if self.queues.any() {
                    return Err(Status::COMMAND_SEQUENCE_ERROR.dnr());
                }
                if cdw11 as u16 == 0xffff || cdw11 >> 16 == 0xffff {
                    return Err(Status::INVALID_FIELD.dnr());
                }
                return Ok(self.number_of_queues());
            }
            fid::INTERRUPT_VECTOR => {
                let place = features.vector_cd.get_mut(usize::from(cdw11 as u16));
                *place.ok_or(Status::INVALID_FIELD.dnr())? = cdw11 & 1 << 16 != 0;
                self.apply_features();
            }
            fid::TIMESTAMP => {
                let data = self.take_data(memory, sqe, 8)?;
                let value = data.try_into().map_or(0, u64::from_le_bytes);
                let millis = value & 0xffff_ffff_ffff;
                self.admin.features.timestamp = Timestamp { millis, set: Instant::now(), by_host: true };
            }
            fid::HOST_BEHAVIOR => {
                let data = self.take_data(memory, sqe, fid::HOST_BEHAVIOR_SIZE)?;
                // Bits of formats that are not offered are kept: Copy asks OCFS as well, and a host that writes one
                // mask to every device gets what there is.
                self.admin.features.host_behavior.copy_from_slice(&data);
                self.apply_features();
            }
            _ => {
                *features.dword(feature).ok_or(Status::INVALID_FIELD.dnr())? = cdw11;
                if feature == fid::KEEP_ALIVE {
                    self.admin.keep_alive.set(cdw11);
                }
                if feature == fid::ASYNC_EVENT {
                    self.report_warnings();
                }
                self.apply_features();
            }
        }
        Ok(Status::SUCCESS.into())
    }

    pub(super) fn get_features(&mut self, memory: &DmaMap, sqe: &Sqe) -> Result<Reply, Status> {
        let feature = sqe.cdw10.get() as u8;
        let (cdw11, nsid) = (sqe.cdw11.get(), sqe.nsid.get());
        let select =
            Select::from_bits((sqe.cdw10.get() >> 8 & 7) as u8).ok_or(Status::INVALID_FIELD.dnr())?;
        self.check_feature(feature)?;
        if feature == fid::ERROR_RECOVERY {
            self.shared.namespaces.load().get(nsid)?;
        }
        let mut defaults;
        let features = match select {
            Select::Capabilities => {
                let changeable = 1 << 2;
                let namespace = u32::from(feature == fid::ERROR_RECOVERY) << 1;
                return Ok(value(changeable | namespace));
            }
            Select::Current => &mut self.admin.features,
            Select::Default | Select::Saved => {
                defaults = Features::new(&self.config);
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
            fid::NUMBER_OF_QUEUES => return Ok(self.number_of_queues()),
            fid::INTERRUPT_VECTOR => {
                let vector = cdw11 as u16;
                let cd = features.vector_cd.get(usize::from(vector)).ok_or(Status::INVALID_FIELD.dnr())?;
                u32::from(vector) | u32::from(*cd) << 16
            }
            fid::TIMESTAMP => {
                let data = features.timestamp.bytes();
                return self.send_data(memory, sqe, &data);
            }
            fid::HOST_BEHAVIOR => {
                let mut data = features.host_behavior;
                let effective = features.host_cdfe() | self.config.cdfe;
                if let Some(bytes) = data.get_mut(CDFE) {
                    bytes.copy_from_slice(&effective.to_le_bytes());
                }
                return self.send_data(memory, sqe, &data);
            }
            _ => *features.dword(feature).ok_or(Status::INVALID_FIELD.dnr())?,
        };
        Ok(value(dword))
    }

    fn check_feature(&self, feature: u8) -> Result<(), Status> {
        // Without a cache there is nothing to ask about it.
        let absent = feature == fid::VOLATILE_WRITE_CACHE && !self.shared.has_volatile_cache();
        if SUPPORTED.contains(&feature) && !absent { Ok(()) } else { Err(Status::INVALID_FIELD.dnr()) }
    }

    fn number_of_queues(&self) -> Reply {
        let count = u32::from(self.config.max_ioqpairs - 1); // NSQA and NCQA are 0-based
        value(count | count << 16)
    }

    fn set_temperature(&mut self, cdw11: u32) -> Result<Reply, Status> {
        let features = &mut self.admin.features;
        let value = cdw11 as u16;
        match threshold_selectors(cdw11) {
            // 0 is the composite temperature, Fh all that are implemented, which is the same here.
            (0 | 0xf, 0) => features.threshold_over = value,
            (0 | 0xf, 1) => features.threshold_under = value,
            _ => return Err(Status::INVALID_FIELD.dnr()),
        }
        self.report_warnings();
        Ok(Status::SUCCESS.into())
    }

    /// Critical Warning of the SMART log.
    ///
    /// The media is read-only when each namespace's is, whatever the reason. The specification leaves out the states of
    /// Namespace Write Protection, which is not offered.
    pub(super) fn critical_warning(&self) -> u8 {
        let namespaces = self.shared.namespaces.load();
        let mut all = namespaces.iter().peekable();
        let read_only = all.peek().is_some() && all.all(|ns| ns.facts.read_only);
        let bit = |warns: bool, bit: u8| if warns { bit } else { 0 };
        bit(self.admin.features.temperature_warns(), warning::TEMPERATURE)
            | bit(read_only, warning::READ_ONLY)
    }

    /// Reports the warnings that there are and whose events are wanted. Asked when either may have changed.
    fn report_warnings(&mut self) {
        let wanted = self.critical_warning() & self.admin.features.async_event as u8;
        for (bit, event) in
            [(warning::TEMPERATURE, Event::TEMPERATURE), (warning::READ_ONLY, Event::READ_ONLY)]
        {
            if wanted & bit != 0 {
                self.report(event);
            }
        }
    }

    fn set_error_recovery(&mut self, nsid: u32, cdw11: u32) -> Result<Reply, Status> {
        let namespaces = self.shared.namespaces.load();
        let able = |ns: &Namespace| ns.facts.allocation_unit.is_some();
        // For all at once, those that cannot are left out, as QEMU does: a host with a mixed set could not use the
        // broadcast otherwise. But it must not be told that something is enabled when nothing is.
        let possible = match nsid {
            NSID_BROADCAST => namespaces.iter().any(|ns| able(ns)),
            nsid => able(namespaces.get(nsid)?),
        };
        if cdw11 & DULBE != 0 && !possible {
            return Err(Status::INVALID_FIELD.dnr());
        }
        let values = &mut self.admin.features.error_recovery;
        values.resize(namespaces.nn() as usize + 1, 0);
        for ns in namespaces.iter().filter(|ns| nsid == NSID_BROADCAST || ns.nsid == nsid) {
            if let Some(place) = values.get_mut(ns.nsid as usize) {
                *place = if able(ns) { cdw11 } else { cdw11 & !DULBE };
            }
        }
        self.apply_features();
        Ok(Status::SUCCESS.into())
    }

    /// Turning the cache off completes once everything written before is durable.
    fn set_write_cache(&mut self, sqe: &Sqe, on: bool) -> Result<Reply, Status> {
        self.admin.features.write_cache = on;
        self.apply_features();
        if on {
            return Ok(Status::SUCCESS.into());
        }
        // Even where it was off before: the flush of that may not have ended yet.
        self.flush_for(Asker::Admin(Pending { command: Failed::of(0, sqe), then: Then::CacheFlushed }));
        Ok(Reply::Later)
    }
}

fn value(dw0: u32) -> Reply {
    Reply::Done(Outcome { status: Status::SUCCESS, dw0 })
}
