//! The memory of one call, within the kernel's limits.

use libc::iovec;
use smallvec::SmallVec;

/// More iovecs than this are EINVAL.
pub(in crate::disk) const MAX_IOV: usize = libc::UIO_MAXIOV as usize;
/// The kernel moves no more than this in one call (MAX_RW_COUNT), and says so only by a short transfer.
pub(in crate::disk) const MAX_RW: usize = 0x7fff_f000;

const ZERO_CHUNK: usize = 64 << 10;
#[repr(align(4096))]
struct Zeroes([u8; ZERO_CHUNK]);
static ZEROES: Zeroes = Zeroes([0; ZERO_CHUNK]);

/// Bytes of the most zeroes that [`zeroes`] gives.
pub(in crate::disk) const MAX_ZEROES: u64 = 1 << 20;

/// So many zeroes, to be written from, or [`MAX_ZEROES`].
pub(in crate::disk) fn zeroes(len: u64) -> SmallVec<[iovec; 16]> {
    let mut left = len.min(MAX_ZEROES) as usize;
    let mut iovecs = SmallVec::new();
    while left > 0 {
        let iov_len = left.min(ZERO_CHUNK);
        iovecs.push(iovec { iov_base: (&raw const ZEROES.0).cast_mut().cast(), iov_len });
        left -= iov_len;
    }
    iovecs
}

/// The memory of one call that goes on from byte `skip` of `all`; put together in `built` where it is not simply the first
/// of them.
pub(in crate::disk) fn window<'a>(all: &'a [iovec], skip: usize, built: &'a mut Vec<iovec>) -> &'a [iovec] {
    if skip == 0 {
        return all.get(..MAX_IOV).unwrap_or(all);
    }
    built.clear();
    let mut skip = skip;
    for iov in all {
        if skip >= iov.iov_len {
            skip -= iov.iov_len;
            continue;
        }
        if built.len() == MAX_IOV {
            break;
        }
        built.push(iovec { iov_base: iov.iov_base.wrapping_byte_add(skip), iov_len: iov.iov_len - skip });
        skip = 0;
    }
    built
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_window_keeps_to_the_kernels_limit() {
        let piece = |len| iovec { iov_base: std::ptr::without_provenance_mut(1 << 20), iov_len: len };
        let mut built = Vec::new();
        let mut lens = |all: &[iovec], skip| {
            let window = window(all, skip, &mut built);
            window.iter().map(|iov| (iov.iov_base.addr() - (1 << 20), iov.iov_len)).collect::<Vec<_>>()
        };
        assert_eq!(lens(&[piece(7), piece(9)], 0), [(0, 7), (0, 9)]);
        assert_eq!(lens(&[piece(7), piece(9), piece(3)], 10), [(3, 6), (0, 3)]);
        assert_eq!(lens(&[piece(7)], 7), []);
        for skip in [0, 500] {
            assert_eq!(lens(&vec![piece(1); 3000], skip), [(0, 1); MAX_IOV]);
        }
    }

    proptest! {
        /// Byte for byte what is left, without empty pieces.
        #[test]
        fn a_window_is_the_rest(lens in prop::collection::vec(1usize..50, 1..40), skip in 0usize..1000) {
            let all: Vec<iovec> = lens
                .iter()
                .enumerate()
                .map(|(n, len)| iovec { iov_base: std::ptr::without_provenance_mut(n << 20), iov_len: *len })
                .collect();
            let bytes = |iovecs: &[iovec]| -> Vec<usize> {
                iovecs.iter().flat_map(|iov| (0..iov.iov_len).map(|n| iov.iov_base.addr() + n)).collect()
            };
            let mut built = vec![all[0]];
            let window = window(&all, skip, &mut built);
            prop_assert!(window.iter().all(|iov| iov.iov_len > 0));
            prop_assert_eq!(bytes(window), bytes(&all).split_off(skip.min(lens.iter().sum())));
        }
    }

    #[test]
    fn zeroes_as_many_as_asked_for() {
        for (len, given) in [(0, 0), (1, 1), (65537, 65537), (MAX_ZEROES, MAX_ZEROES), (u64::MAX, MAX_ZEROES)]
        {
            assert_eq!(zeroes(len).iter().map(|iov| iov.iov_len as u64).sum::<u64>(), given);
        }
    }
}
