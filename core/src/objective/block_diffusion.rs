//! Block diffusion (arXiv 2503.09573) as LLaDA 2.0 is trained (arXiv 2512.15745).

use super::{
    AttentionPattern, Corruption, Draw, ExampleBatch, ModelBatch, NO_TARGET, Objective, Weighting,
    masked_diffusion::extended,
};
use crate::ComponentError;

/// Corrupted copies, then the clean example, positions restarting in each; a corrupted row `j`
/// predicts token `j` from its own block and the clean blocks before it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlockDiffusion {
    /// Which tokens are masked.
    pub corruption: Corruption,
    /// Tokens per block, counted from the example's start.
    pub block: u32,
    /// Two copies, of which the second masks what the random mask left; forced tokens are masked in
    /// both.
    pub complementary: bool,
    /// Examples whose last token is trainable are extended with copies of it (their end token) to
    /// whole blocks. Otherwise a last block may be shorter.
    pub pad_to_block: bool,
}

impl BlockDiffusion {
    /// Refuses options that make no sense.
    ///
    /// # Errors
    /// Names the option.
    pub fn check(&self) -> Result<(), ComponentError> {
        if self.block == 0 {
            return Err(ComponentError::option(
                "block",
                "0: a block has at least 1 token",
            ));
        }
        if self.complementary && self.corruption.ratio.high >= 1.0 {
            return Err(ComponentError::option(
                "complementary",
                "true with ratios up to 1: the second copy would mask nothing; lower ratio",
            ));
        }
        self.corruption.check()
    }
}

impl Objective for BlockDiffusion {
    fn attention(&self) -> AttentionPattern {
        AttentionPattern::BlockDiffusion {
            block: self.block,
            views: 1 + u32::from(self.complementary),
        }
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
        let multiple = match self.pad_to_block {
            true => self.block,
            false => 1,
        };
        let views: &[bool] = match self.complementary {
            true => &[false, true],
            false => &[false],
        };
        for (tokens, example) in batch.offsets.windows(2).zip(batch.example_ids) {
            let draws = self
                .corruption
                .draws(batch, *example, tokens[0]..tokens[1], draw);
            let n = extended(batch, tokens[0]..tokens[1], multiple);
            let token = |position: u32| (tokens[0] + position).min(tokens[1] - 1);
            for complement in views {
                for position in 0..n {
                    let token = token(position);
                    let force = batch.weights[token as usize];
                    let masked = draws.token(u64::from(position), force);
                    let is_masked = batch.trainable[token as usize]
                        && (masked.random != *complement || masked.forced);
                    out.push(
                        position,
                        match is_masked {
                            true => {
                                let weight = draws.weight(force, *complement);
                                (self.corruption.mask_id, token, weight)
                            }
                            false => (batch.ids[token as usize], NO_TARGET, 0.0),
                        },
                    );
                }
            }
            for position in 0..n {
                let id = batch.ids[token(position) as usize];
                out.push(position, (id, NO_TARGET, 0.0));
            }
            out.offsets.push(out.input_ids.len() as u32);
        }
        Ok(())
    }
}
