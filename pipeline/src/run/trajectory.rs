//! The confidence of some examples' tokens at every checkpoint of the probe: what the report draws,
//! whatever the strategy reads.

use serde::{Deserialize, Serialize};
use serde_json::json;
use t3s_core::{Example, Weighting};
use t3s_data::store;
use t3s_engine::{Columns, score};

use super::Run;
use crate::{
    error::PipelineError,
    stage::{Done, StageKey},
    summary::CorpusSummary,
    training::TrainLog,
};

/// The result of the stage `trajectory`. Beside it lies one token store with the column `logp` for
/// each step, [`Trajectory::store`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trajectory {
    /// Steps of the probe that were scored, ascending; 0 is the base.
    pub steps: Vec<u64>,
    /// Examples that were scored, evenly spread over the data.
    pub examples: u64,
    /// Their response tokens.
    pub tokens: u64,
}

impl Trajectory {
    /// File name of the token store of `step`.
    pub fn store(step: u64) -> String {
        format!("step-{step:06}.parquet")
    }
}

/// Indices of `wanted` of `n` things (all, if there are not as many), evenly spread from the first
/// on.
pub fn evenly(n: usize, wanted: usize) -> impl Iterator<Item = usize> {
    let wanted = wanted.min(n);
    (0..wanted).map(move |i| (i as u128 * n as u128 / wanted as u128) as usize)
}

impl Run<'_> {
    /// `None` where the plan asks for none.
    pub(super) fn trajectory_stage(
        &self,
        corpus: &Done<CorpusSummary>,
        probe: &Done<TrainLog>,
    ) -> Result<Option<Done<Trajectory>>, PipelineError> {
        let wanted = self.plan.score.trajectory_examples;
        // Estimated from many corruptions, a checkpoint costs as many passes.
        if wanted == 0 || self.student.weighting()? != Weighting::Loss {
            return Ok(None);
        }
        let how = self.scoring(Columns::default());
        let key = StageKey::new(
            "trajectory",
            1,
            json!({
                "probe": probe.key,
                "corpus": corpus.key,
                "examples": wanted,
                "batch_tokens": how.batch_tokens,
            }),
        );
        let done = self.stages.run(&key, |work| {
            let all = &self.corpus()?.examples;
            let examples: Vec<Example> = evenly(all.len(), wanted)
                .map(|index| all[index].clone())
                .collect();
            let objective = self.student.objective()?;
            let (mut steps, mut tokens) = (Vec::new(), 0);
            for model in self.trajectory(probe) {
                let step = model.step.unwrap_or_default();
                let path = work.join(Trajectory::store(step));
                // What an interrupted attempt has scored need not be scored again.
                let known = store::read_table(&path).ok();
                let table = match known {
                    Some((table, _)) => table,
                    None => {
                        let decoder = self.student.load(&model.folder, key.name())?;
                        let mut progress = |_| self.interrupt.flow();
                        let objective = objective.as_ref();
                        let table = score(&decoder, objective, &examples, &how, &mut progress)
                            .map_err(PipelineError::engine(key.name()))?;
                        store::write_table(&path, &table, &self.store_meta(&self.student, &model)?)
                            .map_err(PipelineError::data(key.name()))?;
                        table
                    }
                };
                tokens = table.view().n_tokens() as u64;
                steps.push(step);
            }
            Ok(Trajectory {
                steps,
                examples: examples.len() as u64,
                tokens,
            })
        })?;
        Ok(Some(done))
    }
}

#[cfg(test)]
mod tests {
    use super::evenly;

    #[test]
    fn a_spread_reaches_over_everything_and_never_repeats() {
        let spread = |n, wanted| evenly(n, wanted).collect::<Vec<_>>();
        assert_eq!(spread(10, 3), [0, 3, 6]);
        assert_eq!(spread(3, 10), [0, 1, 2]);
        assert_eq!(spread(0, 4), [0; 0]);
        assert_eq!(spread(5, 0), [0; 0]);
        let many = spread(1000, 64);
        assert_eq!(many.len(), 64);
        assert!(many.windows(2).all(|pair| pair[0] < pair[1]) && many[63] > 980);
    }
}
