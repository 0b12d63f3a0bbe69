//! `add`, `remove`, `attach` and `detach`: namespaces come and go while hosts use the device.
//!
//! All controllers share the namespaces, so these are for all of them at once.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::control::command::{Arg, Command, Kind};
use crate::control::context::Context;
use crate::control::settle::is_over;
use crate::control::views::{NamespaceView, not_attached};
use crate::control::wire::{Refusal, Request};
use crate::namespace::{Namespace, NoNamespace};

const NSID: Arg = Arg::new("nsid", Kind::Number(1, 0xffff_fffe), "The namespace").required().positional();

/// The row of `add`.
pub const ADD: Command = Command {
    name: "add",
    about: "Open an image, or make memory, and attach it as a new namespace",
    args: &[
        Arg::new("ns", Kind::Text("properties as --nvme-ns takes them"), "What it is to be")
            .required()
            .positional(),
        Arg::new("detached", Kind::Switch, "Do not attach it yet"),
    ],
    run: |context, request, _| add(context, request),
};

/// The row of `remove`.
pub const REMOVE: Command = Command {
    name: "remove",
    about: "Detach a namespace, make its image durable and close it",
    args: &[NSID],
    run: |context, request, _| remove(context, request),
};

/// The row of `attach`.
pub const ATTACH: Command = Command {
    name: "attach",
    about: "Attach a namespace that was detached",
    args: &[NSID],
    run: |context, request, _| attach(context, request),
};

/// The row of `detach`.
pub const DETACH: Command = Command {
    name: "detach",
    about: "Take a namespace out of the hosts' reach, make it durable and keep it open",
    args: &[NSID],
    run: |context, request, _| detach(context, request),
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AddArgs {
    ns: String,
    detached: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NsidArgs {
    nsid: u32,
}

fn add(context: &Context, request: &Request) -> Result<Value, Refusal> {
    let args: AddArgs = request.args()?;
    let turn = context.stock.turn();
    let (ns, line) = context.stock.open(&turn, &args.ns)?;
    let attached = args.detached != Some(true);
    let (nsid, view) = (ns.nsid, NamespaceView::of(&ns, attached));
    if attached {
        put(context, ns).inspect_err(|_| context.stock.forget(&turn, nsid))?;
    } else {
        context.stock.keep(Arc::new(ns));
    }
    log::info!("{line}");
    Ok(json!(view))
}

fn attach(context: &Context, request: &Request) -> Result<Value, Refusal> {
    let NsidArgs { nsid } = request.args()?;
    let _turn = context.stock.turn();
    let Some(ns) = context.stock.get(nsid) else {
        let nsids: Vec<_> = context.stock.detached().iter().map(|ns| ns.nsid.to_string()).collect();
        let expected =
            if nsids.is_empty() { "a detached namespace; there is none".into() } else { nsids.join(", ") };
        return Err(Refusal::new(format!("no namespace {nsid} is detached"), format!("nsid: {expected}")));
    };
    put(context, Namespace::clone(&ns))?;
    context.stock.take(nsid);
    Ok(json!(NamespaceView::of(&ns, true)))
}

fn detach(context: &Context, request: &Request) -> Result<Value, Refusal> {
    let NsidArgs { nsid } = request.args()?;
    let _turn = context.stock.turn();
    let kept = take(context, nsid)?;
    context.stock.keep(Arc::clone(&kept));
    let left = Left::of(context, &kept);
    Ok(left.told(json!(NamespaceView::of(&kept, false))))
}

fn remove(context: &Context, request: &Request) -> Result<Value, Refusal> {
    let NsidArgs { nsid } = request.args()?;
    let turn = context.stock.turn();
    let ns = match context.stock.take(nsid) {
        Some(detached) => detached,
        None => take(context, nsid)?,
    };
    let left = Left::of(context, &ns);
    context.stock.forget(&turn, nsid);
    context.oracle.forget(nsid);
    Ok(left.told(json!({ "nsid": nsid, "drive": ns.disk.name() })))
}

/// Puts a namespace where none is.
fn put(context: &Context, ns: Namespace) -> Result<(), Refusal> {
    let nsid = ns.nsid;
    let taken = |why: &str| Refusal::new(format!("namespace {nsid} {why}"), "another nsid");
    context.subsystem.change(|namespaces| match namespaces.get(nsid) {
        Err(NoNamespace::Inactive) => namespaces.with(ns).map_err(|_| taken("cannot be")),
        Err(NoNamespace::Invalid) => Err(taken("is above NN, which hosts know as fixed")),
        Ok(_) => Err(taken("is attached already")),
    })
}

/// Takes a namespace out of the table; what is left of it is a value that was in none.
fn take(context: &Context, nsid: u32) -> Result<Arc<Namespace>, Refusal> {
    let mut taken = None;
    context.subsystem.change(|namespaces| {
        let ns = namespaces.get(nsid).map_err(|_| not_attached(namespaces, nsid))?;
        taken = Some(Arc::new(Namespace::clone(ns)));
        Ok::<_, Refusal>(namespaces.without(nsid))
    })?;
    taken.ok_or_else(|| Refusal::new(format!("namespace {nsid} is gone"), "an attached namespace"))
}

/// How a namespace was left when it went.
struct Left {
    /// No command that it was admitted for is in flight.
    over: bool,
    /// What was written is durable.
    durable: bool,
}

impl Left {
    fn of(context: &Context, ns: &Arc<Namespace>) -> Self {
        let over = is_over(context, &ns.life.before(ns));
        let synced = ns.disk.sync();
        if let Err(error) = &synced {
            log::error!("namespace {}, {}: cannot be made durable: {error}", ns.nsid, ns.disk.name());
        }
        Self { over, durable: over && synced.is_ok() }
    }

    fn told(self, mut value: Value) -> Value {
        value["commands_ended"] = self.over.into();
        value["durable"] = self.durable.into();
        value
    }
}
