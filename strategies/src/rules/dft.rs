//! DFT (arXiv 2508.05629): each token's loss is weighed by the token's own probability.

use serde::{Deserialize, Serialize};
use t3s_core::{
    ComponentError, Declaration, SelectContext, SelectionStrategy, SignalRef, TokenView, When,
    register_strategy,
};

use super::weigh;
use crate::current::Confidence;

/// `[dft]` in docs/equations.md; the weight is a constant to the gradient.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Dft {
    /// The log-probability that weighs: `current` for the step under way, or a recorded signal.
    pub confidence: Confidence,
}

register_strategy!(
    "dft",
    Dft,
    "every token, weighed by its probability under the current model (confidence)"
);

impl Default for Dft {
    fn default() -> Self {
        Self {
            confidence: Confidence::current(),
        }
    }
}

impl SelectionStrategy for Dft {
    fn needs(&self) -> Vec<SignalRef> {
        self.confidence.needs().collect()
    }

    fn when(&self) -> When {
        self.confidence.when()
    }

    fn declare(&self) -> Declaration {
        self.confidence.rising()
    }

    fn select(
        &self,
        tokens: &TokenView<'_>,
        cx: &SelectContext<'_>,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        let logp = self.confidence.read(tokens, cx)?;
        weigh(tokens, out, |row| logp[row].exp().min(1.0));
        Ok(())
    }
}
