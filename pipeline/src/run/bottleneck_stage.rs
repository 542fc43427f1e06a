//! Finding the bottleneck: the curve over the checkpoints that the plan's rule asks for.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};
use serde_json::json;
use t3s_core::plan::BottleneckRule;
use t3s_engine::{Columns, score};

use super::{
    Run,
    stages::{draws_key, generate_key},
};
use crate::{
    answer_logp::{answer_positions, mean_logp},
    bottleneck::{Bottleneck, FoundBy, Point, lowest, named},
    error::PipelineError,
    evaluate::{Accuracy, Examination, once, training_questions},
    events::Event,
    stage::{Done, StageKey},
    summary::{CorpusSummary, StepAccuracy},
    training::TrainLog,
};

/// The bottleneck with the curves it was read from.
pub(super) struct Found {
    pub(super) bottleneck: Bottleneck,
    pub(super) accuracy: Vec<StepAccuracy>,
    pub(super) logp: Vec<Point>,
}

/// The result of the stage `answer-logp`.
#[derive(Debug, Serialize, Deserialize)]
struct AnswerLogp {
    curve: Vec<Point>,
    /// Examples in which the answer's tokens were found.
    located: u64,
    examples: u64,
}

impl Run<'_> {
    pub(super) fn find_bottleneck(
        &self,
        corpus: &Done<CorpusSummary>,
        probe: &Done<TrainLog>,
    ) -> Result<Found, PipelineError> {
        let plan = &self.plan.bottleneck;
        if plan.step > 0 {
            self.check_named(plan.step, probe)?;
            return Ok(Found {
                bottleneck: named(plan.step),
                accuracy: Vec::new(),
                logp: Vec::new(),
            });
        }
        let mut accuracy = Vec::new();
        if plan.by == BottleneckRule::TrainAccuracy {
            let unusable = if corpus.output.problems == 0 {
                "no training row has a gold answer".to_owned()
            } else {
                accuracy = self.accuracy_stage(corpus, probe)?.output;
                let right: u64 = accuracy.iter().map(|a| a.accuracy.right).sum();
                let curve: Vec<Point> = accuracy
                    .iter()
                    .map(|a| Point {
                        step: a.step,
                        value: a.accuracy.share,
                    })
                    .collect();
                if right > 0 {
                    let found = self.lowest(&curve, FoundBy::TrainAccuracy)?;
                    return Ok(Found {
                        bottleneck: found,
                        accuracy,
                        logp: Vec::new(),
                    });
                }
                "no checkpoint answered a single training prompt right".to_owned()
            };
            self.warn(
                "bottleneck",
                format!("{unusable}; the log-probability of the answers' tokens is used instead"),
            );
        }
        let logp = self.answer_logp_stage(corpus, probe)?.output;
        if logp.located < logp.examples {
            let rest = logp.examples - logp.located;
            let used = if logp.located == 0 {
                "all response tokens are used instead"
            } else {
                "they are left out of the mean"
            };
            self.warn(
                "bottleneck",
                format!(
                    "the answer's tokens were not found in {rest} of {} traces; {used}",
                    logp.examples
                ),
            );
        }
        Ok(Found {
            bottleneck: self.lowest(&logp.curve, FoundBy::AnswerTokenLogp)?,
            accuracy,
            logp: logp.curve,
        })
    }

    fn check_named(&self, step: u64, probe: &Done<TrainLog>) -> Result<(), PipelineError> {
        let there = &probe.output.checkpoints;
        if there.contains(&step) {
            return Ok(());
        }
        let there: Vec<String> = there.iter().map(u64::to_string).collect();
        Err(PipelineError::plan(
            "bottleneck.step",
            format!(
                "the probe has no checkpoint at step {step}; it has {}",
                there.join(", ")
            ),
        ))
    }

    pub(super) fn lowest(
        &self,
        curve: &[Point],
        rule: FoundBy,
    ) -> Result<Bottleneck, PipelineError> {
        let plan = &self.plan.bottleneck;
        let found = lowest(curve, rule, plan).ok_or_else(|| {
            PipelineError::plan(
                "bottleneck",
                format!(
                    "no checkpoint after step 0 has a value of {}; give probe.steps at least one \
                     step, or name the step in bottleneck.step",
                    rule.name()
                ),
            )
        })?;
        if let (false, Some(value), Some(base)) = (found.dropped, found.value, found.base) {
            self.warn(
                "bottleneck",
                format!(
                    "no drop: the lowest {} is {value:.4} at step {} and the base has {base:.4} \
                     (minimum_drop is {}); what is selected here is no imitation shock",
                    rule.name(),
                    found.step,
                    plan.minimum_drop
                ),
            );
        }
        Ok(found)
    }

    fn accuracy_stage(
        &self,
        corpus: &Done<CorpusSummary>,
        probe: &Done<TrainLog>,
    ) -> Result<Done<Vec<StepAccuracy>>, PipelineError> {
        let plan = &self.plan.bottleneck;
        let key = StageKey::new(
            "accuracy",
            1,
            json!({
                "probe": probe.key,
                "corpus": corpus.key,
                "samples": plan.samples,
                "prompts": plan.prompts,
                "generate": generate_key(&plan.generate),
                "grader": self.plan.grader,
                "seed": draws_key(&plan.generate, self.plan.probe.seed),
            }),
        );
        self.stages.run(&key, |work| {
            let questions = training_questions(self.corpus()?, plan.prompts);
            let examination = Examination {
                questions: &questions,
                samples: plan.samples,
                generate: &plan.generate,
                rule: &self.student.decode,
                grader: &self.grader,
                tokenizer: &self.tokenizer,
                seed: self.plan.probe.seed,
                stage: key.name(),
                recorder: self.recorder,
                interrupt: self.interrupt,
            };
            let mut curve = Vec::new();
            for model in self.trajectory(probe) {
                let path = work.join(format!("{}.json", model.name));
                // Each checkpoint's count is kept, so that an interruption costs one of them.
                let accuracy: Accuracy = once(&path, || {
                    let decoder = self.student.load(&model.folder, key.name())?;
                    let answers = work.join(format!("{}.answers.jsonl", model.name));
                    examination.run(&decoder, &answers)
                })?;
                self.recorder.event(&Event::Accuracy {
                    stage: key.name().to_owned(),
                    model: model.name.clone(),
                    step: model.step,
                    accuracy: accuracy.clone(),
                });
                curve.push(StepAccuracy {
                    step: model.step.unwrap_or_default(),
                    accuracy,
                });
            }
            remove_parts(work)?;
            Ok(curve)
        })
    }

    fn answer_logp_stage(
        &self,
        corpus: &Done<CorpusSummary>,
        probe: &Done<TrainLog>,
    ) -> Result<Done<AnswerLogp>, PipelineError> {
        let how = self.scoring(Columns::default());
        let key = StageKey::new(
            "answer-logp",
            1,
            json!({
                "probe": probe.key,
                "corpus": corpus.key,
                "extract": self.plan.grader.extract,
                "batch_tokens": how.batch_tokens,
                "estimator": how.method(self.student.weighting()?),
            }),
        );
        self.stages.run(&key, |work| {
            let corpus = self.corpus()?;
            let mut positions = Vec::with_capacity(corpus.examples.len());
            for example in &corpus.examples {
                positions.push(answer_positions(example, &self.tokenizer, &self.grader)?);
            }
            let located = positions.iter().flatten().count() as u64;
            if located == 0 {
                for (positions, example) in positions.iter_mut().zip(&corpus.examples) {
                    *positions = Some(0..example.n_tokens());
                }
            }
            let objective = self.student.objective()?;
            let mut curve = Vec::new();
            for model in self.trajectory(probe) {
                let path = work.join(format!("{}.json", model.name));
                let value = once(&path, || {
                    let decoder = self.student.load(&model.folder, key.name())?;
                    let table = score(
                        &decoder,
                        objective.as_ref(),
                        &corpus.examples,
                        &how,
                        &mut self.token_progress(key.name(), &how)?,
                    )
                    .map_err(PipelineError::engine(key.name()))?;
                    Ok(mean_logp(&table, &positions))
                })?;
                curve.push(Point {
                    step: model.step.unwrap_or_default(),
                    value,
                });
            }
            remove_parts(work)?;
            Ok(AnswerLogp {
                curve,
                located,
                examples: corpus.examples.len() as u64,
            })
        })
    }
}

/// Removes the per-checkpoint results, which `output.json` is about to repeat.
fn remove_parts(work: &Path) -> Result<(), PipelineError> {
    let io = |e| PipelineError::io(work, "read", e);
    for entry in fs::read_dir(work).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|e| e == "json") {
            fs::remove_file(&path).map_err(|e| PipelineError::io(&path, "remove", e))?;
        }
    }
    Ok(())
}
