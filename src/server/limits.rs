//! What the process may have of the system.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Lets the process have as many descriptors as it is allowed to have: each interrupt vector is one. The
/// lower limit that most are started with is for programs that use select.
pub fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        log::warn!("the limit of open files stays as it is ({error}); raise it with ulimit -n");
    }
}
