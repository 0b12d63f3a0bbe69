//! The packed structures and numbers of the protocol. Integers are in the host's byte order.
//!
//! Numbers that vfio-user shares with the kernel's VFIO come from `vfio-bindings`; the rest (header
//! flags, commands) exist only in the vfio-user specification and are written down here.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Most bytes of region data in one message; announced as `max_data_xfer_size`.
pub const MAX_DATA_XFER_SIZE: u32 = 1 << 20;
/// Most descriptors a client may attach to one message; announced as `max_msg_fds`.
///
/// QEMU refuses a server that announces more than 16, and with fewer it splits its vector lists.
pub const MAX_MSG_FDS: u32 = 16;
/// Most DMA mappings of one client; announced as `max_dma_maps`.
pub const MAX_DMA_MAPS: u32 = 4096;
/// Bytes in a message header, and so in the shortest message.
pub const HEADER_SIZE: usize = size_of::<Header>();
/// Longest message taken: the largest data transfer and room for any fixed part.
pub const MAX_MESSAGE_SIZE: usize = MAX_DATA_XFER_SIZE as usize + 64;
/// Regions announced: those of the kernel's vfio-pci (six BARs, ROM, configuration space, VGA).
pub const NUM_REGIONS: u32 = vfio_bindings::bindings::vfio::VFIO_PCI_NUM_REGIONS;
/// Interrupt indices announced: those of the kernel's vfio-pci (INTx, MSI, MSI-X, error, request).
pub const NUM_IRQS: u32 = vfio_bindings::bindings::vfio::VFIO_PCI_NUM_IRQS;

/// Header flags, bits 3:0: the message type.
pub const FLAG_TYPE_MASK: u32 = 0xf;
/// Message type 0: a command.
pub const TYPE_COMMAND: u32 = 0;
/// Message type 1: a reply.
pub const TYPE_REPLY: u32 = 1;
/// Header flag: the sender expects no reply, not even an error.
pub const FLAG_NO_REPLY: u32 = 1 << 4;
/// Header flag: this reply carries an errno and nothing else.
pub const FLAG_ERROR: u32 = 1 << 5;

/// Command numbers that this server executes, or knows well enough to name in a log line.
pub mod command {
    /// VERSION: negotiation, the first message of a connection.
    pub const VERSION: u16 = 1;
    /// DMA_MAP.
    pub const DMA_MAP: u16 = 2;
    /// DMA_UNMAP.
    pub const DMA_UNMAP: u16 = 3;
    /// DEVICE_GET_INFO.
    pub const GET_INFO: u16 = 4;
    /// DEVICE_GET_REGION_INFO.
    pub const GET_REGION_INFO: u16 = 5;
    /// DEVICE_GET_IRQ_INFO.
    pub const GET_IRQ_INFO: u16 = 7;
    /// DEVICE_SET_IRQS.
    pub const SET_IRQS: u16 = 8;
    /// REGION_READ.
    pub const REGION_READ: u16 = 9;
    /// REGION_WRITE.
    pub const REGION_WRITE: u16 = 10;
    /// DEVICE_RESET.
    pub const RESET: u16 = 13;
}

/// Begins every message, in both directions.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// Chosen by the sender of the command, only echoed; may repeat.
    pub id: u16,
    /// One of [`command`].
    pub command: u16,
    /// Bytes in the whole message, this header included.
    pub size: u32,
    /// Type in bits 3:0, [`FLAG_NO_REPLY`], [`FLAG_ERROR`].
    pub flags: u32,
    /// errno of an error reply, else 0.
    pub error: u32,
}

impl Header {
    /// Is this a command (as against a reply or a type nobody has defined)?
    pub fn is_command(&self) -> bool {
        self.flags & FLAG_TYPE_MASK == TYPE_COMMAND
    }

    /// Must this command stay without any answer?
    pub fn no_reply(&self) -> bool {
        self.flags & FLAG_NO_REPLY != 0
    }
}

/// Fixed part of VERSION, request and reply; JSON text follows, ended by NUL.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VersionBody {
    /// Must be equal on both sides.
    pub major: u16,
    /// The reply carries the smaller of the two.
    pub minor: u16,
}

/// DMA_MAP request. The reply has no body.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmaMapBody {
    /// Bytes in this structure.
    pub argsz: u32,
    /// `VFIO_DMA_MAP_FLAG_READ`, `VFIO_DMA_MAP_FLAG_WRITE`.
    pub flags: u32,
    /// Offset of the range in the attached descriptor's file, bytes.
    pub offset: u64,
    /// First address of the range as the device sees it.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

/// DMA_UNMAP request, and its reply.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmaUnmapBody {
    /// Bytes in this structure.
    pub argsz: u32,
    /// `VFIO_DMA_UNMAP_FLAG_*`.
    pub flags: u32,
    /// First address of the range as the device sees it.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

/// DEVICE_GET_INFO, request and reply (`struct vfio_device_info`, its first 16 bytes).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DeviceInfoBody {
    /// Bytes in this structure.
    pub argsz: u32,
    /// `VFIO_DEVICE_FLAGS_*`.
    pub flags: u32,
    /// Number of regions.
    pub num_regions: u32,
    /// Number of interrupt indices.
    pub num_irqs: u32,
}

/// DEVICE_GET_REGION_INFO, request and reply (`struct vfio_region_info`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegionInfoBody {
    /// Request: bytes the client has room for. Reply: bytes the full answer needs.
    pub argsz: u32,
    /// `VFIO_REGION_INFO_FLAG_*`.
    pub flags: u32,
    /// Region index.
    pub index: u32,
    /// Offset of the first capability from the start of this structure, or 0.
    pub cap_offset: u32,
    /// Bytes in the region; 0 for one that is not there.
    pub size: u64,
    /// Offset of the region in the attached descriptor's file, bytes.
    pub offset: u64,
}

/// The sparse-mmap capability in a region-info reply; areas follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SparseMmapCapability {
    /// `VFIO_REGION_INFO_CAP_SPARSE_MMAP`.
    pub id: u16,
    /// 1.
    pub version: u16,
    /// Offset of the next capability, 0 at the end.
    pub next: u32,
    /// Number of areas that follow, 16 bytes each.
    pub nr_areas: u32,
    /// 0.
    pub reserved: u32,
}

/// DEVICE_GET_IRQ_INFO, request and reply (`struct vfio_irq_info`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IrqInfoBody {
    /// Bytes in this structure.
    pub argsz: u32,
    /// `VFIO_IRQ_INFO_*`.
    pub flags: u32,
    /// Interrupt index.
    pub index: u32,
    /// Number of interrupts at this index.
    pub count: u32,
}

/// Fixed part of DEVICE_SET_IRQS (`struct vfio_irq_set`); for bool data `count` bytes follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SetIrqsBody {
    /// Bytes in this structure and its data.
    pub argsz: u32,
    /// One `VFIO_IRQ_SET_DATA_*` and one `VFIO_IRQ_SET_ACTION_*`.
    pub flags: u32,
    /// Interrupt index.
    pub index: u32,
    /// First interrupt meant.
    pub start: u32,
    /// Number of interrupts meant.
    pub count: u32,
}

/// Fixed part of REGION_READ and REGION_WRITE, request and reply; data follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegionAccessBody {
    /// Offset in the region, bytes.
    pub offset: u64,
    /// Region index.
    pub region: u32,
    /// Bytes.
    pub count: u32,
}
