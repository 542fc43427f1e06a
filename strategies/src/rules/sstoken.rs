//! The loss part of ssToken (arXiv 2510.18250): tokens on which the model has gained most stay.

use serde::{Deserialize, Serialize};
use t3s_core::{
    ComponentError, Declaration, SelectContext, SelectionStrategy, SignalRef, TokenView, When,
    register_strategy, strategy::Scope,
};

use super::excess;
use crate::{Share, current::Confidence, ranking::Competition};

/// `[sstoken]` in docs/equations.md, with `gamma = 1`: its attention part reads attention maps, which
/// are not recorded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SsToken {
    /// Share of the response tokens that stays in the loss; exact to the token, rounded up.
    pub keep: Share,
    /// The model that learns: a log-probability, or `current` for the step under way.
    pub student: Confidence,
    /// The log-probability under the model it once was.
    pub history: Confidence,
}

register_strategy!(
    "sstoken",
    SsToken,
    "only the share of each example's tokens that the model has learnt most since its past (keep, student, history)"
);

impl Default for SsToken {
    fn default() -> Self {
        Self {
            keep: Share::try_from(0.6).expect("0.6 is a share"),
            student: Confidence::current(),
            history: "logp@base".to_owned().into(),
        }
    }
}

impl SelectionStrategy for SsToken {
    fn needs(&self) -> Vec<SignalRef> {
        self.student.needs().chain(self.history.needs()).collect()
    }

    fn when(&self) -> When {
        excess::when(&[&self.student, &self.history])
    }

    fn declare(&self) -> Declaration {
        let declaration = Declaration::new(Scope::PerExample).keeps(self.keep.get());
        excess::declare(declaration, &self.history, &self.student)
    }

    fn select(
        &self,
        tokens: &TokenView<'_>,
        cx: &SelectContext<'_>,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        // The loss of the past in excess of today's.
        let pair = excess::Pair {
            student: self.history.read(tokens, cx)?,
            reference: self.student.read(tokens, cx)?,
        };
        excess::keep_largest(&pair, tokens, Competition::Example, self.keep, out);
        Ok(())
    }
}
