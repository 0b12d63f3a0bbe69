//! `oracle`: does the image hold what the commands imply?

use std::time::Instant;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::control::command::{Arg, Command, Kind};
use crate::control::context::Context;
use crate::control::scan::scan;
use crate::control::views::not_attached;
use crate::control::wire::{Refusal, Request};

/// The row of the table.
pub const COMMAND: Command = Command {
    name: "oracle",
    about: "Read what oracle=on watches, and say whether it is what the commands imply",
    args: &[
        Arg::new("action", Kind::Word(&["scan", "status"]), "status: what was seen so far, nothing is read")
            .positional(),
        Arg::new("nsid", Kind::Number(1, 0xffff_fffe), "scan: this namespace alone"),
    ],
    run: |context, request, _| oracle(context, request),
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OracleArgs {
    action: Option<String>,
    nsid: Option<u32>,
}

fn oracle(context: &Context, request: &Request) -> Result<Value, Refusal> {
    let OracleArgs { action, nsid } = request.args()?;
    let watched: Vec<u32> = context.oracle.verdicts().iter().map(|(nsid, ..)| *nsid).collect();
    if let Some(nsid) = nsid.filter(|nsid| !watched.contains(nsid)) {
        return Err(Refusal::new(format!("namespace {nsid} is not watched"), "one with oracle=on"));
    }
    let mut scans = Vec::new();
    if action.as_deref() != Some("status") {
        let namespaces = context.subsystem.table().load_full();
        for of in watched.into_iter().filter(|of| nsid.is_none_or(|nsid| nsid == *of)) {
            let ns = namespaces.get(of).map_err(|_| not_attached(&namespaces, of))?;
            let since = Instant::now();
            let readable = |why| Refusal::new(why, "an image that can be read");
            if let Some(judged) = scan(&context.oracle, ns).map_err(readable)? {
                let ms = since.elapsed().as_millis() as u64;
                scans.push(json!({ "nsid": of, "blocks": judged, "ms": ms }));
            }
        }
    }
    let verdicts = context.oracle.verdicts();
    if let Some((_, _, Some(first))) = verdicts.iter().find(|(_, judged, _)| judged.differing > 0) {
        let differing: u64 = verdicts.iter().map(|(_, judged, _)| judged.differing).sum();
        let text = format!("{first}; differences seen since the start: {differing}");
        return Err(Refusal::new(text, "what the commands imply"));
    }
    let seen = verdicts.iter().map(|(nsid, judged, _)| json!({ "nsid": nsid, "blocks": judged }));
    let seen: Vec<_> = seen.collect();
    Ok(json!({ "differs": false, "scans": scans, "seen": seen }))
}
