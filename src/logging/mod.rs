//! The log: lines on standard error, which nobody may be reading.
//!
//! Who logs puts a line into memory and goes on; a thread of the log's own writes it. When the memory is
//! full, lines are lost and counted. Lines at info and above are [limited by kind](limit), because a guest
//! can provoke them at any rate. Those at debug and trace are not: who asks for them wants each (why a Copy
//! was refused), and a guest that writes a million of them fills the memory at worst.

mod limit;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt;
use std::panic::PanicHookInfo;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use log::{Level, LevelFilter, Log, Metadata, Record};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::stdio::stderr;

use limit::{Held, Limits, Place, Verdict};

/// Target of lines that an operator has asked for, which are never held back (SIGUSR1: a line for each
/// queue).
pub const ASKED_FOR: &str = "asked for";

/// Bytes of lines that wait to be written: some 8000 of them.
const ROOM: usize = 1 << 20;
/// Bytes that a pipe takes without waiting when poll says that it takes any (PIPE_BUF).
const PIECE: usize = 4096;
/// How long the end of the process waits for somebody who reads.
const AT_THE_END: Duration = Duration::from_secs(1);
/// How long a thread that panics waits for somebody who reads: it may be about to abort the process.
const AT_A_PANIC: Duration = Duration::from_millis(100);

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Makes this the process's log, down to `level`, panics included. Until [`begin`] each line is written by
/// the thread that logs it, as far as standard error takes it at once.
pub fn install(level: LevelFilter) {
    let logger = LOGGER.get_or_init(|| Logger { level, ..Logger::default() });
    if log::set_logger(logger).is_ok() {
        log::set_max_level(level);
        std::panic::set_hook(Box::new(|info| logger.panicked(info)));
    }
}

/// Guests speak from now on: limits hold, and the log's own thread writes. Where that thread cannot be made
/// it goes on as before. Does nothing without [`install`].
pub fn begin() {
    let Some(logger) = LOGGER.get() else { return };
    let spawned = std::thread::Builder::new().name("log".into()).spawn(|| logger.run());
    let mut state = logger.lock();
    state.limits = Some(Limits::default());
    state.has_thread = spawned.is_ok();
    drop(state);
    if let Err(error) = spawned {
        log::warn!("the log has no thread of its own ({error}); allow this process more threads");
    }
}

/// Writes what is left, if somebody reads it soon.
pub fn end() {
    if let Some(logger) = LOGGER.get() {
        logger.finish(AT_THE_END);
    }
}

struct Logger {
    level: LevelFilter,
    state: Mutex<State>,
    /// There is something to write.
    work: Condvar,
    /// All is written.
    idle: Condvar,
}

impl Default for Logger {
    fn default() -> Self {
        Self { level: LevelFilter::Off, state: Mutex::default(), work: Condvar::new(), idle: Condvar::new() }
    }
}

#[derive(Default)]
struct State {
    /// Whole lines.
    queue: Vec<u8>,
    /// Lines for which there was no room, or that could not be written.
    lost: u64,
    limits: Option<Limits>,
    has_thread: bool,
    /// The thread has taken lines and not written all of them.
    writing: bool,
}

impl State {
    fn push(&mut self, line: &str) {
        if self.queue.len() + line.len() > ROOM {
            self.lost += 1;
        } else {
            self.queue.extend_from_slice(line.as_bytes());
        }
    }

    fn push_held(&mut self, held: Vec<Held>) {
        for Held { at, level, text, more } in held {
            self.push(&match more {
                0 => line(at, level, format_args!("{text}")),
                _ => line(at, level, format_args!("{text} ({more} more like this)")),
            });
        }
    }

    /// What is to be written, and how many lines that is.
    fn take(&mut self) -> (Vec<u8>, u64) {
        let mut text = std::mem::take(&mut self.queue);
        let mut lines = text.iter().filter(|byte| **byte == b'\n').count() as u64;
        let lost = std::mem::take(&mut self.lost);
        if lost > 0 {
            lines += lost;
            let said = format_args!("{lost} lines of the log are lost: standard error took none");
            text.extend_from_slice(line(SystemTime::now(), Level::Warn, said).as_bytes());
        }
        (text, lines)
    }
}

/// A line as it is written.
fn line(at: SystemTime, level: Level, text: fmt::Arguments<'_>) -> String {
    format!("[{} {level:<5}] {text}\n", humantime::format_rfc3339_micros(at))
}

impl Logger {
    /// Whatever panics while it holds the lock, the state is whole at any time.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_line(&self, level: Level, text: fmt::Arguments<'_>) {
        // Formatted without the lock: the text may be made by code that panics, or logs.
        let line = line(SystemTime::now(), level, text);
        let mut state = self.lock();
        state.push(&line);
        self.written(state);
    }

    /// The queue has more than before.
    fn written(&self, mut state: MutexGuard<'_, State>) {
        if state.has_thread {
            drop(state);
            self.work.notify_one();
        } else {
            write_what_is_taken(&mut state, Duration::ZERO);
        }
    }

    fn panicked(&self, info: &PanicHookInfo<'_>) {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("without a name");
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            self.write_line(Level::Error, format_args!("thread {name} {info}\n{backtrace}"));
        } else {
            self.write_line(Level::Error, format_args!("thread {name} {info}"));
        }
        self.wait(AT_A_PANIC);
    }

    /// The log's thread.
    fn run(&self) {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let held = state.limits.as_mut().map(|limits| limits.take_ended(now)).unwrap_or_default();
            state.push_held(held);
            if state.queue.is_empty() {
                state.writing = false;
                self.idle.notify_all();
                let next = state.limits.as_ref().and_then(Limits::next_end);
                let forever = Duration::MAX;
                let patience = next.map_or(forever, |at| at.saturating_duration_since(now));
                state = self.work.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            let (text, lines) = state.take();
            state.writing = true;
            drop(state);
            let written = write_all(&text);
            state = self.lock();
            if written.is_err() {
                state.lost += lines;
            }
        }
    }

    /// Writes what is held too.
    fn finish(&self, patience: Duration) {
        let mut state = self.lock();
        let held = state.limits.as_mut().map(|limits| limits.take_all(Instant::now())).unwrap_or_default();
        state.push_held(held);
        drop(state);
        self.wait(patience);
    }

    /// Waits until all is written.
    fn wait(&self, patience: Duration) {
        let mut state = self.lock();
        if !state.has_thread {
            return write_what_is_taken(&mut state, patience);
        }
        self.work.notify_one();
        let busy = |state: &mut State| state.writing || !state.queue.is_empty();
        let _ = self.idle.wait_timeout_while(state, patience, busy);
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= self.level
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = record.level();
        let limited = level <= Level::Info && record.target() != ASKED_FOR;
        if let (true, Some(file), Some(line)) = (limited, record.file_static(), record.line()) {
            let place = Place { file, line };
            let now = Instant::now();
            let verdict = self.lock().limits.as_mut().map(|limits| limits.judge(place, now));
            match verdict {
                None | Some(Verdict::Write) => {}
                Some(Verdict::Count) => return,
                Some(Verdict::Hold) => {
                    let text = record.args().to_string();
                    let held = Held { at: SystemTime::now(), level, text, more: 0 };
                    let mut state = self.lock();
                    if let Some(limits) = &mut state.limits {
                        limits.hold(place, held);
                    }
                    return self.written(state);
                }
            }
        }
        self.write_line(level, *record.args());
    }

    fn flush(&self) {
        self.wait(AT_THE_END);
    }
}

/// Writes to standard error, and waits as long as that takes.
fn write_all(mut text: &[u8]) -> Result<(), Errno> {
    while !text.is_empty() {
        match rustix::io::write(stderr(), text) {
            Ok(count) => text = text.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            // Somebody who has it too made it non-blocking.
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::from_borrowed_fd(stderr(), PollFlags::OUT)], None);
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Without a thread: writes what standard error takes within `patience`, and keeps the rest.
fn write_what_is_taken(state: &mut State, patience: Duration) {
    let deadline = Instant::now() + patience;
    while !state.queue.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut fds = [PollFd::from_borrowed_fd(stderr(), PollFlags::OUT)];
        if !matches!(poll(&mut fds, Some(&left)), Ok(1..)) {
            return;
        }
        let piece = state.queue.get(..PIECE).unwrap_or(&state.queue);
        match rustix::io::write(stderr(), piece) {
            Ok(count) => drop(state.queue.drain(..count)),
            Err(Errno::INTR | Errno::AGAIN) => return,
            Err(_) => {
                let (_, lines) = state.take();
                state.lost = lines;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHILD: &str = "VFIO_USER_NVME_TEST_LOGGING_CHILD";

    /// The process whose log is looked at; does nothing in an ordinary run.
    #[test]
    fn child() {
        if std::env::var_os(CHILD).is_none() {
            return;
        }
        install(LevelFilter::Off);
        begin();
        let failed = std::thread::Builder::new().name("some".into()).spawn(|| panic!("of no use"));
        let _ = failed.expect("a thread").join();
        // Nothing is told to write what is left: this could have been the end of the process.
        std::process::abort();
    }

    #[test]
    fn a_panic_gets_out_whatever_is_logged() {
        let out = std::process::Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "logging::tests::child", "--nocapture"])
            .env(CHILD, "")
            .output()
            .expect("it runs");
        let text = String::from_utf8_lossy(&out.stderr);
        assert!(text.contains("ERROR] thread some panicked at ") && text.contains("of no use"), "{text}");
    }

    #[test]
    fn a_line_looks_as_ever() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_micros(1_700_000_000_123_456);
        assert_eq!(
            line(at, Level::Warn, format_args!("{} of it", 3)),
            "[2023-11-14T22:13:20.123456Z WARN ] 3 of it\n"
        );
    }

    #[test]
    fn what_has_no_room_is_counted() {
        let mut state = State::default();
        let line = format!("{}\n", "x".repeat(ROOM / 4));
        for _ in 0..5 {
            state.push(&line);
        }
        assert_eq!((state.queue.len(), state.lost), (3 * line.len(), 2));
        let (text, lines) = state.take();
        assert!(
            String::from_utf8(text)
                .unwrap()
                .ends_with("2 lines of the log are lost: standard error took none\n")
        );
        assert_eq!((lines, state.lost, state.queue.len()), (5, 0, 0));
    }

    #[test]
    fn what_was_held_says_how_many_more() {
        let mut state = State::default();
        let held = |more| Held { at: SystemTime::UNIX_EPOCH, level: Level::Warn, text: "no".into(), more };
        state.push_held(vec![held(0), held(7)]);
        let text = String::from_utf8(state.queue).unwrap();
        let texts: Vec<_> =
            text.lines().filter_map(|line| line.split_once("] ")).map(|(_, text)| text).collect();
        assert_eq!(texts, ["no", "no (7 more like this)"]);
    }
}
