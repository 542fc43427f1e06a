//! What an imitation anchor is: the options of T3S and of its inverse, so that they split the same
//! way.

use serde::{Deserialize, Serialize};
use t3s_core::{ComponentError, Declaration, SignalRef, TokenView, strategy::Scope};

use super::weigh;
use crate::{
    Share,
    ranking::{Competition, End, Weights, split},
};

/// Which changes of confidence make an anchor, as an option.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Sides {
    /// A rise.
    #[default]
    Above,
    /// A rise or a fall: the signal's absolute value counts.
    Both,
}

impl Sides {
    fn strength(self, score: f32) -> f32 {
        match self {
            Self::Above => score,
            Self::Both => score.abs(),
        }
    }
}

/// `[anchors]` in docs/equations.md.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub struct Anchors {
    /// What is compared with the threshold.
    pub signal: String,
    /// `tau`; a token at the threshold is no anchor.
    pub threshold: f32,
    /// In place of the threshold: the share of the response tokens that are anchors, those with
    /// the largest signal; exact to the token, rounded up.
    pub share: Option<Share>,
    /// Who competes with whom for the share.
    pub scope: Competition,
    /// Whether a fall makes an anchor too; then the signal's absolute value counts.
    pub sides: Sides,
}

impl Default for Anchors {
    fn default() -> Self {
        Self {
            signal: super::delta_logp(),
            threshold: 0.0,
            share: None,
            scope: Competition::Global,
            sides: Sides::Above,
        }
    }
}

impl Anchors {
    /// What a rule about anchors reads.
    pub(super) fn needs(&self) -> Vec<SignalRef> {
        vec![SignalRef::new(&self.signal)]
    }

    /// What a rule promises that gives anchors the weight 0 and other tokens 1.
    pub(super) fn declare(&self) -> Declaration {
        let declaration = match self.share {
            Some(share) => Declaration::new(self.scope.into()).removes(share.get()),
            None => Declaration::new(Scope::PerExample),
        };
        match self.sides {
            Sides::Above => declaration.falling(&self.signal),
            Sides::Both => declaration,
        }
    }

    /// Gives anchors `weights.share` and the other eligible tokens `weights.rest`.
    pub(super) fn weigh(
        &self,
        tokens: &TokenView<'_>,
        weights: Weights,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        let scores = tokens.numbers(&self.signal)?;
        let strength = |row: usize| self.sides.strength(scores[row]);
        match self.share {
            Some(share) => {
                let key = |_, row: usize| End::High.key(strength(row));
                split(tokens, self.scope, share, key, weights, out);
            }
            None => weigh(tokens, out, |row| {
                if strength(row) > self.threshold {
                    weights.share
                } else {
                    weights.rest
                }
            }),
        }
        Ok(())
    }
}
