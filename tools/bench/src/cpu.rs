//! Where threads run.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use vfio_user_nvme::config::ConfigError;

/// Pins the calling thread, which is the `index`th of its kind; an empty list leaves it alone.
///
/// # Errors
/// The CPU is not there, or not for this process.
pub(crate) fn pin(cpus: &[usize], index: usize) -> Result<(), ConfigError> {
    let Some(cpu) = cpus.get(index % cpus.len().max(1)) else { return Ok(()) };
    let mut set = CpuSet::new();
    set.set(*cpu);
    sched_setaffinity(None, &set).map_err(|errno| {
        ConfigError::bad_option(
            "--cpus",
            cpu.to_string(),
            errno.to_string(),
            "name CPUs this process may use",
        )
    })
}

/// Two CPUs for two threads that work together: the first of `cpus`, and one that is not in it. As many as
/// there are.
pub(crate) fn pair(cpus: &[usize]) -> Vec<usize> {
    let allowed = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
    let mut allowed = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    let mut others: Vec<_> = allowed.by_ref().filter(|cpu| !cpus.contains(cpu)).take(2).collect();
    match cpus.first() {
        Some(first) => {
            others.insert(0, *first);
            // All are taken by the queues, which rest now: any of them will do.
            others.extend(cpus.get(1));
        }
        None => others.reverse(),
    }
    others.truncate(2);
    others
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_different() {
        let pair = pair(&[]);
        assert!(pair.len() < 2 || pair[0] != pair[1], "{pair:?}");
        let first = pair[0];
        assert_eq!(super::pair(&[first])[0], first);
        pin(&[], 3).unwrap();
        pin(&[first], 3).unwrap();
        let error = pin(&[CpuSet::MAX_CPU - 1], 0).unwrap_err().to_string();
        assert!(error.starts_with("--cpus 1023: "), "{error}");
    }
}
