//! ProFit (arXiv 2601.09195): tokens that the model finds improbable leave the loss.

use serde::{Deserialize, Serialize};
use t3s_core::{
    ComponentError, Declaration, SelectContext, SelectionStrategy, SignalRef, TokenView, When,
    register_strategy,
};

use super::{keep, weigh};
use crate::{Share, current::Confidence};

/// `[profit]` in docs/equations.md.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProFit {
    /// Least probability of a token that stays.
    pub threshold: Share,
    /// The log-probability that weighs: `current` for the step under way, or a recorded signal.
    pub confidence: Confidence,
}

register_strategy!(
    "profit",
    ProFit,
    "only tokens that are probable enough under the current model (threshold, confidence)"
);

impl Default for ProFit {
    fn default() -> Self {
        Self {
            threshold: Share::try_from(0.1).expect("0.1 is a share"),
            confidence: Confidence::current(),
        }
    }
}

impl SelectionStrategy for ProFit {
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
        // In f64, as the option is.
        let bound = self.threshold.get().ln() as f32;
        weigh(tokens, out, |row| keep(logp[row] >= bound));
        Ok(())
    }
}
