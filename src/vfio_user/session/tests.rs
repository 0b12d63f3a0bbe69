//! Sessions over a socketpair with a device that writes down what reaches it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use proptest::prelude::*;
use rustix::cmsg_space;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::vfio_user::device::{DmaMap, IrqInfo, RegionInfo, RegionMmap, SparseArea};
use crate::vfio_user::interrupts::Interrupts;
use crate::vfio_user::listener::{Listener, SocketAccess};
use crate::vfio_user::messages::{FLAG_ERROR, FLAG_NO_REPLY, HEADER_SIZE, TYPE_REPLY};

const REGISTERS: u64 = 16 << 10;
const CONFIG: u32 = 7;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Call {
    Read(u32, u64, usize),
    Write(u32, u64, Vec<u8>),
    /// The second member: did a descriptor come with it?
    Map(DmaMap, bool),
    Unmap(DmaUnmap),
    /// Index, start, count, number of descriptors.
    Irqs(u32, u32, u32, usize),
    Reset,
}

struct Fake {
    calls: Vec<Call>,
    registers: Vec<u8>,
    config: Vec<u8>,
    interrupts: Interrupts,
    mapped: Vec<OwnedFd>,
    map_result: Result<(), Errno>,
    /// What DMA_UNMAP and DEVICE_RESET answer; Now(Ok) when it runs out.
    answers: VecDeque<Answer>,
    doorbells: Option<File>,
}

const DOORBELLS: [SparseArea; 1] = [SparseArea { offset: 0x1000, size: 0x1000 }];

impl Fake {
    fn new() -> Self {
        Fake {
            calls: Vec::new(),
            registers: vec![0; REGISTERS as usize],
            config: (0..4096).map(|index| index as u8).collect(),
            interrupts: Interrupts::new(8),
            mapped: Vec::new(),
            map_result: Ok(()),
            answers: VecDeque::new(),
            doorbells: None,
        }
    }

    fn region(&mut self, index: u32) -> &mut [u8] {
        match index {
            0 => &mut self.registers,
            CONFIG => &mut self.config,
            _ => panic!("region {index} is absent"),
        }
    }
}

impl Device for Fake {
    fn region_info(&self, index: u32) -> RegionInfo<'_> {
        match index {
            0 => RegionInfo {
                mmap: self.doorbells.as_ref().map(|file| RegionMmap {
                    fd: file.as_fd(),
                    offset: 0,
                    areas: &DOORBELLS,
                }),
                ..RegionInfo::trapped(REGISTERS)
            },
            CONFIG => RegionInfo::trapped(4096),
            _ => RegionInfo::ABSENT,
        }
    }

    fn irq_info(&self, index: u32) -> IrqInfo {
        self.interrupts.info(index)
    }

    fn region_read(&mut self, index: u32, offset: u64, data: &mut [u8]) {
        assert!(data.iter().all(|byte| *byte == 0xff));
        self.calls.push(Call::Read(index, offset, data.len()));
        let from = offset as usize;
        data.copy_from_slice(&self.region(index)[from..from + data.len()]);
    }

    fn region_write(&mut self, index: u32, offset: u64, data: &[u8]) -> Answer {
        self.calls.push(Call::Write(index, offset, data.to_vec()));
        let from = offset as usize;
        self.region(index)[from..from + data.len()].copy_from_slice(data);
        // Only what goes to the configuration space may have to wait.
        let answer = if index == CONFIG { self.answers.pop_front() } else { None };
        answer.unwrap_or(Answer::Now(Ok(())))
    }

    fn set_irqs(&mut self, request: SetIrqs<'_>) -> Result<(), Errno> {
        let fds = match &request.data {
            IrqData::Eventfds(fds) => fds.len(),
            _ => 0,
        };
        self.calls.push(Call::Irqs(request.index, request.start, request.count, fds));
        self.interrupts.set(request)
    }

    fn dma_map(&mut self, request: DmaMap, fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        self.calls.push(Call::Map(request, fd.is_some()));
        self.mapped.extend(fd.map(|fd| fd.try_clone_to_owned().unwrap()));
        self.map_result
    }

    fn dma_unmap(&mut self, request: DmaUnmap) -> Answer {
        self.calls.push(Call::Unmap(request));
        self.answers.pop_front().unwrap_or(Answer::Now(Ok(())))
    }

    fn reset(&mut self) -> Answer {
        self.calls.push(Call::Reset);
        self.answers.pop_front().unwrap_or(Answer::Now(Ok(())))
    }
}

/// The client's end of the socket.
struct Client {
    socket: UnixStream,
}

#[derive(Debug)]
struct Reply {
    header: Header,
    body: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Client {
    fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(32))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let sent = sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, SendFlags::empty());
        assert_eq!(sent, Ok(bytes.len()));
    }

    /// The next reply if it is there.
    fn receive(&mut self) -> Option<Reply> {
        let mut bytes = [0; HEADER_SIZE];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut iov = [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        match recvmsg(&self.socket, &mut iov, &mut control, flags) {
            Ok(received) if received.bytes == 0 => return None,
            Ok(received) => assert_eq!(received.bytes, HEADER_SIZE, "header in one piece"),
            Err(errno) => {
                assert_eq!(errno, Errno::AGAIN);
                return None;
            }
        }
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        let header = Header::read_from_bytes(&bytes).unwrap();
        let mut body = vec![0; header.size as usize - HEADER_SIZE];
        self.socket.read_exact(&mut body).unwrap();
        Some(Reply { header, body, fds })
    }

    /// The reply to `command`, which must be a success, and its body.
    #[track_caller]
    fn success(&mut self, command: u16) -> Vec<u8> {
        let reply = self.receive().expect("a reply");
        assert_eq!((reply.header.command, reply.header.flags), (command, TYPE_REPLY));
        assert_eq!(reply.header.error, 0);
        reply.body
    }

    #[track_caller]
    fn error(&mut self, command: u16) -> Errno {
        let reply = self.receive().expect("a reply");
        assert_eq!((reply.header.command, reply.header.flags), (command, TYPE_REPLY | FLAG_ERROR));
        assert!(reply.body.is_empty());
        assert_ne!(reply.header.error, 0);
        Errno::from_raw_os_error(reply.header.error as i32)
    }
}

fn connection() -> (Client, Session) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Client { socket: ours }, Session::new(theirs).unwrap())
}

/// A connection that has negotiated.
fn attached(device: &mut Fake) -> (Client, Session) {
    let (mut client, mut session) = connection();
    client.send(&message(1, 0, &[0; 4]), &[]);
    assert_eq!(session.pump(device), Ok(Pumped::Drained));
    client.success(1);
    (client, session)
}

fn message(command: u16, flags: u32, body: &[u8]) -> Vec<u8> {
    message_with_id(0, command, flags, body)
}

fn message_with_id(id: u16, command: u16, flags: u32, body: &[u8]) -> Vec<u8> {
    let size = (HEADER_SIZE + body.len()) as u32;
    let header = Header { id, command, size, flags, error: 0 };
    [header.as_bytes(), body].concat()
}

fn dwords(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

fn quads(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

fn access(region: u32, offset: u64, count: u32) -> Vec<u8> {
    [quads(&[offset]), dwords(&[region, count])].concat()
}

fn write(flags: u32, region: u32, offset: u64, data: &[u8]) -> Vec<u8> {
    message(10, flags, &[access(region, offset, data.len() as u32), data.to_vec()].concat())
}

fn read(region: u32, offset: u64, count: u32) -> Vec<u8> {
    message(9, 0, &access(region, offset, count))
}

fn map(iova: u64, size: u64) -> Vec<u8> {
    message(2, 0, &[dwords(&[32, 3]), quads(&[0, iova, size])].concat())
}

fn unmap(flags: u32, iova: u64, size: u64) -> Vec<u8> {
    message(3, flags, &[dwords(&[24, 0]), quads(&[iova, size])].concat())
}

fn irqs(flags: u32, index: u32, start: u32, count: u32) -> Vec<u8> {
    message(8, 0, &dwords(&[20, flags, index, start, count]))
}

fn new_eventfd() -> OwnedFd {
    eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap()
}

/// What QEMU 11 sends from connecting to a driver at work, each message with its number of
/// descriptors.
fn qemu() -> Vec<(Vec<u8>, usize)> {
    let version = br#"{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576,"migration":{"pgsize":4096,"max_bitmap_size":268435456},"pgsizes":4096,"max_dma_maps":65535,"write_multiple":true}}"#;
    let mut all = vec![
        (message(1, 0, &[&[0, 0, 0, 0], &version[..], &[0]].concat()), 0),
        (map(0, 0xa0000), 1),
        (message(2, 0, &[dwords(&[32, 1]), quads(&[0, 0xc0000, 0x20000])].concat()), 0),
        (map(0x100000, 0x7ff00000), 1),
        (message(4, 0, &dwords(&[16, 0, 0, 0])), 0),
    ];
    for index in (0..6).chain([7]) {
        let body = [dwords(&[32, 0, index, 0]), quads(&[0, 0])].concat();
        all.push((message(5, 0, &body), 0));
    }
    all.extend([
        (message(7, 0, &dwords(&[16, 0, 3, 0])), 0),
        (irqs(0x24, 3, 0, 1), 1),
        (read(7, 0, 4096), 0),
        (read(7, 0x30, 4), 0),
        (write(0, 7, 0x30, &0xfffff800_u32.to_ne_bytes()), 0),
        (message(7, 0, &dwords(&[16, 0, 2, 0])), 0),
        (irqs(0x21, 0, 0, 0), 0),
        (message(13, 0, &[]), 0),
        (unmap(0, 0xc0000, 0x20000), 0),
        (map(0xc0000, 0x8000), 1),
        (map(0xc8000, 0x18000), 1),
        (write(0, 7, 4, &[6, 4]), 0),
        // QEMU's own mapping of our BAR, without descriptor.
        (map(0xfe000000, 0x4000), 0),
        (irqs(0x24, 2, 0, 1), 0),
        (irqs(0x24, 2, 0, 1), 1),
        (irqs(0x24, 2, 1, 1), 1),
        (write(FLAG_NO_REPLY, 0, 0x14, &0x460001_u32.to_ne_bytes()), 0),
        (read(0, 0x1c, 4), 0),
        (write(FLAG_NO_REPLY, 0, 0x1000, &1_u32.to_ne_bytes()), 0),
        (write(FLAG_NO_REPLY, 0, 0x1004, &1_u32.to_ne_bytes()), 0),
        (write(FLAG_NO_REPLY, 0, 0x1000, &2_u32.to_ne_bytes()), 0),
        (read(0, 0x1000, 4), 0),
    ]);
    for (id, (message, _)) in all.iter_mut().enumerate() {
        message[..2].copy_from_slice(&(id as u16).to_ne_bytes());
    }
    all
}

/// What a device was asked, and what the client was answered: id, command, flags, body.
type Conversation = (Vec<Call>, Vec<(u16, u16, u32, Vec<u8>)>);

/// Sends messages in pieces that end at `cuts` of the whole stream and wherever a message with
/// descriptors begins, pumping after every `rhythm`th piece. Returns calls and replies.
fn replay(messages: &[(Vec<u8>, usize)], cuts: &[usize], rhythm: usize) -> Conversation {
    let (mut client, mut session) = connection();
    let mut device = Fake::new();
    let mut stream = Vec::new();
    let mut begins = Vec::new();
    for (bytes, fds) in messages {
        begins.push((stream.len(), *fds));
        stream.extend_from_slice(bytes);
    }
    begins.retain(|(_, fds)| *fds > 0);
    let mut ends: Vec<usize> = begins.iter().map(|(at, _)| *at).chain(cuts.iter().copied()).collect();
    ends.push(stream.len());
    ends.sort_unstable();
    ends.dedup();
    let mut replies = Vec::new();
    let mut at = 0;
    let last = ends.len() - 1;
    for (piece, end) in ends.into_iter().enumerate().filter(|(_, end)| *end > 0) {
        let count = begins.iter().find(|(begin, _)| *begin == at).map_or(0, |(_, fds)| *fds);
        let fds: Vec<OwnedFd> = (0..count).map(|_| new_eventfd()).collect();
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        client.send(&stream[at..end], &fds);
        at = end;
        if piece % rhythm != 0 && piece != last {
            continue;
        }
        while session.pump(&mut device).unwrap() != Pumped::Drained {}
        while let Some(reply) = client.receive() {
            let Header { id, command, flags, .. } = reply.header;
            replies.push((id, command, flags, reply.body));
        }
    }
    (device.calls, replies)
}

#[test]
fn qemu_attaches() {
    let messages = qemu();
    let (calls, replies) = replay(&messages, &[], 1);
    // Everything is answered but the posted writes, in order, and nothing is refused.
    let expected: Vec<u16> = messages
        .iter()
        .enumerate()
        .filter(|(_, (bytes, _))| bytes[8] & FLAG_NO_REPLY as u8 == 0)
        .map(|(id, _)| id as u16)
        .collect();
    let answered: Vec<u16> = replies.iter().map(|reply| reply.0).collect();
    assert_eq!(answered, expected);
    assert!(replies.iter().all(|reply| reply.2 == TYPE_REPLY));
    let maps: Vec<bool> = calls
        .iter()
        .filter_map(|call| match call {
            Call::Map(_, fd) => Some(*fd),
            _ => None,
        })
        .collect();
    assert_eq!(maps, [true, false, true, true, true, false]);
    let irqs: Vec<&Call> = calls.iter().filter(|call| matches!(call, Call::Irqs(..))).collect();
    let expected = [
        &Call::Irqs(3, 0, 1, 1),
        &Call::Irqs(0, 0, 0, 0),
        &Call::Irqs(2, 0, 1, 0),
        &Call::Irqs(2, 0, 1, 1),
        &Call::Irqs(2, 1, 1, 1),
    ];
    assert_eq!(irqs, expected);
    let (_, _, _, last) = replies.last().unwrap();
    assert_eq!(last, &[access(0, 0x1000, 4), vec![2, 0, 0, 0]].concat());
}

#[test]
fn any_cut_gives_the_same_conversation() {
    let messages = qemu();
    let whole = replay(&messages, &[], 1);
    let length: usize = messages.iter().map(|(bytes, _)| bytes.len()).sum();
    for step in [1, 2, 3, 7, 16, 17, 64] {
        let cuts: Vec<usize> = (step..length).step_by(step).collect();
        assert_eq!(replay(&messages, &cuts, 1), whole, "pieces of {step} bytes");
    }
    // Pipelined: many pieces before each pump.
    for rhythm in [2, 5, 1000] {
        assert_eq!(replay(&messages, &[], rhythm), whole, "pump every {rhythm} pieces");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn random_cuts_give_the_same_conversation(
        cuts in proptest::collection::vec(1_usize..6000, 0..60),
        rhythm in 1_usize..8,
    ) {
        let messages = qemu();
        let length: usize = messages.iter().map(|(bytes, _)| bytes.len()).sum();
        let cuts: Vec<usize> = cuts.into_iter().filter(|cut| *cut < length).collect();
        prop_assert_eq!(replay(&messages, &cuts, rhythm), replay(&messages, &[], 1));
    }
}

#[test]
fn spdk_attaches() {
    let mut device = Fake::new();
    device.doorbells = Some(tempfile::tempfile().unwrap());
    let (mut client, mut session) = connection();
    client.send(&message(1, 0, &[0, 0, 1, 0]), &[]);
    let mut info = [dwords(&[4064, 0, 0, 0]), quads(&[0, 0])].concat();
    info.resize(4064, 0);
    client.send(&message(5, 0, &info), &[]);
    let memory = tempfile::tempfile().unwrap();
    client.send(&map(1 << 46, 2 << 20), &[memory.as_fd()]);
    client.send(&unmap(0, 1 << 46, 2 << 20), &[memory.as_fd()]);
    assert_eq!(session.pump(&mut device), Ok(Pumped::Drained));
    assert_eq!(client.success(1)[..4], [0, 0, 1, 0]);
    let reply = client.receive().unwrap();
    assert_eq!(reply.body.len(), 64);
    assert_eq!(reply.fds.len(), 1);
    assert_eq!(client.success(2).len(), 0);
    assert_eq!(client.success(3), [dwords(&[24, 0]), quads(&[1 << 46, 2 << 20])].concat());
    assert_eq!(session.client().unwrap().minor, 1);
}

#[test]
fn region_info_brings_the_descriptor_only_with_the_areas() {
    let mut device = Fake::new();
    device.doorbells = Some(tempfile::tempfile().unwrap());
    let (mut client, mut session) = attached(&mut device);
    for argsz in [32, 64] {
        let body = [dwords(&[argsz, 0, 0, 0]), quads(&[0, 0])].concat();
        client.send(&message(5, 0, &body), &[]);
    }
    assert_eq!(session.pump(&mut device), Ok(Pumped::Drained));
    let short = client.receive().unwrap();
    assert_eq!((short.body.len(), short.fds.len()), (32, 0));
    let full = client.receive().unwrap();
    assert_eq!((full.body.len(), full.fds.len()), (64, 1));
}

#[test]
fn version_comes_first_and_once() {
    let (client, mut session) = connection();
    client.send(&message(4, 0, &[0; 16]), &[]);
    assert_eq!(session.pump(&mut Fake::new()), Err(SessionError::NotNegotiated(4)));

    let mut device = Fake::new();
    let (client, mut session) = attached(&mut device);
    client.send(&message(1, 0, &[0; 4]), &[]);
    assert_eq!(session.pump(&mut device), Err(SessionError::SecondVersion));
}

#[test]
fn a_refused_version_can_be_tried_again() {
    let mut device = Fake::new();
    let (mut client, mut session) = connection();
    for body in [&b"\x01\0\0\0"[..], b"\0\0\0\0{", b"\0"] {
        client.send(&message(1, 0, body), &[]);
        assert_eq!(session.pump(&mut device), Ok(Pumped::Drained));
        assert_eq!(client.error(1), Errno::INVAL);
        assert!(session.client().is_none());
    }
    client.send(&message(1, 0, &[0; 4]), &[]);
    assert_eq!(session.pump(&mut device), Ok(Pumped::Drained));
    client.success(1);
}

#[test]
fn message_sizes_outside_the_window_end_the_session() {
    for size in [0, 15, (1 << 20) + 65, u32::MAX] {
        let mut device = Fake::new();
        let (client, mut session) = attached(&mut device);
        let mut bytes = message(13, 0, &[]);
        bytes[4..8].copy_from_slice(&size.to_ne_bytes());
        client.send(&bytes, &[]);
        assert_eq!(session.pump(&mut device), Err(SessionError::MessageSize(size)));
        assert!(device.calls.is_empty());
    }
}

#[test]
fn refusals_keep_the_stream_in_step() {
    let mut device = Fake::new();
    device.map_result = Err(Errno::EXIST);
    let (mut client, mut session) = attached(&mut device);
    client.send(&message(6, 0, &[0xaa; 100]), &[]);
    client.send(&message(999, 0, &[0xaa; 5000]), &[]);
    client.send(&map(0, 0x1000), &[]);
    client.send(&message(10, 0, &access(0, 0, 100)), &[]);
    client.send(&irqs(0x24, 2, 7, 2), &[]);
    client.send(&read(7, 1, 2), &[]);
    assert_eq!(session.pump(&mut device), Ok(Pumped::Drained));
    assert_eq!(client.error(6), Errno::OPNOTSUPP);
    assert_eq!(client.error(999), Errno::OPNOTSUPP);
    assert_eq!(client.error(2), Errno::EXIST);
    assert_eq!(client.error(10), Errno::INVAL);
    assert_eq!(client.error(8), Errno::INVAL);
    assert_eq!(client.success(9)[16..], [1, 2]);
}

#[test]
fn nothing_answers_a_posted_message() {
    let mut device = Fake::new();
    device.map_result = Err(Errno::EXIST);
    device.answers.push_back(Answer::Now(Err(Errno::IO)));
    let (mut client, mut session) = attached(&mut device);
    for mut bytes in [
        write(0, 0, 0x1000, &[1, 2, 3, 4]),
        write(0, 0, u64::MAX, &[1, 2, 3, 4]),
        message(10, 0, &[]),
        map(0, 0x1000),
        unmap(0, 0, 0x1000),
        message(4, 0, &[0; 16]),
        message(5, 0, &[0; 32]),
        read(0, 0, 4),
        message(77, 0, &[]),
        message(13, 0, &[]),
    ] {
        bytes[8] |= FLAG_NO_REPLY as u8;
        client.send(&bytes, &[]);
    }
    assert_eq!(session.pump(&mut device), Ok(Pumped::Drained));
    assert!(client.receive().is_none());
    assert_eq!(device.registers[0x1000..0x1004], [1, 2, 3, 4]);
    client.send(&read(0, 0x1000, 4), &[]);
    assert_eq!(session.pump(&mut device), Ok(Pumped::Drained));
    assert_eq!(client.success(9)[16..], [1, 2, 3, 4]);
}

#[test]
fn stray_replies_are_passed_over() {
    let mut device = Fake::new();
    let (mut client, mut session) = attached(&mut device);
    for kind in [TYPE_REPLY, TYPE_REPLY | FLAG_ERROR, 2, 15] {
        client.send(&message(13, kind, &[1, 2, 3]), &[]);
    }
    client.send(&read(7, 0, 1), &[]);
    assert_eq!(session.pump(&mut device), Ok(Pumped::Drained));
    assert_eq!(device.calls, [Call::Read(7, 0, 1)]);
    client.success(9);
    assert!(client.receive().is_none());
}

#[test]
fn accesses_outside_read_ones_and_write_nowhere() {
    let mut device = Fake::new();
    let (mut client, mut session) = attached(&mut device);
    for (region, offset) in
        [(0, REGISTERS - 3), (0, u64::MAX), (1, 0), (8, 0), (9, 0), (u32::MAX, 0), (7, 4093)]
    {
        client.send(&read(region, offset, 4), &[]);
        client.send(&write(0, region, offset, &[1, 2, 3, 4]), &[]);
        assert_eq!(session.pump(&mut device), Ok(Pumped::Drained));
        let expected = [access(region, offset, 4), vec![0xff; 4]].concat();
        assert_eq!(client.success(9), expected);
        assert_eq!(client.success(10), access(region, offset, 4));
    }
    assert!(device.calls.is_empty());
    client.send(&read(0, REGISTERS - 4, 4), &[]);
    assert_eq!(session.pump(&mut device), Ok(Pumped::Drained));
    assert_eq!(client.success(9)[16..], [0; 4]);
}

#[test]
fn the_largest_messages() {
    let mut device = Fake::new();
    let (mut client, mut session) = attached(&mut device);
    // Goes nowhere, but has to be received in full to stay in step.
    let long = write(0, 0, 0, &vec![0x5a; 1 << 20]);
    let mut rest = &long[..];
    client.socket.set_nonblocking(true).unwrap();
    while !rest.is_empty() {
        match client.socket.write(rest) {
            Ok(sent) => rest = &rest[sent..],
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
        assert_eq!(session.pump(&mut device), Ok(Pumped::Drained));
    }
    client.socket.set_nonblocking(false).unwrap();
    assert_eq!(client.success(10), access(0, 0, 1 << 20));
    client.send(&read(7, 0, 4096), &[]);
    assert_eq!(session.pump(&mut device), Ok(Pumped::Drained));
    assert_eq!(client.success(9)[16..], device.config);
}

#[test]
fn later_holds_back_what_follows() {
    let mut device = Fake::new();
    device.answers.extend([Answer::Later, Answer::Later]);
    let (mut client, mut session) = attached(&mut device);
    client.send(&unmap(0, 0x1000, 0x1000), &[]);
    client.send(&read(7, 0, 1), &[]);
    client.send(&message(13, 0, &[]), &[]);
    client.send(&read(7, 1, 1), &[]);
    for _ in 0..2 {
        assert_eq!(session.pump(&mut device), Ok(Pumped::Waiting));
        assert!(session.is_waiting());
        assert_eq!(session.interest(), Interest { read: false, write: false });
        assert!(client.receive().is_none());
    }
    assert_eq!(session.finish(Ok(()), &mut device), Ok(Pumped::Waiting));
    assert_eq!(client.success(3), [dwords(&[24, 0]), quads(&[0x1000, 0x1000])].concat());
    assert_eq!(client.success(9)[16..], [0]);
    assert!(client.receive().is_none());
    assert_eq!(session.finish(Err(Errno::IO), &mut device), Ok(Pumped::Drained));
    assert_eq!(client.error(13), Errno::IO);
    assert_eq!(client.success(9)[16..], [1]);
    assert_eq!(session.interest(), Interest { read: true, write: false });
}

/// cloud-hypervisor does not understand a write that fails.
#[test]
fn a_write_that_waits_never_fails() {
    for result in [Ok(()), Err(Errno::IO)] {
        let mut device = Fake::new();
        device.answers.push_back(Answer::Later);
        let (mut client, mut session) = attached(&mut device);
        client.send(&write(0, 7, 4, &[6, 4]), &[]);
        client.send(&read(7, 4, 2), &[]);
        assert_eq!(session.pump(&mut device), Ok(Pumped::Waiting));
        assert!(client.receive().is_none());
        assert_eq!(session.finish(result, &mut device), Ok(Pumped::Drained));
        assert_eq!(client.success(10), access(7, 4, 2));
        assert_eq!(client.success(9)[16..], [6, 4]);
    }
}

#[test]
fn a_posted_request_is_waited_for_without_a_reply() {
    let mut device = Fake::new();
    device.answers.push_back(Answer::Later);
    let (mut client, mut session) = attached(&mut device);
    client.send(&unmap(FLAG_NO_REPLY, 0x1000, 0x1000), &[]);
    client.send(&read(7, 0, 1), &[]);
    assert_eq!(session.pump(&mut device), Ok(Pumped::Waiting));
    assert!(client.receive().is_none());
    assert_eq!(session.finish(Ok(()), &mut device), Ok(Pumped::Drained));
    client.success(9);
    assert!(client.receive().is_none());
    // One finish too many does no harm.
    assert_eq!(session.finish(Ok(()), &mut device), Ok(Pumped::Drained));
    assert!(client.receive().is_none());
}

#[test]
fn a_client_that_does_not_read_is_not_served() {
    const READS: u16 = 12;
    let mut device = Fake::new();
    let (mut client, mut session) = attached(&mut device);
    for id in 0..READS {
        client.send(&message_with_id(id, 9, 0, &access(0, u64::MAX, 1 << 20)), &[]);
    }
    client.send(&write(FLAG_NO_REPLY, 0, 0, &[1]), &[]);
    for _ in 0..5 {
        assert_eq!(session.pump(&mut device), Ok(Pumped::Blocked));
        assert_eq!(session.interest(), Interest { read: false, write: true });
        assert!(session.wants_write());
    }
    assert!(device.calls.is_empty(), "the write comes last");
    let mut received = Vec::new();
    let mut wanted = usize::from(READS) * (32 + (1 << 20));
    let mut chunk = vec![0; 1 << 16];
    client.socket.set_nonblocking(true).unwrap();
    while wanted > 0 {
        let pumped = session.pump(&mut device).unwrap();
        assert!(matches!(pumped, Pumped::Blocked | Pumped::Drained), "{pumped:?}");
        match client.socket.read(&mut chunk) {
            Ok(count) => {
                received.extend_from_slice(&chunk[..count]);
                wanted -= count;
            }
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
    }
    assert_eq!(session.pump(&mut device), Ok(Pumped::Drained));
    assert!(!session.wants_write());
    for (id, reply) in received.chunks(32 + (1 << 20)).enumerate() {
        assert_eq!(reply[..2], (id as u16).to_ne_bytes());
        assert!(reply[32..].iter().all(|byte| *byte == 0xff));
    }
    assert_eq!(device.calls, [Call::Write(0, 0, vec![1])]);
}

#[test]
fn a_storm_is_served_in_turns() {
    let mut device = Fake::new();
    let (client, mut session) = attached(&mut device);
    let doorbell = write(FLAG_NO_REPLY, 0, 0x1000, &[1, 0, 0, 0]);
    client.send(&doorbell.repeat(BUDGET * 2 + 1), &[]);
    assert_eq!(session.pump(&mut device), Ok(Pumped::Again));
    assert_eq!(device.calls.len(), BUDGET);
    assert_eq!(session.pump(&mut device), Ok(Pumped::Again));
    assert_eq!(session.pump(&mut device), Ok(Pumped::Drained));
    assert_eq!(device.calls.len(), BUDGET * 2 + 1);
}

#[test]
fn the_end_of_the_connection() {
    // In the middle of a message.
    let mut device = Fake::new();
    let (client, mut session) = attached(&mut device);
    client.send(&read(7, 0, 1)[..20], &[]);
    drop(client);
    assert_eq!(session.pump(&mut device), Ok(Pumped::Drained));
    assert_eq!(session.pump(&mut device), Ok(Pumped::Closed));
    assert!(device.calls.is_empty());
    // With replies nobody will read: what was sent before the end is still executed.
    let (client, mut session) = attached(&mut device);
    client.send(&write(FLAG_NO_REPLY, 0, 0, &[1]), &[]);
    client.send(&read(7, 0, 1), &[]);
    drop(client);
    assert_eq!(session.pump(&mut device), Ok(Pumped::Closed));
    assert_eq!(device.calls[0], Call::Write(0, 0, vec![1]));
    // While an answer is owed.
    device.answers.push_back(Answer::Later);
    let (client, mut session) = attached(&mut device);
    client.send(&message(13, 0, &[]), &[]);
    assert_eq!(session.pump(&mut device), Ok(Pumped::Waiting));
    drop(client);
    assert_eq!(session.finish(Ok(()), &mut device), Ok(Pumped::Closed));
}

/// Sends with copies of a pipe's writing end, drops all that is ours but the device, and says
/// whether a copy is still open anywhere. Unlike a count of this process's descriptors this is not
/// disturbed by tests that run at the same time.
fn leaks(device: &mut Fake, sends: &[(Vec<u8>, usize)], patience: Duration) -> bool {
    let (reader, writer) = std::io::pipe().unwrap();
    let (client, mut session) = attached(device);
    for (bytes, count) in sends {
        client.send(bytes, &vec![writer.as_fd(); *count]);
    }
    drop(writer);
    let _ = session.pump(device);
    drop((client, session));
    // Those that nobody wanted are closed by other threads, soon.
    let mut fds = [PollFd::new(&reader, PollFlags::IN)];
    poll(&mut fds, Some(&patience.try_into().unwrap())).unwrap();
    !fds[0].revents().contains(PollFlags::HUP)
}

#[test]
fn descriptors_do_not_leak() {
    let cases: [&[(Vec<u8>, usize)]; 9] = [
        // Where none belongs.
        &[(unmap(0, 0, 0x1000), 1), (message(13, 0, &[]), 3), (read(7, 0, 1), 16)],
        &[(message(77, 0, &[]), 5), (message(2, 0, &[]), 1), (message(13, 1, &[]), 2)],
        // Refused for their number.
        &[(map(0, 0x1000), 2), (irqs(0x24, 2, 0, 2), 3)],
        // With another data type.
        &[(irqs(0x21, 2, 0, 1), 1)],
        // Refused by the device: vectors 7 and 8 of 8.
        &[(irqs(0x24, 2, 7, 2), 2)],
        // In a message that never becomes complete.
        &[(map(0, 0x1000)[..30].to_vec(), 1)],
        // Beyond the room for them.
        &[(map(0, 0x1000), 30)],
        // After the session has failed.
        &[(vec![0xff; 16], 1), (map(0, 0x1000), 1)],
        // Piecemeal, more than fit one message.
        &[
            (map(0, 0x1000)[..16].to_vec(), 16),
            (map(0, 0x1000)[16..20].to_vec(), 16),
            (map(0, 0x1000)[20..].to_vec(), 1),
        ],
    ];
    for (number, sends) in cases.iter().enumerate() {
        assert!(!leaks(&mut Fake::new(), sends, Duration::from_secs(10)), "case {number}");
    }
    // And where they belong, they arrive and live as long as the device holds them.
    let mut device = Fake::new();
    assert!(leaks(&mut device, &[(map(0, 0x1000), 1)], Duration::from_millis(50)));
}

#[test]
fn too_many_descriptors_end_the_session() {
    let mut device = Fake::new();
    let (client, mut session) = attached(&mut device);
    let fd = new_eventfd();
    client.send(&irqs(0x24, 2, 0, 30), &[fd.as_fd(); 30]);
    assert_eq!(session.pump(&mut device), Err(SessionError::TooManyFds));
}

#[test]
fn received_descriptors_are_closed_on_exec() {
    let mut device = Fake::new();
    let (client, mut session) = attached(&mut device);
    let file = tempfile::tempfile().unwrap();
    client.send(&map(0, 0x1000), &[file.as_fd()]);
    assert_eq!(session.pump(&mut device), Ok(Pumped::Drained));
    let flags = rustix::io::fcntl_getfd(&device.mapped[0]).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
}

/// Messages that are nearly right: known commands, sizes that mostly fit, small numbers.
fn hostile() -> impl Strategy<Value = (Vec<u8>, usize)> {
    let number = prop_oneof![0_u32..20, any::<u32>(), Just(u32::MAX), Just(4096)];
    (
        prop_oneof![Just(9_u16), Just(10), Just(8), Just(2), 0_u16..20],
        prop_oneof![Just(0_u32), Just(FLAG_NO_REPLY), any::<u32>()],
        proptest::collection::vec(number, 0..40),
        prop_oneof![9 => Just(0_i32), 1 => -20_i32..20],
        0_usize..4,
    )
        .prop_map(|(command, flags, numbers, error, fds)| {
            let mut bytes = message(command, flags, &dwords(&numbers));
            let size = (bytes.len() as i32 + error).max(0) as u32;
            bytes[4..8].copy_from_slice(&size.to_ne_bytes());
            (bytes, fds)
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn hostile_messages_do_no_harm(
        messages in proptest::collection::vec(hostile(), 1..20),
        answers in proptest::collection::vec(prop_oneof![
            Just(Answer::Now(Ok(()))), Just(Answer::Now(Err(Errno::IO))), Just(Answer::Later)
        ], 0..4),
    ) {
        let mut device = Fake::new();
        device.answers = answers.into();
        let (mut client, mut session) = attached(&mut device);
        let fd = new_eventfd();
        for (bytes, fds) in messages {
            client.send(&bytes, &vec![fd.as_fd(); fds]);
            let mut pumped = session.pump(&mut device);
            while let Ok(Pumped::Again | Pumped::Waiting | Pumped::Blocked) = pumped {
                pumped = match pumped {
                    Ok(Pumped::Waiting) => session.finish(Ok(()), &mut device),
                    _ => session.pump(&mut device),
                };
                while let Some(reply) = client.receive() {
                    let failed = reply.header.flags & FLAG_ERROR != 0;
                    prop_assert_eq!(failed, reply.header.error != 0);
                }
            }
            if pumped.is_err() {
                break;
            }
            while client.receive().is_some() {}
        }
    }

    #[test]
    fn random_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 1..2000)) {
        let mut device = Fake::new();
        let (client, mut session) = attached(&mut device);
        client.send(&bytes, &[]);
        let _ = session.pump(&mut device);
    }
}

/// Serves one client on its socket until it leaves, as the daemon does.
fn serve(listener: &Listener, device: &mut Fake) {
    let wait = |fd: BorrowedFd<'_>, flags| {
        poll(&mut [PollFd::from_borrowed_fd(fd, flags)], None).unwrap();
    };
    let mut session = loop {
        wait(listener.as_fd(), PollFlags::IN);
        if let Some(stream) = listener.accept(true).unwrap() {
            break Session::new(stream).unwrap();
        }
    };
    loop {
        match session.pump(device).unwrap() {
            Pumped::Again => {}
            Pumped::Closed => return,
            Pumped::Waiting => {
                let _ = session.finish(Ok(()), device).unwrap();
            }
            Pumped::Drained | Pumped::Blocked => {
                let interest = session.interest();
                let mut flags = PollFlags::empty();
                flags.set(PollFlags::IN, interest.read);
                flags.set(PollFlags::OUT, interest.write);
                wait(session.as_fd(), flags);
            }
        }
    }
}

/// The client that cloud-hypervisor uses, against this server.
#[test]
fn the_vfio_user_crates_client_gets_along() {
    use std::os::fd::AsRawFd;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let listener = Listener::bind(&path, SocketAccess::default()).unwrap();
    let server = std::thread::spawn(move || {
        let mut device = Fake::new();
        device.doorbells = Some(tempfile::tempfile().unwrap());
        device.answers.push_back(Answer::Later);
        serve(&listener, &mut device);
        device
    });

    let mut client = vfio_user_client::Client::new(&path).unwrap();
    let registers = client.region(0).unwrap();
    assert_eq!((registers.size, registers.flags), (REGISTERS, 0xf));
    assert_eq!(registers.file_offset.as_ref().unwrap().start(), 0);
    let areas: Vec<(u64, u64)> = registers.sparse_areas.iter().map(|area| (area.offset, area.size)).collect();
    assert_eq!(areas, [(0x1000, 0x1000)]);
    assert_eq!(client.region(8).unwrap().size, 0);
    assert_eq!(client.region(CONFIG).unwrap().size, 4096);

    let irqs: Vec<u32> = (0..5).map(|index| client.get_irq_info(index).unwrap().count).collect();
    assert_eq!(irqs, [0, 0, 8, 1, 1]);

    let memory = tempfile::tempfile().unwrap();
    client.dma_map(0, 0x1000, 0x2000, memory.as_raw_fd()).unwrap();
    client.region_write(0, 0x14, &[1, 2, 3, 4]).unwrap();
    let mut data = [0; 4];
    client.region_read(0, 0x14, &mut data).unwrap();
    assert_eq!(data, [1, 2, 3, 4]);
    client.region_read(0, REGISTERS, &mut data).unwrap();
    assert_eq!(data, [0xff; 4]);
    client.region_write(3, 0, &data).unwrap();

    let eventfds: Vec<OwnedFd> = (0..8).map(|_| new_eventfd()).collect();
    let raw: Vec<i32> = eventfds.iter().map(AsRawFd::as_raw_fd).collect();
    client.set_irqs(2, 0x24, 0, 8, &raw).unwrap();
    client.set_irqs(2, 0x21, 5, 1, &[]).unwrap();
    let mut count = [0; 8];
    rustix::io::read(&eventfds[5], &mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), 1);
    client.set_irqs(2, 0x21, 0, 0, &[]).unwrap();

    client.dma_unmap(0x1000, 0x2000).unwrap();
    client.reset().unwrap();
    client.shutdown().unwrap();
    let device = server.join().unwrap();
    assert_eq!(device.calls.last(), Some(&Call::Reset));
    assert_eq!(device.mapped.len(), 1);
}
