//! From a plan to a run folder: stages, cache, resume, evaluation.

pub mod bottleneck;
pub mod grader;
mod number;
pub mod statistics;
pub mod tensorboard;
#[cfg(test)]
mod test_python;
