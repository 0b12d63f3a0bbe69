//! Rules that come and go while the device runs.

use vfio_user_nvme::laboratory::faults::{RULES_MAX, Rule};

use super::{MS, Rig};
use crate::host::nvme::io;
use crate::host::{DEADLINE, Sqe};

fn verify(rig: &mut Rig) -> u16 {
    rig.host.exec(1, Sqe::new(io::VERIFY).nsid(1).lba(0, 8)).code()
}

fn refused(rig: &Rig, rule: &str) -> String {
    rig.faults.add(Rule::parse(rule).expect("a rule"), DEADLINE).expect_err("it is refused").to_string()
}

#[test]
fn the_first_that_fires_has_the_command() {
    let mut rig = Rig::new(1);
    let first = rig.add("op=verify status=write-fault times=1");
    let second = rig.add("name=second op=verify status=internal-error times=1");
    assert_eq!([verify(&mut rig), verify(&mut rig), verify(&mut rig)], [0x280, 6, 0]);
    assert_eq!((first.as_str(), second.as_str()), ("1", "second"));
    assert_eq!(rig.faults.clear(Some("1"), DEADLINE), 1);
    assert_eq!(rig.faults.clear(Some("1"), DEADLINE), 0);
    assert_eq!(rig.faults.list().len(), 1);
    rig.ends_well();
}

#[test]
fn a_rule_waits_for_another_and_for_a_file() {
    let mut rig = Rig::new(1);
    assert_eq!(
        refused(&rig, "op=verify after=cut drop"),
        "after=cut: is the name of no rule; add that one first, with name="
    );
    rig.add("name=cut op=flush status=internal-error times=1");
    assert_eq!(refused(&rig, "name=cut drop"), "name=cut: is the name of a rule already; choose another one");
    rig.add("op=verify after=cut status=write-fault times=1");
    assert_eq!(verify(&mut rig), 0);
    assert_eq!(rig.host.exec(1, Sqe::new(io::FLUSH).nsid(1)).code(), 6);
    assert_eq!([verify(&mut rig), verify(&mut rig)], [0x280, 0]);
    let folder = crate::device::folder();
    let file = folder.path().join("on");
    rig.add(&format!("op=verify file={} status=internal-error", file.display()));
    assert_eq!(verify(&mut rig), 0);
    std::fs::write(&file, "").expect("a file");
    assert_eq!(verify(&mut rig), 6);
    std::fs::remove_file(&file).expect("it was there");
    assert_eq!(verify(&mut rig), 0);
    rig.ends_well();
}

/// The same commands and seed, the same firings; another seed, others.
#[test]
fn a_seed_says_which_fire() {
    let run = |seed: u64| -> Vec<bool> {
        let mut rig = Rig::new(1);
        let name = rig.add(&format!("op=verify chance=3 seed={seed} status=internal-error"));
        assert_eq!(rig.rule(&name).seed, Some(seed));
        let fired = (0..64).map(|_| verify(&mut rig) == 6).collect();
        rig.ends_well();
        fired
    };
    let first = run(1);
    assert_eq!(run(1), first);
    assert_ne!(run(2), first);
    assert!((8..40).contains(&first.iter().filter(|fired| **fired).count()));
}

#[test]
fn dwords_namespaces_and_sectors() {
    let mut rig = Rig::new(1);
    rig.add("op=verify cdw12=7/0xffff nsid=1 status=internal-error");
    assert_eq!(verify(&mut rig), 6);
    rig.host.exec(1, Sqe::new(io::VERIFY).nsid(1).lba(0, 9)).ok();
    rig.host.exec(1, Sqe::new(io::VERIFY).nsid(2).lba(0, 8)).ok();
    rig.add("add,op=READ,start=100,nr_sectors=8,status=IOERR");
    rig.read(92, 8).ok();
    assert_eq!(rig.read(107, 1).code(), 6);
    rig.read(108, 1).ok();
    rig.ends_well();
}

#[test]
fn there_are_so_many_at_most() {
    let rig = Rig::new(1);
    for _ in 0..RULES_MAX {
        rig.add("op=verify status=internal-error");
    }
    assert_eq!(refused(&rig, "drop"), "the rule: there are 256 rules already; clear some of them");
    rig.ends_well();
}

/// Under load, from another thread: no command is lost but those that the rules lose.
#[test]
fn rules_come_and_go_under_load() {
    let mut rig = Rig::new(1);
    let faults = std::sync::Arc::clone(&rig.faults);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (mut good, mut bad) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let rule = Rule::parse("op=verify status=internal-error delay=1ms").expect("a rule");
                let name = faults.add(rule, DEADLINE).expect("it may be added");
                std::thread::sleep(MS);
                faults.clear(Some(&name), DEADLINE);
            }
        });
        for _ in 0..500 {
            match verify(&mut rig) {
                0 => good += 1,
                6 => bad += 1,
                other => panic!("{other:#x}"),
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(good > 0 && bad > 0, "{good} {bad}");
    rig.ends_well();
}
