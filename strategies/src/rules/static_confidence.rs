//! Static confidence baselines: the most or least confident tokens leave the loss.

use serde::{Deserialize, Serialize};
use t3s_core::{
    ComponentError, Declaration, SelectContext, SelectionStrategy, SignalRef, TokenView, When,
    register_strategy, strategy::budget,
};

use super::{Competition, places, scopes};
use crate::Share;

/// Which end of the order leaves the loss.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Mask {
    /// The tokens with the highest signal.
    #[default]
    High,
    /// Those with the lowest.
    Low,
}

/// `[static-mask]` in docs/equations.md.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StaticConfidence {
    /// Which end leaves the loss.
    pub mask: Mask,
    /// Share of the response tokens that leaves it; exact to the token, rounded up.
    pub share: Share,
    /// Who competes with whom.
    pub scope: Competition,
    /// What tokens are ordered by.
    pub signal: String,
}

register_strategy!(
    "static-confidence",
    StaticConfidence,
    "without the share of tokens of highest or lowest confidence (mask, share, scope, signal)"
);

impl Default for StaticConfidence {
    fn default() -> Self {
        Self {
            mask: Mask::High,
            share: Share::try_from(0.2).expect("0.2 is a share"),
            scope: Competition::Global,
            signal: "logp@base".to_owned(),
        }
    }
}

impl SelectionStrategy for StaticConfidence {
    fn needs(&self) -> Vec<SignalRef> {
        vec![SignalRef::new(&self.signal)]
    }

    fn when(&self) -> When {
        When::Recorded
    }

    fn declare(&self) -> Declaration {
        let declaration = Declaration::new(self.scope.into()).removes(self.share.get());
        match self.mask {
            Mask::High => declaration.falling(&self.signal),
            Mask::Low => declaration.rising(&self.signal),
        }
    }

    fn select(
        &self,
        tokens: &TokenView<'_>,
        _cx: &SelectContext<'_>,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        let scores = tokens.numbers(&self.signal)?;
        let places = places(tokens);
        out.fill(0.0);
        for mut rows in scopes(tokens, self.scope) {
            // What leaves comes first; equals in the order of example and position. Adding 0 makes
            // one number of both zeros.
            rows.sort_unstable_by(|a, b| {
                let (low, high) = match self.mask {
                    Mask::High => (*b, *a),
                    Mask::Low => (*a, *b),
                };
                (scores[low] + 0.0)
                    .total_cmp(&(scores[high] + 0.0))
                    .then(places[*a].cmp(&places[*b]))
            });
            let removed = budget(self.share.get(), rows.len());
            for row in &rows[removed..] {
                out[*row] = 1.0;
            }
        }
        Ok(())
    }
}
