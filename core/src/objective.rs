//! How examples become the rows a model is trained on.

use crate::ComponentError;

/// A row of a [`ModelBatch`] that is trained on nothing.
pub const NO_TARGET: u32 = u32::MAX;

/// Which tokens see which, inside one example. Examples never see each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
#[non_exhaustive]
pub enum AttentionPattern {
    /// A token sees itself and what is before it.
    Causal,
}

/// Whole examples, concatenated: `offsets` is `[examples + 1]`, the other columns are `[tokens]`.
#[derive(Debug, Clone, Copy)]
pub struct ExampleBatch<'a> {
    /// `[examples]`: row number of each example in the data.
    pub example_ids: &'a [u64],
    /// `[examples + 1]`: tokens `offsets[e]..offsets[e + 1]` are example `e`'s.
    pub offsets: &'a [u32],
    /// `[tokens]`: the clean token ids.
    pub ids: &'a [u32],
    /// `[tokens]`: the mask; only these tokens may become targets.
    pub trainable: &'a [bool],
    /// `[tokens]`: in `[0, 1]`; the loss weight (autoregressive) or the chance of being always
    /// masked (diffusion).
    pub weights: &'a [f32],
}

/// What the model reads and what each row of logits is trained on.
///
/// `target_pos[row]` names the token of the [`ExampleBatch`] that the row predicts, or
/// [`NO_TARGET`]. Autoregressive: row `j - 1` predicts token `j`. Masked diffusion: row `j`
/// predicts token `j` where it is masked. So per-token signals join rows without anyone knowing the
/// family.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ModelBatch {
    /// `[rows]`: what the model reads.
    pub input_ids: Vec<u32>,
    /// `[rows]`: rotary positions.
    pub positions: Vec<u32>,
    /// `[examples + 1]`: rows of each example, isolated from one another.
    pub offsets: Vec<u32>,
    /// `[rows]`: index into the example batch's tokens, or [`NO_TARGET`].
    pub target_pos: Vec<u32>,
    /// `[rows]`: weight of the row's loss, `>= 0`; zero where there is no target.
    pub weights: Vec<f32>,
}

impl ModelBatch {
    /// Empties every column and keeps the memory.
    pub fn clear(&mut self) {
        self.input_ids.clear();
        self.positions.clear();
        self.offsets.clear();
        self.target_pos.clear();
        self.weights.clear();
    }
}

/// Turns examples into rows: the family's corruption, alignment and weighting, as a pure function
/// of (tokens, weights, seed, draw). No method has a default.
pub trait Objective: Send + Sync {
    /// Which tokens see which.
    fn attention(&self) -> AttentionPattern;

    /// Fills `out` from `batch`. `draw` counts how often the run has corrupted an example (its
    /// epoch), so that every epoch draws anew and a resumed run draws the same.
    ///
    /// # Errors
    /// When the batch cannot be corrupted, e.g. the mask token's id is part of the text.
    fn prepare(
        &self,
        batch: &ExampleBatch<'_>,
        seed: u64,
        draw: u64,
        out: &mut ModelBatch,
    ) -> Result<(), ComponentError>;
}

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
