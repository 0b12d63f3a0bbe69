//! The answer in words, or as JSON.

use std::fmt::Write as _;

use serde::Serialize;

use super::imagined::Assume;
use super::question::Question;
use crate::copy::{CopyPlan, PlannedStretch, Reject, StepOrder};
use crate::laboratory::copy_log::{PlanRecord, RefusalRecord, StatusRecord};

/// As JSON.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    Plan(PlanRecord),
    Refused {
        status: StatusRecord,
        #[serde(flatten)]
        why: RefusalRecord,
    },
}

/// What is printed.
pub(super) fn text(question: &Question, answer: &Result<CopyPlan, Reject>) -> String {
    match answer {
        _ if question.json => json(answer),
        Ok(plan) => accepted(question, plan),
        Err(reject) => refused(question, reject),
    }
}

fn json(answer: &Result<CopyPlan, Reject>) -> String {
    let answer = match answer {
        Ok(plan) => Answer::Plan(plan.into()),
        Err(reject) => Answer::Refused { status: reject.status.into(), why: reject.into() },
    };
    serde_json::to_string(&answer).map_or_else(|error| error.to_string(), |text| text + "\n")
}

fn refused(question: &Question, reject: &Reject) -> String {
    let status = StatusRecord::from(reject.status);
    let mut text = format!("refused: {status}\nrule {}: {}\n", reject.rule, reject.what);
    let range = reject.range.map(usize::from);
    let blamed = range.and_then(|at| question.ranges.as_ref()?.get(at).map(|range| (at, range)));
    if let Some((at, range)) = blamed {
        let nsid = range.snsid.unwrap_or(question.command.nsid);
        let _ = writeln!(text, "range {at}: {nsid}:{}+{}", range.slba, range.nlb);
    }
    text
}

fn accepted(question: &Question, plan: &CopyPlan) -> String {
    let (ns, dst) = (plan.dst_ns(), plan.dst());
    let lbads = ns.facts.lbads;
    let mut text = format!(
        "to {}:{}+{}: {} bytes from {} ranges{}\n",
        ns.nsid,
        dst.offset >> lbads,
        dst.len >> lbads,
        dst.len,
        plan.ranges().len(),
        if plan.fua() { ", durable before the completion" } else { "" }
    );
    let steps = plan.steps();
    for (at, step) in (1..).zip(&steps) {
        let _ = writeln!(text, "step {at} of {}, {}", steps.len(), order(step.order));
        for (stretches, said) in [(&step.held, " (read first, written last)"), (&step.stretches, "")] {
            for stretch in stretches {
                let _ = writeln!(text, "  {}{said}", describe(plan, stretch));
            }
        }
    }
    if question.namespaces.iter().any(|ns| !ns.is_memory) {
        let assumed = match question.assume {
            Assume::Shares => "share blocks of 4096 bytes",
            Assume::Copies => "copy without sharing blocks, better than reads and writes do",
            Assume::Nothing => "can do neither a reflink nor an offload that pays",
        };
        let _ = writeln!(
            text,
            "file systems are taken to {assumed} (--assume); where a way does not lead there, it is \
             offload after reflink, and bounce after both"
        );
    }
    text
}

fn order(order: StepOrder) -> &'static str {
    match order {
        StepOrder::Any => "in any order:",
        StepOrder::Ascending => "from front to back, for it overwrites its sources:",
        StepOrder::Descending => "from back to front, for it overwrites its sources:",
    }
}

/// Where it goes, by which way, and what from.
fn describe(plan: &CopyPlan, stretch: &PlannedStretch) -> String {
    let (ns, end) = (plan.dst_ns(), stretch.at + stretch.len);
    let lbads = ns.facts.lbads;
    let first = (plan.dst().offset + stretch.at) >> lbads;
    let mut text = format!("{}:{first}+{} by {} from", ns.nsid, stretch.len >> lbads, stretch.method);
    for (index, range) in plan.ranges().iter().enumerate() {
        let (from, to) = (range.at.max(stretch.at), (range.at + range.src.len).min(end));
        if from < to {
            let src = (range.src.offset + (from - range.at)) >> range.ns.facts.lbads;
            let blocks = (to - from) >> range.ns.facts.lbads;
            let _ = write!(text, " {}:{src}+{blocks} (range {index})", range.ns.nsid);
        }
    }
    text
}
