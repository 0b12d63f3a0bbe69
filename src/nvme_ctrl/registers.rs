//! Controller registers: values and the host's writes to them. What a write sets off is told to the
//! controller.

use std::fmt;

use super::view::RegisterState;
use crate::spec::registers::{Cc, MPSMAX, READY_TIMEOUT, VERSION, cap, csts, offset};

/// What a write to CC asks for. Several may come in one write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// EN went from 0 to 1.
    pub enable: bool,
    /// EN went from 1 to 0: controller reset.
    pub disable: bool,
    /// SHN asks for a shutdown, normal or abrupt.
    pub shutdown: bool,
}

/// Why the values in the registers do not make a controller (CSTS.CFS).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum BadEnable {
    #[error("CC.MPS {0} is above CAP.MPSMAX")]
    PageSize(u8),
    #[error("CC.CSS {0} is not in CAP.CSS")]
    CommandSet(u8),
    #[error("CC.AMS {0} is not in CAP.AMS")]
    Arbitration(u8),
    #[error("CC.IOSQES {0} or CC.IOCQES {1} is neither 0 nor the size of our entries")]
    EntrySize(u8, u8),
    #[error("AQA {0:#x}: a queue has at least two entries")]
    QueueSize(u32),
    #[error("ASQ {0:#x} or ACQ {1:#x} is not aligned to a page")]
    Unaligned(u64, u64),
}

/// The register file, BAR0 from 0 to FFFh.
#[derive(Debug)]
pub struct Registers {
    cap: u64,
    /// Controller Configuration as last written.
    pub cc: Cc,
    /// Controller Status.
    pub csts: u32,
    aqa: u32,
    asq: u64,
    acq: u64,
    intm: u32,
}

/// The admin queues as the registers describe them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdminQueues {
    /// ASQ.
    pub asq: u64,
    /// Entries, 1-based.
    pub asq_size: u32,
    /// ACQ.
    pub acq: u64,
    /// Entries, 1-based.
    pub acq_size: u32,
}

impl fmt::Display for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cap, cc, csts, aqa, asq, acq, intm } = self;
        write!(f, "CAP {cap:#x} CC {:#x} CSTS {csts:#x} AQA {aqa:#x} ASQ {asq:#x} ACQ {acq:#x} ", cc.0)?;
        write!(f, "INTM {intm:#x}")
    }
}

impl Registers {
    /// Registers after power-on; `mqes` is CAP.MQES, 0-based.
    pub fn new(mqes: u16) -> Self {
        Self { cap: cap(mqes), cc: Cc(0), csts: 0, aqa: 0, asq: 0, acq: 0, intm: 0 }
    }

    /// Back to power-on values (function level reset).
    pub fn reset(&mut self) {
        *self = Self { cap: self.cap, ..Self::new(0) };
    }

    /// Their values, for people.
    pub fn state(&self) -> RegisterState {
        let Self { cap, cc, csts, aqa, asq, acq, intm } = self;
        RegisterState {
            cap: format!("{cap:#018x}"),
            vs: format!("{VERSION:#010x}"),
            intm: format!("{intm:#010x}"),
            cc: format!("{:#010x}", cc.0),
            csts: format!("{csts:#010x}"),
            aqa: format!("{aqa:#010x}"),
            asq: format!("{asq:#018x}"),
            acq: format!("{acq:#018x}"),
        }
    }

    /// Reads any bytes; what is no register reads as 0.
    pub fn read(&self, at: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(at..) {
            *byte = (self.dword(at & !3) >> (8 * (at & 3))) as u8;
        }
    }

    /// Writes one or two aligned dwords; other writes are ignored, as are writes to what is no register.
    pub fn write(&mut self, at: u64, data: &[u8]) -> Requests {
        let mut requests = Requests::default();
        if !matches!(data.len(), 4 | 8) || !at.is_multiple_of(4) {
            log::warn!(
                "guest wrote {} bytes to register {at:#x}; only aligned dwords and qwords count",
                data.len()
            );
            return requests;
        }
        for (chunk, at) in data.chunks_exact(4).zip((at..).step_by(4)) {
            let value = u32::from_le_bytes(chunk.try_into().unwrap_or_default());
            match at {
                offset::INTMS => self.intm |= value,
                offset::INTMC => self.intm &= !value,
                offset::CC => requests = self.write_cc(Cc::written(value)),
                offset::AQA => self.aqa = value,
                offset::ASQ => self.asq = low(self.asq, value),
                0x2c => self.asq = high(self.asq, value),
                offset::ACQ => self.acq = low(self.acq, value),
                0x34 => self.acq = high(self.acq, value),
                _ => {}
            }
        }
        requests
    }

    /// Checks what the host wants to enable.
    ///
    /// # Errors
    /// The first value that cannot be; the controller then goes to CSTS.CFS.
    pub fn check_enable(&self) -> Result<AdminQueues, BadEnable> {
        let cc = self.cc;
        if cc.mps() > MPSMAX {
            return Err(BadEnable::PageSize(cc.mps()));
        }
        if cc.css() != 0 {
            return Err(BadEnable::CommandSet(cc.css()));
        }
        if cc.ams() != 0 {
            return Err(BadEnable::Arbitration(cc.ams()));
        }
        // 0 is accepted: some drivers fill the entry sizes in only before they create I/O queues, where they
        // are checked again.
        if !matches!(cc.iosqes(), 0 | 6) || !matches!(cc.iocqes(), 0 | 4) {
            return Err(BadEnable::EntrySize(cc.iosqes(), cc.iocqes()));
        }
        let (asq_size, acq_size) = ((self.aqa & 0xfff) + 1, (self.aqa >> 16 & 0xfff) + 1);
        if asq_size < 2 || acq_size < 2 {
            return Err(BadEnable::QueueSize(self.aqa));
        }
        if !self.asq.is_multiple_of(cc.page_size()) || !self.acq.is_multiple_of(cc.page_size()) {
            return Err(BadEnable::Unaligned(self.asq, self.acq));
        }
        Ok(AdminQueues { asq: self.asq, asq_size, acq: self.acq, acq_size })
    }

    fn write_cc(&mut self, new: Cc) -> Requests {
        let old = std::mem::replace(&mut self.cc, new);
        if new.shn() == 0 {
            self.csts &= !csts::SHST;
        }
        Requests {
            enable: !old.en() && new.en(),
            disable: old.en() && !new.en(),
            shutdown: matches!(new.shn(), 1 | 2) && old.shn() != new.shn(),
        }
    }

    fn dword(&self, at: u64) -> u32 {
        match at {
            offset::CAP => self.cap as u32,
            0x04 => (self.cap >> 32) as u32,
            offset::VS => VERSION,
            offset::INTMS | offset::INTMC => self.intm,
            offset::CC => self.cc.0,
            offset::CSTS => self.csts,
            offset::AQA => self.aqa,
            offset::ASQ => self.asq as u32,
            0x2c => (self.asq >> 32) as u32,
            offset::ACQ => self.acq as u32,
            0x34 => (self.acq >> 32) as u32,
            offset::CRTO => READY_TIMEOUT.into(),
            _ => 0,
        }
    }
}

fn low(value: u64, dword: u32) -> u64 {
    value & !0xffff_ffff | u64::from(dword)
}

fn high(value: u64, dword: u32) -> u64 {
    value & 0xffff_ffff | u64::from(dword) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Registers {
        let mut regs = Registers::new(1023);
        regs.write(offset::AQA, &0x001f_001f_u32.to_le_bytes());
        regs.write(offset::ASQ, &0x1_0000_1000_u64.to_le_bytes());
        regs.write(offset::ACQ, &0x2000_u32.to_le_bytes());
        regs
    }

    #[test]
    fn reads_of_any_size_agree() {
        let regs = good();
        let mut qword = [0; 8];
        regs.read(offset::ASQ, &mut qword);
        assert_eq!(u64::from_le_bytes(qword), 0x1_0000_1000);
        let mut bytes = [0; 3];
        regs.read(offset::VS + 1, &mut bytes);
        assert_eq!(bytes, [0, 2, 0]);
        regs.read(0xfff, &mut bytes);
        assert_eq!(bytes, [0; 3]);
    }

    #[test]
    fn cc_transitions_are_requests() {
        let mut regs = good();
        let write = |regs: &mut Registers, cc: u32| regs.write(offset::CC, &cc.to_le_bytes());
        assert!(write(&mut regs, 0x0046_0001).enable);
        assert_eq!(write(&mut regs, 0x0046_0001), Requests::default());
        assert!(write(&mut regs, 0x0046_4001).shutdown);
        assert_eq!(write(&mut regs, 0x0046_4001), Requests::default());
        assert!(write(&mut regs, 0x0046_0000).disable);
    }

    #[test]
    fn bad_values_are_refused_at_enable() {
        let with = |at: u64, value: u32| {
            let mut regs = good();
            regs.write(at, &value.to_le_bytes());
            regs.check_enable()
        };
        assert!(good().check_enable().is_ok());
        assert!(matches!(with(offset::AQA, 0x0000_001f), Err(BadEnable::QueueSize(_))));
        assert!(matches!(with(offset::AQA, 0x001f_0000), Err(BadEnable::QueueSize(_))));
        assert!(matches!(with(offset::ASQ, 0x10), Err(BadEnable::Unaligned(..))));
        assert!(matches!(with(offset::CC, 5 << 7), Err(BadEnable::PageSize(5))));
        assert!(matches!(with(offset::CC, 6 << 4), Err(BadEnable::CommandSet(6))));
        assert!(matches!(with(offset::CC, 1 << 11), Err(BadEnable::Arbitration(1))));
        assert!(matches!(with(offset::CC, 0x0057_0000), Err(BadEnable::EntrySize(7, 5))));
    }
}
