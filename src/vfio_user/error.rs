//! Why a session ends before its client leaves.

use rustix::io::Errno;

/// The session cannot go on: the stream can no longer be trusted. Drop it; QEMU will not survive
/// that, so nothing a well-meaning client does leads here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// Header with a size below 16 or above the largest message.
    #[error("message of {0} bytes")]
    MessageSize(u32),
    /// A message before VERSION.
    #[error("command {0} before VERSION")]
    NotNegotiated(u16),
    /// A second VERSION.
    #[error("VERSION a second time")]
    SecondVersion,
    /// More descriptors with one message than the announced limit, or more than this process may
    /// have open.
    #[error("too many descriptors in one message, or too many open in this process")]
    TooManyFds,
    /// Too many descriptors of clients are not closed yet.
    #[error(
        "too many descriptors that clients sent cannot be closed, because whoever serves their files does not answer"
    )]
    Unclosed,
    /// The client has closed its end while a reply was being sent.
    #[error("the client is gone")]
    Gone,
    /// Receiving failed.
    #[error("cannot receive: {0}")]
    Receive(Errno),
    /// Sending failed.
    #[error("cannot send: {0}")]
    Send(Errno),
}
