//! What stops a run, with the stage that it stopped in.

use std::{
    io,
    path::{Path, PathBuf},
};

use t3s_core::{
    ComponentError, TableError, atomic::AtomicError, plan::PlanErrors, registry::RegistryError,
};
use t3s_data::DataError;
use t3s_engine::EngineError;

use crate::{grader::GraderError, merge::MergeError};

/// Why a run stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// The engine failed in a stage.
    #[error("{stage}: {source}")]
    Engine {
        /// The stage.
        stage: String,
        /// Why.
        #[source]
        source: EngineError,
    },
    /// Data could not be read or a store not be written.
    #[error("{stage}: {source}")]
    Data {
        /// The stage.
        stage: String,
        /// Why.
        #[source]
        source: DataError,
    },
    /// A component is unknown or refused its options.
    #[error("{place}: {source}")]
    Registry {
        /// The plan's key, e.g. `selection.strategy`.
        place: String,
        /// Why.
        #[source]
        source: RegistryError,
    },
    /// A component failed at its work.
    #[error("{component}: {source}")]
    Component {
        /// E.g. `strategy "t3s"`.
        component: String,
        /// Why.
        #[source]
        source: ComponentError,
    },
    /// A component gave back weights that are none, or a table does not fit.
    #[error("{component}: {source}")]
    Table {
        /// E.g. `strategy "t3s"`.
        component: String,
        /// Why.
        #[source]
        source: TableError,
    },
    /// The plan's components cannot be made.
    #[error(transparent)]
    Components(#[from] PlanErrors),
    /// `[grader]` is not usable.
    #[error(transparent)]
    Grader(#[from] GraderError),
    /// A file could not be written; what was there before is untouched.
    #[error(transparent)]
    Write(#[from] AtomicError),
    /// A file or folder could not be read, created or moved.
    #[error("{}: cannot {action} it: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What failed, e.g. `read`.
        action: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The `out` folder holds something else.
    #[error(
        "{}: is not empty and not a run folder (it has no run.json); choose another folder with \
         --set out=FOLDER",
        .path.display()
    )]
    NotARunFolder {
        /// The folder.
        path: PathBuf,
    },
    /// Another process works in the run folder.
    #[error(
        "{}: another t3s run works in this folder ({holder}); wait for it, stop it, or choose \
         another folder with --set out=FOLDER",
        .path.display()
    )]
    Locked {
        /// The run folder.
        path: PathBuf,
        /// Process, host and time, as the other run wrote them.
        holder: String,
    },
    /// A stored stage cannot be read back.
    #[error("{}: {message}; remove this folder to have the stage run again", .folder.display())]
    BrokenStage {
        /// The stage's folder.
        folder: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// `[merge]` gives no model.
    #[error("merge.{name}: {source}")]
    Merge {
        /// The model's name in the plan.
        name: String,
        /// Why.
        #[source]
        source: MergeError,
    },
    /// The strategy gave every token the weight 0.
    #[error(
        "select: the strategy {strategy:?} keeps none of the {tokens} response tokens, so there is \
         nothing to train on; {hint}"
    )]
    KeepsNothing {
        /// Its name.
        strategy: String,
        /// How many tokens it could choose from.
        tokens: usize,
        /// What to change.
        hint: String,
    },
    /// The plan asks for something that this run cannot give.
    #[error("{key}: {message}")]
    Plan {
        /// The plan's key.
        key: String,
        /// What was found; what would be accepted.
        message: String,
    },
    /// Ctrl-C. What was done is saved.
    #[error("interrupted in {stage}; what was done is saved, and the same command goes on")]
    Interrupted {
        /// The stage that was under way.
        stage: String,
    },
}

impl PipelineError {
    pub(crate) fn io(path: &Path, action: &'static str, source: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            action,
            source,
        }
    }

    pub(crate) fn plan(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Plan {
            key: key.into(),
            message: message.into(),
        }
    }

    /// Puts the stage's name on an engine error; an interruption stays one.
    pub(crate) fn engine(stage: &str) -> impl Fn(EngineError) -> Self + '_ {
        move |source| match source {
            EngineError::Interrupted => Self::Interrupted {
                stage: stage.to_owned(),
            },
            source => Self::Engine {
                stage: stage.to_owned(),
                source,
            },
        }
    }

    /// Puts the stage's name on a data error.
    pub(crate) fn data(stage: &str) -> impl Fn(DataError) -> Self + '_ {
        move |source| Self::Data {
            stage: stage.to_owned(),
            source,
        }
    }

    /// Puts the plan's key on a registry error.
    pub(crate) fn registry(place: &str) -> impl Fn(RegistryError) -> Self + '_ {
        move |source| Self::Registry {
            place: place.to_owned(),
            source,
        }
    }
}
