//! T3S (arXiv 2601.10348): tokens whose confidence rose by the bottleneck leave the loss.

use serde::{Deserialize, Serialize};
use t3s_core::{
    ComponentError, Declaration, SelectContext, SelectionStrategy, SignalRef, TokenView, When,
    register_strategy,
};

use super::anchors::Anchors;
use crate::ranking::Weights;

/// `[anchors]` in docs/equations.md: a token is in the loss unless it is an anchor.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(transparent)]
pub struct T3s(pub Anchors);

register_strategy!(
    "t3s",
    T3s,
    "without imitation anchors: tokens whose signal is above a threshold (signal, threshold, \
     share, scope, sides)"
);

impl SelectionStrategy for T3s {
    fn needs(&self) -> Vec<SignalRef> {
        self.0.needs()
    }

    fn when(&self) -> When {
        When::Recorded
    }

    fn declare(&self) -> Declaration {
        self.0.declare()
    }

    fn select(
        &self,
        tokens: &TokenView<'_>,
        _cx: &SelectContext<'_>,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        self.0.weigh(tokens, Weights::DROP, out)
    }
}
