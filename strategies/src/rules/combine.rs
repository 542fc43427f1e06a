//! Weights of several strategies, token by token: what `union`, `intersect` and `product` share.

use t3s_core::{ComponentError, Declaration, SelectContext, TokenView};

use crate::inner::{Inner, needs, scope};

/// Makes `$type`, which has strategies in `of`, a strategy: their weights folded with `$fold`,
/// which never falls when one of them rises, starting from `$start`.
macro_rules! combinator {
    ($type:ty, $start:expr, $fold:expr) => {
        impl t3s_core::SelectionStrategy for $type {
            fn needs(&self) -> Vec<t3s_core::SignalRef> {
                crate::inner::needs(&self.of)
            }

            fn when(&self) -> t3s_core::When {
                crate::inner::when(&self.of)
            }

            fn declare(&self) -> t3s_core::Declaration {
                super::combine::declare(&self.of)
            }

            fn select(
                &self,
                tokens: &t3s_core::TokenView<'_>,
                cx: &t3s_core::SelectContext<'_>,
                out: &mut [f32],
            ) -> Result<(), t3s_core::ComponentError> {
                super::combine::fold(&self.of, tokens, cx, $start, $fold, out)
            }
        }
    };
}

pub(super) use combinator;

/// What a rule promises whose weight never falls when one of the weights of `of` rises.
pub(super) fn declare(of: &[Inner]) -> Declaration {
    let mut declaration = Declaration::new(scope(of));
    for need in needs(of) {
        let name = need.as_str();
        // Of those that read the column, all have to say so.
        let all = |says: fn(&Declaration) -> &Vec<String>| {
            of.iter()
                .filter(|s| s.get().needs().contains(&need))
                .all(|s| says(&s.get().declare()).iter().any(|c| c == name))
        };
        if all(|d| &d.rising) {
            declaration = declaration.rising(name);
        }
        if all(|d| &d.falling) {
            declaration = declaration.falling(name);
        }
    }
    declaration
}

/// Folds the weights of `of` into `out` with `fold`, starting from `start`; tokens that are not
/// eligible get 0.
pub(super) fn fold(
    of: &[Inner],
    tokens: &TokenView<'_>,
    cx: &SelectContext<'_>,
    start: f32,
    fold: impl Fn(f32, f32) -> f32,
    out: &mut [f32],
) -> Result<(), ComponentError> {
    for (out, eligible) in out.iter_mut().zip(tokens.eligible()) {
        *out = if *eligible { start } else { 0.0 };
    }
    let mut weights = vec![0.0; out.len()];
    for strategy in of {
        strategy.get().select(tokens, cx, &mut weights)?;
        for ((out, weight), eligible) in out.iter_mut().zip(&weights).zip(tokens.eligible()) {
            if *eligible {
                *out = fold(*out, *weight);
            }
        }
    }
    Ok(())
}
