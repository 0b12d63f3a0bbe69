//! What all disks promise, tried on memory and on the file systems that matter.

pub(super) mod conformance;
mod copying;
mod durability;
mod layers;
pub(super) mod places;
pub(super) mod script;
