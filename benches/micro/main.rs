//! `cargo bench --bench micro`: the steps of the I/O path one by one, timed by Criterion.
//!
//! Words after `--` choose (`cargo bench --bench micro -- prp`). Times want a quiet machine; `--bench
//! instructions` does not.

#[path = "../lone/mod.rs"]
mod lone;

mod copies;
mod path;

use std::time::Duration;

use criterion::Criterion;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    path::rings(&mut criterion);
    path::walks(&mut criterion);
    path::dispatch(&mut criterion);
    copies::planner(&mut criterion);
    criterion.final_summary();
}
