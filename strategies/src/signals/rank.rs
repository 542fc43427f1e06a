//! How many tokens the model likes better.

use serde::{Deserialize, Serialize};
use t3s_core::{
    ComponentError, ConfidenceSignal, Observable, ObservableRef, TokenView, register_signal,
};

use super::{At, copy};

/// `[rank]` in docs/equations.md: number of strictly larger logits, 0 for the arg max.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rank {
    /// Where it is measured.
    pub at: At,
}

register_signal!(
    "rank",
    Rank,
    "number of tokens with a strictly larger logit at a checkpoint (at)"
);

impl Default for Rank {
    fn default() -> Self {
        Self { at: At::base() }
    }
}

impl Rank {
    fn column(&self) -> ObservableRef {
        ObservableRef::new(Observable::Rank, self.at.checkpoint())
    }
}

impl ConfidenceSignal for Rank {
    fn needs(&self) -> Vec<ObservableRef> {
        vec![self.column()]
    }

    fn compute(&self, tokens: &TokenView<'_>, out: &mut [f32]) -> Result<(), ComponentError> {
        copy(tokens, &self.column().to_string(), out)
    }
}
