//! An attached controller: enable, identify, queues. Every wait is bounded.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nvme_host::ctrl::{ADMIN_ENTRIES, CC_EN, CC_LINUX, CFS, RDY, reg};
use nvme_host::identify::{CtrlFacts, NsFacts, OACS_DOORBELL_BUFFER, ONCS_COPY, cns};
use nvme_host::memory::{HUGE, PAGE};
use nvme_host::nvme::admin;
use nvme_host::ring::{CQE, SQE};
use nvme_host::wire::{BAR0, CONFIG};
use nvme_host::{Bells, Host, Memory, Page, Sqe};
use vfio_user_nvme::config::ConfigError;
use vfio_user_nvme::spec::Status;

use super::client::Client;
use super::options::{Doorbells, Guest};
use super::pieces::Pieces;
use super::queue::{QueueBells, QueuePair, Trap};

/// Guest address of the first byte of the memory: not 0, and above what 32 bits hold, to show a cut address.
pub(crate) const IOVA: u64 = 1 << 32;
/// PCI command register: memory space, bus master, no INTx.
const PCI_COMMAND: u16 = 0x0406;
/// Pages that are neither queues nor data: admin queues, Identify, doorbell buffers.
const OVERHEAD: usize = 8 * PAGE;

/// What the namespace is, in blocks unless said otherwise.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Bytes of a block.
    pub(crate) block: u64,
    pub(crate) blocks: u64,
    pub(crate) read_only: bool,
    /// Most bytes of one transfer.
    pub(crate) mdts: u64,
    /// Blocks of one source range of a Copy; 0 where the controller has no Copy.
    pub(crate) mssrl: u64,
}

/// One controller over one socket.
#[derive(Debug)]
pub(crate) struct Controller {
    path: PathBuf,
    client: Arc<Mutex<Client>>,
    pub(crate) memory: Arc<Memory>,
    pieces: Pieces,
    /// Doorbells, where they are mapped.
    mapped: Option<Page>,
    /// Bytes between doorbells.
    stride: u64,
    /// Entries of a queue, at most.
    entries: u16,
    admin: Option<QueuePair>,
    next_cid: u16,
    patience: Duration,
    oacs: u16,
    doorbells: Doorbells,
    nsid: u32,
}

/// How to attach.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attach<'a> {
    pub(crate) path: &'a Path,
    /// The option that named the socket.
    pub(crate) option: &'static str,
    /// Bytes of guest memory that rows need besides the admin queue.
    pub(crate) room: usize,
    pub(crate) guest: Guest,
    pub(crate) doorbells: Doorbells,
    pub(crate) posted: bool,
    pub(crate) nsid: u32,
    pub(crate) patience: Duration,
}

impl Controller {
    /// Attaches and gives the device its memory; the controller is not enabled yet.
    pub(crate) fn attach(how: Attach<'_>) -> anyhow::Result<Self> {
        let len = (how.room + OVERHEAD).next_multiple_of(HUGE);
        let (memory, file) = Memory::shared(len, how.guest == Guest::Hugetlb).map_err(|error| {
            let (value, remedy) = match how.guest {
                Guest::Hugetlb => {
                    ("hugetlb", "reserve 2 MiB pages in /proc/sys/vm/nr_hugepages, or use memfd")
                }
                Guest::Memfd => ("memfd", "ask for fewer queues, less depth or smaller blocks"),
            };
            ConfigError::bad_option("--memory", value, format!("{len} bytes: {error}"), remedy)
        })?;
        touch(&memory, how.guest);
        let mut client = Client::attach(how.path, how.option, how.patience, how.posted)?;
        let (mapped, cap) =
            Self::over(&mut client, &how, &memory, &file).with_context(|| how.path.display().to_string())?;
        Ok(Self {
            path: how.path.to_owned(),
            client: Arc::new(Mutex::new(client)),
            pieces: Pieces::new(memory.size()),
            memory: Arc::new(memory),
            mapped,
            stride: 4 << (cap >> 32 & 0xf),
            entries: (cap as u16).saturating_add(1),
            admin: None,
            next_cid: 0,
            patience: how.patience,
            oacs: 0,
            doorbells: how.doorbells,
            nsid: how.nsid,
        })
    }

    /// The part of attaching that talks. Returns the mapped doorbells and CAP.
    fn over(
        client: &mut Client,
        how: &Attach<'_>,
        memory: &Memory,
        file: &OwnedFd,
    ) -> anyhow::Result<(Option<Page>, u64)> {
        client.check_device()?;
        let mapped = match how.doorbells {
            Doorbells::Auto | Doorbells::Mmap => client.map_doorbells()?,
            Doorbells::Trap | Doorbells::Shadow => None,
        };
        if how.doorbells == Doorbells::Mmap && mapped.is_none() {
            let remedy = "serve with --nvme doorbells=mmap, or use trap, shadow or auto";
            bail!(ConfigError::bad_option("--doorbells", "mmap", "the server's cannot be mapped", remedy));
        }
        client.map(IOVA, memory.size() as u64, file.as_fd())?;
        client.write(CONFIG, 4, PCI_COMMAND.to_le_bytes())?;
        let cap = u64::from_le_bytes(client.read(BAR0, reg::CAP)?);
        ensure!(cap >> 48 & 0xf == 0, "the controller does not take 4 KiB pages");
        Ok((mapped, cap))
    }

    fn client(&self) -> std::sync::MutexGuard<'_, Client> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A descriptor of the connection, to be watched for its end.
    pub(crate) fn watch(&self) -> anyhow::Result<OwnedFd> {
        Ok(self.client().socket().as_fd().try_clone_to_owned()?)
    }

    /// The process that serves the socket.
    pub(crate) fn server(&self) -> Option<rustix::process::Pid> {
        rustix::net::sockopt::socket_peercred(self.client().socket()).ok().map(|peer| peer.pid)
    }

    /// What doorbells are used, for the report.
    pub(crate) fn doorbells(&self) -> &'static str {
        match (&self.mapped, self.doorbells) {
            (Some(_), _) => "mmap",
            (None, Doorbells::Shadow) => "shadow",
            (None, Doorbells::Auto) if self.oacs & OACS_DOORBELL_BUFFER != 0 => "shadow",
            (None, _) => "trap",
        }
    }

    /// Longest wait for one command.
    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    /// Is the controller alive? For the error of a command that did not end.
    pub(crate) fn state(&self) -> &'static str {
        match self.client().read32(reg::CSTS) {
            Ok(value) if value & CFS != 0 => "CSTS.CFS is set: the controller has failed",
            Ok(value) if value & RDY == 0 => "CSTS.RDY is clear: the controller is disabled",
            Ok(_) => "its registers say that it is well",
            Err(_) => "its registers cannot be read either",
        }
    }

    /// Resets and enables; all queues and all memory taken before are gone. Then [`shape`](Self::shape)
    /// works.
    pub(crate) fn enable(&mut self) -> anyhow::Result<()> {
        self.admin = None;
        self.write32(reg::CC, 0)?;
        self.ready(false)?;
        self.pieces = Pieces::new(self.memory.size());
        let sq = self.pieces.take(usize::from(ADMIN_ENTRIES) * SQE)?;
        let cq = self.pieces.take(usize::from(ADMIN_ENTRIES) * CQE)?;
        let bells = self.bells_of(0, None)?;
        self.admin = Some(QueuePair::new(Arc::clone(&self.memory), sq, cq, ADMIN_ENTRIES, bells));
        let last = u32::from(ADMIN_ENTRIES - 1);
        self.write32(reg::AQA, last << 16 | last)?;
        for (register, at) in [(reg::ASQ, sq), (reg::ACQ, cq)] {
            let address = IOVA + at as u64;
            self.write32(register, address as u32)?;
            self.write32(register + 4, (address >> 32) as u32)?;
        }
        self.write32(reg::CC, CC_LINUX | CC_EN)?;
        self.ready(true)
    }

    fn write32(&self, register: u64, value: u32) -> anyhow::Result<()> {
        self.client().write(BAR0, register, value.to_le_bytes())
    }

    fn ready(&self, wanted: bool) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let value = self.client().read32(reg::CSTS)?;
            ensure!(!wanted || value & CFS == 0, "{}: CSTS.CFS is set", self.path.display());
            if (value & RDY != 0) == wanted {
                return Ok(());
            }
            let what = if wanted { "ready" } else { "disabled" };
            ensure!(begun.elapsed() < self.patience, "{}: not {what} within --timeout", self.path.display());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Runs one admin command; its dword 0.
    fn admin(&mut self, name: &str, sqe: Sqe) -> anyhow::Result<u32> {
        let queue = self.admin.as_mut().context("the controller is not enabled")?;
        let cid = self.next_cid;
        self.next_cid = self.next_cid.wrapping_add(1);
        queue.push(&sqe.cid(cid).0);
        queue.submit()?;
        let begun = Instant::now();
        loop {
            if let Some(taken) = queue.pop() {
                let done = queue.whole(taken);
                queue.release()?;
                ensure!(done.cid == cid, "{name}: a completion of command {}, not {cid}", done.cid);
                let status = Status(taken.status());
                ensure!(status.is_success(), "{name}: status {status:?}");
                return Ok(done.dw0);
            }
            if begun.elapsed() > self.patience {
                let (path, state) = (self.path.display(), self.state());
                bail!("{path}: {name} did not complete within --timeout; {state}");
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Identify data, through the page at offset `at`.
    fn identify(&mut self, cns: u8, nsid: u32, at: usize) -> anyhow::Result<[u8; PAGE]> {
        let sqe = Sqe::new(admin::IDENTIFY).nsid(nsid).cdw(10, cns.into()).prp(IOVA + at as u64, 0);
        self.admin("Identify", sqe)?;
        let mut bytes = [0; PAGE];
        self.memory.read(at, &mut bytes);
        Ok(bytes)
    }

    /// Identifies controller and namespace.
    pub(crate) fn shape(&mut self) -> anyhow::Result<Shape> {
        let at = self.pieces.take(PAGE)?;
        let ctrl = CtrlFacts::parse(&self.identify(cns::CONTROLLER, 0, at)?);
        self.oacs = ctrl.oacs;
        if self.doorbells == Doorbells::Shadow && self.oacs & OACS_DOORBELL_BUFFER == 0 {
            let remedy = "serve without dbcs=off and doorbells=mmap, or use trap, mmap or auto";
            bail!(ConfigError::bad_option("--doorbells", "shadow", "the server does not offer it", remedy));
        }
        let nsid = self.nsid.to_string();
        let absent =
            |problem| ConfigError::bad_option("--nsid", &nsid, problem, "name a namespace that is there");
        let ns =
            self.identify(cns::NAMESPACE, self.nsid, at).map_err(|error| absent(format!("{error:#}")))?;
        let ns = NsFacts::parse(&ns);
        if ns.nsze == 0 {
            bail!(absent("no such namespace".to_owned()));
        }
        let (lbads, ms) = (ns.lbads, ns.ms);
        ensure!((9..=16).contains(&lbads) && ms == 0, "blocks of 2^{lbads} bytes with {ms} of metadata");
        Ok(Shape {
            block: 1 << lbads,
            blocks: ns.nsze,
            read_only: ns.write_protected,
            mdts: match ctrl.mdts {
                0 => u64::MAX,
                n => (PAGE as u64).checked_shl(n.into()).filter(|bytes| *bytes != 0).unwrap_or(u64::MAX),
            },
            mssrl: if ctrl.oncs & ONCS_COPY != 0 { ns.mssrl.into() } else { 0 },
        })
    }

    /// Most commands that may be outstanding in one queue.
    pub(crate) fn max_depth(&self) -> u16 {
        self.entries.saturating_sub(1)
    }

    /// Takes memory that lives until the next [`enable`](Self::enable).
    pub(crate) fn take(&mut self, len: usize) -> anyhow::Result<usize> {
        self.pieces.take(len)
    }

    /// Creates `count` queue pairs for `depth` commands each.
    pub(crate) fn queues(&mut self, count: u16, depth: u16) -> anyhow::Result<Vec<QueuePair>> {
        let entries = entries_for(depth).min(self.entries);
        let pairs = u32::from(count - 1);
        let number_of_queues = Sqe::new(admin::SET_FEATURES).cdw(10, 7).cdw(11, pairs << 16 | pairs);
        let granted = self.admin("Set Features (Number of Queues)", number_of_queues)?;
        let granted = (granted & 0xffff).min(granted >> 16) + 1;
        if granted < count.into() {
            let problem = format!("the server has {granted}");
            bail!(ConfigError::bad_option(
                "--queues",
                count.to_string(),
                problem,
                "ask for no more than that"
            ));
        }
        let shadow = self.shadow()?;
        let mut pairs = Vec::new();
        for qid in 1..=count {
            let sq = self.pieces.take(usize::from(entries) * SQE)?;
            let cq = self.pieces.take(usize::from(entries) * CQE)?;
            let bells = self.bells_of(qid, shadow)?;
            let pair = QueuePair::new(Arc::clone(&self.memory), sq, cq, entries, bells);
            // No interrupts.
            let create = Host::create_cq_sqe(qid, entries, IOVA + cq as u64, None);
            self.admin("Create I/O Completion Queue", create)?;
            let create = Host::create_sq_sqe(qid, entries, IOVA + sq as u64, qid);
            self.admin("Create I/O Submission Queue", create)?;
            pairs.push(pair);
        }
        if let Some(pages) = shadow {
            let [prp1, prp2] = pages.map(|at| IOVA + at as u64);
            self.admin("Doorbell Buffer Config", Sqe::new(admin::DOORBELL_BUFFER).prp(prp1, prp2))?;
        }
        Ok(pairs)
    }

    /// Offsets of the shadow doorbells and the event indices, if they are to be used.
    fn shadow(&mut self) -> anyhow::Result<Option<[usize; 2]>> {
        if self.doorbells() != "shadow" {
            return Ok(None);
        }
        let at = [self.pieces.take(PAGE)?, self.pieces.take(PAGE)?];
        for page in at {
            self.memory.clear(page, PAGE);
        }
        Ok(Some(at))
    }

    /// The doorbells of queue pair `qid`. The admin queue's are not shadowed.
    fn bells_of(&self, qid: u16, shadow: Option<[usize; 2]>) -> anyhow::Result<QueueBells> {
        let index = [2 * u64::from(qid), 2 * u64::from(qid) + 1];
        let words = index.map(|index| (index * self.stride / 4) as usize);
        if let Some(page) = &self.mapped {
            ensure!(words.iter().all(|word| *word < page.words()), "no mapped doorbell for queue {qid}");
            return Ok(QueueBells { bells: Bells::Mapped(page.clone()), words, trap: None });
        }
        let bells = match shadow.filter(|_| qid > 0) {
            Some(pages) => {
                let [shadow, events] = pages.map(|at| Page::within(Arc::clone(&self.memory), at));
                Bells::Shadow(shadow, events)
            }
            None => Bells::Registers,
        };
        let at = index.map(|index| reg::DOORBELLS + index * self.stride);
        Ok(QueueBells { bells, words, trap: Some(Trap { client: Arc::clone(&self.client), at }) })
    }
}

/// Entries of a queue for `depth` commands: as many again, so that completions need not be given back before
/// the next commands go out.
fn entries_for(depth: u16) -> u16 {
    depth.saturating_mul(2).max(64)
}

/// Bytes that one queue pair takes.
pub(crate) fn queue_room(depth: u16) -> usize {
    let entries = usize::from(entries_for(depth));
    (entries * SQE).next_multiple_of(PAGE) + (entries * CQE).next_multiple_of(PAGE)
}

/// Writes to each page: a kernel without pages left says so here, and not with a signal in the middle of a
/// run.
fn touch(memory: &Memory, guest: Guest) {
    // Huge pages are reserved by mmap; a memfd is bounded by the machine's memory, as any other memory.
    let step = if guest == Guest::Hugetlb { HUGE } else { PAGE };
    for at in (0..memory.size()).step_by(step) {
        memory.write(at, &[0]);
    }
}
