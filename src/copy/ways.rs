//! What leads from one namespace to another, and how far.

use crate::namespace::{ByteRange, Method, Namespace};

/// A memory namespace says of itself that memmove leads from it to it.
pub(super) fn is_memory(ns: &Namespace) -> bool {
    ns.disk.ways_from(&ns.disk.handle()).memmove
}

/// The part of a copy of `dst.len` bytes that a reflink with this alignment can do, as start and end within
/// the copy. An end that is not aligned will do where both images end.
pub(super) fn aligned(
    align: u64,
    source: &Namespace,
    from: u64,
    dst_ns: &Namespace,
    dst: ByteRange,
) -> Option<(u64, u64)> {
    if align == 0 || from % align != dst.offset % align {
        return None;
    }
    let head = from.next_multiple_of(align) - from;
    let ends = from + dst.len;
    let at_end = ends == source.disk.len() && dst.offset + dst.len == dst_ns.disk.len();
    let end = if at_end { dst.len } else { dst.len.checked_sub(ends % align)? };
    (head < end).then_some((head, end))
}

/// Will all of `dst` be shared with what lies at `from` in `source`?
pub(super) fn shares_whole(source: &Namespace, from: u64, dst_ns: &Namespace, dst: ByteRange) -> bool {
    if !matches!(dst_ns.facts.policy.method, Method::Auto | Method::Reflink) {
        return false;
    }
    let align = dst_ns.disk.ways_from(&source.disk.handle()).reflink;
    align.and_then(|align| aligned(align, source, from, dst_ns, dst)) == Some((0, dst.len))
}
