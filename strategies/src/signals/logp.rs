//! Confidence: the log-probability of the token.

use serde::{Deserialize, Serialize};
use t3s_core::{
    ComponentError, ConfidenceSignal, Observable, ObservableRef, TokenView, register_signal,
};

use super::{At, copy};

/// `[confidence]` in docs/equations.md: `log p(y_t | y_<t, x)`, nats.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Logp {
    /// Where it is measured.
    pub at: At,
}

register_signal!(
    "logp",
    Logp,
    "log-probability of the token at a checkpoint, nats (at)"
);

impl Default for Logp {
    fn default() -> Self {
        Self { at: At::base() }
    }
}

impl Logp {
    fn column(&self) -> ObservableRef {
        ObservableRef::new(Observable::Logp, self.at.checkpoint())
    }
}

impl ConfidenceSignal for Logp {
    fn needs(&self) -> Vec<ObservableRef> {
        vec![self.column()]
    }

    fn compute(&self, tokens: &TokenView<'_>, out: &mut [f32]) -> Result<(), ComponentError> {
        copy(tokens, &self.column().to_string(), out)
    }
}
