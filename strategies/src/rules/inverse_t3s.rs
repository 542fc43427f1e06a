//! The diagnostic opposite of T3S: only imitation anchors.

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

/// `[inverse]` in docs/equations.md: a token is in the loss when it is an anchor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct InverseT3s {
    /// What is compared with the threshold.
    pub signal: String,
    /// `tau`; a token at the threshold is no anchor and leaves.
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
    "inverse-t3s",
    InverseT3s,
    "only imitation anchors: tokens whose signal is above a threshold (signal, threshold, \
     share, scope, sides)"
);

impl Default for InverseT3s {
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

impl InverseT3s {
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

impl SelectionStrategy for InverseT3s {
    fn needs(&self) -> Vec<SignalRef> {
        vec![SignalRef::new(&self.signal)]
    }

    fn when(&self) -> When {
        When::Recorded
    }

    fn declare(&self) -> Declaration {
        let mut declaration = self.anchors().declare();
        std::mem::swap(&mut declaration.rising, &mut declaration.falling);
        std::mem::swap(&mut declaration.keeps, &mut declaration.removes);
        declaration
    }

    fn select(
        &self,
        tokens: &TokenView<'_>,
        _cx: &SelectContext<'_>,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        self.anchors().weigh(tokens, Weights::KEEP, out)
    }
}
