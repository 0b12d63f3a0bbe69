//! What each worker thread begins with: its lane and its processor.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::config::{ConfigError, NvmeConfig};
use crate::disk::{Lane, LaneKind};
use crate::nvme_ctrl::LaneFactory;

/// Makes the lanes, each on the thread that is to use it, and binds the n-th of these threads to the n-th
/// processor of `iothread-cpus`, beginning anew where the list ends.
///
/// # Errors
/// A processor that this process may not use.
pub fn factory(nvme: &NvmeConfig, kind: LaneKind) -> Result<LaneFactory, ConfigError> {
    let cpus = nvme.iothread_cpus.clone();
    check(&cpus)?;
    let next = AtomicUsize::new(0);
    Ok(Arc::new(move || {
        // First the lane: its own threads are not to share the worker's processor.
        let lane = Lane::new(kind)?;
        let index = next.fetch_add(1, Ordering::Relaxed);
        if let Some(cpu) = cpus.iter().cycle().nth(index) {
            let mut only = CpuSet::new();
            only.set(usize::from(*cpu));
            sched_setaffinity(None, &only)?;
        }
        Ok(lane)
    }))
}

fn check(cpus: &[u16]) -> Result<(), ConfigError> {
    // Where it cannot be told what is allowed, the worker's own attempt decides.
    let Ok(allowed) = sched_getaffinity(None) else { return Ok(()) };
    let may = |cpu: u16| usize::from(cpu) < CpuSet::MAX_CPU && allowed.is_set(usize::from(cpu));
    let Some(cpu) = cpus.iter().find(|cpu| !may(**cpu)) else { return Ok(()) };
    let ours: Vec<String> = (0..u16::MAX).filter(|cpu| may(*cpu)).map(|cpu| cpu.to_string()).collect();
    Err(ConfigError::bad_value(
        "--nvme",
        "iothread-cpus",
        cpu.to_string(),
        "is not a processor that this process may use",
        format!("give some of {}, or leave it out", ours.join(" ")),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_that_is_not_there_is_named_with_those_that_are() {
        let message = check(&[1023]).unwrap_err().to_string();
        assert!(message.starts_with("--nvme iothread-cpus=1023: is not a processor"), "{message}");
        assert!(message.contains("give some of "), "{message}");
        assert!(check(&[]).is_ok());
    }
}
