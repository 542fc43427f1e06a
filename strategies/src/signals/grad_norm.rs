//! How hard a token pulls: the norm of its last-layer gradient.

use serde::{Deserialize, Serialize};
use t3s_core::{
    ComponentError, ConfidenceSignal, Observable, ObservableRef, TokenView, register_signal,
};

use super::{At, copy};

/// `[grad-norm]` in docs/equations.md.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GradNorm {
    /// Where it is measured.
    pub at: At,
}

register_signal!(
    "grad-norm",
    GradNorm,
    "norm of the last-layer gradient of the token at a checkpoint (at)"
);

impl Default for GradNorm {
    fn default() -> Self {
        Self { at: At::base() }
    }
}

impl GradNorm {
    fn column(&self) -> ObservableRef {
        ObservableRef::new(Observable::GradNorm, self.at.checkpoint())
    }
}

impl ConfidenceSignal for GradNorm {
    fn needs(&self) -> Vec<ObservableRef> {
        vec![self.column()]
    }

    fn compute(&self, tokens: &TokenView<'_>, out: &mut [f32]) -> Result<(), ComponentError> {
        copy(tokens, &self.column().to_string(), out)
    }
}
