//! What the host fails to do with one image, for the log: the first failure of each kind at once, then one line for many.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two lines of one kind.
const QUIET: Duration = Duration::from_secs(10);

/// Of one image.
#[derive(Debug)]
pub(super) struct Failures {
    /// As people call it.
    image: String,
    /// No more than operations and errors of the kernel's.
    kinds: Mutex<Vec<Repeated>>,
}

/// One failure.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    /// What was to be done: "write".
    pub(super) what: &'static str,
    pub(super) offset: u64,
    /// Bytes; 0 where it concerns all of the image.
    pub(super) len: u64,
    /// What tells kinds apart besides `what`: errno, or 0 where there is none.
    pub(super) errno: i32,
    /// Why it failed, and the remedy if there is one.
    pub(super) why: String,
}

#[derive(Debug)]
struct Repeated {
    what: &'static str,
    errno: i32,
    said: Instant,
    /// Failures since.
    unsaid: u64,
}

impl Failures {
    pub(super) fn of(image: String) -> Self {
        Failures { image, kinds: Mutex::default() }
    }

    pub(super) fn note(&self, failure: &Failure) {
        if let Some(line) = self.line(failure, Instant::now()) {
            log::warn!("{line}");
        }
    }

    /// The line for this failure, unless one of its kind has just been said.
    fn line(&self, failure: &Failure, now: Instant) -> Option<String> {
        let Failure { what, offset, len, errno, why } = failure;
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let mut unsaid = 0;
        if let Some(kind) = kinds.iter_mut().find(|kind| (kind.what, kind.errno) == (*what, *errno)) {
            if now.saturating_duration_since(kind.said) < QUIET {
                kind.unsaid += 1;
                return None;
            }
            kind.said = now;
            unsaid = std::mem::take(&mut kind.unsaid);
        } else {
            kinds.push(Repeated { what, errno: *errno, said: now, unsaid: 0 });
        }
        let place = if *len > 0 { format!(" of {len} bytes at byte {offset}") } else { String::new() };
        let more =
            if unsaid > 0 { format!(" ({unsaid} more since the last such line)") } else { String::new() };
        Some(format!("{}: {what}{place} failed: {why}{more}", self.image))
    }

    /// A line for each kind of which not all has been said.
    fn rest(&mut self) -> Vec<String> {
        let kinds = self.kinds.get_mut().unwrap_or_else(PoisonError::into_inner);
        let unsaid = kinds.iter().filter(|kind| kind.unsaid > 0);
        unsaid
            .map(|Repeated { what, errno, unsaid, .. }| {
                let error = match errno {
                    0 => String::new(),
                    errno => format!(": {}", std::io::Error::from_raw_os_error(*errno)),
                };
                format!("{}: {what} failed {unsaid} more times{error}", self.image)
            })
            .collect()
    }
}

impl Drop for Failures {
    fn drop(&mut self) {
        for line in self.rest() {
            log::warn!("{line}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(what: &'static str, errno: i32) -> Failure {
        Failure { what, offset: 512, len: 1024, errno, why: "no".into() }
    }

    #[test]
    fn one_line_for_many() {
        let mut failures = Failures::of("a".into());
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let first = failures.line(&failure("write", 5), at(0));
        assert_eq!(first.as_deref(), Some("a: write of 1024 bytes at byte 512 failed: no"));
        for n in 1..1000 {
            assert_eq!(failures.line(&failure("write", 5), at(n)), None);
        }
        let all = Failure { len: 0, ..failure("flush", 5) };
        assert_eq!(failures.line(&all, at(0)).as_deref(), Some("a: flush failed: no"));
        // Another error, or with another operation, is another kind.
        assert!(failures.line(&failure("write", 28), at(1000)).is_some());
        assert!(failures.line(&failure("read", 5), at(1000)).is_some());
        let later = failures.line(&failure("write", 5), at(10_000)).expect("it is time");
        assert!(later.ends_with("failed: no (999 more since the last such line)"), "{later}");
        let alone = failures.line(&failure("write", 5), at(20_000)).expect("it is time");
        assert!(alone.ends_with("failed: no"), "{alone}");
        assert_eq!(failures.rest(), Vec::<String>::new());
        failures.line(&failure("read", 5), at(1001));
        assert_eq!(failures.rest(), ["a: read failed 1 more times: Input/output error (os error 5)"]);
    }
}
