//! The bodies of the fuzz targets over the committed corpus: what a fuzzer once found stays found.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

#[path = "../fuzz/bodies/copy_ranges.rs"]
mod copy_ranges;
#[path = "../fuzz/bodies/prp_sgl.rs"]
mod prp_sgl;
#[path = "../fuzz/bodies/sqe_stream.rs"]
mod sqe_stream;
#[path = "../fuzz/bodies/wire.rs"]
mod wire;

/// Panics of threads that contain them (workers) count too.
static PANICKED: AtomicBool = AtomicBool::new(false);

fn replay(target: &str, body: fn(&[u8])) {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICKED.store(true, Ordering::SeqCst);
        before(info);
    }));
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> =
        std::fs::read_dir(&folder).expect("the corpus").map(|f| f.expect("a file").path()).collect();
    files.sort();
    assert!(files.len() >= 5, "{} is nearly empty", folder.display());
    for file in files {
        eprintln!("{}", file.display());
        body(&std::fs::read(&file).expect("a file"));
        assert!(!PANICKED.load(Ordering::SeqCst), "a thread panicked");
    }
}

#[test]
fn wire_corpus() {
    replay("wire", wire::run);
}

#[test]
fn prp_sgl_corpus() {
    replay("prp_sgl", prp_sgl::run);
}

#[test]
fn copy_ranges_corpus() {
    replay("copy_ranges", copy_ranges::run);
}

#[test]
fn sqe_stream_corpus() {
    replay("sqe_stream", sqe_stream::run);
}
