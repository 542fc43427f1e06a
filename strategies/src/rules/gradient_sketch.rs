//! Gradient sketches: tokens that pull against the mean, or with the anchors, leave the loss.

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

/// `[sketch-alignment]` in docs/equations.md orders the tokens; one end of the order leaves the loss.
///
/// The signal is `mean-alignment`, `anchor-alignment` or `sketch-norm`, or one of `[signals]`. How wide
/// sketches are and of which seed is a matter of the store: `score.sketch_width`, `score.sketch_seed`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GradientSketch {
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
    "gradient-sketch",
    GradientSketch,
    "without the share of tokens whose gradient sketches agree least or most with a direction (mask, share, scope, signal)"
);

impl Default for GradientSketch {
    fn default() -> Self {
        Self {
            mask: End::Low,
            share: Share::try_from(0.2).expect("0.2 is a share"),
            scope: Competition::Global,
            signal: "mean-alignment".to_owned(),
        }
    }
}

impl GradientSketch {
    fn ends(&self) -> Ends<'_> {
        Ends {
            signal: &self.signal,
            mask: self.mask,
            share: self.share,
            scope: self.scope,
        }
    }
}

impl SelectionStrategy for GradientSketch {
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
