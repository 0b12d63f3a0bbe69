//! The command line's words to values that are checked: what the device is to be.
//!
//! Names, syntax and meanings are QEMU's, so that a command line can be moved over. [`properties_help`]
//! and the parser read the same tables.

mod error;
mod identity;
mod list;
mod ns;
mod nvme;
mod socket;
mod start_line;
mod table;
mod value;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use log::LevelFilter;

use crate::disk::LaneKind;
use crate::laboratory::faults::Rule;

pub use error::ConfigError;
pub use ns::{Drive, NSID_MAX, NsConfig};
pub use nvme::NvmeConfig;
pub use socket::{Listen, SocketArgs};
pub use start_line::start_line;

/// All of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The UNIX socket, as given or inherited: UTF-8, no control characters, 1 to [`SUN_PATH_MAX`] bytes.
    pub socket: PathBuf,
    /// Where that socket comes from.
    pub listen: Listen,
    /// Sockets of further controllers that share the namespaces; bound as the first is.
    pub further_sockets: Vec<PathBuf>,
    /// The control socket, if there is to be one.
    pub control: Option<PathBuf>,
    /// Fault rules.
    pub faults: Vec<Rule>,
    /// Where a record of each Copy is written, if anywhere.
    pub copy_log: Option<PathBuf>,
    /// The controller.
    pub nvme: NvmeConfig,
    /// The namespaces in the order of their ids; at least one.
    pub namespaces: Vec<NsConfig>,
    /// What is logged.
    pub log: LevelFilter,
}

/// A size in bytes as every option takes it: a number with `K`, `M` and so on, powers of 1024.
///
/// # Errors
/// What is wrong with it.
pub fn parse_size(text: &str) -> Result<u64, String> {
    value::size(OsStr::new(text)).map_err(|reject| reject.problem)
}

/// How files are read and written.
fn aio(given: &OsStr) -> Result<LaneKind, value::Reject> {
    match given.to_str() {
        Some("auto") => Ok(LaneKind::Auto),
        Some("io_uring") => Ok(LaneKind::IoUring),
        Some("threads") => Ok(LaneKind::Threads),
        _ => Err(value::Reject::new("must be auto, io_uring or threads")),
    }
}

/// How a host's doorbells get here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Doorbells {
    /// By messages, and by shadow doorbells if the guest offers them. Idle costs nothing.
    #[default]
    Trap,
    /// Clients map them, and they are polled.
    Mmap,
}

impl Doorbells {
    fn parse(given: &OsStr) -> Result<Self, value::Reject> {
        match given.to_str() {
            Some("trap") => Ok(Self::Trap),
            Some("mmap") => Ok(Self::Mmap),
            _ => Err(value::Reject::new("must be trap or mmap")),
        }
    }
}

/// How a worker waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Poll {
    /// Looks for a moment while that pays, then sleeps.
    #[default]
    Adaptive,
    /// Never sleeps: each worker occupies a processor.
    Always,
}

impl Poll {
    fn parse(given: &OsStr) -> Result<Self, value::Reject> {
        match given.to_str() {
            Some("adaptive") => Ok(Self::Adaptive),
            Some("always") => Ok(Self::Always),
            _ => Err(value::Reject::new("must be adaptive or always")),
        }
    }
}

/// Bytes of a path in a UNIX socket address, less its final NUL.
pub const SUN_PATH_MAX: usize = 107;

impl Config {
    /// Builds and checks a configuration from the values of `--socket`, `--nvme`, each `--nvme-ns` and `--log`.
    ///
    /// Opens nothing: an image or a socket that cannot be used shows when it is opened, and is best reported
    /// then with [`ConfigError::bad_value`] or [`ConfigError::bad_option`].
    ///
    /// # Errors
    ///
    /// The first thing that is wrong.
    pub fn new(
        socket: PathBuf,
        nvme: Option<&OsStr>,
        namespaces: &[OsString],
        log: LevelFilter,
    ) -> Result<Self, ConfigError> {
        check_socket(socket.as_os_str())?;
        let nvme = nvme::parse(nvme)?.finish(&socket);
        let drafts = match namespaces {
            [] => vec![ns::NsDraft::memory_1g()],
            lists => lists.iter().map(|list| ns::parse(list)).collect::<Result<_, _>>()?,
        };
        let listen = Listen::default();
        Ok(Self {
            socket,
            listen,
            further_sockets: Vec::new(),
            control: None,
            faults: Vec::new(),
            copy_log: None,
            namespaces: number(drafts, &nvme)?,
            nvme,
            log,
        })
    }

    /// The same with a socket that comes from elsewhere, or that others may connect to.
    pub fn with_listen(self, listen: Listen) -> Self {
        Self { listen, ..self }
    }

    /// The same with more controllers, each at a socket of its own.
    pub fn with_further_sockets(self, further_sockets: Vec<PathBuf>) -> Self {
        Self { further_sockets, ..self }
    }

    /// The same with a file for the copy log, or without one.
    pub fn with_copy_log(self, copy_log: Option<PathBuf>) -> Self {
        Self { copy_log, ..self }
    }

    /// The same with a control socket, or without one.
    pub fn with_control(self, control: Option<PathBuf>) -> Self {
        Self { control, ..self }
    }

    /// The same with these fault rules.
    ///
    /// # Errors
    /// The first that cannot be.
    pub fn with_faults(self, rules: &[OsString]) -> Result<Self, ConfigError> {
        let rule = |text: &OsString| {
            let text = text.to_str().ok_or_else(|| {
                ConfigError::bad_option("--fault", text, "is not UTF-8 text", "write it in UTF-8")
            })?;
            Rule::parse(text).map_err(|error| ConfigError::bad_rule(&error))
        };
        let faults = rules.iter().map(rule).collect::<Result<_, _>>()?;
        Ok(Self { faults, ..self })
    }

    /// The sockets of all controllers; the first may be inherited.
    pub fn sockets(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(&self.socket).chain(&self.further_sockets).map(PathBuf::as_path)
    }

    /// What works but deserves a warning in the log, one line each.
    pub fn notes(&self) -> Vec<String> {
        self.namespaces.iter().flat_map(NsConfig::notes).collect()
    }
}

/// The socket's path goes into an address of fixed size, and into JSON for QEMU.
fn check_socket(socket: &OsStr) -> Result<(), ConfigError> {
    let refuse = |problem: String, remedy| Err(ConfigError::bad_option("--socket", socket, problem, remedy));
    match socket.to_str() {
        Some("") => refuse("is no path".into(), "for example --socket /tmp/nvme.sock"),
        Some(path) if path.len() > SUN_PATH_MAX => refuse(
            format!("has {} bytes, a socket's path at most {SUN_PATH_MAX}", path.len()),
            "choose a shorter one, for example /tmp/nvme.sock",
        ),
        Some(path) if !path.contains(char::is_control) => Ok(()),
        _ => refuse(
            "is not UTF-8 text without control characters, as QEMU needs it".into(),
            "choose another name",
        ),
    }
}

/// One more namespace, from the value of an `--nvme-ns`, beside `others` that there are already.
///
/// # Errors
/// What is wrong with it, or in the way of it.
pub fn another(given: &OsStr, nvme: &NvmeConfig, others: &[NsConfig]) -> Result<NsConfig, ConfigError> {
    let draft = ns::parse(given)?;
    let is_taken = |nsid: u32| others.iter().any(|other| other.nsid == nsid);
    if let Some(nsid) = draft.nsid.filter(|nsid| is_taken(*nsid)) {
        let reject =
            value::Reject::with("is that of another namespace", "leave it out for the next free one");
        return Err(ns::TABLE.refuse("nsid", nsid.to_string(), reject));
    }
    let free = || (1..=NSID_MAX).find(|nsid| !is_taken(*nsid));
    let Some(nsid) = draft.nsid.or_else(free) else {
        return Err(ConfigError::TooManyNamespaces { given: others.len() + 1, max: NSID_MAX });
    };
    let ns = draft.finish(nsid, nvme)?;
    refuse_twin(others, &ns)?;
    Ok(ns)
}

/// Gives each namespace its id: those named first, then the lowest free ones in order.
fn number(drafts: Vec<ns::NsDraft>, nvme: &NvmeConfig) -> Result<Vec<NsConfig>, ConfigError> {
    let too_many = ConfigError::TooManyNamespaces { given: drafts.len(), max: NSID_MAX };
    let mut taken = Vec::new();
    for nsid in drafts.iter().filter_map(|d| d.nsid) {
        if taken.contains(&nsid) {
            return Err(ns::TABLE.refuse(
                "nsid",
                nsid.to_string(),
                value::Reject::with("is given to two namespaces", "leave it out for the next free one"),
            ));
        }
        taken.push(nsid);
    }
    let mut free = (1..=NSID_MAX).filter(|nsid| !taken.contains(nsid));
    let mut namespaces = Vec::new();
    for draft in drafts {
        let Some(nsid) = draft.nsid.or_else(|| free.next()) else {
            return Err(too_many);
        };
        let ns = draft.finish(nsid, nvme)?;
        refuse_twin(&namespaces, &ns)?;
        namespaces.push(ns);
    }
    namespaces.sort_by_key(|ns| ns.nsid);
    Ok(namespaces)
}

/// Linux refuses a namespace whose id another one has.
fn refuse_twin(others: &[NsConfig], ns: &NsConfig) -> Result<(), ConfigError> {
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|b| format!("{b:02x}")).collect() };
    for other in others {
        let twin = if other.uuid == ns.uuid {
            ("uuid", ns.uuid.to_string())
        } else if other.nguid == ns.nguid && ns.nguid != [0; 16] {
            ("nguid", hex(&ns.nguid))
        } else if other.eui64 == ns.eui64 && ns.eui64 != [0; 8] {
            ("eui64", hex(&ns.eui64))
        } else {
            continue;
        };
        let problem = format!("is that of namespaces {} and {}", other.nsid, ns.nsid);
        let reject = value::Reject::with(problem, "leave it out of one for an id of its own");
        return Err(ns::TABLE.refuse(twin.0, twin.1, reject));
    }
    Ok(())
}

/// Every property of `--nvme` and `--nvme-ns` with values, default and meaning.
pub fn properties_help() -> String {
    format!(
        "Property lists are NAME=VALUE,NAME=VALUE as in QEMU; a comma inside a value is written twice.\n\n{}\n{}",
        nvme::TABLE.help(),
        ns::TABLE.help()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(namespaces: &[&str]) -> Result<Config, ConfigError> {
        let namespaces: Vec<_> = namespaces.iter().map(OsString::from).collect();
        Config::new("/run/s".into(), None, &namespaces, LevelFilter::Info)
    }

    fn error(namespaces: &[&str]) -> String {
        config(namespaces).unwrap_err().to_string()
    }

    #[test]
    fn without_a_namespace_there_is_1_gib_of_memory() {
        let config = config(&[]).unwrap();
        assert_eq!(config.namespaces.len(), 1);
        assert_eq!(config.namespaces[0].drive, Drive::Memory { size: 1 << 30 });
        assert_eq!(config.namespaces[0].nsid, 1);
    }

    #[test]
    fn named_ids_first_then_the_lowest_free() {
        let config = config(&["drive=a", "drive=b,nsid=1", "drive=c,nsid=3", "drive=d,nsid=0"]);
        let got: Vec<_> = config
            .unwrap()
            .namespaces
            .into_iter()
            .map(|ns| match ns.drive {
                Drive::File { path, .. } => (ns.nsid, path.into_os_string().into_string().unwrap()),
                other => panic!("{other:?}"),
            })
            .collect();
        let want = [(1, "b"), (2, "a"), (3, "c"), (4, "d")];
        assert_eq!(got, want.map(|(n, p)| (n, p.to_owned())));
    }

    #[test]
    fn as_many_as_there_are_ids() {
        let lists = vec!["drive=a"; 256];
        assert_eq!(config(&lists).unwrap().namespaces[255].nsid, 256);
        let lists = vec!["drive=a"; 257];
        assert_eq!(error(&lists), "--nvme-ns: 257 namespaces, at most 256 are possible; leave some out");
    }

    #[test]
    fn twins_are_refused() {
        let id = "7d444840-9dc0-11d1-b245-5ffdce74fad2";
        let nguid = "00112233445566778899aabbccddeeff";
        for (a, b, message) in [
            (
                "nsid=2".to_owned(),
                "nsid=2".to_owned(),
                "--nvme-ns nsid=2: is given to two namespaces; leave it out for the next free one".to_owned(),
            ),
            (
                format!("uuid={id}"),
                format!("uuid={id}"),
                format!("--nvme-ns uuid={id}: is that of namespaces 1 and 2; leave it out of one for an id of its own"),
            ),
            (
                format!("nguid={nguid}"),
                format!("nguid={nguid}"),
                format!("--nvme-ns nguid={nguid}: is that of namespaces 1 and 2; leave it out of one for an id of its own"),
            ),
            (
                "eui64=5254000000000001".into(),
                "eui64=0x5254000000000001".into(),
                "--nvme-ns eui64=5254000000000001: is that of namespaces 1 and 2; leave it out of one for an id of its own".into(),
            ),
        ] {
            let (a, b) = (format!("drive=a,{a}"), format!("drive=b,{b}"));
            assert_eq!(error(&[&a, &b]), message);
        }
        assert!(config(&["drive=a,eui64=0", "drive=b,eui64=0"]).is_ok());
    }

    #[test]
    fn another_beside_those_that_there_are() {
        let config = config(&["drive=a", "drive=b,nsid=3"]).unwrap();
        let mut all = config.namespaces;
        let mut add = |list: &str| {
            let ns = another(list.as_ref(), &config.nvme, &all).map_err(|error| error.to_string())?;
            all.push(ns.clone());
            Ok::<_, String>(ns.nsid)
        };
        assert_eq!(add("drive=c"), Ok(2));
        assert_eq!(add("drive=c"), Ok(4));
        assert_eq!(add("drive=c,nsid=9"), Ok(9));
        assert_eq!(
            add("drive=c,nsid=3"),
            Err("--nvme-ns nsid=3: is that of another namespace; leave it out for the next free one".into())
        );
        assert_eq!(add("drive=c,uuid=7d444840-9dc0-11d1-b245-5ffdce74fad2"), Ok(5));
        let twin = add("drive=c,uuid=7d444840-9dc0-11d1-b245-5ffdce74fad2").unwrap_err();
        assert!(twin.contains("is that of namespaces 5 and 6"), "{twin}");
        assert!(add("drive=memory").unwrap_err().contains("needs a size"));
        let full = (1..=NSID_MAX).map(|nsid| NsConfig { nsid, ..all[0].clone() }).collect::<Vec<_>>();
        let error = another("drive=c".as_ref(), &config.nvme, &full).unwrap_err().to_string();
        assert_eq!(error, "--nvme-ns: 257 namespaces, at most 256 are possible; leave some out");
    }

    #[test]
    fn sockets() {
        let socket = |path: OsString| {
            Config::new(path.into(), None, &[], LevelFilter::Info).map_err(|e| e.to_string())
        };
        assert!(socket("x".repeat(107).into()).is_ok());
        let long = "x".repeat(108);
        assert_eq!(
            socket(long.clone().into()).unwrap_err(),
            format!(
                "--socket {long}: has 108 bytes, a socket's path at most 107; choose a shorter one, for example /tmp/nvme.sock"
            )
        );
        assert_eq!(
            socket("".into()).unwrap_err(),
            "--socket (empty): is no path; for example --socket /tmp/nvme.sock"
        );
        assert_eq!(
            socket("a\nb".into()).unwrap_err(),
            "--socket a\\nb: is not UTF-8 text without control characters, as QEMU needs it; choose another name"
        );
        use std::os::unix::ffi::OsStringExt;
        assert!(socket(OsString::from_vec(vec![0xff])).is_err());
    }

    #[test]
    fn notes_of_all_namespaces() {
        let config = config(&["drive=a,msrc=255", "drive=b", "drive=c,msrc=255"]).unwrap();
        let notes = config.notes();
        assert_eq!(notes.len(), 2);
        assert!(notes[1].starts_with("namespace 3: msrc=255 "));
    }

    #[test]
    fn help_has_every_property_with_default_and_meaning() {
        let help = properties_help();
        for part in [
            "mdts=1..11  [default: 7]\n        Largest transfer",
            "drive=PATH|memory  [required]\n",
            "msix_qsize=1..2048  [default: max_ioqpairs + 1]\n",
            "msrc=0..255  [default: 126]\n",
        ] {
            assert!(help.contains(part), "{part}");
        }
        let names = |text: &str| text.matches("\n  ").count();
        assert_eq!(
            names(&help) - help.matches("\n        ").count(),
            nvme::TABLE.properties.len() + ns::TABLE.properties.len()
        );
        assert!(help.lines().all(|line| line.chars().count() <= 110));
    }
}
