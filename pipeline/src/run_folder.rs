//! The run folder: its layout, its lock, and what says that it is one.
//!
//! | path | what it is |
//! |---|---|
//! | `run.json` | says that this is a run folder, and of which plan |
//! | `plan.toml` | the resolved plan of the last run in it |
//! | `lock` | held while a run works here; names its process |
//! | `events.jsonl`, `tensorboard/` | what happened |
//! | `stages/NAME-KEY/` | finished stages, never changed again |
//! | `work/NAME-KEY/` | unfinished ones, to go on from |
//! | `summary.json` | the figures of the last run |
//! | `student`, `selection.parquet` | links to the last run's results |

use std::{
    env,
    fs::{self, File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
    process,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use t3s_core::atomic;

use crate::{error::PipelineError, share::ABLATION};

/// The layout that this version writes and reads.
const FORMAT: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    kind: String,
    format: u32,
    /// Fingerprint of `plan.toml`'s plan.
    plan: String,
    /// Version of the program.
    version: String,
}

/// A run folder that this process holds.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Locked until it is dropped, however the process ends.
    _lock: File,
}

impl RunFolder {
    /// Creates the folder or opens an existing run folder, and locks it.
    ///
    /// # Errors
    /// When another process holds it, when it holds something else, when a newer version wrote it,
    /// or when it cannot be written.
    pub fn open(path: &Path) -> Result<Self, PipelineError> {
        let io = |action| move |source| PipelineError::io(path, action, source);
        fs::create_dir_all(path).map_err(io("create"))?;
        let marker = path.join("run.json");
        if marker.exists() {
            check_marker(&marker)?;
        } else {
            let foreign = fs::read_dir(path)
                .map_err(io("read"))?
                .filter_map(Result::ok)
                .any(|entry| {
                    let name = entry.file_name();
                    // A run that is just starting, or was killed while it started.
                    name != "lock" && !name.to_string_lossy().starts_with(".run.json.tmp")
                });
            if foreign {
                return Err(PipelineError::NotARunFolder {
                    path: path.to_owned(),
                });
            }
        }
        let lock = lock(path)?;
        for folder in ["stages", "work"] {
            fs::create_dir_all(path.join(folder)).map_err(io("create folders in"))?;
        }
        let folder = Self {
            path: path.to_owned(),
            _lock: lock,
        };
        if !marker.exists() {
            folder.mark("")?;
        }
        Ok(folder)
    }

    /// Writes the resolved plan and its fingerprint.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn save_plan(&self, plan: &str, fingerprint: &str) -> Result<(), PipelineError> {
        atomic::write_bytes(&self.path.join("plan.toml"), plan.as_bytes())?;
        self.mark(fingerprint)
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes `name` in the run folder a link to `target`, a path inside the run folder. Only where
    /// there are symbolic links; nothing depends on it.
    pub fn link(&self, name: &str, target: &Path) {
        #[cfg(unix)]
        {
            let relative = target.strip_prefix(&self.path).unwrap_or(target);
            let temporary = self.path.join(format!(".{name}.tmp"));
            let _ = fs::remove_file(&temporary);
            if std::os::unix::fs::symlink(relative, &temporary).is_ok() {
                let _ = fs::rename(&temporary, self.path.join(name));
            }
        }
        #[cfg(not(unix))]
        let _ = (name, target);
    }

    fn mark(&self, plan: &str) -> Result<(), PipelineError> {
        let marker = Marker {
            kind: "t3s-run".into(),
            format: FORMAT,
            plan: plan.into(),
            version: env!("CARGO_PKG_VERSION").into(),
        };
        let text = serde_json::to_vec_pretty(&marker).expect("a struct of strings is JSON");
        atomic::write_bytes(&self.path.join("run.json"), &text)?;
        Ok(())
    }
}

/// Refuses a folder that is no run folder of this version's layout.
///
/// # Errors
/// Says what it is instead.
pub(crate) fn expect(folder: &Path) -> Result<(), PipelineError> {
    if folder.join("run.json").is_file() {
        return check_marker(&folder.join("run.json"));
    }
    if folder.join(ABLATION).is_file() {
        return Err(PipelineError::plan(
            folder.display().to_string(),
            "the folder of an ablation, not of a run; name one of the run folders in its runs/",
        ));
    }
    Err(PipelineError::plan(
        folder.display().to_string(),
        "not a run folder: there is no run.json in it; name the folder that a plan calls out",
    ))
}

fn check_marker(path: &Path) -> Result<(), PipelineError> {
    let text = fs::read(path).map_err(|e| PipelineError::io(path, "read", e))?;
    let folder = path.parent().unwrap_or(path);
    match serde_json::from_slice::<Marker>(&text) {
        Ok(marker) if marker.kind == "t3s-run" && marker.format == FORMAT => Ok(()),
        Ok(marker) if marker.kind == "t3s-run" => Err(PipelineError::plan(
            "out",
            format!(
                "{} was written by t3s {} in layout {}, this program knows layout {FORMAT}; choose \
                 another folder",
                folder.display(),
                marker.version,
                marker.format
            ),
        )),
        _ => Err(PipelineError::NotARunFolder {
            path: folder.to_owned(),
        }),
    }
}

fn lock(folder: &Path) -> Result<File, PipelineError> {
    let path = folder.join("lock");
    let io = |action| {
        let path = path.clone();
        move |source| PipelineError::io(&path, action, source)
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(io("open"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Where locks are mandatory the file cannot be read: then nobody is named.
            let _ = file.read_to_string(&mut holder);
            let holder = match holder.trim() {
                "" => "which has not said who it is".to_owned(),
                holder => holder.to_owned(),
            };
            return Err(PipelineError::Locked {
                path: folder.to_owned(),
                holder,
            });
        }
        Err(TryLockError::Error(source)) => return Err(io("lock")(source)),
    }
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let holder = format!(
        "process {} on {} since {}",
        process::id(),
        host(),
        utc(since)
    );
    file.set_len(0).map_err(io("write"))?;
    file.rewind().map_err(io("write"))?;
    file.write_all(holder.as_bytes()).map_err(io("write"))?;
    Ok(file)
}

fn host() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| env::var("HOSTNAME").ok())
        .or_else(|| env::var("COMPUTERNAME").ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "an unnamed host".to_owned())
}

/// Seconds since 1970 as `2026-01-31 12:00:00 UTC` (days to civil date after Howard Hinnant,
/// "chrono-compatible low-level date algorithms").
pub fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_run_in_the_same_folder_is_refused_and_names_the_first() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("run");
        let first = RunFolder::open(&path).unwrap();
        let error = RunFolder::open(&path).unwrap_err();
        let message = error.to_string();
        assert!(matches!(error, PipelineError::Locked { .. }), "{message}");
        let pid = format!("process {}", process::id());
        assert!(
            message.contains(&pid) && message.contains("UTC"),
            "{message}"
        );
        drop(first);
        RunFolder::open(&path).unwrap();
    }

    #[test]
    fn a_folder_of_something_else_is_refused_and_untouched() {
        let parent = tempfile::tempdir().unwrap();
        fs::write(parent.path().join("thesis.tex"), "x").unwrap();
        let error = RunFolder::open(parent.path()).unwrap_err();
        assert!(
            matches!(error, PipelineError::NotARunFolder { .. }),
            "{error}"
        );
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_foreign_or_newer_marker_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let marker = parent.path().join("run.json");
        fs::write(&marker, "{}").unwrap();
        assert!(RunFolder::open(parent.path()).is_err());
        let newer = r#"{"kind": "t3s-run", "format": 99, "plan": "", "version": "9.0.0"}"#;
        fs::write(&marker, newer).unwrap();
        let message = RunFolder::open(parent.path()).unwrap_err().to_string();
        assert!(message.contains("9.0.0"), "{message}");
    }

    #[test]
    fn the_calendar_knows_leap_years() {
        assert_eq!(utc(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(utc(1_767_225_599), "2025-12-31 23:59:59 UTC");
    }
}
