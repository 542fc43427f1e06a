//! T3S for students that mask their input (arXiv 2601.10348): the tokens whose confidence fell by
//! more than `tau`.

use serde::{Deserialize, Serialize};
use t3s_core::{
    ComponentError, Declaration, SelectContext, SelectionStrategy, SignalRef, TokenView, When,
    register_strategy, strategy::Scope,
};

use super::{keep, weigh};

/// `[yet-to-learn]` in docs/equations.md: a token is selected where the signal is below `-tau`.
///
/// Under an objective whose weights force masks, these tokens are always masked, and the others are
/// left to the random mask.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct YetToLearn {
    /// What is compared with `-tau`.
    pub signal: String,
    /// How far the signal has to have fallen, nats for a log-probability.
    pub tau: f32,
}

register_strategy!(
    "yet-to-learn",
    YetToLearn,
    "only tokens whose signal fell by more than tau (signal, tau)"
);

impl Default for YetToLearn {
    fn default() -> Self {
        Self {
            signal: super::delta_logp(),
            tau: 0.2,
        }
    }
}

impl SelectionStrategy for YetToLearn {
    fn needs(&self) -> Vec<SignalRef> {
        vec![SignalRef::new(&self.signal)]
    }

    fn when(&self) -> When {
        When::Recorded
    }

    fn declare(&self) -> Declaration {
        Declaration::new(Scope::PerExample).falling(&self.signal)
    }

    fn select(
        &self,
        tokens: &TokenView<'_>,
        _cx: &SelectContext<'_>,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        let scores = tokens.numbers(&self.signal)?;
        weigh(tokens, out, |row| keep(scores[row] < -self.tau));
        Ok(())
    }
}
