//! No wake-up is lost: the code that puts a worker to sleep, against everything a host may do meanwhile, in every
//! interleaving and with every reordering that the memory model allows (loom).
//!
//! A lost wake-up is a deadlock here: the worker sleeps with a command in its queue, and nobody is left to ring.

use loom::sync::atomic::AtomicU32;
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

mod sync {
    pub use loom::sync::atomic::{AtomicBool, Ordering, fence};
}

#[path = "../src/nvme_ctrl/worker/sleeper.rs"]
mod sleeper;

use sleeper::{Sleeper, Watched};
use sync::{Ordering, fence};

/// Doorbell, event index and eventfd of one queue, whose indices do not wrap here.
struct Bells {
    tail: AtomicU32,
    event: AtomicU32,
    sleeper: Sleeper,
    waker: Waker,
}

/// The worker's eventfd: a wake-up that comes early is kept.
struct Waker {
    count: Mutex<bool>,
    changed: Condvar,
}

impl Waker {
    fn notify(&self) {
        *self.count.lock().unwrap() = true;
        self.changed.notify_one();
    }

    fn wait(&self) {
        let mut count = self.count.lock().unwrap();
        while !std::mem::take(&mut *count) {
            count = self.changed.wait(count).unwrap();
        }
    }
}

impl Bells {
    /// `event`: what the host left in the event index.
    fn new(event: u32) -> Self {
        Self {
            tail: AtomicU32::new(0),
            event: AtomicU32::new(event),
            sleeper: Sleeper::new(),
            waker: Waker { count: Mutex::new(false), changed: Condvar::new() },
        }
    }
}

/// The worker's side of them. With `shadow` it writes event indices.
struct Side<'a> {
    bells: &'a Bells,
    shadow: bool,
    head: u32,
}

impl Watched for Side<'_> {
    fn arm(&mut self) {
        if self.shadow {
            self.bells.event.store(self.head, Ordering::Release);
        }
    }

    fn look(&mut self) -> bool {
        self.bells.tail.load(Ordering::Acquire) != self.head
    }
}

/// Takes commands until `last` of them came.
fn worker(bells: &Bells, shadow: bool, last: u32) {
    let mut side = Side { bells, shadow, head: 0 };
    while side.head != last {
        let tail = bells.tail.load(Ordering::Acquire);
        if tail != side.head {
            side.head = tail;
            continue;
        }
        if bells.sleeper.may_sleep(&mut side) {
            bells.waker.wait();
        }
        bells.sleeper.awake();
    }
}

/// The control thread, for a trapped doorbell that is stored already.
fn trapped(bells: &Bells) {
    if bells.sleeper.ring() {
        bells.waker.notify();
    }
}

fn check(commands: u32, shadow: bool, host: impl Fn(&Bells, u32) + Copy + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(4);
    builder.check(move || {
        let bells = Arc::new(Bells::new(0));
        let theirs = Arc::clone(&bells);
        let host = thread::spawn(move || {
            for tail in 1..=commands {
                host(&theirs, tail);
            }
        });
        worker(&bells, shadow, commands);
        host.join().unwrap();
    });
}

/// Doorbells in BAR0, each of them trapped.
#[test]
fn trapped_doorbells() {
    check(3, false, |bells, tail| {
        bells.tail.store(tail, Ordering::Release);
        trapped(bells);
    });
}

/// As Linux does it: store the shadow, full barrier, look at the event index; ring BAR0 if it was passed.
fn shadow_rings(bells: &Bells, new: u32) -> bool {
    let old = new - 1;
    bells.tail.store(new, Ordering::Release);
    fence(Ordering::SeqCst);
    let event = bells.event.load(Ordering::Relaxed);
    (new.wrapping_sub(event).wrapping_sub(1) as u16) < new.wrapping_sub(old) as u16
}

/// Doorbells in guest memory with event indices.
#[test]
fn shadow_doorbells() {
    check(2, true, |bells, tail| {
        if shadow_rings(bells, tail) {
            trapped(bells);
        }
    });
}

/// One command, one attempt to sleep: true in every interleaving means that nothing was lost. (Without blocking,
/// because loom cannot unwind out of a deadlock.)
fn one_command(look: fn(&mut Side<'_>) -> bool) {
    struct With<'a>(Side<'a>, fn(&mut Side<'a>) -> bool);
    impl Watched for With<'_> {
        fn arm(&mut self) {
            self.0.arm();
        }
        fn look(&mut self) -> bool {
            (self.1)(&mut self.0)
        }
    }
    loom::model(move || {
        let (bells, woken) = (Arc::new(Bells::new(9)), Arc::new(AtomicU32::new(0)));
        let (theirs, wake) = (Arc::clone(&bells), Arc::clone(&woken));
        let host = thread::spawn(move || {
            if shadow_rings(&theirs, 1) && theirs.sleeper.ring() {
                wake.store(1, Ordering::Relaxed);
            }
        });
        let asleep = bells.sleeper.may_sleep(&mut With(Side { bells: &bells, shadow: true, head: 0 }, look));
        host.join().unwrap();
        assert!(!asleep || woken.load(Ordering::Relaxed) == 1, "asleep for good");
    });
}

#[test]
fn one_command_is_not_lost() {
    one_command(|side| side.look());
}

/// The model can fail: without the last look it does.
#[test]
#[should_panic(expected = "asleep for good")]
fn without_the_last_look() {
    one_command(|_| false);
}
