//! Doorbell Buffer Config (7Ch).

use super::ctl::{Ctl, Reply};
use crate::nvme_ctrl::doorbell_buffers::BufferConfig;
use crate::spec::command::Psdt;
use crate::spec::{Sqe, Status};

/// I/O queues use the buffers from now on, those that exist and those to come, until the controller is reset.
/// The admin queue never does.
pub(super) fn doorbell_buffer_config(ctl: &mut Ctl<'_>, sqe: &Sqe) -> Result<Reply, Status> {
    let config = BufferConfig { shadow: sqe.prp1.get(), events: sqe.prp2.get() };
    let aligned = |address: u64| address.is_multiple_of(ctl.shared.page_size());
    if sqe.psdt() != Psdt::Prp
        || !aligned(config.shadow)
        || !aligned(config.events)
        || config.shadow == config.events
    {
        return Err(Status::INVALID_FIELD.dnr());
    }
    let buffers = config.find(ctl.memory)?;
    // Doorbells were authoritative up to now, or other buffers, whose memory may be gone by now.
    let earlier = ctl.workers.buffers().and_then(|earlier| earlier.find(ctl.memory).ok());
    let doorbells = &ctl.shared.doorbells;
    for qid in 1..=ctl.config.max_ioqpairs {
        if ctl.queues.sq(qid).is_some() {
            let known = earlier.as_ref().and_then(|earlier| earlier.tail(qid).ok());
            buffers.set_tail(qid, known.unwrap_or_else(|| doorbells.tail(qid)) as u16)?;
        }
        if ctl.queues.cq(qid).is_some() {
            let known = earlier.as_ref().and_then(|earlier| earlier.head(qid).ok());
            buffers.set_head(qid, known.unwrap_or_else(|| doorbells.head(qid)) as u16)?;
        }
    }
    ctl.workers.set_buffers(config);
    Ok(Status::SUCCESS.into())
}
