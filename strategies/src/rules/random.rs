//! The control: a random share of the tokens leaves the loss.

use serde::{Deserialize, Serialize};
use t3s_core::{
    ComponentError, Declaration, SelectContext, SelectionStrategy, SignalRef, TokenView, When,
    register_strategy,
};

use crate::{
    Share,
    ranking::{Competition, Weights, split},
};

/// Takes `budget(share, n)` of `n` response tokens out of the loss, each set equally likely. Which
/// ones depends on the seed, the example and the position, never on where a row stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Random {
    /// Share of the response tokens that leaves the loss; exact to the token, rounded up.
    pub share: Share,
    /// Who competes with whom.
    pub scope: Competition,
}

register_strategy!(
    "random",
    Random,
    "without a random share of tokens: the control (share, scope)"
);

impl Default for Random {
    fn default() -> Self {
        Self {
            share: Share::try_from(0.2).expect("0.2 is a share"),
            scope: Competition::Global,
        }
    }
}

impl SelectionStrategy for Random {
    fn needs(&self) -> Vec<SignalRef> {
        Vec::new()
    }

    fn when(&self) -> When {
        When::Recorded
    }

    fn declare(&self) -> Declaration {
        Declaration::new(self.scope.into()).removes(self.share.get())
    }

    fn select(
        &self,
        tokens: &TokenView<'_>,
        cx: &SelectContext<'_>,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        let rng = cx.rng("random-selection");
        let positions = tokens.positions();
        let key = |example, row: usize| rng.bits(example, u64::from(positions[row]));
        split(tokens, self.scope, self.share, key, Weights::DROP, out);
        Ok(())
    }
}
