//! Why a plugin was refused.

use std::path::PathBuf;

use crate::{
    plugin::{
        abi::{T3S_ABI_MAJOR, T3S_ABI_MINOR},
        elf::ElfError,
    },
    registry::RegistryError,
};

/// Why a plugin was refused. The program goes on without it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("plugin {}: {cause}", .path.display())]
pub struct PluginError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub cause: Cause,
}

/// What is wrong with a plugin.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// The file cannot be read.
    #[error("{0}")]
    Unreadable(String),
    /// A folder, a device or the like.
    #[error("is a {0}, expected a shared library")]
    NotAFile(&'static str),
    /// The bytes are not a shared library for this machine.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// The system's loader refused it.
    #[error("the system cannot load it: {0}")]
    System(String),
    /// It has no `t3s_plugin`.
    #[error("not a t3s plugin (it exports no symbol t3s_plugin)")]
    NoSymbol,
    /// `t3s_plugin` does not begin with the magic number.
    #[error("not a t3s plugin (its symbol t3s_plugin is something else)")]
    Magic,
    /// Another major version.
    #[error(
        "built for plugin ABI {major}.{minor} (by {built_with}), this program speaks \
         {T3S_ABI_MAJOR}.{T3S_ABI_MINOR}; build it again with t3s-plugin {}",
        env!("CARGO_PKG_VERSION")
    )]
    Version {
        /// Its major version.
        major: u32,
        /// Its minor version.
        minor: u32,
        /// What built it.
        built_with: String,
    },
    /// Built with `panic = "abort"`.
    #[error(
        "compiled with panic = \"abort\", so a bug in it would end the run; remove that line from \
         its profile and build it again"
    )]
    Aborts,
    /// A pointer, size or text of its tables makes no sense.
    #[error("broken table: {0}")]
    Table(String),
    /// It registers nothing.
    #[error(
        "has no component; is a register_signal!, register_strategy! or register_adapter! missing?"
    )]
    Empty,
    /// Its own list could not be made.
    #[error("cannot list its components: {0}")]
    List(String),
    /// The pinned digest is another one.
    #[error("its sha256 is {found}, the plan pins {expected}")]
    Digest {
        /// The file's.
        found: String,
        /// The plan's.
        expected: String,
    },
    /// The same file is loaded twice.
    #[error("listed twice; remove one of the two")]
    Twice,
    /// Pins and reports name a library by its file name.
    #[error(
        "has the file name of {}, and pins and reports name a library by its file name; rename \
         one of the two",
        .other.display()
    )]
    SameFileName {
        /// The one that is listed first.
        other: PathBuf,
    },
    /// A component has the name of another one.
    #[error(transparent)]
    Clash(#[from] RegistryError),
}

impl PluginError {
    /// `cause`, about the file `path`.
    pub fn new(path: impl Into<PathBuf>, cause: impl Into<Cause>) -> Self {
        Self {
            path: path.into(),
            cause: cause.into(),
        }
    }
}
