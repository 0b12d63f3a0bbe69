//! Whether memory of ours is to lie on huge pages: advice to the kernel, which does the rest.
#![expect(unsafe_code, reason = "madvise on memory of the caller's")]

/// Bytes of a huge page, where there are any.
pub(super) const HUGE: usize = 2 << 20;

const KERNELS_SETTING: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

/// May an image in memory lie on huge pages?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HugePages {
    /// Yes, unless the system's administrator allows none: the first byte written to 2 MiB takes them all.
    #[default]
    Auto,
    /// No, and the kernel is told so.
    Off,
}

/// Tells the kernel what `len` bytes at `at` are to lie on, whatever the system's setting; but for `never`,
/// which holds.
pub(super) fn advise(at: *mut u8, len: usize, huge_pages: HugePages) {
    let advice = match huge_pages {
        HugePages::Auto => {
            say_if_there_are_none();
            libc::MADV_HUGEPAGE
        }
        HugePages::Off => libc::MADV_NOHUGEPAGE,
    };
    // SAFETY: this advice changes no byte, wherever it points. A kernel without huge pages refuses it.
    unsafe { libc::madvise(at.cast(), len, advice) };
}

/// In the log, once.
fn say_if_there_are_none() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let setting = std::fs::read_to_string(KERNELS_SETTING).unwrap_or_default();
        if !allows(&setting) {
            log::info!("memory namespaces use no huge pages: {KERNELS_SETTING} says {:?}", setting.trim());
        }
    });
}

/// Reads `always [madvise] never`; nothing where the kernel has no huge pages.
fn allows(setting: &str) -> bool {
    setting.contains("[always]") || setting.contains("[madvise]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_setting() {
        assert!(allows("always [madvise] never\n"));
        assert!(allows("[always] madvise never\n"));
        assert!(!allows("always madvise [never]\n"));
        assert!(!allows(""));
    }
}
