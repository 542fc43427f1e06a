//! Selection strategies: which tokens are in the loss.

pub mod all;
pub mod inverse_t3s;
pub mod random;
pub mod static_confidence;
pub mod t3s;

use std::ops::Range;

use serde::{Deserialize, Serialize};
use t3s_core::{TokenView, strategy::Scope};

/// Who competes with whom, as an option.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Competition {
    /// Each example keeps its own share.
    Example,
    /// The data set as a whole does.
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

/// The default of every rule that reads the trajectory signal.
fn delta_logp() -> String {
    "delta-logp".to_owned()
}

/// The eligible rows of each scope: of every example, or of all together.
fn scopes(tokens: &TokenView<'_>, competition: Competition) -> Vec<Vec<usize>> {
    let eligible =
        |rows: Range<usize>| -> Vec<usize> { rows.filter(|row| tokens.eligible()[*row]).collect() };
    match competition {
        Competition::Example => tokens.examples().map(|(_, rows)| eligible(rows)).collect(),
        Competition::Global => vec![eligible(0..tokens.n_tokens())],
    }
}

/// For every row what breaks ties: example id and position, not where the row happens to stand.
fn places(tokens: &TokenView<'_>) -> Vec<(u64, u32)> {
    let mut places = vec![(0, 0); tokens.n_tokens()];
    for (example, rows) in tokens.examples() {
        for row in rows {
            places[row] = (example, tokens.positions()[row]);
        }
    }
    places
}

/// Gives each eligible token the weight that `keep` says, and every other one 0.
fn weigh(tokens: &TokenView<'_>, out: &mut [f32], keep: impl Fn(usize) -> bool) {
    for (row, out) in out.iter_mut().enumerate() {
        *out = f32::from(u8::from(tokens.eligible()[row] && keep(row)));
    }
}

#[cfg(test)]
mod tests;
