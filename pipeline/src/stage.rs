//! Stages, each stored under the fingerprint of exactly what it read.
//!
//! A finished stage is a folder `stages/NAME-KEY/` with `stage.json` (what it read, how long it
//! took), `output.json` (its result as data) and whatever files it made. It is built in
//! `work/NAME-KEY/`, which a stage may go on from after an interruption, and moved into place in one
//! step: a folder under `stages/` is always whole, and never changes again.
//!
//! A stage that the run folder lacks is looked for in its sibling run folders (`share`) and,
//! when one of them has it, taken over by hard links; when one of them is at it, it is waited for. So
//! plans that differ only in `[selection]` and in their `out`
//! share every earlier stage, each folder is complete by itself, and removing one harms no other.

use std::{
    cell::RefCell,
    fs, io,
    path::{Path, PathBuf},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use t3s_core::{Fingerprint, atomic};

use crate::{
    error::PipelineError,
    events::{Event, Recorder},
    interrupt::Interrupt,
    run_folder::{RunFolder, utc},
    share::{Claim, neighbours},
};

/// What a stage is stored under.
#[derive(Debug, Clone)]
pub struct StageKey {
    name: String,
    fingerprint: Fingerprint,
    inputs: Value,
}

impl StageKey {
    /// The key of the stage `name` that reads `inputs`: sections of the plan and fingerprints of
    /// what came before. `version` is the stage's own: raise it when the stage computes something
    /// else from the same inputs.
    pub fn new(name: impl Into<String>, version: u32, inputs: Value) -> Self {
        let name = name.into();
        let fingerprint = Fingerprint::of_json(&(&name, version, &inputs));
        Self {
            name,
            fingerprint,
            inputs,
        }
    }

    /// The stage's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The fingerprint of everything the stage reads.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    fn folder_name(&self) -> String {
        format!("{}-{}", self.name, self.fingerprint.short())
    }
}

/// `stage.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    stage: String,
    key: Fingerprint,
    version: String,
    finished: String,
    seconds: f64,
    inputs: Value,
}

/// A finished stage.
#[derive(Debug, Clone)]
pub struct Done<T> {
    /// Its result.
    pub output: T,
    /// Where its files are.
    pub folder: PathBuf,
    /// The fingerprint of what it read; what comes after it reads this.
    pub key: Fingerprint,
}

/// What a stage cost, for the summary.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageCost {
    /// Its name.
    pub stage: String,
    /// First digits of its key.
    pub key: String,
    /// What it took when it was done, interrupted attempts included.
    pub seconds: f64,
    /// Whether this run found it done.
    pub cached: bool,
}

/// The stages of one run folder.
pub struct Stages<'r> {
    folder: &'r RunFolder,
    recorder: &'r Recorder<'r>,
    interrupt: &'r Interrupt,
    costs: RefCell<Vec<StageCost>>,
}

impl<'r> Stages<'r> {
    /// The stages of `folder`.
    pub fn new(
        folder: &'r RunFolder,
        recorder: &'r Recorder<'r>,
        interrupt: &'r Interrupt,
    ) -> Self {
        Self {
            folder,
            recorder,
            interrupt,
            costs: RefCell::default(),
        }
    }

    /// Every stage so far, in the order in which the run asked for them.
    pub fn costs(&self) -> Vec<StageCost> {
        self.costs.borrow().clone()
    }

    /// The result of the stage `key`: what is stored, or what `body` makes of the work folder it is
    /// given. The work folder may hold what an interrupted attempt left there.
    ///
    /// # Errors
    /// What `body` returns; when a stored stage cannot be read; when nothing can be written; when
    /// the run was asked to stop before the stage began.
    pub fn run<T: Serialize + DeserializeOwned>(
        &self,
        key: &StageKey,
        body: impl FnOnce(&Path) -> Result<T, PipelineError>,
    ) -> Result<Done<T>, PipelineError> {
        let folder = self.folder.path().join("stages").join(key.folder_name());
        if let Some(done) = self.stored(key, &folder)? {
            return Ok(done);
        }
        let claim = Claim::wait(
            self.folder.path(),
            &key.folder_name(),
            self.interrupt,
            || {
                self.recorder.event(&Event::StageWaiting {
                    stage: key.name.clone(),
                    key: key.fingerprint.short().to_owned(),
                });
            },
        );
        if self.interrupt.is_raised() {
            return Err(PipelineError::Interrupted {
                stage: key.name.clone(),
            });
        }
        // Whoever was waited for may have done it.
        if let Some(done) = self.stored(key, &folder)? {
            return Ok(done);
        }
        let done = self.perform(key, &folder, body)?;
        if let Some(claim) = claim {
            claim.done();
        }
        Ok(done)
    }

    /// The stage, where this run folder has it or one that it shares with.
    fn stored<T: DeserializeOwned>(
        &self,
        key: &StageKey,
        folder: &Path,
    ) -> Result<Option<Done<T>>, PipelineError> {
        let from = if folder.exists() {
            Some(self.folder.path().to_owned())
        } else {
            self.adopt(key, folder)?
        };
        let Some(from) = from else {
            return Ok(None);
        };
        let (output, record) = read(folder, key)?;
        self.recorder.event(&Event::StageCached {
            stage: key.name.clone(),
            key: key.fingerprint.short().to_owned(),
            from,
        });
        self.cost(key, record.seconds, true);
        Ok(Some(Done {
            output,
            folder: folder.to_owned(),
            key: key.fingerprint.clone(),
        }))
    }

    fn perform<T: Serialize>(
        &self,
        key: &StageKey,
        folder: &Path,
        body: impl FnOnce(&Path) -> Result<T, PipelineError>,
    ) -> Result<Done<T>, PipelineError> {
        self.recorder.event(&Event::StageStarted {
            stage: key.name.clone(),
            key: key.fingerprint.short().to_owned(),
        });
        let work = self.folder.path().join("work").join(key.folder_name());
        fs::create_dir_all(&work).map_err(|e| PipelineError::io(&work, "create", e))?;
        let elapsed_file = work.join("elapsed.json");
        // What interrupted attempts took; a file that cannot be read only loses that figure.
        let before: f64 = fs::read(&elapsed_file)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or(0.0);
        let started = Instant::now();
        let result = body(&work).and_then(|output| self.recorder.check().map(|()| output));
        let seconds = before + started.elapsed().as_secs_f64();
        let output = match result {
            Ok(output) => output,
            Err(error) => {
                // The error that stopped the stage is the one to report.
                let _ = atomic::write_bytes(&elapsed_file, seconds.to_string().as_bytes());
                return Err(error);
            }
        };
        let record = Record {
            stage: key.name.clone(),
            key: key.fingerprint.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            finished: utc(SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs())),
            seconds,
            inputs: key.inputs.clone(),
        };
        write_json(&work.join("output.json"), &output)?;
        write_json(&work.join("stage.json"), &record)?;
        remove_if_there(&elapsed_file)?;
        fs::rename(&work, folder).map_err(|e| PipelineError::io(folder, "move", e))?;
        self.recorder.event(&Event::StageFinished {
            stage: key.name.clone(),
            key: key.fingerprint.short().to_owned(),
            seconds,
            folder: folder.to_owned(),
        });
        self.cost(key, seconds, false);
        Ok(Done {
            output,
            folder: folder.to_owned(),
            key: key.fingerprint.clone(),
        })
    }

    /// Takes the stage over from a sibling run folder; says which, if there is one.
    fn adopt(&self, key: &StageKey, target: &Path) -> Result<Option<PathBuf>, PipelineError> {
        for sibling in neighbours(self.folder.path()) {
            let source = sibling.join("stages").join(key.folder_name());
            // A stage that cannot be read is the sibling's trouble, not ours.
            let whole = read_record(&source).is_ok_and(|record| record.key == key.fingerprint);
            if whole && source.join("output.json").is_file() {
                atomic::write_folder(target, |temporary| {
                    link_tree(&source, temporary).map_err(|source| Adopt::Io {
                        path: temporary.to_owned(),
                        source,
                    })
                })
                .map_err(|error: Adopt| match error {
                    Adopt::Write(error) => PipelineError::Write(error),
                    Adopt::Io { path, source } => PipelineError::io(&path, "link into", source),
                })?;
                return Ok(Some(sibling));
            }
        }
        Ok(None)
    }

    fn cost(&self, key: &StageKey, seconds: f64, cached: bool) {
        self.costs.borrow_mut().push(StageCost {
            stage: key.name.clone(),
            key: key.fingerprint.short().to_owned(),
            seconds,
            cached,
        });
    }
}

enum Adopt {
    Write(atomic::AtomicError),
    Io { path: PathBuf, source: io::Error },
}

impl From<atomic::AtomicError> for Adopt {
    fn from(error: atomic::AtomicError) -> Self {
        Self::Write(error)
    }
}

/// Hard links, or copies where the file system has none. Stage files are never written again, so
/// that sharing them is safe.
fn link_tree(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            fs::create_dir(&target)?;
            link_tree(&entry.path(), &target)?;
        } else if fs::hard_link(entry.path(), &target).is_err() {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

fn read<T: DeserializeOwned>(folder: &Path, key: &StageKey) -> Result<(T, Record), PipelineError> {
    let broken = |message: String| PipelineError::BrokenStage {
        folder: folder.to_owned(),
        message,
    };
    let record = read_record(folder).map_err(broken)?;
    if record.key != key.fingerprint {
        return Err(broken("it is a stage of other inputs".into()));
    }
    let output = read_json(&folder.join("output.json")).map_err(broken)?;
    Ok((output, record))
}

fn read_record(folder: &Path) -> Result<Record, String> {
    read_json(&folder.join("stage.json"))
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, String> {
    let name = path.file_name().unwrap_or_default().display().to_string();
    let text = fs::read(path).map_err(|e| format!("{name} cannot be read: {e}"))?;
    serde_json::from_slice(&text).map_err(|e| format!("{name} is not what this version wrote: {e}"))
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), PipelineError> {
    let text = serde_json::to_vec_pretty(value)
        .map_err(|e| PipelineError::io(path, "write", io::Error::other(e)))?;
    Ok(atomic::write_bytes(path, &text)?)
}

pub(crate) fn remove_if_there(path: &Path) -> Result<(), PipelineError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(PipelineError::io(path, "remove", error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::events::Silent;

    fn key(n: u32) -> StageKey {
        StageKey::new("probe", 1, json!({ "n": n }))
    }

    /// Runs the stage; says what came out and whether the body ran.
    fn run(folder: &RunFolder, n: u32) -> Result<(u32, bool), PipelineError> {
        let recorder = Recorder::unrecorded(&Silent);
        let interrupt = Interrupt::default();
        let stages = Stages::new(folder, &recorder, &interrupt);
        let mut ran = false;
        let done = stages.run(&key(n), |work| {
            ran = true;
            fs::create_dir_all(work.join("sub")).unwrap();
            fs::write(work.join("sub/file"), n.to_string()).unwrap();
            Ok(n * 2)
        })?;
        let text = fs::read_to_string(done.folder.join("sub/file")).unwrap();
        assert_eq!(text, n.to_string());
        assert_eq!(stages.costs()[0].cached, !ran);
        Ok((done.output, ran))
    }

    #[test]
    fn a_stage_runs_once_for_each_input() {
        let parent = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(&parent.path().join("a")).unwrap();
        assert_eq!(run(&folder, 1).unwrap(), (2, true));
        assert_eq!(run(&folder, 1).unwrap(), (2, false));
        assert_eq!(run(&folder, 2).unwrap(), (4, true));
        assert_eq!(run(&folder, 1).unwrap(), (2, false));
    }

    #[test]
    fn siblings_share_and_stay_complete_by_themselves() {
        let parent = tempfile::tempdir().unwrap();
        let first = RunFolder::open(&parent.path().join("a")).unwrap();
        let second = RunFolder::open(&parent.path().join("b")).unwrap();
        assert_eq!(run(&first, 1).unwrap(), (2, true));
        assert_eq!(run(&second, 1).unwrap(), (2, false));
        drop(first);
        fs::remove_dir_all(parent.path().join("a")).unwrap();
        assert_eq!(run(&second, 1).unwrap(), (2, false));
    }

    #[test]
    fn a_failed_stage_leaves_work_and_no_stage() {
        let parent = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(&parent.path().join("a")).unwrap();
        let recorder = Recorder::unrecorded(&Silent);
        let interrupt = Interrupt::default();
        let stages = Stages::new(&folder, &recorder, &interrupt);
        let failed = stages.run(&key(1), |work| -> Result<u32, PipelineError> {
            fs::write(work.join("half"), "x").unwrap();
            interrupt.raise();
            Err(PipelineError::Interrupted {
                stage: "probe".into(),
            })
        });
        assert!(failed.is_err());
        assert_eq!(
            fs::read_dir(folder.path().join("stages")).unwrap().count(),
            0
        );
        // Asked to stop: the next stage does not even begin.
        assert!(stages.run(&key(2), |_| Ok(1_u32)).is_err());
        let interrupt = Interrupt::default();
        let stages = Stages::new(&folder, &recorder, &interrupt);
        let done = stages.run(&key(1), |work| Ok(work.join("half").exists()));
        assert!(done.unwrap().output);
        assert_eq!(fs::read_dir(folder.path().join("work")).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_stage_is_an_error_that_names_its_folder() {
        let parent = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(&parent.path().join("a")).unwrap();
        run(&folder, 1).unwrap();
        let stages = folder.path().join("stages");
        let stage = fs::read_dir(stages)
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        fs::write(stage.join("output.json"), "").unwrap();
        let message = run(&folder, 1).unwrap_err().to_string();
        assert!(message.contains("remove this folder"), "{message}");
        // A sibling does not take it over: it computes its own.
        fs::write(stage.join("stage.json"), "{").unwrap();
        let second = RunFolder::open(&parent.path().join("b")).unwrap();
        assert_eq!(run(&second, 1).unwrap(), (2, true));
    }
}
