//! `set`: other limits and another policy for a namespace, while it is used.
//!
//! All of a request happens, or nothing. Hosts that asked for it (feature 0Bh) get the event Attached
//! Namespace Attribute Changed and find the namespace in log 04h; commands that were fetched before end under
//! the old values.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::control::command::{Arg, Command, Kind};
use crate::control::context::Context;
use crate::control::views::NamespaceView;
use crate::control::wire::{Refusal, Request};
use crate::namespace::{Method, Namespace, Namespaces, Overlap};

/// The row of the table.
pub const COMMAND: Command = Command {
    name: "set",
    about: "Change limits and policy of a namespace",
    args: &[
        Arg::new("nsid", Kind::Number(1, 0xffff_fffe), "The namespace").required(),
        Arg::new("mssrl", Kind::Number(0, 0xffff), "Copy: most blocks in one source range; 0 if broken"),
        Arg::new("mcl", Kind::Number(0, 0xffff_ffff), "Copy: most blocks in one command; 0 if broken"),
        Arg::new("msrc", Kind::Number(0, 0xff), "Copy: most source ranges in one command, 0-based"),
        Arg::new("copy_overlap", Kind::Word(&Overlap::WORDS), "Copy onto its own sources, formats 0h and 1h"),
        Arg::new("copy_method", Kind::Word(&Method::WORDS), "The best way that a Copy may take"),
        Arg::new("readonly", Kind::Switch, "Writes are refused"),
        Arg::new("allow", Kind::Word(&["broken"]), "Take values that no device may have"),
    ],
    run: |context, request, _| set(context, request),
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Args {
    nsid: u32,
    mssrl: Option<u16>,
    mcl: Option<u32>,
    msrc: Option<u8>,
    copy_overlap: Option<String>,
    copy_method: Option<String>,
    readonly: Option<bool>,
    allow: Option<String>,
}

fn set(context: &Context, request: &Request) -> Result<Value, Refusal> {
    let args: Args = request.args()?;
    args.check()?;
    let mut changed = None;
    context.subsystem.change(|namespaces| {
        let ns = args.apply(find(namespaces, args.nsid)?)?;
        changed = Some(NamespaceView::of(&ns, true));
        namespaces.with(ns).map_err(|_| no_namespace(namespaces, args.nsid))
    })?;
    Ok(json!(changed))
}

impl Args {
    fn check(&self) -> Result<(), Refusal> {
        let nothing = self.mssrl.is_none()
            && self.mcl.is_none()
            && self.msrc.is_none()
            && self.copy_overlap.is_none()
            && self.copy_method.is_none()
            && self.readonly.is_none();
        if nothing {
            let names: Vec<_> = COMMAND.args.iter().map(|arg| arg.name).collect();
            return Err(Refusal::new("nothing is to be set", names.join(", ")));
        }
        let zero = [("mssrl", self.mssrl == Some(0)), ("mcl", self.mcl == Some(0))];
        match zero.iter().find(|(_, zero)| *zero && self.allow.is_none()) {
            Some((name, _)) => Err(Refusal::new(
                format!("{name} cannot be 0: no device may have that limit"),
                format!("{name}: 1 or more; or allow=broken, for hosts that must survive it"),
            )),
            None => Ok(()),
        }
    }

    /// `ns` with these values.
    fn apply(&self, ns: &Namespace) -> Result<Namespace, Refusal> {
        let mut ns = ns.clone();
        let facts = &mut ns.facts;
        facts.copy.mssrl = self.mssrl.unwrap_or(facts.copy.mssrl);
        facts.copy.mcl = self.mcl.unwrap_or(facts.copy.mcl);
        facts.copy.msrc = self.msrc.unwrap_or(facts.copy.msrc);
        if let Some(overlap) = self.copy_overlap.as_deref().and_then(Overlap::of) {
            facts.policy.overlap = overlap;
        }
        if let Some(method) = self.copy_method.as_deref().and_then(Method::of) {
            facts.policy.method = method;
        }
        facts.read_only = self.readonly.unwrap_or(facts.read_only);
        if !facts.read_only && ns.disk.read_only() {
            return Err(Refusal::new(
                format!("readonly cannot be off: {} was opened for reading only", ns.disk.name()),
                "readonly=on; or remove the namespace and add it with readonly=off",
            ));
        }
        Ok(ns)
    }
}

/// The namespace of this NSID.
fn find(namespaces: &Namespaces, nsid: u32) -> Result<&Namespace, Refusal> {
    namespaces.get(nsid).map(|ns| &**ns).map_err(|_| no_namespace(namespaces, nsid))
}

fn no_namespace(namespaces: &Namespaces, nsid: u32) -> Refusal {
    let nsids: Vec<_> = namespaces.iter().map(|ns| ns.nsid.to_string()).collect();
    let expected =
        if nsids.is_empty() { "an attached namespace; there is none".into() } else { nsids.join(", ") };
    Refusal::new(format!("no namespace {nsid} is attached"), format!("nsid: {expected}"))
}
