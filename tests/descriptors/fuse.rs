//! A FUSE file system of one file, whose server can be told to stop answering: what any user may mount, and pass a
//! descriptor of to whom it wants to hold up.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

use crate::host::le::{put16, put32, put64, u32_at, u64_at};

/// Bytes of the file; it is full of zeroes.
pub const SIZE: u64 = 1 << 20;

const FILE: u64 = 2;
const IN_HEADER: usize = 40;
/// More than the largest request: a write of 128 KiB.
const BUFFER: usize = 256 << 10;

mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const RELEASE: u32 = 18;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const INTERRUPT: u32 = 36;
    pub const BATCH_FORGET: u32 = 42;
}

pub struct Fuse {
    hung: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
    file: Option<File>,
    dir: TempDir,
}

impl Fuse {
    /// Mounted, its file open; nothing, with the reason printed, where that is impossible.
    pub fn new() -> Option<Fuse> {
        Fuse::mounted().inspect_err(|why| eprintln!("FUSE left out: {why}")).ok()
    }

    fn mounted() -> std::io::Result<Fuse> {
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
        let dir = tempfile::tempdir()?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let options = std::ffi::CString::new(options)?;
        mount("test", dir.path(), "fuse", MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str())?;
        rustix::fs::fcntl_setfl(&device, OFlags::RDWR | OFlags::NONBLOCK)?;
        let (hung, over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let server = {
            let (hung, over) = (Arc::clone(&hung), Arc::clone(&over));
            std::thread::spawn(move || serve(device, &hung, &over))
        };
        let mut fuse = Fuse { hung, over, server: Some(server), file: None, dir };
        let file = OpenOptions::new().read(true).write(true).open(fuse.dir.path().join("file"))?;
        fuse.file = Some(file);
        Ok(fuse)
    }

    /// The open file. A copy made of it while the server hangs cannot be closed before the end of this value.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_ref().expect("open").as_fd()
    }

    /// From now on nothing is answered.
    pub fn hang(&self) {
        self.hung.store(true, Ordering::SeqCst);
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        // With the device closed, the kernel fails whatever waits for an answer.
        self.over.store(true, Ordering::SeqCst);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
        self.file = None;
        if let Err(why) = unmount(self.dir.path(), UnmountFlags::DETACH) {
            eprintln!("{} stays mounted: {why}", self.dir.path().display());
        }
    }
}

fn serve(mut device: File, hung: &AtomicBool, over: &AtomicBool) {
    let mut buffer = vec![0; BUFFER];
    let mut unanswered = VecDeque::new();
    while !over.load(Ordering::SeqCst) {
        let tick = Timespec { tv_sec: 0, tv_nsec: Duration::from_millis(5).as_nanos() as i64 };
        let _ = poll(&mut [PollFd::new(&device, PollFlags::IN)], Some(&tick));
        let Ok(len) = device.read(&mut buffer) else { continue };
        let request = buffer[..len].to_vec();
        if hung.load(Ordering::SeqCst) {
            unanswered.push_back(request);
        } else if let Some(reply) = answer(&request) {
            let _ = device.write(&reply);
        }
    }
}

/// The whole reply to a request, header included; nothing where none belongs.
fn answer(request: &[u8]) -> Option<Vec<u8>> {
    let (opcode, node) = (u32_at(request, 4), u64_at(request, 16));
    let body = match opcode {
        op::INIT => {
            let mut out = vec![0; 64];
            put32(&mut out, 0, 7);
            put32(&mut out, 4, 31);
            put16(&mut out, 16, 16);
            put16(&mut out, 18, 12);
            put32(&mut out, 20, 128 << 10);
            put32(&mut out, 24, 1);
            Ok(out)
        }
        op::LOOKUP if &request[IN_HEADER..] == b"file\0" => {
            let mut out = vec![0; 40];
            put64(&mut out, 0, FILE);
            out.extend(attributes(FILE));
            Ok(out)
        }
        op::LOOKUP => Err(libc_errno::ENOENT),
        op::GETATTR => {
            // Valid for no time: each look at it is a question.
            let mut out = vec![0; 16];
            out.extend(attributes(node));
            Ok(out)
        }
        op::OPEN => Ok(vec![0; 16]),
        op::READ => Ok(vec![0; u32_at(request, IN_HEADER + 16) as usize]),
        op::FLUSH | op::RELEASE => Ok(Vec::new()),
        op::FORGET | op::BATCH_FORGET | op::INTERRUPT => return None,
        _ => Err(libc_errno::ENOSYS),
    };
    let (error, body) = body.map_or_else(|errno| (-errno, Vec::new()), |body| (0, body));
    let mut reply = vec![0; 16];
    put32(&mut reply, 0, (16 + body.len()) as u32);
    put32(&mut reply, 4, error as u32);
    put64(&mut reply, 8, u64_at(request, 8));
    reply.extend(body);
    Some(reply)
}

fn attributes(node: u64) -> [u8; 88] {
    let mut out = [0; 88];
    put64(&mut out, 0, node);
    let (mode, size) = if node == FILE { (0o100_666, SIZE) } else { (0o40_777, 0) };
    put64(&mut out, 8, size);
    put32(&mut out, 60, mode);
    put32(&mut out, 64, 1);
    put32(&mut out, 80, 4096);
    out
}

mod libc_errno {
    pub const ENOENT: i32 = 2;
    pub const ENOSYS: i32 = 38;
}
