//! What any of several strategies keeps.

use serde::{Deserialize, Serialize};
use t3s_core::register_strategy;

use super::combine::combinator;
use crate::inner::Inner;

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

combinator!(Union, 0.0, f32::max);
