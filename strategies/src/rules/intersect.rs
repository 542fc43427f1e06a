//! What all of several strategies keep.

use serde::{Deserialize, Serialize};
use t3s_core::{
    ComponentError, Declaration, SelectContext, SelectionStrategy, SignalRef, TokenView, When,
    register_strategy,
};

use super::combine;
use crate::inner::{Inner, needs, when};

/// `[combinators]` in docs/equations.md: the smallest of the weights.
#[derive(Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Intersect {
    /// The strategies, each a table with its name under `strategy` and its options beside it.
    pub of: Vec<Inner>,
}

register_strategy!(
    "intersect",
    Intersect,
    "what all of several strategies keep: the smallest of their weights (of)"
);

impl Default for Intersect {
    fn default() -> Self {
        Self {
            of: ["t3s", "static-confidence"].map(Inner::named).into(),
        }
    }
}

impl SelectionStrategy for Intersect {
    fn needs(&self) -> Vec<SignalRef> {
        needs(&self.of)
    }

    fn when(&self) -> When {
        when(&self.of)
    }

    fn declare(&self) -> Declaration {
        combine::declare(&self.of)
    }

    fn select(
        &self,
        tokens: &TokenView<'_>,
        cx: &SelectContext<'_>,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        combine::fold(&self.of, tokens, cx, 1.0, f32::min, out)
    }
}
