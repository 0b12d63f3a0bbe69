//! Who takes part in a row: servers and limits, and their turns.

use std::time::Duration;

use super::tally::Run;

/// Somebody who can do a row's work for a while, again and again.
pub(crate) trait Contestant {
    /// For the table.
    fn name(&self) -> String;

    /// Works: for `warm_up`, which does not count, and then for `measured`.
    ///
    /// # Errors
    /// The result would not be worth anything: a command failed, the server is gone.
    fn run(&mut self, warm_up: Duration, measured: Duration) -> anyhow::Result<Run>;

    /// Others are measured from now on: take no CPU.
    fn rest(&mut self) {}

    /// The next [`run`](Self::run) is near.
    fn wake(&mut self) {}
}

/// Lets all take turns: A B C, A B C. The runs of each, in their order.
pub(crate) fn alternate(
    contestants: &mut [&mut dyn Contestant],
    runs: u32,
    warm_up: Duration,
    measured: Duration,
) -> anyhow::Result<Vec<Vec<Run>>> {
    let mut all = vec![Vec::new(); contestants.len()];
    for contestant in contestants.iter_mut() {
        contestant.rest();
    }
    for _ in 0..runs {
        for (contestant, runs) in contestants.iter_mut().zip(&mut all) {
            contestant.wake();
            let run = contestant.run(warm_up, measured);
            contestant.rest();
            runs.push(run?);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    struct Noted<'a>(&'static str, &'a RefCell<Vec<String>>);

    impl Contestant for Noted<'_> {
        fn name(&self) -> String {
            self.0.to_owned()
        }

        fn run(&mut self, _: Duration, _: Duration) -> anyhow::Result<Run> {
            self.1.borrow_mut().push(format!("run {}", self.0));
            Ok(Run::of(&[]))
        }

        fn rest(&mut self) {
            self.1.borrow_mut().push(format!("rest {}", self.0));
        }

        fn wake(&mut self) {
            self.1.borrow_mut().push(format!("wake {}", self.0));
        }
    }

    #[test]
    fn turns_alternate_and_others_rest() {
        let notes = RefCell::default();
        let (mut a, mut b) = (Noted("a", &notes), Noted("b", &notes));
        let runs = alternate(&mut [&mut a, &mut b], 2, Duration::ZERO, Duration::ZERO).unwrap();
        assert_eq!(runs.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2]);
        let round = "wake a,run a,rest a,wake b,run b,rest b";
        assert_eq!(notes.borrow().join(","), format!("rest a,rest b,{round},{round}"));
    }
}
