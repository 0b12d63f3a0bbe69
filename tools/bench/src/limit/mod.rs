//! What no server can beat, measured in the same run.

mod file;
mod floor;
mod memory;

use file::File;
use floor::Floor;
use memory::Copying;

use crate::contest::Contestant;
use crate::options::Plan;
use crate::row::{Limit, Row};

/// The limits of a row whose servers are there already. `span` is in bytes.
pub(crate) fn all(plan: &Plan, row: &Row, span: u64) -> anyhow::Result<Vec<Box<dyn Contestant>>> {
    let mut all: Vec<Box<dyn Contestant>> = Vec::new();
    for limit in &row.limits {
        all.push(match limit {
            Limit::Memory { huge } => Box::new(Copying::new(row, span, *huge, &plan.cpus)?),
            Limit::File(file) => Box::new(File::new(row, file, span, &plan.cpus, plan.patience)?),
            Limit::Floor => Box::new(Floor::new(row, span, &plan.cpus, plan.patience)?),
        });
    }
    Ok(all)
}
