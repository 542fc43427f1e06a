//! How examples become the rows a model is trained on.

mod block_diffusion;
mod corruption;
mod masked_diffusion;
mod next_token;
mod weighting;

pub use block_diffusion::BlockDiffusion;
pub use corruption::{Corruption, LossWeight, RatioRange};
pub use masked_diffusion::MaskedDiffusion;
pub use next_token::NextToken;
pub use weighting::Weighting;

use crate::ComponentError;

/// A row of a [`ModelBatch`] that is trained on nothing.
pub const NO_TARGET: u32 = u32::MAX;

/// In [`ExampleBatch::noisy_ids`], every token of an example whose corruption the objective draws.
pub const DRAWN: u32 = u32::MAX;

/// Which tokens see which, inside one example. Examples never see each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
#[non_exhaustive]
pub enum AttentionPattern {
    /// A token sees itself and what is before it.
    Causal,
    /// A token sees every token.
    Bidirectional,
    /// Blocks of `block` tokens, counted from the example's start; a token sees its own block and
    /// every block before it. The last block may be shorter.
    BlockCausal {
        /// Tokens per block.
        block: u32,
    },
    /// An example of `n` tokens is `(views + 1) * n` rows: `views` corrupted copies, then the clean
    /// one. A row of a copy sees its own block in that copy and the clean blocks strictly before
    /// it; a clean row sees its own clean block and those before it.
    BlockDiffusion {
        /// Tokens per block.
        block: u32,
        /// Corrupted copies, at least 1.
        views: u32,
    },
}

impl AttentionPattern {
    /// How many rows the model reads for a token of an example.
    pub fn rows_per_token(self) -> usize {
        match self {
            Self::BlockDiffusion { views, .. } => views as usize + 1,
            _ => 1,
        }
    }
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
    /// `[tokens]`: what [`Objective::weighting`] says.
    pub weights: &'a [f32],
    /// `[tokens]`, or empty where no example has them: what is read in place of `ids` in an example
    /// whose corruption the data fixes; [`DRAWN`] throughout any other example.
    pub noisy_ids: &'a [u32],
}

impl ExampleBatch<'_> {
    /// Whether the data fixes the corruption of the example that begins at token `start`.
    pub fn is_fixed(&self, start: u32) -> bool {
        let first = self.noisy_ids.get(start as usize);
        first.is_some_and(|id| *id != DRAWN)
    }
}

/// Which corruption of the examples is meant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Draw {
    /// Of every random stream.
    pub seed: u64,
    /// How often the examples were corrupted before (an epoch), so that every time draws anew and a
    /// resumed run draws the same.
    pub number: u64,
    /// 0; or into how many equal parts the range of the mask ratio is cut, of which draw `number`
    /// takes the one with its number, so that `strata` draws cover the range evenly.
    pub strata: u64,
}

impl Draw {
    /// Corruption `number` of a run with this seed.
    pub fn new(seed: u64, number: u64) -> Self {
        let strata = 0;
        Self {
            seed,
            number,
            strata,
        }
    }
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

    /// Adds a row: its position, then what is read, its target and its weight.
    fn push(&mut self, position: u32, (id, target, weight): (u32, u32, f32)) {
        self.input_ids.push(id);
        self.positions.push(position);
        self.target_pos.push(target);
        self.weights.push(weight);
    }
}

/// Turns examples into rows: the family's corruption, alignment and weighting, as a pure function
/// of (tokens, weights, draw). No method has a default.
pub trait Objective: Send + Sync {
    /// Which tokens see which.
    fn attention(&self) -> AttentionPattern;

    /// What a token's weight means.
    fn weighting(&self) -> Weighting;

    /// Fills `out` from `batch`.
    ///
    /// # Errors
    /// When the batch cannot be corrupted, e.g. the mask token's id is part of the text.
    fn prepare(
        &self,
        batch: &ExampleBatch<'_>,
        draw: Draw,
        out: &mut ModelBatch,
    ) -> Result<(), ComponentError>;
}

#[cfg(test)]
mod tests;
