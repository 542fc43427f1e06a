//! Autoregressive training.

use super::{AttentionPattern, ExampleBatch, ModelBatch, NO_TARGET, Objective};
use crate::ComponentError;

/// Next-token prediction: row `j - 1` predicts token `j` of the same example.
///
/// `[ar-loss]` in docs/equations.md. Nothing is corrupted, so `seed` and `draw` are not read.
#[derive(Debug, Clone, Copy, Default)]
pub struct NextToken;

impl Objective for NextToken {
    fn attention(&self) -> AttentionPattern {
        AttentionPattern::Causal
    }

    fn prepare(
        &self,
        batch: &ExampleBatch<'_>,
        _seed: u64,
        _draw: u64,
        out: &mut ModelBatch,
    ) -> Result<(), ComponentError> {
        out.clear();
        out.input_ids.extend_from_slice(batch.ids);
        out.offsets.extend_from_slice(batch.offsets);
        out.target_pos.resize(batch.ids.len(), NO_TARGET);
        out.weights.resize(batch.ids.len(), 0.0);
        for example in batch.offsets.windows(2) {
            let (start, end) = (example[0], example[1]);
            out.positions.extend(0..end - start);
            for target in start + 1..end {
                if batch.trainable[target as usize] {
                    out.target_pos[target as usize - 1] = target;
                    out.weights[target as usize - 1] = batch.weights[target as usize];
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_token_never_predicts_across_examples() -> Result<(), ComponentError> {
        let batch = ExampleBatch {
            example_ids: &[3, 9],
            offsets: &[0, 3, 5],
            ids: &[10, 11, 12, 20, 21],
            trainable: &[false, true, true, true, true],
            weights: &[1.0, 0.5, 1.0, 1.0, 0.25],
        };
        let mut out = ModelBatch::default();
        NextToken.prepare(&batch, 0, 0, &mut out)?;
        assert_eq!(out.input_ids, batch.ids);
        assert_eq!(out.positions, [0, 1, 2, 0, 1]);
        assert_eq!(out.target_pos, [1, 2, NO_TARGET, 4, NO_TARGET]);
        assert_eq!(out.weights, [0.5, 1.0, 0.0, 0.25, 0.0]);
        Ok(())
    }
}
