//! The trait of a confidence signal.

use crate::{ComponentError, ObservableRef, TokenView};

/// A per-token score computed from recorded observables: one `f32` per token of the view, e.g.
/// `Delta c` (`[delta-c]` in docs/equations.md).
///
/// A signal measures; a [`SelectionStrategy`](crate::SelectionStrategy) decides. No method has a
/// default, so that a wrapper or a plugin table cannot lose one silently.
pub trait ConfidenceSignal: Send + Sync {
    /// The columns that `compute` reads, named as in [`ObservableRef`]'s display form.
    fn needs(&self) -> Vec<ObservableRef>;

    /// Writes one score per token of `tokens` into `out` (`[tokens]`).
    ///
    /// Scores of tokens that are not eligible are ignored by the host.
    ///
    /// # Errors
    /// When a needed column is missing or its values make no sense to the signal.
    fn compute(&self, tokens: &TokenView<'_>, out: &mut [f32]) -> Result<(), ComponentError>;
}
