//! The PCI function: configuration space, capabilities, MSI-X table. Of NVMe it knows the class code.
//!
//! | BAR | what | how |
//! |---|---|---|
//! | 0 | registers and doorbells, the composer's | 64-bit memory |
//! | 4 | MSI-X table, then on a page of its own the pending bits | 32-bit memory |
//!
//! MSI-X has a BAR to itself so that no client has to cut the table's pages out of a mapping of the
//! doorbells. There is no INTx (interrupt pin 0): with it QEMU would switch mapped doorbells off at
//! each interrupt, and every NVMe driver that matters has MSI-X or polls.

mod config_space;
mod msix;

pub use config_space::{CONFIG_SIZE, ConfigEvent, ConfigEvents, ConfigSpace};
pub use msix::Msix;

/// BAR of the registers and doorbells.
pub const BAR_REGISTERS: u32 = 0;
/// BAR of the MSI-X table and its pending bits.
pub const BAR_MSIX: u32 = 4;

/// Who the function says it is. Guests match drivers and their quirks by it.
///
/// The default, 1234:4e56, is a choice against trouble: vendor 1234h is assigned to nobody and has
/// long stood for devices that exist in virtual machines only; 4e56h is "NV". Linux' NVMe driver has no quirk
/// for the pair, while it ignores the namespace identifiers of 1b36:0010 (QEMU's own), and taking the
/// 4e58:0001 of another server would let that one's work-arounds hit this device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    /// Vendor ID; Identify Controller's VID must say the same.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Subsystem vendor ID; Identify Controller's SSVID must say the same.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
    /// Revision ID.
    pub revision: u8,
}

impl Default for Ids {
    fn default() -> Self {
        Ids { vendor: 0x1234, device: 0x4e56, subsystem_vendor: 0x1234, subsystem: 0x4e56, revision: 1 }
    }
}

/// What makes one function differ from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FunctionConfig {
    /// Identity.
    pub ids: Ids,
    /// Class code: base class in bits 23:16, subclass in 15:8, interface in 7:0.
    pub class: u32,
    /// Bytes in BAR 0: a power of two, 4 KiB to 1 GiB.
    pub registers_size: u64,
    /// MSI-X vectors, 1 to 2048.
    pub vectors: u16,
}

impl FunctionConfig {
    /// Class code of an NVMe I/O controller: mass storage, non-volatile memory, NVM Express.
    pub const CLASS_NVME: u32 = 0x01_08_02;
}

/// A [`FunctionConfig`] that no function can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// BAR 0 is no power of two, or outside 4 KiB to 1 GiB.
    #[error("a BAR of {0} bytes: use a power of two from 4096 to 1073741824")]
    RegistersSize(u64),
    /// No vectors, or more than MSI-X has.
    #[error("{0} MSI-X vectors: use 1 to 2048")]
    Vectors(u16),
    /// IDs that PCI reserves for "nobody there".
    #[error("PCI vendor ID {0:#06x} means that there is no device: use another")]
    Vendor(u16),
}

/// One PCI function: its configuration space and its MSI-X table.
#[derive(Debug)]
pub struct Function {
    config: ConfigSpace,
    msix: Msix,
    registers_size: u64,
}

impl Function {
    /// A function in its state after power-on.
    ///
    /// # Errors
    /// [`ConfigError`], for a person to read.
    pub fn new(config: &FunctionConfig) -> Result<Self, ConfigError> {
        let size = config.registers_size;
        if !size.is_power_of_two() || !(4096..=1 << 30).contains(&size) {
            return Err(ConfigError::RegistersSize(size));
        }
        if !(1..=2048).contains(&config.vectors) {
            return Err(ConfigError::Vectors(config.vectors));
        }
        if matches!(config.ids.vendor, 0 | 0xffff) {
            return Err(ConfigError::Vendor(config.ids.vendor));
        }
        let msix = Msix::new(config.vectors);
        Ok(Function { config: ConfigSpace::new(config, &msix), msix, registers_size: size })
    }

    /// Bytes in a BAR; 0 for one that is not there (the upper half of BAR 0 included).
    pub fn bar_size(&self, bar: u32) -> u64 {
        match bar {
            BAR_REGISTERS => self.registers_size,
            BAR_MSIX => self.msix.bar_size(),
            _ => 0,
        }
    }

    /// Number of MSI-X vectors.
    pub fn vectors(&self) -> u16 {
        self.msix.vectors()
    }

    /// Reads configuration space, any length at any offset; ones beyond its end.
    pub fn config_read(&self, offset: u64, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    /// Writes configuration space, any length at any offset; nowhere beyond its end. Returns what
    /// the write asks of the rest of the device.
    ///
    /// After [`ConfigEvent::FunctionLevelReset`] the caller resets its own registers and then calls
    /// [`Self::reset`].
    pub fn config_write(&mut self, offset: u64, data: &[u8]) -> ConfigEvents {
        self.config.write(offset, data)
    }

    /// Reads BAR 4. `pending` has a bit for each vector, 64 a word, vector 0 in bit 0 of word 0.
    pub fn msix_read(&self, offset: u64, data: &mut [u8], pending: &[u64]) {
        self.msix.read(offset, data, pending);
    }

    /// Writes BAR 4; the pending bits are read-only.
    pub fn msix_write(&mut self, offset: u64, data: &[u8]) {
        self.msix.write(offset, data);
    }

    /// The configuration space, to look at.
    pub fn config(&self) -> &ConfigSpace {
        &self.config
    }

    /// The MSI-X table, to look at. QEMU emulates its own and never writes this one, so whether a
    /// vector may be raised is not to be judged by it.
    pub fn msix(&self) -> &Msix {
        &self.msix
    }

    /// Back to the state after power-on.
    pub fn reset(&mut self) {
        self.config.reset();
        self.msix.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn config() -> FunctionConfig {
        FunctionConfig {
            ids: Ids::default(),
            class: FunctionConfig::CLASS_NVME,
            registers_size: 16 << 10,
            vectors: 65,
        }
    }

    #[test]
    fn impossible_configurations_are_refused() {
        for size in [0, 4095, 12 << 10, 2 << 30] {
            let config = FunctionConfig { registers_size: size, ..config() };
            assert_eq!(Function::new(&config).unwrap_err(), ConfigError::RegistersSize(size));
        }
        for vectors in [0, 2049] {
            let config = FunctionConfig { vectors, ..config() };
            assert_eq!(Function::new(&config).unwrap_err(), ConfigError::Vectors(vectors));
        }
        let mut nobody = config();
        nobody.ids.vendor = 0xffff;
        assert_eq!(Function::new(&nobody).unwrap_err(), ConfigError::Vendor(0xffff));
    }

    #[test]
    fn bars_are_what_the_configuration_says() {
        let function = Function::new(&config()).unwrap();
        assert_eq!(function.bar_size(BAR_REGISTERS), 16 << 10);
        assert_eq!(function.bar_size(BAR_MSIX), 8 << 10);
        for bar in [1, 2, 3, 5, 6, 7, 8, 99] {
            assert_eq!(function.bar_size(bar), 0);
        }
    }

    #[test]
    fn reset_reaches_table_and_configuration() {
        let mut function = Function::new(&config()).unwrap();
        let _ = function.config_write(4, &[6, 0]);
        function.msix_write(0, &[0xff; 16]);
        function.reset();
        let mut command = [0xff; 2];
        function.config_read(4, &mut command);
        assert_eq!(command, [0, 0]);
        let mut entry = [0xff; 16];
        function.msix_read(0, &mut entry, &[]);
        assert_eq!(entry, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    }
}
