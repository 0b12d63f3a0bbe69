//! Tells images that are not raw, and packed files, by their magic numbers: served as raw by mistake they
//! would be destroyed by the first write.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// What a file was taken for.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    /// As people call it.
    pub name: &'static str,
    /// How its content can be served.
    pub remedy: Remedy,
    /// Where the magic number stands: bytes from the start of the file, or from its end if negative.
    at: i64,
    magic: &'static [u8],
}

/// How the content of a file that is not raw can be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// By a program that knows the format.
    Convert,
    /// It has to be unpacked.
    Unpack,
    /// As it is, but for reading: a disc, which is one on a disk too.
    ReadOnly,
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Remedy::Convert => "convert it (qemu-img convert -O raw)",
            Remedy::Unpack => "unpack it",
            Remedy::ReadOnly => "give readonly=on",
        })
    }
}

const fn format(name: &'static str, at: i64, magic: &'static [u8], remedy: Remedy) -> Format {
    Format { name, remedy, at, magic }
}

/// A LUKS header is missing on purpose: it is content, which a guest that encrypts its disk puts there. A
/// guest can write all others there too; who restarts its device then says `format=raw`, which no guess could
/// be trusted with.
const FORMATS: &[Format] = &[
    format("qcow", 0, b"QFI\xfb\0\0\0\x01", Remedy::Convert),
    format("qcow2", 0, b"QFI\xfb", Remedy::Convert),
    format("qed", 0, b"QED\0", Remedy::Convert),
    format("vmdk", 0, b"KDMV", Remedy::Convert),
    format("vmdk", 0, b"COWD", Remedy::Convert),
    format("vmdk", 0, b"# Disk DescriptorFile", Remedy::Convert),
    format("vdi", 0x40, b"\x7f\x10\xda\xbe", Remedy::Convert),
    format("vhdx", 0, b"vhdxfile", Remedy::Convert),
    format("vpc (VHD)", 0, b"conectix", Remedy::Convert),
    // One of fixed size has only a footer, which once had 511 bytes.
    format("vpc (VHD)", -512, b"conectix", Remedy::Convert),
    format("vpc (VHD)", -511, b"conectix", Remedy::Convert),
    format("parallels", 0, b"WithoutFreeSpace", Remedy::Convert),
    format("parallels", 0, b"WithouFreSpacExt", Remedy::Convert),
    format("ISO 9660", 32769, b"CD001", Remedy::ReadOnly),
    format("gzip", 0, b"\x1f\x8b\x08", Remedy::Unpack),
    format("bzip2", 4, b"1AY&SY", Remedy::Unpack),
    format("xz", 0, b"\xfd7zXZ\0", Remedy::Unpack),
    format("zstd", 0, b"\x28\xb5\x2f\xfd", Remedy::Unpack),
];

/// The first format of which a file of `len` bytes has the magic number. Where it cannot be read it has none:
/// an image with a bad block has to open, and its guest is told.
pub(super) fn of(file: &File, len: u64) -> Option<Format> {
    FORMATS.iter().copied().find(|format| {
        let at =
            if format.at < 0 { len.checked_add_signed(format.at) } else { Some(format.at.unsigned_abs()) };
        let mut found = [0; 32];
        let Some(found) = found.get_mut(..format.magic.len()) else { return false };
        at.is_some_and(|at| file.read_exact_at(found, at).is_ok()) && found == format.magic
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::disk::tests::conformance::folder;

    fn found(path: &Path) -> Option<&'static str> {
        let file = File::open(path).expect("it opens");
        let len = file.metadata().expect("it has a length").len();
        of(&file, len).map(|format| format.name)
    }

    /// Each alone in a file that is as short as it can be, and in a large one.
    #[test]
    fn magic_numbers() {
        let folder = folder();
        let path = folder.path().join("image");
        for format in FORMATS {
            for len in [0, 1 << 20] {
                let end = format.at.unsigned_abs() as usize + format.magic.len();
                let mut bytes = vec![0; len.max(end)];
                let at = if format.at < 0 { bytes.len() as i64 + format.at } else { format.at } as usize;
                bytes[at..at + format.magic.len()].copy_from_slice(format.magic);
                std::fs::write(&path, &bytes).expect("it is written");
                assert_eq!(found(&path), Some(format.name), "{format:?}");
                bytes[at] ^= 1;
                std::fs::write(&path, &bytes).expect("it is written");
                assert_eq!(found(&path), None, "{format:?}");
            }
        }
    }

    #[test]
    fn what_other_programs_write() {
        let folder = folder();
        let path = folder.path().join("image");
        let name = path.to_str().expect("a path in UTF-8");
        for (format, name_of, more) in [
            ("qcow2", "qcow2", ""),
            ("qcow", "qcow", ""),
            ("qed", "qed", ""),
            ("vmdk", "vmdk", ""),
            ("vmdk", "vmdk", "subformat=monolithicFlat"),
            ("vdi", "vdi", ""),
            ("vhdx", "vhdx", ""),
            ("vpc", "vpc (VHD)", ""),
            ("vpc", "vpc (VHD)", "subformat=fixed"),
            ("parallels", "parallels", ""),
        ] {
            let mut command = Command::new("qemu-img");
            command.args(["create", "-q", "-f", format]);
            if !more.is_empty() {
                command.args(["-o", more]);
            }
            match command.args([name, "8M"]).status() {
                Ok(status) if status.success() => assert_eq!(found(&path), Some(name_of), "{format} {more}"),
                // Not all builds can create all of them.
                Ok(_) => eprintln!("not tested: qemu-img makes no {format}"),
                Err(_) => return eprintln!("not tested: qemu-img is not installed"),
            }
        }
        for program in ["gzip", "bzip2", "xz", "zstd"] {
            let input = File::open("Cargo.toml").expect("a text");
            let output = File::create(&path).expect("it is made");
            let packed =
                Command::new(program).arg("-c").stdin(input).stdout(output).stderr(Stdio::null()).status();
            match packed {
                Ok(status) if status.success() => assert_eq!(found(&path), Some(program)),
                _ => eprintln!("not tested: {program} is not installed"),
            }
        }
    }

    #[test]
    fn what_guests_write_is_nothing_known() {
        let folder = folder();
        let path = folder.path().join("image");
        for tool in [&["mkfs.ext4", "-q", "-F"][..], &["mkfs.xfs", "-q"], &["mkswap", "-q"], &["mkfs.vfat"]] {
            File::create(&path).and_then(|file| file.set_len(512 << 20)).expect("it is made");
            let made = Command::new(tool[0]).args(&tool[1..]).arg(&path).stdout(Stdio::null()).status();
            match made {
                Ok(status) if status.success() => assert_eq!(found(&path), None, "{tool:?}"),
                _ => eprintln!("not tested: {} is not installed", tool[0]),
            }
        }
        std::fs::write(&path, b"LUKS\xba\xbe\0\x02").expect("it is written");
        assert_eq!(found(&path), None);
        std::fs::write(&path, b"").expect("it is written");
        assert_eq!(found(&path), None);
    }
}
