//! Names a device is known by, made when none are given. They depend on nothing but what they are
//! made from, so that `/dev/disk/by-id` links and mounts survive a restart of the daemon.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use uuid::Uuid;

/// Name space of all ids made here (RFC 9562, version 5). Changing it renames every device.
const SPACE: Uuid = Uuid::from_u128(0x0b1f_6a2e_73c4_4d0b_9a57_e0c2_5d81_36f4);

/// Makes an id from a purpose and its parts; NUL, which no part contains, separates them.
fn derive(purpose: &str, parts: &[&[u8]]) -> Uuid {
    let mut name = purpose.as_bytes().to_vec();
    for part in parts {
        name.push(0);
        name.extend_from_slice(part);
    }
    Uuid::new_v5(&SPACE, &name)
}

/// A serial number of 20 characters (the field's width) for a daemon on `socket`.
///
/// From the absolute path: two daemons cannot have the same socket, and two controllers of one serial
/// (hence one NQN) in one guest are refused by Linux; a random one would rename the disks at each start.
pub(super) fn serial(socket: &Path) -> String {
    let absolute = std::path::absolute(socket).unwrap_or_else(|_| socket.to_owned());
    let (_, low) = derive("serial", &[absolute.as_os_str().as_bytes()]).as_u64_pair();
    format!("VUN-{low:016X}")
}

/// The subsystem's NQN in the UUID form, the only one for those who own no domain name
/// (NVMe Base, NVMe Qualified Names).
pub(super) fn subnqn(serial: &str) -> String {
    let uuid = derive("subnqn", &[serial.as_bytes()]);
    format!("nqn.2014-08.org.nvmexpress:uuid:{uuid}")
}

/// Namespace UUID.
pub(super) fn uuid(serial: &str, nsid: u32) -> Uuid {
    derive("uuid", &[serial.as_bytes(), nsid.to_string().as_bytes()])
}

/// Marks the first byte of an OUI as given locally and as no group address, which makes it nobody's.
fn local(byte: u8) -> u8 {
    (byte | 0x02) & !0x01
}

/// Namespace NGUID, as the bytes of Identify. Bytes 8 to 10 are its OUI.
pub(super) fn nguid(serial: &str, nsid: u32) -> [u8; 16] {
    let mut id = derive("nguid", &[serial.as_bytes(), nsid.to_string().as_bytes()]).into_bytes();
    id[8] = local(id[8]);
    id
}

/// Namespace EUI64, as the bytes of Identify. Bytes 0 to 2 are its OUI.
pub(super) fn eui64(serial: &str, nsid: u32) -> [u8; 8] {
    let (high, _) = derive("eui64", &[serial.as_bytes(), nsid.to_string().as_bytes()]).as_u64_pair();
    let mut id = high.to_be_bytes();
    id[0] = local(id[0]);
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    /// These values are on people's disks: a change here renames every device.
    #[test]
    fn ids_never_change() {
        assert_eq!(serial(Path::new("/run/a.sock")), "VUN-B79EC62D0641EF48");
        assert_eq!(subnqn("S1"), "nqn.2014-08.org.nvmexpress:uuid:bc1b4afb-d5ea-5e9b-938c-de9c67157efe");
        assert_eq!(uuid("S1", 1).to_string(), "d5a9fb0a-4a12-5f23-81e8-b77971e89b84");
        assert_eq!(Uuid::from_bytes(nguid("S1", 1)).to_string(), "df2bdcd1-7ebf-5f9b-b648-e2ab55694637");
        assert_eq!(u64::from_be_bytes(eui64("S1", 1)), 0xbe68_e820_36b1_5823);
    }

    #[test]
    fn ids_differ_and_are_local() {
        let a = serial(Path::new("/run/a.sock"));
        assert_eq!(a.len(), 20);
        assert_ne!(a, serial(Path::new("/run/b.sock")));
        assert_ne!(uuid(&a, 1), uuid(&a, 2));
        assert_ne!(subnqn("S1"), subnqn("S2"));
        for nsid in 1..=256 {
            assert_eq!(nguid(&a, nsid)[8] & 3, 2);
            assert_eq!(eui64(&a, nsid)[0] & 3, 2);
        }
    }

    #[test]
    fn a_relative_path_counts_as_absolute() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(serial(Path::new("s")), serial(&here.join("s")));
    }
}
