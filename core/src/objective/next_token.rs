//! Autoregressive training.

use super::{AttentionPattern, Draw, ExampleBatch, ModelBatch, NO_TARGET, Objective, Weighting};
use crate::ComponentError;

/// Next-token prediction: row `j - 1` predicts token `j` of the same example.
///
/// `[ar-loss]` in docs/equations.md. Nothing is corrupted, so `draw` is not read.
#[derive(Debug, Clone, Copy, Default)]
pub struct NextToken;

impl Objective for NextToken {
    fn attention(&self) -> AttentionPattern {
        AttentionPattern::Causal
    }

    fn weighting(&self) -> Weighting {
        Weighting::Loss
    }

    fn prepare(
        &self,
        batch: &ExampleBatch<'_>,
        _draw: Draw,
        out: &mut ModelBatch,
    ) -> Result<(), ComponentError> {
        for (start, id) in batch.offsets.iter().zip(batch.example_ids) {
            if batch.is_fixed(*start) {
                return Err(ComponentError::Failed(format!(
                    "example {id} has noisy_ids, but next-token prediction corrupts nothing; remove \
                     the field, or train a family that masks its input"
                )));
            }
        }
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
    use crate::objective::DRAWN;

    #[test]
    fn next_token_never_predicts_across_examples() -> Result<(), ComponentError> {
        let batch = ExampleBatch {
            example_ids: &[3, 9],
            offsets: &[0, 3, 5],
            ids: &[10, 11, 12, 20, 21],
            trainable: &[false, true, true, true, true],
            weights: &[1.0, 0.5, 1.0, 1.0, 0.25],
            noisy_ids: &[],
        };
        let mut out = ModelBatch::default();
        NextToken.prepare(&batch, Draw::default(), &mut out)?;
        assert_eq!(out.input_ids, batch.ids);
        assert_eq!(out.positions, [0, 1, 2, 0, 1]);
        assert_eq!(out.target_pos, [1, 2, NO_TARGET, 4, NO_TARGET]);
        assert_eq!(out.weights, [0.5, 1.0, 0.0, 0.25, 0.0]);
        let corrupted = ExampleBatch {
            noisy_ids: &[DRAWN, DRAWN, DRAWN, 20, 7],
            ..batch
        };
        let refused = NextToken.prepare(&corrupted, Draw::default(), &mut out);
        let message = refused.expect_err("noisy ids").to_string();
        assert!(message.contains("example 9"), "{message}");
        Ok(())
    }
}
