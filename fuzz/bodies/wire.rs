//! Bytes from a client: the codec alone, then a whole session over a socket pair with a device that says yes.

use std::io::{Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

use vfio_user_nvme::vfio_user::codec::{self, Request};
use vfio_user_nvme::vfio_user::messages::Header;
use vfio_user_nvme::vfio_user::{
    Answer, Device, DmaMap, DmaUnmap, Errno, IrqInfo, Pumped, RegionInfo, Session, SetIrqs,
};
use zerocopy::FromBytes;

/// A VERSION message without JSON.
const VERSION: [u8; 20] = [0, 0, 1, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// The first byte says how the rest is delivered, see [`session`].
pub fn run(data: &[u8]) {
    let Some((&how, bytes)) = data.split_first() else {
        return;
    };
    decoder(bytes);
    session(how, bytes);
}

fn decoder(bytes: &[u8]) {
    let Ok((header, body)) = Header::read_from_prefix(bytes) else {
        return;
    };
    for fds in [0, 1, 3] {
        match codec::decode(&header, body, fds) {
            Ok(Request::DmaMap(m)) => {
                assert!(m.size != 0 && m.iova.checked_add(m.size - 1).is_some());
                assert!(m.offset.checked_add(m.size).is_some());
            }
            Ok(Request::DmaUnmap(u)) => {
                assert!(u.all || u.size != 0 && u.iova.checked_add(u.size - 1).is_some());
            }
            Ok(Request::RegionWrite(access, data)) => {
                assert_eq!(access.count as usize, data.len());
            }
            Ok(Request::RegionRead(access)) => assert!(access.count <= 1 << 20),
            Ok(_) => {}
            // QEMU reads errno 0 as success.
            Err(errno) => assert!(errno.raw_os_error() > 0),
        }
    }
}

/// Bit 0: no VERSION comes first. Bit 1: one byte at a time. Bit 2: the client closes its end at once.
fn session(how: u8, bytes: &[u8]) {
    let Ok((client, server)) = UnixStream::pair() else {
        return;
    };
    client.set_nonblocking(true).expect("a socket");
    let session = Session::new(server).expect("a socket can be made non-blocking");
    let mut wire = Wire { client, session, device: YesDevice::default(), replies: Vec::new(), alive: true };
    let mut commands = bytes.len() / 16;
    if how & 1 == 0 {
        wire.deliver(&VERSION);
        commands += 1;
    }
    let step = if how & 2 != 0 && bytes.len() < 512 { 1 } else { bytes.len().max(1) };
    for part in bytes.chunks(step) {
        wire.deliver(part);
    }
    if how & 4 != 0 {
        let _ = wire.client.shutdown(std::net::Shutdown::Write);
    }
    while wire.alive && wire.hear() {
        wire.turn();
    }
    wire.hear();
    check_replies(&wire.replies, commands);
}

struct Wire {
    client: UnixStream,
    session: Session,
    device: YesDevice,
    replies: Vec<u8>,
    alive: bool,
}

impl Wire {
    fn turn(&mut self) {
        self.alive = self.alive && pump(&mut self.session, &mut self.device);
    }

    /// Takes what the server has said; false when that was nothing.
    fn hear(&mut self) -> bool {
        let before = self.replies.len();
        let _ = self.client.read_to_end(&mut self.replies);
        self.replies.len() > before
    }

    /// Sends all of `bytes`; a client that cannot send reads its replies first.
    fn deliver(&mut self, mut bytes: &[u8]) {
        while self.alive && !bytes.is_empty() {
            let sent = self.client.write(bytes).unwrap_or(0);
            bytes = &bytes[sent..];
            self.turn();
            let heard = sent == 0 && self.hear();
            assert!(sent > 0 || heard || !self.alive, "the session neither takes nor gives");
        }
    }
}

/// False when the session is over.
fn pump(session: &mut Session, device: &mut YesDevice) -> bool {
    // A message has at least 16 bytes and a turn its budget: this ends.
    let mut result = session.pump(device);
    for _ in 0..100_000 {
        match result {
            Ok(Pumped::Again) => result = session.pump(device),
            Ok(Pumped::Waiting) => {
                assert!(device.owed);
                device.owed = false;
                result = session.finish(Ok(()), device);
            }
            // Nobody reads while we pump.
            Ok(Pumped::Drained | Pumped::Blocked) => return true,
            Ok(Pumped::Closed) | Err(_) => return false,
        }
    }
    panic!("the session never comes to rest");
}

/// What came back is a sequence of well-formed replies, no more of them than there can have been commands.
fn check_replies(all: &[u8], commands: usize) {
    let mut rest = all;
    let mut replies = 0;
    while !rest.is_empty() {
        let Ok((header, _)) = Header::read_from_prefix(rest) else {
            return; // cut off by the end of the session
        };
        assert!(header.size >= 16);
        assert_eq!(header.flags & 0xf, 1, "type reply");
        assert_eq!(header.flags & 0x20 != 0, header.error != 0);
        if header.error != 0 {
            assert_eq!(header.size, 16);
        }
        let Some(next) = rest.get(header.size as usize..) else {
            return;
        };
        rest = next;
        replies += 1;
    }
    assert!(replies <= commands, "{replies} replies to at most {commands} commands");
}

/// Agrees to everything; takes its time with some unmaps and resets.
#[derive(Default)]
struct YesDevice {
    turn: u8,
    owed: bool,
}

impl YesDevice {
    fn answer(&mut self) -> Answer {
        assert!(!self.owed, "a second request while an answer is owed");
        self.turn = self.turn.wrapping_add(1);
        self.owed = self.turn.is_multiple_of(2);
        if self.owed { Answer::Later } else { Answer::Now(Err(Errno::INVAL)) }
    }
}

const SIZES: [u64; 9] = [0x4000, 0, 0, 0, 0x2000, 0, 0, 4096, 0];

impl Device for YesDevice {
    fn region_info(&self, index: u32) -> RegionInfo<'_> {
        match SIZES[index as usize] {
            0 => RegionInfo::ABSENT,
            size => RegionInfo::trapped(size),
        }
    }

    fn irq_info(&self, index: u32) -> IrqInfo {
        let count = [0, 0, 33, 1, 0][index as usize];
        IrqInfo { flags: 1, count }
    }

    fn region_read(&mut self, index: u32, offset: u64, data: &mut [u8]) {
        inside(index, offset, data.len());
        data.fill(0x5a);
    }

    fn region_write(&mut self, index: u32, offset: u64, data: &[u8]) -> Answer {
        inside(index, offset, data.len());
        self.answer()
    }

    fn set_irqs(&mut self, _: SetIrqs<'_>) -> Result<(), Errno> {
        Ok(())
    }

    fn dma_map(&mut self, _: DmaMap, _: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        Ok(())
    }

    fn dma_unmap(&mut self, _: DmaUnmap) -> Answer {
        self.answer()
    }

    fn reset(&mut self) -> Answer {
        self.answer()
    }
}

fn inside(index: u32, offset: u64, len: usize) {
    let end = offset.checked_add(len as u64).expect("checked");
    // No bytes of no region are harmless.
    let size = SIZES.get(index as usize).copied().unwrap_or(0);
    assert!(end <= size, "{len} bytes at {offset:#x} of region {index}");
}
