//! T3S (arXiv 2601.10348): tokens whose confidence rose by the bottleneck leave the loss.

use serde::{Deserialize, Serialize};
use t3s_core::{
    ComponentError, Declaration, SelectContext, SelectionStrategy, SignalRef, TokenView, When,
    register_strategy,
};

use super::anchors::{Anchors, Sides};
use crate::{
    Share,
    ranking::{Competition, Weights},
};

/// `[anchors]` in docs/equations.md: a token is in the loss unless it is an anchor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct T3s {
    /// What is compared with the threshold.
    pub signal: String,
    /// `tau`; a token at the threshold is no anchor and stays.
    pub threshold: f32,
    /// In place of the threshold: the share of the response tokens that are anchors, those with
    /// the largest signal; exact to the token, rounded up.
    pub share: Option<Share>,
    /// Who competes with whom for the share.
    pub scope: Competition,
    /// Whether a fall makes an anchor too; then the signal's absolute value counts.
    pub sides: Sides,
}

register_strategy!(
    "t3s",
    T3s,
    "without imitation anchors: tokens whose signal is above a threshold (signal, threshold, \
     share, scope, sides)"
);

impl Default for T3s {
    fn default() -> Self {
        Self {
            signal: super::delta_logp(),
            threshold: 0.0,
            share: None,
            scope: Competition::Global,
            sides: Sides::Above,
        }
    }
}

impl T3s {
    fn anchors(&self) -> Anchors<'_> {
        Anchors {
            signal: &self.signal,
            threshold: self.threshold,
            share: self.share,
            scope: self.scope,
            sides: self.sides,
        }
    }
}

impl SelectionStrategy for T3s {
    fn needs(&self) -> Vec<SignalRef> {
        vec![SignalRef::new(&self.signal)]
    }

    fn when(&self) -> When {
        When::Recorded
    }

    fn declare(&self) -> Declaration {
        self.anchors().declare()
    }

    fn select(
        &self,
        tokens: &TokenView<'_>,
        _cx: &SelectContext<'_>,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        self.anchors().weigh(tokens, Weights::DROP, out)
    }
}
