//! Why there is no page.

use std::fmt::Display;

use t3s_core::atomic::AtomicError;
use t3s_data::DataError;
use t3s_pipeline::PipelineError;

/// Why a report or a figure could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// The run folder cannot be read.
    #[error(transparent)]
    Run(#[from] PipelineError),
    /// A token store or a tokenizer cannot be read.
    #[error("report: {0}")]
    Data(#[from] DataError),
    /// Nothing could be written; what was there before is untouched.
    #[error(transparent)]
    Write(#[from] AtomicError),
    /// A chart without a point.
    #[error("a chart has no point to draw")]
    EmptyChart,
    /// A chart could not be drawn.
    #[error("a chart could not be drawn: {0}")]
    Chart(String),
    /// The page's template is wrong, which the tests would have found.
    #[error("the page could not be filled in: {0}")]
    Page(#[from] minijinja::Error),
    /// What was asked for is not there.
    #[error("{0}")]
    Missing(String),
}

impl ReportError {
    pub(crate) fn chart(error: impl Display) -> Self {
        Self::Chart(error.to_string())
    }
}
