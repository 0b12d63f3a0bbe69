//! `stats`: what was done, as JSON or as Prometheus takes it.

use std::fmt::Write as _;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::control::command::{Arg, Command, Kind};
use crate::control::context::Context;
use crate::control::wire::{Refusal, Request};
use crate::namespace::Namespaces;
use crate::nvme_ctrl::ControllerStats;

/// The row of the table.
pub const COMMAND: Command = Command {
    name: "stats",
    about: "Counts since the start: commands, bytes, log pages read, events sent",
    args: &[
        Arg::new("format", Kind::Word(&["json", "prometheus"]), "Prometheus: its text format").positional()
    ],
    run: |context, request, _| stats(context, request),
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StatsArgs {
    format: Option<String>,
}

fn stats(context: &Context, request: &Request) -> Result<Value, Refusal> {
    let args: StatsArgs = request.args()?;
    let controllers: Vec<ControllerStats> = context.thread.ask(|thread| {
        let ports = thread.ports().into_iter();
        ports.map(|port| port.controller.stats()).collect()
    })?;
    let uptime = context.started.elapsed().as_secs();
    if args.format.as_deref() == Some("prometheus") {
        let text = prometheus(&controllers, &context.subsystem.table().load_full(), uptime);
        return Ok(json!({ "text": text }));
    }
    Ok(json!({ "uptime_s": uptime, "controllers": controllers }))
}

/// All that Prometheus is told, in its text format: names end as it wants them to, labels are numbers and words of ours.
fn prometheus(controllers: &[ControllerStats], namespaces: &Namespaces, uptime: u64) -> String {
    let mut text = String::new();
    let mut family =
        |name: &str, kind: &str, help: &str, samples: &mut dyn Iterator<Item = (String, u64)>| {
            let _ =
                writeln!(text, "# HELP vfio_user_nvme_{name} {help}\n# TYPE vfio_user_nvme_{name} {kind}");
            for (labels, value) in samples {
                let _ = writeln!(text, "vfio_user_nvme_{name}{{{labels}}} {value}");
            }
        };
    let version = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
    family("uptime_seconds", "gauge", "Seconds since the start.", &mut [(version, uptime)].into_iter());
    type Count = (&'static str, &'static str, fn(&ControllerStats) -> u64);
    let counts: [Count; 9] = [
        ("host_read_commands_total", "SMART Host Read Commands.", |c| c.host_read_commands),
        ("host_write_commands_total", "SMART Host Write Commands.", |c| c.host_write_commands),
        ("read_bytes_total", "Bytes read by Read, Compare and Verify.", |c| c.bytes_read),
        ("written_bytes_total", "Bytes written by Write and Copy.", |c| c.bytes_written),
        ("copies_total", "Copies that succeeded.", |c| c.copies),
        ("copied_bytes_total", "Bytes that they copied.", |c| c.bytes_copied),
        ("media_errors_total", "Commands that failed for the medium.", |c| c.media_errors),
        ("error_log_entries_total", "Entries of the Error Information log.", |c| c.error_log_entries),
        ("enables_total", "Times that a host enabled the controller.", |c| c.enabled),
    ];
    for (name, help, count) in counts {
        let sample = |c: &ControllerStats| (format!("cntlid=\"{}\"", c.cntlid), count(c));
        family(name, "counter", help, &mut controllers.iter().map(sample));
    }
    type Lists =
        (&'static str, &'static str, &'static str, fn(&ControllerStats) -> &[crate::nvme_ctrl::Counted]);
    let lists: [Lists; 3] = [
        ("admin_commands_total", "opcode", "Admin commands taken.", |c| &c.admin_commands),
        ("log_pages_read_total", "lid", "Log pages read by Get Log Page.", |c| &c.log_pages),
        ("events_total", "dw0", "Asynchronous events sent.", |c| &c.events),
    ];
    for (name, label, help, list) in lists {
        let samples = controllers.iter().flat_map(|c| {
            let sample = move |counted: &crate::nvme_ctrl::Counted| {
                (format!("cntlid=\"{}\",{label}=\"{}\"", c.cntlid, counted.id), counted.count)
            };
            list(c).iter().map(sample)
        });
        family(name, "counter", help, &mut { samples });
    }
    type Gauge = (&'static str, &'static str, fn(&crate::namespace::Facts) -> u64);
    let gauges: [Gauge; 5] = [
        ("namespace_size_bytes", "Namespace Size.", |facts| facts.nsze << facts.lbads),
        ("namespace_readonly", "1: the namespace takes no writes.", |facts| facts.read_only.into()),
        ("namespace_mssrl_blocks", "Copy: most blocks in one source range.", |facts| facts.copy.mssrl.into()),
        ("namespace_mcl_blocks", "Copy: most blocks in one command.", |facts| facts.copy.mcl.into()),
        ("namespace_source_ranges", "Copy: most source ranges in one command.", |facts| {
            u64::from(facts.copy.msrc) + 1
        }),
    ];
    for (name, help, gauge) in gauges {
        let mut samples = namespaces.iter().map(|ns| (format!("nsid=\"{}\"", ns.nsid), gauge(&ns.facts)));
        family(name, "gauge", help, &mut samples);
    }
    text
}
