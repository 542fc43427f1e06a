//! Which run folders share stages, and which of them is at one right now.
//!
//! Run folders beside one another share. The folder of an ablation stands among run folders and
//! holds some: they share with those beside it, and those beside it with them.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions, TryLockError},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use crate::interrupt::Interrupt;

/// What says that a folder is an ablation's.
pub(crate) const ABLATION: &str = "ablation.json";
/// Below an ablation's folder: the run folders.
pub(crate) const RUNS: &str = "runs";
/// In the folder of run folders: a lock for each stage that one of them is at.
const CLAIMS: &str = ".t3s";

/// The run folders that `own` shares with, nearest first; some may be none.
pub(crate) fn neighbours(own: &Path) -> Vec<PathBuf> {
    let parent = parent_of(own);
    let mut found = beside(own, parent);
    let above = parent_of(parent);
    if parent.file_name() == Some(OsStr::new(RUNS)) && above.join(ABLATION).is_file() {
        found.extend(beside(above, parent_of(above)));
    }
    found
}

/// The run folders in `parent` without `own`, those of ablations included.
fn beside(own: &Path, parent: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in entries(parent) {
        if path.file_name() == own.file_name() {
            continue;
        }
        if path.join(ABLATION).is_file() {
            found.extend(entries(&path.join(RUNS)));
        } else {
            found.push(path);
        }
    }
    found
}

/// In the order of their names; none of what cannot be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    found.sort();
    found
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Says that this run is at a stage, so that runs beside it wait for its result instead of doing
/// the same. Given up when it is dropped, however the process ends.
pub(crate) struct Claim {
    path: PathBuf,
    _lock: File,
}

impl Claim {
    /// Waits until no run beside `own` is at the stage `name`; `waiting` is called once if that is
    /// not at once. `None` where nothing can be locked (then the same may be done twice, and nothing
    /// breaks) or `interrupt` is raised.
    pub(crate) fn wait(
        own: &Path,
        name: &str,
        interrupt: &Interrupt,
        waiting: impl FnOnce(),
    ) -> Option<Self> {
        let folder = parent_of(own).join(CLAIMS);
        fs::create_dir_all(&folder).ok()?;
        let path = folder.join(format!("{name}.lock"));
        let mut waiting = Some(waiting);
        loop {
            // Opened anew each time: who was waited for may have removed the file.
            let lock = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .ok()?;
            match lock.try_lock() {
                Ok(()) => return Some(Self { path, _lock: lock }),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(_)) => return None,
            }
            if let Some(waiting) = waiting.take() {
                waiting();
            }
            if interrupt.is_raised() {
                return None;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// The stage is in place: whoever looks for it finds it, locked or not.
    pub(crate) fn done(self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ablation_shares_with_the_runs_beside_it_and_they_with_it() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        for name in ["a", "b", "study/runs/x", "study/runs/y"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        fs::write(at("study").join(ABLATION), "{}").unwrap();
        assert_eq!(
            neighbours(&at("a")),
            [at("b"), at("study/runs/x"), at("study/runs/y")]
        );
        assert_eq!(
            neighbours(&at("study/runs/x")),
            [at("study/runs/y"), at("a"), at("b")]
        );
        fs::remove_file(at("study").join(ABLATION)).unwrap();
        assert_eq!(neighbours(&at("study/runs/x")), [at("study/runs/y")]);
    }

    #[test]
    fn the_second_waits_for_the_first_and_stops_when_asked() {
        let root = tempfile::tempdir().unwrap();
        let own = root.path().join("a");
        let never = Interrupt::default();
        let first = Claim::wait(&own, "probe-1", &never, || panic!("nobody is there")).unwrap();
        assert!(Claim::wait(&own, "probe-2", &never, || panic!("another stage")).is_some());
        let stop = Interrupt::default();
        let asked = stop.clone();
        assert!(Claim::wait(&own, "probe-1", &stop, move || asked.raise()).is_none());
        thread::scope(|scope| {
            let second = scope.spawn(|| Claim::wait(&own, "probe-1", &never, || {}).is_some());
            thread::sleep(Duration::from_millis(20));
            assert!(!second.is_finished());
            first.done();
            assert!(second.join().unwrap());
        });
    }
}
