//! Which tokens of an example are masked, and what a masked token's loss weighs.

use serde::{Deserialize, Serialize};

use super::{Draw, ExampleBatch};
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
/// `[masked-diffusion]` in docs/equations.md. A pure function of (tokens, weights, draw): what an
/// example draws does not depend on the examples beside it. Where the data fixes the corruption,
/// nothing is drawn, nothing is forced, and `t` is the share that is masked.
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
pub(super) struct ExampleDraws<'b> {
    ratio: f64,
    source: Source<'b>,
    loss_weight: LossWeight,
}

/// Where the mask of an example comes from.
enum Source<'b> {
    /// From its own streams.
    Random {
        example: u64,
        random: CounterRng,
        forced: CounterRng,
    },
    /// From the data: the ids of the corrupted example.
    Fixed { noisy_ids: &'b [u32], mask_id: u32 },
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

    /// The draws of the example `example`, the tokens `tokens` of `batch`.
    pub(super) fn draws<'b>(
        &self,
        batch: &ExampleBatch<'b>,
        example: u64,
        tokens: std::ops::Range<u32>,
        draw: Draw,
    ) -> ExampleDraws<'b> {
        let loss_weight = self.loss_weight;
        if batch.is_fixed(tokens.start) {
            let tokens = tokens.start as usize..tokens.end as usize;
            let noisy_ids = &batch.noisy_ids[tokens.clone()];
            let masked = noisy_ids.iter().filter(|id| **id == self.mask_id).count();
            let may = batch.trainable[tokens].iter().filter(|may| **may).count();
            return ExampleDraws {
                ratio: masked as f64 / may.max(1) as f64,
                source: Source::Fixed {
                    noisy_ids,
                    mask_id: self.mask_id,
                },
                loss_weight,
            };
        }
        let RatioRange { low, high } = self.ratio;
        let stream = |name: &str| CounterRng::new(draw.seed, &format!("{name}:{}", draw.number));
        let mut u = stream("mask-ratio").uniform(example, 0);
        if draw.strata > 0 {
            u = ((draw.number % draw.strata) as f64 + u) / draw.strata as f64;
        }
        ExampleDraws {
            ratio: low + (high - low) * u,
            source: Source::Random {
                example,
                random: stream("mask"),
                forced: stream("forced-mask"),
            },
            loss_weight,
        }
    }

    /// Refuses a batch whose text holds the mask token, or whose weights are no chances.
    pub(super) fn check_text(&self, batch: &ExampleBatch<'_>) -> Result<(), ComponentError> {
        let mask = self.mask_id;
        for (tokens, id) in batch.offsets.windows(2).zip(batch.example_ids) {
            let is_fixed = batch.is_fixed(tokens[0]);
            for token in tokens[0] as usize..tokens[1] as usize {
                let position = token - tokens[0] as usize;
                if batch.ids[token] == mask {
                    return Err(ComponentError::Failed(format!(
                        "example {id}, position {position}: the text holds the mask token's id \
                         {mask}; mask_id must be an id that no text uses"
                    )));
                }
                if is_fixed {
                    let noisy = batch.noisy_ids[token];
                    let may = batch.trainable[token] && noisy == mask;
                    if noisy != batch.ids[token] && !may {
                        let found = match noisy == mask {
                            true => "masks a token of the prompt".to_owned(),
                            false => format!(
                                "is {noisy}, neither the text's {} nor the mask token {mask}",
                                batch.ids[token]
                            ),
                        };
                        return Err(ComponentError::Failed(format!(
                            "example {id}, position {position}: noisy_ids {found}"
                        )));
                    }
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

impl ExampleDraws<'_> {
    /// Whether the trainable token at `position` is masked, given its chance of being forced.
    pub(super) fn token(&self, position: u64, force: f32) -> Masked {
        match &self.source {
            Source::Random {
                example,
                random,
                forced,
            } => Masked {
                random: random.uniform(*example, position) < self.ratio,
                forced: forced.uniform(*example, position) < f64::from(force),
            },
            Source::Fixed { noisy_ids, mask_id } => {
                // What an example is extended with shares the fate of its last token.
                let last = noisy_ids.len().saturating_sub(1);
                Masked {
                    random: noisy_ids[last.min(position as usize)] == *mask_id,
                    forced: false,
                }
            }
        }
    }

    /// The loss weight of a masked token; `complement` in the view that masks what the random mask
    /// leaves.
    pub(super) fn weight(&self, force: f32, complement: bool) -> f32 {
        let force = match self.source {
            Source::Random { .. } => f64::from(force),
            Source::Fixed { .. } => 0.0,
        };
        let ratio = match complement {
            false => self.ratio,
            true => 1.0 - self.ratio,
        };
        let weight = match self.loss_weight {
            LossWeight::One => 1.0,
            LossWeight::InverseRatio => 1.0 / ratio,
            LossWeight::Importance => 1.0 / (ratio + force * (1.0 - ratio)),
        };
        weight as f32
    }
}
