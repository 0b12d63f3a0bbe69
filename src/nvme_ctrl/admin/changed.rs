//! Namespaces that changed while the host looked elsewhere: the Changed Attached Namespace List log (04h) and
//! its event.

use std::collections::BTreeSet;

/// NSIDs that the log has room for.
const ENTRIES: usize = 1024;

/// The list: NSIDs since the host last read it.
#[derive(Debug, Default)]
pub struct ChangedNamespaces(BTreeSet<u32>);

impl ChangedNamespaces {
    /// The log page: NSIDs ascending, zeroes behind; FFFFFFFFh alone if there are too many.
    pub fn bytes(&self) -> Vec<u8> {
        let many = [u32::MAX];
        let nsids: Vec<u32> =
            if self.0.len() > ENTRIES { many.into() } else { self.0.iter().copied().collect() };
        let mut log: Vec<u8> = nsids.into_iter().flat_map(u32::to_le_bytes).collect();
        log.resize(ENTRIES * size_of::<u32>(), 0);
        log
    }

    /// Namespaces that are new, other or gone.
    pub fn extend(&mut self, nsids: impl IntoIterator<Item = u32>) {
        self.0.extend(nsids);
    }

    /// What it holds, ascending.
    pub fn nsids(&self) -> impl Iterator<Item = u32> {
        self.0.iter().copied()
    }

    /// The host has read the log, or is about to look at all namespaces anew, as after a reset.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_are_said_so() {
        let mut changed = ChangedNamespaces((1..=1024).collect());
        let log = changed.bytes();
        assert_eq!((log.len(), &log[..4], &log[4092..]), (4096, &[1, 0, 0, 0][..], &[0, 4, 0, 0][..]));
        changed.0.insert(2000);
        let log = changed.bytes();
        assert_eq!((log.len(), &log[..4], &log[4..8]), (4096, &[0xff; 4][..], &[0; 4][..]));
        changed.clear();
        assert_eq!(changed.bytes(), [0; 4096]);
    }
}
