//! Whether a token pulls where the imitation anchors pull.

use serde::{Deserialize, Serialize};
use t3s_core::{ComponentError, ConfidenceSignal, ObservableRef, TokenView, register_signal};

use super::{
    At,
    sketches::{self, Measure},
};

/// `[sketch-alignment]` in docs/equations.md with the mean over the anchors (`[anchors]`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AnchorAlignment {
    /// Where gradients are sketched.
    pub at: At,
    /// How a sketch is compared with the mean.
    pub measure: Measure,
    /// The earlier of the checkpoints between which anchors rise.
    pub from: At,
    /// The later one.
    pub to: At,
    /// `tau`: what rises by more is an anchor, nats.
    pub threshold: f32,
}

register_signal!(
    "anchor-alignment",
    AnchorAlignment,
    "agreement of the token's gradient sketch with the mean of the imitation anchors (at, measure, \
     from, to, threshold)"
);

impl Default for AnchorAlignment {
    fn default() -> Self {
        Self {
            at: At::base(),
            measure: Measure::Cosine,
            from: At::base(),
            to: At::bottleneck(),
            threshold: 0.0,
        }
    }
}

impl AnchorAlignment {
    fn confidences(&self) -> [ObservableRef; 2] {
        [&self.from, &self.to].map(|at| ObservableRef::logp(at.checkpoint()))
    }
}

impl ConfidenceSignal for AnchorAlignment {
    fn needs(&self) -> Vec<ObservableRef> {
        let [from, to] = self.confidences();
        vec![sketches::column(&self.at), from, to]
    }

    fn compute(&self, tokens: &TokenView<'_>, out: &mut [f32]) -> Result<(), ComponentError> {
        let [from, to] = self.confidences().map(|column| column.to_string());
        let (from, to) = (tokens.column(&from)?, tokens.column(&to)?);
        let sketch = sketches::read(tokens, &self.at)?;
        let anchor = |row: usize| to[row] - from[row] > self.threshold;
        sketches::align(tokens, &sketch, anchor, self.measure, out);
        Ok(())
    }
}
