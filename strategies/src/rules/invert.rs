//! What a strategy leaves out.

use serde::{Deserialize, Serialize};
use t3s_core::{
    ComponentError, Declaration, SelectContext, SelectionStrategy, SignalRef, TokenView, When,
    register_strategy,
};

use crate::inner::Inner;

/// `[combinators]` in docs/equations.md: one less the weight.
#[derive(Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Invert {
    /// The strategy: a table with its name under `strategy` and its options beside it.
    pub of: Inner,
}

register_strategy!(
    "invert",
    Invert,
    "what a strategy leaves out: one less its weight (of)"
);

impl Default for Invert {
    fn default() -> Self {
        Self {
            of: Inner::named("t3s"),
        }
    }
}

impl SelectionStrategy for Invert {
    fn needs(&self) -> Vec<SignalRef> {
        self.of.get().needs()
    }

    fn when(&self) -> When {
        self.of.get().when()
    }

    fn declare(&self) -> Declaration {
        // Nothing of shares: between 0 and 1 a weight is kept both ways.
        let inner = self.of.get().declare();
        let mut declaration = Declaration::new(inner.scope);
        declaration.rising = inner.falling;
        declaration.falling = inner.rising;
        declaration
    }

    fn select(
        &self,
        tokens: &TokenView<'_>,
        cx: &SelectContext<'_>,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        self.of.get().select(tokens, cx, out)?;
        for (out, eligible) in out.iter_mut().zip(tokens.eligible()) {
            *out = if *eligible { 1.0 - *out } else { 0.0 };
        }
        Ok(())
    }
}
