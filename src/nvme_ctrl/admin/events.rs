//! Asynchronous events: requests of the host (0Ch) and what there is to report.

use std::collections::VecDeque;

use super::super::controller::Controller;
use super::super::io::Outcome;
use super::Reply;
use crate::spec::log_page::lid;
use crate::spec::{Sqe, Status};

/// Asynchronous event type (completion DW0 2:0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Error status.
    Error = 0,
    /// SMART / health status.
    Smart = 1,
    /// Notice.
    Notice = 2,
}

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    kind: Kind,
    info: u8,
    log: u8,
}

impl Event {
    /// Write to Invalid Doorbell Register.
    pub const INVALID_DOORBELL: Self = Self { kind: Kind::Error, info: 0, log: lid::ERROR };
    /// Invalid Doorbell Write Value.
    pub const INVALID_DOORBELL_VALUE: Self = Self { kind: Kind::Error, info: 1, log: lid::ERROR };
    /// NVM Subsystem Reliability: all media is read-only.
    pub const READ_ONLY: Self = Self { kind: Kind::Smart, info: 0, log: lid::SMART };
    /// Temperature Threshold.
    pub const TEMPERATURE: Self = Self { kind: Kind::Smart, info: 1, log: lid::SMART };

    /// Attached Namespace Attribute Changed.
    pub const NAMESPACE_CHANGED: Self = Self { kind: Kind::Notice, info: 0, log: lid::CHANGED_NS };

    fn dw0(self) -> u32 {
        self.kind as u32 | u32::from(self.info) << 8 | u32::from(self.log) << 16
    }
}

/// Requests waiting for events, events waiting for requests.
#[derive(Debug)]
pub struct Events {
    limit: usize,
    requests: VecDeque<u16>,
    queued: VecDeque<Event>,
    /// Types reported and not yet cleared by reading their log; no further event of the type until then.
    masked: [bool; 8],
}

impl Events {
    /// `aerl`: Asynchronous Event Request Limit, 0-based.
    pub fn new(aerl: u8) -> Self {
        Self {
            limit: usize::from(aerl) + 1,
            requests: VecDeque::new(),
            queued: VecDeque::new(),
            masked: [false; 8],
        }
    }

    /// Takes a request back (Abort).
    pub fn forget(&mut self, cid: u16) -> bool {
        let before = self.requests.len();
        self.requests.retain(|&request| request != cid);
        self.requests.len() < before
    }

    /// Queues an event. One of each kind is enough: the log tells the rest, and the queue stays bounded.
    fn push(&mut self, event: Event) {
        if !self.queued.contains(&event) {
            self.queued.push_back(event);
        }
    }

    /// The host has read log page `log` (RAE = 0): events of its type may be reported again, and those that wait are
    /// answered by that reading.
    pub fn clear(&mut self, log: u8) {
        for (kind, of) in
            [(Kind::Error, lid::ERROR), (Kind::Smart, lid::SMART), (Kind::Notice, lid::CHANGED_NS)]
        {
            if log == of {
                self.masked[kind as usize] = false;
                self.queued.retain(|event| event.kind != kind);
            }
        }
    }

    fn deliverable(&self) -> Option<(u16, Event)> {
        let event = self.queued.iter().find(|event| !self.masked[event.kind as usize])?;
        Some((*self.requests.front()?, *event))
    }

    fn delivered(&mut self, event: Event) {
        self.requests.pop_front();
        self.queued.retain(|queued| *queued != event);
        self.masked[event.kind as usize] = true;
    }
}

impl Controller {
    pub(super) fn async_event_request(&mut self, sqe: &Sqe) -> Result<Reply, Status> {
        let events = &mut self.admin.events;
        if events.requests.len() >= events.limit {
            return Err(Status::AER_LIMIT.dnr());
        }
        events.requests.push_back(sqe.cid.get());
        Ok(Reply::Parked)
    }

    /// A doorbell of a queue that does not exist was written. The write has no other effect.
    pub(in super::super) fn invalid_doorbell(&mut self) {
        log::warn!("guest rang the doorbell of a queue that does not exist");
        self.shared.errors.doorbell();
        self.report(Event::INVALID_DOORBELL);
    }

    /// A doorbell was written with a value its queue cannot have. The write has no other effect.
    pub(in super::super) fn invalid_doorbell_value(&mut self) {
        log::warn!("guest rang a doorbell with a value its queue cannot have");
        self.shared.errors.doorbell();
        self.report(Event::INVALID_DOORBELL_VALUE);
    }

    pub(super) fn report(&mut self, event: Event) {
        self.admin.events.push(event);
        self.deliver_events();
    }

    /// Completes requests with events while there are both and the queue has room.
    pub(super) fn deliver_events(&mut self) {
        if !self.bus_master {
            return;
        }
        while let Some((cid, event)) = self.admin.events.deliverable() {
            let outcome = Outcome { status: Status::SUCCESS, dw0: event.dw0() };
            if !self.admin_complete_unreserved(cid, outcome) {
                return;
            }
            self.admin.events.delivered(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_masked_until_its_log_is_read() {
        let mut events = Events::new(3);
        events.requests.extend([7, 8]);
        events.push(Event::INVALID_DOORBELL);
        let (cid, event) = events.deliverable().unwrap();
        assert_eq!((cid, event.dw0()), (7, 0x01_00_00));
        events.delivered(event);
        events.push(Event::INVALID_DOORBELL_VALUE);
        assert_eq!(events.deliverable(), None);
        events.clear(lid::SMART);
        assert_eq!(events.deliverable(), None);
        events.clear(lid::ERROR);
        assert_eq!(events.deliverable(), None, "what waited was in the log that was read");
        events.push(Event::INVALID_DOORBELL_VALUE);
        assert_eq!(events.deliverable(), Some((8, Event::INVALID_DOORBELL_VALUE)));
    }
}
