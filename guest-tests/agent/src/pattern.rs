//! Bytes that say which block they are, and a fast sum: both sides compute them, so that a host can check an
//! image against what a guest wrote without carrying the data over.

/// Bytes in one patterned unit. The pattern does not depend on the namespace's block size.
pub const UNIT: usize = 512;

fn mix(mut x: u64) -> u64 {
    // splitmix64: every input bit reaches every output bit, so that neighbours share nothing.
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A small generator for tests that need the same random numbers on both sides.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Starts at `seed`; equal seeds give equal sequences.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    /// Next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Uniform enough in `0..bound`; 0 for a bound of 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64().checked_rem(bound).unwrap_or(0)
    }
}

/// Fills `buf` with the pattern of `seed` for the bytes that start at `offset`, a multiple of [`UNIT`].
/// Word 0 of each unit is its own offset, word 1 the seed: a misplaced block names where it belongs.
pub fn fill(buf: &mut [u8], offset: u64, seed: u64) {
    for (n, unit) in buf.chunks_mut(UNIT).enumerate() {
        let at = offset + (n * UNIT) as u64;
        let base = mix(at ^ mix(seed));
        for (w, word) in unit.chunks_mut(8).enumerate() {
            let value = match w {
                0 => at,
                1 => seed,
                _ => base.wrapping_mul(2 * w as u64 + 1),
            };
            word.copy_from_slice(&value.to_le_bytes()[..word.len()]);
        }
    }
}

/// The pattern as a fresh buffer.
#[must_use]
pub fn bytes(offset: u64, len: usize, seed: u64) -> Vec<u8> {
    let mut buf = vec![0; len];
    fill(&mut buf, offset, seed);
    buf
}

/// 64-bit sum of a byte stream whose parts are fed in order; depends on the position of every word.
///
/// Not cryptographic: it guards against faults, not against an enemy, and must be cheap under emulation.
#[derive(Debug, Clone, Default)]
pub struct Sum {
    state: u64,
    bytes: u64,
}

impl Sum {
    /// Feeds the next part; all parts but the last are multiples of eight bytes long.
    pub fn update(&mut self, part: &[u8]) {
        for word in part.chunks(8) {
            let mut le = [0; 8];
            le[..word.len()].copy_from_slice(word);
            self.state =
                (self.state ^ u64::from_le_bytes(le)).wrapping_mul(0x2127_599b_f432_5c37).rotate_left(23);
        }
        self.bytes += part.len() as u64;
    }

    /// The sum of all parts.
    #[must_use]
    pub fn finish(&self) -> u64 {
        mix(self.state ^ self.bytes.rotate_left(32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_names_its_place_and_differs_from_every_other() {
        let two = bytes(1024, 1024, 3);
        assert_eq!(two[..8], 1024u64.to_le_bytes());
        assert_eq!(two[512..520], 1536u64.to_le_bytes());
        assert_ne!(two[16..512], two[528..1024]);
        assert_ne!(bytes(1024, 512, 3)[16..], bytes(1024, 512, 4)[16..]);
        assert_eq!(bytes(1536, 512, 3), two[512..]);
    }

    #[test]
    fn sum_sees_order_length_and_every_bit() {
        let sum = |parts: &[&[u8]]| {
            let mut sum = Sum::default();
            parts.iter().for_each(|p| sum.update(p));
            sum.finish()
        };
        let data = bytes(0, 1024, 1);
        assert_eq!(sum(&[&data]), sum(&[&data[..512], &data[512..]]));
        assert_ne!(sum(&[&data]), sum(&[&data[512..], &data[..512]]));
        assert_ne!(sum(&[&[0; 8]]), sum(&[&[0; 16]]));
        let mut flipped = data.clone();
        flipped[1000] ^= 1;
        assert_ne!(sum(&[&data]), sum(&[&flipped]));
    }
}
