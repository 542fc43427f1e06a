//! Scoring: the teacher-forced statistics of every target token.

mod means;

use std::{ops::ControlFlow, sync::Arc};

use t3s_core::{
    AttentionPattern, Draw, Example, ExampleBatch, ModelBatch, NO_TARGET, Objective, TokenTable,
    Weighting,
    objective::DRAWN,
    packing,
    plan::sections::{Estimator, Recompute, ScorePlan},
};

use means::Means;

use crate::{
    batch::Batch,
    decoder::Decoder,
    error::EngineError,
    layers::{
        Save,
        head::{HeadRow, SketchSpec},
    },
};

/// Which columns [`score`] records besides `logp`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Columns {
    /// `entropy`, nats.
    pub entropy: bool,
    /// `rank`: number of strictly larger logits.
    pub rank: bool,
    /// `grad_norm`: norm of the last layer's gradient.
    pub grad_norm: bool,
    /// `sketch`: its Johnson-Lindenstrauss sketch.
    pub sketch: Option<SketchSpec>,
}

impl Columns {
    /// Every scalar column.
    pub const SCALARS: Self = Self {
        entropy: true,
        rank: true,
        grad_norm: true,
        sketch: None,
    };
}

/// Examples, packed, as one pass reads them.
#[derive(Debug, Clone, Default)]
pub struct PackedExamples {
    /// `[examples]`: row number of each example in the data.
    pub example_ids: Vec<u64>,
    /// `[examples + 1]`: tokens of each example.
    pub offsets: Vec<u32>,
    /// `[tokens]`.
    pub ids: Vec<u32>,
    /// `[tokens]`: the mask.
    pub trainable: Vec<bool>,
    /// `[tokens]`.
    pub weights: Vec<f32>,
    /// `[tokens]`, or empty: what the model reads where the data fixes the corruption.
    pub noisy_ids: Vec<u32>,
}

impl PackedExamples {
    /// Concatenates `examples`.
    pub fn new<'e>(examples: impl IntoIterator<Item = &'e Example>) -> Self {
        let mut packed = Self {
            offsets: vec![0],
            ..Self::default()
        };
        for example in examples {
            packed.example_ids.push(example.id);
            packed.ids.extend_from_slice(&example.ids);
            packed.trainable.extend_from_slice(&example.trainable);
            packed.weights.extend_from_slice(&example.weights);
            let before = packed.ids.len() - example.ids.len();
            match &example.noisy_ids {
                Some(noisy) => {
                    packed.noisy_ids.resize(before, DRAWN);
                    packed.noisy_ids.extend_from_slice(noisy);
                }
                None if packed.noisy_ids.is_empty() => {}
                None => packed.noisy_ids.resize(packed.ids.len(), DRAWN),
            }
            packed.offsets.push(packed.ids.len() as u32);
        }
        packed
    }

    /// The columns, borrowed, as an objective reads them.
    pub fn as_batch(&self) -> ExampleBatch<'_> {
        ExampleBatch {
            example_ids: &self.example_ids,
            offsets: &self.offsets,
            ids: &self.ids,
            trainable: &self.trainable,
            weights: &self.weights,
            noisy_ids: &self.noisy_ids,
        }
    }
}

/// What the layers ask about `rows`.
pub fn batch_of(rows: &ModelBatch, objective: &dyn Objective) -> Batch {
    Batch {
        positions: Arc::new(rows.positions.clone()),
        offsets: Arc::new(rows.offsets.clone()),
        attention: objective.attention(),
    }
}

/// The rows of `rows` that have a target, with the coefficient `coefficient(row)`; `ids` are the
/// clean tokens that `target_pos` counts in. Rows for which it returns `None` are left out.
///
/// # Errors
/// When an objective names a target that does not exist.
pub fn head_rows(
    rows: &ModelBatch,
    ids: &[u32],
    mut coefficient: impl FnMut(usize) -> Option<f32>,
) -> Result<Vec<HeadRow>, EngineError> {
    let mut out = Vec::new();
    for (row, target) in rows.target_pos.iter().enumerate() {
        if *target == NO_TARGET {
            continue;
        }
        let target = *ids
            .get(*target as usize)
            .ok_or_else(|| EngineError::Batch {
                message: format!("row {row} predicts token {target} of {}", ids.len()),
            })?;
        if let Some(coefficient) = coefficient(row) {
            out.push(HeadRow {
                row: row as u32,
                target,
                coefficient,
            });
        }
    }
    Ok(out)
}

/// What a scoring pass is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scoring {
    /// What is recorded besides `logp`.
    pub columns: Columns,
    /// Most tokens per forward pass.
    pub batch_tokens: usize,
    /// How tokens are scored where the objective corrupts its input.
    pub estimator: Estimator,
    /// Corruptions of each example, for [`Estimator::Corruptions`].
    pub draws: u32,
    /// Of the corruptions; the same for checkpoints that are to be compared.
    pub seed: u64,
}

impl Scoring {
    /// As `plan` says.
    pub fn of(plan: &ScorePlan, columns: Columns, seed: u64) -> Self {
        Self {
            columns,
            batch_tokens: plan.batch_tokens,
            estimator: plan.estimator,
            draws: plan.draws,
            seed,
        }
    }

    /// How tokens are scored under an objective whose weights mean `weighting`, in words that differ
    /// where the numbers may: part of what a token store is made under.
    pub fn method(&self, weighting: Weighting) -> String {
        match (weighting, self.estimator) {
            (Weighting::Loss, _) => "exact".to_owned(),
            (Weighting::ForcedMask, Estimator::BlockCausal) => "block-causal".to_owned(),
            (Weighting::ForcedMask, Estimator::Corruptions) => {
                format!("corruptions, {} draws, seed {}", self.draws, self.seed)
            }
        }
    }
}

/// Scores every target of `examples` under `objective`: one row per target token, in the order of
/// the examples and of the positions in them. `position` counts from the example's start, prompt
/// included; the columns are `logp` and those asked for.
///
/// Where the objective corrupts its input, every trainable token is a target, and `how` says what is
/// averaged: a token that no draw masks is scored in one further draw that forces it. An example
/// whose corruption the data fixes is read once, and only what is masked there has a row.
///
/// `progress` hears the number of tokens read after each pass, of [`tokens_read`], and may break off.
///
/// # Errors
/// When a token is outside the vocabulary, the objective refuses the batch, the estimator does not
/// fit it, the model produces a number that is not finite, or `progress` breaks off
/// ([`EngineError::Interrupted`]).
pub fn score(
    decoder: &Decoder,
    objective: &dyn Objective,
    examples: &[Example],
    how: &Scoring,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<TokenTable, EngineError> {
    let weighting = objective.weighting();
    let mut pass = Scorer {
        decoder,
        objective,
        how,
        means: Means::new(examples, how.columns),
        done: 0,
        progress,
    };
    let all: Vec<usize> = (0..examples.len()).collect();
    match (weighting, how.estimator) {
        (Weighting::ForcedMask, Estimator::BlockCausal) => {
            if !matches!(
                objective.attention(),
                AttentionPattern::BlockDiffusion { .. }
            ) {
                return Err(EngineError::Batch {
                    message:
                        "score.estimator = \"block-causal\" scores a block given those before \
                              it, and this objective has no blocks; write corruptions"
                            .to_owned(),
                });
            }
            // With everything forced nothing is left to chance.
            pass.draw(examples, &all, Draw::new(how.seed, 0), |_, _| 1.0)?;
        }
        _ => {
            let draws = weighting.draws(how.draws);
            let strata = if draws > 1 { u64::from(draws) } else { 0 };
            let drawn: Vec<usize> = all
                .iter()
                .copied()
                .filter(|e| examples[*e].noisy_ids.is_none())
                .collect();
            for number in 0..u64::from(draws) {
                let draw = Draw {
                    strata,
                    ..Draw::new(how.seed, number)
                };
                let wanted = if number == 0 { &all } else { &drawn };
                pass.draw(examples, wanted, draw, |_, _| weighting.neutral())?;
            }
            if weighting == Weighting::ForcedMask {
                pass.force_the_unseen(examples, &drawn, draws)?;
            }
        }
    }
    pass.means.finish()
}

/// How many tokens [`score`] reads, as its `progress` counts them: each draw's.
pub fn tokens_read(examples: &[Example], how: &Scoring, weighting: Weighting) -> usize {
    let draws = match how.estimator {
        Estimator::Corruptions => weighting.draws(how.draws) as usize,
        Estimator::BlockCausal => 1,
    };
    let times = |example: &Example| match example.noisy_ids {
        Some(_) => 1,
        None => draws,
    };
    examples.iter().map(|e| e.n_tokens() * times(e)).sum()
}

/// A scoring pass under way.
struct Scorer<'s> {
    decoder: &'s Decoder,
    objective: &'s dyn Objective,
    how: &'s Scoring,
    means: Means<'s>,
    done: usize,
    progress: &'s mut dyn FnMut(usize) -> ControlFlow<()>,
}

impl Scorer<'_> {
    /// Reads the examples `wanted` (indices) as `draw` corrupts them, the weight of a token being
    /// `weight(example, position)`.
    fn draw(
        &mut self,
        examples: &[Example],
        wanted: &[usize],
        draw: Draw,
        weight: impl Fn(usize, usize) -> f32,
    ) -> Result<(), EngineError> {
        let lengths: Vec<usize> = wanted.iter().map(|e| examples[*e].n_tokens()).collect();
        let mut rows = ModelBatch::default();
        for range in packing::pack(&lengths, self.how.batch_tokens, true) {
            let pass = &wanted[range];
            let mut packed = PackedExamples::new(pass.iter().map(|e| &examples[*e]));
            let places = pass
                .iter()
                .flat_map(|e| (0..examples[*e].n_tokens()).map(|position| (*e, position)));
            for (slot, (example, position)) in packed.weights.iter_mut().zip(places) {
                *slot = weight(example, position);
            }
            self.objective
                .prepare(&packed.as_batch(), draw, &mut rows)?;
            let asked = head_rows(&rows, &packed.ids, |_| Some(0.0))?;
            if !asked.is_empty() {
                let batch = batch_of(&rows, self.objective);
                let (hidden, _) = self.decoder.forward(
                    &rows.input_ids,
                    &batch,
                    Recompute::None,
                    Save::Nothing,
                )?;
                let output = self
                    .decoder
                    .head_forward(&hidden, &asked, self.how.columns.sketch)?;
                self.means
                    .add(pass, &packed.offsets, &rows, &asked, &output)?;
            }
            self.done += packed.ids.len();
            if (self.progress)(self.done).is_break() {
                return Err(EngineError::Interrupted);
            }
        }
        Ok(())
    }

    /// Scores what none of the `draws` corruptions masked, in one more that masks it for certain.
    fn force_the_unseen(
        &mut self,
        examples: &[Example],
        drawn: &[usize],
        draws: u32,
    ) -> Result<(), EngineError> {
        let unseen = |e: usize, position: usize| {
            examples[e].trainable[position] && !self.means.has(e, position)
        };
        let forced: Vec<Vec<bool>> = examples
            .iter()
            .enumerate()
            .map(|(e, example)| (0..example.n_tokens()).map(|p| unseen(e, p)).collect())
            .collect();
        let wanted: Vec<usize> = drawn
            .iter()
            .copied()
            .filter(|e| forced[*e].iter().any(|force| *force))
            .collect();
        let draw = Draw::new(self.how.seed, u64::from(draws));
        self.draw(examples, &wanted, draw, |e, position| {
            f32::from(u8::from(forced[e][position]))
        })
    }
}
