//! Admin commands, as a driver sends them.

use super::ctrl::Host;
use super::le::u16_at;
use super::nvme::admin;
use super::{Bells, Cqe, Data, Sqe};

impl Host {
    /// Doorbell Buffer Config with fresh pages, used from now on. As Linux: zeroed first.
    pub fn use_shadow_doorbells(&mut self) -> (u64, u64) {
        let (shadow, events) = (self.ram.pages(1), self.ram.pages(1));
        self.admin(Sqe::new(admin::DOORBELL_BUFFER).prp(shadow, events)).ok();
        self.bells = Bells::Shadow(self.ram.page(shadow), self.ram.page(events));
        (shadow, events)
    }

    pub fn identify_sqe(&mut self, cns: u8, nsid: u32) -> (Sqe, Data) {
        let d = Data::prp(&mut self.ram, 4096);
        d.put(&self.ram, &[0xee; 4096]);
        let s = Sqe::new(admin::IDENTIFY).nsid(nsid).cdw(10, u32::from(cns)).data(&d);
        (s, d)
    }

    #[track_caller]
    pub fn identify(&mut self, cns: u8, nsid: u32) -> Vec<u8> {
        let mark = self.ram.mark();
        let (s, d) = self.identify_sqe(cns, nsid);
        self.admin(s).is(0, &format!("Identify {cns:#x} of {nsid}"));
        let v = d.get(&self.ram);
        self.ram.release(mark);
        v
    }

    pub fn identify_status(&mut self, cns: u8, nsid: u32) -> u16 {
        let mark = self.ram.mark();
        let (s, _) = self.identify_sqe(cns, nsid);
        let c = self.admin(s);
        self.ram.release(mark);
        c.status
    }

    pub fn log_sqe(lid: u8, nsid: u32, offset: u64, data: &Data) -> Sqe {
        let dwords = data.len() as u32 / 4 - 1;
        Sqe::new(admin::GET_LOG)
            .nsid(nsid)
            .cdw(10, (dwords & 0xffff) << 16 | u32::from(lid))
            .cdw(11, dwords >> 16)
            .cdw(12, offset as u32)
            .cdw(13, (offset >> 32) as u32)
            .data(data)
    }

    pub fn log(&mut self, lid: u8, nsid: u32, offset: u64, len: usize) -> (Cqe, Vec<u8>) {
        let mark = self.ram.mark();
        let d = Data::prp(&mut self.ram, len);
        d.put(&self.ram, &vec![0xee; len]);
        let c = self.admin(Host::log_sqe(lid, nsid, offset, &d));
        let v = d.get(&self.ram);
        self.ram.release(mark);
        (c, v)
    }

    #[track_caller]
    pub fn set_feature(&mut self, fid: u8, cdw11: u32) -> Cqe {
        self.admin(Sqe::new(admin::SET_FEATURES).cdw(10, u32::from(fid)).cdw(11, cdw11))
    }

    #[track_caller]
    pub fn get_feature(&mut self, fid: u8) -> Cqe {
        self.admin(Sqe::new(admin::GET_FEATURES).cdw(10, u32::from(fid)))
    }

    /// Host Behavior Support: the 512 bytes.
    pub fn host_behavior(&mut self) -> Vec<u8> {
        let mark = self.ram.mark();
        let d = Data::prp(&mut self.ram, 512);
        self.admin(Sqe::new(admin::GET_FEATURES).cdw(10, 0x16).data(&d)).ok();
        let v = d.get(&self.ram);
        self.ram.release(mark);
        v
    }

    /// Enables Copy descriptor formats (bit n = format n) through Set Features 16h.
    pub fn set_cdfe(&mut self, mask: u16) -> Cqe {
        let mut b = [0; 512];
        b[4..6].copy_from_slice(&mask.to_le_bytes());
        let mark = self.ram.mark();
        let d = Data::prp(&mut self.ram, 512);
        d.put(&self.ram, &b);
        let c = self.admin(Sqe::new(admin::SET_FEATURES).cdw(10, 0x16).data(&d));
        self.ram.release(mark);
        c
    }

    pub fn cdfe(&mut self) -> u16 {
        u16_at(&self.host_behavior(), 4)
    }
}
