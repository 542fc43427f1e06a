//! The answers of one examination, problem by problem.

use std::{collections::BTreeMap, fs, path::Path};

use serde::Deserialize;

use crate::{error::PipelineError, evaluate::Accuracy, grader::Verdict, summary::Evaluation};

/// How a model did on each problem.
#[derive(Debug, Clone)]
pub(crate) struct Graded {
    /// The folder of the stage that examined the model, by name.
    pub(crate) stage: String,
    pub(crate) accuracy: Accuracy,
    /// The problems, with their gold answers.
    pub(crate) problems: Vec<(u64, String)>,
    /// `[problems]`: share of right answers.
    pub(crate) shares: Vec<f64>,
}

impl Graded {
    /// Reads the answers of `evaluation`.
    pub(crate) fn read(evaluation: &Evaluation) -> Result<Self, PipelineError> {
        #[derive(Deserialize)]
        struct Answer {
            id: u64,
            verdict: Verdict,
            gold: String,
        }
        let path = &evaluation.answers;
        let text = fs::read_to_string(path).map_err(|e| PipelineError::io(path, "read", e))?;
        let mut problems: BTreeMap<(u64, String), (u32, u32)> = BTreeMap::new();
        for line in text.lines() {
            let answer: Answer = serde_json::from_str(line)
                .map_err(|e| PipelineError::io(path, "read", e.into()))?;
            let (right, all) = problems.entry((answer.id, answer.gold)).or_default();
            *right += u32::from(answer.verdict == Verdict::Right);
            *all += 1;
        }
        let stage = path.parent().and_then(Path::file_name);
        Ok(Self {
            stage: stage.unwrap_or_default().to_string_lossy().into_owned(),
            accuracy: evaluation.accuracy.clone(),
            shares: problems
                .values()
                .map(|(right, all)| f64::from(*right) / f64::from(*all))
                .collect(),
            problems: problems.into_keys().collect(),
        })
    }

    /// `[problems]`: shares less those of `other`; `None` where the problems differ.
    pub(crate) fn less(&self, other: &Self) -> Option<Vec<f64>> {
        let pairs = self.shares.iter().zip(&other.shares);
        (self.problems == other.problems).then(|| pairs.map(|(a, b)| a - b).collect())
    }
}
