//! Descriptors that hold up whoever touches or closes them: files of a FUSE server that does not answer, TCP sockets that
//! linger, eventfds that are full. They harm nobody but the client that sent them.
//!
//! A test target of its own, one test at a time: a child that another test starts meanwhile would inherit such
//! descriptors, and wait for them before it becomes its program.

mod fuse;

use std::io::{ErrorKind, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use nvme_host as host;

use crate::fuse::Fuse;
use crate::host::client::{BAR0, CONFIG, Client, access, cmd, irq, message};
use crate::host::ctrl::reg;
use crate::host::nvme::io;
use crate::host::*;

/// Held by a test to its end.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This client, and the next one, are served.
fn served(d: &Daemon, mut c: Client) {
    assert_eq!(c.r32(reg::VS), 0x0002_0000);
    drop(c);
    assert_eq!(d.client().r32(reg::VS), 0x0002_0000);
}

/// In the end it is the kernel that closes for the process, and waits: only the server's end lets it go.
fn end(mut d: Daemon, fuse: Fuse) {
    d.signal(rustix::process::Signal::TERM);
    drop(fuse);
    assert_eq!(d.wait(DEADLINE).code(), Some(0), "{}", d.log());
}

/// A socket whose last close waits a minute for a peer that takes nothing; and that peer.
fn lingering() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::from_secs(60))).unwrap();
    socket.set_nonblocking(true).unwrap();
    let full = loop {
        if let Err(error) = socket.write(&[0; 1 << 16]) {
            break error.kind();
        }
    };
    assert_eq!(full, ErrorKind::WouldBlock);
    socket.set_nonblocking(false).unwrap();
    (socket.into(), peer)
}

#[test]
fn memory_of_a_server_that_does_not_answer() {
    let _alone = alone();
    let d = Daemon::start("");
    let Some(fuse) = Fuse::new() else { return };
    let mut c = d.client();
    fuse.hang();
    let refused = c.dma_map(0x10_0000, fuse::SIZE, 3, Some((fuse.fd(), 0))).refused();
    assert!(refused, "memory that somebody has to answer for");
    d.log_with("fuse", 1);
    served(&d, c);
    end(d, fuse);
}

#[test]
fn unwanted_descriptors_of_such_a_server() {
    let _alone = alone();
    let d = Daemon::start("");
    let Some(fuse) = Fuse::new() else { return };
    let mut c = d.client();
    fuse.hang();
    let read = message(1, cmd::REGION_READ, 0, &access(BAR0, reg::VS, 4));
    for count in [1, 3, 64] {
        c.send_raw(&read, &vec![fuse.fd(); count]).unwrap();
        match c.recv() {
            Ok(Some(_)) => served(&d, c),
            _ => assert_eq!(count, 64, "more than a message may carry"),
        }
        c = d.client();
    }
    let refused = c.set_irqs(irq::MSIX, irq::EVENTFD | irq::TRIGGER, 0, 1, &[fuse.fd()]).refused();
    assert!(refused, "no eventfd");
    served(&d, c);
    end(d, fuse);
}

/// More of them than are held: whoever sends so many is dropped, and nobody is let in before some are closed.
#[test]
fn descriptors_that_cannot_be_closed_are_bounded() {
    let _alone = alone();
    let mut d = Daemon::start("");
    let Some(fuse) = Fuse::new() else { return };
    fuse.hang();
    let before = d.open_files();
    let read = message(1, cmd::REGION_READ, 0, &access(BAR0, reg::VS, 4));
    let mut sent = 0;
    while let Ok(mut c) = std::panic::catch_unwind(|| Client::connect(&d.socket())) {
        c.set_deadline(Duration::from_millis(300));
        if c.send_raw(&message(1, cmd::VERSION, 0, &[0; 4]), &[]).is_err() || !matches!(c.recv(), Ok(Some(_)))
        {
            break;
        }
        while c.send_raw(&read, &[fuse.fd(); 16]).is_ok() && matches!(c.recv(), Ok(Some(_))) {
            sent += 16;
            assert!(sent < 5000, "no end");
        }
    }
    assert!(d.open_files() < before + 600, "{} descriptors", d.open_files());
    drop(fuse);
    served(&d, d.client());
    d.stop();
}

/// Closes it where nobody waits for that: should the daemon have been quicker, this is the last close.
fn let_go(socket: OwnedFd) {
    std::thread::spawn(move || drop(socket));
}

#[test]
fn sockets_that_linger() {
    let _alone = alone();
    let mut d = Daemon::start("");
    let mut c = d.client();
    let read = message(1, cmd::REGION_READ, 0, &access(BAR0, reg::VS, 4));
    let (socket, _peer) = lingering();
    c.send_raw(&read, &[socket.as_fd()]).unwrap();
    let_go(socket);
    assert!(c.recv().unwrap().is_some());
    served(&d, c);

    // More than a message may carry.
    let mut c = d.client();
    let sockets: Vec<_> = (0..40).map(|_| lingering()).collect();
    let fds: Vec<BorrowedFd<'_>> = sockets.iter().map(|(socket, _)| socket.as_fd()).collect();
    c.send_raw(&read, &fds).unwrap();
    drop(fds);
    let (sockets, _peers): (Vec<OwnedFd>, Vec<TcpStream>) = sockets.into_iter().unzip();
    sockets.into_iter().for_each(let_go);
    c.wait_closed();
    drop(d.client());

    // In messages that the daemon does not take from its socket before the client has gone, for it owes too many
    // answers.
    let mut c = d.client();
    let big = message(1, cmd::REGION_READ, 0, &access(CONFIG, 0, 4096));
    for _ in 0..200 {
        c.send_raw(&big, &[]).unwrap();
    }
    let (socket, _peer) = lingering();
    c.send_raw(&read, &[socket.as_fd()]).unwrap();
    let_go(socket);
    std::thread::sleep(Duration::from_millis(100));
    drop(c);
    drop(d.client());
    d.stop();
}

/// An eventfd whose counter is full, and that waits for room: the client may make it so at any time.
fn fill(eventfd: &OwnedFd) {
    let flags = fcntl_getfl(eventfd).unwrap();
    fcntl_setfl(eventfd, flags | OFlags::NONBLOCK).unwrap();
    let _ = rustix::io::read(eventfd, &mut [0; 8]);
    rustix::io::write(eventfd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    fcntl_setfl(eventfd, flags - OFlags::NONBLOCK).unwrap();
}

#[test]
fn eventfds_that_are_full_and_wait() {
    let _alone = alone();
    // The admin queue's, which the control thread raises, then an I/O queue's, which a worker does.
    for vector in [0, 1] {
        let mut d = Daemon::start("--nvme-ns drive=memory,size=1M");
        let mut h = Host::with_queues(&d, 1, 16);
        let full = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let on = irq::EVENTFD | irq::TRIGGER;
        assert!(!h.client.set_irqs(irq::MSIX, on, vector, 1, &[full.as_fd()]).not_done());
        fill(&full);
        let flush = Sqe::new(io::FLUSH).nsid(1);
        if vector == 0 {
            h.submit(0, Sqe::new(nvme::admin::KEEP_ALIVE));
            assert!(!h.client.set_irqs(irq::MSIX, irq::NONE | irq::TRIGGER, 0, 1, &[]).not_done());
        }
        for _ in 0..3 {
            h.submit(1, flush);
        }
        std::thread::sleep(Duration::from_millis(100));
        drop(h);
        let mut h = Host::with_queues(&d, 1, 16);
        let cid = h.submit(1, flush);
        h.wait(1, cid).ok();
        drop(h);
        d.stop();
        drop(full);
    }
}

#[test]
fn interrupts_are_eventfds() {
    let _alone = alone();
    let d = Daemon::start("");
    let mut c = d.client();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let ram = Ram::new(0, 1 << 16);
    for fd in [reader.as_fd(), writer.as_fd(), ram.fd(), c.socket().try_clone_to_owned().unwrap().as_fd()] {
        let set = c.set_irqs(irq::MSIX, irq::EVENTFD | irq::TRIGGER, 0, 1, &[fd]);
        assert!(set.refused(), "{fd:?}: {set:?}");
    }
    served(&d, c);
}
