//! Plain supervised fine-tuning.

use serde::{Deserialize, Serialize};
use t3s_core::{
    ComponentError, Declaration, SelectContext, SelectionStrategy, SignalRef, TokenView, When,
    register_strategy, strategy::Scope,
};

use super::weigh;

/// Every response token is in the loss.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct All {}

register_strategy!("all", All, "every response token: plain fine-tuning");

impl SelectionStrategy for All {
    fn needs(&self) -> Vec<SignalRef> {
        Vec::new()
    }

    fn when(&self) -> When {
        When::Recorded
    }

    fn declare(&self) -> Declaration {
        Declaration::new(Scope::PerExample).keeps(1.0)
    }

    fn select(
        &self,
        tokens: &TokenView<'_>,
        _cx: &SelectContext<'_>,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        weigh(tokens, out, |_| 1.0);
        Ok(())
    }
}
