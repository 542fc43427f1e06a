//! Gradient norm: the tokens that pull hardest, or least, leave the loss.

use serde::{Deserialize, Serialize};
use t3s_core::{
    ComponentError, Declaration, SelectContext, SelectionStrategy, SignalRef, TokenView, When,
    register_strategy,
};

use super::ends::Ends;
use crate::{
    Share,
    ranking::{Competition, End},
};

/// `[grad-norm]` in docs/equations.md orders the tokens; one end of the order leaves the loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GradientNorm {
    /// Which end leaves the loss.
    pub mask: End,
    /// Share of the response tokens that leaves it; exact to the token, rounded up.
    pub share: Share,
    /// Who competes with whom.
    pub scope: Competition,
    /// What tokens are ordered by.
    pub signal: String,
}

register_strategy!(
    "gradient-norm",
    GradientNorm,
    "without the share of tokens of largest or smallest last-layer gradient (mask, share, scope, signal)"
);

impl Default for GradientNorm {
    fn default() -> Self {
        Self {
            mask: End::High,
            share: Share::try_from(0.2).expect("0.2 is a share"),
            scope: Competition::Global,
            signal: "grad-norm@base".to_owned(),
        }
    }
}

impl GradientNorm {
    fn ends(&self) -> Ends<'_> {
        Ends {
            signal: &self.signal,
            mask: self.mask,
            share: self.share,
            scope: self.scope,
        }
    }
}

impl SelectionStrategy for GradientNorm {
    fn needs(&self) -> Vec<SignalRef> {
        vec![SignalRef::new(&self.signal)]
    }

    fn when(&self) -> When {
        When::Recorded
    }

    fn declare(&self) -> Declaration {
        self.ends().declare()
    }

    fn select(
        &self,
        tokens: &TokenView<'_>,
        _cx: &SelectContext<'_>,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        self.ends().remove(tokens, out)
    }
}
