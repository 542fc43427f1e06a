//! Exact shares of an order, without sorting.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use t3s_core::{
    Declaration, TokenView,
    strategy::{Scope, budget},
};

use crate::Share;

/// Who competes with whom, as an option.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Competition {
    /// Each example keeps its own share.
    Example,
    /// Everything the strategy is asked about at once does: the data set, or online a pass.
    #[default]
    Global,
}

impl From<Competition> for Scope {
    fn from(competition: Competition) -> Self {
        match competition {
            Competition::Example => Self::PerExample,
            Competition::Global => Self::Global,
        }
    }
}

/// An end of an order, as an option.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// The tokens with the highest signal.
    #[default]
    High,
    /// Those with the lowest.
    Low,
}

impl End {
    /// A key that is smallest at this end. Both zeros are one number.
    pub fn key(self, score: f32) -> u32 {
        match self {
            Self::High => !ascending(score),
            Self::Low => ascending(score),
        }
    }

    /// `declaration` of a rule that takes this end of `signal` out of the loss.
    pub fn promise(self, declaration: Declaration, signal: &str) -> Declaration {
        match self {
            Self::High => declaration.falling(signal),
            Self::Low => declaration.rising(signal),
        }
    }
}

/// A number in the order of `score`, which is none if it is NaN.
fn ascending(score: f32) -> u32 {
    // Adding 0 makes one number of both zeros.
    let bits = (score + 0.0).to_bits();
    // Negative numbers grow downwards and come first: all their bits are turned, of others the sign.
    // Without a branch, since signs may come in any order.
    let negative = bits >> 31;
    bits ^ (negative.wrapping_neg() | 1 << 31)
}

/// The two weights of a split.
#[derive(Debug, Clone, Copy)]
pub struct Weights {
    /// Of the share.
    pub share: f32,
    /// Of the other eligible tokens.
    pub rest: f32,
}

impl Weights {
    /// The share stays in the loss.
    pub const KEEP: Self = Self {
        share: 1.0,
        rest: 0.0,
    };
    /// The share leaves it.
    pub const DROP: Self = Self {
        share: 0.0,
        rest: 1.0,
    };
}

/// Splits the eligible tokens of each scope: the `budget(share, n)` with the smallest keys, and the
/// rest. Equal keys are taken in the order of example id and position, wherever a row stands.
/// Tokens that are not eligible get 0.
///
/// The time is linear: a selection, not a sort.
pub fn split<K: Ord + Copy>(
    tokens: &TokenView<'_>,
    competition: Competition,
    share: Share,
    key: impl Fn(u64, usize) -> K,
    weights: Weights,
    out: &mut [f32],
) {
    let mut splitter = Splitter {
        tokens,
        count: &|eligible| budget(share.get(), eligible),
        key,
        weights,
        keys: Vec::new(),
        scratch: Vec::new(),
        ties: Vec::new(),
    };
    match competition {
        Competition::Example => {
            for example in tokens.examples() {
                splitter.split(&[example], out);
            }
        }
        Competition::Global => {
            let examples: Vec<_> = tokens.examples().collect();
            splitter.split(&examples, out);
        }
    }
}

/// [`split`] of one example, in which `count` tokens make the share.
pub fn split_example<K: Ord + Copy>(
    tokens: &TokenView<'_>,
    example: (u64, Range<usize>),
    count: usize,
    key: impl Fn(u64, usize) -> K,
    weights: Weights,
    out: &mut [f32],
) {
    let mut splitter = Splitter {
        tokens,
        count: &|eligible| count.min(eligible),
        key,
        weights,
        keys: Vec::new(),
        scratch: Vec::new(),
        ties: Vec::new(),
    };
    splitter.split(&[example], out);
}

struct Splitter<'s, 't, K, F> {
    tokens: &'s TokenView<'t>,
    count: &'s dyn Fn(usize) -> usize,
    key: F,
    weights: Weights,
    /// Of the eligible tokens, in the order of rows.
    keys: Vec<K>,
    /// The same in disorder.
    scratch: Vec<K>,
    /// (example, position, row) of the tokens at the bound.
    ties: Vec<(u64, u32, usize)>,
}

impl<K: Ord + Copy, F: Fn(u64, usize) -> K> Splitter<'_, '_, K, F> {
    /// Splits one scope.
    fn split(&mut self, examples: &[(u64, Range<usize>)], out: &mut [f32]) {
        let eligible = self.tokens.eligible();
        let Weights { share, rest } = self.weights;
        self.keys.clear();
        for (example, rows) in examples {
            for row in rows.clone() {
                out[row] = if eligible[row] { rest } else { 0.0 };
            }
            let rows = rows.clone().filter(|row| eligible[*row]);
            self.keys.extend(rows.map(|row| (self.key)(*example, row)));
        }
        let count = (self.count)(self.keys.len());
        if count == 0 {
            return;
        }
        self.scratch.clone_from(&self.keys);
        let (below, bound, _) = self.scratch.select_nth_unstable(count - 1);
        let bound = *bound;
        let at_bound = count - below.iter().filter(|key| **key < bound).count();
        self.ties.clear();
        let mut keys = self.keys.iter();
        for (example, rows) in examples {
            for row in rows.clone().filter(|row| eligible[*row]) {
                let key = keys.next().expect("one key per eligible token");
                // Without a branch: which way it goes is anybody's guess.
                out[row] = if *key < bound { share } else { rest };
                if *key == bound {
                    let position = self.tokens.positions()[row];
                    self.ties.push((*example, position, row));
                }
            }
        }
        if at_bound < self.ties.len() {
            self.ties.select_nth_unstable(at_bound - 1);
        }
        for (_, _, row) in &self.ties[..at_bound] {
            out[*row] = share;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_in_the_order_of_scores() {
        let scores = [
            f32::NEG_INFINITY,
            -3.5,
            -1e-30,
            0.0,
            1e-30,
            0.5,
            7.0,
            f32::INFINITY,
        ];
        for pair in scores.windows(2) {
            assert!(End::Low.key(pair[0]) < End::Low.key(pair[1]), "{pair:?}");
            assert!(End::High.key(pair[0]) > End::High.key(pair[1]), "{pair:?}");
        }
        for end in [End::High, End::Low] {
            assert_eq!(end.key(0.0), end.key(-0.0));
        }
    }
}
