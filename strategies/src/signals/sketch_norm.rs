//! How hard a token pulls, by its sketch.

use serde::{Deserialize, Serialize};
use t3s_core::{ComponentError, ConfidenceSignal, ObservableRef, TokenView, register_signal};

use super::{At, sketches};

/// `|s_t|`, whose square is the square of `[grad-norm]` in docs/equations.md in expectation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SketchNorm {
    /// Where gradients are sketched.
    pub at: At,
}

register_signal!(
    "sketch-norm",
    SketchNorm,
    "norm of the token's gradient sketch at a checkpoint (at)"
);

impl Default for SketchNorm {
    fn default() -> Self {
        Self { at: At::base() }
    }
}

impl ConfidenceSignal for SketchNorm {
    fn needs(&self) -> Vec<ObservableRef> {
        vec![sketches::column(&self.at)]
    }

    fn compute(&self, tokens: &TokenView<'_>, out: &mut [f32]) -> Result<(), ComponentError> {
        let sketch = sketches::read(tokens, &self.at)?;
        sketches::norms(&sketch, out);
        Ok(())
    }
}
