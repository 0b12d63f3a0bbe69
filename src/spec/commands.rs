//! The commands that there are, one table for each command set. All that depends on which they are follows
//! from these tables: dispatch, the answer to an unknown opcode, Identify Controller OACS and ONCS, the
//! Commands Supported and Effects log, names, and docs/conformance.md. A row makes a variant, and the
//! dispatch does not compile without it.

use super::identify::{oacs, oncs};
use super::log_page::effect::{CSUPP, LBCC};

/// What is to be known of a command besides its opcode.
#[derive(Debug)]
struct Row {
    name: &'static str,
    /// Its dword of the Commands Supported and Effects log.
    effects: u32,
    /// Its bit of OACS or ONCS; 0 if every controller has it, or says so elsewhere.
    bit: u16,
    /// Are CDW10 and CDW11 an LBA?
    lba: bool,
}

macro_rules! commands {
    ($(#[$doc:meta])* $set:ident { $($command:ident = $opcode:literal, $name:literal, $effects:expr, $bit:expr, $lba:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum $set {
            $(#[doc = $name] $command = $opcode,)*
        }

        impl $set {
            /// All of them, by opcode.
            pub const ALL: &[Self] = &[$(Self::$command),*];

            /// The command with this opcode, if there is one.
            pub const fn of(opcode: u8) -> Option<Self> {
                match opcode {
                    $($opcode => Some(Self::$command),)*
                    _ => None,
                }
            }

            const fn row(self) -> &'static Row {
                match self {
                    $(Self::$command => &Row { name: $name, effects: $effects, bit: $bit, lba: $lba },)*
                }
            }

            /// Its opcode.
            pub const fn opcode(self) -> u8 {
                self as u8
            }

            /// Its name in the specification.
            pub const fn name(self) -> &'static str {
                self.row().name
            }

            /// Its dword of the Commands Supported and Effects log.
            pub const fn effects(self) -> u32 {
                self.row().effects
            }

            /// Its bit of Identify Controller OACS or ONCS; 0 if it has none.
            pub const fn bit(self) -> u16 {
                self.row().bit
            }

            /// Are CDW10 and CDW11 an LBA?
            pub const fn has_lba(self) -> bool {
                self.row().lba
            }
        }
    };
}

commands! {
    /// AdminCommand commands; the bits are those of OACS.
    AdminCommand {
        DeleteSq = 0x00, "Delete I/O Submission Queue", CSUPP, 0, false;
        CreateSq = 0x01, "Create I/O Submission Queue", CSUPP, 0, false;
        GetLogPage = 0x02, "Get Log Page", CSUPP, 0, false;
        DeleteCq = 0x04, "Delete I/O Completion Queue", CSUPP, 0, false;
        CreateCq = 0x05, "Create I/O Completion Queue", CSUPP, 0, false;
        Identify = 0x06, "Identify", CSUPP, 0, false;
        Abort = 0x08, "Abort", CSUPP, 0, false;
        SetFeatures = 0x09, "Set Features", CSUPP, 0, false;
        GetFeatures = 0x0a, "Get Features", CSUPP, 0, false;
        AsyncEvent = 0x0c, "Asynchronous Event Request", CSUPP, 0, false;
        KeepAlive = 0x18, "Keep Alive", CSUPP, 0, false;
        DoorbellBuffer = 0x7c, "Doorbell Buffer Config", CSUPP, oacs::DOORBELL_BUFFER_CONFIG, false;
    }
}

commands! {
    /// Commands of the NVM command set; the bits are those of ONCS.
    ///
    /// More effects than these two make Linux warn, and refuse unprivileged passthrough.
    NvmCommand {
        Flush = 0x00, "Flush", CSUPP, 0, false;
        Write = 0x01, "Write", CSUPP | LBCC, 0, true;
        Read = 0x02, "Read", CSUPP, 0, true;
        Compare = 0x05, "Compare", CSUPP, oncs::COMPARE, true;
        WriteZeroes = 0x08, "Write Zeroes", CSUPP | LBCC, oncs::WRITE_ZEROES, true;
        Dsm = 0x09, "Dataset Management", CSUPP | LBCC, oncs::DSM, false;
        Verify = 0x0c, "Verify", CSUPP, oncs::VERIFY, true;
        Copy = 0x19, "Copy", CSUPP | LBCC, oncs::COPY, true;
    }
}

/// For people: the name of an NVM command, whatever its opcode is.
pub fn nvm_name(opcode: u8) -> &'static str {
    NvmCommand::of(opcode).map_or("unknown", NvmCommand::name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_opcode_is_one_command_or_none() {
        let known = (0..=0xff).filter_map(AdminCommand::of).collect::<Vec<_>>();
        assert_eq!(known, AdminCommand::ALL, "by opcode");
        let known = (0..=0xff).filter_map(NvmCommand::of).collect::<Vec<_>>();
        assert_eq!(known, NvmCommand::ALL, "by opcode");
        assert!(AdminCommand::ALL.iter().all(|command| AdminCommand::of(command.opcode()) == Some(*command)));
        assert_eq!((nvm_name(0x19), nvm_name(0x1a)), ("Copy", "unknown"));
    }

    #[test]
    fn no_bit_stands_for_two_commands() {
        for bits in [
            AdminCommand::ALL.iter().map(|c| c.bit()).collect::<Vec<_>>(),
            NvmCommand::ALL.iter().map(|c| c.bit()).collect(),
        ] {
            let sum: u32 = bits.iter().map(|bit| u32::from(*bit)).sum();
            assert_eq!(sum, u32::from(bits.iter().fold(0, |all, bit| all | bit)));
            assert!(bits.iter().all(|bit| bit.count_ones() <= 1));
        }
    }
}
