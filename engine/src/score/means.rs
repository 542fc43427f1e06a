//! What the draws of a scoring pass come to: one row per token, each column its mean.

use t3s_core::{Example, ModelBatch, Observable, TokenTable, table::Sketch};

use super::Columns;
use crate::{
    error::EngineError,
    layers::head::{HeadOutput, HeadRow, SketchSpec},
};

/// A token that no draw has scored yet.
const UNSEEN: u32 = u32::MAX;

/// Sums of every token's columns over the rows that predicted it.
pub(super) struct Means<'e> {
    examples: &'e [Example],
    columns: Columns,
    /// `[examples]`: number of the example's first token.
    starts: Vec<usize>,
    /// `[tokens]`: where in `sums` the token stands, or [`UNSEEN`].
    slots: Vec<u32>,
    sums: Vec<Sum>,
    /// `[sums, width]`
    sketches: Vec<f64>,
}

#[derive(Clone, Copy, Default)]
struct Sum {
    rows: u32,
    logp: f64,
    entropy: f64,
    rank: f64,
    grad_norm: f64,
}

impl<'e> Means<'e> {
    pub(super) fn new(examples: &'e [Example], columns: Columns) -> Self {
        let mut tokens = 0;
        let starts = examples.iter().map(|example| {
            let start = tokens;
            tokens += example.n_tokens();
            start
        });
        Self {
            starts: starts.collect(),
            slots: vec![UNSEEN; tokens],
            examples,
            columns,
            sums: Vec::new(),
            sketches: Vec::new(),
        }
    }

    /// Adds the rows `asked` of a pass over the examples `pass` (indices, in the order of the pass).
    pub(super) fn add(
        &mut self,
        pass: &[usize],
        offsets: &[u32],
        rows: &ModelBatch,
        asked: &[HeadRow],
        output: &HeadOutput,
    ) -> Result<(), EngineError> {
        let width = self.columns.sketch.map_or(0, |sketch| sketch.width);
        for (index, asked) in asked.iter().enumerate() {
            // By target token, not by row: a family may predict tokens in another order.
            let target = rows.target_pos[asked.row as usize];
            let at = offsets.partition_point(|offset| *offset <= target) - 1;
            let (example, position) = (pass[at], (target - offsets[at]) as usize);
            if !output.logp[index].is_finite() {
                let id = self.examples[example].id;
                return Err(EngineError::NotFinite {
                    what: format!("log-probability of example {id}, position {position}"),
                });
            }
            let slot = &mut self.slots[self.starts[example] + position];
            if *slot == UNSEEN {
                *slot = self.sums.len() as u32;
                self.sums.push(Sum::default());
                self.sketches.resize(self.sums.len() * width, 0.0);
            }
            let slot = *slot as usize;
            let sum = &mut self.sums[slot];
            sum.rows += 1;
            sum.logp += f64::from(output.logp[index]);
            sum.entropy += f64::from(output.entropy[index]);
            sum.rank += f64::from(output.rank[index]);
            sum.grad_norm += f64::from(output.grad_norm[index]);
            if let Some(Sketch { width, values }) = &output.sketch {
                let sums = &mut self.sketches[slot * width..][..*width];
                for (sum, value) in sums.iter_mut().zip(&values[index * width..][..*width]) {
                    *sum += f64::from(*value);
                }
            }
        }
        Ok(())
    }

    /// Whether a row has predicted the token `position` of example number `example`.
    pub(super) fn has(&self, example: usize, position: usize) -> bool {
        self.slots[self.starts[example] + position] != UNSEEN
    }

    /// The means, in the order of the examples and of the positions in them.
    pub(super) fn finish(self) -> Result<TokenTable, EngineError> {
        let n = self.sums.len();
        let (mut offsets, mut ids, mut positions) = (vec![0], vec![], vec![]);
        let mut order = Vec::with_capacity(n);
        for (example, start) in self.examples.iter().zip(&self.starts) {
            for (position, id) in example.ids.iter().enumerate() {
                let slot = self.slots[start + position];
                if slot != UNSEEN {
                    order.push(slot as usize);
                    ids.push(*id);
                    positions.push(position as u32);
                }
            }
            offsets.push(order.len() as u32);
        }
        let example_ids = self.examples.iter().map(|example| example.id).collect();
        let mut table = TokenTable::new(example_ids, offsets, ids, positions, vec![true; n])?;
        let mut insert = |observable: Observable, value: fn(&Sum) -> f64| {
            let mean = |slot: &usize| {
                let sum = &self.sums[*slot];
                (value(sum) / f64::from(sum.rows)) as f32
            };
            table.insert(observable.name(), order.iter().map(mean).collect())
        };
        insert(Observable::Logp, |sum| sum.logp)?;
        if self.columns.entropy {
            insert(Observable::Entropy, |sum| sum.entropy)?;
        }
        if self.columns.rank {
            // A count stays one.
            insert(Observable::Rank, |sum| {
                (sum.rank / f64::from(sum.rows)).round() * f64::from(sum.rows)
            })?;
        }
        if self.columns.grad_norm {
            insert(Observable::GradNorm, |sum| sum.grad_norm)?;
        }
        if let Some(SketchSpec { width, .. }) = self.columns.sketch {
            let mut values = Vec::with_capacity(n * width);
            for slot in &order {
                let rows = f64::from(self.sums[*slot].rows);
                let sums = &self.sketches[slot * width..][..width];
                values.extend(sums.iter().map(|sum| (sum / rows) as f32));
            }
            table.insert_sketch(Observable::Sketch.name(), Sketch { width, values })?;
        }
        Ok(table)
    }
}
