//! What can be wrong with data.

use std::{
    io,
    path::{Path, PathBuf},
};

use t3s_core::{TableError, atomic::AtomicError};

/// Why data could not be read or a store not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file could not be read.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file as a whole is not what it should be: empty, damaged, of another kind.
    #[error("{}: {message}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong; what to do.
        message: String,
    },
    /// A row that is not what it should be.
    #[error("{}:{line}: {message}", .path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Line of a text file, row of a Parquet file, both from 1.
        line: u64,
        /// What was found; what was expected.
        message: String,
    },
    /// A chat template that cannot be read or refuses a conversation.
    #[error("{}: chat template: {message}", .path.display())]
    Template {
        /// The file it is from.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A token store of something else.
    #[error(
        "{}: its {what} is not the one expected ({found} instead of {expected}); score again, or \
         use the {what} that it was made with", .path.display()
    )]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// What differs, e.g. `chat template`.
        what: &'static str,
        /// What the store has.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// A table was refused.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A file could not be written; what was there before is untouched.
    #[error(transparent)]
    Write(#[from] AtomicError),
}

impl DataError {
    /// The file `path` could not be read.
    pub(crate) fn read(path: &Path, source: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    /// Something is wrong with the file `path` as a whole.
    pub(crate) fn file(path: &Path, message: impl Into<String>) -> Self {
        Self::File {
            path: path.to_owned(),
            message: message.into(),
        }
    }

    /// Something is wrong with row or line `line` of `path`.
    pub(crate) fn row(path: &Path, line: u64, message: impl Into<String>) -> Self {
        Self::Row {
            path: path.to_owned(),
            line,
            message: message.into(),
        }
    }
}
