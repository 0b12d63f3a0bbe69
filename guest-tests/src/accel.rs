//! Choice of acceleration. A `/dev/kvm` that opens proves little: under some hosts the guest then stops at
//! its first odd instruction. So `auto` boots once with KVM and believes what it sees.

use std::fs;
use std::str::FromStr;
use std::sync::Once;
use std::time::Duration;

use anyhow::Context;

use crate::case::Folder;
use crate::guest::Guest;
use crate::progress;
use crate::setup::{self, Environment, Kernel};
use crate::vm::{Accel, Vm};

/// What the user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wanted {
    /// KVM if it works.
    #[default]
    Auto,
    /// Exactly this.
    Exactly(Accel),
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Exactly(Accel::Kvm)),
            "tcg" => Ok(Self::Exactly(Accel::Tcg)),
            _ => Err("auto, kvm or tcg".into()),
        }
    }
}

/// A working KVM boots in a second or two; a broken one often just spins.
const TRIAL_LIMIT: Duration = Duration::from_secs(12);
/// Name of the verdict's file in the cache folder.
const VERDICT: &str = "kvm-verdict";

/// What a trial showed, and what it is good for: KVM is the host's, so another guest kernel asks for no other
/// trial.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Verdict {
    /// Changes whenever the host starts.
    host_boot: String,
    qemu: String,
    /// Why it does not work; `None` when it does.
    fault: Option<String>,
}

impl Verdict {
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().map(str::to_owned);
        let (host_boot, qemu, word) = (lines.next()?, lines.next()?, lines.next()?);
        let fault = match word.as_str() {
            "works" => None,
            _ => Some(word.strip_prefix("fails: ")?.to_owned()),
        };
        Some(Self { host_boot, qemu, fault })
    }

    fn text(&self) -> String {
        let word = self.fault.as_ref().map_or("works".to_owned(), |fault| format!("fails: {fault}"));
        format!("{}\n{}\n{word}\n", self.host_boot, self.qemu)
    }

    fn said(&self) -> String {
        match &self.fault {
            None => "KVM runs guests here".into(),
            Some(fault) => {
                format!("KVM does not run guests here ({fault}): translation (TCG), some ten times slower")
            }
        }
    }
}

/// The acceleration to use, said once. The verdict on KVM is kept in the cache folder for this boot of the
/// host and this QEMU.
///
/// # Errors
/// When files cannot be read or written.
pub fn choose(wanted: Wanted, environment: &Environment) -> anyhow::Result<Accel> {
    static SAID: Once = Once::new();
    if let Wanted::Exactly(accel) = wanted {
        return Ok(accel);
    }
    let verdict = verdict(environment)?;
    SAID.call_once(|| progress::say(&verdict.said()));
    Ok(if verdict.fault.is_none() { Accel::Kvm } else { Accel::Tcg })
}

fn verdict(environment: &Environment) -> anyhow::Result<Verdict> {
    let host_boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let host_boot = host_boot.trim().to_owned();
    let qemu = format!("{} ({})", environment.qemu.version(), environment.qemu.origin());
    if let Err(error) = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        // Not worth keeping: rights may change at any time.
        return Ok(Verdict { host_boot, qemu, fault: Some(format!("/dev/kvm: {error}")) });
    }
    let file = environment.folder().join(VERDICT);
    let kept = fs::read_to_string(&file).ok().and_then(|text| Verdict::parse(&text));
    if let Some(kept) = kept.filter(|kept| kept.host_boot == host_boot && kept.qemu == qemu) {
        return Ok(kept);
    }
    let fault = trial(environment)?.err().map(|error| {
        let text = format!("{error:#}");
        text.lines().next().unwrap_or_default().to_owned()
    });
    let verdict = Verdict { host_boot, qemu, fault };
    fs::write(&file, verdict.text()).with_context(|| file.display().to_string())?;
    Ok(verdict)
}

/// The inner result is KVM's. A kernel of ours is booted: one of the user's may have faults of its own.
fn trial(environment: &Environment) -> anyhow::Result<anyhow::Result<()>> {
    let kernel = match environment.any_kernel() {
        Some(kernel) => kernel,
        None => setup::setup(&[Kernel::Stable]).map(|_| Kernel::Stable)?,
    };
    let folder = Folder::new("kvm-trial")?;
    let vm = Vm {
        accel: Accel::Kvm,
        ..Vm::new(environment.kernel(kernel), environment.initramfs(Some(kernel), None)?)
    };
    let text = format!("trying KVM with the {kernel} kernel, {} s at most", TRIAL_LIMIT.as_secs());
    Ok(progress::during(&text, String::new, || {
        let guest = Guest::boot(&environment.qemu, &vm, folder.path(), TRIAL_LIMIT)?;
        guest.sh("true")?;
        guest.kill();
        Ok(())
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_read_back_as_it_was_written() {
        for fault in [None, Some("the guest's agent was not heard: in time".to_owned())] {
            let verdict = Verdict { host_boot: "1-2".into(), qemu: "11.1.3 (private)".into(), fault };
            assert_eq!(Verdict::parse(&verdict.text()), Some(verdict));
        }
        assert_eq!(Verdict::parse("1-2\n11.1.3\n"), None);
        assert_eq!(Verdict::parse("1-2\n11.1.3\nperhaps\n"), None);
        assert_eq!(Verdict::parse(""), None);
    }
}
