//! What all of several strategies keep.

use serde::{Deserialize, Serialize};
use t3s_core::register_strategy;

use super::combine::combinator;
use crate::inner::Inner;

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

combinator!(Intersect, 1.0, f32::min);
