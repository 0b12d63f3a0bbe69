//! What can be set of a namespace. Hosts that asked for it (feature 0Bh) get the event Attached Namespace Attribute Changed
//! and find the namespace in log 04h; commands that were fetched before end under the old values.

use serde::Deserialize;
use serde_json::{Value, json};

use super::broken;
use crate::control::context::Context;
use crate::control::views::{NamespaceView, not_attached};
use crate::control::wire::{Refusal, Request};
use crate::namespace::{Method, Namespace, Overlap};

/// The arguments.
pub(super) const NAMES: &[&str] = &["mssrl", "mcl", "msrc", "copy_overlap", "copy_method", "readonly"];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NamespaceArgs {
    nsid: u32,
    mssrl: Option<u16>,
    mcl: Option<u32>,
    msrc: Option<u8>,
    copy_overlap: Option<String>,
    copy_method: Option<String>,
    readonly: Option<bool>,
    allow: Option<String>,
}

pub(super) fn set(context: &Context, request: &Request) -> Result<Value, Refusal> {
    let args: NamespaceArgs = request.args()?;
    let allow = args.allow.as_deref();
    for (name, zero) in [("mssrl", args.mssrl == Some(0)), ("mcl", args.mcl == Some(0))] {
        if zero {
            broken(allow, name, "0", "1 or more")?;
        }
    }
    let mut changed = None;
    context.subsystem.change(|namespaces| {
        let gone = |_| not_attached(namespaces, args.nsid);
        let ns = args.apply(namespaces.get(args.nsid).map_err(gone)?)?;
        changed = Some(NamespaceView::of(&ns, true));
        namespaces.with(ns).map_err(gone)
    })?;
    Ok(json!(changed))
}

impl NamespaceArgs {
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
