//! What can be set of controllers.

use serde::Deserialize;
use serde_json::{Value, json};

use super::broken;
use crate::control::context::Context;
use crate::control::wire::{Refusal, Request};
use crate::nvme_ctrl::{ControllerView, Settings};

/// The arguments.
pub(super) const NAMES: &[&str] =
    &["cntlid", "ocfs", "cdfe", "mdts", "copy", "temperature", "spare", "smart_critical_warning"];

/// Copy descriptor formats that a host must enable: 2h, 3h and 4h (Host Behavior Support, CDFE).
const CDFE_MASK: u16 = 0b1_1100;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ControllerArgs {
    cntlid: Option<u16>,
    ocfs: Option<u16>,
    cdfe: Option<u16>,
    mdts: Option<u8>,
    copy: Option<bool>,
    temperature: Option<u16>,
    spare: Option<u8>,
    smart_critical_warning: Option<u8>,
    allow: Option<String>,
}

pub(super) fn set(context: &Context, request: &Request) -> Result<Value, Refusal> {
    let args: ControllerArgs = request.args()?;
    let allow = args.allow.as_deref();
    if let Some(ocfs) = args.ocfs.filter(|ocfs| ocfs & 1 == 0) {
        broken(allow, "ocfs", &format!("{ocfs:#x}"), "a mask with bit 0, for format 0h")?;
    }
    if args.copy == Some(false) {
        broken(allow, "copy", "off", "on")?;
    }
    if let Some(cdfe) = args.cdfe.filter(|cdfe| cdfe & !CDFE_MASK != 0) {
        return Err(Refusal::new(
            format!("cdfe cannot be {cdfe:#x}: formats 0h and 1h are always enabled"),
            "cdfe: a sum of 0x4 (format 2h), 0x8 (3h) and 0x10 (4h)",
        ));
    }
    let settings = Settings {
        mdts: args.mdts,
        ocfs: args.ocfs,
        cdfe: args.cdfe,
        copy: args.copy,
        temperature: args.temperature,
        spare: args.spare,
        warnings: args.smart_critical_warning,
    };
    let wanted = args.cntlid;
    let controllers: Vec<ControllerView> = context.thread.ask(move |thread| {
        let ports = thread.ports().into_iter().map(|port| port.controller);
        let mut views = Vec::new();
        for controller in ports.filter(|port| wanted.is_none_or(|cntlid| port.cntlid() == cntlid)) {
            controller.set(&settings);
            views.push(controller.view());
        }
        views
    })?;
    match wanted {
        Some(cntlid) if controllers.is_empty() => {
            Err(Refusal::new(format!("there is no controller {cntlid}"), "cntlid: one that status shows"))
        }
        _ => Ok(json!({ "controllers": controllers })),
    }
}
