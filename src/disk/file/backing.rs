//! The file under an image: of a loop device the one it shows, of a file on overlayfs the one in the upper
//! layer. The kernel keeps their locks apart, so who serves an image locks what is under it too.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, StatxFlags, fstatfs, major, minor, statx};

/// The kernel stacks fewer.
const MAX_LAYERS: usize = 16;
/// f_type of overlayfs.
const OVERLAYFS: u32 = 0x794c_7630;

/// A file under an image.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) path: PathBuf,
    /// Open for reading.
    pub(super) file: File,
    /// The image is a part of it: others may be served beside it.
    pub(super) part: bool,
}

/// What is under an image, the nearest first. What this process cannot see or read is left out, and all under
/// it.
pub(super) fn layers(image: &File) -> Vec<Layer> {
    let mut layers: Vec<Layer> = Vec::new();
    while layers.len() < MAX_LAYERS {
        let (above, part) = layers.last().map_or((image, false), |layer| (&layer.file, layer.part));
        let Some((path, of_part)) = under(above) else { break };
        // A FIFO that has taken the name of the file would have to be waited for.
        let is_image = fs::metadata(&path).is_ok_and(|m| m.is_file() || m.file_type().is_block_device());
        let Some(file) = is_image.then(|| File::open(&path).ok()).flatten() else {
            log::debug!("{}: is under an image, and cannot be locked", path.display());
            break;
        };
        layers.push(Layer { path, file, part: part || of_part });
    }
    layers
}

/// Do both files show the same bytes?
pub(super) fn is_same(one: &File, other: &File) -> bool {
    let places = |file: &File| {
        let mut places = vec![(place(file), false)];
        places.extend(layers(file).iter().map(|layer| (place(&layer.file), layer.part)));
        places
    };
    let others = places(other);
    places(one).iter().any(|(place, part)| {
        place.is_some() && others.iter().any(|other| other.0 == *place && !(other.1 && *part))
    })
}

/// The device itself, or file system and inode.
fn place(file: &File) -> Option<(u64, u64)> {
    let meta = file.metadata().ok()?;
    Some(if meta.file_type().is_block_device() { (meta.rdev(), 0) } else { (meta.dev(), meta.ino()) })
}

fn under(file: &File) -> Option<(PathBuf, bool)> {
    let meta = file.metadata().ok()?;
    if meta.file_type().is_block_device() { loop_file(meta.rdev()) } else { upper_file(file, meta.len()) }
}

/// Of a loop device, or a partition of one.
fn loop_file(device: u64) -> Option<(PathBuf, bool)> {
    let device = PathBuf::from(format!("/sys/dev/block/{}:{}", major(device), minor(device)));
    let is_partition = device.join("partition").exists();
    let attributes = device.join(if is_partition { "../loop" } else { "loop" });
    let mut path = fs::read(attributes.join("backing_file")).ok()?;
    path.pop_if(|last| *last == b'\n');
    let is_zero = |name| fs::read(attributes.join(name)).is_ok_and(|text| text.trim_ascii() == b"0");
    let part = is_partition || !is_zero("offset") || !is_zero("sizelimit");
    Some((OsString::from_vec(path).into(), part))
}

/// Of a file on overlayfs that has been copied up, as it has where it may be written.
fn upper_file(file: &File, len: u64) -> Option<(PathBuf, bool)> {
    if fstatfs(file).ok()?.f_type as u32 != OVERLAYFS {
        return None;
    }
    let mount = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok()?.stx_mnt_id;
    let shown = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
    let mounts = fs::read("/proc/self/mountinfo").ok()?;
    let path = mounts.split(|b| *b == b'\n').find_map(|line| upper_path(line, mount, &shown))?;
    // A path of another mount namespace may name something else here. (The inode says nothing: it is the
    // lower one's.)
    fs::metadata(&path).is_ok_and(|meta| meta.len() == len).then_some((path, false))
}

/// The place in the upper layer of what is `shown` by this mount, by its line of mountinfo.
fn upper_path(line: &[u8], mount: u64, shown: &Path) -> Option<PathBuf> {
    let mut words = line.split(|b| *b == b' ');
    if words.next()? != mount.to_string().as_bytes() {
        return None;
    }
    let root = unescaped(words.nth(2)?);
    let point = unescaped(words.next()?);
    let options = words.next_back()?;
    let upper = options.split(|b| *b == b',').find_map(|word| word.strip_prefix(b"upperdir="))?;
    let inside = root.strip_prefix("/").ok()?.join(shown.strip_prefix(point).ok()?);
    Some(unescaped(upper).join(inside))
}

/// With the octal escapes of the kernel's tables undone.
fn unescaped(mut text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    while let [first, rest @ ..] = text {
        let (byte, rest) = match (first, rest) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', rest @ ..]) => {
                ((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'), rest)
            }
            _ => (*first, rest),
        };
        bytes.push(byte);
        text = rest;
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo() {
        let line = br"44 27 0:39 /in /mnt/a\040b rw,relatime - overlay overlay rw,lowerdir=/l,upperdir=/up\054,workdir=/w";
        let path = |mount, shown: &str| upper_path(line, mount, Path::new(shown));
        assert_eq!(path(44, "/mnt/a b/c/d"), Some("/up,/in/c/d".into()));
        assert_eq!(path(4, "/mnt/a b/c/d"), None);
        assert_eq!(path(44, "/mnt/c"), None);
        for line in ["", "44", "44 27 0:39 /", "44 27 0:39 / /mnt rw - overlay overlay ro,lowerdir=/l"] {
            assert_eq!(upper_path(line.as_bytes(), 44, Path::new("/mnt/c")), None, "{line}");
        }
        let text = br"\1\777\04";
        assert_eq!(unescaped(text).into_os_string().into_vec(), text);
    }
}
