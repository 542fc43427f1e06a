//! The diagnostic opposite of T3S: only imitation anchors.

use serde::{Deserialize, Serialize};
use t3s_core::{
    ComponentError, Declaration, SelectContext, SelectionStrategy, SignalRef, TokenView, When,
    register_strategy, strategy::Scope,
};

use super::weigh;

/// `[inverse]` in docs/equations.md: a token is in the loss when its signal is above the threshold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct InverseT3s {
    /// What is compared with the threshold.
    pub signal: String,
    /// `tau`.
    pub threshold: f32,
}

register_strategy!(
    "inverse-t3s",
    InverseT3s,
    "only imitation anchors: tokens whose signal is above a threshold (signal, threshold)"
);

impl Default for InverseT3s {
    fn default() -> Self {
        Self {
            signal: super::delta_logp(),
            threshold: 0.0,
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
        Declaration::new(Scope::PerExample).rising(&self.signal)
    }

    fn select(
        &self,
        tokens: &TokenView<'_>,
        _cx: &SelectContext<'_>,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        let scores = tokens.numbers(&self.signal)?;
        weigh(tokens, out, |row| scores[row] > self.threshold);
        Ok(())
    }
}
