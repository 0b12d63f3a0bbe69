//! Identify (06h).

use zerocopy::{FromZeros, IntoBytes};

use super::abort::ACL;
use super::ctl::{Ctl, Reply};
use super::features::WCTEMP;
use crate::namespace::Namespace;
use crate::nvme_ctrl::error_log::ELPE;
use crate::spec::commands::{AdminCommand, NvmCommand};
use crate::spec::feature::notice;
use crate::spec::identify::{
    IdentifyController, IdentifyNamespace, IndependentNamespace, LbaFormat, NvmController, PowerState, ascii,
    cns, nidt, nsfeat, oncs,
};
use crate::spec::registers::VERSION;
use crate::spec::{IDENTIFY_SIZE, Sqe, Status};

/// The NVM command set, the only one there is.
const CSI_NVM: u8 = 0;

/// LBA formats every namespace lists: log2 of the block size. Reformatting comes with Format NVM.
const LBADS: [u8; 2] = [9, 12];

pub(super) fn identify(ctl: &Ctl<'_>, sqe: &Sqe) -> Result<Reply, Status> {
    let structure = sqe.cdw10.get() as u8;
    let csi = (sqe.cdw11.get() >> 24) as u8;
    let nsid = sqe.nsid.get();
    let nvm_only = |ok: Vec<u8>| if csi == CSI_NVM { Ok(ok) } else { Err(Status::INVALID_FIELD.dnr()) };
    let data = match structure {
        cns::NAMESPACE => {
            of_namespace(ctl, nsid, |ns| identify_namespace(ns, ctl.shared.is_shared).as_bytes().to_vec())?
        }
        cns::CONTROLLER => identify_controller(ctl).as_bytes().to_vec(),
        cns::ACTIVE_LIST => active_list(ctl, nsid)?,
        cns::DESCRIPTORS => descriptors(ctl.shared.namespaces.load().get(nsid)?),
        // Nothing but protection information is in it, and there is none yet.
        cns::CSI_NAMESPACE => nvm_only(of_namespace(ctl, nsid, |_| vec![0; IDENTIFY_SIZE])?)?,
        cns::CSI_CONTROLLER => {
            // No limits: Verify is read piece by piece, and Write Zeroes and deallocation move no data.
            nvm_only(NvmController::new_zeroed().as_bytes().to_vec())?
        }
        cns::CSI_ACTIVE_LIST => nvm_only(active_list(ctl, nsid)?)?,
        cns::INDEPENDENT_NAMESPACE => {
            of_namespace(ctl, nsid, |ns| independent_namespace(ns, ctl.shared.is_shared).as_bytes().to_vec())?
        }
        _ => return Err(Status::INVALID_FIELD.dnr()),
    };
    ctl.send_data(sqe, &data)
}

/// A structure of a namespace; all zeroes when the NSID is valid but nothing is attached to it.
fn of_namespace(ctl: &Ctl<'_>, nsid: u32, make: impl Fn(&Namespace) -> Vec<u8>) -> Result<Vec<u8>, Status> {
    use crate::namespace::NoNamespace;
    match ctl.shared.namespaces.load().get(nsid) {
        Ok(ns) => Ok(make(ns)),
        Err(NoNamespace::Inactive) => Ok(vec![0; IDENTIFY_SIZE]),
        Err(NoNamespace::Invalid) => Err(Status::INVALID_NAMESPACE.dnr()),
    }
}

fn active_list(ctl: &Ctl<'_>, above: u32) -> Result<Vec<u8>, Status> {
    if above >= 0xffff_fffe {
        return Err(Status::INVALID_NAMESPACE.dnr());
    }
    let namespaces = ctl.shared.namespaces.load();
    let ids = namespaces.iter().map(|ns| ns.nsid).filter(|nsid| *nsid > above);
    let mut list: Vec<u8> = ids.take(IDENTIFY_SIZE / 4).flat_map(u32::to_le_bytes).collect();
    list.resize(IDENTIFY_SIZE, 0);
    Ok(list)
}

fn identify_controller(ctl: &Ctl<'_>) -> IdentifyController {
    let config = &ctl.config;
    let mut id = IdentifyController::new_zeroed();
    id.vid = config.vid.into();
    id.ssvid = config.ssvid.into();
    id.sn = ascii(&config.serial);
    id.mn = ascii(&config.model);
    id.fr = ascii(&config.firmware);
    id.rab = 6;
    id.mdts = config.mdts;
    id.ver = VERSION.into();
    id.rtd3r = 1_000_000.into();
    id.rtd3e = 10_000_000.into(); // Linux waits so long for a shutdown, in which all caches are flushed
    // Linux sends Asynchronous Event Requests only if one of its bits is set.
    id.oaes = notice::NAMESPACE.into();
    id.cntlid = ctl.shared.cntlid.get().into();
    id.cmic = u8::from(ctl.shared.is_shared) << 1; // more than one controller
    id.cntrltype = 1;
    let offered = AdminCommand::ALL.iter().filter(|command| ctl.offers(**command));
    id.oacs = offered.fold(0, |bits, command| bits | command.bit()).into();
    id.acl = ACL;
    id.aerl = config.aerl;
    id.frmw = 0x03; // one slot, read only
    id.lpa = 1 << 1 | 1 << 2; // effects log; extended data (NUMDU, LPO)
    id.elpe = ELPE;
    id.wctemp = WCTEMP.into();
    id.cctemp = 373.into();
    id.tnvmcap = ctl.shared.namespaces.load().iter().map(|ns| u128::from(ns.disk.len())).sum::<u128>().into();
    id.kas = 10.into(); // in units of 100 ms: 1 s
    id.sqes = 0x66;
    id.cqes = 0x44;
    id.nn = ctl.shared.namespaces.load().nn().into();
    // NVMCSA: with AWUN 0 that is nothing: no write of more than one block is atomic.
    let others = oncs::SAVE_SELECT | oncs::TIMESTAMP | oncs::COPY_SINGLE_ATOMICITY;
    let offered = NvmCommand::ALL.iter().filter(|command| ctl.offers_nvm(**command));
    id.oncs = offered.fold(others, |bits, command| bits | command.bit()).into();
    // A cache, where there is one; and Flush takes the broadcast NSID.
    id.vwc = u8::from(ctl.shared.has_volatile_cache()) | 3 << 1;
    id.ocfs = ctl.shared.limits.ocfs().into();
    // SGLs of any alignment, bit bucket, more length than needed.
    id.sgls = (1 | 1 << 16 | 1 << 18).into();
    for (to, from) in id.subnqn.iter_mut().take(223).zip(config.subnqn.bytes()) {
        *to = from;
    }
    id.psd0 = PowerState::new_zeroed();
    id.psd0.mp = 2500.into(); // 25 W
    id.psd0.enlat = 16.into();
    id.psd0.exlat = 4.into();
    id
}

fn identify_namespace(ns: &Namespace, is_shared: bool) -> IdentifyNamespace {
    let facts = &ns.facts;
    let mut id = IdentifyNamespace::new_zeroed();
    id.nmic = is_shared.into();
    id.nsze = facts.nsze.into();
    id.ncap = facts.nsze.into();
    id.nuse = facts.nsze.into();
    id.nlbaf = LBADS.len() as u8 - 1;
    id.flbas = LBADS.iter().position(|lbads| *lbads == facts.lbads).unwrap_or(0) as u8;
    for (format, lbads) in id.lbaf.iter_mut().zip(LBADS) {
        *format = LbaFormat { ms: 0.into(), lbads, rp: 0 };
    }
    if let Some(unit) = facts.allocation_unit {
        id.nsfeat = nsfeat::DAE | nsfeat::OPTPERF;
        // Deallocated are whole units only; with DULBE a host sees that. 0-based, so the others prefer
        // nothing.
        let blocks = unit.max(facts.block_size()) >> facts.lbads;
        id.npdg = u16::try_from(blocks - 1).unwrap_or(u16::MAX).into();
        id.npda = id.npdg;
    }
    if ns.disk.unmaps() {
        id.dlfeat = 1 | 1 << 3; // deallocated blocks read as zeroes; Write Zeroes may deallocate
    }
    id.nvmcap = u128::from(ns.disk.len()).into();
    id.mssrl = facts.copy.mssrl.into();
    id.mcl = facts.copy.mcl.into();
    id.msrc = facts.copy.msrc;
    id.nsattr = facts.read_only.into();
    id.nguid = ns.identity.nguid;
    id.eui64 = ns.identity.eui64.to_be_bytes();
    id
}

fn independent_namespace(ns: &Namespace, is_shared: bool) -> IndependentNamespace {
    let mut id = IndependentNamespace::new_zeroed();
    id.nmic = is_shared.into();
    id.nsattr = ns.facts.read_only.into();
    id.nstat = 1; // ready
    id
}

/// Namespace Identification Descriptor list: type, length, two reserved bytes, value; a zero length ends it.
fn descriptors(ns: &Namespace) -> Vec<u8> {
    let identity = &ns.identity;
    let mut list = Vec::with_capacity(IDENTIFY_SIZE);
    let mut add = |kind: u8, value: &[u8]| {
        if value.iter().any(|byte| *byte != 0) || kind == nidt::CSI {
            list.extend([kind, value.len() as u8, 0, 0]);
            list.extend(value);
        }
    };
    add(nidt::EUI64, &identity.eui64.to_be_bytes());
    add(nidt::NGUID, &identity.nguid);
    add(nidt::UUID, &identity.uuid);
    add(nidt::CSI, &[CSI_NVM]);
    list.resize(IDENTIFY_SIZE, 0);
    list
}
