//! The reference model: scored like a checkpoint, or read from a store that lies there.

use serde_json::json;
use t3s_core::{CheckpointRef, Fingerprint, plan::StudentPlan};
use t3s_data::store;

use super::{
    Model, Run,
    stages::{ScoreStage, TOKENS},
};
use crate::{
    error::PipelineError,
    stage::{Done, StageKey},
    student::{Student, is_adapter},
    summary::CorpusSummary,
};

/// The stage's model, by name.
const NAME: &str = "reference";

impl Run<'_> {
    /// The columns of `[reference]`, where a signal reads them.
    pub(super) fn reference_stage(
        &self,
        corpus: &Done<CorpusSummary>,
    ) -> Result<Option<ScoreStage>, PipelineError> {
        let reference = CheckpointRef::Reference;
        let mut read = self.components.observables.iter();
        if !read.any(|column| column.at == reference) {
            return Ok(None);
        }
        let plan = &self.plan.reference;
        if !plan.store.as_os_str().is_empty() {
            return self.stored_reference(corpus).map(Some);
        }
        let path = &plan.path;
        let names = vec![reference];
        if is_adapter(path) {
            let model = Self::reference_model(path, self.student.weights(path)?);
            return self
                .score_stage(corpus, &self.student, &model, names)
                .map(Some);
        }
        let other = StudentPlan::new(path.clone());
        let other = Student::open(&other, &self.plan.device, self.registry)
            .map_err(|error| PipelineError::plan("reference.path", error.to_string()))?;
        let tokenizer = other.tokenizer(&self.plan.data)?;
        if tokenizer.fingerprint() != self.tokenizer.fingerprint() {
            return Err(PipelineError::plan(
                "reference.path",
                format!(
                    "{}: its tokenizer.json is not that of the student in {}, so the two do not \
                     speak of the same tokens",
                    path.display(),
                    self.student.path.display()
                ),
            ));
        }
        let model = Self::reference_model(path, other.weights(path)?);
        self.score_stage(corpus, &other, &model, names).map(Some)
    }

    fn reference_model(path: &std::path::Path, weights: Fingerprint) -> Model {
        Model {
            name: NAME.into(),
            step: None,
            folder: path.to_owned(),
            key: json!({ "weights": weights }),
        }
    }

    /// Takes a store over, so that the run folder stays complete by itself.
    fn stored_reference(&self, corpus: &Done<CorpusSummary>) -> Result<ScoreStage, PipelineError> {
        let path = &self.plan.reference.store;
        let file = Fingerprint::of_file(path).map_err(|e| PipelineError::io(path, "read", e))?;
        let key = StageKey::new(
            format!("score-{NAME}"),
            1,
            json!({ "store": file, "corpus": corpus.key }),
        );
        let scalars = self.stages.run(&key, |work| {
            let error = PipelineError::data(key.name());
            let (table, meta) = store::read_table(path).map_err(&error)?;
            if meta.hashes != corpus.output.hashes {
                return Err(PipelineError::plan(
                    "reference.store",
                    format!(
                        "{}: is of other data, or of another tokenizer, chat template or \
                         max_tokens; score this plan's data with the reference model, or name the \
                         model in reference.path",
                        path.display()
                    ),
                ));
            }
            store::write_table(&work.join(TOKENS), &table, &meta).map_err(&error)?;
            Ok(table.view().n_tokens() as u64)
        })?;
        Ok(ScoreStage {
            names: vec![CheckpointRef::Reference],
            scalars,
            sketches: None,
        })
    }
}
