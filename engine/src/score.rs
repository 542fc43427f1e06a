//! Scoring: the teacher-forced statistics of every target token.

use std::{ops::ControlFlow, sync::Arc};

use t3s_core::{
    Example, ExampleBatch, ModelBatch, NO_TARGET, Objective, Observable, TokenTable, packing,
    plan::sections::Recompute, table::Sketch,
};

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

/// Scores every target of `examples` under `objective`: one row per target token, in the order of
/// the examples and of the positions in them. `position` counts from the example's start, prompt
/// included; the columns are `logp` and those asked for. `progress` hears the number of tokens done
/// after each pass of at most `batch_tokens` tokens and may break off.
///
/// # Errors
/// When a token is outside the vocabulary, the objective refuses the batch, the model produces a
/// number that is not finite, or `progress` breaks off ([`EngineError::Interrupted`]).
pub fn score(
    decoder: &Decoder,
    objective: &dyn Objective,
    examples: &[Example],
    columns: &Columns,
    batch_tokens: usize,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<TokenTable, EngineError> {
    let lengths: Vec<usize> = examples.iter().map(Example::n_tokens).collect();
    let mut table = Rows::default();
    let mut rows = ModelBatch::default();
    let mut done = 0;
    for pass in packing::pack(&lengths, batch_tokens, true) {
        let packed = PackedExamples::new(&examples[pass]);
        objective.prepare(&packed.as_batch(), 0, 0, &mut rows)?;
        let batch = batch_of(&rows, objective);
        let (hidden, _) =
            decoder.forward(&rows.input_ids, &batch, Recompute::None, Save::Nothing)?;
        let asked = head_rows(&rows, &packed.ids, |_| Some(0.0))?;
        let output = decoder.head_forward(&hidden, &asked, columns.sketch)?;
        table.add(&packed, &rows, &asked, output)?;
        done += packed.ids.len();
        if progress(done).is_break() {
            return Err(EngineError::Interrupted);
        }
    }
    table.finish(columns)
}

/// The columns of the table, as they grow.
#[derive(Default)]
struct Rows {
    example_ids: Vec<u64>,
    offsets: Vec<u32>,
    token_ids: Vec<u32>,
    positions: Vec<u32>,
    logp: Vec<f32>,
    entropy: Vec<f32>,
    rank: Vec<f32>,
    grad_norm: Vec<f32>,
    sketch: Vec<f32>,
}

impl Rows {
    fn add(
        &mut self,
        packed: &PackedExamples,
        rows: &ModelBatch,
        asked: &[HeadRow],
        output: crate::layers::head::HeadOutput,
    ) -> Result<(), EngineError> {
        // By target token, not by row: a family may predict tokens in another order.
        let mut by_token: Vec<(u32, usize)> = asked
            .iter()
            .enumerate()
            .map(|(index, asked)| (rows.target_pos[asked.row as usize], index))
            .collect();
        by_token.sort_unstable();
        let mut next = by_token.iter().peekable();
        for (example, tokens) in packed.example_ids.iter().zip(packed.offsets.windows(2)) {
            self.offsets.push(self.token_ids.len() as u32);
            self.example_ids.push(*example);
            while let Some((token, index)) = next.next_if(|(token, _)| *token < tokens[1]) {
                let position = token - tokens[0];
                if !output.logp[*index].is_finite() {
                    return Err(EngineError::NotFinite {
                        what: format!("log-probability of example {example}, position {position}"),
                    });
                }
                self.token_ids.push(asked[*index].target);
                self.positions.push(position);
                self.logp.push(output.logp[*index]);
                self.entropy.push(output.entropy[*index]);
                self.rank.push(output.rank[*index] as f32);
                self.grad_norm.push(output.grad_norm[*index]);
                if let Some(Sketch { width, values }) = &output.sketch {
                    self.sketch
                        .extend_from_slice(&values[index * width..][..*width]);
                }
            }
        }
        Ok(())
    }

    fn finish(mut self, columns: &Columns) -> Result<TokenTable, EngineError> {
        let n = self.token_ids.len();
        self.offsets.push(n as u32);
        let mut table = TokenTable::new(
            self.example_ids,
            self.offsets,
            self.token_ids,
            self.positions,
            vec![true; n],
        )?;
        table.insert(Observable::Logp.name(), self.logp)?;
        for (wanted, observable, values) in [
            (columns.entropy, Observable::Entropy, self.entropy),
            (columns.rank, Observable::Rank, self.rank),
            (columns.grad_norm, Observable::GradNorm, self.grad_norm),
        ] {
            if wanted {
                table.insert(observable.name(), values)?;
            }
        }
        if let Some(SketchSpec { width, .. }) = columns.sketch {
            let values = self.sketch;
            table.insert_sketch(Observable::Sketch.name(), Sketch { width, values })?;
        }
        Ok(table)
    }
}
