//! T3S (arXiv 2601.10348): tokens whose confidence rose by the bottleneck leave the loss.

use serde::{Deserialize, Serialize};
use t3s_core::{
    ComponentError, Declaration, SelectContext, SelectionStrategy, SignalRef, TokenView, When,
    register_strategy, strategy::Scope,
};

use super::weigh;

/// `[anchors]` in docs/equations.md: a token is in the loss unless its signal is above the
/// threshold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct T3s {
    /// What is compared with the threshold.
    pub signal: String,
    /// `tau`; a token at the threshold is no anchor and stays.
    pub threshold: f32,
}

register_strategy!(
    "t3s",
    T3s,
    "without imitation anchors: tokens whose signal is above a threshold (signal, threshold)"
);

impl Default for T3s {
    fn default() -> Self {
        Self {
            signal: super::delta_logp(),
            threshold: 0.0,
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
        Declaration::new(Scope::PerExample).falling(&self.signal)
    }

    fn select(
        &self,
        tokens: &TokenView<'_>,
        _cx: &SelectContext<'_>,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        let scores = tokens.numbers(&self.signal)?;
        weigh(tokens, out, |row| scores[row] <= self.threshold);
        Ok(())
    }
}
