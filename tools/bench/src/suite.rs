//! The rows that docs/performance.md is about.

use super::pattern::Rw;
use super::row::{Limit, Row, Suite};

const KIB: u64 = 1 << 10;

/// A suite's rows in the order they are measured.
pub(crate) fn rows(suite: &Suite) -> Vec<Row> {
    let row = |rw, bytes, depth, limit| Row { rw, bytes, depth, queues: 1, mix: 50, limits: vec![limit] };
    match suite {
        Suite::Memory => {
            let memory = Limit::Memory { huge: true };
            vec![
                row(Rw::RandRead, 4 * KIB, 32, memory.clone()),
                row(Rw::RandRead, 4 * KIB, 1, Limit::Floor),
                row(Rw::Read, 128 * KIB, 32, memory.clone()),
                row(Rw::RandRead, 4 * KIB, 128, memory.clone()),
                row(Rw::RandWrite, 4 * KIB, 32, memory),
            ]
        }
        Suite::File(file) => {
            let file = Limit::File(file.clone());
            vec![
                row(Rw::RandRead, 4 * KIB, 32, file.clone()),
                row(Rw::RandRead, 4 * KIB, 1, file.clone()),
                row(Rw::Read, 128 * KIB, 32, file.clone()),
                row(Rw::RandWrite, 4 * KIB, 32, file.clone()),
                row(Rw::Write, 128 * KIB, 32, file),
            ]
        }
    }
}
