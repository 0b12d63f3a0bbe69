//! Lines on standard error for a person who waits: what is being done, and how far it is.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Nobody should look at a silent terminal for longer.
const EVERY: Duration = Duration::from_secs(10);

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Prints `text` behind the seconds since the first such line.
pub fn say(text: &str) {
    eprintln!("[{:5.1} s] {text}", START.elapsed().as_secs_f32());
}

/// Says `text`, does `work`, and says every ten seconds that it goes on, with what `detail` answers then.
pub fn during<T>(text: &str, detail: impl Fn() -> String + Sync, work: impl FnOnce() -> T) -> T {
    say(text);
    let tick = |seconds| {
        let detail = detail();
        let colon = if detail.is_empty() { "" } else { ": " };
        say(&format!("... {seconds} s{colon}{detail}"));
    };
    watched(EVERY, &tick, work)
}

/// Calls `tick` with the whole seconds that have passed, each time `every` is over, until `work` is done.
fn watched<T>(every: Duration, tick: &(dyn Fn(u64) + Sync), work: impl FnOnce() -> T) -> T {
    let (working, done) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let start = Instant::now();
            while done.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                tick(start.elapsed().as_secs());
            }
        });
        // Gone when the work is, even by a panic: the scope waits for the thread above.
        let _working = working;
        work()
    })
}

/// What a step is at, told by who does it and read by who reports it.
#[derive(Debug, Default)]
pub struct Detail(Mutex<String>);

impl Detail {
    /// Replaces it.
    pub fn set(&self, text: &str) {
        text.clone_into(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// As it is now.
    #[must_use]
    pub fn get(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_that_work_goes_on_until_it_is_done() {
        let (ticked, ticks) = channel();
        let answer = watched(Duration::from_millis(1), &|_| ticked.send(()).unwrap(), || {
            ticks.recv().unwrap();
            ticks.recv().unwrap();
            7
        });
        assert_eq!(answer, 7);
        assert_eq!(watched(Duration::from_secs(3600), &|_| panic!("nothing took that long"), || 8), 8);
    }
}
