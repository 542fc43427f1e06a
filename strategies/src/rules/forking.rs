//! Forking tokens (arXiv 2506.01939): only the most uncertain predictions stay in the loss.

use serde::{Deserialize, Serialize};
use t3s_core::{
    ComponentError, Declaration, SelectContext, SelectionStrategy, SignalRef, TokenView, When,
    register_strategy,
};

use crate::{
    Share,
    ranking::{Competition, End, Weights, split},
};

/// `[forking]` in docs/equations.md: the share of highest entropy stays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Forking {
    /// Share of the response tokens that stays in the loss; exact to the token, rounded up.
    pub keep: Share,
    /// Who competes with whom.
    pub scope: Competition,
    /// What tokens are ordered by.
    pub signal: String,
}

register_strategy!(
    "entropy",
    Forking,
    "only the share of tokens of highest entropy, the forking tokens (keep, scope, signal)"
);

impl Default for Forking {
    fn default() -> Self {
        Self {
            keep: Share::try_from(0.2).expect("0.2 is a share"),
            scope: Competition::Global,
            signal: "entropy@base".to_owned(),
        }
    }
}

impl SelectionStrategy for Forking {
    fn needs(&self) -> Vec<SignalRef> {
        vec![SignalRef::new(&self.signal)]
    }

    fn when(&self) -> When {
        When::Recorded
    }

    fn declare(&self) -> Declaration {
        Declaration::new(self.scope.into())
            .keeps(self.keep.get())
            .rising(&self.signal)
    }

    fn select(
        &self,
        tokens: &TokenView<'_>,
        _cx: &SelectContext<'_>,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        let scores = tokens.numbers(&self.signal)?;
        let key = |_, row: usize| End::High.key(scores[row]);
        split(tokens, self.scope, self.keep, key, Weights::KEEP, out);
        Ok(())
    }
}
