//! The error every component (signal, strategy, adapter, objective) may return.

/// Why a component could not do its work.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ComponentError {
    /// A column that the component asked for in `needs()` is not in the view.
    #[error("column {column:?} was not recorded; available: {}", .available.join(", "))]
    MissingColumn {
        /// The column asked for, e.g. `logp@bottleneck`.
        column: String,
        /// The columns there are.
        available: Vec<String>,
    },

    /// The options table was refused. The message names the key, what was found and what is accepted.
    #[error("{message}")]
    Options {
        /// Key inside the component's own table, e.g. `share`; empty when no single key is at fault.
        key: String,
        /// What was found; what would be accepted.
        message: String,
    },

    /// `config.json` says something this adapter does not implement.
    #[error("config.json: {key}: {message}")]
    Config {
        /// The key of `config.json`, e.g. `rope_scaling`.
        key: String,
        /// What was found; what would be accepted.
        message: String,
    },

    /// Anything else: lower case, no full stop, what was found and what to do.
    #[error("{0}")]
    Failed(String),
}

impl ComponentError {
    /// A refusal of the option `key`.
    pub fn option(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Options {
            key: key.into(),
            message: message.into(),
        }
    }

    /// A refusal of the `config.json` key `key`.
    pub fn config(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Config {
            key: key.into(),
            message: message.into(),
        }
    }
}
