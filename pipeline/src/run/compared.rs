//! What the student is compared with: the probe's models, and sums of models.

use std::fs;

use serde_json::{Value, json};
use t3s_core::{
    CheckpointRef,
    plan::{MergeModel, MergePlan},
};

use super::{Model, Run, steps_of};
use crate::{
    bottleneck::Bottleneck,
    error::PipelineError,
    merge::{self, Term},
    stage::{Done, StageKey},
    summary::Role,
    training::TrainLog,
};

/// Where a stage that adds models keeps the sum.
const MERGED: &str = "model";

impl Run<'_> {
    /// What the student is compared with: whatever is selected, it is the same. Without a probe of
    /// its own that is the base.
    pub(super) fn compared(
        &self,
        probe: Option<&Done<TrainLog>>,
        bottleneck: &Bottleneck,
    ) -> Result<Vec<(Role, Model)>, PipelineError> {
        let mut models = vec![(Role::Base, self.base())];
        if let Some(probe) = probe {
            let last = self.checkpoint(probe, probe.output.steps);
            models.push((Role::Bottleneck, self.checkpoint(probe, bottleneck.step)));
            models.push((Role::ProbeFinal, last));
        }
        for (name, merge) in &self.plan.merge {
            if !merge.has_student() {
                let model = self.merge_stage(name, merge, probe, bottleneck, None)?;
                models.push((Role::Merged, model));
            }
        }
        Ok(models)
    }

    /// The student, and the sums that it is in.
    pub(super) fn compared_of(
        &self,
        student: &Model,
        probe: Option<&Done<TrainLog>>,
        bottleneck: &Bottleneck,
    ) -> Result<Vec<(Role, Model)>, PipelineError> {
        let mut models = vec![(Role::Student, student.clone())];
        for (name, merge) in &self.plan.merge {
            if merge.has_student() {
                let model = self.merge_stage(name, merge, probe, bottleneck, Some(student))?;
                models.push((Role::Merged, model));
            }
        }
        Ok(models)
    }

    /// The sum of models that `[merge]` calls `name`.
    fn merge_stage(
        &self,
        name: &str,
        plan: &MergePlan,
        probe: Option<&Done<TrainLog>>,
        bottleneck: &Bottleneck,
        student: Option<&Model>,
    ) -> Result<Model, PipelineError> {
        let models: Vec<(bool, Model)> = plan
            .terms
            .iter()
            .filter_map(|term| {
                // `core::plan` refuses what the run does not have before it starts.
                let model = match &term.model {
                    MergeModel::Student => student?.clone(),
                    MergeModel::At(CheckpointRef::Base) => self.base(),
                    MergeModel::At(at) => {
                        let probe = probe?;
                        let steps = steps_of(at, bottleneck.step, &probe.output.checkpoints);
                        self.checkpoint(probe, *steps.first()?)
                    }
                };
                Some((term.plus, model))
            })
            .collect();
        let inputs: Vec<Value> = models
            .iter()
            .map(|(plus, model)| json!({ "plus": plus, "model": model.key }))
            .collect();
        let key = StageKey::new(
            format!("merge-{name}"),
            1,
            json!({ "base": self.weights, "terms": inputs }),
        );
        let done = self.stages.run(&key, |work| {
            let out = work.join(MERGED);
            if out.exists() {
                // Whole, but from an attempt that was stopped before the stage was.
                fs::remove_dir_all(&out).map_err(|e| PipelineError::io(&out, "remove", e))?;
            }
            let terms: Vec<Term> = models
                .into_iter()
                .map(|(plus, model)| Term {
                    plus,
                    folder: model.folder,
                })
                .collect();
            let merged = merge::merge(&terms, &out).map_err(|source| PipelineError::Merge {
                name: name.to_owned(),
                source,
            })?;
            Ok(merged.weights)
        })?;
        Ok(Model {
            name: name.to_owned(),
            step: None,
            folder: done.folder.join(MERGED),
            key: json!({ "merge": done.key }),
        })
    }
}
