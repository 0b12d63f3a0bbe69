//! The vfio-user wire: a pure codec, one session over one socket, interrupts out.
//!
//! | file | job |
//! |---|---|
//! | `messages` | the packed structures and numbers of the protocol |
//! | `codec` | bytes to typed requests or an errno, and replies to bytes; no I/O |
//! | `version` | the JSON of the VERSION command, both ways |
//! | `device` | the trait a session drives, and the values that cross it |
//! | `error` | why a session ends before its client leaves |
//! | `client_fds` | descriptors that come from clients, and how they are closed |
//! | `receiver`, `sender` | the two directions of the socket, descriptors included |
//! | `session` | one client from VERSION to its last message |
//! | `interrupts` | eventfds of the client, raised from any thread |
//! | `listener` | the socket file, one client at a time |
//!
//! Nothing here knows of NVMe, and nothing here waits: every call returns when the socket has
//! nothing more to give, so one thread can serve it beside everything else.

mod client_fds;
pub mod codec;
mod device;
mod error;
mod interrupts;
mod listener;
pub mod messages;
mod receiver;
mod sender;
mod session;
pub mod version;

pub use client_fds::{ClientFds, closes_too_slowly};
pub use device::{
    Answer, Device, DmaMap, DmaUnmap, IrqAction, IrqData, IrqInfo, RegionInfo, RegionMmap, SetIrqs,
    SparseArea,
};
pub use error::SessionError;
pub use interrupts::Interrupts;
pub use listener::{ListenError, Listener, SocketAccess, bound_path};
pub use rustix::io::Errno;
pub use session::{Interest, Pumped, Session};
