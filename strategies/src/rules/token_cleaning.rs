//! Token Cleaning (UCSC-REAL/TokenCleaning): tokens whose loss a reference model lowers stay.

use serde::{Deserialize, Serialize};
use t3s_core::{
    ComponentError, Declaration, SelectContext, SelectionStrategy, SignalRef, TokenView, When,
    register_strategy, strategy::Scope,
};

use super::{excess, keep, weigh};
use crate::{Share, current::Confidence, ranking::Competition};

/// `[token-cleaning]` in docs/equations.md. With the student of the round before as the reference,
/// round by round, this is its self-evolving form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TokenCleaning {
    /// Share of the response tokens that stays in the loss; exact to the token, rounded up.
    pub keep: Share,
    /// In place of the share: tokens with a score above this stay, nats.
    pub threshold: Option<f32>,
    /// Who competes with whom.
    pub scope: Competition,
    /// The model before cleaning: a log-probability, or `current` for the step under way.
    pub student: Confidence,
    /// The log-probability under the model that knows, or that has gone one round further.
    pub reference: Confidence,
}

register_strategy!(
    "token-cleaning",
    TokenCleaning,
    "only tokens whose loss a reference model lowers most (keep, threshold, scope, student, reference)"
);

impl Default for TokenCleaning {
    fn default() -> Self {
        Self {
            keep: Share::try_from(0.6).expect("0.6 is a share"),
            threshold: None,
            scope: Competition::Global,
            student: "logp@base".to_owned().into(),
            reference: "logp@reference".to_owned().into(),
        }
    }
}

impl SelectionStrategy for TokenCleaning {
    fn needs(&self) -> Vec<SignalRef> {
        self.student.needs().chain(self.reference.needs()).collect()
    }

    fn when(&self) -> When {
        excess::when(&[&self.student, &self.reference])
    }

    fn declare(&self) -> Declaration {
        let declaration = match self.threshold {
            Some(_) => Declaration::new(Scope::PerExample),
            None => Declaration::new(self.scope.into()).keeps(self.keep.get()),
        };
        excess::declare(declaration, &self.student, &self.reference)
    }

    fn select(
        &self,
        tokens: &TokenView<'_>,
        cx: &SelectContext<'_>,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        let pair = excess::Pair {
            student: self.student.read(tokens, cx)?,
            reference: self.reference.read(tokens, cx)?,
        };
        match self.threshold {
            Some(threshold) => weigh(tokens, out, |row| keep(pair.excess(row) > threshold)),
            None => excess::keep_largest(&pair, tokens, self.scope, self.keep, out),
        }
        Ok(())
    }
}
