//! Threads of a lane: what hangs, what others are left, what comes back.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::*;
use crate::disk::file::image::ImageFile;
use crate::disk::{CacheMode, DiskError, Moved};

fn image() -> Arc<ImageFile> {
    let file = tempfile::tempfile().expect("a file for the test");
    Arc::new(ImageFile::new(file, 1 << 20, None, CacheMode::Writeback, None))
}

/// Work that hangs until the test lets it go.
struct Hang {
    started: SyncSender<()>,
    go: Arc<Mutex<Receiver<()>>>,
}

impl Hang {
    fn new() -> (Self, Receiver<()>, SyncSender<()>) {
        let (started, has_started) = sync_channel(16);
        let (let_go, go) = sync_channel(0);
        (Hang { started, go: Arc::new(Mutex::new(go)) }, has_started, let_go)
    }

    fn work(&self, image: &Arc<ImageFile>, class: Class) -> Work {
        let (started, go, file) = (self.started.clone(), Arc::clone(&self.go), Arc::clone(image));
        Work::new(image.id(), class, move |_| {
            let _ = started.send(());
            let _ = go.lock().expect("no panic").recv();
            drop(file);
            (Ok(Moved::Plain), None)
        })
    }
}

fn finish(lane: &mut Lane, count: usize) -> Vec<Done> {
    let mut out = Vec::new();
    while out.len() < count {
        lane.reap(&mut out);
        if out.len() < count {
            lane.wait(None);
        }
    }
    out
}

fn start(lane: &mut Lane, tag: u64, work: Work) {
    lane.begin();
    lane.block(Tag(tag), work);
}

#[test]
fn dropped_with_hung_work() {
    let (hang, has_started, let_go) = Hang::new();
    let image = image();
    let mut lane = Lane::new(LaneKind::Threads).expect("the lane is made");
    for n in 0..3 {
        start(&mut lane, n, hang.work(&image, Class::Sync));
    }
    lane.reap(&mut Vec::new());
    has_started.recv().expect("the first one starts");
    assert_eq!(lane.in_flight(), 3);
    let begun = Instant::now();
    drop(lane);
    assert!(begun.elapsed() < Duration::from_secs(4));
    // The hung one alone is left, with what it holds; those behind it never start.
    assert_eq!(Arc::strong_count(&image), 2);
    drop(let_go);
    while Arc::strong_count(&image) > 1 {
        std::thread::yield_now();
    }
    assert!(has_started.try_recv().is_err());
}

/// Two images hang in all the copies that may run; what commands wait for is done meanwhile, and so are the copies of
/// others as long as one image alone hangs.
#[test]
fn a_hung_image_leaves_others_theirs() {
    for kind in crate::disk::tests::conformance::engines() {
        let (hang, has_started, let_go) = Hang::new();
        let (hung, other_hung, well) = (image(), image(), image());
        let mut lane = Lane::new(kind).expect("the lane is made");
        let fine = |class| Work::new(well.id(), class, |_| (Ok(Moved::Plain), None));
        for n in 0..4 {
            start(&mut lane, n, hang.work(&hung, if n == 0 { Class::ShortCopy } else { Class::Sync }));
        }
        for n in 10..20 {
            start(&mut lane, n, fine(if n % 2 == 0 { Class::ShortCopy } else { Class::Short }));
        }
        assert!(finish(&mut lane, 10).iter().all(|done| done.tag.0 >= 10 && done.result.is_ok()));
        for n in 20..25 {
            start(&mut lane, n, hang.work(&other_hung, Class::LongCopy));
        }
        for n in 30..40 {
            start(&mut lane, n, fine(Class::Short));
        }
        // With four threads two are hung in the first image, and at most one more may copy.
        assert!(finish(&mut lane, 10).iter().all(|done| done.tag.0 >= 30), "{kind}");
        has_started.recv().expect("they hang");
        drop((let_go, has_started));
        assert_eq!(finish(&mut lane, 9).len(), 9);
        assert_eq!(lane.in_flight(), 0);
    }
}

/// A fault of ours in one piece of work takes neither its thread nor anything else with it.
#[test]
fn work_that_panics_is_an_error() {
    let mut lane = Lane::new(LaneKind::Threads).expect("the lane is made");
    for n in 0..20 {
        let work = Work::new(image().id(), Class::Short, |_| panic!("a fault of ours, as the test wants it"));
        start(&mut lane, n, work);
        let done = finish(&mut lane, 1).remove(0);
        assert!(matches!(done.result, Err(DiskError::Io(_))), "{done:?}");
    }
}

/// What comes by the inbox, from whatever thread, ends a sleep and is done on the lane's.
#[test]
fn an_inbox_wakes() {
    for kind in crate::disk::tests::conformance::engines() {
        let mut lane = Lane::new(kind).expect("the lane is made");
        let inbox = lane.inbox();
        lane.begin();
        let sender = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            inbox.run(move |lane| {
                let done = Done { tag: Tag(7), result: Ok(Moved::Plain), buf: None };
                lane.done(done);
            });
        });
        assert_eq!(finish(&mut lane, 1)[0].tag, Tag(7));
        sender.join().expect("it was sent");
    }
}

/// Without a thread whoever hands work over does it.
#[test]
fn without_threads_work_is_done_all_the_same() {
    let mut lane = Lane::with(None, None, 0, Waker::new().expect("a waker"));
    for n in 0..3 {
        start(&mut lane, n, Work::new(image().id(), Class::Short, |_| (Ok(Moved::Plain), None)));
    }
    assert_eq!(finish(&mut lane, 3).len(), 3);
    lane.wait(Some(Duration::from_millis(1)));
}
