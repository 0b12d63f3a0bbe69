//! Asynchronous events: requests of the host (0Ch) and what there is to report.

use std::collections::VecDeque;

use crate::spec::feature::notice;
use crate::spec::log_page::{lid, warning};

/// Asynchronous event type (completion DW0 2:0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Error status.
    Error = 0,
    /// SMART / health status.
    Smart = 1,
    /// Notice.
    Notice = 2,
}

/// One event, with all that depends on which it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    kind: Kind,
    info: u8,
    /// The log page by whose reading the host clears it.
    log: u8,
    /// The bit of Asynchronous Event Configuration by which the host asks for it; 0 if it comes unasked.
    pub asked: u32,
}

impl Event {
    /// Write to Invalid Doorbell Register.
    pub const INVALID_DOORBELL: Self = Self { kind: Kind::Error, info: 0, log: lid::ERROR, asked: 0 };
    /// Invalid Doorbell Write Value.
    pub const INVALID_DOORBELL_VALUE: Self = Self { kind: Kind::Error, info: 1, log: lid::ERROR, asked: 0 };
    /// One for each bit of Critical Warning: NVM Subsystem Reliability, but for the first two, which have their own.
    pub const WARNINGS: [Self; 6] = [
        Self::warning(2, warning::SPARE),
        Self::warning(1, warning::TEMPERATURE),
        Self::warning(0, warning::RELIABILITY),
        Self::warning(0, warning::READ_ONLY),
        Self::warning(0, warning::BACKUP),
        Self::warning(0, warning::PMR),
    ];
    /// Attached Namespace Attribute Changed.
    pub const NAMESPACE_CHANGED: Self =
        Self { kind: Kind::Notice, info: 0, log: lid::CHANGED_NS, asked: notice::NAMESPACE };

    const fn warning(info: u8, bit: u8) -> Self {
        Self { kind: Kind::Smart, info, log: lid::SMART, asked: bit as u32 }
    }

    /// For people: what it is called.
    pub const fn name(self) -> &'static str {
        match (self.kind, self.info) {
            (Kind::Error, 0) => "Write to Invalid Doorbell Register",
            (Kind::Error, _) => "Invalid Doorbell Write Value",
            (Kind::Smart, 0) => "NVM Subsystem Reliability",
            (Kind::Smart, 1) => "Temperature Threshold",
            (Kind::Smart, _) => "Spare Below Threshold",
            (Kind::Notice, _) => "Attached Namespace Attribute Changed",
        }
    }

    /// DW0 of the completion that reports it.
    pub fn dw0(self) -> u32 {
        self.kind as u32 | u32::from(self.info) << 8 | u32::from(self.log) << 16
    }
}

/// Requests waiting for events, events waiting for requests.
#[derive(Debug)]
pub struct Events {
    limit: usize,
    requests: VecDeque<u16>,
    queued: VecDeque<Event>,
    /// Logs of events that were reported and that the host has not read since; no further event of theirs
    /// until then. The specification says so of event types, each of which has one log here.
    masked: Vec<u8>,
}

impl Events {
    /// `aerl`: Asynchronous Event Request Limit, 0-based.
    pub fn new(aerl: u8) -> Self {
        Self {
            limit: usize::from(aerl) + 1,
            requests: VecDeque::new(),
            queued: VecDeque::new(),
            masked: Vec::new(),
        }
    }

    /// Requests outstanding.
    pub fn requests(&self) -> usize {
        self.requests.len()
    }

    /// What waits for a request, or for a log to be read.
    pub fn waiting(&self) -> impl Iterator<Item = Event> {
        self.queued.iter().copied()
    }

    /// Logs that are to be read before their events are reported again.
    pub fn unread(&self) -> &[u8] {
        &self.masked
    }

    /// Takes a request back (Abort).
    pub fn forget(&mut self, cid: u16) -> bool {
        let before = self.requests.len();
        self.requests.retain(|&request| request != cid);
        self.requests.len() < before
    }

    /// Takes a request in; false when there are as many as may be.
    #[must_use]
    pub fn request(&mut self, cid: u16) -> bool {
        let room = self.requests.len() < self.limit;
        if room {
            self.requests.push_back(cid);
        }
        room
    }

    /// Queues an event that the host has asked for in `configuration`. One of each is enough: the log tells
    /// the rest, and the queue stays bounded.
    pub fn push(&mut self, event: Event, configuration: u32) {
        let asked = event.asked == 0 || configuration & event.asked != 0;
        if asked && !self.queued.contains(&event) {
            self.queued.push_back(event);
        }
    }

    /// The host has read log page `log` (RAE = 0): its events may be reported again, and those that wait are
    /// answered by that reading.
    pub fn clear(&mut self, log: u8) {
        self.masked.retain(|masked| *masked != log);
        self.queued.retain(|event| event.log != log);
    }

    /// A request (CID) and the event that completes it.
    pub fn deliverable(&self) -> Option<(u16, Event)> {
        let event = self.queued.iter().find(|event| !self.masked.contains(&event.log))?;
        Some((*self.requests.front()?, *event))
    }

    /// What [`Self::deliverable`] said was done.
    pub fn delivered(&mut self, event: Event) {
        self.requests.pop_front();
        self.queued.retain(|queued| *queued != event);
        self.masked.push(event.log);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPERATURE: Event = Event::WARNINGS[1];

    #[test]
    fn events_are_masked_until_their_log_is_read() {
        let mut events = Events::new(3);
        events.requests.extend([7, 8]);
        events.push(Event::INVALID_DOORBELL, 0);
        let (cid, event) = events.deliverable().unwrap();
        assert_eq!((cid, event.dw0()), (7, 0x01_00_00));
        events.delivered(event);
        events.push(Event::INVALID_DOORBELL_VALUE, 0);
        assert_eq!(events.deliverable(), None);
        events.clear(lid::SMART);
        assert_eq!(events.deliverable(), None);
        events.clear(lid::ERROR);
        assert_eq!(events.deliverable(), None, "what waited was in the log that was read");
        events.push(Event::INVALID_DOORBELL_VALUE, 0);
        assert_eq!(events.deliverable(), Some((8, Event::INVALID_DOORBELL_VALUE)));
        events.delivered(Event::INVALID_DOORBELL_VALUE);
        assert!(events.request(9));
        events.push(TEMPERATURE, !TEMPERATURE.asked);
        assert_eq!(events.deliverable(), None, "not asked for");
        events.push(TEMPERATURE, TEMPERATURE.asked);
        assert_eq!(events.deliverable(), Some((9, TEMPERATURE)), "another log's");
    }
}
