//! The binary's exit codes and what it writes where, for mistakes that show before anything runs.

use std::process::{Command, Output};

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vfio-user-nvme")).args(args).output().expect("the binary runs")
}

#[test]
fn a_mistake_is_one_line_on_standard_error_and_code_2() {
    for (args, line) in [
        (
            &["serve", "--socket", "s", "--nvme-ns", "drive=a,mssrl=0"][..],
            "error: --nvme-ns mssrl=0: must be 1 to 65535; leave it out for 32768\n",
        ),
        (
            &["serve"],
            "error: the following required arguments were not provided: --socket <PATH>; see vfio-user-nvme serve --help\n",
        ),
    ] {
        let out = run(args);
        assert_eq!(out.status.code(), Some(2), "{args:?}");
        assert_eq!(String::from_utf8_lossy(&out.stderr), line);
        assert!(out.stdout.is_empty());
    }
}

#[test]
fn help_is_on_standard_output_and_code_0() {
    let out = run(&["serve", "--help"]);
    assert_eq!(out.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&out.stdout).contains("mssrl=1..65535  [default: 32768]"));
    assert!(out.stderr.is_empty());
}
