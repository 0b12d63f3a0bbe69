//! Do the words of a rule fit together? And what do they come to?

use super::draft::{Draft, Partial};
use super::error::RuleError;
use super::matches::{Blocks, Match};
use super::ops::Ops;
use super::rule::{Act, HoldAt, Rule};
use super::values::Window;
use super::when::When;
use crate::laboratory::bad_blocks::BadBlocks;
use crate::laboratory::lands::Lands;
use crate::laboratory::script::{Bend, Dw0, Post};
use crate::spec::commands::{AdminCommand, NvmCommand};

/// The rule that the words of `text` make.
///
/// # Errors
/// The first that does not fit.
pub(super) fn finish(draft: Draft, text: &str) -> Result<Rule, RuleError> {
    let ops = match (&draft.ops, draft.queue) {
        (Some(ops), _) => ops.clone(),
        (None, Some(0)) => Ops::all_admin(),
        (None, _) => Ops::all_io(),
    };
    check_act(&draft)?;
    check_ops(&draft, &ops)?;
    check_conditions(&draft)?;
    let blocks = blocks(&draft)?;
    let act = act(&draft, &ops)?;
    let matches = Match {
        ops,
        queue: draft.queue,
        nsid: draft.nsid,
        blocks,
        source: draft.source.map(Blocks::Logical),
        range: draft.range,
        dwords: draft.dwords.clone(),
    };
    Ok(Rule { text: text.trim().to_owned(), when: when(&draft), name: draft.name, matches, act })
}

fn refuse<T>(word: &str, problem: &str, remedy: &str) -> Result<T, RuleError> {
    Err(RuleError::new(word, problem, remedy))
}

impl Draft {
    /// Does it change what is done to the data?
    fn bends_data(&self) -> bool {
        self.partial.is_some() || self.torn.is_some() || self.flip.is_some()
    }

    fn is_late(&self) -> bool {
        !self.holds.is_empty()
    }
}

/// Does it do anything, and not two things at once?
fn check_act(draft: &Draft) -> Result<(), RuleError> {
    let acts = draft.status.is_some()
        || draft.dw0.is_some()
        || draft.bends_data()
        || draft.bad
        || draft.is_late()
        || !draft.posts.is_empty()
        || draft.spurious
        || draft.busy.is_some()
        || draft.cfs
        || !draft.edits.is_empty();
    if !acts {
        return refuse(
            "the rule",
            "does nothing",
            "say what the command meets, for example status=write-fault",
        );
    }
    if draft.status.is_none() && (draft.dnr || draft.more.is_some() || draft.crd.is_some()) {
        return refuse("dnr, more, crd", "belong to a status", "add it, for example status=write-fault");
    }
    if draft.posts.len() > 1 {
        return refuse(
            "drop, twice, cid, irq=lost",
            "exclude each other",
            "keep one of them, or write two rules",
        );
    }
    if draft.holds.len() > 1 {
        return refuse("delay, stall, reorder", "exclude each other", "keep one of them, or write two rules");
    }
    if draft.place.is_some() && !draft.is_late() {
        return refuse("at", "says where a delay or stall is", "add one, for example delay=1s");
    }
    if draft.partial.is_some() && draft.torn.is_some() {
        return refuse("partial, torn", "exclude each other", "keep one of them");
    }
    if draft.partial.is_some() && draft.status.is_none() {
        return refuse(
            "partial",
            "says what lands though the command ends with a status",
            "add status=..., \
            or status=success for silent loss",
        );
    }
    if draft.bad
        && (draft.status.is_some() || draft.bends_data() || draft.is_late() || !draft.posts.is_empty())
    {
        return refuse("bad", "is about the medium, not about a command", "write two rules");
    }
    Ok(())
}

/// Can the commands that it means meet this?
fn check_ops(draft: &Draft, ops: &Ops) -> Result<(), RuleError> {
    let which = "say which, for example op=copy";
    if ops.any_event() {
        let alone = !ops.any_io() && !ops.any_admin() && draft.queue.is_none() && draft.nsid.is_none();
        let other = draft.status.is_some()
            || draft.dw0.is_some()
            || draft.bends_data()
            || draft.bad
            || !draft.posts.is_empty()
            || draft.spurious
            || draft.busy.is_some()
            || !draft.edits.is_empty()
            || draft.place.is_some()
            || draft.depth.is_some()
            || !draft.dwords.is_empty();
        if !alone || other {
            return refuse("enable, disable, shutdown", "meet only delay, stall and cfs", "write two rules");
        }
    }
    if ops.any_admin() {
        let whole = matches!(draft.partial, None | Some(Partial::Lands(Lands::All)));
        if draft.queue.is_some_and(|queue| queue > 0) && !ops.any_io() {
            return refuse("queue", "is none of admin commands", "leave it out, or write queue=0");
        }
        if !whole || draft.torn.is_some() || draft.flip.is_some() || draft.bad || draft.busy.is_some() {
            return refuse("partial, torn, xor, bad, busy", "are for I/O commands", which);
        }
    }
    if draft.queue == Some(0) && ops.any_io() {
        return refuse("queue", "0 has no I/O commands", "name admin commands, for example op=identify");
    }
    let sends = |command| {
        matches!(command, AdminCommand::Identify | AdminCommand::GetLogPage | AdminCommand::GetFeatures)
    };
    if !draft.edits.is_empty() && !ops.all_admin_are(sends) {
        return refuse(
            "payload",
            "is what Identify, Get Log Page and Get Features send",
            "say which, for example op=identify",
        );
    }
    if (draft.range.is_some() || draft.source.is_some()) && !ops.is_only(NvmCommand::Copy) {
        return refuse("range, source", "are parts of a Copy", "add op=copy");
    }
    if matches!(draft.partial, Some(Partial::Beyond(_))) && !ops.is_only(NvmCommand::Copy) {
        return refuse("partial=beyond", "is about the ranges that DW0 of a Copy counts", "add op=copy");
    }
    let has_window = draft.lba.is_some() || draft.start.is_some() || draft.nr_sectors.is_some();
    if has_window && draft.ops.is_some() && (ops.any_admin() || ops.all_io_are(|command| !command.has_lba()))
    {
        return refuse(
            "lba",
            "is not in these commands",
            "leave it out, or name others: read write copy ...",
        );
    }
    if draft.bends_data() && ops.all_io_are(|command| command == NvmCommand::Flush) {
        return refuse("partial, torn, xor", "need data, and a Flush has none", which);
    }
    Ok(())
}

/// Do the conditions go together?
fn check_conditions(draft: &Draft) -> Result<(), RuleError> {
    let counts = [draft.count.is_some(), draft.times.is_some(), draft.nth.is_some()];
    if counts.iter().filter(|given| **given).count() > 1 {
        return refuse("count, times, nth", "exclude each other", "keep one of them");
    }
    if draft.nth.is_some() && (draft.skip.is_some() || draft.every.is_some()) {
        return refuse("nth", "takes one command, whatever skip and every_nth say", "leave those out");
    }
    if draft.seed.is_some() && draft.below.is_none() {
        return refuse("seed", "is for chance and percent", "add one of them, for example chance=10");
    }
    let conditions = counts.contains(&true)
        || draft.skip.is_some()
        || draft.every.is_some()
        || draft.below.is_some()
        || draft.depth.is_some()
        || draft.queue.is_some()
        || draft.ops.is_some()
        || draft.source.is_some()
        || draft.range.is_some()
        || draft.file.is_some()
        || draft.after.is_some()
        || !draft.dwords.is_empty();
    if draft.bad && conditions {
        return refuse("bad", "takes nsid, lba and name alone", "leave the others out");
    }
    if draft.bad && draft.nsid.is_none() {
        return refuse("bad", "is about the blocks of one namespace", "add nsid=1");
    }
    Ok(())
}

fn blocks(draft: &Draft) -> Result<Option<Blocks>, RuleError> {
    match (draft.lba, draft.start, draft.nr_sectors) {
        (None, None, None) => Ok(None),
        (Some(window), None, None) => Ok(Some(Blocks::Logical(window))),
        (None, start, count) => {
            let window = Window { first: start.unwrap_or(0), count: count.unwrap_or(u64::MAX) };
            Ok(Some(Blocks::Sectors(window)))
        }
        _ => refuse("lba, start, nr_sectors", "say the same in two units", "keep lba, or the other two"),
    }
}

fn act(draft: &Draft, ops: &Ops) -> Result<Act, RuleError> {
    let bad = match draft.lba {
        _ if !draft.bad => None,
        Some(window) if window.count <= BadBlocks::MOST => Some(window),
        Some(_) => {
            let most = format!("are {} blocks at most", BadBlocks::MOST);
            return refuse("lba", &most, "write several rules");
        }
        None => return refuse("bad", "needs to know which blocks", "add lba=FIRST-LAST"),
    };
    let (lands, dw0) = lands(draft, ops);
    let ending = Bend {
        status: draft.status.map(|status| {
            let status = status.retry_delay(draft.crd.unwrap_or(0));
            if draft.dnr { status.dnr() } else { status }
        }),
        dw0: draft.dw0.map(Dw0::Value).or(dw0),
        more: draft.more,
    };
    let place = match (draft.place, draft.range) {
        (Some(place), _) => place,
        (None, Some(range)) if draft.is_late() => HoldAt::Range(range),
        _ => HoldAt::Begin,
    };
    let runs = draft.bends_data() || draft.range.is_some();
    Ok(Act {
        idle: draft.status.is_some() && !runs,
        ending,
        lands,
        flip: draft.flip.clone(),
        bad,
        hold: draft.holds.first().copied(),
        place,
        post: draft.posts.first().copied().unwrap_or(Post::Once),
        spurious: draft.spurious,
        busy: draft.busy,
        cfs: draft.cfs,
        edits: draft.edits.clone(),
    })
}

/// How much lands, and what DW0 says of it where nothing else was said.
fn lands(draft: &Draft, ops: &Ops) -> (Lands, Option<Dw0>) {
    let range = draft.range.map(u32::from);
    match (&draft.partial, draft.torn, range) {
        (Some(Partial::Lands(lands)), ..) => (lands.clone(), Some(Dw0::Complete)),
        (Some(Partial::Beyond(ranges)), ..) => (Lands::All, Some(Dw0::Value(*ranges))),
        (None, Some(bytes), Some(range)) => (Lands::TornRange { range, bytes }, Some(Dw0::Complete)),
        (None, Some(bytes), None) => (Lands::Torn(bytes), Some(Dw0::Complete)),
        // It fails there: what lies before is done.
        (None, None, Some(range)) if draft.status.is_some_and(|status| !status.is_success()) => {
            debug_assert!(ops.is_only(NvmCommand::Copy));
            (Lands::Prefix { units: range.into(), blocks: 0 }, Some(Dw0::Complete))
        }
        _ => (Lands::All, None),
    }
}

fn when(draft: &Draft) -> When {
    let limit = match (draft.count, draft.times, draft.nth) {
        (Some(count), ..) if count > 0 => None,
        (Some(count), ..) => Some(count.unsigned_abs()),
        (None, Some(times), _) => Some(times),
        (None, None, Some(_)) => Some(1),
        _ => None,
    };
    When {
        limit,
        skip: draft.nth.map_or(draft.skip.unwrap_or(0), |nth| nth - 1),
        every: draft.every.unwrap_or(1),
        below: draft.below,
        seed: draft.seed.unwrap_or_else(some_seed),
        depth: draft.depth.unwrap_or(0),
        file: draft.file.clone().map(Into::into),
        after: draft.after.clone(),
    }
}

/// A number that nobody can tell beforehand: what the standard library keys its hash maps with.
fn some_seed() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(0) >> 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Status;

    fn rule(text: &str) -> Rule {
        Rule::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn words_that_do_not_fit_together() {
        for (text, error) in [
            ("", "the rule: does nothing; say what the command meets, for example status=write-fault"),
            ("op=read", "the rule: does nothing; say what the command meets, for example status=write-fault"),
            ("dnr drop", "dnr, more, crd: belong to a status; add it, for example status=write-fault"),
            (
                "drop twice",
                "drop, twice, cid, irq=lost: exclude each other; keep one of them, or write two rules",
            ),
            (
                "delay=1s stall",
                "delay, stall, reorder: exclude each other; keep one of them, or write two rules",
            ),
            ("drop at=end", "at: says where a delay or stall is; add one, for example delay=1s"),
            (
                "op=write torn=3 status=IOERR partial=all",
                "partial, torn: exclude each other; keep one of them",
            ),
            (
                "op=write partial=all",
                "partial: says what lands though the command ends with a status; add status=..., \
                 or status=success for silent loss",
            ),
            ("nsid=1 lba=1 bad drop", "bad: is about the medium, not about a command; write two rules"),
            ("op=enable drop", "enable, disable, shutdown: meet only delay, stall and cfs; write two rules"),
            (
                "op=enable+read cfs",
                "enable, disable, shutdown: meet only delay, stall and cfs; write two rules",
            ),
            (
                "op=identify torn=1",
                "partial, torn, xor, bad, busy: are for I/O commands; say which, for example op=copy",
            ),
            ("op=identify queue=1 drop", "queue: is none of admin commands; leave it out, or write queue=0"),
            (
                "op=read queue=0 drop",
                "queue: 0 has no I/O commands; name admin commands, for example op=identify",
            ),
            (
                "op=abort payload=0:00",
                "payload: is what Identify, Get Log Page and Get Features send; say which, for example op=identify",
            ),
            ("op=write range=1 drop", "range, source: are parts of a Copy; add op=copy"),
            (
                "op=write status=IOERR partial=beyond",
                "partial=beyond: is about the ranges that DW0 of a Copy counts; add op=copy",
            ),
            (
                "op=flush lba=1 drop",
                "lba: is not in these commands; leave it out, or name others: read write copy ...",
            ),
            (
                "op=flush xor=01",
                "partial, torn, xor: need data, and a Flush has none; say which, for example op=copy",
            ),
            ("op=read count=1 nth=1 drop", "count, times, nth: exclude each other; keep one of them"),
            (
                "op=read nth=1 skip=1 drop",
                "nth: takes one command, whatever skip and every_nth say; leave those out",
            ),
            (
                "op=read seed=1 drop",
                "seed: is for chance and percent; add one of them, for example chance=10",
            ),
            ("nsid=1 lba=1 bad times=1", "bad: takes nsid, lba and name alone; leave the others out"),
            ("lba=1 bad", "bad: is about the blocks of one namespace; add nsid=1"),
            ("nsid=1 bad", "bad: needs to know which blocks; add lba=FIRST-LAST"),
            ("nsid=1 lba=0+1048577 bad", "lba: are 1048576 blocks at most; write several rules"),
            (
                "op=read lba=1 start=2 drop",
                "lba, start, nr_sectors: say the same in two units; keep lba, or the other two",
            ),
        ] {
            assert_eq!(Rule::parse(text).unwrap_err().to_string(), error, "{text}");
        }
    }

    #[test]
    fn counts_are_those_of_scsi_debug() {
        let limit = |text: &str| rule(text).when.limit;
        assert_eq!(limit("drop count=-3"), Some(3));
        assert_eq!(limit("drop count=0"), Some(0));
        assert_eq!(limit("drop count=5"), None);
        assert_eq!(limit("drop times=2"), Some(2));
        let nth = rule("drop nth=4").when;
        assert_eq!((nth.limit, nth.skip, nth.every), (Some(1), 3, 1));
    }

    #[test]
    fn a_status_without_more_means_that_nothing_is_done() {
        let act = rule("op=copy status=write-fault dnr crd=2").act;
        assert!(act.idle);
        assert_eq!(act.ending.status, Some(Status(0x5280)));
        let act = rule("op=copy status=write-fault partial=nothing").act;
        assert!(!act.idle && act.lands == Lands::Nothing, "the sources are read");
        assert_eq!(act.ending.dw0, Some(Dw0::Complete));
        let act = rule("op=copy range=2 status=write-fault").act;
        assert_eq!((act.idle, act.lands), (false, Lands::Prefix { units: 2, blocks: 0 }));
        let act = rule("op=copy status=write-fault partial=beyond:1").act;
        assert_eq!((act.lands, act.ending.dw0), (Lands::All, Some(Dw0::Value(1))));
        let act = rule("op=copy range=1 torn=700").act;
        assert_eq!((act.lands, act.ending.status), (Lands::TornRange { range: 1, bytes: 700 }, None));
        assert_eq!(rule("op=copy range=1 delay=1s").act.place, HoldAt::Range(1));
        assert_eq!(rule("op=copy range=1 delay=1s at=end").act.place, HoldAt::End);
        assert_eq!(rule("op=abort status=success dw0=1").act.ending.dw0, Some(Dw0::Value(1)));
    }

    #[test]
    fn a_seed_is_chosen_where_none_is_given() {
        assert_eq!(rule("chance=2 seed=7 drop").when.seed, 7);
        let seeds = [(); 8].map(|()| rule("chance=2 drop").when.seed);
        assert!(seeds.iter().any(|seed| *seed != seeds[0]), "{seeds:?}");
        assert_eq!(rule("chance=1 drop").when.below, Some(u64::MAX));
    }
}
