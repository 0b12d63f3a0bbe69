//! `resize`: another length for a namespace and its image, while hosts use it.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::control::command::{Arg, Command, Kind};
use crate::control::context::Context;
use crate::control::settle::is_over;
use crate::control::views::{NamespaceView, not_attached};
use crate::control::wire::{Refusal, Request};
use crate::disk::ResizeError;
use crate::namespace::Namespace;

/// The row of the table.
pub const COMMAND: Command = Command {
    name: "resize",
    about: "Give a namespace and its image another size; what is cut off is lost",
    args: &[
        Arg::new("nsid", Kind::Number(1, 0xffff_fffe), "The namespace").required().positional(),
        Arg::new("size", Kind::Size, "Bytes; a multiple of the block size").required().positional(),
    ],
    run: |context, request, _| resize(context, request),
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ResizeArgs {
    nsid: u32,
    size: u64,
}

fn resize(context: &Context, request: &Request) -> Result<Value, Refusal> {
    let ResizeArgs { nsid, size } = request.args()?;
    let _turn = context.stock.turn();
    let table = context.subsystem.table().load_full();
    // A value that is in no table: nobody waits for the end of it.
    let ns = Namespace::clone(table.get(nsid).map_err(|_| not_attached(&table, nsid))?);
    drop(table);
    let (block, is) = (ns.facts.block_size(), ns.facts.nsze << ns.facts.lbads);
    if size == 0 || !size.is_multiple_of(block) || i64::try_from(size).is_err() {
        let expected = format!("size: a positive multiple of {block}, below 8 EiB");
        return Err(Refusal::new(format!("size cannot be {size}"), expected));
    }
    let refuse = |error: ResizeError| {
        let text = format!("{} keeps its length of {} bytes: {error}", ns.disk.name(), ns.disk.len());
        Refusal::new(text, "an image that can have this size")
    };
    if ns.disk.read_only() {
        return Err(refuse(ResizeError::ReadOnly));
    }
    if size > is {
        // What an earlier cut has left behind the namespace's end is not to come back.
        ns.disk.resize(is).and_then(|()| ns.disk.resize(size)).map_err(refuse)?;
    }
    let published = publish(context, nsid, size)?;
    context.oracle.resized(nsid, published.facts.nsze);
    let mut answer = json!(NamespaceView::of(&published, true));
    let cut = if size < is { cut(context, &published, size) } else { Ok(()) };
    answer["image_resized"] = cut.is_ok().into();
    if let Err(why) = cut {
        log::warn!("namespace {nsid}, {}: keeps what was cut off: {why}", ns.disk.name());
        answer["why"] = why.into();
    }
    Ok(answer)
}

/// Cuts the image, once no command can use what is cut off.
fn cut(context: &Context, published: &Arc<Namespace>, size: u64) -> Result<(), String> {
    if !is_over(context, &published.life.before(published)) {
        return Err("commands that may use it have not ended".into());
    }
    published.disk.resize(size).map_err(|error| error.to_string())
}

/// Shows the namespace with its new size.
fn publish(context: &Context, nsid: u32, size: u64) -> Result<Arc<Namespace>, Refusal> {
    let mut published = None;
    context.subsystem.change(|namespaces| {
        let gone = |_| not_attached(namespaces, nsid);
        let mut ns = Namespace::clone(namespaces.get(nsid).map_err(gone)?);
        ns.facts.nsze = size >> ns.facts.lbads;
        let namespaces = namespaces.with(ns).map_err(gone)?;
        published = Some(Arc::clone(namespaces.get(nsid).map_err(gone)?));
        Ok::<_, Refusal>(namespaces)
    })?;
    published.ok_or_else(|| Refusal::new(format!("namespace {nsid} is gone"), "an attached namespace"))
}
