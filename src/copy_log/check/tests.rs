use super::super::tests::{check_args, refused, succeeded};
use super::*;
use crate::laboratory::copy_log::{Dropped, Ending, Stamp};

fn copies() -> Vec<Line> {
    let mut slow = succeeded(3, 1032, &[(100, 8)]);
    slow.moved[0].by = Word(By::ReadWrite);
    slow.latency_ns = 5_000_000;
    [
        succeeded(1, 1000, &[(0, 8), (50, 16)]),
        refused(2, 1024, &[(0, 101)]),
        slow,
        succeeded(4, 1024, &[(8, 8)]),
    ]
    .map(|copy| Line::Copy(Box::new(copy)))
    .into()
}

/// The exit code, and what is printed.
fn check(args: &[&str], lines: impl IntoIterator<Item = Line>) -> (u8, String) {
    let args = check_args(args);
    let mut checker = Checker::new(&args);
    lines.into_iter().for_each(|line| checker.take(line));
    let (text, code) = checker.verdict(false);
    (code, text)
}

#[test]
fn what_is_true_passes() {
    for args in [
        &[][..],
        &["--max-ranges", "2", "--max-range-blocks", "101", "--max-blocks", "101"],
        &["--expect-total", "20K", "--expect-copies", "4", "--min-copies", "4"],
        &["--expect-refused", "mssrl", "--expect-refused", "mcl=0"],
        &["--expect-format", "0", "--max-latency", "5ms", "--tiles", "--nsid", "1"],
        &["--moved-by", "memmove", "--moved-by", "read-write"],
        &["--nsid", "2", "--no-errors", "--expect-copies", "0"],
    ] {
        let (code, text) = check(args, copies());
        assert_eq!(code, PASS, "{args:?}: {text}");
        assert!(text.starts_with("pass: "), "{text}");
    }
    assert_eq!(
        check(&[], copies()).1,
        "pass: 4 Copies, 1 failed (1 of them refused), 20480 bytes copied, 16 KiB by memmove, 4 KiB by read-write, 0 dropped\n"
    );
}

#[test]
fn what_is_not_fails_with_a_reason() {
    for (args, reason) in [
        (&["--max-ranges", "1"][..], "copy 1 (queue 1, cid 0x0001): it has 2 ranges, at most 1"),
        (&["--max-range-blocks", "100"], "copy 2 (queue 1, cid 0x0002): range 0 has 101 blocks, at most 100"),
        (&["--max-blocks", "100"], "copy 2 (queue 1, cid 0x0002): it has 101 blocks, at most 100"),
        (&["--expect-total", "20K", "--expect-copies", "3"], "there are 4 Copies, not 3"),
        (&["--min-copies", "5"], "there are 4 Copies, at least 5 should be"),
        (&["--expect-total", "4096"], "20480 bytes were copied, not 4096"),
        (&["--expect-refused", "mssrl=2"], "1 Copies were refused by mssrl, not 2"),
        (&["--expect-refused", "overlap"], "no Copy was refused by overlap"),
        (
            &["--expect-format", "2", "--nsid", "1"],
            "copy 1 (queue 1, cid 0x0001): its descriptors are of format 0, not 2",
        ),
        (
            &["--no-errors"],
            "copy 2 (queue 1, cid 0x0002): it ended with 1/83h DNR Command Size Limit Exceeded: \
             mssrl (a source range is longer than its namespace's MSSRL, range 0)",
        ),
        (
            &["--all-offloaded"],
            "copy 3 (queue 1, cid 0x0003): 4096 bytes of range 0 were moved by read-write",
        ),
        (
            &["--moved-by", "shared"],
            "copy 1 (queue 1, cid 0x0001): 4096 bytes of range 0 were moved by memmove",
        ),
        (&["--max-latency", "4999us"], "copy 3 (queue 1, cid 0x0003): it took 5.0 ms, at most 4.999ms"),
    ] {
        let (code, text) = check(args, copies());
        assert_eq!(code, FAIL, "{args:?}: {text}");
        assert_eq!(text.lines().next(), Some(&*format!("FAIL: {reason}")));
        assert!(text.lines().last().is_some_and(|line| line.starts_with("fail: 4 Copies")), "{text}");
    }
}

/// Success, and not all of it was moved.
#[test]
fn what_was_not_moved_was_not_offloaded() {
    let mut copy = succeeded(1, 0, &[(10, 8)]);
    copy.moved[0].len = 512;
    let (code, text) = check(&["--all-offloaded"], [Line::Copy(Box::new(copy))]);
    assert_eq!(
        (code, text.lines().next()),
        (FAIL, Some("FAIL: copy 1 (queue 1, cid 0x0001): 512 of its 4096 bytes were moved"))
    );
}

#[test]
fn what_the_log_lacks_cannot_be_said() {
    let dropped = Line::Dropped(Dropped { count: 3, why: "full".into(), time: Stamp::default() });
    let lacking = || copies().into_iter().chain([dropped.clone()]);
    let (code, text) = check(&[], lacking());
    assert_eq!(
        (code, text.lines().next()),
        (CANNOT, Some("CANNOT SAY: 3 Copies are not in the log (--allow-dropped)"))
    );
    assert_eq!(check(&["--allow-dropped"], lacking()).0, PASS);
    assert_eq!(check(&["--no-errors"], lacking()).0, FAIL, "that much is certain");
    assert_eq!(check(&["--complete"], copies()).0, CANNOT);
    let end = Line::End(Ending { copies: 4, dropped: 0, time: Stamp::default() });
    assert_eq!(check(&["--complete"], copies().into_iter().chain([end])).0, PASS);
}

#[test]
fn reasons_are_bounded() {
    let many = (0..100).map(|number| Line::Copy(Box::new(refused(number, 0, &[(0, 101)]))));
    let (code, text) = check(&["--no-errors"], many);
    assert_eq!((code, text.lines().count()), (FAIL, REASONS + 2));
    assert!(text.contains("FAIL: and 80 more\n"), "{text}");
}
