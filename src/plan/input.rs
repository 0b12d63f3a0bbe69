//! From words, JSON or a record of a log to a question that can be answered.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use super::args::PlanArgs;
use super::imagined::Imagined;
use super::question::{NoQuestion, Question};
use super::range::RangeArg;
use crate::config::{self, Config, Drive, NsConfig, NvmeConfig};
use crate::copy::{Capabilities, OCFS, SourceRange};
use crate::laboratory::copy_log::{
    CommandRecord, CopyRecord, Line, LogReader, NamespaceRecord, RangeRecord, Word,
};
use crate::spec::copy::CopyCommand;

/// Bytes of a Copy as JSON at most.
const JSON: u64 = 16 << 20;

/// The question that the words ask.
///
/// # Errors
/// There is none.
pub(super) fn question(args: PlanArgs) -> Result<Question, NoQuestion> {
    let record = record(&args)?;
    let usage = |error: config::ConfigError| NoQuestion::Usage(error.to_string());
    // No socket is made of it.
    let config = Config::new("plan".into(), args.nvme.as_deref(), &args.nvme_ns, log::LevelFilter::Off)
        .map_err(usage)?;
    let namespaces = if args.nvme_ns.is_empty() && !record.namespaces.is_empty() {
        record.namespaces.iter().map(known).collect::<Result<_, _>>()?
    } else {
        config.namespaces.iter().map(said).collect::<Result<_, _>>()?
    };
    let nvme = args.nvme.is_some().then_some(&config.nvme);
    let ranges = record.ranges.as_deref().map(ranges).transpose()?;
    Ok(Question {
        command: command(&record, ranges.as_deref())?,
        is_fused: record.command.fuse != 0,
        ranges,
        namespaces,
        capabilities: capabilities(&record, nvme),
        assume: args.assume,
        json: args.json,
    })
}

/// The Copy, as a log would have it.
fn record(args: &PlanArgs) -> Result<CopyRecord, NoQuestion> {
    if let Some(path) = &args.json_copy {
        let mut text = Vec::new();
        open(path)?.take(JSON).read_to_end(&mut text).map_err(|error| unread(path, &error))?;
        return serde_json::from_slice(&text).map_err(|error| unread(path, &error));
    }
    if let (Some(path), Some(number)) = (&args.log, args.number) {
        return of_log(path, number);
    }
    if args.range.is_empty() {
        let how = "give --to and --range, --json-copy, or --log and --number";
        return Err(NoQuestion::Usage(format!("there is no Copy; {how}")));
    }
    let names = args.range.iter().any(|range| range.snsid.is_some());
    let format = args.format.unwrap_or(if names { 2 } else { 0 });
    let to = args.to;
    let nr = u16::try_from(args.range.len()).ok().filter(|nr| *nr <= 256);
    let nr = nr.ok_or_else(|| NoQuestion::Usage("--range: a Copy has 256 ranges at most".into()))?;
    if names && !matches!(format, 2 | 3) {
        let why =
            format!("--format {format}: its descriptors do not name a namespace; use 2, or leave SNSID out");
        return Err(NoQuestion::Usage(why));
    }
    let nsid = to.and_then(|to| to.nsid).unwrap_or(1);
    Ok(CopyRecord {
        command: CommandRecord {
            nsid,
            sdlba: to.map_or(0, |to| to.lba),
            nr,
            format,
            fua: args.fua,
            ..CommandRecord::default()
        },
        ranges: Some(args.range.iter().map(|range| record_of(range, nsid, format)).collect()),
        ..CopyRecord::default()
    })
}

fn record_of(range: &RangeArg, dst: u32, format: u8) -> RangeRecord {
    let snsid = matches!(format, 2 | 3).then(|| range.snsid.unwrap_or(dst));
    RangeRecord { snsid, slba: range.slba, nlb: range.nlb, fco: range.fast, ..RangeRecord::default() }
}

fn open(path: &Path) -> Result<Box<dyn BufRead>, NoQuestion> {
    if path == Path::new("-") {
        return Ok(Box::new(BufReader::new(io::stdin())));
    }
    let file = File::open(path).map_err(|error| unread(path, &error))?;
    Ok(Box::new(BufReader::new(file)))
}

fn unread(path: &Path, why: &dyn std::fmt::Display) -> NoQuestion {
    NoQuestion::Input(format!("{}: {why}", path.display()))
}

fn of_log(path: &Path, number: u64) -> Result<CopyRecord, NoQuestion> {
    for line in LogReader::new(open(path)?) {
        match line.map_err(|error| unread(path, &error))?.1 {
            Line::Copy(copy) if copy.number == number => return Ok(*copy),
            _ => {}
        }
    }
    Err(unread(path, &format_args!("has no Copy of number {number}")))
}

/// What a host could have written, and no more.
fn command(record: &CopyRecord, ranges: Option<&[SourceRange]>) -> Result<CopyCommand, NoQuestion> {
    let mut said = record.command.clone();
    if let Some(ranges) = ranges {
        let count = u16::try_from(ranges.len()).unwrap_or(u16::MAX);
        if said.nr == 0 {
            said.nr = count;
        }
        if said.nr != count {
            let why = format!("the Copy has {} ranges, and nr says {}", ranges.len(), said.nr);
            return Err(NoQuestion::Input(why));
        }
    }
    let command = said.command();
    let CommandRecord { cdw2, cdw3, fuse, psdt, .. } = said;
    if (CommandRecord { cdw2, cdw3, fuse, psdt, ..CommandRecord::from(&command) }) != said {
        let why =
            "the Copy has a field with more bits than the command has for it, or no range or more than 256";
        return Err(NoQuestion::Input(why.into()));
    }
    Ok(command)
}

fn ranges(all: &[RangeRecord]) -> Result<Vec<SourceRange>, NoQuestion> {
    if let Some(at) = all.iter().position(|range| !(1..=65536).contains(&range.nlb)) {
        return Err(NoQuestion::Input(format!("range {at} of the Copy: nlb must be 1 to 65536")));
    }
    Ok(all.iter().map(SourceRange::from).collect())
}

/// What a record does not tell is taken as it must have been.
fn capabilities(record: &CopyRecord, nvme: Option<&NvmeConfig>) -> Capabilities {
    let (ocfs, cdfe) = match nvme {
        Some(nvme) => (nvme.ocfs & OCFS, nvme.cdfe),
        None if record.refused.as_ref().is_some_and(|refusal| refusal.rule == "format") => (0, 0),
        None => (OCFS, OCFS),
    };
    Capabilities { ocfs, cdfe, ..Capabilities::default() }
}

/// A namespace as a record has it.
fn known(facts: &NamespaceRecord) -> Result<Imagined, NoQuestion> {
    let NamespaceRecord { nsid, nsze, logical_block_size: block_size, mssrl, mcl, .. } = *facts;
    let fits = block_size.is_power_of_two()
        && (512..=1 << 16).contains(&block_size)
        && (1..=config::NSID_MAX).contains(&nsid)
        && nsze.checked_mul(block_size).is_some_and(|len| i64::try_from(len).is_ok())
        && mssrl > 0
        && mcl > 0;
    if !fits {
        return Err(NoQuestion::Input(format!("namespace {nsid} of the Copy: no namespace can be so")));
    }
    Ok(Imagined { is_memory: facts.memory, facts: facts.clone() })
}

/// A namespace of the command line.
fn said(ns: &NsConfig) -> Result<Imagined, NoQuestion> {
    let (size, is_memory) = match &ns.drive {
        Drive::Memory { size } => (*size, true),
        Drive::File { size: Some(size), .. } => (*size, false),
        Drive::File { path, size: None } => {
            let why = format!("--nvme-ns drive={}: no image is looked at; add size=", path.display());
            return Err(NoQuestion::Usage(why));
        }
    };
    let block_size = u64::from(ns.logical_block_size);
    let facts = NamespaceRecord {
        nsid: ns.nsid,
        nsze: size / block_size,
        logical_block_size: block_size,
        ms: 0,
        mssrl: ns.mssrl,
        mcl: ns.mcl,
        msrc: ns.msrc,
        copy_method: Word(ns.copy.method),
        copy_overlap: Word(ns.copy.overlap),
        readonly: ns.readonly,
        memory: is_memory,
    };
    Ok(Imagined { facts, is_memory })
}
