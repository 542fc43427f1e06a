//! Confidence signals: one score per token, from recorded columns.

pub mod anchor_alignment;
pub mod delta_logp;
pub mod entropy;
pub mod grad_norm;
pub mod logp;
pub mod mean_alignment;
pub mod rank;
pub mod sketch_norm;
pub mod sketches;
mod trajectory;
pub mod trajectory_rise;
pub mod trajectory_slope;

use serde::{Deserialize, Serialize};
use t3s_core::{CheckpointRef, ComponentError, TokenView};

/// A checkpoint as an option: `base`, `bottleneck`, `final`, `step:N`, `reference`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct At(CheckpointRef);

impl At {
    /// The checkpoint.
    pub fn checkpoint(&self) -> CheckpointRef {
        self.0.clone()
    }

    fn base() -> Self {
        Self(CheckpointRef::Base)
    }

    fn bottleneck() -> Self {
        Self(CheckpointRef::Bottleneck)
    }
}

impl From<At> for String {
    fn from(at: At) -> Self {
        at.0.to_string()
    }
}

impl TryFrom<String> for At {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.parse() {
            Ok(CheckpointRef::EveryStep) => Err(
                "step:* names every checkpoint; write one: base, bottleneck, final, step:N"
                    .to_owned(),
            ),
            Ok(at) => Ok(Self(at)),
            Err(error) => Err(ComponentError::to_string(&error)),
        }
    }
}

/// Writes the column `name` into `out`.
fn copy(tokens: &TokenView<'_>, name: &str, out: &mut [f32]) -> Result<(), ComponentError> {
    out.copy_from_slice(tokens.column(name)?);
    Ok(())
}

#[cfg(test)]
mod tests;
