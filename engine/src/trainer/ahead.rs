//! The next step's examples, packed, corrupted and aligned while the step under way computes.

use t3s_core::{Example, Objective, plan::TrainPlan};

use super::order::{Cursor, Order};
use crate::{
    accumulate::{Accumulation, Part, Prepared, prepare},
    error::EngineError,
};

/// What a step reads.
#[derive(Debug)]
pub(super) struct Ahead {
    /// Where in the data it begins.
    pub begins: Cursor,
    /// Where the step after it does.
    pub ends: Cursor,
    /// An error is that step's: it is said when its turn comes.
    pub prepared: Result<Prepared, EngineError>,
}

impl Ahead {
    /// The step that begins where `order` is, which moves on to the one after it.
    pub fn new(
        order: &mut Order,
        examples: &[Example],
        plan: &TrainPlan,
        objective: &dyn Objective,
        how: &Accumulation,
    ) -> Self {
        let begins = order.cursor();
        let batch = order.next_batch(examples, plan);
        let parts: Vec<Part<'_>> = batch
            .iter()
            .map(|(draw, indices)| Part {
                examples: indices.iter().map(|index| &examples[*index]).collect(),
                draw: *draw,
            })
            .collect();
        Self {
            begins,
            ends: order.cursor(),
            prepared: prepare(objective, &parts, how),
        }
    }
}
