//! One client of the control socket, in a thread of its own: it may wait, hang and go without anybody else's
//! notice.

use std::io::{self, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::Value;

use super::context::Context;
use super::out::Out;
use super::table;
use super::wire::{self, LINE_MAX, Refusal, Request};

/// Serves requests, one after the other, until the client goes.
///
/// # Errors
/// It went in the middle of something, takes nothing, or sends a line without end.
pub fn serve(context: &Context, stream: &UnixStream) -> io::Result<()> {
    let send = |value: &Value| {
        let mut to = stream;
        to.write_all(&wire::line(value))
    };
    send(&wire::hello())?;
    let mut from = BufReader::new(stream);
    loop {
        let line = match wire::read_line(&mut from, LINE_MAX) {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(()),
            Err(error) => {
                if error.kind() == io::ErrorKind::InvalidData {
                    let expected = format!("lines of {LINE_MAX} bytes at most");
                    send(&wire::answer(&Value::Null, Err(Refusal::new(error.to_string(), expected))))?;
                }
                return Err(error);
            }
        };
        let (id, result) = match Request::parse(&line) {
            Ok(request) => {
                let mut out = Out::new(stream, &request.id);
                let result = run(context, &request, &mut out);
                (request.id, result)
            }
            Err((id, refusal)) => (id, Err(refusal)),
        };
        send(&wire::answer(&id, result))?;
    }
}

/// A command of ours that fails must not take its client's thread with it unsaid.
fn run(context: &Context, request: &Request, out: &mut Out<'_>) -> Result<Value, Refusal> {
    let run = || {
        let command = table::find(&request.command)?;
        let args = command.check(&request.args)?;
        (command.run)(context, &Request { args, ..request.clone() }, out)
    };
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        Err(Refusal::new(format!("{} failed", request.command), "no fault of ours; the log says more"))
    })
}
