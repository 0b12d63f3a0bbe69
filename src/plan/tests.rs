use std::ffi::OsString;

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: PlanArgs,
}

fn asked(args: &[&str]) -> Result<Question, NoQuestion> {
    question(Cli::parse_from(["plan"].iter().chain(args).map(OsString::from)).args)
}

/// What is printed.
fn printed(args: &[&str]) -> String {
    let question = asked(args).expect("a question");
    print::text(&question, &answer(&question).expect("all is known"))
}

/// The rule that refuses it.
fn rule(args: &[&str]) -> Option<&'static str> {
    answer(&asked(args).expect("a question")).expect("all is known").err().map(|reject| reject.rule)
}

const FILE: &str = "drive=a.img,size=1G";

#[test]
fn a_copy_within_memory() {
    assert_eq!(
        printed(&["--to", "1000", "--range", "0+8", "--range", "64+600", "--fua"]),
        "to 1:1000+608: 311296 bytes from 2 ranges, durable before the completion\n\
         step 1 of 1, in any order:\n  \
         1:1000+608 by memmove from 1:0+8 (range 0) 1:64+600 (range 1)\n"
    );
}

#[test]
fn a_copy_onto_itself_and_between_files() {
    let overlapping = printed(&[
        "--nvme-ns",
        FILE,
        "--to",
        "8",
        "--range",
        "0+16",
        "--range",
        "16+8",
        "--assume",
        "nothing",
    ]);
    let held = "step 1 of 1, from back to front, for it overwrites its sources:\n  1:8+24 by bounce from 1:0+16 (range 0) 1:16+8 (range 1)\n";
    assert!(overlapping.contains(held), "{overlapping}");
    let two = ["--nvme-ns", FILE, "--nvme-ns", "drive=b.img,size=1G,copy_method=reflink"];
    let shared = printed(&[&two[..], &["--to", "2:0", "--range", "1:8+16"]].concat());
    assert!(shared.contains("\n  2:0+16 by reflink from 1:8+16 (range 0)\n"), "{shared}");
    assert!(shared.contains("share blocks of 4096 bytes (--assume)"), "{shared}");
    let copied = printed(&[&two[..], &["--to", "2:0", "--range", "1:8+16", "--assume", "nothing"]].concat());
    assert!(copied.contains("by bounce from"), "{copied}");
}

#[test]
fn a_refusal_names_its_rule_and_range() {
    let limits = ["--nvme-ns", "drive=memory,size=1M,mssrl=16,mcl=24,msrc=1"];
    let refused = |args: &[&str]| rule(&[&limits, args].concat());
    assert_eq!(refused(&["--range", "0+16", "--range", "16+8", "--to", "100"]), None);
    assert_eq!(refused(&["--range", "0+17"]), Some("mssrl"));
    assert_eq!(refused(&["--range", "0+16", "--range", "16+9"]), Some("mcl"));
    assert_eq!(refused(&["--range", "0+1", "--range", "1+1", "--range", "2+1"]), Some("msrc"));
    assert_eq!(refused(&["--range", "2047+2", "--to", "0"]), Some("source-bounds"));
    assert_eq!(refused(&["--range", "0+2", "--to", "2047"]), Some("destination-bounds"));
    assert_eq!(refused(&["--range", "2:0+2"]), Some("snsid-inactive"));
    assert_eq!(refused(&["--range", "300:0+2"]), Some("snsid-invalid"));
    assert_eq!(refused(&["--range", "0+2", "--to", "7:0"]), Some("nsid-inactive"));
    assert_eq!(refused(&["--range", "1:0+2", "--to", "1"]), Some("overlap"));
    assert_eq!(refused(&["--range", "0+2", "--format", "4"]), Some("format"));
    assert_eq!(refused(&["--range", "0+2", "--format", "1"]), Some("format-guard"));
    assert_eq!(
        printed(&[&limits[..], &["--range", "0+8", "--range", "100+17"]].concat()),
        "refused: 1/83h DNR Command Size Limit Exceeded\n\
         rule mssrl: a source range is longer than its namespace's MSSRL\n\
         range 1: 1:100+17\n"
    );
}

/// Unless the controller is said to be like that, every format is allowed.
#[test]
fn formats_are_those_of_the_controller() {
    let copy = ["--range", "1:0+2", "--to", "8"];
    assert_eq!(rule(&copy), None);
    assert_eq!(rule(&[&copy[..], &["--nvme", "cdfe=0"]].concat()), Some("format"));
    assert_eq!(rule(&[&copy[..], &["--nvme", "cdfe=4"]].concat()), None);
}

#[test]
fn a_copy_as_json_and_out_of_a_log() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("copies");
    let name = path.to_str().unwrap();
    let copy = r#"{"nsid":1,"sdlba":8,"format":0,"ranges":[{"slba":0,"nlb":8},{"slba":100,"nlb":9}]}"#;
    std::fs::write(&path, copy).unwrap();
    assert_eq!(rule(&["--json-copy", name]), None);
    assert_eq!(rule(&["--json-copy", name, "--nvme-ns", "drive=memory,size=1M,mssrl=8"]), Some("mssrl"));
    let plan = printed(&["--json-copy", name, "--json"]);
    assert!(plan.starts_with(r#"{"plan":{"bytes":8704,"steps":[{"order":"any","stretches":["#), "{plan}");
    let refused = printed(&["--json-copy", name, "--json", "--nvme-ns", "drive=memory,size=1M,mssrl=8"]);
    assert!(refused.starts_with(r#"{"refused":{"status":{"sct":1,"sc":131,"#), "{refused}");
    assert!(refused.contains(r#""rule":"mssrl""#), "{refused}");

    let namespace = r#"{"nsid":1,"nsze":64,"logical_block_size":512,"mssrl":8,"mcl":8,"msrc":0,"copy_method":"auto","copy_overlap":"snapshot"}"#;
    let line = |number: u32, rest: &str| {
        format!(r#"{{"record":"copy","number":{number},"nsid":1,"nr":1,"namespaces":[{namespace}]{rest}}}"#)
    };
    let log = [
        r#"{"record":"log","schema":1,"version":"0","time":"2026-11-30T00:00:00Z"}"#.to_owned(),
        line(1, r#","sdlba":8,"ranges":[{"slba":0,"nlb":8}]"#),
        line(2, r#","sdlba":57,"ranges":[{"slba":0,"nlb":8}]"#),
        line(3, r#","format":2,"refused":{"rule":"format","what":""}"#),
        line(4, ""),
    ];
    std::fs::write(&path, log.join("\n") + "\n").unwrap();
    let of_log = |number: &'static str| asked(&["--log", name, "--number", number]);
    let rule = |number| answer(&of_log(number).unwrap()).map(|answer| answer.err().map(|reject| reject.rule));
    assert_eq!(rule("1"), Some(None));
    assert_eq!(rule("2"), Some(Some("destination-bounds")), "the limits are those of then");
    assert_eq!(rule("3"), Some(Some("format")), "it was not enabled then");
    assert_eq!(rule("4"), None, "the list was not read");
    assert!(matches!(of_log("5"), Err(NoQuestion::Input(why)) if why.ends_with("has no Copy of number 5")));
}

#[test]
fn what_is_no_copy_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("copy");
    let json = |text: &str| {
        std::fs::write(&path, text).unwrap();
        match asked(&["--json-copy", path.to_str().unwrap()]) {
            Err(NoQuestion::Input(why)) => why,
            other => panic!("{text}: {other:?}"),
        }
    };
    for (text, why) in [
        ("", "EOF"),
        (r#"{"ranges":[]}"#, "no range or more than 256"),
        (r#"{"nr":2,"ranges":[{"nlb":1}]}"#, "the Copy has 1 ranges, and nr says 2"),
        (r#"{"ranges":[{"nlb":0}]}"#, "range 0 of the Copy: nlb must be 1 to 65536"),
        (r#"{"ranges":[{"nlb":65537}]}"#, "range 0 of the Copy: nlb must be 1 to 65536"),
        (r#"{"format":16,"ranges":[{"nlb":1}]}"#, "a field with more bits"),
        (r#"{"prinfow":16,"ranges":[{"nlb":1}]}"#, "a field with more bits"),
        (
            r#"{"ranges":[{"nlb":1}],"namespaces":[{"nsid":1,"nsze":1,"logical_block_size":513,"mssrl":1,"mcl":1,"msrc":0,"copy_method":"auto","copy_overlap":"reject"}]}"#,
            "namespace 1 of the Copy: no namespace can be so",
        ),
    ] {
        assert!(json(text).contains(why), "{text}: {}", json(text));
    }
    for (args, why) in [
        (&[][..], "there is no Copy; give --to and --range, --json-copy, or --log and --number"),
        (
            &["--range", "0+1", "--nvme-ns", "drive=a.img"],
            "--nvme-ns drive=a.img: no image is looked at; add size=",
        ),
        (&["--range", "0+1", "--nvme", "mdts=99"], "--nvme mdts=99"),
        (&["--range", "2:0+1", "--format", "0"], "--format 0: its descriptors do not name a namespace"),
        (&["--range=0+1"; 257], "--range: a Copy has 256 ranges at most"),
    ] {
        match asked(args) {
            Err(NoQuestion::Usage(text)) => assert!(text.starts_with(why), "{text}"),
            other => panic!("{other:?}"),
        }
    }
}
