//! What the accepted commands imply for each block, and whether the image agrees.
//!
//! It sits at the seam of commands and judges all that lies below: plans, methods, layers, images. Checksums of
//! blocks ([`Sum`]); what is known of each block ([`Ledger`]) and what a Copy implies ([`Expected`]), both pure;
//! who tells them (`lab.rs`); which namespaces are watched ([`Oracle`]).

mod cells;
mod copies;
mod lab;
mod ledger;
mod registry;
mod sum;
#[cfg(test)]
mod tests;
mod verdict;

pub use cells::MOST;
pub use copies::{CopySource, Expected};
pub use lab::tool;
pub use ledger::{Judged, Ledger, Span, Tick};
pub use registry::{Look, Oracle};
pub use sum::Sum;
pub use verdict::{Difference, Origin, WrittenBy};
