//! Plain supervised fine-tuning: `[train]` on every response token, without probe and selection.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::json;
use t3s_core::{plan::RunPlan, registry::Registry};

use super::{Model, Run, stages::train_key};
use crate::{
    error::PipelineError,
    events::Observer,
    interrupt::Interrupt,
    stage::{StageKey, write_json},
    summary::{CorpusSummary, Evaluation, Role},
    training::{TrainLog, Training, checkpoint_folder},
};

/// What plain fine-tuning came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SftSummary {
    /// The plan's name.
    pub name: String,
    /// What was learnt from.
    pub corpus: CorpusSummary,
    /// The training run.
    pub train: TrainLog,
    /// Base and trained model on `[eval]`; empty where no problem has a gold answer.
    pub evaluation: Vec<Evaluation>,
    /// The trained model.
    pub student: std::path::PathBuf,
}

/// Trains the student of `plan` as `[train]` says on every response token of `[data]`, and examines
/// it as `[eval]` says. Stages are kept in the run folder as those of [`run`](super::run).
///
/// # Errors
/// As [`run`](super::run).
pub fn train(
    plan: &RunPlan,
    registry: &Registry,
    observer: &dyn Observer,
    interrupt: &Interrupt,
) -> Result<SftSummary, PipelineError> {
    super::in_folder(plan, registry, observer, interrupt, |run, folder, _| {
        let summary = run.sft()?;
        folder.link("student", &summary.student);
        write_json(&folder.path().join("sft.json"), &summary)?;
        Ok(summary)
    })
}

impl Run<'_> {
    fn sft(&self) -> Result<SftSummary, PipelineError> {
        let corpus = self.corpus_stage()?;
        let plan = &self.plan.train;
        let key = StageKey::new(
            "sft",
            2,
            json!({
                "student": self.weights,
                "family": self.family(),
                "corpus": corpus.key,
                "training": train_key(plan),
                "seed": self.plan.seed,
            }),
        );
        let train = self.stages.run(&key, |work| {
            let training = Training {
                stage: "sft",
                student: &self.student,
                examples: Arc::new(self.corpus()?.examples.clone()),
                online: None,
                plan,
                seed: self.plan.seed,
                checkpoint_every: 0,
                start: None,
                watch: None,
                recorder: self.recorder,
                interrupt: self.interrupt,
            };
            training.run(work)
        })?;
        let trained = Model {
            name: "student".into(),
            step: None,
            folder: checkpoint_folder(&train.folder, train.output.steps),
            key: json!({ "run": train.key, "step": train.output.steps }),
        };
        let models = [(Role::Base, self.base()), (Role::Student, trained.clone())];
        let evaluation = self.evaluate_models(&corpus, models)?;
        Ok(SftSummary {
            name: self.plan.name.clone(),
            corpus: corpus.output,
            train: train.output,
            evaluation,
            student: trained.folder,
        })
    }
}
