//! What ends a command early, and the exit code that tells a script why.

use std::{fmt::Display, io::IsTerminal, process::ExitCode};

use t3s_core::{plan::PlanErrors, registry::RegistryError};
use t3s_pipeline::PipelineError;
use t3s_report::ReportError;

/// Why a command did not come to its end.
#[derive(Debug)]
pub enum Failure {
    /// Bad usage or a bad plan: nothing was begun. Exit code 2.
    Usage(String),
    /// The work failed. Exit code 1.
    Failed(String),
    /// Nothing is wrong with what was looked at, but not all of it could be. Exit code 3.
    Incomplete(String),
    /// Asked to stop; the same command goes on. Exit code 130.
    Interrupted(String),
}

impl Failure {
    /// The work failed.
    pub fn failed(error: impl Display) -> Self {
        Self::Failed(error.to_string())
    }

    /// The command line or the plan is at fault.
    pub fn usage(error: impl Display) -> Self {
        Self::Usage(error.to_string())
    }

    /// Says why, on standard error.
    pub fn report(&self) {
        let (word, message) = match self {
            Self::Usage(message) | Self::Failed(message) => ("error", message),
            Self::Incomplete(message) => ("incomplete", message),
            Self::Interrupted(message) => ("stopped", message),
        };
        if std::io::stderr().is_terminal() {
            eprintln!("\x1b[1;31m{word}:\x1b[0m {message}");
        } else {
            eprintln!("{word}: {message}");
        }
    }

    /// 1, 2, 3 or 130.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::Incomplete(_) => 3,
            Self::Interrupted(_) => 130,
        })
    }
}

impl From<PipelineError> for Failure {
    fn from(error: PipelineError) -> Self {
        match error {
            PipelineError::Interrupted { .. } => Self::Interrupted(error.to_string()),
            PipelineError::Plan { .. }
            | PipelineError::Components(_)
            | PipelineError::Registry { .. }
            | PipelineError::Grader(_)
            | PipelineError::NotARunFolder { .. } => Self::usage(error),
            _ => Self::failed(error),
        }
    }
}

impl From<ReportError> for Failure {
    fn from(error: ReportError) -> Self {
        match error {
            ReportError::Run(error) => error.into(),
            ReportError::Missing(_) => Self::usage(error),
            error => Self::failed(error),
        }
    }
}

impl From<PlanErrors> for Failure {
    fn from(errors: PlanErrors) -> Self {
        Self::usage(errors)
    }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        Self::usage(error)
    }
}

impl From<t3s_data::DataError> for Failure {
    fn from(error: t3s_data::DataError) -> Self {
        Self::failed(error)
    }
}

impl From<t3s_engine::EngineError> for Failure {
    fn from(error: t3s_engine::EngineError) -> Self {
        Self::failed(error)
    }
}

impl From<t3s_core::atomic::AtomicError> for Failure {
    fn from(error: t3s_core::atomic::AtomicError) -> Self {
        Self::failed(error)
    }
}
