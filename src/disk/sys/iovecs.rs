//! The buffers of one call: parts of the job's own memory or zeroes, within the kernel's limits.
#![expect(unsafe_code, reason = "iovecs are raw pointers; the kernel is given them")]

use libc::iovec;

/// The kernel moves no more than this in one call (MAX_RW_COUNT), and says so only by a short transfer.
const MAX_RW: usize = 0x7fff_f000;
/// More iovecs than this are EINVAL.
pub(in crate::disk) const MAX_IOV: usize = libc::UIO_MAXIOV as usize;

const ZERO_CHUNK: usize = 64 << 10;
/// Iovecs over the one buffer of zeroes in a call: 1 MiB.
const ZERO_IOVS: usize = 16;
#[repr(align(4096))]
struct Zeroes([u8; ZERO_CHUNK]);
static ZEROES: Zeroes = Zeroes([0; ZERO_CHUNK]);

/// Which iovecs the current call uses.
#[derive(Clone, Copy, Debug)]
enum Window {
    None,
    /// All of the GuestBuf's own: nothing is built, nothing allocated.
    Guest,
    Single,
    Built,
}

#[derive(Debug)]
pub(in crate::disk) struct Iovecs {
    window: Window,
    single: iovec,
    built: Vec<iovec>,
}

impl Iovecs {
    pub(in crate::disk) const NONE: Iovecs = Iovecs {
        window: Window::None,
        single: iovec { iov_base: std::ptr::null_mut(), iov_len: 0 },
        built: Vec::new(),
    };

    /// At nothing.
    pub(in crate::disk) fn clear(&mut self) {
        self.window = Window::None;
    }

    /// At all of the guest memory, `len` bytes, if one call takes so much: nothing is built then.
    pub(in crate::disk) fn aim_at_guest(&mut self, all: &[iovec], len: u64) -> bool {
        let fits = all.len() <= MAX_IOV && len <= MAX_RW as u64;
        if fits {
            self.window = Window::Guest;
        }
        fits
    }

    /// At guest memory from byte `skip` on, or as much of it as one call takes; at most `room` bytes.
    pub(in crate::disk) fn aim_at_part(&mut self, all: &[iovec], skip: usize, room: usize) {
        window_of(all, skip, room, &mut self.built);
        self.window = Window::Built;
    }

    /// All of them; `guest` is all of the guest memory that they may point at.
    pub(in crate::disk) fn get<'a>(&'a self, guest: Option<&'a [iovec]>) -> &'a [iovec] {
        match self.window {
            Window::None => &[],
            Window::Single => std::slice::from_ref(&self.single),
            Window::Built => &self.built,
            Window::Guest => guest.unwrap_or_default(),
        }
    }

    /// At `len` bytes of the job's own memory.
    pub(in crate::disk) fn aim_at(&mut self, base: *mut u8, len: usize) {
        self.single = iovec { iov_base: base.cast(), iov_len: len.min(MAX_RW) };
        self.window = Window::Single;
    }

    /// At as many zeroes, or the 1 MiB of them that one call writes.
    pub(in crate::disk) fn aim_at_zeroes(&mut self, left: u64) {
        self.built.clear();
        let mut left = usize::try_from(left).unwrap_or(usize::MAX);
        while left > 0 && self.built.len() < ZERO_IOVS {
            let take = left.min(ZERO_CHUNK);
            self.built.push(iovec { iov_base: (&raw const ZEROES.0).cast_mut().cast(), iov_len: take });
            left -= take;
        }
        self.window = Window::Built;
    }
}

// SAFETY: the pointers lead into the job's own buffers (which are Send) or the static zeroes; only the call in
// progress uses them.
unsafe impl Send for Iovecs {}

/// Fills `out` with the part of `all` from byte `skip` on that one call takes, at most `room` bytes.
fn window_of(all: &[iovec], mut skip: usize, room: usize, out: &mut Vec<iovec>) {
    out.clear();
    let mut room = room.min(MAX_RW);
    for iov in all {
        if iov.iov_len <= skip {
            skip -= iov.iov_len;
            continue;
        }
        if out.len() == MAX_IOV || room == 0 {
            break;
        }
        let take = (iov.iov_len - skip).min(room);
        out.push(iovec { iov_base: iov.iov_base.wrapping_byte_add(skip), iov_len: take });
        room -= take;
        skip = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A limit a test cannot reach with real memory: the window holds to it whatever the pieces.
    #[test]
    fn a_window_keeps_to_the_kernels_limits() {
        let piece = |len| iovec { iov_base: std::ptr::without_provenance_mut(1 << 20), iov_len: len };
        let mut out = Vec::new();
        let lens = |out: &[iovec]| out.iter().map(|iov| iov.iov_len).collect::<Vec<_>>();
        window_of(&[piece(MAX_RW - 1), piece(3), piece(9)], 0, MAX_RW, &mut out);
        assert_eq!(lens(&out), [MAX_RW - 1, 1]);
        window_of(&[piece(7), piece(2 * MAX_RW)], 10, MAX_RW, &mut out);
        assert_eq!(lens(&out), [MAX_RW]);
        assert_eq!(out[0].iov_base.addr(), (1 << 20) + 3);
        window_of(&vec![piece(1); 3000], 500, MAX_RW, &mut out);
        assert_eq!(lens(&out), [1; MAX_IOV]);
    }
}
