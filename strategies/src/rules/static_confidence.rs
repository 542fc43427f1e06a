//! Static confidence baselines: the most or least confident tokens leave the loss.

use serde::{Deserialize, Serialize};
use t3s_core::{
    ComponentError, Declaration, SelectContext, SelectionStrategy, SignalRef, TokenView, When,
    register_strategy, strategy::Scope,
};

use super::{ends::Ends, keep, weigh};
use crate::{
    Share,
    ranking::{Competition, End},
};

/// `[static-mask]` in docs/equations.md.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StaticConfidence {
    /// Which end leaves the loss.
    pub mask: End,
    /// Share of the response tokens that leaves it; exact to the token, rounded up.
    pub share: Share,
    /// In place of the share: what is above it (`mask = "high"`) or below it (`"low"`) leaves.
    pub threshold: Option<f32>,
    /// Who competes with whom.
    pub scope: Competition,
    /// What tokens are ordered by.
    pub signal: String,
}

register_strategy!(
    "static-confidence",
    StaticConfidence,
    "without the share of tokens of highest or lowest confidence (mask, share, threshold, scope, signal)"
);

impl Default for StaticConfidence {
    fn default() -> Self {
        Self {
            mask: End::High,
            share: Share::try_from(0.2).expect("0.2 is a share"),
            threshold: None,
            scope: Competition::Global,
            signal: "logp@base".to_owned(),
        }
    }
}

impl StaticConfidence {
    fn ends(&self) -> Ends<'_> {
        Ends {
            signal: &self.signal,
            mask: self.mask,
            share: self.share,
            scope: self.scope,
        }
    }
}

impl SelectionStrategy for StaticConfidence {
    fn needs(&self) -> Vec<SignalRef> {
        vec![SignalRef::new(&self.signal)]
    }

    fn when(&self) -> When {
        When::Recorded
    }

    fn declare(&self) -> Declaration {
        match self.threshold {
            Some(_) => self
                .mask
                .promise(Declaration::new(Scope::PerExample), &self.signal),
            None => self.ends().declare(),
        }
    }

    fn select(
        &self,
        tokens: &TokenView<'_>,
        _cx: &SelectContext<'_>,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        let Some(threshold) = self.threshold else {
            return self.ends().remove(tokens, out);
        };
        let scores = tokens.numbers(&self.signal)?;
        match self.mask {
            End::High => weigh(tokens, out, |row| keep(scores[row] <= threshold)),
            End::Low => weigh(tokens, out, |row| keep(scores[row] >= threshold)),
        }
        Ok(())
    }
}
