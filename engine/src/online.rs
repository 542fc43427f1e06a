//! Strategies that are asked in every step, with the log-probabilities of the step under way.

use std::collections::BTreeMap;

use t3s_core::{ModelBatch, SelectContext, SelectionStrategy, TokenTable, TokenWeights};

use crate::{
    error::EngineError,
    layers::head::{HeadOutput, HeadRow},
    score::PackedExamples,
};

/// A strategy, and the recorded columns that it reads besides.
///
/// It is asked once per pass, about the pass's targets: what it calls global is the pass. It sees
/// the log-probabilities that the loss is made of, and its weights multiply those of the data. No
/// gradient goes through them.
pub struct OnlineSelection {
    strategy: Box<dyn SelectionStrategy>,
    recorded: TokenTable,
    /// Of each example the positions, ascending, with their rows in `recorded`.
    rows: BTreeMap<u64, Vec<(u32, usize)>>,
    seed: u64,
}

impl OnlineSelection {
    /// `recorded` has a row for every token that may become a target, and the strategy's signals as
    /// columns; `seed` is that of the strategy's draws.
    pub fn new(strategy: Box<dyn SelectionStrategy>, recorded: TokenTable, seed: u64) -> Self {
        let view = recorded.view();
        let mut rows: BTreeMap<u64, Vec<(u32, usize)>> = BTreeMap::new();
        for (example, range) in view.examples() {
            let of_example = rows.entry(example).or_default();
            of_example.extend(range.map(|row| (view.positions()[row], row)));
            of_example.sort_unstable();
        }
        Self {
            strategy,
            recorded,
            rows,
            seed,
        }
    }

    /// The weight of each of `asked`, rows of a pass with their log-probabilities, in the optimiser
    /// step `step` (from 1).
    ///
    /// # Errors
    /// When a target has no recorded row, or the strategy fails or gives weights outside `[0, 1]`.
    pub(crate) fn weigh(
        &self,
        packed: &PackedExamples,
        rows: &ModelBatch,
        asked: &[HeadRow],
        output: &HeadOutput,
        step: u64,
    ) -> Result<Vec<f32>, EngineError> {
        // By target token, not by row: a family may predict tokens in another order.
        let mut targets: Vec<(u32, usize)> = asked
            .iter()
            .enumerate()
            .map(|(index, asked)| (rows.target_pos[asked.row as usize], index))
            .collect();
        targets.sort_unstable();
        let (mut offsets, mut positions, mut from) = (vec![0u32], Vec::new(), Vec::new());
        let mut next = targets.iter().peekable();
        for (example, tokens) in packed.example_ids.iter().zip(packed.offsets.windows(2)) {
            while let Some((token, _)) = next.next_if(|(token, _)| *token < tokens[1]) {
                let position = token - tokens[0];
                from.push(self.recorded_row(*example, position)?);
                positions.push(position);
            }
            offsets.push(positions.len() as u32);
        }
        let order = || targets.iter().map(|(_, index)| *index);
        let mut table = TokenTable::new(
            packed.example_ids.clone(),
            offsets,
            order().map(|index| asked[index].target).collect(),
            positions,
            vec![true; targets.len()],
        )?;
        let recorded = self.recorded.view();
        for name in recorded.column_names() {
            let values = recorded.column(name)?;
            table.insert(name, from.iter().map(|row| values[*row]).collect())?;
        }
        let logp: Vec<f32> = order().map(|index| output.logp[index]).collect();
        let view = table.view();
        let mut chosen = vec![f32::NAN; targets.len()];
        let cx = SelectContext::online(self.seed, step, &logp);
        self.strategy.select(&view, &cx, &mut chosen)?;
        let chosen = TokenWeights::new(&view, chosen)?;
        let mut weights = vec![0.0; asked.len()];
        for (index, weight) in order().zip(chosen.as_slice()) {
            weights[index] = *weight;
        }
        Ok(weights)
    }

    fn recorded_row(&self, example: u64, position: u32) -> Result<usize, EngineError> {
        let of_example = self.rows.get(&example).map_or(&[][..], Vec::as_slice);
        match of_example.binary_search_by_key(&position, |(p, _)| *p) {
            Ok(at) => Ok(of_example[at].1),
            Err(_) => Err(EngineError::Batch {
                message: format!(
                    "the selection has no row for example {example}, position {position}; it is of \
                     other data"
                ),
            }),
        }
    }
}
