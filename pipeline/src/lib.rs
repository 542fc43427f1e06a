//! From a plan to a run folder: stages, cache, resume, evaluation.

// Linked for what they register.
use t3s_model_adapters as _;
use t3s_strategies as _;

pub mod ablate;
pub mod analyse;
mod answer_logp;
pub mod bench;
pub mod beside;
pub mod bottleneck;
mod check;
pub mod corpus;
pub mod error;
pub mod estimate;
pub mod evaluate;
pub mod events;
pub mod grader;
pub mod interrupt;
pub mod merge;
mod number;
pub mod offline;
pub mod recorded;
pub mod run;
mod run_folder;
pub mod select;
pub mod selector;
mod share;
pub mod stage;
pub mod statistics;
pub mod student;
pub mod summary;
pub mod tensorboard;
#[cfg(test)]
mod test_python;
pub mod training;
pub mod valley;

pub use check::{Checked, check};
pub use error::PipelineError;
pub use events::{Event, Observer, Silent};
pub use interrupt::Interrupt;
pub use run::{prepare, run, sft::train};
pub use run_folder::utc;
pub use summary::Summary;
