//! Everything a run reports, as data. The pipeline writes it down; a program shows it.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;

use crate::{
    error::PipelineError, evaluate::Accuracy, summary::Summary, tensorboard::ScalarWriter,
};

/// One thing that happened in a run. Tagged by `event` in JSON.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Event {
    /// The run folder is locked and the plan written into it.
    RunStarted {
        /// The plan's name.
        name: String,
        /// Fingerprint of the resolved plan.
        plan: String,
        /// The run folder.
        out: PathBuf,
        /// Version of this program.
        version: String,
    },
    /// A stage begins, or goes on where it was interrupted.
    StageStarted {
        /// E.g. `probe`, `score-base`.
        stage: String,
        /// First digits of the fingerprint of what it reads.
        key: String,
    },
    /// A stage is done.
    StageFinished {
        /// Its name.
        stage: String,
        /// First digits of the fingerprint of what it read.
        key: String,
        /// What it took, interrupted attempts included.
        seconds: f64,
        /// Where its result is.
        folder: PathBuf,
    },
    /// A stage's result was there already.
    StageCached {
        /// Its name.
        stage: String,
        /// First digits of the fingerprint of what it read.
        key: String,
        /// Where the result came from: this run folder, or a sibling.
        from: PathBuf,
    },
    /// Another run beside this one is at the same stage; its result will be taken over.
    StageWaiting {
        /// Its name.
        stage: String,
        /// First digits of the fingerprint of what it reads.
        key: String,
    },
    /// An optimiser step.
    Step(StepEvent),
    /// How far a stage without optimiser steps is.
    Progress {
        /// Its name.
        stage: String,
        /// Units done.
        done: u64,
        /// Units in all.
        total: u64,
        /// What is counted: `tokens`, `answers`.
        unit: String,
        /// Tokens per second of this attempt, generated or scored.
        tokens_per_second: f64,
    },
    /// What a model got right.
    Accuracy {
        /// The stage that measured it: `accuracy`, `evaluate-base`, ...
        stage: String,
        /// `base`, `step-000005`, `student`.
        model: String,
        /// The probe's step, where the model is one of its checkpoints.
        step: Option<u64>,
        /// The counts.
        accuracy: Accuracy,
    },
    /// The bottleneck was found.
    Bottleneck(crate::bottleneck::Bottleneck),
    /// The tokens were selected.
    Selection(crate::select::Selection),
    /// Something the reader should know; the run goes on.
    Warning {
        /// The stage that noticed.
        stage: String,
        /// What, and what to do about it.
        message: String,
    },
    /// The run is done.
    Summary(Box<Summary>),
    /// The run stopped before its end.
    Stopped {
        /// Why.
        message: String,
        /// Whether it was asked to; then the same command goes on.
        interrupted: bool,
    },
}

/// An optimiser step of the probe or of the training run.
#[derive(Debug, Clone, Serialize, serde::Deserialize)]
pub struct StepEvent {
    /// `probe` or `train`.
    pub stage: String,
    /// Steps done.
    pub step: u64,
    /// Steps in all.
    pub steps: u64,
    /// Passes over the data so far, with the part of the current one.
    pub epoch: f64,
    /// Weighted loss over the normaliser, nats.
    pub loss: f64,
    /// Mean of `-logp` over the kept tokens, each counted once, nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_loss: Option<f64>,
    /// The same over the response tokens that are not kept; in some 64 steps of a run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped_loss: Option<f64>,
    /// Of this step.
    pub learning_rate: f64,
    /// Global norm before clipping.
    pub grad_norm: f64,
    /// Tokens of the step, prompts included.
    pub tokens: u64,
    /// Tokens of the step that could be trained on.
    pub response_tokens: u64,
    /// Tokens of the step with a weight above zero.
    pub kept_tokens: u64,
    /// Seconds of the step.
    pub seconds: f64,
    /// `tokens / seconds`.
    pub tokens_per_second: f64,
    /// Most memory the process has held so far, on a GPU its tensors there, bytes; absent where the
    /// system does not say.
    pub peak_memory: Option<u64>,
}

/// Who is told what happens. Called from the thread that runs the pipeline.
pub trait Observer: Send + Sync {
    /// Something happened.
    fn event(&self, event: &Event);
}

/// An observer that does not listen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn event(&self, _event: &Event) {}
}

/// Writes every event into the run folder (`events.jsonl`, `tensorboard/`) and passes it on.
pub struct Recorder<'o> {
    observer: &'o dyn Observer,
    files: Option<Mutex<Files>>,
}

struct Files {
    path: PathBuf,
    log: File,
    tensorboard: PathBuf,
    writers: BTreeMap<String, ScalarWriter>,
    last_progress: Option<Instant>,
    failed: Option<io::Error>,
}

/// `events.jsonl` gets at most one progress event in this time: it is a log, not a display.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

impl<'o> Recorder<'o> {
    /// Records into `folder` and passes on to `observer`.
    ///
    /// # Errors
    /// When `events.jsonl` cannot be opened for appending.
    pub fn new(folder: &Path, observer: &'o dyn Observer) -> Result<Self, PipelineError> {
        let path = folder.join("events.jsonl");
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(|source| PipelineError::io(&path, "open", source))?;
        Ok(Self {
            observer,
            files: Some(Mutex::new(Files {
                path,
                log,
                tensorboard: folder.join("tensorboard"),
                writers: BTreeMap::new(),
                last_progress: None,
                failed: None,
            })),
        })
    }

    /// Only passes on: for work outside a run folder.
    pub fn unrecorded(observer: &'o dyn Observer) -> Self {
        Self {
            observer,
            files: None,
        }
    }

    /// Records `event` and passes it on. A failure to write is kept for [`Recorder::check`], so
    /// that a step in progress can still be finished and saved.
    pub fn event(&self, event: &Event) {
        if let Some(files) = &self.files {
            let mut files = lock(files);
            if let Err(error) = files.write(event) {
                files.failed.get_or_insert(error);
            }
        }
        self.observer.event(event);
    }

    /// A warning of `stage`.
    pub fn warn(&self, stage: &str, message: impl Into<String>) {
        let message = message.into();
        tracing::debug!(stage, message, "warning");
        self.event(&Event::Warning {
            stage: stage.to_owned(),
            message,
        });
    }

    /// Whether everything so far could be written.
    ///
    /// # Errors
    /// The first failure, e.g. a full disk.
    pub fn check(&self) -> Result<(), PipelineError> {
        let Some(files) = &self.files else {
            return Ok(());
        };
        let mut files = lock(files);
        match files.failed.take() {
            Some(error) => Err(PipelineError::io(&files.path, "append to", error)),
            None => Ok(()),
        }
    }
}

/// A panic elsewhere does not make a log file useless.
fn lock(files: &Mutex<Files>) -> MutexGuard<'_, Files> {
    files.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Serialize)]
struct Line<'e> {
    /// Seconds since 1970.
    time: f64,
    #[serde(flatten)]
    event: &'e Event,
}

impl Files {
    fn write(&mut self, event: &Event) -> io::Result<()> {
        if let Event::Progress { done, total, .. } = event {
            let recent = |last: Instant| last.elapsed() < PROGRESS_INTERVAL;
            if done < total && self.last_progress.is_some_and(recent) {
                return Ok(());
            }
            self.last_progress = Some(Instant::now());
        }
        let time = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0.0, |since| since.as_secs_f64());
        let mut line = serde_json::to_vec(&Line { time, event })?;
        line.push(b'\n');
        // One write per line: a reader sees whole lines, and so does the next run after a kill.
        self.log.write_all(&line)?;
        self.scalars(event)
    }

    fn scalars(&mut self, event: &Event) -> io::Result<()> {
        let (run, step, scalars): (&str, u64, Vec<(&str, f64)>) = match event {
            Event::Step(step) => (
                &step.stage,
                step.step,
                vec![
                    ("loss", step.loss),
                    ("learning_rate", step.learning_rate),
                    ("grad_norm", step.grad_norm),
                    ("tokens_per_second", step.tokens_per_second),
                    (
                        "kept_share",
                        step.kept_tokens as f64 / step.response_tokens.max(1) as f64,
                    ),
                ],
            ),
            Event::Accuracy {
                stage,
                step: Some(step),
                accuracy,
                ..
            } if stage == "accuracy" => (
                "probe",
                *step,
                vec![
                    ("train_accuracy", accuracy.share),
                    ("truncated_share", accuracy.truncated_share()),
                    ("unparsed_share", accuracy.unparsed_share()),
                ],
            ),
            _ => return Ok(()),
        };
        let folder = self.tensorboard.join(run);
        self.writers
            .entry(run.to_owned())
            .or_insert_with(|| ScalarWriter::new(&folder))
            .write(step, &scalars)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Observer for Count {
        fn event(&self, _: &Event) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn progress(done: u64) -> Event {
        Event::Progress {
            stage: "score-base".into(),
            done,
            total: 10,
            unit: "tokens".into(),
            tokens_per_second: 1.0,
        }
    }

    #[test]
    fn every_event_is_a_line_but_progress_is_thinned() {
        let folder = tempfile::tempdir().unwrap();
        let seen = Count::default();
        let recorder = Recorder::new(folder.path(), &seen).unwrap();
        for done in 0..=10 {
            recorder.event(&progress(done));
        }
        recorder.warn("corpus", "a row\nwas dropped");
        recorder.check().unwrap();
        assert_eq!(seen.0.load(Ordering::Relaxed), 12);
        let text = std::fs::read_to_string(folder.path().join("events.jsonl")).unwrap();
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(lines[1]["done"], 10);
        assert_eq!(lines[2]["event"], "warning");
        assert_eq!(lines[2]["message"], "a row\nwas dropped");
        assert!(lines[2]["time"].as_f64().unwrap() > 1e9);
    }

    #[test]
    fn a_second_run_appends() {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let recorder = Recorder::new(folder.path(), &Silent).unwrap();
            recorder.warn("a", "b");
        }
        let text = std::fs::read_to_string(folder.path().join("events.jsonl")).unwrap();
        assert_eq!(text.lines().count(), 2);
    }
}
