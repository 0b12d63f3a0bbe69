//! A command as its checks see it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::notes::Notes;
use crate::block::Work;
use crate::copy::Bounce;
use crate::memory::DmaMap;
use crate::namespace::{self, Access, Extent, Lbas, Namespace, Namespaces};
use crate::nvme_ctrl::shared::Shared;
use crate::spec::{Sqe, Status};

/// What every command is looked at with.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Its controller.
    pub shared: &'a Shared,
    /// The namespaces there are as it is fetched.
    pub namespaces: &'a Namespaces,
    /// Guest memory as it is mapped then.
    pub memory: &'a DmaMap,
    /// A laboratory looks on: what is found out of a Copy is noted here, and nothing is done as it is
    /// started, where nobody would see it under way.
    pub watched: Option<&'a Notes>,
}

/// A submission with all that its checks look at.
pub(super) struct Submission<'a> {
    pub shared: &'a Shared,
    pub namespaces: &'a Namespaces,
    pub memory: &'a DmaMap,
    pub bounce: &'a Bounce,
    pub watched: Option<&'a Notes>,
    pub work: &'a Work,
    pub sqe: &'a Sqe,
}

impl Submission<'_> {
    pub fn namespace(&self) -> Result<&Arc<Namespace>, Status> {
        Ok(self.namespaces.get(self.sqe.nsid.get())?)
    }

    /// The blocks that SLBA and NLB name, if the gate lets the command do this to them.
    pub fn admit(&self, ns: &Namespace, access: Access) -> Result<Extent, Status> {
        let lbas = Lbas { slba: self.sqe.slba(), nlb: self.sqe.nlb().count().into() };
        Ok(namespace::admit(ns, access, lbas, self.shared.cntlid)?)
    }

    /// NLB in bytes must not exceed MDTS.
    pub fn check_transfer(&self, ns: &Namespace) -> Result<(), Status> {
        let bytes = u64::from(self.sqe.nlb().count()) << ns.facts.lbads;
        if bytes > self.shared.limits.max_transfer() {
            return Err(Status::INVALID_FIELD.dnr());
        }
        Ok(())
    }

    /// Must the command be durable before it completes: FUA, or the volatile write cache is off?
    pub fn durable(&self) -> bool {
        self.sqe.fua() || !self.shared.write_cache.load(Ordering::Relaxed)
    }
}
