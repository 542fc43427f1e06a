//! Which tokens of an example are masked, and what a masked token's loss weighs.

use serde::{Deserialize, Serialize};

use super::ExampleBatch;
use crate::{ComponentError, CounterRng};

/// The range of the mask ratio `t`, uniform, drawn once per example.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RatioRange {
    /// Smallest ratio, above 0.
    pub low: f64,
    /// Largest ratio, at most 1.
    pub high: f64,
}

/// What the loss of a masked token is multiplied by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossWeight {
    /// 1: with the normaliser `kept-tokens`, the mean over masked tokens.
    One,
    /// `1 / t`, the bound on the likelihood (LLaDA); divide by all response tokens. A token that is
    /// always masked counts `1 / t` times too much.
    InverseRatio,
    /// `1 / P(masked)`, where `P = t + f (1 - t)` for a token forced with chance `f`: every token
    /// counts once in the mean over draws, forced or not.
    Importance,
}

/// Replaces tokens by the mask token: each trainable token with chance `t`, united with those that
/// the weights of the batch force.
///
/// `[masked-diffusion]` in docs/equations.md. A pure function of (tokens, weights, seed, draw): what
/// an example draws does not depend on the examples beside it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Corruption {
    /// The id that stands for a masked token; never part of the text.
    pub mask_id: u32,
    /// Where `t` is drawn from.
    pub ratio: RatioRange,
    /// What a masked token's loss is multiplied by.
    pub loss_weight: LossWeight,
}

/// The draws of one example.
pub(super) struct ExampleDraws {
    example: u64,
    ratio: f64,
    random: CounterRng,
    forced: CounterRng,
    loss_weight: LossWeight,
}

/// Whether a token is masked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Masked {
    /// In the random mask.
    pub random: bool,
    /// Always masked.
    pub forced: bool,
}

impl Corruption {
    /// Refuses ranges that are none.
    ///
    /// # Errors
    /// Names the option.
    pub fn check(&self) -> Result<(), ComponentError> {
        let RatioRange { low, high } = self.ratio;
        if low > 0.0 && low <= high && high <= 1.0 {
            return Ok(());
        }
        Err(ComponentError::option(
            "ratio",
            format!("[{low}, {high}]: write two numbers, 0 < low <= high <= 1"),
        ))
    }

    /// The draws of example `example`, of which this is corruption number `draw`.
    pub(super) fn draws(&self, example: u64, seed: u64, draw: u64) -> ExampleDraws {
        let RatioRange { low, high } = self.ratio;
        let stream = |name: &str| CounterRng::new(seed, &format!("{name}:{draw}"));
        let u = stream("mask-ratio").uniform(example, 0);
        ExampleDraws {
            example,
            ratio: low + (high - low) * u,
            random: stream("mask"),
            forced: stream("forced-mask"),
            loss_weight: self.loss_weight,
        }
    }

    /// Refuses a batch whose text holds the mask token, or whose weights are no chances.
    pub(super) fn check_text(&self, batch: &ExampleBatch<'_>) -> Result<(), ComponentError> {
        let mask = self.mask_id;
        for (tokens, id) in batch.offsets.windows(2).zip(batch.example_ids) {
            for token in tokens[0] as usize..tokens[1] as usize {
                let position = token - tokens[0] as usize;
                if batch.ids[token] == mask {
                    return Err(ComponentError::Failed(format!(
                        "example {id}, position {position}: the text holds the mask token's id \
                         {mask}; mask_id must be an id that no text uses"
                    )));
                }
                let weight = batch.weights[token];
                if batch.trainable[token] && !(0.0..=1.0).contains(&weight) {
                    return Err(ComponentError::Failed(format!(
                        "example {id}, position {position}: weight {weight}; here a weight is the \
                         chance of being always masked, in [0, 1]"
                    )));
                }
            }
        }
        Ok(())
    }
}

impl ExampleDraws {
    /// Whether the trainable token at `position` is masked, given its chance of being forced.
    pub(super) fn token(&self, position: u64, force: f32) -> Masked {
        Masked {
            random: self.random.uniform(self.example, position) < self.ratio,
            forced: self.forced.uniform(self.example, position) < f64::from(force),
        }
    }

    /// The loss weight of a masked token; `complement` in the view that masks what the random mask
    /// leaves.
    pub(super) fn weight(&self, force: f32, complement: bool) -> f32 {
        let ratio = match complement {
            false => self.ratio,
            true => 1.0 - self.ratio,
        };
        let weight = match self.loss_weight {
            LossWeight::One => 1.0,
            LossWeight::InverseRatio => 1.0 / ratio,
            LossWeight::Importance => 1.0 / (ratio + f64::from(force) * (1.0 - ratio)),
        };
        weight as f32
    }
}
