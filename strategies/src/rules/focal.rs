//! Focal weights (arXiv 1708.02002): easy tokens count less.

use serde::{Deserialize, Serialize};
use t3s_core::{
    ComponentError, Declaration, SelectContext, SelectionStrategy, SignalRef, TokenView, When,
    register_strategy,
};

use super::weigh;
use crate::current::Confidence;

/// `[focal]` in docs/equations.md; the weight is a constant to the gradient.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Focal {
    /// How much less; 0 weighs every token alike.
    pub gamma: Exponent,
    /// The log-probability that weighs: `current` for the step under way, or a recorded signal.
    pub confidence: Confidence,
}

/// An exponent: finite, not negative.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(try_from = "f32", into = "f32")]
#[schemars(with = "f32")]
pub struct Exponent(f32);

impl Exponent {
    /// The number.
    pub fn get(self) -> f32 {
        self.0
    }
}

impl From<Exponent> for f32 {
    fn from(exponent: Exponent) -> Self {
        exponent.0
    }
}

impl TryFrom<f32> for Exponent {
    type Error = String;

    fn try_from(exponent: f32) -> Result<Self, String> {
        if exponent >= 0.0 && exponent.is_finite() {
            Ok(Self(exponent))
        } else {
            Err(format!(
                "{exponent} is no exponent; write 0 or a number above it"
            ))
        }
    }
}

register_strategy!(
    "focal",
    Focal,
    "every token, weighed by how unlikely it is under the current model (gamma, confidence)"
);

impl Default for Focal {
    fn default() -> Self {
        Self {
            gamma: Exponent::try_from(2.0).expect("2 is an exponent"),
            confidence: Confidence::current(),
        }
    }
}

impl SelectionStrategy for Focal {
    fn needs(&self) -> Vec<SignalRef> {
        self.confidence.needs().collect()
    }

    fn when(&self) -> When {
        self.confidence.when()
    }

    fn declare(&self) -> Declaration {
        self.confidence.falling()
    }

    fn select(
        &self,
        tokens: &TokenView<'_>,
        cx: &SelectContext<'_>,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        let logp = self.confidence.read(tokens, cx)?;
        let gamma = self.gamma.get();
        // `-expm1` keeps its precision as the probability goes to 1.
        weigh(tokens, out, |row| {
            let improbable = (-logp[row].exp_m1()).clamp(0.0, 1.0);
            match gamma {
                2.0 => improbable * improbable,
                _ => improbable.powf(gamma),
            }
        });
        Ok(())
    }
}
