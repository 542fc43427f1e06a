//! The Python that optional tests compare with.

use std::{
    env,
    path::{Path, PathBuf},
};

/// `T3S_PYTHON`, else the workspace's `.venv`, else `python3`.
pub(crate) fn interpreter() -> PathBuf {
    if let Some(path) = env::var_os("T3S_PYTHON") {
        return path.into();
    }
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/bin/python");
    if own.exists() { own } else { "python3".into() }
}
