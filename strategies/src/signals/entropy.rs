//! Uncertainty: the entropy of the prediction.

use serde::{Deserialize, Serialize};
use t3s_core::{
    ComponentError, ConfidenceSignal, Observable, ObservableRef, TokenView, register_signal,
};

use super::{At, copy};

/// `[entropy]` in docs/equations.md, nats.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Entropy {
    /// Where it is measured.
    pub at: At,
}

register_signal!(
    "entropy",
    Entropy,
    "entropy of the prediction at a checkpoint, nats (at)"
);

impl Default for Entropy {
    fn default() -> Self {
        Self { at: At::base() }
    }
}

impl Entropy {
    fn column(&self) -> ObservableRef {
        ObservableRef::new(Observable::Entropy, self.at.checkpoint())
    }
}

impl ConfidenceSignal for Entropy {
    fn needs(&self) -> Vec<ObservableRef> {
        vec![self.column()]
    }

    fn compute(&self, tokens: &TokenView<'_>, out: &mut [f32]) -> Result<(), ComponentError> {
        copy(tokens, &self.column().to_string(), out)
    }
}
