//! One end of an order leaves the loss: what `gradient-norm`, `gradient-sketch` and
//! `static-confidence` share.

use t3s_core::{ComponentError, Declaration, TokenView};

use crate::{
    Share,
    ranking::{Competition, End, Weights, split},
};

/// The share of the tokens at one end of a signal.
pub(super) struct Ends<'s> {
    /// What tokens are ordered by.
    pub signal: &'s str,
    /// The end that leaves.
    pub mask: End,
    /// How much of it leaves.
    pub share: Share,
    /// Who competes with whom.
    pub scope: Competition,
}

impl Ends<'_> {
    /// What a rule promises that removes them.
    pub(super) fn declare(&self) -> Declaration {
        let declaration = Declaration::new(self.scope.into()).removes(self.share.get());
        self.mask.promise(declaration, self.signal)
    }

    /// Gives them the weight 0 and the other eligible tokens 1.
    pub(super) fn remove(
        &self,
        tokens: &TokenView<'_>,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        let scores = tokens.numbers(self.signal)?;
        let key = |_, row: usize| self.mask.key(scores[row]);
        split(tokens, self.scope, self.share, key, Weights::DROP, out);
        Ok(())
    }
}
