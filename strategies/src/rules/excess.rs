//! Excess loss: how much worse one model predicts a token than another.

use t3s_core::{Declaration, TokenView, When};

use crate::{
    Share,
    current::Confidence,
    ranking::{Competition, End, Weights, split},
};

/// The log-probabilities of both models, `[tokens]` each, nats.
pub(super) struct Pair<'t> {
    /// Of the one that learns.
    pub student: &'t [f32],
    /// Of the one that knows.
    pub reference: &'t [f32],
}

impl Pair<'_> {
    /// `[excess-loss]` in docs/equations.md: the student's loss less the reference's.
    pub fn excess(&self, row: usize) -> f32 {
        self.reference[row] - self.student[row]
    }
}

/// Keeps the share with the largest excess.
pub(super) fn keep_largest(
    pair: &Pair<'_>,
    tokens: &TokenView<'_>,
    scope: Competition,
    share: Share,
    out: &mut [f32],
) {
    let key = |_, row: usize| End::High.key(pair.excess(row));
    split(tokens, scope, share, key, Weights::KEEP, out);
}

/// When a rule is asked that reads all of these.
pub(super) fn when(read: &[&Confidence]) -> When {
    let online = read.iter().any(|c| c.when() == When::Online);
    if online { When::Online } else { When::Recorded }
}

/// `declaration`, and that the excess is what counts.
pub(super) fn declare(
    declaration: Declaration,
    student: &Confidence,
    reference: &Confidence,
) -> Declaration {
    let declaration = student
        .needs()
        .fold(declaration, |d, signal| d.falling(signal.as_str()));
    reference
        .needs()
        .fold(declaration, |d, signal| d.rising(signal.as_str()))
}
