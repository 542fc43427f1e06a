//! The diagnostic opposite of T3S: only imitation anchors.

use serde::{Deserialize, Serialize};
use t3s_core::{
    ComponentError, Declaration, SelectContext, SelectionStrategy, SignalRef, TokenView, When,
    register_strategy,
};

use super::anchors::Anchors;
use crate::ranking::Weights;

/// `[inverse]` in docs/equations.md: a token is in the loss when it is an anchor.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(transparent)]
pub struct InverseT3s(pub Anchors);

register_strategy!(
    "inverse-t3s",
    InverseT3s,
    "only imitation anchors: tokens whose signal is above a threshold (signal, threshold, \
     share, scope, sides)"
);

impl SelectionStrategy for InverseT3s {
    fn needs(&self) -> Vec<SignalRef> {
        self.0.needs()
    }

    fn when(&self) -> When {
        When::Recorded
    }

    fn declare(&self) -> Declaration {
        let mut declaration = self.0.declare();
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
        self.0.weigh(tokens, Weights::KEEP, out)
    }
}
