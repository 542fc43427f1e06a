//! Whether a token pulls where the tokens pull together.

use serde::{Deserialize, Serialize};
use t3s_core::{ComponentError, ConfidenceSignal, ObservableRef, TokenView, register_signal};

use super::{
    At,
    sketches::{self, Measure},
};

/// `[sketch-alignment]` in docs/equations.md with the mean over all tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MeanAlignment {
    /// Where gradients are sketched.
    pub at: At,
    /// How a sketch is compared with the mean.
    pub measure: Measure,
}

register_signal!(
    "mean-alignment",
    MeanAlignment,
    "agreement of the token's gradient sketch with the mean of all (at, measure)"
);

impl Default for MeanAlignment {
    fn default() -> Self {
        Self {
            at: At::base(),
            measure: Measure::Cosine,
        }
    }
}

impl ConfidenceSignal for MeanAlignment {
    fn needs(&self) -> Vec<ObservableRef> {
        vec![sketches::column(&self.at)]
    }

    fn compute(&self, tokens: &TokenView<'_>, out: &mut [f32]) -> Result<(), ComponentError> {
        let sketch = sketches::read(tokens, &self.at)?;
        sketches::align(tokens, &sketch, |_| true, self.measure, out);
        Ok(())
    }
}
