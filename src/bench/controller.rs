//! An attached controller: enable, identify, queues. Every wait is bounded.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use zerocopy::{FromBytes, IntoBytes};

use super::client::{BAR0, CONFIG, Client, Window};
use super::doorbell::Doorbells;
use super::memory::{HUGE, Memory, PAGE, Pieces};
use super::options::{Bells, Guest};
use super::queue::QueuePair;
use crate::config::ConfigError;
use crate::spec::Sqe;
use crate::spec::command::{CQE_SIZE, SQE_SIZE};
use crate::spec::commands::AdminCommand;
use crate::spec::identify::{IdentifyController, IdentifyNamespace, cns, oacs, oncs};
use crate::spec::registers::{csts, offset};

/// Guest address of the first byte of the memory: not 0, and above what 32 bits hold, to show a cut address.
pub(super) const IOVA: u64 = 1 << 32;
/// Entries of the admin queues.
const ADMIN_ENTRIES: u16 = 32;
/// PCI command register: memory space, bus master, no INTx.
const PCI_COMMAND: u16 = 0x0406;
/// CC: entry sizes 64 and 16 bytes, enabled.
const CC_ENABLE: u32 = 4 << 20 | 6 << 16 | 1;
/// Pages that are neither queues nor data: admin queues, Identify, doorbell buffers.
const OVERHEAD: usize = 8 * PAGE;

/// What the namespace is, in blocks unless said otherwise.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Bytes of a block.
    pub(super) block: u64,
    pub(super) blocks: u64,
    pub(super) read_only: bool,
    /// Most bytes of one transfer.
    pub(super) mdts: u64,
    /// Blocks of one source range of a Copy; 0 where the controller has no Copy.
    pub(super) mssrl: u64,
}

/// One controller over one socket.
#[derive(Debug)]
pub(super) struct Controller {
    path: PathBuf,
    client: Arc<Mutex<Client>>,
    pub(super) memory: Arc<Memory>,
    pieces: Pieces,
    /// Doorbells, where they are mapped.
    window: Option<(u64, Arc<Memory>)>,
    /// Bytes between doorbells.
    stride: u64,
    /// Entries of a queue, at most.
    entries: u16,
    admin: Option<QueuePair>,
    next_cid: u16,
    patience: Duration,
    oacs: u16,
    bells: Bells,
    nsid: u32,
}

/// How to attach.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attach<'a> {
    pub(super) path: &'a Path,
    /// The option that named the socket.
    pub(super) option: &'static str,
    /// Bytes of guest memory that rows need besides the admin queue.
    pub(super) room: usize,
    pub(super) guest: Guest,
    pub(super) bells: Bells,
    pub(super) posted: bool,
    pub(super) nsid: u32,
    pub(super) patience: Duration,
}

impl Controller {
    /// Attaches and gives the device its memory; the controller is not enabled yet.
    pub(super) fn attach(how: Attach<'_>) -> anyhow::Result<Self> {
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
        Self::over(&mut client, &how, &memory, &file).with_context(|| format!("{}", how.path.display())).map(
            |(window, cap)| {
                let stride = 4 << (cap >> 32 & 0xf);
                Self {
                    path: how.path.to_owned(),
                    client: Arc::new(Mutex::new(client)),
                    pieces: Pieces::new(memory.len()),
                    memory: Arc::new(memory),
                    window,
                    stride,
                    entries: (cap as u16).saturating_add(1),
                    admin: None,
                    next_cid: 0,
                    patience: how.patience,
                    oacs: 0,
                    bells: how.bells,
                    nsid: how.nsid,
                }
            },
        )
    }

    /// The part of attaching that talks. Returns the doorbell window and CAP.
    #[expect(clippy::type_complexity, reason = "used once, just above")]
    fn over(
        client: &mut Client,
        how: &Attach<'_>,
        memory: &Memory,
        file: &OwnedFd,
    ) -> anyhow::Result<(Option<(u64, Arc<Memory>)>, u64)> {
        client.check_device()?;
        let window = match how.bells {
            Bells::Auto | Bells::Mmap => client.window(offset::DOORBELLS)?,
            Bells::Trap | Bells::Shadow => None,
        };
        if how.bells == Bells::Mmap && window.is_none() {
            let remedy = "serve with --nvme doorbells=mmap, or use trap, shadow or auto";
            bail!(ConfigError::bad_option("--doorbells", "mmap", "the server's cannot be mapped", remedy));
        }
        let window =
            window.map(|window: Window| anyhow::Ok((window.offset, Arc::new(window.map()?)))).transpose()?;
        client.map(IOVA, memory.len() as u64, file.as_fd())?;
        client.write(CONFIG, 4, &PCI_COMMAND.to_le_bytes())?;
        let cap = u64::from_le_bytes(client.read(BAR0, offset::CAP)?);
        ensure!(cap >> 48 & 0xf == 0, "the controller does not take 4 KiB pages");
        Ok((window, cap))
    }

    fn client(&self) -> std::sync::MutexGuard<'_, Client> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A descriptor of the connection, to be watched for its end.
    pub(super) fn watch(&self) -> anyhow::Result<OwnedFd> {
        Ok(self.client().socket().as_fd().try_clone_to_owned()?)
    }

    /// The process that serves the socket.
    pub(super) fn server(&self) -> Option<rustix::process::Pid> {
        rustix::net::sockopt::socket_peercred(self.client().socket()).ok().map(|peer| peer.pid)
    }

    /// What doorbells are used, for the report.
    pub(super) fn doorbells(&self) -> &'static str {
        match (&self.window, self.bells) {
            (Some(_), _) => "mmap",
            (None, Bells::Shadow) => "shadow",
            (None, Bells::Auto) if self.oacs & oacs::DOORBELL_BUFFER_CONFIG != 0 => "shadow",
            (None, _) => "trap",
        }
    }

    /// Longest wait for one command.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// Is the controller alive? For the error of a command that did not end.
    pub(super) fn state(&self) -> &'static str {
        match self.client().read32(offset::CSTS) {
            Ok(value) if value & csts::CFS != 0 => "CSTS.CFS is set: the controller has failed",
            Ok(value) if value & csts::RDY == 0 => "CSTS.RDY is clear: the controller is disabled",
            Ok(_) => "its registers say that it is well",
            Err(_) => "its registers cannot be read either",
        }
    }

    /// Resets and enables; all queues and all memory taken before are gone. Then [`shape`](Self::shape)
    /// works.
    pub(super) fn enable(&mut self) -> anyhow::Result<()> {
        self.admin = None;
        self.write32(offset::CC, 0)?;
        self.ready(false)?;
        self.pieces = Pieces::new(self.memory.len());
        let sq = self.pieces.take(usize::from(ADMIN_ENTRIES) * SQE_SIZE)?;
        let cq = self.pieces.take(usize::from(ADMIN_ENTRIES) * CQE_SIZE)?;
        let doorbells = self.bells_of(0, None)?;
        self.admin = Some(QueuePair::new(Arc::clone(&self.memory), sq, cq, ADMIN_ENTRIES, doorbells));
        let last = u32::from(ADMIN_ENTRIES - 1);
        self.write32(offset::AQA, last << 16 | last)?;
        for (register, at) in [(offset::ASQ, sq), (offset::ACQ, cq)] {
            let address = IOVA + at as u64;
            self.write32(register, address as u32)?;
            self.write32(register + 4, (address >> 32) as u32)?;
        }
        self.write32(offset::CC, CC_ENABLE)?;
        self.ready(true)
    }

    fn write32(&self, register: u64, value: u32) -> anyhow::Result<()> {
        self.client().write(BAR0, register, &value.to_le_bytes())
    }

    fn ready(&self, wanted: bool) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let value = self.client().read32(offset::CSTS)?;
            ensure!(!wanted || value & csts::CFS == 0, "{}: CSTS.CFS is set", self.path.display());
            if (value & csts::RDY != 0) == wanted {
                return Ok(());
            }
            let what = if wanted { "ready" } else { "disabled" };
            ensure!(begun.elapsed() < self.patience, "{}: not {what} within --timeout", self.path.display());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Runs one admin command; its dword 0.
    fn admin(&mut self, name: &str, mut sqe: Sqe) -> anyhow::Result<u32> {
        let queue = self.admin.as_mut().context("the controller is not enabled")?;
        let cid = self.next_cid;
        self.next_cid = self.next_cid.wrapping_add(1);
        sqe.cid = cid.into();
        queue.push(&zerocopy::transmute!(sqe));
        queue.submit()?;
        let begun = Instant::now();
        loop {
            if let Some(done) = queue.pop() {
                queue.release()?;
                ensure!(done.cid == cid, "{name}: a completion of command {}, not {cid}", done.cid);
                ensure!(done.status.is_success(), "{name}: status {:?}", done.status);
                return Ok(queue.last_dword());
            }
            if begun.elapsed() > self.patience {
                let (path, state) = (self.path.display(), self.state());
                bail!("{path}: {name} did not complete within --timeout; {state}");
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    fn identify<T: FromBytes + IntoBytes>(&mut self, cns: u8, nsid: u32, at: usize) -> anyhow::Result<T> {
        let prp1 = (IOVA + at as u64).into();
        let sqe = Sqe {
            opc: AdminCommand::Identify.opcode(),
            nsid: nsid.into(),
            prp1,
            cdw10: u32::from(cns).into(),
            ..Sqe::default()
        };
        self.admin("Identify", sqe)?;
        let mut bytes = vec![0; size_of::<T>()];
        self.memory.read(at, &mut bytes);
        T::read_from_bytes(&bytes).map_err(|_| anyhow::anyhow!("Identify has a wrong size"))
    }

    /// Identifies controller and namespace.
    pub(super) fn shape(&mut self) -> anyhow::Result<Shape> {
        let at = self.pieces.take(PAGE)?;
        let ctrl: IdentifyController = self.identify(cns::CONTROLLER, 0, at)?;
        self.oacs = ctrl.oacs.get();
        if self.bells == Bells::Shadow && self.oacs & oacs::DOORBELL_BUFFER_CONFIG == 0 {
            let remedy = "serve without dbcs=off and doorbells=mmap, or use trap, mmap or auto";
            bail!(ConfigError::bad_option("--doorbells", "shadow", "the server does not offer it", remedy));
        }
        let nsid = self.nsid.to_string();
        let absent =
            |problem| ConfigError::bad_option("--nsid", &nsid, problem, "name a namespace that is there");
        let ns: IdentifyNamespace =
            self.identify(cns::NAMESPACE, self.nsid, at).map_err(|error| absent(format!("{error:#}")))?;
        if ns.nsze.get() == 0 {
            bail!(absent("no such namespace".to_owned()));
        }
        let format = ns.lbaf.get(usize::from(ns.flbas & 0xf)).context("FLBAS names no format")?;
        ensure!((9..=16).contains(&format.lbads) && format.ms.get() == 0, "an LBA format of {format:?}");
        let copies = ctrl.oncs.get() & oncs::COPY != 0;
        Ok(Shape {
            block: 1 << format.lbads,
            blocks: ns.nsze.get(),
            read_only: ns.nsattr & 1 != 0,
            mdts: match ctrl.mdts {
                0 => u64::MAX,
                n => (PAGE as u64).checked_shl(n.into()).filter(|bytes| *bytes != 0).unwrap_or(u64::MAX),
            },
            mssrl: if copies { ns.mssrl.get().into() } else { 0 },
        })
    }

    /// Most commands that may be outstanding in one queue.
    pub(super) fn max_depth(&self) -> u16 {
        self.entries.saturating_sub(1)
    }

    /// Takes memory that lives until the next [`enable`](Self::enable).
    pub(super) fn take(&mut self, len: usize) -> anyhow::Result<usize> {
        self.pieces.take(len)
    }

    /// Creates `count` queue pairs for `depth` commands each.
    pub(super) fn queues(&mut self, count: u16, depth: u16) -> anyhow::Result<Vec<QueuePair>> {
        let entries = entries_for(depth).min(self.entries);
        let granted = self.admin("Set Features (Number of Queues)", {
            let n = u32::from(count - 1);
            Sqe {
                opc: AdminCommand::SetFeatures.opcode(),
                cdw10: 7.into(),
                cdw11: (n << 16 | n).into(),
                ..Sqe::default()
            }
        })?;
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
            let sq = self.pieces.take(usize::from(entries) * SQE_SIZE)?;
            let cq = self.pieces.take(usize::from(entries) * CQE_SIZE)?;
            let doorbells = self.bells_of(qid, shadow)?;
            let pair = QueuePair::new(Arc::clone(&self.memory), sq, cq, entries, doorbells);
            let size = u32::from(entries - 1) << 16 | u32::from(qid);
            // Physically contiguous, no interrupts.
            let create = |opc, at: usize, cdw11: u32| Sqe {
                opc,
                prp1: (IOVA + at as u64).into(),
                cdw10: size.into(),
                cdw11: cdw11.into(),
                ..Sqe::default()
            };
            self.admin("Create I/O Completion Queue", create(AdminCommand::CreateCq.opcode(), cq, 1))?;
            self.admin(
                "Create I/O Submission Queue",
                create(AdminCommand::CreateSq.opcode(), sq, u32::from(qid) << 16 | 1),
            )?;
            pairs.push(pair);
        }
        if let Some([shadow, event]) = shadow {
            let [prp1, prp2] = [shadow, event].map(|at| (IOVA + at as u64).into());
            let sqe = Sqe { opc: AdminCommand::DoorbellBuffer.opcode(), prp1, prp2, ..Sqe::default() };
            self.admin("Doorbell Buffer Config", sqe)?;
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

    fn bells_of(&self, qid: u16, shadow: Option<[usize; 2]>) -> anyhow::Result<Doorbells> {
        let index = [2 * u64::from(qid), 2 * u64::from(qid) + 1];
        let at = index.map(|index| offset::DOORBELLS + index * self.stride);
        let in_page = |page: usize| index.map(|index| page + (index * self.stride) as usize);
        Ok(match (&self.window, shadow) {
            (Some((base, page)), _) => {
                let at = at.map(|at| (at - base) as usize);
                ensure!(at.iter().all(|at| at + 4 <= page.len()), "no mapped doorbell for queue {qid}");
                Doorbells::Mapped { page: Arc::clone(page), at }
            }
            (None, Some([shadow, event])) if qid > 0 => Doorbells::Shadowed {
                client: Arc::clone(&self.client),
                at,
                memory: Arc::clone(&self.memory),
                shadow: in_page(shadow),
                event: in_page(event),
            },
            (None, _) => Doorbells::Trapped { client: Arc::clone(&self.client), at },
        })
    }
}

/// Entries of a queue for `depth` commands: as many again, so that completions need not be given back before
/// the next commands go out.
fn entries_for(depth: u16) -> u16 {
    depth.saturating_mul(2).max(64)
}

/// Bytes that one queue pair takes.
pub(super) fn queue_room(depth: u16) -> usize {
    let entries = usize::from(entries_for(depth));
    (entries * SQE_SIZE).next_multiple_of(PAGE) + (entries * CQE_SIZE).next_multiple_of(PAGE)
}

/// Writes to each page: a kernel without pages left says so here, and not with a signal in the middle of a
/// run.
fn touch(memory: &Memory, guest: Guest) {
    // Huge pages are reserved by mmap; a memfd is bounded by the machine's memory, as any other memory.
    let step = if guest == Guest::Hugetlb { HUGE } else { PAGE };
    for at in (0..memory.len()).step_by(step) {
        memory.write(at, &[0]);
    }
}
