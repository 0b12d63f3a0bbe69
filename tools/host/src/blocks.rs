//! Blocks of a namespace, read and written by a host and held against their shadow.

use super::ctrl::Host;
use super::identify::{NsFacts, cns};
use super::nvme::io;
use super::{Cqe, Data, Ns, Sqe};

impl Host {
    /// Runs a command that moves `bytes` to the device.
    #[track_caller]
    pub fn send(&mut self, qid: u16, sqe: Sqe, bytes: &[u8]) -> Cqe {
        let mark = self.ram.mark();
        let d = Data::prp(&mut self.ram, bytes.len());
        d.put(&self.ram, bytes);
        let c = self.exec(qid, sqe.data(&d));
        self.ram.release(mark);
        c
    }

    pub fn rw(opcode: u8, ns: &Ns, slba: u64, blocks: u32) -> Sqe {
        Sqe::new(opcode).nsid(ns.nsid).lba(slba, blocks)
    }

    /// Writes a pattern and notes it in the shadow.
    #[track_caller]
    pub fn write(&mut self, qid: u16, ns: &mut Ns, slba: u64, blocks: u32, salt: u64) {
        let bytes = ns.pattern(slba, blocks, salt);
        self.send(qid, Host::rw(io::WRITE, ns, slba, blocks), &bytes)
            .is(0, &format!("write {slba}+{blocks}"));
        if !ns.shadow.is_empty() {
            ns.set(slba, &bytes);
        }
    }

    /// Fills the whole namespace.
    #[track_caller]
    pub fn fill(&mut self, qid: u16, ns: &mut Ns, salt: u64) {
        let step = (128 * 1024 / ns.lba) as u64;
        let mut at = 0;
        while at < ns.nsze {
            let n = step.min(ns.nsze - at);
            self.write(qid, ns, at, n as u32, salt);
            at += n;
        }
    }

    #[track_caller]
    pub fn read(&mut self, qid: u16, ns: &Ns, slba: u64, blocks: u32) -> Vec<u8> {
        let mark = self.ram.mark();
        let len = ns.lba * blocks as usize;
        let d = Data::prp(&mut self.ram, len);
        d.put(&self.ram, &vec![0xee; len]);
        self.exec(qid, Host::rw(io::READ, ns, slba, blocks).data(&d)).is(0, &format!("read {slba}+{blocks}"));
        let v = d.get(&self.ram);
        self.ram.release(mark);
        v
    }
}

impl Ns {
    /// From Identify; the shadow is all zeroes, as a fresh namespace is.
    pub fn identify(host: &mut Host, nsid: u32) -> Ns {
        let mut ns = Ns::facts(host, nsid);
        assert!(ns.nsze * ns.lba as u64 <= 64 << 20, "too large for a shadow of every block");
        ns.shadow = vec![0; ns.nsze as usize * ns.lba];
        ns
    }

    /// As [`Ns::identify`] without the shadow.
    pub fn facts(host: &mut Host, nsid: u32) -> Ns {
        Ns::new(nsid, &NsFacts::parse(&host.identify(cns::NAMESPACE, nsid)))
    }

    /// Reads every block through the device.
    #[track_caller]
    pub fn verify(&mut self, host: &mut Host, qid: u16) {
        let step = (128 * 1024 / self.lba) as u64;
        let mut at = 0;
        while at < self.nsze {
            let n = step.min(self.nsze - at) as u32;
            let got = host.read(qid, self, at, n);
            self.check(at, &got);
            at += u64::from(n);
        }
    }
}
