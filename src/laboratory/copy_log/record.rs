//! What a line of a copy log is: schema 1, as docs/copy-log.md has it.
//!
//! A field that is absent is 0, false or empty. Readers pass over fields and kinds of lines that they do not know, so that
//! both may be added; [`SCHEMA`] changes when one that there is goes, or means another thing.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::text::{Hex, Stamp, Word, is_default};

use crate::copy::{By, Reject, SourceRange};
use crate::namespace::{Method, Namespace, Overlap};
use crate::spec::copy::CopyCommand;
use crate::spec::{Sqe, Status};

/// The version of what is written.
pub const SCHEMA: u32 = 1;

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case")]
pub enum Line {
    /// The first one.
    Log(Opening),
    /// A Copy.
    Copy(Box<CopyRecord>),
    /// Copies that have no line of their own.
    Dropped(Dropped),
    /// The last one, where the device ended well.
    End(Ending),
    /// Of a later version.
    #[serde(other)]
    Unknown,
}

/// Whose log it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Opening {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Of the program that writes it.
    pub version: String,
    /// When it was begun.
    pub time: Stamp,
}

/// Copies of which the log has no line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dropped {
    /// How many.
    pub count: u64,
    /// Why.
    pub why: String,
    /// When this was written: they ended between the line before and this one.
    pub time: Stamp,
}

/// What there was in all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ending {
    /// Copies with a line of their own.
    pub copies: u64,
    /// And without.
    pub dropped: u64,
    /// When.
    pub time: Stamp,
}

/// One Copy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CopyRecord {
    /// Counted from 1 on in the order of the lines, which is that in which Copies ended.
    pub number: u64,
    /// When it was fetched.
    pub time: Stamp,
    /// Controller ID (CNTLID).
    pub controller: u16,
    /// Submission queue.
    pub sqid: u16,
    /// Command identifier.
    pub cid: u16,
    /// What the submission queue entry says.
    #[serde(flatten)]
    pub command: CommandRecord,
    /// The source ranges as the host gave them; absent where it was refused before they were read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ranges: Option<Vec<RangeRecord>>,
    /// The namespaces as they were when it was fetched: the destination, and when it was not refused each source.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<NamespaceRecord>,
    /// What it was about to do; absent where it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanRecord>,
    /// Which rule refused it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<RefusalRecord>,
    /// What really moved the bytes, ascending, whatever became of the command.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub moved: Vec<MovedRecord>,
    /// How it ended.
    pub status: StatusRecord,
    /// Dword 0 of the completion: of a Copy that failed on the way, the lowest range that is not copied.
    pub dw0: u32,
    /// What the host was told.
    pub posted: Posted,
    /// Nanoseconds from its fetch to its completion.
    pub latency_ns: u64,
}

/// A Copy command as the host wrote it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CommandRecord {
    /// The destination's namespace.
    pub nsid: u32,
    /// Starting destination LBA.
    pub sdlba: u64,
    /// Number of ranges, 1-based: one more than the field says.
    pub nr: u16,
    /// Descriptor format.
    pub format: u8,
    /// Force Unit Access.
    #[serde(skip_serializing_if = "is_default")]
    pub fua: bool,
    /// Limited Retry.
    #[serde(skip_serializing_if = "is_default")]
    pub lr: bool,
    /// Protection information of the read part: PRACT in bit 3, PRCHK below.
    #[serde(skip_serializing_if = "is_default")]
    pub prinfor: u8,
    /// And of the write part.
    #[serde(skip_serializing_if = "is_default")]
    pub prinfow: u8,
    /// Storage tag check of the read part.
    #[serde(skip_serializing_if = "is_default")]
    pub stcr: bool,
    /// And of the write part.
    #[serde(skip_serializing_if = "is_default")]
    pub stcw: bool,
    /// Directive type.
    #[serde(skip_serializing_if = "is_default")]
    pub dtype: u8,
    /// Directive specific.
    #[serde(skip_serializing_if = "is_default")]
    pub dspec: u16,
    /// Command extension type.
    #[serde(skip_serializing_if = "is_default")]
    pub cetype: u8,
    /// Command extension value.
    #[serde(skip_serializing_if = "is_default")]
    pub cev: u16,
    /// Dword 14: the lower part of the write part's initial tag.
    #[serde(skip_serializing_if = "is_default")]
    pub lbtl: u32,
    /// The write part's application tag.
    #[serde(skip_serializing_if = "is_default")]
    pub lbat: u16,
    /// And its mask.
    #[serde(skip_serializing_if = "is_default")]
    pub lbatm: u16,
    /// Dword 2 as it is.
    #[serde(skip_serializing_if = "is_default")]
    pub cdw2: u32,
    /// Dword 3 as it is.
    #[serde(skip_serializing_if = "is_default")]
    pub cdw3: u32,
    /// Fused operation.
    #[serde(skip_serializing_if = "is_default")]
    pub fuse: u8,
    /// How the list was to be found: 0 PRP, 1 or 2 SGL.
    #[serde(skip_serializing_if = "is_default")]
    pub psdt: u8,
}

/// One source range.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RangeRecord {
    /// Source namespace; absent in formats that do not name one: the destination's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snsid: Option<u32>,
    /// Starting LBA.
    pub slba: u64,
    /// Blocks, 1-based: one more than the field says.
    pub nlb: u32,
    /// Fast Copy Only.
    #[serde(skip_serializing_if = "is_default")]
    pub fco: bool,
    /// Expected initial tag, hexadecimal: it may have 80 bits.
    #[serde(skip_serializing_if = "is_default")]
    pub elbt: Hex,
    /// Expected application tag.
    #[serde(skip_serializing_if = "is_default")]
    pub elbat: u16,
    /// And its mask.
    #[serde(skip_serializing_if = "is_default")]
    pub elbatm: u16,
    /// Command extension type.
    #[serde(skip_serializing_if = "is_default")]
    pub cetype: u8,
    /// Command extension value.
    #[serde(skip_serializing_if = "is_default")]
    pub cev: u16,
    /// A reserved bit was set.
    #[serde(skip_serializing_if = "is_default")]
    pub reserved: bool,
}

/// A namespace as far as Copies depend on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceRecord {
    /// NSID.
    pub nsid: u32,
    /// Size in blocks.
    pub nsze: u64,
    /// Bytes of a block.
    pub logical_block_size: u64,
    /// Metadata bytes of a block.
    #[serde(default, skip_serializing_if = "is_default")]
    pub ms: u16,
    /// Most blocks in one source range.
    pub mssrl: u16,
    /// Most blocks in one command.
    pub mcl: u32,
    /// Most source ranges in one command, 0-based as Identify has it.
    pub msrc: u8,
    /// The property of this name.
    pub copy_method: Word<Method>,
    /// The property of this name.
    pub copy_overlap: Word<Overlap>,
    /// Writes are refused.
    #[serde(default, skip_serializing_if = "is_default")]
    pub readonly: bool,
    /// It lies in memory of the device.
    #[serde(default, skip_serializing_if = "is_default")]
    pub memory: bool,
}

/// What a Copy was about to do. Offsets are bytes from the start of the destination.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PlanRecord {
    /// Bytes in all.
    pub bytes: u64,
    /// Durable before the completion.
    #[serde(default, skip_serializing_if = "is_default")]
    pub durable: bool,
    /// Each complete before the next one begins.
    pub steps: Vec<StepRecord>,
}

/// Part of a Copy that is complete before the next one begins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// `any`, or from which end of it, where sources overlap the destination: `ascending`, `descending`.
    pub order: String,
    /// Read before anything is written, and written last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<StretchRecord>,
    /// The rest, in its order.
    pub stretches: Vec<StretchRecord>,
}

/// A stretch of the destination, and the method that is tried first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StretchRecord {
    /// Its first byte.
    pub at: u64,
    /// Bytes.
    pub len: u64,
    /// `memmove`, `reflink`, `offload`, or `bounce`.
    pub method: String,
}

/// A part of a source range that was written to its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovedRecord {
    /// Index of the range.
    pub range: u16,
    /// Bytes from the start of the destination.
    pub at: u64,
    /// Bytes.
    pub len: u64,
    /// What moved them.
    pub by: Word<By>,
}

/// Why a Copy was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusalRecord {
    /// The rule's name, which stays as it is.
    pub rule: String,
    /// In words, which may change.
    pub what: String,
    /// Index of the range to blame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<u8>,
}

/// A completion status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatusRecord {
    /// Status Code Type.
    pub sct: u8,
    /// Status Code.
    pub sc: u8,
    /// The specification's name of the two, or nothing.
    pub name: String,
    /// Do Not Retry.
    #[serde(skip_serializing_if = "is_default")]
    pub dnr: bool,
    /// More: the Error Information log has an entry of it.
    #[serde(skip_serializing_if = "is_default")]
    pub more: bool,
    /// Command Retry Delay.
    #[serde(skip_serializing_if = "is_default")]
    pub crd: u8,
}

/// What became of the completion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Posted {
    /// Posted, as always.
    #[default]
    Once,
    /// A laboratory had it lost.
    Never,
    /// A laboratory had it posted twice, if there was room.
    Twice,
    /// A laboratory had it posted with another CID.
    OtherCid,
    /// A laboratory had it posted without an interrupt.
    Unannounced,
    /// Its queue was gone.
    QueueGone,
}

impl CommandRecord {
    /// Of a submission queue entry.
    pub fn of(sqe: &Sqe) -> Self {
        let command = CopyCommand::of(sqe);
        Self {
            fuse: sqe.fuse(),
            psdt: sqe.flags >> 6,
            cdw2: sqe.cdw2.get(),
            cdw3: sqe.cdw3.get(),
            ..Self::from(&command)
        }
    }

    /// The command that it says, as the planner takes it.
    pub fn command(&self) -> CopyCommand {
        let bit = |on: bool, at: u8| u32::from(on) << at;
        let field = |value: u8, at: u8| (u32::from(value) & 0xf) << at;
        let cdw12 = u32::from(self.nr.saturating_sub(1).min(0xff))
            | field(self.format, 8)
            | field(self.prinfor, 12)
            | field(self.cetype, 16)
            | field(self.dtype, 20)
            | bit(self.stcw, 24)
            | bit(self.stcr, 25)
            | field(self.prinfow, 26)
            | bit(self.fua, 30)
            | bit(self.lr, 31);
        CopyCommand {
            nsid: self.nsid,
            cdw: [
                self.sdlba as u32,
                (self.sdlba >> 32) as u32,
                cdw12,
                u32::from(self.dspec) << 16 | u32::from(self.cev),
                self.lbtl,
                u32::from(self.lbatm) << 16 | u32::from(self.lbat),
            ],
        }
    }
}

impl From<&CopyCommand> for CommandRecord {
    fn from(command: &CopyCommand) -> Self {
        Self {
            nsid: command.nsid,
            sdlba: command.sdlba(),
            nr: command.nr().count(),
            format: command.desfmt(),
            fua: command.fua(),
            lr: command.lr(),
            prinfor: command.prinfor(),
            prinfow: command.prinfow(),
            stcr: command.stcr(),
            stcw: command.stcw(),
            dtype: command.dtype(),
            dspec: command.dspec(),
            cetype: command.cetype(),
            cev: command.cev(),
            lbtl: command.lbtl(),
            lbat: command.lbat(),
            lbatm: command.lbatm(),
            ..Self::default()
        }
    }
}

impl From<&SourceRange> for RangeRecord {
    fn from(range: &SourceRange) -> Self {
        Self {
            snsid: range.snsid,
            slba: range.slba,
            nlb: range.nlb,
            fco: range.fco,
            elbt: Hex(range.tags.elbt),
            elbat: range.tags.elbat,
            elbatm: range.tags.elbatm,
            cetype: range.cetype,
            cev: range.cev,
            reserved: range.reserved,
        }
    }
}

impl From<&RangeRecord> for SourceRange {
    fn from(range: &RangeRecord) -> Self {
        Self {
            snsid: range.snsid,
            slba: range.slba,
            nlb: range.nlb,
            tags: crate::copy::Tags { elbt: range.elbt.0, elbat: range.elbat, elbatm: range.elbatm },
            fco: range.fco,
            cetype: range.cetype,
            cev: range.cev,
            reserved: range.reserved,
        }
    }
}

impl From<&Namespace> for NamespaceRecord {
    fn from(ns: &Namespace) -> Self {
        let facts = &ns.facts;
        Self {
            nsid: ns.nsid,
            nsze: facts.nsze,
            logical_block_size: facts.block_size(),
            ms: facts.ms,
            mssrl: facts.copy.mssrl,
            mcl: facts.copy.mcl,
            msrc: facts.copy.msrc,
            copy_method: Word(facts.policy.method),
            copy_overlap: Word(facts.policy.overlap),
            readonly: facts.read_only,
            memory: ns.disk.is_immediate(),
        }
    }
}

impl From<&Reject> for RefusalRecord {
    fn from(why: &Reject) -> Self {
        Self { rule: why.rule.to_owned(), what: why.what.to_owned(), range: why.range }
    }
}

impl From<Status> for StatusRecord {
    fn from(status: Status) -> Self {
        Self {
            sct: status.sct(),
            sc: status.sc(),
            name: status.name().unwrap_or_default().to_owned(),
            dnr: status.has_dnr(),
            more: status.has_more(),
            crd: status.crd(),
        }
    }
}

impl StatusRecord {
    /// Successful Completion?
    pub fn is_success(&self) -> bool {
        (self.sct, self.sc) == (0, 0)
    }
}

impl fmt::Display for StatusRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}/{:02x}h", self.sct, self.sc)?;
        if self.dnr {
            f.write_str(" DNR")?;
        }
        if !self.name.is_empty() {
            write!(f, " {}", self.name)?;
        }
        Ok(())
    }
}

impl CopyRecord {
    /// Blocks that its ranges have together, if they are known.
    pub fn blocks(&self) -> Option<u64> {
        let nlb = |range: &RangeRecord| u64::from(range.nlb);
        self.ranges.as_ref().map(|ranges| ranges.iter().map(nlb).fold(0, u64::saturating_add))
    }

    /// The namespace of this NSID, if the record has it.
    pub fn namespace(&self, nsid: u32) -> Option<&NamespaceRecord> {
        self.namespaces.iter().find(|ns| ns.nsid == nsid)
    }
}
