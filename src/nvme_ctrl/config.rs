//! What one controller is made of.

use super::worker::Poll;

/// What one controller is made of. Counts are 1-based unless they say otherwise.
#[derive(Clone, Debug)]
pub struct ControllerConfig {
    /// Identify Controller SN.
    pub serial: String,
    /// Identify Controller MN.
    pub model: String,
    /// Identify Controller FR.
    pub firmware: String,
    /// Identify Controller SUBNQN.
    pub subnqn: String,
    /// PCI vendor and subsystem vendor.
    pub vid: u16,
    /// PCI subsystem vendor.
    pub ssvid: u16,
    /// Largest transfer: 2^mdts pages of 4 KiB, at least 1.
    pub mdts: u8,
    /// I/O queue pairs.
    pub max_ioqpairs: u16,
    /// CAP.MQES, 0-based.
    pub mqes: u16,
    /// Asynchronous Event Request Limit, 0-based.
    pub aerl: u8,
    /// MSI-X vectors.
    pub vectors: u16,
    /// Identify Controller OCFS: Copy descriptor formats offered.
    pub ocfs: u16,
    /// Copy descriptor formats enabled whatever the host has set (bits of CDFE).
    pub cdfe: u16,
    /// Worker threads.
    pub iothreads: usize,
    /// Doorbell Buffer Config is offered.
    pub doorbell_buffers: bool,
    /// Clients may map the doorbells: they are polled, and Doorbell Buffer Config is not offered.
    pub map_doorbells: bool,
    /// How workers wait for doorbells.
    pub poll: Poll,
}
