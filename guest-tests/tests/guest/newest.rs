//! The newest kernel, which refuses Set Features 16h from user space.

use anyhow::ensure;
use guest_tests::device::Kind;
use guest_tests::nvme::{self, Copy};

use crate::copy::Target;
use crate::session::{Session, Skip};
use crate::{Outcome, kind};

pub fn copy(s: &Session) -> Outcome {
    let mut t = Target::fill(s, 1, 400)?;
    let half = t.model.blocks() / 2;
    t.accept(s, &Copy::new(half, &[(0, 128), (500, 127), (9, 1)]), None)?;
    t.refuse(s, &Copy::new(half, &[(0, 129)]), nvme::SIZE_LIMIT)?;
    t.check(s)?;
    Ok(None)
}

/// Format 2 by the device's own property, after a controller reset too.
pub fn across_namespaces(s: &Session) -> Outcome {
    if kind() == Kind::QemuNvme {
        return Skip::because(
            "QEMU's own device has no cdfe property, and this kernel lets nobody set the feature",
        );
    }
    let source = Target::fill(s, 2, 401)?;
    let mut t = Target::fill(s, 1, 402)?;
    let half = t.model.blocks() / 2;
    for turn in 0..2 {
        ensure!(nvme::cdfe(&s.guest)? & (1 << 2) != 0, "Get Features does not show format 2 as enabled");
        let copy = Copy::from_namespace(2, half + 1000 * turn, &[(0, 100), (3000, 100), (200, 56)]);
        t.accept(s, &copy, Some(&source.model))?;
        t.check(s)?;
        source.check(s)?;
        s.guest.sh("echo 1 > /sys/class/nvme/nvme0/reset_controller")?;
    }
    Ok(None)
}
