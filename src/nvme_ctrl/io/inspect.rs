//! Compare (05h) and Verify (0Ch): data is read into our memory and looked at there.

use std::sync::Arc;

use super::{Command, Issue, Outcome, Task, rw};
use crate::backend::{BackendError, IoBuf, Op};
use crate::memory::{Access, GuestBuf};
use crate::namespace::{ByteRange, Namespace};
use crate::nvme_ctrl::shared::Shared;
use crate::nvme_ctrl::status::{self, Direction};
use crate::spec::Status;

/// See the module docs.
#[derive(Debug)]
pub struct Inspect {
    ns: Arc<Namespace>,
    range: ByteRange,
    /// What the data must equal; `None` for Verify, which only wants it readable.
    expected: Option<GuestBuf>,
    state: State,
}

#[derive(Debug)]
enum State {
    Begin,
    Reading,
    Ended(Status),
}

pub(super) fn compare(cmd: &Command<'_>) -> Result<Task, Status> {
    inspect(cmd, true)
}

pub(super) fn verify(cmd: &Command<'_>) -> Result<Task, Status> {
    inspect(cmd, false)
}

fn inspect(cmd: &Command<'_>, with_data: bool) -> Result<Task, Status> {
    let ns = cmd.namespace()?;
    cmd.check_transfer(ns)?; // VSL equals MDTS: Verify reads the range in one piece
    let range = cmd.range(ns)?;
    let expected = with_data.then(|| rw::data(cmd, range.len, Access::Read)).transpose()?;
    Ok(Task::Inspect(Inspect { ns: Arc::clone(ns), range, expected, state: State::Begin }))
}

impl Inspect {
    pub(super) fn poll(&mut self, shared: &Shared, issue: &mut Issue<'_>) -> Option<Outcome> {
        match self.state {
            State::Begin => {
                self.state = State::Reading;
                // At most MDTS bytes; allocated only now, so that waiting commands cost nothing.
                let buf = IoBuf::Pool(vec![0; self.range.len as usize].into_boxed_slice());
                issue(0, &self.ns, Op::Read { offset: self.range.offset, buf });
                None
            }
            State::Reading => None,
            State::Ended(status) => {
                if status.is_success() {
                    shared.counters.read(self.range.len);
                }
                Some(Outcome::of(status))
            }
        }
    }

    pub(super) fn done(&mut self, result: Result<(), BackendError>, buf: Option<IoBuf>) {
        self.state = State::Ended(match (result, buf) {
            (Err(error), _) => status::backend(&error, Direction::Read),
            (Ok(()), Some(IoBuf::Pool(data))) => self.look(&data),
            (Ok(()), _) => Status::INTERNAL_ERROR,
        });
    }

    fn look(&self, data: &[u8]) -> Status {
        let Some(expected) = &self.expected else { return Status::SUCCESS };
        let mut page = [0; 4096];
        for (index, chunk) in data.chunks(page.len()).enumerate() {
            let page = &mut page[..chunk.len()];
            if let Err(error) = expected.copy_out(index * 4096, page) {
                return error.into();
            }
            if page != chunk {
                return Status::COMPARE_FAILURE.dnr();
            }
        }
        Status::SUCCESS
    }
}
