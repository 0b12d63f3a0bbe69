//! How often a host asked for what, and was told what, since the controller was made. A reset forgets nothing of it.

use std::collections::BTreeMap;

use super::events::Event;
use crate::nvme_ctrl::view::Counted;
use crate::spec::commands::AdminCommand;
use crate::spec::log_page::lid;

/// See the module docs. Bounded: there are 256 opcodes, 256 log pages and a few events.
#[derive(Debug, Default)]
pub struct Counts {
    commands: BTreeMap<u8, u64>,
    logs: BTreeMap<u8, u64>,
    events: BTreeMap<u32, (Event, u64)>,
    enabled: u64,
}

impl Counts {
    /// An admin command was taken.
    pub fn command(&mut self, opcode: u8) {
        *self.commands.entry(opcode).or_default() += 1;
    }

    /// A log page was read.
    pub fn log_read(&mut self, log: u8) {
        *self.logs.entry(log).or_default() += 1;
    }

    /// An event was sent.
    pub fn event(&mut self, event: Event) {
        self.events.entry(event.dw0()).or_insert((event, 0)).1 += 1;
    }

    /// The controller became ready.
    pub fn enabled(&mut self) {
        self.enabled += 1;
    }

    /// How often it did.
    pub fn times_enabled(&self) -> u64 {
        self.enabled
    }

    /// The commands, by opcode.
    pub fn commands(&self) -> Vec<Counted> {
        let name = |opcode| AdminCommand::of(opcode).map_or("unknown", AdminCommand::name);
        let counted = |(&opcode, &count): (&u8, &u64)| Counted {
            id: format!("{opcode:#04x}"),
            name: name(opcode),
            count,
        };
        self.commands.iter().map(counted).collect()
    }

    /// The log pages, by identifier.
    pub fn logs(&self) -> Vec<Counted> {
        let counted =
            |(&log, &count): (&u8, &u64)| Counted { id: format!("{log:#04x}"), name: lid::name(log), count };
        self.logs.iter().map(counted).collect()
    }

    /// The events, by the DW0 of their completion.
    pub fn events(&self) -> Vec<Counted> {
        let counted = |(&dw0, &(event, count)): (&u32, &(Event, u64))| Counted {
            id: format!("{dw0:#08x}"),
            name: event.name(),
            count,
        };
        self.events.iter().map(counted).collect()
    }
}
