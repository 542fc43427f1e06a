//! What a run came to, as one page without anything from outside: charts, tables, and the token
//! lens. Reads a run folder and nothing else.

mod analysis;
pub mod chart;
mod classes;
mod column;
mod comparison;
mod error;
mod facts;
mod figures;
mod lens;
mod page;
mod steps;
mod tables;
mod tokens;

use std::path::{Path, PathBuf};

use t3s_core::atomic;
use t3s_pipeline::recorded::RecordedRun;

pub use analysis::write_figures;
pub use classes::Class;
pub use column::{Column, Scale};
pub use error::ReportError;
pub use lens::Budget;
pub use tokens::{Tokens, Trace, tokenizer_of};

use facts::Facts;

/// Name of the page in a run folder.
pub const FILE: &str = "report.html";

/// Writes the page of the last run in the run folder `run`, or of the ablation in it, to `out`, or
/// beside its other results; says where.
///
/// # Errors
/// When `run` is neither or nothing ran in it, something in it is damaged, or the page cannot be
/// written. What the run has not come to is no error: the page says so.
pub fn write(run: &Path, out: Option<&Path>, budget: Budget) -> Result<PathBuf, ReportError> {
    let html = match comparison::read(run)? {
        Some(comparison) => comparison::render(&comparison)?,
        None => page::render(&Facts::read(RecordedRun::open(run)?)?, budget)?,
    };
    let out = out.map_or_else(|| run.join(FILE), Path::to_owned);
    atomic::write_bytes(&out, html.as_bytes())?;
    Ok(out)
}
