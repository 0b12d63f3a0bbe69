//! A tap that answers the calls on images, each as a test expects it.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::{Arc, Mutex};

use crate::disk::{Call, Tap};

/// Calls in order, with their answers.
#[derive(Debug, Default)]
pub(in crate::disk) struct Script {
    steps: Mutex<VecDeque<(Call, i64)>>,
    /// What was called, as far as it was expected; then what was not.
    made: Mutex<Vec<Call>>,
    unexpected: Mutex<Vec<Call>>,
}

impl Script {
    pub(in crate::disk) fn of(steps: &[(Call, i64)]) -> Arc<Self> {
        Arc::new(Script { steps: Mutex::new(steps.iter().copied().collect()), ..Script::default() })
    }

    /// All of it was played, and nothing else.
    #[track_caller]
    pub(in crate::disk) fn end(&self) {
        let (steps, made) = (self.steps.lock().expect("no panic"), self.made.lock().expect("no panic"));
        let unexpected = self.unexpected.lock().expect("no panic");
        assert!(unexpected.is_empty(), "{unexpected:?} after {made:?}; expected {:?}", steps.front());
        assert!(steps.is_empty(), "calls are missing: {steps:?}");
    }
}

impl Tap for Script {
    fn issued(&self, _: &Call, _: &[u8], _: &File) -> u64 {
        0
    }

    fn answer(&self, call: &Call, _: u64) -> Option<i64> {
        let mut steps = self.steps.lock().expect("no panic");
        if steps.front().is_some_and(|(expected, _)| expected == call) {
            self.made.lock().expect("no panic").push(*call);
            return steps.pop_front().map(|(_, answer)| answer);
        }
        self.unexpected.lock().expect("no panic").push(*call);
        Some(-i64::from(libc::EBADE))
    }

    fn completed(&self, _: u64, _: &Call, _: Result<u32, i32>) {}
}
