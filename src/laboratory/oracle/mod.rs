//! What the accepted commands imply for each block, and whether the image agrees.
//!
//! Pure so far: checksums of blocks ([`Sum`]), what is known of each block ([`Ledger`]), and what a Copy
//! implies ([`Expected`]).

mod cells;
mod copies;
mod ledger;
mod sum;
#[cfg(test)]
mod tests;
mod verdict;

pub use cells::MOST;
pub use copies::{CopySource, Expected};
pub use ledger::{Judged, Ledger, Span, Tick};
pub use sum::Sum;
pub use verdict::{Difference, Origin, WrittenBy};
