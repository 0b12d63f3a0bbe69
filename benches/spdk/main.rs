//! `cargo bench --bench spdk`: our server and SPDK's target in turn, with either one's own client.
//!
//! Wants SPDK_TREE, the folder of an SPDK that is built with its vfio-user target, reserved huge pages and a
//! mounted hugetlbfs; without them it says what is missing and measures nothing. Both serve 64 MiB of memory
//! in 512-byte blocks, all of it written, from one processor that they poll on; the client has another.
//! Whoever is not measured is stopped (SIGSTOP). How to read it: docs/performance.md, "Beside SPDK".
//!
//! Arguments: `-- --runs N` (5), `--seconds N` (1), `--cpus SERVER,CLIENT` (0,1), `--client perf|bench`
//! (both), and words: rows whose name has all of them.

mod rows;
mod servers;

use std::process::ExitCode;

use rows::Row;
use servers::{Pinned, Server, Tree};

/// What the command line asks for.
struct Asked {
    runs: usize,
    seconds: u64,
    server_cpu: usize,
    client_cpu: usize,
    perf: bool,
    bench: bool,
    words: Vec<String>,
}

impl Asked {
    fn from_args() -> Result<Self, String> {
        let mut asked = Asked {
            runs: 5,
            seconds: 1,
            server_cpu: 0,
            client_cpu: 1,
            perf: true,
            bench: true,
            words: Vec::new(),
        };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} wants a value"));
            match arg.as_str() {
                // Cargo's own.
                "--bench" => {}
                "--runs" => asked.runs = number::<usize>(&value()?)?.max(1),
                "--seconds" => asked.seconds = number::<u64>(&value()?)?.max(1),
                "--cpus" => {
                    let cpus = value()?;
                    let (server, client) = cpus.split_once(',').ok_or("--cpus wants two, as 0,1")?;
                    (asked.server_cpu, asked.client_cpu) = (number(server)?, number(client)?);
                }
                "--client" => match value()?.as_str() {
                    "perf" => asked.bench = false,
                    "bench" => asked.perf = false,
                    other => return Err(format!("--client {other}: use perf or bench")),
                },
                word => asked.words.push(word.to_owned()),
            }
        }
        Ok(asked)
    }

    fn rows(&self) -> impl Iterator<Item = &'static Row> + '_ {
        rows::ALL.iter().filter(|row| self.words.iter().all(|word| row.name.contains(word.as_str())))
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text}: no number"))
}

fn main() -> ExitCode {
    let asked = match Asked::from_args() {
        Ok(asked) => asked,
        Err(mistake) => {
            eprintln!("{mistake}");
            return ExitCode::from(2);
        }
    };
    let tree = match Tree::find() {
        Ok(tree) => tree,
        Err(missing) => {
            println!("skipped: {missing}");
            return ExitCode::SUCCESS;
        }
    };
    match run(&asked, &tree) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn run(asked: &Asked, tree: &Tree) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|error| format!("no folder for sockets: {error}"))?;
    let at = Pinned(asked.server_cpu);
    let ours = Server::ours(folder.path(), at)?;
    let theirs = Server::spdk(tree, folder.path(), at)?;
    rows::fill(&ours, &theirs, asked.client_cpu)?;
    println!("{} runs of {} s each, in turn\n", asked.runs, asked.seconds);
    if asked.perf {
        println!("client: spdk_nvme_perf");
        println!(
            "{:<34} {:>10} {:>10}  ours / SPDK",
            "IOPS; at depth 1 also the mean latency", "ours", "SPDK"
        );
        for row in asked.rows().filter(|row| row.perf) {
            rows::by_perf(row, tree, &ours, &theirs, asked)?;
        }
    }
    if asked.bench {
        println!("\nclient: vfio-user-nvme-bench");
        for row in asked.rows() {
            rows::by_bench(row, &ours, &theirs, asked)?;
        }
    }
    Ok(())
}
