//! The trait of a selection strategy.

use crate::{ComponentError, CounterRng, SignalRef, TokenView};

/// When a strategy is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum When {
    /// Once, on the recorded table.
    Recorded,
    /// Every step, with the current step's log-probabilities in the context.
    Online,
}

/// Who competes with whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scope {
    /// A token's weight depends on its own example only.
    PerExample,
    /// It may depend on the whole table.
    Global,
}

/// What a strategy promises beyond the laws that bind every strategy; the laws hold it to that.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Declaration {
    /// Who competes with whom.
    pub scope: Scope,
    /// Exact number of tokens kept, as a share of the eligible ones of the scope, if there is one.
    pub keeps: Option<f64>,
    /// Exact number of tokens left out, as a share of the eligible ones of the scope, if there is one.
    pub removes: Option<f64>,
    /// Columns that, raised at one token, never lower that token's weight.
    pub rising: Vec<String>,
    /// Columns that, raised at one token, never raise that token's weight.
    pub falling: Vec<String>,
}

impl Declaration {
    /// A strategy of this scope that promises nothing more.
    pub fn new(scope: Scope) -> Self {
        Self {
            scope,
            keeps: None,
            removes: None,
            rising: Vec::new(),
            falling: Vec::new(),
        }
    }

    /// Promises to keep exactly [`budget`]`(share, eligible)` tokens of each scope.
    #[must_use]
    pub fn keeps(mut self, share: f64) -> Self {
        self.keeps = Some(share);
        self
    }

    /// Promises to leave out exactly [`budget`]`(share, eligible)` tokens of each scope.
    #[must_use]
    pub fn removes(mut self, share: f64) -> Self {
        self.removes = Some(share);
        self
    }

    /// Promises that raising `column` never lowers a weight.
    #[must_use]
    pub fn rising(mut self, column: impl Into<String>) -> Self {
        self.rising.push(column.into());
        self
    }

    /// Promises that raising `column` never raises a weight.
    #[must_use]
    pub fn falling(mut self, column: impl Into<String>) -> Self {
        self.falling.push(column.into());
        self
    }
}

/// How many of `n` tokens the share `share` is: rounded up, exact for every whole percent.
///
/// `ceil(share * n)` alone gives 8 for 7 % of 100, because 0.07 is not a binary fraction; so
/// products within 1e-9 of an integer count as that integer.
pub fn budget(share: f64, n: usize) -> usize {
    let exact = share * n as f64;
    let nearest = exact.round();
    let count = if (exact - nearest).abs() < 1e-9 * n.max(1) as f64 {
        nearest
    } else {
        exact.ceil()
    };
    (count.max(0.0) as usize).min(n)
}

/// What a strategy is told besides the table.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct SelectContext<'a> {
    /// The run's seed.
    pub seed: u64,
    /// The optimiser step (0 for a recorded selection).
    pub step: u64,
    /// `[tokens]`, nats: the current model's log-probabilities; only for [`When::Online`].
    pub current_logp: Option<&'a [f32]>,
}

impl<'a> SelectContext<'a> {
    /// The context of a recorded selection.
    pub fn recorded(seed: u64) -> Self {
        Self {
            seed,
            step: 0,
            current_logp: None,
        }
    }

    /// The context of an online selection at `step`.
    pub fn online(seed: u64, step: u64, current_logp: &'a [f32]) -> Self {
        Self {
            seed,
            step,
            current_logp: Some(current_logp),
        }
    }

    /// The generator for draws named `name`; ask it for (example id, position).
    pub fn rng(&self, name: &str) -> CounterRng {
        CounterRng::new(self.seed, name)
    }
}

/// Per-token signals to per-token weights in `[0, 1]`.
///
/// Autoregressive training multiplies a token's loss by its weight; diffusion training reads the
/// weight as the chance that the token is always masked. No method has a default, so that a
/// wrapper or a plugin table cannot lose one silently.
pub trait SelectionStrategy: Send + Sync {
    /// The signals that `select` reads; each is a column of the view under its id.
    fn needs(&self) -> Vec<SignalRef>;

    /// When the strategy is asked.
    fn when(&self) -> When;

    /// What it promises beyond the laws that bind every strategy.
    fn declare(&self) -> Declaration;

    /// Writes one weight per token of `tokens` into `out` (`[tokens]`): finite, in `[0, 1]`, zero
    /// where the token is not eligible.
    ///
    /// # Errors
    /// When a needed column is missing, or a value of an eligible token makes no sense (NaN).
    fn select(
        &self,
        tokens: &TokenView<'_>,
        cx: &SelectContext<'_>,
        out: &mut [f32],
    ) -> Result<(), ComponentError>;
}

#[cfg(test)]
mod tests {
    use super::budget;

    #[test]
    fn budget_is_exact_for_every_whole_percent() {
        for n in 0..=1000 {
            for percent in 0..=100 {
                assert_eq!(
                    budget(percent as f64 / 100.0, n),
                    (percent * n).div_ceil(100)
                );
            }
        }
    }
}
