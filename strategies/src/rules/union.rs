//! What any of several strategies keeps.

use serde::{Deserialize, Serialize};
use t3s_core::{
    ComponentError, Declaration, SelectContext, SelectionStrategy, SignalRef, TokenView, When,
    register_strategy,
};

use super::combine;
use crate::inner::{Inner, needs, when};

/// `[combinators]` in docs/equations.md: the largest of the weights.
#[derive(Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Union {
    /// The strategies, each a table with its name under `strategy` and its options beside it.
    pub of: Vec<Inner>,
}

register_strategy!(
    "union",
    Union,
    "what any of several strategies keeps: the largest of their weights (of)"
);

impl Default for Union {
    fn default() -> Self {
        Self {
            of: ["t3s", "entropy"].map(Inner::named).into(),
        }
    }
}

impl SelectionStrategy for Union {
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
        combine::fold(&self.of, tokens, cx, 0.0, f32::max, out)
    }
}
