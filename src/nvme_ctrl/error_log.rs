//! The Error Information log (01h): which commands failed last, of all queues, and how many did over all
//! time.
//!
//! Every failure is counted and noted, but for commands that ended because the host asked for that. Real
//! devices leave out what they please; here a host that wonders why something was refused is to find it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, TryLockError};

use zerocopy::{FromZeros, IntoBytes};

use crate::spec::command::Cqe;
use crate::spec::commands::NvmCommand;
use crate::spec::log_page::ErrorEntry;
use crate::spec::{Sqe, Status};

/// Error Log Page Entries (Identify Controller), 0-based.
pub const ELPE: u8 = 63;

/// What an entry says that names no queue, no command and no parameter.
const NONE: u16 = 0xffff;

/// The log of one controller.
#[derive(Debug, Default)]
pub struct ErrorLog {
    count: AtomicU64,
    /// Newest first, at most `ELPE` + 1.
    entries: Mutex<VecDeque<ErrorEntry>>,
}

/// A command that failed, as the log names it.
#[derive(Clone, Copy, Debug)]
pub struct Failed {
    /// SQID.
    pub sqid: u16,
    /// CID.
    pub cid: u16,
    /// OPC.
    pub opc: u8,
    /// NSID.
    pub nsid: u32,
    /// SLBA, or whatever stands in its place.
    pub slba: u64,
}

impl Failed {
    /// The command `sqe` of queue `sqid`.
    pub fn of(sqid: u16, sqe: &Sqe) -> Self {
        Self { sqid, cid: sqe.cid.get(), opc: sqe.opc, nsid: sqe.nsid.get(), slba: sqe.slba() }
    }
}

impl ErrorLog {
    /// Notes that `command` ends with `status`. Returns the status to post: with More, if the log has an
    /// entry of it.
    #[cold]
    pub fn failed(&self, command: Failed, status: Status) -> Status {
        // The host asked for these two, by Abort or by deleting the queue.
        if [Status::ABORT_REQUESTED, Status::SQ_DELETION].contains(&status) {
            return status;
        }
        let Failed { sqid, cid, opc, nsid, slba } = command;
        let mut entry = ErrorEntry::new_zeroed();
        entry.sqid = sqid.into();
        entry.cid = cid.into();
        entry.status = Cqe::status_word(status.more(), false).into();
        // Byte 0, bit 0 of the command; of others it is not told which field it was.
        let location = if status.code() == Status::INVALID_OPCODE { 0 } else { NONE };
        entry.location = location.into();
        if sqid != 0 && NvmCommand::of(opc).is_some_and(NvmCommand::has_lba) {
            entry.lba = slba.into();
        }
        entry.nsid = nsid.into();
        entry.opc = opc;
        if self.add(entry) { status.more() } else { status }
    }

    /// Notes an invalid doorbell write, which names no queue and no command.
    pub fn doorbell(&self) {
        let mut entry = ErrorEntry::new_zeroed();
        entry.sqid = NONE.into();
        entry.cid = NONE.into();
        entry.location = NONE.into();
        self.add(entry);
    }

    /// Controller Level Reset: the entries go, the count stays, as the specification has it.
    pub fn clear(&self) {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Number of Error Information Log Entries (SMART): all there ever were.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// The log page.
    pub fn bytes(&self) -> Vec<u8> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let mut log: Vec<u8> = entries.iter().flat_map(|entry| entry.as_bytes().to_vec()).collect();
        drop(entries);
        log.resize((usize::from(ELPE) + 1) * size_of::<ErrorEntry>(), 0);
        log
    }

    /// No thread that serves a queue waits for another one here: an entry that comes while the log is in use
    /// is counted and lost, and its command has no More.
    fn add(&self, mut entry: ErrorEntry) -> bool {
        let entries = match self.entries.try_lock() {
            Ok(entries) => Some(entries),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        // Within the lock, so that newer entries have higher counts.
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let Some(mut entries) = entries else { return false };
        entry.count = count.into();
        entry.version = 1; // opcode and command set are valid
        entries.truncate(usize::from(ELPE));
        entries.push_front(entry);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPCODE: Failed = Failed { sqid: 1, cid: 2, opc: 0xff, nsid: 3, slba: 4 };

    #[test]
    fn what_comes_while_the_log_is_in_use_is_counted_and_lost() {
        let log = ErrorLog::default();
        let status = Status::INVALID_OPCODE.dnr();
        assert_eq!(log.failed(OPCODE, status), status.more());
        let in_use = log.entries.lock().unwrap();
        assert_eq!(log.failed(OPCODE, status), status, "no More");
        drop(in_use);
        assert_eq!((log.count(), log.entries.lock().unwrap().len()), (2, 1));
        log.failed(OPCODE, status);
        assert_eq!(log.entries.lock().unwrap()[0].count.get(), 3);
    }

    #[test]
    fn all_threads_together_keep_the_order() {
        let log = ErrorLog::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        log.failed(OPCODE, Status::INVALID_OPCODE);
                    }
                });
            }
        });
        assert_eq!(log.count(), 2000);
        let entries = log.entries.lock().unwrap();
        assert!(entries.len() <= usize::from(ELPE) + 1);
        assert!(entries.iter().zip(entries.iter().skip(1)).all(|(new, old)| new.count > old.count));
    }
}
