//! The JSON of the VERSION command, both ways.

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::messages::{MAX_DATA_XFER_SIZE, MAX_DMA_MAPS, MAX_MSG_FDS};

/// The protocol's major version, the only one there is.
pub const MAJOR: u16 = 0;
/// The newest minor version spoken here. QEMU proposes 0.0, SPDK and cloud-hypervisor 0.1; they
/// differ in nothing this server uses.
pub const MINOR: u16 = 1;

/// What the client said in its VERSION message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientVersion {
    /// Minor version of the reply: the smaller of both sides'.
    pub minor: u16,
    /// The client's limits.
    pub capabilities: Capabilities,
}

/// Limits of one side. Keys that are missing have the specification's defaults, keys that are
/// unknown are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Most descriptors this side takes with one message.
    #[serde(default = "default_max_msg_fds")]
    pub max_msg_fds: u64,
    /// Most bytes of data this side takes with one message.
    #[serde(default = "default_max_data_xfer_size")]
    pub max_data_xfer_size: u64,
    /// Most DMA mappings at a time.
    #[serde(default = "default_max_dma_maps")]
    pub max_dma_maps: u64,
}

fn default_max_msg_fds() -> u64 {
    1
}

fn default_max_data_xfer_size() -> u64 {
    1 << 20
}

fn default_max_dma_maps() -> u64 {
    65535
}

impl Default for Capabilities {
    /// The specification's defaults: what a client without JSON (SPDK's) means.
    fn default() -> Self {
        Capabilities {
            max_msg_fds: default_max_msg_fds(),
            max_data_xfer_size: default_max_data_xfer_size(),
            max_dma_maps: default_max_dma_maps(),
        }
    }
}

/// The top level of the JSON text.
#[derive(Serialize, Deserialize)]
struct Document {
    #[serde(default)]
    capabilities: Capabilities,
}

/// Reads the client's capabilities. `text` may be empty (SPDK) and may lack its NUL.
///
/// # Errors
/// `INVAL` for text that is no JSON object or has a wrong type in a key that is used.
pub fn parse_capabilities(text: &[u8]) -> Result<Capabilities, Errno> {
    let text = match text.iter().position(|byte| *byte == 0) {
        Some(end) => text.split_at(end).0,
        None => text,
    };
    if text.is_empty() {
        return Ok(Capabilities::default());
    }
    serde_json::from_slice(text).map(|document: Document| document.capabilities).map_err(|_| Errno::INVAL)
}

/// Appends this server's capabilities, with the NUL at the end.
///
/// Short on purpose: QEMU receives the reply into the buffer of its own request and refuses a longer
/// one. Migration, write_multiple and twin_socket are absent, which says no; pgsizes is absent, which
/// says 4096.
pub fn append_capabilities(out: &mut Vec<u8>) {
    let document = Document {
        capabilities: Capabilities {
            max_msg_fds: MAX_MSG_FDS.into(),
            max_data_xfer_size: MAX_DATA_XFER_SIZE.into(),
            max_dma_maps: MAX_DMA_MAPS.into(),
        },
    };
    // Numbers under fixed keys: there is nothing in it that could fail to serialize into memory.
    if let Ok(text) = serde_json::to_string(&document) {
        out.extend_from_slice(text.as_bytes());
    }
    out.push(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_text_is_short_and_says_what_it_should() {
        let mut text = Vec::new();
        append_capabilities(&mut text);
        assert!(text.len() < 150, "{} bytes", text.len());
        assert_eq!(text.last(), Some(&0));
        let capabilities = parse_capabilities(&text).unwrap();
        assert_eq!(capabilities.max_msg_fds, 16);
        assert_eq!(capabilities.max_data_xfer_size, 1 << 20);
        assert_eq!(capabilities.max_dma_maps, 4096);
    }

    #[test]
    fn odd_texts() {
        let default = Capabilities::default();
        for (text, expected) in [
            (&b""[..], Ok(default)),
            (b"\0", Ok(default)),
            (b"{}", Ok(default)),
            (b"{}\0garbage after the end", Ok(default)),
            (br#"{"capabilities":{}}"#, Ok(default)),
            (br#"{"capabilities":{"migration":{},"unheard":[1]}}"#, Ok(default)),
            (
                br#"{"capabilities":{"max_msg_fds":16},"twin_socket":{"supported":false}}"#,
                Ok(Capabilities { max_msg_fds: 16, ..default }),
            ),
            (br#"{"capabilities":{"max_msg_fds":"many"}}"#, Err(Errno::INVAL)),
            (br#"{"capabilities":{"max_msg_fds":-1}}"#, Err(Errno::INVAL)),
            (b"{", Err(Errno::INVAL)),
            (b"7", Err(Errno::INVAL)),
            (b"\xff\xfe", Err(Errno::INVAL)),
        ] {
            assert_eq!(parse_capabilities(text), expected, "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn deep_nesting_is_refused_not_followed() {
        let mut text = br#"{"x":"#.to_vec();
        text.resize(100_000, b'[');
        assert_eq!(parse_capabilities(&text), Err(Errno::INVAL));
    }
}
