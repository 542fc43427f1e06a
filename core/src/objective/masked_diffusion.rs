//! Masked diffusion with full attention (LLaDA, arXiv 2502.09992).

use super::{
    AttentionPattern, Corruption, Draw, ExampleBatch, ModelBatch, NO_TARGET, Objective, Weighting,
};
use crate::ComponentError;

/// Row `j` predicts token `j` where it is masked; every row sees every row of its example.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MaskedDiffusion {
    /// Which tokens are masked.
    pub corruption: Corruption,
    /// Examples whose last token is trainable are extended with copies of it (their end token) to a
    /// multiple of this many tokens; the copies are corrupted and supervised like response tokens.
    /// 1 extends nothing.
    pub pad_to_multiple_of: u32,
}

impl Objective for MaskedDiffusion {
    fn attention(&self) -> AttentionPattern {
        AttentionPattern::Bidirectional
    }

    fn weighting(&self) -> Weighting {
        Weighting::ForcedMask
    }

    fn prepare(
        &self,
        batch: &ExampleBatch<'_>,
        draw: Draw,
        out: &mut ModelBatch,
    ) -> Result<(), ComponentError> {
        self.corruption.check_text(batch)?;
        out.clear();
        out.offsets.push(0);
        for (tokens, example) in batch.offsets.windows(2).zip(batch.example_ids) {
            let draws = self
                .corruption
                .draws(batch, *example, tokens[0]..tokens[1], draw);
            let n = extended(batch, tokens[0]..tokens[1], self.pad_to_multiple_of);
            for position in 0..n {
                let token = (tokens[0] + position).min(tokens[1] - 1);
                let force = batch.weights[token as usize];
                let masked = draws.token(u64::from(position), force);
                let is_masked = batch.trainable[token as usize] && (masked.random || masked.forced);
                out.push(
                    position,
                    match is_masked {
                        true => (self.corruption.mask_id, token, draws.weight(force, false)),
                        false => (batch.ids[token as usize], NO_TARGET, 0.0),
                    },
                );
            }
            out.offsets.push(out.input_ids.len() as u32);
        }
        Ok(())
    }
}

/// The length of the example `tokens` once it is extended to a multiple of `multiple`.
pub(super) fn extended(
    batch: &ExampleBatch<'_>,
    tokens: std::ops::Range<u32>,
    multiple: u32,
) -> u32 {
    let n = tokens.end - tokens.start;
    let may = n > 0 && batch.trainable[tokens.end as usize - 1];
    match may {
        true => n.next_multiple_of(multiple.max(1)),
        false => n,
    }
}
