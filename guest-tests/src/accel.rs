//! Choice of acceleration. A `/dev/kvm` that opens proves little: under some hosts the guest then stops at its first odd
//! instruction. So `auto` boots once with KVM and believes what it sees.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::str::FromStr;
use std::time::Duration;

use crate::case::Folder;
use crate::guest::Guest;
use crate::setup::Environment;
use crate::vm::{Accel, Console, Nvme, Vm};

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

/// The acceleration for `vm`. The verdict on KVM is kept in the cache folder until host kernel, QEMU or guest kernel change.
///
/// # Errors
/// When files cannot be read or written.
pub fn choose(wanted: Wanted, environment: &Environment, vm: &Vm) -> anyhow::Result<Accel> {
    if let Wanted::Exactly(accel) = wanted {
        return Ok(accel);
    }
    if fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(Accel::Tcg);
    }
    let mut key = DefaultHasher::new();
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().hash(&mut key);
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().hash(&mut key);
    environment.qemu.version().hash(&mut key);
    let image = fs::metadata(&vm.kernel)?;
    (&vm.kernel, image.len(), image.modified()?).hash(&mut key);
    let verdict = environment.folder().join(format!("kvm-{:016x}", key.finish()));
    let works = match fs::read_to_string(&verdict) {
        Ok(text) => text.starts_with("works"),
        Err(_) => {
            let tried = trial(environment, vm);
            let text = tried.as_ref().map_or_else(|e| format!("fails: {e:#}\n"), |()| "works\n".into());
            fs::write(&verdict, text)?;
            tried.is_ok()
        }
    };
    Ok(if works { Accel::Kvm } else { Accel::Tcg })
}

fn trial(environment: &Environment, vm: &Vm) -> anyhow::Result<()> {
    let folder = Folder::new("kvm-trial")?;
    let vm = Vm { accel: Accel::Kvm, nvme: Nvme::None, console: Console::Log, reboots: false, ..vm.clone() };
    let guest = Guest::boot(&environment.qemu, &vm, folder.path(), TRIAL_LIMIT)?;
    guest.sh("true")?;
    guest.kill();
    Ok(())
}
