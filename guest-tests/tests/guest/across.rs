//! Copy from other namespaces (format 2), enabled by the host where its kernel allows that, else by the
//! device's property.

use anyhow::ensure;
use guest_tests::Kernel;
use guest_tests::device::Kind;
use guest_tests::nvme::{self, Change, Copy};

use crate::copy::Target;
use crate::session::{Ns, Session, Skip};
use crate::{Outcome, kind};

/// Format 2, as a bit of CDFE.
const FORMAT_2: u16 = 1 << 2;
/// Incompatible Namespace or Format.
const INCOMPATIBLE: u16 = 0x185;

/// Refused until the host enables it, then across namespaces, and again refused after a controller reset. A
/// kernel that lets nobody enable it leaves the property, on a device of its own.
pub fn enabled_by_the_host(s: &Session) -> Outcome {
    let source = Target::fill(s, 5, 300)?;
    let mut t = Target::fill(s, 1, 301)?;
    let half = t.model.blocks() / 2;
    let copy = Copy::from_namespace(5, half + 5000, &[(0, 64), (1000, 64), (70, 1)]);
    // The kernel may have said yes to what it wants itself, never to a format of Copy.
    t.refuse(s, &copy, nvme::INVALID_FIELD)?;
    for turn in 0..2 {
        if nvme::set_cdfe(&s.guest, FORMAT_2)? == Change::KernelRefuses {
            println!("Linux {} refuses Set Features 16h: cdfe=0x4 instead", s.guest.kernel());
            t.check(s)?;
            return with_the_property();
        }
        ensure!(nvme::cdfe(&s.guest)? == FORMAT_2, "Get Features does not show the formats that were set");
        let copy = Copy { sdlba: copy.sdlba + 500 * turn, ..copy.clone() };
        t.accept(s, &copy, Some(&source.model))?;
        refusals(s, &mut t, half + 6000 + 100 * turn)?;
        t.check(s)?;
        source.check(s)?;
        if turn == 0 {
            s.guest.sh("echo 1 > /sys/class/nvme/nvme0/reset_controller")?;
            // The reset took back what the host had enabled.
            t.refuse(s, &copy, nvme::INVALID_FIELD)?;
        }
    }
    nvme::set_cdfe(&s.guest, 0)?;
    Ok(None)
}

/// From the namespace itself to `at`; and what is refused: blocks of another size, a namespace that is not
/// there.
fn refusals(s: &Session, t: &mut Target, at: u64) -> anyhow::Result<()> {
    let own = t.model.clone();
    t.accept(s, &Copy::from_namespace(1, at, &[(9, 30)]), Some(&own))?;
    t.refuse(s, &Copy::from_namespace(2, at, &[(0, 1)]), INCOMPATIBLE)?;
    let missing = Copy::from_namespace(99, at, &[(0, 1)]).run(&s.guest, &t.node)?;
    ensure!(missing.is_err(), "a copy from a namespace that does not exist went well");
    Ok(())
}

/// A guest of its own with the stable kernel, whose device counts format 2 as enabled.
fn with_the_property() -> Outcome {
    if kind() == Kind::QemuNvme {
        return Skip::because(
            "QEMU's own device has no cdfe property, and this kernel lets nobody set the feature",
        );
    }
    let mut s = session("across", Kernel::Stable, "serial=GUEST0003")?;
    enabled_by_the_device(&s).inspect_err(|_| s.folder.keep())
}

/// For a kernel that may let nobody enable Copy formats 2 and 3: the device counts format 2 as enabled.
pub fn session(name: &str, kernel: Kernel, serial: &str) -> anyhow::Result<Session> {
    Session::boot(name, kernel, &[serial, "cdfe=0x4"], |folder| {
        [("ns1.img", 512), ("ns2.img", 4096), ("ns3.img", 512)]
            .map(|(name, block)| Ns::new(folder, name, 64 << 20, block, (128, 256, 7)))
            .into()
    })
}

/// By the device's own property, after a controller reset too.
pub fn enabled_by_the_device(s: &Session) -> Outcome {
    if kind() == Kind::QemuNvme {
        return Skip::because("QEMU's own device has no cdfe property");
    }
    let source = Target::fill(s, 3, 401)?;
    let mut t = Target::fill(s, 1, 402)?;
    let half = t.model.blocks() / 2;
    for turn in 0..2 {
        ensure!(nvme::cdfe(&s.guest)? & FORMAT_2 != 0, "Get Features does not show format 2 as enabled");
        let copy = Copy::from_namespace(3, half + 1000 * turn, &[(0, 100), (3000, 100), (200, 56)]);
        t.accept(s, &copy, Some(&source.model))?;
        refusals(s, &mut t, half + 6000 + 100 * turn)?;
        t.check(s)?;
        source.check(s)?;
        s.guest.sh("echo 1 > /sys/class/nvme/nvme0/reset_controller")?;
    }
    Ok(None)
}
