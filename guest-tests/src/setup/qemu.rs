//! The emulator: an installed one that is new enough, else the private root's.

use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use super::Sysroot;

const PROGRAM: &str = "qemu-system-x86_64";
/// First release with the vfio-user client.
const OLDEST: (u32, u32) = (10, 1);

/// A QEMU that has `vfio-user-pci`.
#[derive(Debug, Clone)]
pub struct Qemu {
    sysroot: Option<Sysroot>,
    version: String,
}

impl Qemu {
    /// The one on `PATH`, if it can do what we need.
    pub(super) fn installed() -> Option<Self> {
        Self::check(None).ok()
    }

    pub(super) fn find(sysroot: &Sysroot) -> anyhow::Result<Self> {
        let private = sysroot.path(&format!("usr/bin/{PROGRAM}")).exists();
        // The private one was brought because none was installed then; staying with it keeps results
        // comparable.
        Self::check(private.then(|| sysroot.clone())).context(
            "no usable QEMU (10.1 or newer with vfio-user-pci); if one was uninstalled, remove the cache folder and set up again",
        )
    }

    fn check(sysroot: Option<Sysroot>) -> anyhow::Result<Self> {
        let mut qemu = Self { sysroot, version: String::new() };
        let out = qemu.command().arg("--version").output().context(PROGRAM)?;
        let text = String::from_utf8_lossy(&out.stdout);
        let (version, number) =
            parse_version(&text).with_context(|| format!("{PROGRAM} --version says: {text}"))?;
        ensure!(number >= OLDEST, "QEMU {version} is older than {}.{}", OLDEST.0, OLDEST.1);
        let help = qemu
            .command()
            .args(["-device", "vfio-user-pci,help"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        ensure!(help.success(), "QEMU {version} was built without vfio-user-pci");
        qemu.version = version;
        Ok(qemu)
    }

    /// A command line that so far only says where QEMU's data files are.
    #[must_use]
    pub fn command(&self) -> Command {
        match &self.sysroot {
            None => Command::new(PROGRAM),
            Some(root) => {
                let mut command = root.command(&format!("usr/bin/{PROGRAM}"));
                for data in ["usr/share/qemu", "usr/share/seabios"] {
                    command.arg("-L").arg(root.path(data));
                }
                command
            }
        }
    }

    /// As `--version` says.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Is it the system's own?
    #[must_use]
    pub fn is_installed(&self) -> bool {
        self.sysroot.is_none()
    }

    /// Where it comes from, for messages.
    #[must_use]
    pub fn origin(&self) -> &'static str {
        if self.is_installed() { "installed" } else { "private" }
    }
}

fn parse_version(text: &str) -> Option<(String, (u32, u32))> {
    let version = text.split("version ").nth(1)?.split_whitespace().next()?;
    let mut numbers = version.split('.').map(|n| n.parse().ok());
    Some((version.to_owned(), (numbers.next()??, numbers.next()??)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        let of = |text| parse_version(text).map(|(_, n)| n);
        assert_eq!(of("QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1)\nCopyright"), Some((11, 1)));
        assert!(of("QEMU emulator version 10.1.0").unwrap() >= OLDEST);
        assert!(of("QEMU emulator version 8.2.2 (Debian)").unwrap() < OLDEST);
        assert_eq!(of("no such thing"), None);
    }
}
