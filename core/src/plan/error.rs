//! What can be wrong with a plan. Planning reports all of it at once.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{plugin::PluginError, registry::RegistryError};

/// Where a value of a plan was written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// A line of a file.
    File {
        /// The file, as it was reached from the working directory.
        path: Arc<Path>,
        /// From 1; 0: the file as a whole.
        line: usize,
    },
    /// An override of the command line, as typed, e.g. `train.steps=0`.
    Override(Arc<str>),
    /// Nowhere: the default.
    Default,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line: 0 } => write!(f, "{}", path.display()),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Override(text) => write!(f, "--set {text}"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// One problem of a plan: where, which key, what was found and what would be accepted.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanError {
    /// Where it was written, if anywhere.
    pub place: Option<Place>,
    /// The key from the root, e.g. `train.adamw.beta1`; empty where no key is at fault.
    pub key: String,
    /// What is wrong.
    pub problem: Problem,
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "{}", self.problem)
    }
}

impl std::error::Error for PlanError {}

/// What is wrong with one key of a plan.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The file cannot be read.
    #[error("{} cannot be read: {cause}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        cause: String,
    },
    /// The file is not TOML.
    #[error("not TOML: {0}")]
    Syntax(String),
    /// A file extends itself.
    #[error("the plan extends itself: {}", chain(.0))]
    Cycle(Vec<PathBuf>),
    /// There is no such key.
    #[error("unknown key; {}", alternatives(.nearest, .known))]
    UnknownKey {
        /// The key that was probably meant.
        nearest: Option<String>,
        /// The keys there are beside it.
        known: Vec<String>,
    },
    /// The value has the wrong type.
    #[error("found {found}; expected {accepted}")]
    WrongType {
        /// What there is.
        found: String,
        /// What there should be.
        accepted: String,
    },
    /// A word that is none of the accepted ones.
    #[error("found {found:?}; {}", alternatives(.nearest, .known))]
    UnknownWord {
        /// What there is.
        found: String,
        /// The word that was probably meant.
        nearest: Option<String>,
        /// All accepted words.
        known: Vec<String>,
    },
    /// A key without a default is not there.
    #[error("missing; expected {accepted}")]
    Missing {
        /// What there should be.
        accepted: String,
    },
    /// The value has the right type and makes no sense.
    #[error("found {found}; {accepted}")]
    Refused {
        /// What there is.
        found: String,
        /// What would be accepted.
        accepted: String,
    },
    /// A component is unknown, or refused its options.
    #[error("{0}")]
    Component(RegistryError),
    /// A strategy reads a signal that nobody knows.
    #[error(
        "strategy {strategy:?} reads the signal {signal:?}, which is neither a [signals.ID] table \
         ({}) nor the name of a signal ({}){}",
        list(.declared), list(.known), hint(.nearest)
    )]
    UnknownSignal {
        /// The strategy.
        strategy: String,
        /// What it asked for.
        signal: String,
        /// The `[signals.ID]` tables of the plan.
        declared: Vec<String>,
        /// The registered signals.
        known: Vec<String>,
        /// The one that was probably meant.
        nearest: Option<String>,
    },
    /// A signal reads a checkpoint that the run does not have.
    #[error("the signal {signal:?} reads {column}; {accepted}")]
    UnknownCheckpoint {
        /// The signal.
        signal: String,
        /// The column it asked for.
        column: String,
        /// Which checkpoints there are.
        accepted: String,
    },
    /// A library was refused.
    #[error("{0}")]
    Plugin(PluginError),
    /// Anything else, in the words of who refused it.
    #[error("{0}")]
    Other(String),
}

fn chain(files: &[PathBuf]) -> String {
    let names: Vec<String> = files.iter().map(|p| p.display().to_string()).collect();
    names.join(" -> ")
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "there are none".to_owned()
    } else {
        names.join(", ")
    }
}

fn hint(nearest: &Option<String>) -> String {
    nearest
        .as_ref()
        .map(|name| format!("; did you mean {name:?}?"))
        .unwrap_or_default()
}

fn alternatives(nearest: &Option<String>, known: &[String]) -> String {
    match nearest {
        Some(name) => format!("did you mean {name}?"),
        None => format!("known: {}", list(known)),
    }
}

/// All problems of a plan, never empty, in the order of the files and their lines.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanErrors(pub Vec<PlanError>);

impl fmt::Display for PlanErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => f.write_str("1 problem in the plan")?,
            n => write!(f, "{n} problems in the plan")?,
        }
        self.0.iter().try_for_each(|error| write!(f, "\n  {error}"))
    }
}

impl std::error::Error for PlanErrors {}

/// Something about a plan that is probably not meant and does not stop a run.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanWarning {
    /// Where it was written.
    pub place: Option<Place>,
    /// The key from the root.
    pub key: String,
    /// What is odd, and what was done.
    pub message: String,
}

impl fmt::Display for PlanWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        write!(f, "{}: {}", self.key, self.message)
    }
}

/// Collects problems while planning goes on.
#[derive(Debug, Default)]
pub(super) struct Problems {
    errors: Vec<PlanError>,
    /// The files in the order in which they were opened.
    files: Vec<Arc<Path>>,
}

impl Problems {
    pub(super) fn opened(&mut self, file: Arc<Path>) {
        self.files.push(file);
    }

    /// Notes a problem, unless the same is already noted for the same place.
    pub(super) fn push(&mut self, place: Option<Place>, key: impl Into<String>, problem: Problem) {
        let error = PlanError {
            place,
            key: key.into(),
            problem,
        };
        let noted = self.errors.iter().any(|e| {
            e.problem == error.problem
                && e.place == error.place
                && (e.key == error.key || matches!(e.place, Some(Place::File { line: 1.., .. })))
        });
        if !noted {
            self.errors.push(error);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.errors.is_empty()
    }

    /// Is `key`, a table around it or a key in it already known to be wrong?
    pub(super) fn concern(&self, key: &str) -> bool {
        self.errors
            .iter()
            .any(|e| within(&e.key, key) || within(key, &e.key))
    }

    /// The plan, or all problems.
    pub(super) fn finish<T>(mut self, value: Option<T>) -> Result<T, PlanErrors> {
        let files = self.files;
        self.errors.sort_by_key(|error| match &error.place {
            Some(Place::File { path, line }) => {
                let file = files.iter().position(|f| f == path);
                (file.unwrap_or(files.len()), *line)
            }
            _ => (files.len() + 1, 0),
        });
        match value {
            Some(value) if self.errors.is_empty() => Ok(value),
            _ => Err(PlanErrors(self.errors)),
        }
    }
}

/// Is `key` the key `table`, or in it?
pub(super) fn within(key: &str, table: &str) -> bool {
    match key.strip_prefix(table) {
        Some(rest) => table.is_empty() || rest.is_empty() || rest.starts_with('.'),
        None => false,
    }
}
