//! The control: as much of each example as a strategy keeps, elsewhere.

use serde::{Deserialize, Serialize};
use t3s_core::{
    ComponentError, Declaration, SelectContext, SelectionStrategy, SignalRef, TokenView, When,
    register_strategy,
};

use crate::{
    inner::Inner,
    ranking::{Weights, split_example},
};

/// `[shuffled]` in docs/equations.md: the weights of each example, dealt out to its tokens anew.
/// Where to depends on the seed, the example and the position, never on where a row stands.
#[derive(Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Shuffled {
    /// The strategy: a table with its name under `strategy` and its options beside it.
    pub of: Inner,
}

register_strategy!(
    "shuffled",
    Shuffled,
    "a strategy's weights, shuffled within each example: its control (of)"
);

impl Default for Shuffled {
    fn default() -> Self {
        Self {
            of: Inner::named("t3s"),
        }
    }
}

impl SelectionStrategy for Shuffled {
    fn needs(&self) -> Vec<SignalRef> {
        self.of.get().needs()
    }

    fn when(&self) -> When {
        self.of.get().when()
    }

    fn declare(&self) -> Declaration {
        let mut declaration = self.of.get().declare();
        declaration.rising.clear();
        declaration.falling.clear();
        declaration
    }

    fn select(
        &self,
        tokens: &TokenView<'_>,
        cx: &SelectContext<'_>,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        self.of.get().select(tokens, cx, out)?;
        let rng = cx.rng("shuffled-mask");
        let positions = tokens.positions();
        let bits = |example, row: usize| rng.bits(example, u64::from(positions[row]));
        let mut order = Vec::new();
        for (example, rows) in tokens.examples() {
            let eligible = rows.clone().filter(|row| tokens.eligible()[*row]);
            if let Some((weights, count)) = two_weights(eligible.clone().map(|row| out[row])) {
                // The usual case, in linear time.
                split_example(tokens, (example, rows), count, bits, weights, out);
                continue;
            }
            order.clear();
            order.extend(eligible.map(|row| (positions[row], row, out[row])));
            order.sort_unstable_by_key(|(position, ..)| *position);
            let dealt: Vec<f32> = order.iter().map(|(.., weight)| *weight).collect();
            order.sort_unstable_by_key(|(position, row, _)| (bits(example, *row), *position));
            for ((_, row, _), weight) in order.iter().zip(dealt) {
                out[*row] = weight;
            }
        }
        Ok(())
    }
}

/// The weights, where there are at most two, and how many tokens have the first.
fn two_weights(all: impl Iterator<Item = f32> + Clone) -> Option<(Weights, usize)> {
    let share = all.clone().next()?;
    let rest = all.clone().find(|w| *w != share).unwrap_or(share);
    // Sums rather than branches, of which a mask would have half foretold wrongly.
    let (mut of_share, mut others) = (0, 0);
    for weight in all {
        of_share += usize::from(weight == share);
        others += usize::from(weight != share && weight != rest);
    }
    (others == 0).then_some((Weights { share, rest }, of_share))
}
