//! What an imitation anchor is: shared by T3S and its inverse, so that they split the same way.

use serde::{Deserialize, Serialize};
use t3s_core::{ComponentError, Declaration, TokenView, strategy::Scope};

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
pub(super) struct Anchors<'s> {
    pub signal: &'s str,
    pub threshold: f32,
    pub share: Option<Share>,
    pub scope: Competition,
    pub sides: Sides,
}

impl Anchors<'_> {
    /// What a rule promises that gives anchors the weight 0 and other tokens 1.
    pub fn declare(&self) -> Declaration {
        let declaration = match self.share {
            Some(share) => Declaration::new(self.scope.into()).removes(share.get()),
            None => Declaration::new(Scope::PerExample),
        };
        match self.sides {
            Sides::Above => declaration.falling(self.signal),
            Sides::Both => declaration,
        }
    }

    /// Gives anchors `weights.share` and the other eligible tokens `weights.rest`.
    pub fn weigh(
        &self,
        tokens: &TokenView<'_>,
        weights: Weights,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        let scores = tokens.numbers(self.signal)?;
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
