//! A device in a thread of this process.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vfio_user_nvme::config::Config;
use vfio_user_nvme::disk::{CacheMode, FileDisk, FileOptions, LaneKind, MemoryDisk, SharedDisk, Tap};
use vfio_user_nvme::namespace::{CopyLimits, Identity, Namespace, Namespaces};
use vfio_user_nvme::server::{Server, Signals, Tools};
use vfio_user_nvme::subsystem::Subsystem;

use crate::doubles::Doubles;
use crate::host::{Control, Host};

/// More than the farewell may take.
const END: Duration = Duration::from_secs(13);

pub struct Device {
    folder: TempDir,
    /// Its namespaces, to be changed while it runs.
    pub subsystem: Arc<Subsystem>,
    signals: Arc<Signals>,
    thread: Option<JoinHandle<ExitCode>>,
}

/// A folder for a device and its images.
pub fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

/// An image of this content.
pub fn image(folder: &TempDir, name: &str, content: &[u8], tap: Option<Arc<dyn Tap>>) -> FileDisk {
    image_by(folder, name, content, tap, CacheMode::Writeback)
}

/// The same, cached otherwise.
pub fn image_by(
    folder: &TempDir,
    name: &str,
    content: &[u8],
    tap: Option<Arc<dyn Tap>>,
    cache: CacheMode,
) -> FileDisk {
    let path = folder.path().join(name);
    std::fs::write(&path, content).expect("the image is written");
    FileDisk::open(FileOptions { tap, cache, unit: 512, ..FileOptions::new(path) }).expect("the image opens")
}

pub fn memory(len: u64) -> SharedDisk {
    Arc::new(MemoryDisk::new(len).expect("the memory is there"))
}

/// Blocks of 512 bytes; the default Copy limits.
pub fn namespace(nsid: u32, disk: SharedDisk) -> Namespace {
    let copy = CopyLimits { mssrl: 32768, mcl: 131_072, msrc: 126 };
    Namespace::new(nsid, disk, 9, copy, Identity::default())
}

impl Device {
    /// `nvme` as on the command line.
    pub fn start(
        folder: TempDir,
        nvme: &str,
        namespaces: Vec<Namespace>,
        doubles: impl Into<Doubles>,
    ) -> Device {
        let Doubles { parts, over } = doubles.into();
        let over = |ns: Namespace| Namespace { disk: over(ns.disk.clone()), ..ns };
        let namespaces = namespaces.into_iter().map(over).collect();
        let socket = folder.path().join("s");
        let config = Config::new(socket, Some(OsStr::new(nvme)), &[], log::LevelFilter::Off).expect("config");
        let config = config.with_control(Some(folder.path().join("c")));
        let signals = Arc::new(Signals::unbound().expect("signals"));
        let (ready, is_ready) = channel();
        let asked = Arc::clone(&signals);
        let subsystem = Subsystem::new(Namespaces::new(namespaces, 8), false);
        let shared = Arc::clone(&subsystem);
        let thread = std::thread::Builder::new()
            .name("server".into())
            .spawn(move || {
                let mut server = Server::new(&config, &shared, &parts).expect("the server starts");
                let tools = Tools::open(&config, &parts.laboratory, &shared).expect("no files");
                let kind = LaneKind::Auto.resolve();
                server.open_control(&config, kind, &shared, &tools).expect("a control socket");
                ready.send(()).expect("the test listens");
                server.serve(&asked);
                server.farewell()
            })
            .expect("a thread");
        is_ready.recv().expect("the server starts");
        Device { folder, subsystem, signals, thread: Some(thread) }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    /// A client of its control socket.
    pub fn control(&self) -> Control {
        Control::connect(&self.folder.path().join("c"))
    }

    pub fn file(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.folder.path().join(name)).expect("the image is there")
    }

    /// A host whose controller is enabled and has I/O queues 1..=`pairs`.
    pub fn host(&self, pairs: u16) -> Host {
        let mut host = Host::cold(&self.socket());
        host.enable();
        host.io_queues(pairs, 64);
        host
    }

    /// As SIGTERM: whether it ended with success, and how long that took.
    pub fn stop(&mut self) -> (bool, Duration) {
        let start = Instant::now();
        self.signals.stop();
        let thread = self.thread.take().expect("it runs");
        while !thread.is_finished() {
            assert!(start.elapsed() < END, "the server does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
        let took = start.elapsed();
        let code = thread.join().expect("the server ends without a panic");
        (code == ExitCode::SUCCESS, took)
    }

    /// Shows an image as it is when the device has ended.
    pub fn file_after_the_end(mut self, name: &str, look: impl FnOnce(&[u8])) {
        self.stop();
        look(&self.file(name));
    }

    /// It must end well and soon.
    #[track_caller]
    pub fn ends_well(mut self) {
        let (success, took) = self.stop();
        assert!(success && took < Duration::from_secs(5), "{success} after {took:?}");
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.signals.stop();
        if let Some(thread) = self.thread.take()
            && !std::thread::panicking()
        {
            let _ = thread.join();
        }
    }
}
