//! What operations on one image wait for among each other: a range whose edge block another one is rewriting, bounce
//! memory, an fdatasync. All workers share it; an operation that needs none of these does not come here.
//!
//! Everything an operation needs is taken at once, so none holds something while it waits; and what an operation waits for
//! is not given to one that came later, so none waits for ever.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::engine::Waker;

/// Bounce memory of all operations in flight on one image, in bytes.
const BOUNCE: usize = 16 << 20;

/// What one operation takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Claim {
    /// The range it changes, in bytes and rounded out to whole blocks; empty: none that matters.
    pub(super) range: std::ops::Range<u64>,
    /// Bytes at its beginning and at its end which it writes anew around the part it was given.
    pub(super) head: u64,
    pub(super) tail: u64,
    /// Bytes of bounce memory, at most [`BOUNCE`].
    pub(super) bounce: usize,
}

impl Claim {
    /// May both be under way? What they were given may overlap (their hosts take what comes of it), but what one
    /// writes around it may not be touched by the other.
    fn bears(&self, other: &Claim) -> bool {
        let apart = |one: &std::ops::Range<u64>, other: &std::ops::Range<u64>| {
            one.end.min(other.end) <= one.start.max(other.start)
        };
        let edges = |claim: &Claim| {
            let range = &claim.range;
            [range.start..range.start + claim.head, range.end - claim.tail..range.end]
        };
        edges(self).iter().all(|edge| apart(edge, &other.range))
            && edges(other).iter().all(|edge| apart(edge, &self.range))
    }
}

/// What an operation asks for until it has it, and its place among those that wait.
#[derive(Debug)]
pub(super) struct Wish {
    claim: Claim,
    place: Option<Place>,
}

impl From<Claim> for Wish {
    fn from(claim: Claim) -> Self {
        Wish { claim, place: None }
    }
}

/// A place among those that wait; given up when it is dropped.
#[derive(Debug)]
struct Place {
    turns: Arc<Turns>,
    id: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.turns.change(|state| state.waiting.retain(|(id, _)| *id != self.id));
    }
}

/// See the module docs.
#[derive(Debug)]
pub(super) struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// Claims in force, at most one for each operation in flight.
    held: Vec<(u64, Claim)>,
    /// Who waits for theirs, the oldest first.
    waiting: Vec<(u64, Claim)>,
    next: u64,
    bounce: usize,
    /// Number of the last sync that began, and of the last that ended; equal: none is under way.
    began: u64,
    ended: u64,
    /// Raised with every change that somebody may wait for.
    epoch: u64,
    /// Engines with somebody that waits.
    wakers: Vec<Waker>,
}

impl Default for Turns {
    fn default() -> Self {
        let state = State {
            held: Vec::new(),
            waiting: Vec::new(),
            next: 0,
            bounce: BOUNCE,
            began: 0,
            ended: 0,
            epoch: 0,
            wakers: Vec::new(),
        };
        Turns { state: Mutex::new(state), changed: Condvar::new() }
    }
}

/// The answer to who asks for something.
#[derive(Debug)]
pub(super) enum Answer<T> {
    Granted(T),
    /// Not now; the epoch to wait for the end of. The engine is woken when it may be worth asking again.
    Wait(u64),
}

/// What is to be done for a sync.
#[derive(Debug)]
pub(super) enum Sync {
    /// One that began late enough has ended.
    Covered,
    /// It is for the asker to make.
    Make(SyncTurn),
}

impl Turns {
    /// Takes what is wished for. Who is told to wait keeps the wish, and its place with it.
    pub(super) fn take(self: &Arc<Self>, wish: &mut Wish, waker: Option<&Waker>) -> Answer<Turn> {
        let mut state = self.state();
        let place = wish.place.as_ref().map(|place| place.id);
        if !state.is_free(&wish.claim, place) {
            if place.is_none() {
                let id = state.id();
                state.waiting.push((id, wish.claim.clone()));
                wish.place = Some(Place { turns: Arc::clone(self), id });
            }
            return state.wait(waker);
        }
        let id = state.id();
        state.bounce -= wish.claim.bounce;
        state.held.push((id, wish.claim.clone()));
        drop(state);
        // Nobody who waited for this place may go on: what it stood for is held now.
        wish.place = None;
        Answer::Granted(Turn { turns: Arc::clone(self), id })
    }

    /// The number of a sync that covers all that has been completed by now: one that has not begun yet.
    pub(super) fn next_sync(&self) -> u64 {
        self.state().began + 1
    }

    /// Asks for sync number `wanted` or a later one. All that wait for the next one share it.
    pub(super) fn sync(self: &Arc<Self>, wanted: u64, waker: Option<&Waker>) -> Answer<Sync> {
        let mut state = self.state();
        if state.ended >= wanted {
            return Answer::Granted(Sync::Covered);
        }
        if state.began > state.ended {
            return state.wait(waker);
        }
        state.began += 1;
        Answer::Granted(Sync::Make(SyncTurn { turns: Arc::clone(self), made: false }))
    }

    /// Sleeps until `epoch` is over, or a while.
    pub(super) fn sleep(&self, epoch: u64) {
        const A_WHILE: Duration = Duration::from_millis(100);
        let _ = self.changed.wait_timeout_while(self.state(), A_WHILE, |state| state.epoch == epoch);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that panics is done under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        state.epoch += 1;
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        self.changed.notify_all();
        for waker in wakers {
            waker.wake();
        }
    }
}

impl State {
    fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Could it be had, by one who is at `place` among those that wait, or comes after all of them?
    fn is_free(&self, claim: &Claim, place: Option<u64>) -> bool {
        let older = || self.waiting.iter().take_while(|(id, _)| Some(*id) != place).map(|(_, claim)| claim);
        // Only who needs bounce memory himself waits for those who do.
        let promised = if claim.bounce == 0 { 0 } else { older().map(|claim| claim.bounce).sum() };
        claim.bounce.saturating_add(promised) <= self.bounce
            && self.held.iter().all(|(_, held)| held.bears(claim))
            && older().all(|older| older.bears(claim))
    }

    fn wait<T>(&mut self, waker: Option<&Waker>) -> Answer<T> {
        if let Some(waker) = waker
            && !self.wakers.iter().any(|other| other.is_same(waker))
        {
            self.wakers.push(waker.clone());
        }
        Answer::Wait(self.epoch)
    }
}

/// A claim in force; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Arc<Turns>,
    id: u64,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.change(|state| {
            if let Some(at) = state.held.iter().position(|(id, _)| *id == self.id) {
                let (_, claim) = state.held.swap_remove(at);
                state.bounce += claim.bounce;
            }
        });
    }
}

/// The right to make a sync; dropped unmade, another one makes it.
#[derive(Debug)]
pub(super) struct SyncTurn {
    turns: Arc<Turns>,
    made: bool,
}

impl SyncTurn {
    /// It was made, with whatever result: a failure is remembered elsewhere, before this.
    pub(super) fn made(mut self) {
        self.made = true;
    }
}

impl Drop for SyncTurn {
    fn drop(&mut self) {
        self.turns.change(|state| {
            if self.made {
                state.ended = state.began;
            } else {
                // Nobody may take it for one that was made, nor wait for its end.
                state.began -= 1;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(range: std::ops::Range<u64>, head: u64, tail: u64) -> Claim {
        Claim { range, head, tail, bounce: 0 }
    }

    fn granted<T>(answer: Answer<T>) -> Option<T> {
        match answer {
            Answer::Granted(granted) => Some(granted),
            Answer::Wait(_) => None,
        }
    }

    #[test]
    fn edges_are_kept_apart_and_nothing_else() {
        let turns = Arc::new(Turns::default());
        let take = |claim: &Claim| granted(turns.take(&mut claim.clone().into(), None));
        // Blocks 1 to 3, of which the first and the last are written around.
        let held = take(&claim(4096..16384, 4096, 4096)).expect("alone");
        assert!(take(&claim(4096..8192, 0, 0)).is_none(), "an aligned write over the head");
        assert!(take(&claim(0..8192, 0, 4096)).is_none(), "two edges in one block");
        assert!(take(&claim(12288..20480, 0, 0)).is_none(), "over the tail");
        assert!(take(&claim(8192..12288, 4096, 0)).is_none(), "an edge in the middle");
        assert!(take(&claim(8192..12288, 0, 0)).is_some(), "the middle is the host's affair");
        assert!(take(&claim(0..4096, 0, 4096)).is_some() && take(&claim(16384..20480, 4096, 0)).is_some());
        drop(held);
        assert!(take(&claim(4096..8192, 0, 0)).is_some());
        assert_eq!(turns.state().bounce, BOUNCE);
        assert!(turns.state().held.is_empty());
    }

    #[test]
    fn bounce_memory_is_bounded() {
        let turns = Arc::new(Turns::default());
        let half = Claim { bounce: BOUNCE / 2, ..Claim::default() };
        let take = || granted(turns.take(&mut half.clone().into(), None));
        let held = [take().expect("all is free"), take().expect("half is free")];
        assert!(take().is_none());
        drop(held);
        assert!(take().is_some());
    }

    /// A stream of short writes never lets the long one that needs the blocks of all of them through, but for its place.
    #[test]
    fn who_came_first_is_first() {
        let turns = Arc::new(Turns::default());
        let take = |wish: &mut Wish| granted(turns.take(wish, None));
        let held = take(&mut claim(0..4096, 4096, 0).into()).expect("alone");
        let mut long = Wish::from(claim(0..8192, 4096, 4096));
        assert!(take(&mut long).is_none());
        let mut late = Wish::from(claim(4096..8192, 4096, 0));
        assert!(take(&mut late).is_none() && take(&mut long).is_none() && take(&mut late).is_none());
        assert!(take(&mut claim(8192..12288, 4096, 0).into()).is_some(), "it bears both");
        drop(held);
        assert!(take(&mut late).is_none());
        let turn = take(&mut long).expect("it is its turn");
        assert!(take(&mut late).is_none());
        drop(turn);
        assert!(take(&mut late).is_some());
        assert!(turns.state().waiting.is_empty() && turns.state().held.is_empty());
    }

    #[test]
    fn bounce_memory_goes_to_who_came_first() {
        let turns = Arc::new(Turns::default());
        let take = |wish: &mut Wish| granted(turns.take(wish, None));
        let wish = |parts| Wish::from(Claim { bounce: BOUNCE / 4 * parts, ..Claim::default() });
        let held = [take(&mut wish(2)).expect("all is free"), take(&mut wish(1)).expect("half is free")];
        let mut large = wish(3);
        assert!(take(&mut large).is_none());
        assert!(take(&mut wish(1)).is_none(), "it is promised");
        assert!(take(&mut claim(0..4096, 0, 0).into()).is_some(), "needs none");
        drop(held);
        let turn = take(&mut large).expect("there is enough");
        assert!(take(&mut wish(1)).is_some() && take(&mut wish(2)).is_none());
        drop(turn);
    }

    /// Who gives up leaves its place, and wakes those behind it.
    #[test]
    fn who_goes_away_keeps_nobody_waiting() {
        let turns = Arc::new(Turns::default());
        let _held = granted(turns.take(&mut claim(0..4096, 4096, 0).into(), None)).expect("alone");
        let mut first = Wish::from(claim(0..8192, 4096, 4096));
        let mut second = Wish::from(claim(4096..8192, 4096, 0));
        assert!(matches!(turns.take(&mut first, None), Answer::Wait(_)));
        let Answer::Wait(epoch) = turns.take(&mut second, None) else { panic!("the first is first") };
        drop(first);
        assert_ne!(turns.state().epoch, epoch);
        assert!(granted(turns.take(&mut second, None)).is_some());
    }

    /// Who comes while a sync is under way shares the next one; what was dropped unmade covers nobody.
    #[test]
    fn syncs_are_shared() {
        let turns = Arc::new(Turns::default());
        let first = turns.next_sync();
        let Answer::Granted(Sync::Make(turn)) = turns.sync(first, None) else { panic!("nobody else does") };
        let late = turns.next_sync();
        assert!(granted(turns.sync(late, None)).is_none());
        turn.made();
        assert!(matches!(turns.sync(first, None), Answer::Granted(Sync::Covered)));
        let Answer::Granted(Sync::Make(turn)) = turns.sync(late, None) else {
            panic!("the first does not do")
        };
        drop(turn);
        let Answer::Granted(Sync::Make(turn)) = turns.sync(late, None) else { panic!("it was not made") };
        turn.made();
        for _ in 0..3 {
            assert!(matches!(turns.sync(late, None), Answer::Granted(Sync::Covered)));
        }
    }
}
