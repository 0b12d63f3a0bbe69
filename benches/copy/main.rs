//! `cargo bench --bench copy`: our Copy beside the best that this host does with the same bytes, in one run.
//!
//! In process, through a worker and a real disk, four commands in flight; no wire, no guest and no wake-ups
//! of a host (see `driver`), which cost the same with every method. Each row is the median of five runs of
//! either side, taken in turns, and the ratio ours / theirs (above 1: we are faster). The machine's absolute
//! speed does not matter, its quiet does. The last rows (`-- during`) are of fairness: reads on a second
//! queue of the same worker while a Copy runs, against the same reads alone.
//!
//! Arguments: words that a row's name must contain (`cargo bench --bench copy -- memory`). `BENCH_DIR` names
//! the folder of the plain-file rows (its file system is the one measured); XFS and btrfs rows mount loop
//! files and need root. `BENCH_METHOD` is our `copy_method=`.

#![allow(unsafe_code, reason = "maps guest memory and asks for reflinks")]

mod baseline;
mod driver;
mod fs;
mod rows;

const HELP: &str = "\
cargo bench --bench copy [-- WORD...]   rows whose name has all of these words; without any, all rows: 4 minutes
  BENCH_DIR     folder of the plain-file rows: its file system is the one measured
  BENCH_METHOD  our copy_method=
The XFS and btrfs rows need root and loop devices.";

fn main() {
    if std::env::args().skip(1).any(|word| word == "--help" || word == "-h") {
        return println!("{HELP}");
    }
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    println!("{:<44} {:>12} {:>12} {:>7}  spread ours/theirs", "row", "ours", "theirs", "ratio");
    for row in rows::all() {
        if words.iter().all(|word| row.name().contains(word.as_str())) {
            row.run();
        }
    }
}
