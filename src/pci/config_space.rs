//! The 4096 bytes of configuration space: values, what software may change, what a change means.
//!
//! | offset | what |
//! |---|---|
//! | 000h | type 0 header; BAR 0/1, BAR 4; ROM and interrupt pin are zero and stay so |
//! | 040h | Power Management: D0 and D3hot, state kept |
//! | 050h | MSI-X: table and pending bits in BAR 4 |
//! | 060h | PCI Express: endpoint, function level reset |
//! | 100h | no extended capability |
//!
//! Register names are those of the PCI Local Bus, PCI Power Management and PCI Express
//! specifications.

use smallvec::SmallVec;

use super::{BAR_MSIX, FunctionConfig, Msix};

/// Bytes in the configuration space of a PCI Express function.
pub const CONFIG_SIZE: usize = 4096;

const COMMAND: usize = 0x04;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Memory, bus master, parity error response, SERR, interrupt disable. There is no I/O space.
const COMMAND_WRITABLE: u16 = COMMAND_MEMORY | COMMAND_BUS_MASTER | 1 << 6 | 1 << 8 | 1 << 10;
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const REVISION: usize = 0x08;
const CACHE_LINE: usize = 0x0c;
const BAR0: usize = 0x10;
const BAR_TYPE_64: u32 = 0b100;
const SUBSYSTEM: usize = 0x2c;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;

const PM: usize = 0x40;
const PM_CONTROL: usize = PM + 4;
const PM_STATE: u16 = 0b11;
const PM_STATE_D3HOT: u16 = 0b11;
const PM_NO_SOFT_RESET: u16 = 1 << 3;

const MSIX: usize = 0x50;
const MSIX_CONTROL: usize = MSIX + 2;
const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_FUNCTION_MASK: u16 = 1 << 14;

const PCIE: usize = 0x60;
const DEVICE_CONTROL: usize = PCIE + 0x08;
const DEVICE_CONTROL_FLR: u16 = 1 << 15;

/// What a write to configuration space asks of the rest of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigEvent {
    /// Initiate Function Level Reset was written.
    FunctionLevelReset,
    /// Memory Space Enable has changed to this.
    Memory(bool),
    /// Bus Master Enable has changed to this: without it the function must not touch guest memory.
    BusMaster(bool),
    /// The power state has changed: true for D0, false for D3hot.
    Power(bool),
    /// MSI-X Enable has changed to this.
    MsixEnable(bool),
}

/// Events of one write.
pub type ConfigEvents = SmallVec<[ConfigEvent; 4]>;

/// Configuration space of one function.
pub struct ConfigSpace {
    bytes: Box<[u8; CONFIG_SIZE]>,
    initial: Box<[u8; CONFIG_SIZE]>,
    /// Bits that software can change.
    writable: Box<[u8; CONFIG_SIZE]>,
}

impl ConfigSpace {
    /// The space of a function whose configuration has been checked.
    pub(super) fn new(config: &FunctionConfig, msix: &Msix) -> Self {
        let mut build = Builder { bytes: Box::new([0; CONFIG_SIZE]), writable: Box::new([0; CONFIG_SIZE]) };
        build.header(config, msix);
        build.power_management(MSIX);
        build.msix(PCIE, msix);
        build.pci_express();
        ConfigSpace { bytes: build.bytes.clone(), initial: build.bytes, writable: build.writable }
    }

    /// Reads any length at any offset; ones beyond the end.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let Ok(offset) = usize::try_from(offset) else {
            return;
        };
        let from = self.bytes.get(offset..).unwrap_or(&[]);
        for (place, byte) in data.iter_mut().zip(from) {
            *place = *byte;
        }
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> ConfigEvents {
        let before = self.switches();
        let mut events = ConfigEvents::new();
        let offset = usize::try_from(offset).map_or(CONFIG_SIZE, |offset| offset.min(CONFIG_SIZE));
        for (at, new) in (offset..CONFIG_SIZE).zip(data) {
            if at == DEVICE_CONTROL + 1 && new & (DEVICE_CONTROL_FLR >> 8) as u8 != 0 {
                events.push(ConfigEvent::FunctionLevelReset);
            }
            // D1 and D2 are not supported: such a write completes and changes nothing.
            if at == PM_CONTROL && matches!(new & PM_STATE as u8, 1 | 2) {
                continue;
            }
            let mask = self.writable[at];
            self.bytes[at] = self.bytes[at] & !mask | new & mask;
        }
        let after = self.switches();
        for (was, is, event) in [
            (before.memory, after.memory, ConfigEvent::Memory(after.memory)),
            (before.bus_master, after.bus_master, ConfigEvent::BusMaster(after.bus_master)),
            (before.power, after.power, ConfigEvent::Power(after.power)),
            (before.msix, after.msix, ConfigEvent::MsixEnable(after.msix)),
        ] {
            if was != is {
                events.push(event);
            }
        }
        events
    }

    pub(super) fn reset(&mut self) {
        self.bytes.copy_from_slice(&self.initial[..]);
    }

    /// Memory Space Enable. For the log: a client's accesses have passed its own check.
    pub fn memory_enabled(&self) -> bool {
        self.switches().memory
    }

    /// May the function read and write memory and send interrupts: Bus Master Enable, and not in D3hot?
    pub fn is_bus_master(&self) -> bool {
        let Switches { bus_master, power, .. } = self.switches();
        bus_master && power
    }

    fn switches(&self) -> Switches {
        let command = self.word(COMMAND);
        Switches {
            memory: command & COMMAND_MEMORY != 0,
            bus_master: command & COMMAND_BUS_MASTER != 0,
            power: self.word(PM_CONTROL) & PM_STATE != PM_STATE_D3HOT,
            msix: self.word(MSIX_CONTROL) & MSIX_ENABLE != 0,
        }
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }
}

impl std::fmt::Debug for ConfigSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConfigSpace")
            .field("command", &format_args!("{:#06x}", self.word(COMMAND)))
            .field("pm", &format_args!("{:#06x}", self.word(PM_CONTROL)))
            .field("msix", &format_args!("{:#06x}", self.word(MSIX_CONTROL)))
            .finish_non_exhaustive()
    }
}

/// Bits whose change is an event.
struct Switches {
    memory: bool,
    bus_master: bool,
    power: bool,
    msix: bool,
}

/// Lays out the initial values and the writable bits.
struct Builder {
    bytes: Box<[u8; CONFIG_SIZE]>,
    writable: Box<[u8; CONFIG_SIZE]>,
}

impl Builder {
    fn byte(&mut self, at: usize, value: u8, writable: u8) {
        self.bytes[at] = value;
        self.writable[at] = writable;
    }

    fn word(&mut self, at: usize, value: u16, writable: u16) {
        self.bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        self.writable[at..at + 2].copy_from_slice(&writable.to_le_bytes());
    }

    fn dword(&mut self, at: usize, value: u32, writable: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        self.writable[at..at + 4].copy_from_slice(&writable.to_le_bytes());
    }

    /// Capability ID and next pointer.
    fn capability(&mut self, at: usize, id: u8, next: usize) {
        self.byte(at, id, 0);
        self.byte(at + 1, next as u8, 0);
    }

    fn header(&mut self, config: &FunctionConfig, msix: &Msix) {
        self.word(0x00, config.ids.vendor, 0);
        self.word(0x02, config.ids.device, 0);
        self.word(COMMAND, 0, COMMAND_WRITABLE);
        self.word(STATUS, STATUS_CAPABILITIES, 0);
        self.dword(REVISION, config.class << 8 | u32::from(config.ids.revision), 0);
        self.byte(CACHE_LINE, 0, 0xff);
        // A BAR's size is the number of its low bits that software cannot change.
        let registers = !(config.registers_size - 1);
        self.dword(BAR0, BAR_TYPE_64, registers as u32);
        self.dword(BAR0 + 4, 0, (registers >> 32) as u32);
        let msix_bar = BAR0 + 4 * BAR_MSIX as usize;
        self.dword(msix_bar, 0, !(msix.bar_size() - 1) as u32);
        self.word(SUBSYSTEM, config.ids.subsystem_vendor, 0);
        self.word(SUBSYSTEM + 2, config.ids.subsystem, 0);
        self.byte(CAPABILITIES, PM as u8, 0);
        self.byte(INTERRUPT_LINE, 0, 0xff);
    }

    fn power_management(&mut self, next: usize) {
        self.capability(PM, 0x01, next);
        // Version 3; no D1, no D2, no PME.
        self.word(PM + 2, 3, 0);
        self.word(PM_CONTROL, PM_NO_SOFT_RESET, PM_STATE);
    }

    fn msix(&mut self, next: usize, msix: &Msix) {
        self.capability(MSIX, 0x11, next);
        self.word(MSIX_CONTROL, msix.vectors() - 1, MSIX_ENABLE | MSIX_FUNCTION_MASK);
        self.dword(MSIX + 4, BAR_MSIX, 0);
        // The BAR is at most 64 KiB.
        self.dword(MSIX + 8, msix.pba_offset() as u32 | BAR_MSIX, 0);
    }

    fn pci_express(&mut self) {
        const ROLE_BASED_ERRORS: u32 = 1 << 15;
        const FLR_CAPABLE: u32 = 1 << 28;
        const EXTENDED_TAG: u32 = 1 << 5;
        /// 8 GT/s, four lanes: nothing depends on it, but Linux prints it.
        const LINK: u32 = 4 << 4 | 3;
        self.capability(PCIE, 0x10, 0);
        // Version 2, type 0: endpoint.
        self.word(PCIE + 0x02, 2, 0);
        self.dword(PCIE + 0x04, ROLE_BASED_ERRORS | FLR_CAPABLE | EXTENDED_TAG, 0);
        // Relaxed ordering and no-snoop on, 512-byte reads: the specification's initial values.
        // The FLR bit reads as zero whatever is written.
        self.word(DEVICE_CONTROL, 1 << 4 | 1 << 11 | 2 << 12, 0x7fff);
        self.dword(PCIE + 0x0c, LINK, 0);
        self.word(PCIE + 0x10, 0, 0x01cb);
        self.word(PCIE + 0x12, LINK as u16, 0);
        // Completion time-out disable is required of endpoints.
        self.dword(PCIE + 0x24, 1 << 4, 0);
        self.word(PCIE + 0x28, 0, 1 << 4);
        // Link speeds 2.5, 5 and 8 GT/s; target speed 8 GT/s.
        self.dword(PCIE + 0x2c, 0b111 << 1, 0);
        self.word(PCIE + 0x30, 3, 0xf);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::config;
    use super::*;
    use proptest::prelude::*;

    fn space() -> ConfigSpace {
        let config = config();
        ConfigSpace::new(&config, &Msix::new(config.vectors))
    }

    fn read<const N: usize>(space: &ConfigSpace, at: u64) -> [u8; N] {
        let mut data = [0x55; N];
        space.read(at, &mut data);
        data
    }

    fn dword(space: &ConfigSpace, at: u64) -> u32 {
        u32::from_le_bytes(read(space, at))
    }

    #[test]
    fn header_says_nvme() {
        let space = space();
        assert_eq!(dword(&space, 0), 0x4e56_1234);
        assert_eq!(dword(&space, 8), 0x0108_0201);
        assert_eq!(dword(&space, 0x2c), 0x4e56_1234);
        assert_eq!(read(&space, 0x0e), [0], "header type 0, one function");
        assert_eq!(read(&space, 0x3d), [0], "no INTx");
    }

    #[test]
    fn capability_list_is_walkable_and_complete() {
        let space = space();
        let [status] = read(&space, 6);
        assert_ne!(status & 0x10, 0);
        let mut found = Vec::new();
        let [mut at] = read(&space, 0x34);
        while at != 0 {
            assert!(at >= 0x40 && at % 4 == 0 && found.len() < 8);
            let [id, next] = read(&space, u64::from(at));
            found.push((id, at));
            at = next;
        }
        assert_eq!(found, [(0x01, 0x40), (0x11, 0x50), (0x10, 0x60)]);
        assert_eq!(dword(&space, 0x100), 0, "no extended capability");
    }

    #[test]
    fn bars_are_sized_as_firmware_does() {
        let mut space = space();
        for at in (0x10..0x28).step_by(4) {
            let _ = space.write(at, &[0xff; 4]);
        }
        let sizes: Vec<u32> = (0x10..0x28).step_by(4).map(|at| dword(&space, at)).collect();
        let expected = [0xffff_c004, 0xffff_ffff, 0, 0, 0xffff_e000, 0];
        assert_eq!(sizes, expected);
        let _ = space.write(0x10, &0xfeb0_1234_u32.to_le_bytes());
        assert_eq!(dword(&space, 0x10), 0xfeb0_0004);
    }

    #[test]
    fn rom_does_not_stick() {
        let mut space = space();
        assert_eq!(space.write(0x30, &0xffff_f800_u32.to_le_bytes()).as_slice(), &[]);
        assert_eq!(dword(&space, 0x30), 0);
    }

    #[test]
    fn msix_is_in_bar_4_with_the_right_size() {
        let mut space = space();
        assert_eq!(dword(&space, 0x50) >> 16, 64);
        assert_eq!(dword(&space, 0x54), 4);
        assert_eq!(dword(&space, 0x58), 0x1000 | 4);
        assert_eq!(space.write(0x52, &[0xff, 0xff]).as_slice(), &[ConfigEvent::MsixEnable(true)]);
        assert_eq!(dword(&space, 0x50) >> 16, 0xc040);
        assert_eq!(space.write(0x53, &[0x40]).as_slice(), &[ConfigEvent::MsixEnable(false)]);
    }

    #[test]
    fn command_changes_are_events_once() {
        let mut space = space();
        assert_eq!(
            space.write(4, &[0x06, 0x04]).as_slice(),
            &[ConfigEvent::Memory(true), ConfigEvent::BusMaster(true)]
        );
        assert!(space.memory_enabled() && space.is_bus_master());
        assert_eq!(space.write(4, &[0x06, 0x04]).as_slice(), &[]);
        assert_eq!(space.write(4, &[0x02]).as_slice(), &[ConfigEvent::BusMaster(false)]);
        let _ = space.write(4, &[0xff; 4]);
        assert_eq!(dword(&space, 4), 0x0010_0546, "no I/O, status read-only");
    }

    #[test]
    fn function_level_reset_is_an_event_and_reads_as_zero() {
        let mut space = space();
        assert_ne!(dword(&space, 0x64) & 1 << 28, 0);
        let before = dword(&space, 0x68);
        let with_flr = before | 1 << 15;
        assert_eq!(space.write(0x68, &with_flr.to_le_bytes()).as_slice(), &[ConfigEvent::FunctionLevelReset]);
        assert_eq!(dword(&space, 0x68), before);
        assert_eq!(space.write(0x68, &before.to_le_bytes()).as_slice(), &[]);
        assert_eq!(
            space.write(0x69, &[0x80]).as_slice(),
            &[ConfigEvent::FunctionLevelReset],
            "a byte write too"
        );
    }

    #[test]
    fn power_states() {
        let mut space = space();
        assert_eq!(space.write(0x44, &[3, 0]).as_slice(), &[ConfigEvent::Power(false)]);
        for unsupported in [1, 2] {
            assert_eq!(space.write(0x44, &[unsupported, 0]).as_slice(), &[]);
            assert_eq!(read(&space, 0x44), [0x0b]);
        }
        assert_eq!(space.write(0x44, &[0, 0]).as_slice(), &[ConfigEvent::Power(true)]);
    }

    #[test]
    fn reset_restores_everything() {
        let mut space = space();
        let mut fresh = vec![0; CONFIG_SIZE];
        space.read(0, &mut fresh);
        let _ = space.write(0, &[0xff; CONFIG_SIZE]);
        let mut now = vec![0; CONFIG_SIZE];
        space.read(0, &mut now);
        assert_ne!(fresh, now);
        space.reset();
        space.read(0, &mut now);
        assert_eq!(fresh, now);
    }

    #[test]
    fn beyond_the_end() {
        let mut space = space();
        assert_eq!(read(&space, 4094), [0, 0, 0xff, 0xff]);
        assert_eq!(read(&space, 4096), [0xff; 2]);
        assert_eq!(read(&space, u64::MAX), [0xff; 4]);
        assert_eq!(space.write(4094, &[0xff; 8]).as_slice(), &[]);
        assert_eq!(space.write(u64::MAX, &[0xff; 8]).as_slice(), &[]);
    }

    proptest! {
        /// A write in any pieces is the same write, and never changes what is read-only.
        #[test]
        fn writes_are_bytewise(at in 0_u64..4200, data in proptest::collection::vec(any::<u8>(), 0..64)) {
            let (mut whole, mut pieces) = (space(), space());
            let fresh = space();
            let _ = whole.write(at, &data);
            for (index, byte) in data.iter().enumerate() {
                let _ = pieces.write(at + index as u64, &[*byte]);
            }
            prop_assert_eq!(&whole.bytes[..], &pieces.bytes[..]);
            for index in 0..CONFIG_SIZE {
                let changed = whole.bytes[index] ^ fresh.bytes[index];
                prop_assert_eq!(changed & !whole.writable[index], 0);
            }
        }
    }
}
