//! What the tests of this room share.

use std::time::Duration;

use clap::Parser;

use super::args::CheckArgs;
use crate::copy::By;
use crate::laboratory::copy_log::{
    CommandRecord, CopyRecord, MovedRecord, NamespaceRecord, PlanRecord, RangeRecord, RefusalRecord,
    StatusRecord, Word,
};
use crate::namespace::{Method, Overlap};
use crate::spec::Status;

#[derive(Parser)]
struct Check {
    #[command(flatten)]
    args: CheckArgs,
}

pub fn check_args(args: &[&str]) -> CheckArgs {
    Check::parse_from(["check", "log"].iter().chain(args)).args
}

/// A Copy within namespace 1, in blocks of 512 bytes, of ranges given as first block and blocks; moved in memory.
pub fn succeeded(number: u64, sdlba: u64, ranges: &[(u64, u32)]) -> CopyRecord {
    let list: Vec<_> =
        ranges.iter().map(|&(slba, nlb)| RangeRecord { slba, nlb, ..RangeRecord::default() }).collect();
    let mut at = 0;
    let moved = (0..).zip(ranges).map(|(range, &(_, nlb))| {
        let len = u64::from(nlb) * 512;
        at += len;
        MovedRecord { range, at: at - len, len, by: Word(By::MemMove) }
    });
    let moved: Vec<_> = moved.collect();
    let namespace = NamespaceRecord {
        nsid: 1,
        nsze: 1 << 20,
        logical_block_size: 512,
        ms: 0,
        mssrl: 100,
        mcl: 128,
        msrc: 3,
        copy_method: Word(Method::Auto),
        copy_overlap: Word(Overlap::Snapshot),
        readonly: false,
        memory: true,
    };
    CopyRecord {
        number,
        sqid: 1,
        cid: number as u16,
        command: CommandRecord { nsid: 1, sdlba, nr: ranges.len() as u16, ..CommandRecord::default() },
        ranges: Some(list),
        namespaces: vec![namespace],
        plan: Some(PlanRecord { bytes: at, durable: false, steps: Vec::new() }),
        moved,
        status: StatusRecord::from(Status::SUCCESS),
        latency_ns: u64::try_from(Duration::from_micros(50).as_nanos()).expect("short"),
        ..CopyRecord::default()
    }
}

/// The same, refused because a range is too long.
pub fn refused(number: u64, sdlba: u64, ranges: &[(u64, u32)]) -> CopyRecord {
    let rule = "mssrl".to_owned();
    let what = "a source range is longer than its namespace's MSSRL".to_owned();
    CopyRecord {
        plan: None,
        moved: Vec::new(),
        refused: Some(RefusalRecord { rule, what, range: Some(0) }),
        status: Status::COMMAND_SIZE_LIMIT.dnr().into(),
        ..succeeded(number, sdlba, ranges)
    }
}
