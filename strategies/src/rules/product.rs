//! Several strategies' weights, multiplied.

use serde::{Deserialize, Serialize};
use t3s_core::register_strategy;

use super::combine::combinator;
use crate::inner::Inner;

/// `[combinators]` in docs/equations.md: the product of the weights.
#[derive(Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Product {
    /// The strategies, each a table with its name under `strategy` and its options beside it.
    pub of: Vec<Inner>,
}

register_strategy!(
    "product",
    Product,
    "the product of several strategies' weights (of)"
);

impl Default for Product {
    fn default() -> Self {
        Self {
            of: ["t3s", "static-confidence"].map(Inner::named).into(),
        }
    }
}

combinator!(Product, 1.0, |a, b| a * b);
