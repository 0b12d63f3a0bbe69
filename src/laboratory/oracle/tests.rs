//! The ledger beside devices that are right, and some that are not.

use proptest::prelude::*;

use super::copies::{CopySource, Expected};
use super::ledger::{Ledger, Span, Tick};
use super::sum::Sum;
use super::verdict::{Difference, Origin, WrittenBy};
use crate::laboratory::seam::CommandId;

const BLOCKS: u64 = 24;

fn sum(content: u64) -> Sum {
    Sum::of(&content.to_le_bytes())
}

fn ledger(zeroed: bool) -> Ledger {
    Ledger::new(1, BLOCKS, sum(0), zeroed)
}

fn writer(serial: u64) -> WrittenBy {
    WrittenBy { controller: 0, id: CommandId { serial, sqid: 1, cid: 0 }, opc: 1 }
}

fn blocks(slba: u64, nlb: u64) -> Span {
    Span { slba, nlb }
}

/// Small numbers, as they come.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn blocks(&mut self, most: u64) -> Span {
        let nlb = 1 + self.below(most);
        blocks(self.below(BLOCKS - nlb + 1), nlb)
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

/// What a device does to one block.
enum Step {
    Read { lba: u64, to: usize },
    Write { lba: u64, from: usize },
}

enum Kind {
    Read(Tick),
    Write(Tick, Option<usize>),
    Copy(Expected),
}

/// A command under way in a device that does its steps one by one, in an order of its own.
struct Command {
    kind: Kind,
    blocks: Span,
    data: Vec<u64>,
    steps: Vec<Step>,
}

/// A device with a ledger.
struct Device {
    dice: Dice,
    image: Vec<u64>,
    ledger: Ledger,
    flying: Vec<Command>,
    next: u64,
}

impl Device {
    fn new(seed: u64) -> Self {
        let zeroed = seed.is_multiple_of(2);
        let image = (0..BLOCKS).map(|lba| if zeroed { 0 } else { 1000 + lba }).collect();
        Self { dice: Dice(seed), image, ledger: ledger(zeroed), flying: Vec::new(), next: 2000 }
    }

    fn begin(&mut self) {
        let dice = &mut self.dice;
        let command = match dice.below(3) {
            0 => {
                let blocks = dice.blocks(6);
                let mut steps: Vec<_> =
                    blocks.each().enumerate().map(|(to, lba)| Step::Read { lba, to }).collect();
                dice.shuffle(&mut steps);
                let data = vec![0; steps.len()];
                Command { kind: Kind::Read(self.ledger.now()), blocks, data, steps }
            }
            1 => {
                let blocks = dice.blocks(6);
                let mut steps: Vec<_> =
                    blocks.each().enumerate().map(|(from, lba)| Step::Write { lba, from }).collect();
                dice.shuffle(&mut steps);
                let data: Vec<_> = (self.next..).take(steps.len()).collect();
                self.next += data.len() as u64;
                let fails = (dice.below(5) == 0).then(|| dice.below(data.len() as u64 + 1) as usize);
                steps.truncate(fails.unwrap_or(steps.len()));
                let began = self.ledger.begin(&[blocks]);
                Command { kind: Kind::Write(began, fails), blocks, data, steps }
            }
            _ => self.copy(),
        };
        self.flying.push(command);
    }

    fn copy(&mut self) -> Command {
        let dice = &mut self.dice;
        let in_order = dice.below(2) == 0;
        let from: Vec<_> = (0..1 + dice.below(3))
            .map(|_| CopySource { own: true, blocks: dice.blocks(3), since: self.ledger.now() })
            .collect();
        let nlb = from.iter().map(|range| range.blocks.nlb).sum();
        let to = blocks(dice.below(BLOCKS - nlb + 1), nlb);
        let (mut steps, mut writes, mut at) = (Vec::new(), Vec::new(), 0);
        for range in &from {
            let mut reads = Vec::new();
            for lba in range.blocks.each() {
                reads.push(Step::Read { lba, to: at });
                writes.push(Step::Write { lba: to.slba + at as u64, from: at });
                at += 1;
            }
            dice.shuffle(&mut reads);
            steps.append(&mut reads);
            if in_order {
                dice.shuffle(&mut writes);
                steps.append(&mut writes);
            }
        }
        dice.shuffle(&mut writes);
        steps.append(&mut writes);
        let expected = Expected::begin(&mut self.ledger, from, to, in_order, []);
        Command { kind: Kind::Copy(expected), blocks: to, data: vec![0; at], steps }
    }

    /// Something happens: `Some` when the ledger accuses.
    fn go_on(&mut self) -> Option<Difference> {
        let flying = self.flying.len() as u64;
        if flying == 0 || flying < 5 && self.dice.below(6) == 0 {
            self.begin();
            return None;
        }
        let at = self.dice.below(flying) as usize;
        let command = self.flying.get_mut(at)?;
        if command.steps.is_empty() {
            let command = self.flying.swap_remove(at);
            return self.end(command);
        }
        match command.steps.remove(0) {
            Step::Read { lba, to } => command.data[to] = self.image[lba as usize],
            Step::Write { lba, from } => self.image[lba as usize] = command.data[from],
        }
        None
    }

    fn end(&mut self, command: Command) -> Option<Difference> {
        let Command { kind, blocks, data, .. } = command;
        let at = |lba: u64| (lba - blocks.slba) as usize;
        self.next += 1;
        let writer = writer(self.next);
        match kind {
            Kind::Read(since) => {
                let found: Vec<_> = data.iter().map(|content| Some(sum(*content))).collect();
                return self.ledger.judge(since, blocks, &found);
            }
            Kind::Write(began, fails) => {
                let sums = |lba| fails.is_none().then(|| sum(data[at(lba)]));
                self.ledger.end(began, &[blocks], writer, sums);
            }
            Kind::Copy(mut expected) => {
                expected.doubt(&self.ledger);
                self.ledger.end(expected.began, &[blocks], writer, |lba| expected.sum(lba));
            }
        }
        None
    }

    fn land(&mut self) -> Option<Difference> {
        while !self.flying.is_empty() {
            let at = self.flying.len() - 1;
            let command = &mut self.flying[at];
            for step in std::mem::take(&mut command.steps) {
                match step {
                    Step::Read { lba, to } => command.data[to] = self.image[lba as usize],
                    Step::Write { lba, from } => self.image[lba as usize] = command.data[from],
                }
            }
            let command = self.flying.swap_remove(at);
            let found = self.end(command);
            if found.is_some() {
                return found;
            }
        }
        None
    }

    fn scan(&mut self) -> Option<Difference> {
        let found: Vec<_> = self.image.iter().map(|content| Some(sum(*content))).collect();
        let now = self.ledger.now();
        self.ledger.judge(now, blocks(0, BLOCKS), &found)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever meets whatever, a device that does what it is told is never accused.
    #[test]
    fn the_innocent_are_not_accused(seed: u64) {
        let mut device = Device::new(seed);
        for _ in 0..600 {
            prop_assert_eq!(device.go_on(), None);
        }
        prop_assert_eq!(device.land(), None);
        prop_assert_eq!(device.scan(), None);
    }

    /// A block that changes by itself is found and named, if it is one that was known.
    #[test]
    fn the_guilty_are_found(seed: u64, lba in 0..BLOCKS) {
        let mut device = Device::new(seed);
        for _ in 0..200 {
            device.go_on();
        }
        device.land();
        let known = device.ledger.sum(lba).is_some();
        device.image[lba as usize] = 1;
        let found = device.scan().map(|difference| difference.lba);
        prop_assert_eq!(found, known.then_some(lba));
    }
}

#[test]
fn a_difference_names_who_wrote_and_whose_data_is_there() {
    let mut ledger = ledger(true);
    for (serial, lba) in [(1, 3), (2, 5)] {
        let began = ledger.begin(&[blocks(lba, 1)]);
        ledger.end(began, &[blocks(lba, 1)], writer(serial), |lba| Some(sum(lba)));
    }
    let now = ledger.now();
    let found = ledger.judge(now, blocks(4, 2), &[Some(sum(0)), Some(sum(3))]).expect("5 differs");
    assert_eq!((found.lba, found.origin, found.belongs_to), (5, Origin::Command(writer(2)), Some(3)));
    assert_eq!(
        found.to_string(),
        "nsid 1 LBA 0x5 should hold the data of Write (controller 0 sqid 1 cid 0x0 serial 2), \
         and holds what belongs to LBA 0x3"
    );
    assert_eq!(ledger.judge(now, blocks(0, 1), &[Some(sum(9))]), None, "the first is named once");
    assert_eq!((ledger.judged().checked, ledger.judged().differing), (1, 2));
    assert_eq!(ledger.first(), Some(found));
}

#[test]
fn what_two_wrote_at_once_is_known_again_after_one_wrote_alone() {
    let mut ledger = ledger(true);
    let all = [blocks(0, 2)];
    let (first, second) = (ledger.begin(&all), ledger.begin(&[blocks(1, 2)]));
    ledger.end(second, &[blocks(1, 2)], writer(1), |_| Some(sum(1)));
    ledger.end(first, &all, writer(2), |_| Some(sum(2)));
    assert_eq!([0, 1, 2].map(|lba| ledger.sum(lba)), [Some(sum(2)), None, Some(sum(1))]);
    let third = ledger.begin(&all);
    assert_eq!(ledger.sum(0), None, "while it is written");
    ledger.end(third, &all, writer(3), |_| Some(sum(3)));
    assert_eq!([0, 1].map(|lba| ledger.sum(lba)), [Some(sum(3)); 2]);
}

#[test]
fn the_first_ranges_of_a_copy_that_failed_are_known() {
    let mut ledger = ledger(true);
    let own = |slba, nlb| CopySource { own: true, blocks: blocks(slba, nlb), since: ledger_start() };
    let mut expected = Expected::begin(&mut ledger, vec![own(0, 2), own(4, 1)], blocks(8, 3), false, []);
    expected.doubt(&ledger);
    expected.keep(1);
    ledger.end(expected.began, &[blocks(8, 3)], writer(1), |lba| expected.sum(lba));
    assert_eq!([8, 9, 10].map(|lba| ledger.sum(lba)), [Some(sum(0)), Some(sum(0)), None]);
}

fn ledger_start() -> Tick {
    ledger(true).now()
}

#[test]
fn overlapping_ranges_read_what_the_policy_says() {
    for (in_order, third) in [(false, 12), (true, 10)] {
        let mut ledger = ledger(true);
        let four = [blocks(10, 4)];
        let began = ledger.begin(&four);
        ledger.end(began, &four, writer(1), |lba| Some(sum(lba)));
        let from = [blocks(10, 1), blocks(12, 1)];
        let from = from.map(|blocks| CopySource { own: true, blocks, since: ledger.now() });
        let to = blocks(12, 2);
        let mut expected = Expected::begin(&mut ledger, from.to_vec(), to, in_order, []);
        expected.doubt(&ledger);
        ledger.end(expected.began, &[to], writer(2), |lba| expected.sum(lba));
        assert_eq!([12, 13].map(|lba| ledger.sum(lba)), [Some(sum(10)), Some(sum(third))]);
    }
}
