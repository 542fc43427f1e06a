//! Sums over gradient sketches (`[sketch]` in docs/equations.md).

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use t3s_core::{ComponentError, Observable, ObservableRef, TokenView, table::SketchView};

use super::At;

/// How a sketch is compared with a direction, as an option.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// The cosine of the angle between them; 0 where one of them is 0.
    #[default]
    Cosine,
    /// The inner product, which grows with the gradient.
    InnerProduct,
}

/// The column of sketches at a checkpoint.
pub(super) fn column(at: &At) -> ObservableRef {
    ObservableRef::new(Observable::Sketch, at.checkpoint())
}

/// Reads [`column`].
pub(super) fn read<'t>(tokens: &TokenView<'t>, at: &At) -> Result<SketchView<'t>, ComponentError> {
    tokens.sketch(&column(at).to_string())
}

/// The sketch of row `row`, `[width]`.
fn row<'t>(sketch: &SketchView<'t>, row: usize) -> &'t [f32] {
    &sketch.values[row * sketch.width..][..sketch.width]
}

/// Terms that are added side by side, so that additions need not wait for one another.
const LANES: usize = 8;

/// Tokens that one thread goes through at a time: sketches are the widest column there is, and
/// several threads read them faster than one. The size is fixed, so that sums do not depend on how
/// many threads there are.
const CHUNK: usize = 4096;

/// The square of the 2-norm of `x`, and its inner product with `y`.
fn square_and_product(x: &[f32], y: &[f64]) -> (f64, f64) {
    let (mut squares, mut products) = ([0.0f64; LANES], [0.0f64; LANES]);
    for (x, y) in x.chunks(LANES).zip(y.chunks(LANES)) {
        for (lane, (x, y)) in x.iter().zip(y).enumerate() {
            let x = f64::from(*x);
            squares[lane] += x * x;
            products[lane] += x * y;
        }
    }
    (squares.iter().sum(), products.iter().sum())
}

/// The 2-norm of every sketch.
pub(super) fn norms(sketch: &SketchView<'_>, out: &mut [f32]) {
    let norm = |x: &[f32]| {
        let mut lanes = [0.0f64; LANES];
        for x in x.chunks(LANES) {
            for (lane, x) in lanes.iter_mut().zip(x) {
                *lane += f64::from(*x) * f64::from(*x);
            }
        }
        lanes.iter().sum::<f64>().sqrt() as f32
    };
    out.par_chunks_mut(CHUNK)
        .enumerate()
        .for_each(|(chunk, out)| {
            for (token, out) in out.iter_mut().enumerate() {
                *out = norm(row(sketch, chunk * CHUNK + token));
            }
        });
}

/// Compares every eligible token's sketch with the mean over the eligible tokens for which
/// `counts` holds; 0 where there are none, and for tokens that are not eligible.
pub(super) fn align(
    tokens: &TokenView<'_>,
    sketch: &SketchView<'_>,
    counts: impl Fn(usize) -> bool,
    measure: Measure,
    out: &mut [f32],
) {
    let mean = mean(tokens, sketch, counts);
    let length = mean.iter().map(|m| m * m).sum::<f64>().sqrt();
    let eligible = tokens.eligible();
    out.par_chunks_mut(CHUNK)
        .enumerate()
        .for_each(|(chunk, out)| {
            for (token, out) in out.iter_mut().enumerate() {
                let token = chunk * CHUNK + token;
                *out = 0.0;
                if !eligible[token] {
                    continue;
                }
                let (square, product) = square_and_product(row(sketch, token), &mean);
                let divisor = match measure {
                    Measure::Cosine => square.sqrt() * length,
                    Measure::InnerProduct => 1.0,
                };
                if divisor > 0.0 {
                    *out = (product / divisor) as f32;
                }
            }
        });
}

/// `[width]`.
fn mean(
    tokens: &TokenView<'_>,
    sketch: &SketchView<'_>,
    counts: impl Fn(usize) -> bool,
) -> Vec<f64> {
    // In the order of ids, so that the order of the table does not round differently.
    let mut examples: Vec<_> = tokens.examples().collect();
    examples.sort_by_key(|(id, _)| *id);
    let counted: Vec<usize> = examples
        .into_iter()
        .flat_map(|(_, rows)| rows)
        .filter(|token| tokens.eligible()[*token] && counts(*token))
        .collect();
    let parts: Vec<Vec<f64>> = counted
        .par_chunks(CHUNK)
        .map(|tokens| {
            let mut sum = vec![0.0f64; sketch.width];
            for token in tokens {
                for (sum, s) in sum.iter_mut().zip(row(sketch, *token)) {
                    *sum += f64::from(*s);
                }
            }
            sum
        })
        .collect();
    let n = counted.len().max(1) as f64;
    (0..sketch.width)
        .map(|i| parts.iter().map(|part| part[i]).sum::<f64>() / n)
        .collect()
}
