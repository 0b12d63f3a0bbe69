//! `status`: what there is.

use serde::Serialize;
use serde_json::{Value, json};

use crate::control::command::Command;
use crate::control::context::Context;
use crate::control::views::NamespaceView;
use crate::control::wire::Refusal;
use crate::nvme_ctrl::ControllerView;

/// The row of the table.
pub const COMMAND: Command = Command {
    name: "status",
    about: "Controllers, who uses them, and namespaces with their limits",
    args: &[],
    run: |context, _, _| status(context),
};

/// A controller and who uses it.
#[derive(Serialize)]
struct PortView {
    socket: String,
    client: Option<String>,
    #[serde(flatten)]
    controller: ControllerView,
}

fn status(context: &Context) -> Result<Value, Refusal> {
    let ports = context.thread.ask(|thread| {
        let ports = thread.ports().into_iter();
        let view = |port: crate::control::PortMut<'_>| PortView {
            socket: port.socket.display().to_string(),
            client: port.client.map(str::to_owned),
            controller: port.controller.view(),
        };
        ports.map(view).collect::<Vec<_>>()
    });
    let namespaces = context.subsystem.table().load_full();
    let mut namespaces: Vec<_> = namespaces.iter().map(|ns| NamespaceView::of(ns, true)).collect();
    namespaces.extend(context.stock.detached().iter().map(|ns| NamespaceView::of(ns, false)));
    namespaces.sort_by_key(NamespaceView::nsid);
    // What can be told is told, even if the control thread hangs.
    let controllers = ports.map_or_else(|refusal| json!({ "error": refusal }), |ports| json!(ports));
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "uptime_s": context.started.elapsed().as_secs(),
        "controllers": controllers,
        "namespaces": namespaces,
    }))
}
