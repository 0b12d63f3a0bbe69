//! Messages over the virtio-serial port: one line of JSON, followed by as many raw bytes as the line
//! announces.
//!
//! JSON alone would have to encode file contents and program output; raw bytes behind a length keep both
//! exact.

use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Name of the virtio-serial port, as in `/sys/class/virtio-ports/*/name`.
pub const PORT: &str = "guest-agent";

/// Longest payload a message may carry, in bytes; a larger one means the two sides lost each other.
pub const PAYLOAD_MAX: usize = 64 << 20;

/// What the host asks for. `id` is chosen by the host and comes back in every [`Reply`] to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Run a program; output comes as it is written, then [`Reply::Exit`].
    Run {
        /// Request number.
        id: u64,
        /// Program and arguments; the program is looked for in `PATH`.
        argv: Vec<String>,
        /// Does it read what [`Request::Input`] brings? If not, its input is empty.
        input: bool,
    },
    /// The payload is the next part of a program's standard input, an empty one its end; answered by
    /// [`Reply::Done`] once the program has taken it, by [`Reply::Failed`] when it never will.
    Input {
        /// Request number.
        id: u64,
        /// Number of the `Run` request.
        job: u64,
    },
    /// Write the payload to a file, replacing it; answered by [`Reply::Done`].
    Put {
        /// Request number.
        id: u64,
        /// Absolute path in the guest.
        path: String,
        /// Permission bits.
        mode: u32,
    },
    /// Read a file; answered by [`Reply::Done`] with the content as payload.
    Get {
        /// Request number.
        id: u64,
        /// Absolute path in the guest.
        path: String,
    },
    /// SIGKILL to the program of an earlier [`Request::Run`]; no answer of its own.
    Kill {
        /// Number of the `Run` request.
        id: u64,
    },
    /// Sync and power off; no answer.
    Poweroff,
    /// Sync and restart; no answer but a new [`Reply::Hello`] after the boot.
    Reboot,
}

/// What the guest answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "re", rename_all = "snake_case")]
pub enum Reply {
    /// First message after each boot.
    Hello {
        /// `/proc/sys/kernel/random/boot_id`: tells one boot from the next.
        boot: String,
        /// Kernel release.
        kernel: String,
        /// Seconds since the kernel started.
        uptime: f64,
    },
    /// Payload is standard output.
    Out {
        /// Request number.
        id: u64,
    },
    /// Payload is standard error.
    Err {
        /// Request number.
        id: u64,
    },
    /// The program ended. All its output came before.
    Exit {
        /// Request number; 0 for the shell on the console, which nobody asked for here.
        id: u64,
        /// Exit code; 128 + signal number when a signal ended it, 127 when it could not be started.
        code: i32,
    },
    /// Put, Get or Input went well; Get has the file as payload.
    Done {
        /// Request number.
        id: u64,
    },
    /// Put, Get or Input went wrong.
    Failed {
        /// Request number.
        id: u64,
        /// Why, for a human.
        why: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    #[serde(flatten)]
    message: T,
    #[serde(default, skip_serializing_if = "is_zero")]
    len: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde calls")]
fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// Writes one message with its payload, as one `write_all` so that threads that hold a lock around it cannot
/// interleave.
pub fn send<T: Serialize>(to: &mut impl Write, message: &T, payload: &[u8]) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(&Envelope { message, len: payload.len() })?;
    bytes.push(b'\n');
    bytes.extend_from_slice(payload);
    to.write_all(&bytes)?;
    to.flush()
}

/// Reads one message with its payload; `None` at the end of the stream.
///
/// # Errors
/// `InvalidData` for a line that is no message of type `T` or announces more than [`PAYLOAD_MAX`].
pub fn receive<T: DeserializeOwned>(from: &mut impl BufRead) -> io::Result<Option<(T, Vec<u8>)>> {
    let mut line = Vec::new();
    if from.read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    let envelope: Envelope<T> =
        serde_json::from_slice(&line).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    if envelope.len > PAYLOAD_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "payload too long"));
    }
    let mut payload = vec![0; envelope.len];
    from.read_exact(&mut payload)?;
    Ok(Some((envelope.message, payload)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_round_trip_with_payloads_that_look_like_messages() {
        let mut wire = Vec::new();
        let put = Request::Put { id: 7, path: "/a\nb".into(), mode: 0o644 };
        let payload = b"{\"op\":\"reboot\"}\n\n\0";
        send(&mut wire, &put, payload).unwrap();
        send(&mut wire, &Request::Reboot, b"").unwrap();
        let mut from = &wire[..];
        assert_eq!(receive::<Request>(&mut from).unwrap(), Some((put, payload.to_vec())));
        assert_eq!(receive::<Request>(&mut from).unwrap(), Some((Request::Reboot, vec![])));
        assert_eq!(receive::<Request>(&mut from).unwrap(), None);
    }

    #[test]
    fn a_torn_message_is_an_error() {
        let mut wire = Vec::new();
        send(&mut wire, &Reply::Out { id: 1 }, b"abc").unwrap();
        wire.pop();
        assert!(receive::<Reply>(&mut &wire[..]).is_err());
        assert!(receive::<Reply>(&mut &b"garbage\n"[..]).is_err());
        assert!(receive::<Reply>(&mut &b"{\"re\":\"out\",\"id\":1,\"len\":999999999999}\n"[..]).is_err());
    }
}
