//! Bringing memory near before it is needed.
#![expect(unsafe_code, reason = "an instruction of the processor's")]

/// Bytes of a cache line.
pub const LINE: usize = 64;

/// Begins to bring `len` bytes from `first` on near. Any address will do: a prefetch never faults.
pub fn prefetch(first: *const u8, len: usize) {
    for line in (0..len).step_by(LINE) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: SSE is part of every x86-64, and the instruction only hints.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(first.wrapping_add(line).cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (first, line);
    }
}
