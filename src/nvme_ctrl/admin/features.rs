//! Values of the features, as Set Features sets them and Get Features gets them. Nothing is saveable: a saved
//! value reads as the default.

use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::nvme_ctrl::config::ControllerConfig;
use crate::nvme_ctrl::shared::Shared;
use crate::spec::feature as fid;

/// WCTEMP in kelvin, the default of the over-temperature threshold.
pub(super) const WCTEMP: u16 = 343;

/// Error Recovery DULBE; for namespaces that have NSFEAT bit 2.
pub(super) const DULBE: u32 = 1 << 16;
/// Bytes 5:4 of Host Behavior Support.
pub(super) const CDFE: std::ops::Range<usize> = 4..6;

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
    pub(super) arbitration: u32,
    pub(super) power: u32,
    pub(super) threshold_over: u16,
    pub(super) threshold_under: u16,
    /// By NSID, from 1.
    pub(super) error_recovery: Vec<u32>,
    pub(super) write_cache: bool,
    pub(super) coalescing: u32,
    /// Coalescing disabled, by vector.
    pub(super) vector_cd: Vec<bool>,
    pub(super) atomicity: u32,
    pub(super) async_event: u32,
    pub(super) timestamp: Timestamp,
    pub(super) keep_alive: u32,
    pub(super) host_behavior: [u8; fid::HOST_BEHAVIOR_SIZE],
}

/// The Timestamp feature.
#[derive(Debug)]
pub struct Timestamp {
    pub(super) millis: u64,
    pub(super) set: Instant,
    pub(super) by_host: bool,
}

impl Timestamp {
    /// The data structure: milliseconds in 47:0, origin in byte 6 bits 3:1.
    pub(super) fn bytes(&self) -> [u8; 8] {
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

    pub(super) fn error_recovery(&self, nsid: u32) -> u32 {
        self.error_recovery.get(nsid as usize).copied().unwrap_or(0)
    }

    /// Makes the workers see what the features say. `cdfe`: formats enabled whatever the host has set.
    pub fn apply(&self, shared: &Shared, cdfe: u16) {
        shared.write_cache.store(self.write_cache, Ordering::SeqCst);
        shared.cdfe.store(self.host_cdfe() | cdfe, Ordering::SeqCst);
        for ns in shared.namespaces.load().iter() {
            ns.set_dulbe(shared.cntlid, self.error_recovery(ns.nsid) & DULBE != 0);
        }
        shared.coalescing.store(self.coalescing, Ordering::Relaxed);
        for (shared, cd) in shared.vector_cd.iter().zip(&self.vector_cd) {
            shared.store(*cd, Ordering::Relaxed);
        }
    }

    /// Is the temperature, in kelvin, at or beyond one of its thresholds?
    pub(super) fn temperature_warns(&self, temperature: u16) -> bool {
        temperature >= self.threshold_over || temperature <= self.threshold_under
    }

    /// Asynchronous Event Configuration.
    pub fn async_event(&self) -> u32 {
        self.async_event
    }

    pub(super) fn host_cdfe(&self) -> u16 {
        self.host_behavior.get(CDFE).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes)
    }

    /// The dword of a feature that is one; `None` for those with data or another shape.
    pub(super) fn dword(&mut self, feature: u8) -> Option<&mut u32> {
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
pub(super) fn threshold_selectors(cdw11: u32) -> (u8, u8) {
    ((cdw11 >> 16 & 0xf) as u8, (cdw11 >> 20 & 3) as u8)
}
