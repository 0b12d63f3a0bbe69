//! `set`: other limits, another policy, another state of health, while it is used.
//!
//! All of a request happens, or nothing. With `nsid` it is about a namespace, without about controllers.

mod controller;
mod namespace;

use serde_json::Value;

use crate::control::command::{Arg, Command, Kind};
use crate::control::context::Context;
use crate::control::wire::{Refusal, Request};
use crate::namespace::{MAX_CONTROLLERS, Method, Overlap};

/// The row of the table.
pub const COMMAND: Command = Command {
    name: "set",
    about: "Change limits, policy and health: with nsid a namespace's, without the controllers'",
    args: &[
        Arg::new("nsid", Kind::Number(1, 0xffff_fffe), "The namespace"),
        Arg::new("mssrl", Kind::Number(0, 0xffff), "Copy: most blocks in one source range; 0 if broken"),
        Arg::new("mcl", Kind::Number(0, 0xffff_ffff), "Copy: most blocks in one command; 0 if broken"),
        Arg::new("msrc", Kind::Number(0, 0xff), "Copy: most source ranges in one command, 0-based"),
        Arg::new("copy_overlap", Kind::Word(&Overlap::WORDS), "Copy onto its own sources, formats 0h and 1h"),
        Arg::new("copy_method", Kind::Word(&Method::WORDS), "The best way that a Copy may take"),
        Arg::new("readonly", Kind::Switch, "Writes are refused"),
        Arg::new("cntlid", Kind::Number(0, MAX_CONTROLLERS as u64 - 1), "The controller; all, if left out"),
        Arg::new("ocfs", Kind::Number(0, 0xf), "Mask of Copy formats offered; without 0h if broken"),
        Arg::new("cdfe", Kind::Number(0, 0x1c), "Mask of Copy formats that count as enabled: 0x4, 0x8, 0x10"),
        Arg::new("mdts", Kind::Number(1, 11), "Largest transfer, from the next controller reset on"),
        Arg::new("copy", Kind::Switch, "Copy is among the commands (ONCS); off if broken"),
        Arg::new("temperature", Kind::Number(0, 0xffff), "Composite temperature in kelvin"),
        Arg::new("spare", Kind::Number(0, 100), "Available spare in percent"),
        Arg::new(
            "smart_critical_warning",
            Kind::Number(0, 0x3f),
            "Bits of Critical Warning that are set anyway",
        ),
        Arg::new("allow", Kind::Word(&["broken"]), "Take values that no device may have"),
    ],
    run: |context, request, _| set(context, request),
};

fn set(context: &Context, request: &Request) -> Result<Value, Refusal> {
    let of_namespace = |name: &str| namespace::NAMES.contains(&name);
    let (first, other) = if request.args.contains_key("nsid") {
        (request.args.keys().find(|name| of_namespace(name)), controller::NAMES)
    } else {
        (request.args.keys().find(|name| controller::NAMES.contains(&name.as_str())), namespace::NAMES)
    };
    if let Some(name) = request.args.keys().find(|name| other.contains(&name.as_str())) {
        return Err(if of_namespace(name) {
            Refusal::new(format!("{name} is a namespace's, and none is named"), "nsid as well")
        } else {
            Refusal::new(format!("{name} is a controller's, not a namespace's"), "it without nsid")
        });
    }
    match first {
        Some(name) if of_namespace(name) => namespace::set(context, request),
        Some(name) if name != "cntlid" || request.args.len() > 1 => controller::set(context, request),
        _ => {
            let expected = format!(
                "nsid and some of {}; or some of {}",
                list(namespace::NAMES),
                list(controller::NAMES)
            );
            Err(Refusal::new("nothing is to be set", expected))
        }
    }
}

fn list(names: &[&str]) -> String {
    names.join(", ")
}

/// A value that no device may have is taken only from who says so.
fn broken(allow: Option<&str>, name: &str, value: &str, right: &str) -> Result<(), Refusal> {
    if allow.is_some() {
        return Ok(());
    }
    Err(Refusal::new(
        format!("{name} cannot be {value}: no device may have that"),
        format!("{name}: {right}; or allow=broken, for hosts that must survive it"),
    ))
}
