//! A private apt: the system's mirror, proxy, credentials and keyrings, but its own lists, cache and (empty)
//! status.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, bail, ensure};

use super::{Kernel, cache};
use crate::child::Child;
use crate::progress;
use crate::undo::Undo;

/// Names the archive (`scheme://host/path`) when the system's own configuration does not.
const MIRROR: &str = "VFIO_USER_NVME_GUEST_MIRROR";
/// Suites of the archive: programs and the stable kernel, then QEMU and the newest kernel.
const STABLE: &str = "trixie";
const BACKPORTS: &str = "trixie-backports";
/// Keyrings that may hold the archive's keys, as the system's own package brings them.
const KEYRINGS: [&str; 2] =
    ["/usr/share/keyrings/debian-archive-keyring.pgp", "/usr/share/keyrings/debian-archive-keyring.gpg"];

/// What no program here needs: package tools, service managers, interpreters, option ROMs, user interfaces.
/// What is left is proven to be enough by asking the loader, so a wrong entry is found at once.
const DROPPED: [&str; 37] = [
    "adduser",
    "base-passwd",
    "dbus",
    "debconf",
    "dmsetup",
    "dpkg",
    "gcc-14-base",
    "init-system-helpers",
    "ipxe-qemu",
    "libaudit*",
    "libdb5.3t64",
    "libdebconfclient0",
    "libicu76",
    "libnspr4",
    "libnss3",
    "libpam*",
    "libpython3*",
    "libsemanage*",
    "libsepol2",
    "libsqlite3-0",
    "libsubid5",
    "libsystemd-shared",
    "login.defs",
    "logsave",
    "media-types",
    "mount",
    "netbase",
    "openssl-provider*",
    "passwd",
    "python3*",
    "qemu-system-common",
    "readline-common",
    "systemd",
    "tar",
    "tzdata",
    "uidmap",
    "uuid-runtime",
];
/// One package file of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Package {
    /// Package name.
    pub(super) name: String,
    /// Version, as apt takes it behind `name=`.
    version: String,
    /// Bytes to download.
    pub(super) size: u64,
}

/// The private apt in its folder, which goes with it: lists and package files are bigger than they are worth.
pub(super) struct Apt {
    dir: PathBuf,
    base: String,
    _folder: Undo,
}

impl Apt {
    /// Writes the configuration; reads and asks nothing over the network.
    pub(super) fn new(dir: &Path) -> anyhow::Result<Self> {
        let base = base()?;
        let keyring = KEYRINGS.iter().find(|k| Path::new(k).exists()).with_context(|| {
            "the keys of the Debian archive are missing: install the package debian-archive-keyring \
             (Ubuntu has it too)"
        })?;
        let folder = Undo::removes(dir);
        for sub in ["state/lists/partial", "cache/archives/partial", "debs"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        fs::write(dir.join("status"), "")?;
        let mut sources = String::new();
        for suite in [STABLE, BACKPORTS] {
            writeln!(sources, "deb [arch=amd64 signed-by={keyring}] {base} {suite} main")?;
        }
        fs::write(dir.join("sources.list"), sources)?;
        fs::write(
            dir.join("preferences"),
            format!("Package: src:qemu src:seabios\nPin: release n={BACKPORTS}\nPin-Priority: 990\n"),
        )?;
        let d = dir.to_str().context("the cache folder's name must be UTF-8")?;
        ensure!(!d.contains('"'), "the cache folder's name must not contain a quote");
        // Read after the system's own files, so `#clear` takes away their hooks, which would run programs of
        // the host.
        fs::write(
            dir.join("apt.conf"),
            format!(
                r#"#clear APT::Update;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Install-Pkgs;
#clear APT::Architectures;
#clear Acquire::IndexTargets::deb::DEP-11;
#clear Acquire::IndexTargets::deb::CNF;
Dir::State "{d}/state";
Dir::State::lists "{d}/state/lists";
Dir::State::status "{d}/status";
Dir::Cache "{d}/cache";
Dir::Etc::sourcelist "{d}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "{d}/preferences";
Dir::Etc::preferencesparts "/dev/null";
Acquire::Languages "none";
Acquire::PDiffs "false";
Acquire::GzipIndexes "true";
Acquire::Retries "3";
APT::Architecture "amd64";
APT::Architectures "amd64";
APT::Sandbox::User "";
APT::Default-Release "";
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Get::List-Cleanup "true";
pkgCacheGen::Essential "none";
"#
            ),
        )?;
        Ok(Self { dir: dir.to_owned(), base, _folder: folder })
    }

    /// Address of the archive, without credentials.
    pub(super) fn base(&self) -> String {
        match (self.base.split_once("://"), self.base.rsplit_once('@')) {
            (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
            _ => self.base.clone(),
        }
    }

    fn apt(&self, args: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new("apt-get");
        command.arg("-c").arg(self.dir.join("apt.conf")).args(["-q", "-y"]).args(args);
        command
            .current_dir(self.dir.join("debs"))
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive");
        let out = Child::output(command, "apt-get", &|_| {})?;
        if !out.status.success() {
            let all = [out.stdout, out.stderr].concat();
            let text = String::from_utf8_lossy(&all);
            let told: Vec<&str> =
                text.lines().filter(|l| l.starts_with("E:") || l.starts_with("Err:")).collect();
            let told = if told.is_empty() { text.trim().to_owned() } else { told.join("\n") };
            bail!("apt-get {} failed:\n{told}", args.first().unwrap_or(&""));
        }
        Ok(out)
    }

    /// Fetches the package lists.
    pub(super) fn update(&self) -> anyhow::Result<()> {
        let lists = self.dir.join("state/lists");
        progress::during(
            &format!("package lists from {} (10 MB)", self.base()),
            || format!("{} MB", cache::size(&lists) >> 20),
            || self.apt(&["update", "--error-on=any"]),
        )
        .map(drop)
        .context(
            "the package lists could not be fetched: is the network there, and does the mirror carry Debian?",
        )
    }

    fn resolve(&self, wanted: &[&str]) -> anyhow::Result<Vec<Package>> {
        let args = [&["install", "--print-uris"], wanted].concat();
        let out = self.apt(&args)?;
        Ok(String::from_utf8_lossy(&out.stdout).lines().filter_map(parse_uri).collect())
    }

    /// `wanted` and all they depend on, less what is dropped.
    pub(super) fn closure(&self, wanted: &[&str]) -> anyhow::Result<Vec<Package>> {
        let mut packages = self.resolve(wanted)?;
        packages
            .retain(|p| wanted.contains(&p.name.as_str()) || !DROPPED.iter().any(|d| dropped(&p.name, d)));
        ensure!(!packages.is_empty(), "the archive has none of {}", wanted.join(" "));
        Ok(packages)
    }

    /// The packages that hold a kernel's image and modules, whatever its version is today.
    pub(super) fn kernel_packages(&self, kernel: Kernel) -> anyhow::Result<Vec<Package>> {
        let meta = match kernel {
            Kernel::Stable => format!("linux-image-cloud-amd64/{STABLE}"),
            Kernel::Newest => format!("linux-image-cloud-amd64/{BACKPORTS}"),
        };
        let all = self.resolve(&[&meta])?;
        let has_digit = |rest: &str| rest.starts_with(|c: char| c.is_ascii_digit());
        let named = |prefix: &str| -> Vec<Package> {
            all.iter().filter(|p| p.name.strip_prefix(prefix).is_some_and(has_digit)).cloned().collect()
        };
        // Newer kernels put image and modules into packages of their own; `linux-image-*` then only depends
        // on them.
        let split = [named("linux-binary-"), named("linux-modules-")].concat();
        let packages = if split.is_empty() { named("linux-image-") } else { split };
        ensure!(!packages.is_empty(), "the archive has no package behind {meta}");
        Ok(packages)
    }

    /// Downloads `packages`, which are `what` for messages (apt checks the hashes), and answers the files.
    pub(super) fn download(&self, packages: &[Package], what: &str) -> anyhow::Result<Vec<PathBuf>> {
        let debs = self.dir.join("debs");
        for entry in fs::read_dir(&debs)? {
            fs::remove_file(entry?.path())?;
        }
        let exact: Vec<String> = packages.iter().map(|p| format!("{}={}", p.name, p.version)).collect();
        let args: Vec<&str> = std::iter::once("download").chain(exact.iter().map(String::as_str)).collect();
        let size = packages.iter().map(|p| p.size).sum::<u64>().div_ceil(1 << 20);
        progress::during(
            &format!("downloading {what}: {}, {size} MB", named(packages)),
            || format!("{} of {size} MB", cache::size(&debs) >> 20),
            || self.apt(&args),
        )?;
        let mut files: Vec<PathBuf> =
            fs::read_dir(&debs)?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
        files.retain(|f| f.extension().is_some_and(|e| e == "deb"));
        ensure!(files.len() == packages.len(), "{} packages wanted, {} came", packages.len(), files.len());
        files.sort();
        Ok(files)
    }
}

/// A few by name, many by number.
fn named(packages: &[Package]) -> String {
    match packages {
        [] | [_] | [_, _] => packages.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(" "),
        _ => format!("{} packages", packages.len()),
    }
}

/// Does `entry` of the list, a name or the beginning of names with a star behind it, mean package `name`?
fn dropped(name: &str, entry: &str) -> bool {
    entry.strip_suffix('*').map_or(name == entry, |start| name.starts_with(start))
}

/// `'URI' FILE_VERSION_ARCH.deb SIZE HASH`; versions have `:` as `%3a` there.
fn parse_uri(line: &str) -> Option<Package> {
    let mut words = line.strip_prefix('\'')?.split_once("' ")?.1.split_whitespace();
    let file = words.next()?.strip_suffix(".deb")?;
    let size = words.next()?.parse().ok()?;
    let mut parts = file.rsplitn(3, '_');
    let (_arch, version, name) = (parts.next()?, parts.next()?, parts.next()?);
    Some(Package { name: name.into(), version: version.replace("%3a", ":"), size })
}

/// The archive the system's own package configuration names.
fn base() -> anyhow::Result<String> {
    if let Some(mirror) = std::env::var(MIRROR).ok().filter(|m| !m.is_empty()) {
        return Ok(mirror.trim_end_matches('/').to_owned());
    }
    // Needs no network, no root and no lists, and prints addresses with every substitution done.
    let out = Command::new("apt-get").args(["update", "--print-uris"]).env("LC_ALL", "C").output().map_err(|e| {
        anyhow::anyhow!(
            "no apt-get on this system ({e}). Install QEMU 10.1 or newer yourself and use a Debian machine or container \
             for the guest's kernel and programs"
        )
    })?;
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let field = |name: &str| {
        let value = release.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_default().trim_matches('"').to_owned()
    };
    let found = pick(&String::from_utf8_lossy(&out.stdout), &field("ID"), &field("VERSION_CODENAME"));
    found.with_context(|| {
        format!(
            "the package configuration of this system ({}) names no Debian archive: set {MIRROR} to the address of a \
             Debian mirror (what stands before /dists/)",
            field("PRETTY_NAME")
        )
    })
}

fn pick(uris: &str, id: &str, codename: &str) -> Option<String> {
    let bases = uris.lines().filter_map(|line| {
        let uri = line.strip_prefix('\'')?.split_once('\'')?.0;
        let (base, rest) = uri.split_once("/dists/")?;
        Some((base, rest.strip_suffix("/InRelease")?))
    });
    // Only a Debian system's own suite proves that the address is a Debian archive.
    let sid = ["unstable", "sid", "testing"];
    bases
        .filter(|(_, suite)| id == "debian" && (*suite == codename || sid.contains(suite)))
        .map(|(base, _)| base.to_owned())
        .next()
}

#[cfg(test)]
mod tests {
    use super::*;

    const URIS: &str = "'http://third.example/apt/dists/nodistro/InRelease' third_InRelease 0 \n\
        'http://m.example/debian/dists/bookworm/InRelease' m_InRelease 0 \n\
        'http://m.example/debian-security/dists/bookworm-security/InRelease' s_InRelease 0 \n\
        'http://m.example/debian/dists/bookworm/main/binary-amd64/Packages.xz' p 0 \n";

    #[test]
    fn the_archive_is_the_one_with_the_systems_suite() {
        assert_eq!(pick(URIS, "debian", "bookworm").as_deref(), Some("http://m.example/debian"));
        assert_eq!(pick(URIS, "debian", "trixie"), None);
        assert_eq!(pick(URIS, "ubuntu", "bookworm"), None);
    }

    #[test]
    fn package_lines_give_name_version_and_size() {
        let line =
            "'http://m/pool/q.deb' qemu-system-x86_1%3a11.1.3+ds-1~bpo13+1_amd64.deb 10377056 SHA256:00";
        let p = parse_uri(line).unwrap();
        assert_eq!(
            (p.name.as_str(), p.version.as_str(), p.size),
            ("qemu-system-x86", "1:11.1.3+ds-1~bpo13+1", 10_377_056)
        );
        assert_eq!(parse_uri("Reading package lists..."), None);
    }

    #[test]
    fn dropping_python_keeps_libraries_that_only_look_alike() {
        let gone = |name| DROPPED.iter().any(|d| dropped(name, d));
        for name in [
            "python3",
            "python3.13-minimal",
            "libpython3-stdlib",
            "systemd",
            "libpam0g",
            "tar",
            "libdebconfclient0",
        ] {
            assert!(gone(name), "{name}");
        }
        for name in
            ["libsystemd0", "libmount1", "libtasn1-6", "libc6", "libgcc-s1", "libdbus-1-3", "qemu-system-x86"]
        {
            assert!(!gone(name), "{name}");
        }
    }
}
