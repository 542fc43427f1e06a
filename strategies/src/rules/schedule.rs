//! One strategy for the first steps, another from then on.

use serde::{Deserialize, Serialize};
use t3s_core::{
    ComponentError, Declaration, SelectContext, SelectionStrategy, SignalRef, TokenView, When,
    register_strategy,
};

use crate::{
    current::Confidence,
    inner::{Inner, needs, scope},
};

/// `[combinators]` in docs/equations.md. A schedule may be part of a schedule.
#[derive(Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// How many optimiser steps the first strategy decides.
    pub steps: u64,
    /// The strategy of these steps: a table with its name under `strategy` and its options beside
    /// it.
    pub first: Inner,
    /// The strategy of all later steps, written the same way.
    pub then: Inner,
}

register_strategy!(
    "schedule",
    Schedule,
    "one strategy for the first steps, another from then on (steps, first, then)"
);

impl Default for Schedule {
    fn default() -> Self {
        Self {
            steps: 10,
            first: Inner::named("all"),
            then: Inner::named("t3s"),
        }
    }
}

impl Schedule {
    fn both(&self) -> [&Inner; 2] {
        [&self.first, &self.then]
    }
}

impl SelectionStrategy for Schedule {
    fn needs(&self) -> Vec<SignalRef> {
        needs(self.both())
    }

    fn when(&self) -> When {
        When::Online
    }

    fn declare(&self) -> Declaration {
        Declaration::new(scope(self.both()))
    }

    fn select(
        &self,
        tokens: &TokenView<'_>,
        cx: &SelectContext<'_>,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        // What only the other strategy reads is looked at too: a run must not fail half-way for what
        // was to be seen at its first step.
        Confidence::current().read(tokens, cx)?;
        for need in self.needs() {
            tokens.numbers(need.as_str())?;
        }
        // Steps count from 1.
        let now = match cx.step <= self.steps {
            true => &self.first,
            false => &self.then,
        };
        now.get().select(tokens, cx, out)
    }
}
