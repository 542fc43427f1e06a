//! Rho-1's selective language modelling (arXiv 2404.07965): the largest excess loss stays.

use serde::{Deserialize, Serialize};
use t3s_core::{
    ComponentError, Declaration, SelectContext, SelectionStrategy, SignalRef, TokenView, When,
    register_strategy,
};

use super::excess;
use crate::{Share, current::Confidence, ranking::Competition};

/// `[excess-loss]` in docs/equations.md: the share of largest excess stays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rho1 {
    /// Share of the response tokens that stays in the loss; exact to the token, rounded up.
    pub keep: Share,
    /// Who competes with whom.
    pub scope: Competition,
    /// The model that learns: a log-probability, or `current` for the step under way.
    pub student: Confidence,
    /// The log-probability under the model that knows.
    pub reference: Confidence,
}

register_strategy!(
    "rho-1",
    Rho1,
    "only the share of tokens whose loss exceeds a reference model's most (keep, scope, student, reference)"
);

impl Default for Rho1 {
    fn default() -> Self {
        Self {
            keep: Share::try_from(0.6).expect("0.6 is a share"),
            scope: Competition::Global,
            student: "logp@base".to_owned().into(),
            reference: "logp@reference".to_owned().into(),
        }
    }
}

impl SelectionStrategy for Rho1 {
    fn needs(&self) -> Vec<SignalRef> {
        self.student.needs().chain(self.reference.needs()).collect()
    }

    fn when(&self) -> When {
        excess::when(&[&self.student, &self.reference])
    }

    fn declare(&self) -> Declaration {
        let declaration = Declaration::new(self.scope.into()).keeps(self.keep.get());
        excess::declare(declaration, &self.student, &self.reference)
    }

    fn select(
        &self,
        tokens: &TokenView<'_>,
        cx: &SelectContext<'_>,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        excess::keep_largest(
            &excess::Pair {
                student: self.student.read(tokens, cx)?,
                reference: self.reference.read(tokens, cx)?,
            },
            tokens,
            self.scope,
            self.keep,
            out,
        );
        Ok(())
    }
}
