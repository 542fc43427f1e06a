//! A probe that is measured while it trains, and stopped when its bottleneck is behind it.

use std::{cell::RefCell, fs, ops::ControlFlow, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    Run,
    bottleneck_stage::Found,
    stages::{draws_key, generate_key, train_key},
};
use crate::{
    bottleneck::{Bottleneck, FoundBy, Point},
    error::PipelineError,
    evaluate::{Accuracy, Examination, once, training_questions},
    events::Event,
    stage::{Done, StageKey},
    summary::{CorpusSummary, StepAccuracy},
    training::{TrainLog, Training, checkpoint_folder},
    valley::{Measured, valley},
};

/// What the stage comes to.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Watched {
    pub(crate) log: TrainLog,
    pub(crate) curve: Vec<StepAccuracy>,
    /// What the rule found; absent where the probe came to its end before.
    pub(crate) valley: Option<Bottleneck>,
}

/// One measurement, kept so that an interruption costs one of them.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Measurement {
    step: u64,
    accuracy: Accuracy,
    /// Right answers to each prompt.
    right: Vec<u32>,
}

impl Run<'_> {
    /// Trains the probe under watch, where the plan says so and there is something to measure.
    pub(super) fn watched_probe(
        &self,
        corpus: &Done<CorpusSummary>,
    ) -> Result<Option<(Done<TrainLog>, Found)>, PipelineError> {
        let plan = &self.plan.bottleneck;
        if !plan.watch {
            return Ok(None);
        }
        if corpus.output.problems == 0 {
            self.warn(
                "probe",
                "no training row has a gold answer, so there is nothing to watch; the probe goes to \
                 its end",
            );
            return Ok(None);
        }
        let probe = &self.plan.probe;
        let key = StageKey::new(
            "probe",
            2,
            json!({
                "student": self.weights,
                "family": self.family(),
                "corpus": corpus.key,
                "training": train_key(&probe.training),
                "checkpoint_every": probe.checkpoint_every,
                "seed": probe.seed,
                "watch": {
                    "samples": plan.samples,
                    "prompts": plan.prompts,
                    "minimum_drop": plan.minimum_drop,
                    "tie": plan.tie,
                    "smoothing": plan.smoothing,
                    "patience": plan.patience,
                    "generate": generate_key(&plan.generate),
                    "draws": draws_key(&plan.generate, probe.seed),
                    "grader": self.plan.grader,
                },
            }),
        );
        let done = self.stages.run(&key, |work| {
            let questions = training_questions(self.corpus()?, plan.prompts);
            let examination = Examination {
                questions: &questions,
                samples: plan.samples,
                generate: &plan.generate,
                rule: &self.student.decode,
                grader: &self.grader,
                tokenizer: &self.tokenizer,
                seed: probe.seed,
                stage: "accuracy",
                recorder: self.recorder,
                interrupt: self.interrupt,
            };
            let measurements = work.join("measurements");
            fs::create_dir_all(&measurements)
                .map_err(|e| PipelineError::io(&measurements, "create", e))?;
            let measure = |step: u64| -> Result<Measurement, PipelineError> {
                let name = format!("step-{step:06}");
                let measured = once(&measurements.join(format!("{name}.json")), || {
                    // As it lies there, since that is what is scored later.
                    let folder = match step {
                        0 => self.student.path.clone(),
                        step => checkpoint_folder(work, step),
                    };
                    let decoder = self.student.load(&folder, "accuracy")?;
                    let answers = measurements.join(format!("{name}.answers.jsonl"));
                    let (accuracy, right) = examination.run_by_problem(&decoder, &answers)?;
                    Ok(Measurement {
                        step,
                        accuracy,
                        right,
                    })
                })?;
                self.recorder.event(&Event::Accuracy {
                    stage: "accuracy".into(),
                    model: if step == 0 { "base".into() } else { name },
                    step: Some(step),
                    accuracy: measured.accuracy.clone(),
                });
                Ok(measured)
            };
            let measured = RefCell::new(vec![measure(0)?]);
            let found = RefCell::new(None);
            let watch = |step: u64| {
                let mut measured = measured.borrow_mut();
                // After an interruption the last ones may not have been measured.
                let every = probe.checkpoint_every.max(1);
                let from = measured.last().map_or(0, |last: &Measurement| last.step);
                for step in (from + 1..=step).filter(|s| s.is_multiple_of(every) || *s == step) {
                    measured.push(measure(step)?);
                }
                *found.borrow_mut() = valley(&shares(&measured, plan.samples), plan);
                Ok(match *found.borrow() {
                    Some(_) => ControlFlow::Break(()),
                    None => ControlFlow::Continue(()),
                })
            };
            let training = Training {
                stage: "probe",
                student: &self.student,
                examples: Arc::new(self.corpus()?.examples.clone()),
                online: None,
                plan: &probe.training,
                seed: probe.seed,
                checkpoint_every: probe.checkpoint_every,
                start: None,
                watch: Some(&watch),
                recorder: self.recorder,
                interrupt: self.interrupt,
            };
            let log = training.run(work)?;
            let curve = measured.take().into_iter().map(|m| StepAccuracy {
                step: m.step,
                accuracy: m.accuracy,
            });
            Ok(Watched {
                log,
                curve: curve.collect(),
                valley: found.take(),
            })
        })?;
        let Watched { log, curve, valley } = done.output;
        let bottleneck = match valley {
            Some(found) => found,
            None => {
                self.warn(
                    "bottleneck",
                    format!(
                        "no valley was behind the probe before its end at step {}; its lowest \
                         checkpoint is taken",
                        log.steps
                    ),
                );
                let points: Vec<Point> = curve
                    .iter()
                    .map(|point| Point {
                        step: point.step,
                        value: point.accuracy.share,
                    })
                    .collect();
                self.lowest(&points, FoundBy::TrainAccuracy)?
            }
        };
        let probe = Done {
            output: log,
            folder: done.folder,
            key: done.key,
        };
        let found = Found {
            bottleneck,
            accuracy: curve,
            logp: Vec::new(),
        };
        Ok(Some((probe, found)))
    }
}

fn shares(measured: &[Measurement], samples: usize) -> Vec<Measured> {
    measured
        .iter()
        .map(|m| Measured {
            step: m.step,
            shares: m
                .right
                .iter()
                .map(|right| f64::from(*right) / samples as f64)
                .collect(),
        })
        .collect()
}
