//! The words of the command line, and what they mean once checked.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use vfio_user_nvme::config::{self, ConfigError};

use super::pattern::Rw;
use super::row::{FileLimit, Limit, Row, Suite};

/// What guest memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Guest {
    /// Pages of 4 KiB.
    Memfd,
    /// Huge pages of 2 MiB, which have to be reserved.
    Hugetlb,
}

/// How doorbells are rung.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Doorbells {
    /// Mapped if the server allows it, else shadowed, else trapped.
    Auto,
    /// A message each.
    Trap,
    /// Stores to a page of BAR0.
    Mmap,
    /// Doorbell Buffer Config.
    Shadow,
}

/// The arguments of the program.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// Socket of the server to measure: ours, or SPDK's (the file named cntrl)
    socket: PathBuf,

    /// A second server, measured in turn with the first
    #[arg(long, value_name = "SOCKET")]
    against: Option<PathBuf>,

    /// What the load does
    #[arg(long, value_enum, default_value = "randread")]
    rw: Rw,

    /// Bytes of one command
    #[arg(long, value_name = "SIZE", default_value = "4k")]
    bs: String,

    /// Commands in flight in each queue
    #[arg(long, visible_alias = "iodepth", value_name = "N", default_value_t = 32,
        value_parser = clap::value_parser!(u16).range(1..=4096))]
    depth: u16,

    /// Queues, each with a thread of its own
    #[arg(long, visible_alias = "numjobs", value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=128))]
    queues: u16,

    /// Reads among the commands of randrw, per cent
    #[arg(long, visible_alias = "rwmixread", value_name = "PERCENT", default_value_t = 50,
        value_parser = clap::value_parser!(u8).range(0..=100))]
    mix: u8,

    /// Length of one run
    #[arg(long, visible_alias = "runtime", value_name = "SECONDS", default_value_t = 5.0)]
    seconds: f64,

    /// Before each run, and not counted
    #[arg(long, visible_alias = "ramp_time", value_name = "SECONDS", default_value_t = 1.0)]
    warm_up: f64,

    /// Runs of each server and limit, in turn
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,

    /// Guest memory
    #[arg(long, value_enum, default_value = "memfd")]
    memory: Guest,

    /// How doorbells are rung
    #[arg(long, value_enum, default_value = "auto")]
    doorbells: Doorbells,

    /// Wait for the reply to each doorbell message; QEMU does not
    #[arg(long)]
    no_posted_writes: bool,

    /// Namespace
    #[arg(long, value_name = "N", default_value_t = 1)]
    nsid: u32,

    /// Bytes of the namespace that are used, from its start on; all of them if left out
    #[arg(long, visible_alias = "size", value_name = "SIZE")]
    span: Option<String>,

    /// Write all of the span first, and check a part of it
    #[arg(long)]
    fill: bool,

    /// Agree that the data on the namespace (and the image of --limit) are overwritten
    #[arg(long)]
    destroy_data: bool,

    /// CPUs for the queues' threads, as 0,2-3; not pinned if left out
    #[arg(long, visible_alias = "cpus_allowed", value_name = "LIST")]
    cpus: Option<String>,

    /// Measure a limit in turn: memory, memory:4k, floor, file:PATH or file:PATH,direct; may be repeated
    #[arg(long, value_name = "WHAT")]
    limit: Vec<String>,

    /// Measure the rows of docs/performance.md: memory, file:PATH or file:PATH,direct
    #[arg(long, value_name = "WHAT", conflicts_with_all = ["rw", "bs", "depth", "queues", "limit"])]
    suite: Option<String>,

    /// Stop the processes behind the sockets (SIGSTOP) while they are not measured
    #[arg(long)]
    pause_others: bool,

    /// Longest wait for any reply or completion
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    timeout: f64,

    /// Also write the results to a file; - for standard output, in place of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// All options, checked as far as that goes without a server.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// With the option that named each.
    pub(crate) sockets: Vec<(&'static str, PathBuf)>,
    pub(crate) rows: Vec<Row>,
    pub(crate) measured: Duration,
    pub(crate) warm_up: Duration,
    pub(crate) runs: u32,
    pub(crate) guest: Guest,
    pub(crate) doorbells: Doorbells,
    pub(crate) posted: bool,
    pub(crate) nsid: u32,
    pub(crate) span: Option<u64>,
    pub(crate) fill: bool,
    pub(crate) cpus: Vec<usize>,
    pub(crate) pause_others: bool,
    pub(crate) patience: Duration,
    pub(crate) json: Option<PathBuf>,
    /// What the person should know before the run.
    pub(crate) notes: Vec<String>,
}

impl BenchArgs {
    /// Checks what can be checked without a server.
    ///
    /// # Errors
    /// A mistake, in one line.
    pub fn plan(self) -> Result<Plan, ConfigError> {
        let bytes = size("--bs", &self.bs)?;
        if !bytes.is_multiple_of(512) || bytes > 32 << 20 {
            return Err(bad("--bs", &self.bs, "must be a multiple of 512, up to 32M", "use 4k"));
        }
        let limits = self.limit.iter().map(|text| limit(text)).collect::<Result<Vec<_>, _>>()?;
        let row = Row { rw: self.rw, bytes, depth: self.depth, queues: self.queues, mix: self.mix, limits };
        let mut notes = Vec::new();
        let rows = match self.suite.as_deref().map(suite).transpose()? {
            Some(suite) => {
                let all = super::suite::rows(&suite);
                let rows: Vec<_> =
                    all.iter().filter(|row| self.destroy_data || row.rw.only_reads()).cloned().collect();
                if rows.len() < all.len() {
                    notes.push("rows that write are left out; --destroy-data adds them".to_owned());
                }
                rows
            }
            None => vec![row],
        };
        let writes = rows.iter().find(|row| !row.rw.only_reads()).map(|row| ("--rw", row.rw.word()));
        if let Some((option, value)) =
            writes.or(self.fill.then_some(("--fill", "on"))).filter(|_| !self.destroy_data)
        {
            return Err(bad(
                option,
                value,
                "overwrites data on the namespace",
                "add --destroy-data if they may go",
            ));
        }
        for row in &rows {
            compatible(row)?;
        }
        let span = self.span.as_deref().map(|text| size("--span", text)).transpose()?;
        let sockets = [("SOCKET", Some(self.socket)), ("--against", self.against)];
        Ok(Plan {
            sockets: sockets.into_iter().filter_map(|(option, path)| Some((option, path?))).collect(),
            rows,
            measured: seconds("--seconds", self.seconds, 0.001)?,
            warm_up: seconds("--warm-up", self.warm_up, 0.0)?,
            runs: self.runs,
            guest: self.memory,
            doorbells: self.doorbells,
            posted: !self.no_posted_writes,
            nsid: self.nsid,
            span,
            fill: self.fill,
            cpus: self.cpus.as_deref().map(cpus).transpose()?.unwrap_or_default(),
            pause_others: self.pause_others,
            patience: seconds("--timeout", self.timeout, 0.01)?,
            json: self.json,
            notes,
        })
    }
}

/// Can the row's limits do what the row does?
fn compatible(row: &Row) -> Result<(), ConfigError> {
    for limit in &row.limits {
        let (value, problem, remedy) = match limit {
            Limit::File(_) if row.rw == Rw::Copy => {
                ("file", "has no Copy", "use --limit memory, or another --rw")
            }
            Limit::Floor if row.depth > 1 || row.queues > 1 => {
                ("floor", "is the limit of one command at a time", "use --depth 1 --queues 1")
            }
            Limit::Floor if row.rw != Rw::RandRead => ("floor", "reads anywhere", "use --rw randread"),
            _ => continue,
        };
        return Err(bad("--limit", value, problem, remedy));
    }
    Ok(())
}

fn bad(option: &'static str, value: &str, problem: &str, remedy: &str) -> ConfigError {
    ConfigError::bad_option(option, value, problem, remedy)
}

fn size(option: &'static str, text: &str) -> Result<u64, ConfigError> {
    config::parse_size(text).map_err(|problem| bad(option, text, &problem, "write for example 4k or 64M"))
}

fn seconds(option: &'static str, value: f64, least: f64) -> Result<Duration, ConfigError> {
    if (least..=86400.0).contains(&value) {
        return Ok(Duration::from_secs_f64(value));
    }
    Err(bad(
        option,
        &value.to_string(),
        &format!("must be {least} to 86400 seconds"),
        "leave it out for the default",
    ))
}

fn file(text: &str) -> FileLimit {
    match text.strip_suffix(",direct") {
        Some(path) => FileLimit { path: path.into(), direct: true },
        None => FileLimit { path: text.into(), direct: false },
    }
}

fn limit(text: &str) -> Result<Limit, ConfigError> {
    match text.split_once(':') {
        None if text == "memory" => Ok(Limit::Memory { huge: true }),
        Some(("memory", "4k")) => Ok(Limit::Memory { huge: false }),
        None if text == "floor" => Ok(Limit::Floor),
        Some(("file", path)) if !path.is_empty() => Ok(Limit::File(file(path))),
        _ => Err(bad(
            "--limit",
            text,
            "is no limit",
            "use memory, memory:4k, floor, file:PATH or file:PATH,direct",
        )),
    }
}

fn suite(text: &str) -> Result<Suite, ConfigError> {
    match text.split_once(':') {
        None if text == "memory" => Ok(Suite::Memory),
        Some(("file", path)) if !path.is_empty() => Ok(Suite::File(file(path))),
        _ => Err(bad("--suite", text, "is no suite", "use memory, file:PATH or file:PATH,direct")),
    }
}

/// Most CPUs the affinity mask of a thread holds.
const CPUS: usize = rustix::thread::CpuSet::MAX_CPU;

fn cpus(text: &str) -> Result<Vec<usize>, ConfigError> {
    let number = |text: &str| text.parse::<usize>().ok().filter(|cpu| *cpu < CPUS);
    let mut list = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => list.extend(first..=last),
            _ => return Err(bad("--cpus", text, "is no list of CPUs", "write for example 1 or 0,2-3")),
        }
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Words {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn plan(words: &str) -> Result<Plan, ConfigError> {
        let words = ["bench"].into_iter().chain(words.split_whitespace());
        Words::try_parse_from(words).unwrap_or_else(|error| panic!("{error}")).args.plan()
    }

    #[test]
    fn defaults_only_read() {
        let plan = plan("s").unwrap();
        let row = Row { rw: Rw::RandRead, bytes: 4096, depth: 32, queues: 1, mix: 50, limits: vec![] };
        assert_eq!(plan.rows, [row]);
        assert_eq!(
            (plan.runs, plan.measured, plan.warm_up),
            (5, Duration::from_secs(5), Duration::from_secs(1))
        );
        assert_eq!((plan.fill, plan.posted, plan.pause_others, plan.span), (false, true, false, None));
    }

    #[test]
    fn everything_given() {
        let plan = plan(
            "s --against t --rw randrw --bs 128k --iodepth 7 --numjobs 2 --rwmixread 70 --runtime 0.5 --ramp_time 0 \
             --runs 3 --memory hugetlb --doorbells shadow --no-posted-writes --nsid 3 --size 1M --fill --destroy-data \
             --cpus 0,2-3 --limit memory --limit memory:4k --limit file:a,direct --pause-others --timeout 2 --json -",
        )
        .unwrap();
        let file = FileLimit { path: "a".into(), direct: true };
        let limits = vec![Limit::Memory { huge: true }, Limit::Memory { huge: false }, Limit::File(file)];
        assert_eq!(
            plan.rows,
            [Row { rw: Rw::RandRw, bytes: 128 << 10, depth: 7, queues: 2, mix: 70, limits }]
        );
        assert_eq!(plan.sockets, [("SOCKET", "s".into()), ("--against", "t".into())]);
        assert_eq!((plan.cpus, plan.span, plan.nsid), (vec![0, 2, 3], Some(1 << 20), 3));
        assert_eq!((plan.guest, plan.doorbells, plan.posted), (Guest::Hugetlb, Doorbells::Shadow, false));
    }

    #[test]
    fn mistakes_name_option_value_and_remedy() {
        for (words, message) in [
            ("s --bs 4000", "--bs 4000: must be a multiple of 512, up to 32M; use 4k"),
            ("s --bs 4kb", "--bs 4kb: is ambiguous between 1000 and 1024; write for example 4k or 64M"),
            ("s --rw copy", "--rw copy: overwrites data on the namespace; add --destroy-data if they may go"),
            ("s --fill", "--fill on: overwrites data on the namespace; add --destroy-data if they may go"),
            ("s --seconds 0", "--seconds 0: must be 0.001 to 86400 seconds; leave it out for the default"),
            (
                "s --seconds NaN",
                "--seconds NaN: must be 0.001 to 86400 seconds; leave it out for the default",
            ),
            ("s --cpus 1-0", "--cpus 1-0: is no list of CPUs; write for example 1 or 0,2-3"),
            (
                "s --limit disk",
                "--limit disk: is no limit; use memory, memory:4k, floor, file:PATH or file:PATH,direct",
            ),
            (
                "s --limit floor",
                "--limit floor: is the limit of one command at a time; use --depth 1 --queues 1",
            ),
            ("s --suite file:", "--suite file:: is no suite; use memory, file:PATH or file:PATH,direct"),
            (
                "s --rw copy --destroy-data --limit file:a",
                "--limit file: has no Copy; use --limit memory, or another --rw",
            ),
        ] {
            assert_eq!(plan(words).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn a_suite_without_leave_to_write_only_reads() {
        let reading = plan("s --suite memory").unwrap();
        assert!(reading.rows.iter().all(|row| row.rw.only_reads()) && reading.notes.len() == 1);
        let all = plan("s --suite memory --destroy-data").unwrap();
        assert!(all.rows.len() > reading.rows.len() && all.notes.is_empty());
    }
}
