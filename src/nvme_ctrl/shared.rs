//! What the control thread and the workers both see. Values here are atomics or immutable: nobody waits for a
//! lock.

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::doorbells::Doorbells;
use super::error_log::ErrorLog;
use crate::namespace::{Cntlid, Table};

/// Raises MSI-X vectors. Lock-free; called from any thread.
pub trait InterruptSink: Send + Sync {
    /// Raises `vector`, or does nothing when the client gave it no eventfd.
    ///
    /// From a worker: what a client does to its eventfd can make it wait until it is interrupted.
    fn raise(&self, vector: u16);

    /// As [`Self::raise`], never waits: from the control thread.
    fn raise_at_once(&self, vector: u16) {
        self.raise(vector);
    }
}

/// State of one controller shared by its threads.
pub struct Shared {
    /// Doorbell values.
    pub doorbells: Doorbells,
    /// Which controller this is to its namespaces.
    pub cntlid: Cntlid,
    /// Other controllers may have the same namespaces.
    pub is_shared: bool,
    /// Attached namespaces.
    pub namespaces: Table,
    /// Interrupts out.
    pub interrupts: Arc<dyn InterruptSink>,
    /// Volatile Write Cache feature: off makes every write durable before its completion.
    pub write_cache: AtomicBool,
    /// Copy descriptor formats enabled now (Host Behavior Support CDFE, OR the `cdfe` property).
    pub cdfe: AtomicU16,
    /// CC.MPS while the controller is enabled: log2 of the page size minus 12.
    pub mps: AtomicU16,
    /// Interrupt Coalescing feature, CDW11: aggregation time in 100 us in 15:8, threshold in 7:0, 0-based.
    pub coalescing: AtomicU32,
    /// Interrupt Vector Configuration, Coalescing Disable by vector.
    pub vector_cd: Box<[AtomicBool]>,
    /// A worker has reported an invalid doorbell value, and the control thread has not seen it yet.
    pub invalid_doorbell: AtomicBool,
    /// For the SMART log.
    pub counters: Counters,
    /// The Error Information log.
    pub errors: ErrorLog,
    /// What it offers.
    pub limits: Limits,
    /// No command is fetched until this is over: whoever runs the device wants it drained.
    pub paused: AtomicBool,
}

/// What a controller offers, as Identify Controller says it. Whoever runs the device may change it: commands that are
/// fetched afterwards are judged by it.
#[derive(Debug)]
pub struct Limits {
    max_transfer: AtomicU64,
    ocfs: AtomicU16,
    copy: AtomicBool,
}

impl Limits {
    /// `mdts` as in Identify Controller, at least 1; of `ocfs` the formats that there are. Copy is offered.
    pub fn new(mdts: u8, ocfs: u16) -> Self {
        let limits =
            Self { max_transfer: AtomicU64::new(0), ocfs: AtomicU16::new(0), copy: AtomicBool::new(true) };
        limits.set_mdts(mdts);
        limits.set_ocfs(ocfs);
        limits
    }

    /// Largest transfer in bytes (MDTS).
    #[inline]
    pub fn max_transfer(&self) -> u64 {
        self.max_transfer.load(Ordering::Relaxed)
    }

    /// For [`Self::max_transfer`]: 2^mdts pages of 4 KiB.
    pub fn set_mdts(&self, mdts: u8) {
        self.max_transfer.store(4096 << mdts.min(20), Ordering::Relaxed);
    }

    /// Copy descriptor formats offered (OCFS).
    pub fn ocfs(&self) -> u16 {
        self.ocfs.load(Ordering::Relaxed)
    }

    /// For [`Self::ocfs`]; formats that there are not are left out.
    pub fn set_ocfs(&self, ocfs: u16) {
        self.ocfs.store(ocfs & crate::copy::OCFS, Ordering::Relaxed);
    }

    /// Is Copy among the commands (ONCS)?
    pub fn has_copy(&self) -> bool {
        self.copy.load(Ordering::Relaxed)
    }

    /// For [`Self::has_copy`].
    pub fn set_copy(&self, on: bool) {
        self.copy.store(on, Ordering::Relaxed);
    }
}

impl Shared {
    /// Bytes of a memory page (CC.MPS).
    pub fn page_size(&self) -> u64 {
        4096 << self.mps.load(Ordering::Relaxed)
    }

    /// May the power take what some namespace was given (Identify Controller VWC)? Where every write is
    /// durable at its completion, a host is to know, so that it sends no flushes. QEMU says yes always and
    /// lets the host turn `cache=writethrough` off: here the one who runs the device has the last word.
    pub fn has_volatile_cache(&self) -> bool {
        let namespaces = self.namespaces.load();
        let mut all = namespaces.iter().peekable();
        all.peek().is_none() || all.any(|ns| ns.disk.volatile_cache())
    }
}

/// Counts for SMART, as everybody who counts has them.
#[derive(Debug, Default)]
pub struct Counters {
    /// Of all that is not worth a tally of one's own: each worker's commands with operations on files.
    common: Tally,
    /// One of each worker, which alone adds to it. The lock is taken when a worker starts and when a log is
    /// read.
    own: Mutex<Vec<Arc<Tally>>>,
}

impl std::ops::Deref for Counters {
    type Target = Tally;

    fn deref(&self) -> &Tally {
        &self.common
    }
}

impl Counters {
    /// A tally for one worker, counted in with all others.
    pub fn tally(&self) -> Arc<Tally> {
        let tally = Arc::new(Tally::default());
        self.own.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&tally));
        tally
    }

    /// The sum of one count over all who count.
    pub fn sum(&self, count: impl Fn(&Tally) -> &AtomicU64) -> u64 {
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let all = own.iter().map(|tally| &**tally).chain([&self.common]);
        all.fold(0, |sum, tally| sum.wrapping_add(count(tally).load(Ordering::Relaxed)))
    }
}

/// Commands completed with success, and bytes they moved. On cache lines of its own: it is written for each
/// command.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Tally {
    /// SMART Host Read Commands: Read, Compare and Copy.
    pub reads: AtomicU64,
    /// User Data Out Commands: Write and Copy.
    pub writes: AtomicU64,
    /// Bytes of SMART Data Units Read Commands: Read, Compare and Verify.
    pub bytes_read: AtomicU64,
    /// Bytes of User Data Out Commands.
    pub bytes_written: AtomicU64,
    /// Commands that failed for the medium.
    pub media_errors: AtomicU64,
    /// Copies, which are counted above too.
    pub copies: AtomicU64,
    /// Bytes that they copied.
    pub bytes_copied: AtomicU64,
}

impl Tally {
    /// One completed command that gave the host `bytes`.
    pub fn read(&self, bytes: u64) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.bytes_read.fetch_add(bytes, Ordering::Relaxed);
    }

    /// One completed command that took `bytes` from the host.
    pub fn wrote(&self, bytes: u64) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.bytes_written.fetch_add(bytes, Ordering::Relaxed);
    }

    /// As [`read`](Self::read), in a tally that only the caller's thread adds to.
    pub fn read_alone(&self, bytes: u64) {
        add_alone(&self.reads, 1);
        add_alone(&self.bytes_read, bytes);
    }

    /// As [`wrote`](Self::wrote), in a tally that only the caller's thread adds to.
    pub fn wrote_alone(&self, bytes: u64) {
        add_alone(&self.writes, 1);
        add_alone(&self.bytes_written, bytes);
    }

    /// One completed Verify of `bytes`: no host read, for the host gets none of them, but data units read.
    pub fn verified(&self, bytes: u64) {
        self.bytes_read.fetch_add(bytes, Ordering::Relaxed);
    }

    /// One completed Copy of `bytes`.
    ///
    /// The definitions of the NVM Command Set specification decide (1.4.2.7, 8 and 10 of revision 1.2): Copy
    /// is a SMART Host Read Command and a User Data Out Command, which is one that makes the controller write
    /// user data, whether or not they come from the host; and Data Units Written leaves the list of commands
    /// that count to these definitions. It is no SMART Data Units Read Command. Older texts count nothing of
    /// it, for nothing passes between host and controller; QEMU counts a command of 0 bytes.
    pub fn copied(&self, bytes: u64) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.wrote(bytes);
        self.copies.fetch_add(1, Ordering::Relaxed);
        self.bytes_copied.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Without the locked instruction that several who add would need.
fn add_alone(count: &AtomicU64, more: u64) {
    count.store(count.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}
