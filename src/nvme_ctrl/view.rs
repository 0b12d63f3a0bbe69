//! A controller as whoever runs it sees it from outside. Registers and masks are hexadecimal texts, all else is numbers;
//! names are the specification's.

use serde::Serialize;

/// What it is at, in short, and what it offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ControllerView {
    /// Identify Controller CNTLID.
    pub cntlid: u16,
    /// CC.EN: a host has enabled it.
    pub enabled: bool,
    /// CSTS.RDY: it takes commands.
    pub ready: bool,
    /// CSTS.CFS: it cannot go on before it is reset.
    pub fatal: bool,
    /// It fetches no command, for it was drained.
    pub paused: bool,
    /// Identify Controller MDTS.
    pub mdts: u8,
    /// The same after the next reset, if that is to be another.
    pub mdts_after_reset: Option<u8>,
    /// Identify Controller OCFS.
    pub ocfs: String,
    /// Copy descriptor formats enabled whatever the host has set.
    pub cdfe: String,
    /// Copy is among its commands (ONCS).
    pub copy: bool,
    /// Composite temperature in kelvin.
    pub temperature: u16,
    /// Available spare in percent.
    pub spare: u8,
    /// Critical Warning, with what follows from the others.
    pub critical_warning: String,
}

/// What it has done since it was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ControllerStats {
    /// Identify Controller CNTLID.
    pub cntlid: u16,
    /// SMART Host Read Commands: Read, Compare and Copy.
    pub host_read_commands: u64,
    /// SMART Host Write Commands: Write and Copy.
    pub host_write_commands: u64,
    /// Bytes read by Read, Compare and Verify.
    pub bytes_read: u64,
    /// Bytes written by Write and Copy.
    pub bytes_written: u64,
    /// Copies that succeeded.
    pub copies: u64,
    /// Bytes that they copied.
    pub bytes_copied: u64,
    /// Commands that failed for the medium.
    pub media_errors: u64,
    /// Commands that failed, and doorbells that could not be.
    pub error_log_entries: u64,
    /// Times that CC.EN made it ready.
    pub enabled: u64,
    /// Admin commands taken.
    pub admin_commands: Vec<Counted>,
    /// Log pages read.
    pub log_pages: Vec<Counted>,
    /// Asynchronous events sent: their completion's DW0.
    pub events: Vec<Counted>,
}

/// How often there was something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Counted {
    /// Opcode, log page identifier or DW0, hexadecimal.
    pub id: String,
    /// Its name in the specification.
    pub name: &'static str,
    /// How often.
    pub count: u64,
}

/// What its control thread's part has in hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ControllerState {
    /// Identify Controller CNTLID.
    pub cntlid: u16,
    /// BAR0.
    pub registers: RegisterState,
    /// Bus Master Enable, and not in D3hot.
    pub bus_master: bool,
    /// No command is in flight since the last reset.
    pub quiet: bool,
    /// Commands wait until it is drained or released.
    pub paused: bool,
    /// CC.EN was set, and old commands are still in flight.
    pub enable_waits: bool,
    /// The admin queues, while it is enabled.
    pub admin_queue: Option<AdminQueueState>,
    /// Asynchronous Event Configuration.
    pub async_event_configuration: String,
    /// Asynchronous Event Requests outstanding.
    pub async_event_requests: usize,
    /// Events that wait for a request, or for their log to be read: completion DW0.
    pub events_waiting: Vec<String>,
    /// Logs of events that were reported and that the host has not read since.
    pub logs_unread: Vec<u8>,
    /// NSIDs in log 04h.
    pub namespaces_changed: Vec<u32>,
    /// Copy descriptor formats enabled by the host or in spite of it.
    pub cdfe_in_force: String,
    /// Volatile Write Cache.
    pub write_cache: bool,
    /// Aborts under way.
    pub aborts: u8,
    /// What workers owe to the control thread.
    pub awaited: Vec<String>,
    /// How many workers there are.
    pub workers: usize,
}

/// The registers of a controller, hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "the specification's names")]
pub struct RegisterState {
    pub cap: String,
    pub vs: String,
    pub intm: String,
    pub cc: String,
    pub csts: String,
    pub aqa: String,
    pub asq: String,
    pub acq: String,
}

/// The admin queues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AdminQueueState {
    /// Entries.
    pub sq_size: u32,
    /// The entry that is fetched next.
    pub sq_head: u16,
    /// As the host's doorbell has it.
    pub sq_tail: u16,
    /// Entries.
    pub cq_size: u32,
    /// As the host's doorbell has it.
    pub cq_head: u16,
    /// The entry that is written next.
    pub cq_tail: u16,
}

/// What one worker has in hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WorkerState {
    /// Bus Master Enable is clear: it fetches nothing.
    pub off_bus: bool,
    /// It failed, and fetches nothing before the controller is reset.
    pub failed: bool,
    /// A reset waits for its commands.
    pub resetting: bool,
    /// It flushes all namespaces.
    pub flushing: bool,
    /// Commands in flight.
    pub in_flight: usize,
    /// Copies of them that wait for bounce memory.
    pub waiting_for_memory: usize,
    /// Its completion queues.
    pub completion_queues: Vec<CqState>,
    /// The submission queues that post to them.
    pub submission_queues: Vec<SqState>,
    /// The commands, or the first of them.
    pub commands: Vec<CommandState>,
}

/// A completion queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CqState {
    /// CQID.
    pub qid: u16,
    /// Entries.
    pub size: u32,
    /// As the host's doorbell had it when it was last looked at.
    pub head: u16,
    /// The entry that is written next.
    pub tail: u16,
    /// Interrupt vector, if interrupts are enabled.
    pub vector: Option<u16>,
}

/// A submission queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SqState {
    /// SQID.
    pub qid: u16,
    /// The completion queue that it posts to.
    pub cqid: u16,
    /// Entries.
    pub size: u32,
    /// The entry that is fetched next.
    pub head: u16,
    /// As the host's doorbell had it when it was last looked at.
    pub tail: u16,
    /// Commands fetched and not yet ended.
    pub in_flight: usize,
    /// It is being deleted.
    pub deleting: bool,
}

/// A command in flight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CommandState {
    /// SQID.
    pub sqid: u16,
    /// CID.
    pub cid: u16,
    /// Opcode.
    pub opcode: u8,
    /// Its name in the specification.
    pub name: &'static str,
    /// NSID.
    pub nsid: u32,
    /// CDW10 and CDW11.
    pub slba: u64,
    /// Microseconds since it was fetched.
    pub age_us: u64,
    /// It waits for bounce memory that other Copies hold.
    pub waits_for_memory: bool,
    /// It posts nothing any more.
    pub queue_is_gone: bool,
    /// Of a Copy, what it is about to do.
    pub copy: Option<PlanState>,
}

/// What a Copy does, in blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlanState {
    /// The destination.
    pub nsid: u32,
    /// Where it goes.
    pub sdlba: u64,
    /// Blocks of all ranges together.
    pub nlb: u64,
    /// How many ranges.
    pub ranges: usize,
    /// The first of them.
    pub first_ranges: Vec<RangeState>,
}

/// A source range of a Copy, in blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RangeState {
    /// Where it comes from.
    pub nsid: u32,
    /// Its first block there.
    pub slba: u64,
    /// Blocks.
    pub nlb: u64,
}
