//! Which commands, or changes of the controller's registers, a rule is about.

use super::error::Refused;
use super::values::{number, spelled};
use crate::laboratory::control::RegisterEvent;
use crate::spec::commands::{AdminCommand, NvmCommand};

/// A set of opcodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Opcodes([u64; 4]);

impl Opcodes {
    const ALL: Self = Self([u64::MAX; 4]);

    fn insert(&mut self, opcode: u8) {
        if let Some(word) = self.0.get_mut(usize::from(opcode >> 6)) {
            *word |= 1 << (opcode & 63);
        }
    }

    fn contains(self, opcode: u8) -> bool {
        self.0.get(usize::from(opcode >> 6)).is_some_and(|word| word >> (opcode & 63) & 1 == 1)
    }

    fn is_empty(self) -> bool {
        self == Self::default()
    }

    fn iter(self) -> impl Iterator<Item = u8> {
        (0..=u8::MAX).filter(move |opcode| self.contains(*opcode))
    }
}

/// See the module docs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ops {
    io: Opcodes,
    admin: Opcodes,
    events: Vec<RegisterEvent>,
}

/// Other names of some commands: what the block layer, drivers and tools say.
const IO_ALIASES: &[(&str, NvmCommand)] =
    &[("dsm", NvmCommand::Dsm), ("discard", NvmCommand::Dsm), ("deallocate", NvmCommand::Dsm)];
const ADMIN_ALIASES: &[(&str, AdminCommand)] = &[
    ("delete-sq", AdminCommand::DeleteSq),
    ("create-sq", AdminCommand::CreateSq),
    ("delete-cq", AdminCommand::DeleteCq),
    ("create-cq", AdminCommand::CreateCq),
    ("async-event", AdminCommand::AsyncEvent),
    ("doorbell-buffer", AdminCommand::DoorbellBuffer),
];

impl Ops {
    /// Every I/O command.
    pub fn all_io() -> Self {
        Self { io: Opcodes::ALL, ..Self::default() }
    }

    /// Every admin command.
    pub fn all_admin() -> Self {
        Self { admin: Opcodes::ALL, ..Self::default() }
    }

    /// Names and numbers with `+` between. A number is an I/O opcode, with `admin:` before it one of the
    /// admin queue.
    pub fn parse(text: &str) -> Result<Self, Refused> {
        let mut ops = Self::default();
        for name in text.split('+') {
            ops.add(name)?;
        }
        Ok(ops)
    }

    fn add(&mut self, given: &str) -> Result<(), Refused> {
        let name = spelled(given);
        match name.as_str() {
            "io" => self.io = Opcodes::ALL,
            "admin" => self.admin = Opcodes::ALL,
            name => {
                let io = NvmCommand::ALL.iter().find(|command| spelled(command.name()) == name).copied();
                let io = io.or_else(|| find(IO_ALIASES, name));
                let admin = AdminCommand::ALL.iter().find(|command| spelled(command.name()) == name).copied();
                let admin = admin.or_else(|| find(ADMIN_ALIASES, name));
                let event = RegisterEvent::ALL.into_iter().find(|event| event.name() == name);
                let digits = name.strip_prefix("admin:");
                let opcode = number(digits.unwrap_or(name)).and_then(|n| u8::try_from(n).ok());
                match (io, admin, event, opcode) {
                    (Some(command), ..) => self.io.insert(command.opcode()),
                    (_, Some(command), ..) => self.admin.insert(command.opcode()),
                    (_, _, Some(event), _) => self.events.push(event),
                    (.., Some(opcode)) if digits.is_some() => self.admin.insert(opcode),
                    (.., Some(opcode)) => self.io.insert(opcode),
                    _ => return Err(Self::unknown(given)),
                }
            }
        }
        Ok(())
    }

    fn unknown(given: &str) -> Refused {
        let io = NvmCommand::ALL.iter().map(|command| spelled(command.name()));
        let admin = AdminCommand::ALL.iter().map(|command| spelled(command.name()));
        let events = RegisterEvent::ALL.into_iter().map(|event| event.name().to_owned());
        let names: Vec<_> = io.chain(admin).chain(events).collect();
        Refused::with(
            format!("{given:?} is no command"),
            format!("write io, admin, an opcode (0x19, admin:0x06), or one of {}", names.join(" ")),
        )
    }

    /// Is the command of this opcode one of them?
    pub fn contains(&self, is_admin: bool, opcode: u8) -> bool {
        if is_admin { self.admin.contains(opcode) } else { self.io.contains(opcode) }
    }

    /// Is the event one of them?
    pub fn contains_event(&self, event: RegisterEvent) -> bool {
        self.events.contains(&event)
    }

    /// Are there I/O commands among them?
    pub fn any_io(&self) -> bool {
        !self.io.is_empty()
    }

    /// Are there admin commands among them?
    pub fn any_admin(&self) -> bool {
        !self.admin.is_empty()
    }

    /// Are there changes of registers among them?
    pub fn any_event(&self) -> bool {
        !self.events.is_empty()
    }

    /// Is it one I/O command alone?
    pub fn is_only(&self, command: NvmCommand) -> bool {
        !self.any_admin() && !self.any_event() && self.io.iter().eq([command.opcode()])
    }

    /// I/O commands, all of which are `good`, and nothing else?
    pub fn all_io_are(&self, good: impl Fn(NvmCommand) -> bool) -> bool {
        let good = |opcode| NvmCommand::of(opcode).is_some_and(&good);
        self.any_io() && !self.any_admin() && !self.any_event() && self.io.iter().all(good)
    }

    /// Admin commands, all of which are `good`, and nothing else?
    pub fn all_admin_are(&self, good: impl Fn(AdminCommand) -> bool) -> bool {
        let good = |opcode| AdminCommand::of(opcode).is_some_and(&good);
        self.any_admin() && !self.any_io() && !self.any_event() && self.admin.iter().all(good)
    }
}

fn find<C: Copy>(aliases: &[(&str, C)], name: &str) -> Option<C> {
    aliases.iter().find(|(alias, _)| *alias == name).map(|(_, command)| *command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_numbers_and_sets() {
        let ops = |text: &str| Ops::parse(text).unwrap();
        for text in ["copy", "COPY", "0x19", "25"] {
            assert!(ops(text).is_only(NvmCommand::Copy), "{text}");
        }
        assert_eq!(ops("WRITE_ZEROES"), ops("write-zeroes"));
        assert_eq!(ops("DISCARD"), ops("dataset-management"));
        let mixed = ops("read+write");
        assert!(mixed.contains(false, 1) && mixed.contains(false, 2) && !mixed.contains(true, 2));
        assert!(mixed.all_io_are(NvmCommand::has_lba) && !mixed.is_only(NvmCommand::Read));
        assert!(ops("identify").all_admin_are(|command| command == AdminCommand::Identify));
        assert_eq!(ops("admin:0x06"), ops("identify"));
        assert_eq!(ops("create-io-submission-queue"), ops("create-sq"));
        assert!(ops("0xc0").contains(false, 0xc0), "vendor specific");
        assert!(ops("io").contains(false, 0xff) && !ops("io").any_admin());
        assert!(ops("admin").contains(true, 0) && ops("admin").any_admin() && !ops("admin").any_io());
        let events = ops("enable+disable");
        assert!(events.any_event() && events.contains_event(RegisterEvent::Disable));
        assert!(!events.contains_event(RegisterEvent::Shutdown));
        assert_eq!((ops("io"), ops("admin")), (Ops::all_io(), Ops::all_admin()));
    }

    #[test]
    fn every_command_has_its_name() {
        for command in NvmCommand::ALL {
            assert!(Ops::parse(&spelled(command.name())).unwrap().is_only(*command), "{command:?}");
        }
        for command in AdminCommand::ALL {
            let ops = Ops::parse(&spelled(command.name())).unwrap();
            assert!(ops.contains(true, command.opcode()) && !ops.any_io(), "{command:?}");
        }
    }

    #[test]
    fn what_is_no_command_is_told_with_those_that_are() {
        for bad in ["", "cpoy", "0x100", "admin:", "admin:256", "read+", "+"] {
            let refused = Ops::parse(bad).unwrap_err();
            assert!(refused.problem.ends_with("is no command"), "{bad}: {refused:?}");
            assert!(refused.remedy.unwrap().contains("write-zeroes"), "{bad}");
        }
    }
}
