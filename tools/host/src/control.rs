//! A client of the control socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use super::DEADLINE;

pub struct Control {
    pub from: BufReader<UnixStream>,
    last_id: u64,
}

impl Control {
    /// Connected to a daemon that has just been started, or runs; the hello is read.
    #[track_caller]
    pub fn connect(path: &Path) -> Control {
        let start = Instant::now();
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) => assert!(start.elapsed() < DEADLINE, "{}: {error}", path.display()),
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        };
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut control = Control { from: BufReader::new(stream), last_id: 0 };
        let hello = control.line().expect("a hello");
        assert_eq!(hello["schema"], 1, "{hello}");
        assert_eq!(hello["vfio-user-nvme"], env!("CARGO_PKG_VERSION"), "{hello}");
        control
    }

    /// Sends bytes as they are.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        self.from.get_mut().write_all(bytes).expect("the device takes it");
    }

    /// The next line; `None` when the device has hung up.
    #[track_caller]
    pub fn line(&mut self) -> Option<Value> {
        let mut line = String::new();
        self.from.read_line(&mut line).expect("a line comes in time");
        (!line.is_empty()).then(|| serde_json::from_str(&line).expect("it is JSON"))
    }

    /// What comes of a request: all of the last line.
    #[track_caller]
    pub fn answer(&mut self, mut request: Value) -> Value {
        self.last_id += 1;
        request["id"] = json!(self.last_id);
        self.send(format!("{request}\n").as_bytes());
        let answer = self.line().expect("the device answers");
        assert_eq!(answer["id"], self.last_id, "{answer}");
        answer
    }

    /// What a request that succeeds gives.
    #[track_caller]
    pub fn ok(&mut self, request: Value) -> Value {
        let mut answer = self.answer(request.clone());
        assert!(answer["error"].is_null(), "{request}: {answer}");
        answer["ok"].take()
    }

    /// Why a request is refused, and what was expected.
    #[track_caller]
    pub fn refused(&mut self, request: Value) -> (String, String) {
        let answer = self.answer(request.clone());
        let word = |name: &str| answer["error"][name].as_str().map(str::to_owned);
        word("text").zip(word("expected")).unwrap_or_else(|| panic!("{request}: {answer}"))
    }
}
