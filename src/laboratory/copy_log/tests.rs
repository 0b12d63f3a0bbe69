use std::fs;
use std::sync::mpsc::{Receiver, channel};

use super::*;
use crate::laboratory::{Change, CommandId, Fetched, Lab, Labs, Place, Post};
use crate::namespace::Cntlid;
use crate::spec::{Outcome, Sqe, Status};

/// A worker that does what it is told when it is asked to work.
struct Worker {
    changes: Receiver<Change>,
    labs: Option<Labs>,
    serial: u64,
}

impl Worker {
    fn join(laboratory: &Laboratory) -> Self {
        let (sender, changes) = channel();
        let place = Place { cntlid: Cntlid::default(), worker: 0 };
        laboratory.join(place, Box::new(move |change| sender.send(change).is_ok()));
        Self { changes, labs: None, serial: 0 }
    }

    fn records(&mut self) -> bool {
        self.changes.try_iter().for_each(|change| change.apply(&mut self.labs));
        self.labs.is_some()
    }

    /// A Copy of which nothing is known but that it was refused.
    fn copy(&mut self, cid: u16) {
        self.records();
        let Some(labs) = &mut self.labs else { return };
        self.serial += 1;
        let id = CommandId { serial: self.serial, sqid: 1, cid };
        let sqe = Sqe { opc: 0x19, cid: cid.into(), nsid: 7.into(), ..Sqe::default() };
        let _ = labs.fetched(id, Fetched { sqe: &sqe, ns: None, depth: 1 });
        labs.over(id, &Outcome::of(Status::INVALID_NAMESPACE.dnr()), Some(Post::Once));
    }
}

fn copies(lines: &[Line]) -> Vec<(u64, u16)> {
    let copy = |line: &Line| match line {
        Line::Copy(copy) => Some((copy.number, copy.cid)),
        _ => None,
    };
    lines.iter().filter_map(copy).collect()
}

fn lines(path: &std::path::Path) -> Vec<Line> {
    let file = fs::read(path).unwrap();
    LogReader::new(&*file).map(|line| line.unwrap().1).collect()
}

#[test]
fn a_file_has_all_from_the_first_to_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let laboratory = Arc::new(Laboratory::default());
    let log = CopyLog::new(Arc::clone(&laboratory));
    log.write_to(LogFile::open(&path).unwrap()).unwrap();
    let mut worker = Worker::join(&laboratory);
    (0..1000).for_each(|cid| worker.copy(cid));
    assert!(log.end(Duration::from_secs(10)));
    let lines = lines(&path);
    assert!(matches!(&lines[0], Line::Log(opening) if opening.schema == SCHEMA));
    let all: Vec<_> = (0..1000).map(|cid| (u64::from(cid) + 1, cid)).collect();
    assert_eq!(copies(&lines), all);
    assert!(matches!(lines.last(), Some(Line::End(Ending { copies: 1000, dropped: 0, .. }))));
    assert_eq!(log.counted(), Counted { copies: 1000, dropped: 0, followers: 0 });
    assert!(worker.records(), "to its end");
}

#[test]
fn workers_record_while_somebody_follows() {
    let laboratory = Arc::new(Laboratory::default());
    let log = CopyLog::new(Arc::clone(&laboratory));
    let mut worker = Worker::join(&laboratory);
    worker.copy(1);
    assert!(!worker.records());
    let mut first = log.follow().unwrap();
    let mut second = log.follow().unwrap();
    worker.copy(2);
    let heard = |follower: &mut Follower| {
        let next = |follower: &mut Follower| match follower.next(Duration::from_secs(10)) {
            Heard::Line(line) => serde_json::from_str::<Line>(&line).unwrap(),
            other => panic!("{other:?}"),
        };
        assert!(matches!(next(follower), Line::Log(_)), "it is a log of its own");
        copies(&[next(follower)])
    };
    assert_eq!((heard(&mut first), heard(&mut second)), (vec![(1, 2)], vec![(1, 2)]));
    drop(first);
    assert!(worker.records());
    drop(second);
    assert!(!worker.records(), "nobody is left");
    let mut third = log.follow().unwrap();
    worker.copy(3);
    assert_eq!(heard(&mut third), [(2, 3)]);
    assert!(log.end(Duration::from_secs(10)));
    let end = third.next(Duration::from_secs(10));
    assert!(matches!(end, Heard::Line(line) if line.contains("\"record\":\"end\"")));
    assert_eq!(third.next(Duration::from_secs(10)), Heard::End);
}

/// Who reads a pipe and then does not.
#[test]
fn a_reader_that_hangs_holds_nobody_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let laboratory = Arc::new(Laboratory::default());
    let log = CopyLog::new(Arc::clone(&laboratory));
    log.write_to(LogFile::open(&path).unwrap()).unwrap();
    let mut worker = Worker::join(&laboratory);
    // Far more than pipe and queue take.
    (0..20_000_u32).for_each(|n| worker.copy(n as u16));
    assert!(log.counted().dropped > 0);
    assert!(!log.end(Duration::from_millis(50)), "it is told that not all is written");
}

#[test]
fn a_log_without_readers_ends_at_once() {
    assert!(CopyLog::new(Arc::default()).end(Duration::ZERO));
}
