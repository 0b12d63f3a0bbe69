//! What a namespace says of Copies: limits that a host reads, and how this device carries them out.

/// Limits of one Copy command on one namespace (Identify Namespace bytes 74..=80).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyLimits {
    /// Maximum Single Source Range Length: blocks in one range, 1-based; never 0.
    pub mssrl: u16,
    /// Maximum Copy Length: blocks in all ranges together, 1-based; never 0.
    pub mcl: u32,
    /// Maximum Source Range Count, 0-based: `msrc + 1` ranges are allowed.
    pub msrc: u8,
}

/// What a Copy does when its source and destination overlap, where the specification leaves the choice:
/// descriptor formats 0h and 1h. In formats 2h and 3h such a Copy always ends with Overlapping I/O Range.
///
/// The default is not to refuse: hosts that use formats 0h and 1h know no such status from QEMU, whose Copy
/// succeeds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overlap {
    /// As if every source were read before the first write: no range ever reads what another one wrote.
    #[default]
    Snapshot,
    /// Overlapping I/O Range.
    Reject,
    /// Range after range, each as if read as a whole before it is written: QEMU's result.
    InOrder,
}

/// The best way that a Copy may take; where it does not lead there, it takes the next one of this order:
/// reflink, offload, bounce.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// Whatever is known to be best for the images and the length: move memory, share blocks, let the kernel
    /// or a server copy where that pays, else bounce.
    #[default]
    Auto,
    /// Share the blocks.
    Reflink,
    /// copy_file_range.
    Offload,
    /// Read into memory and write, between memory namespaces too.
    Bounce,
}

/// How Copies to a namespace are done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyPolicy {
    /// Overlap of source and destination.
    pub overlap: Overlap,
    /// The way of the bytes.
    pub method: Method,
}

/// Words that name all values of a type, as the command line has them.
macro_rules! words {
    ($kind:ident, $count:literal: $($word:literal = $value:ident),*) => {
        impl $kind {
            /// All words there are.
            pub const WORDS: [&'static str; $count] = [$($word),*];

            /// The value of this word.
            pub fn of(word: &str) -> Option<Self> {
                match word {
                    $($word => Some(Self::$value),)*
                    _ => None,
                }
            }

            /// The word of this value.
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$value => $word,)*
                }
            }
        }
    };
}

words!(Overlap, 3: "snapshot" = Snapshot, "reject" = Reject, "in-order" = InOrder);
words!(Method, 4: "auto" = Auto, "reflink" = Reflink, "offload" = Offload, "bounce" = Bounce);
