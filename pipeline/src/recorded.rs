//! A run folder as its last run left it, whole or not: which stages there are, and what they came
//! to. Reads only, and only what lies in the folder.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    bottleneck::Bottleneck, error::PipelineError, events::StepEvent, run::Watched, run_folder,
    summary::StepAccuracy, training::TrainLog,
};

/// A stage of the last run.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordedStage {
    /// E.g. `probe`, `score-base`.
    pub name: String,
    /// Its folder: under `stages/` when it is done, under `work/` when it is not.
    pub folder: PathBuf,
    /// Whether it is done.
    pub done: bool,
    /// What it took, where it was done by this run.
    pub seconds: Option<f64>,
}

/// How the last run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// It came to its end.
    Done,
    /// It stopped and said why.
    Stopped(String),
    /// It is still going on, or was killed.
    Open,
}

/// What a probe came to.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordedProbe {
    /// Its training.
    pub log: TrainLog,
    /// Whether it was stopped because its valley was behind it.
    pub stopped: bool,
    /// Accuracy of its checkpoints on the training prompts.
    pub accuracy: Option<Vec<StepAccuracy>>,
}

/// What a run folder says about its last run.
#[derive(Debug, Clone)]
pub struct RecordedRun {
    /// The run folder.
    pub folder: PathBuf,
    /// The plan's name.
    pub name: String,
    /// Version of the program that wrote it.
    pub version: String,
    /// Seconds since 1970 when it began.
    pub started: f64,
    /// How it ended.
    pub ending: Ending,
    /// Its stages, in the order in which it asked for them.
    pub stages: Vec<RecordedStage>,
    /// The bottleneck, where it came so far.
    pub bottleneck: Option<Bottleneck>,
    /// What it warned of: stage and message.
    pub warnings: Vec<(String, String)>,
}

impl RecordedRun {
    /// Reads `events.jsonl` of the run folder `folder` from the start of its last run on.
    ///
    /// # Errors
    /// When `folder` is no run folder of this version's layout, nothing ran in it yet, or the log
    /// cannot be read.
    pub fn open(folder: &Path) -> Result<Self, PipelineError> {
        run_folder::expect(folder)?;
        let path = folder.join("events.jsonl");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(PipelineError::io(&path, "read", error)),
        };
        let mut run = None;
        for line in bytes.split(|byte| *byte == b'\n') {
            // The last line may have been cut off by a kill.
            let Ok(event) = serde_json::from_slice::<Value>(line) else {
                continue;
            };
            if event["event"] == "run-started" {
                run = Some(Self::begun(folder, &event));
            } else if let Some(run) = &mut run {
                run.hear(&event);
            }
        }
        run.ok_or_else(|| {
            PipelineError::plan(
                folder.display().to_string(),
                "no run was begun in this folder; make one with t3s run PLAN",
            )
        })
    }

    fn begun(folder: &Path, event: &Value) -> Self {
        Self {
            folder: folder.to_owned(),
            name: text(&event["name"]),
            version: text(&event["version"]),
            started: event["time"].as_f64().unwrap_or(0.0),
            ending: Ending::Open,
            stages: Vec::new(),
            bottleneck: None,
            warnings: Vec::new(),
        }
    }

    fn hear(&mut self, event: &Value) {
        match event["event"].as_str().unwrap_or_default() {
            "stage-started" => self.stage(event, "work", false),
            "stage-finished" | "stage-cached" => self.stage(event, "stages", true),
            "bottleneck" => self.bottleneck = serde_json::from_value(event.clone()).ok(),
            "warning" => {
                let warning = (text(&event["stage"]), text(&event["message"]));
                self.warnings.push(warning);
            }
            "stopped" => self.ending = Ending::Stopped(text(&event["message"])),
            "summary" => self.ending = Ending::Done,
            _ => {}
        }
        // `t3s train` has no event of its own for its end.
        if event["event"] == "stage-finished" || event["event"] == "stage-cached" {
            let sft = self.stages.iter().any(|stage| stage.name == "sft");
            if sft && event["stage"] == "evaluate-student" {
                self.ending = Ending::Done;
            }
        }
    }

    fn stage(&mut self, event: &Value, parent: &str, done: bool) {
        let name = text(&event["stage"]);
        let key = event["key"].as_str().unwrap_or_default();
        let stage = RecordedStage {
            // Not the path in the event: the folder may have been moved since.
            folder: self.folder.join(parent).join(format!("{name}-{key}")),
            done,
            seconds: event["seconds"].as_f64(),
            name,
        };
        match self.stages.iter_mut().find(|s| s.name == stage.name) {
            Some(known) => *known = stage,
            None => self.stages.push(stage),
        }
    }

    /// The stage `name`, where the last run came to it.
    pub fn get(&self, name: &str) -> Option<&RecordedStage> {
        self.stages.iter().find(|stage| stage.name == name)
    }

    /// The folder of the stage `name`, where it is done.
    pub fn done(&self, name: &str) -> Option<&Path> {
        let stage = self.get(name).filter(|stage| stage.done)?;
        Some(&stage.folder)
    }

    /// The result of the stage `name`; `None` where it is not done.
    ///
    /// # Errors
    /// When it is said to be done and its result cannot be read.
    pub fn output<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, PipelineError> {
        let Some(folder) = self.done(name) else {
            return Ok(None);
        };
        let broken = |message: String| PipelineError::BrokenStage {
            folder: folder.to_owned(),
            message,
        };
        let bytes = fs::read(folder.join("output.json"))
            .map_err(|e| broken(format!("output.json cannot be read: {e}")))?;
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| broken(format!("output.json is not what this version wrote: {e}")))
    }

    /// What the probe came to, and its accuracy on the training prompts where that was measured,
    /// after it or while it was watched; `None` where it is not done.
    ///
    /// # Errors
    /// As [`RecordedRun::output`].
    pub fn probe(&self) -> Result<Option<RecordedProbe>, PipelineError> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Output {
            Watched(Watched),
            Alone(TrainLog),
        }
        Ok(match self.output("probe")? {
            None => None,
            Some(Output::Watched(probe)) => Some(RecordedProbe {
                log: probe.log,
                stopped: probe.valley.is_some(),
                accuracy: Some(probe.curve),
            }),
            Some(Output::Alone(log)) => Some(RecordedProbe {
                log,
                stopped: false,
                accuracy: self.output("accuracy")?,
            }),
        })
    }

    /// The optimiser steps that the stage `name` wrote down, done or not.
    pub fn steps(&self, name: &str) -> Vec<StepEvent> {
        let Some(stage) = self.get(name) else {
            return Vec::new();
        };
        let text = fs::read_to_string(stage.folder.join("steps.jsonl")).unwrap_or_default();
        let lines = text.lines();
        lines
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// What the stage cost when it was done, whichever run did it; seconds.
    pub fn cost(&self, stage: &RecordedStage) -> Option<f64> {
        let record = fs::read(stage.folder.join("stage.json")).ok()?;
        let record: Value = serde_json::from_slice(&record).ok()?;
        record["seconds"].as_f64()
    }

    /// The resolved plan, as text.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn plan(&self) -> Result<String, PipelineError> {
        let path = self.folder.join("plan.toml");
        fs::read_to_string(&path).map_err(|e| PipelineError::io(&path, "read", e))
    }

    /// The run folder that `path` lies in, itself included.
    pub fn around(path: &Path) -> Option<PathBuf> {
        let path = std::path::absolute(path).ok()?;
        let mut folders = path.ancestors();
        folders
            .find(|folder| run_folder::expect(folder).is_ok())
            .map(Path::to_owned)
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        events::{Event, Recorder, Silent},
        run_folder::RunFolder,
    };

    fn started(name: &str) -> Event {
        Event::RunStarted {
            name: name.into(),
            plan: String::new(),
            out: PathBuf::new(),
            version: "0".into(),
        }
    }

    fn stage(name: &str) -> Event {
        Event::StageStarted {
            stage: name.into(),
            key: "abc".into(),
        }
    }

    #[test]
    fn the_last_run_counts_and_what_it_did_not_finish_is_said() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("run");
        let error = RecordedRun::open(&path).unwrap_err().to_string();
        assert!(error.contains("run"), "{error}");
        let folder = RunFolder::open(&path).unwrap();
        let error = RecordedRun::open(&path).unwrap_err().to_string();
        assert!(error.contains("t3s run"), "{error}");
        let recorder = Recorder::new(folder.path(), &Silent).unwrap();
        recorder.event(&started("first"));
        recorder.event(&stage("corpus"));
        recorder.event(&started("second"));
        recorder.event(&Event::StageCached {
            stage: "corpus".into(),
            key: "abc".into(),
            from: PathBuf::new(),
        });
        recorder.event(&stage("probe"));
        recorder.warn("probe", "slow");
        let found = RecordedRun::open(&path).unwrap();
        assert_eq!(
            (found.name.as_str(), &found.ending),
            ("second", &Ending::Open)
        );
        assert_eq!(
            found.done("corpus"),
            Some(path.join("stages/corpus-abc").as_path())
        );
        let probe = found.get("probe").unwrap();
        assert!(!probe.done && probe.folder == path.join("work/probe-abc"));
        assert_eq!(found.warnings.len(), 1);
        assert!(found.output::<u64>("probe").unwrap().is_none());
        let broken = found.output::<u64>("corpus").unwrap_err().to_string();
        assert!(broken.contains("output.json"), "{broken}");
        assert_eq!(RecordedRun::around(&path.join("stages/x")), Some(path));
    }
}
