//! Sums over gradient sketches (`[sketch]` in docs/equations.md).

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
pub(super) fn row<'t>(sketch: &SketchView<'t>, row: usize) -> &'t [f32] {
    &sketch.values[row * sketch.width..][..sketch.width]
}

/// Terms that are added side by side, so that additions need not wait for one another.
const LANES: usize = 8;

/// The 2-norm.
pub(super) fn norm(x: &[f32]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    for x in x.chunks(LANES) {
        for (lane, x) in lanes.iter_mut().zip(x) {
            *lane += f64::from(*x) * f64::from(*x);
        }
    }
    lanes.iter().sum::<f64>().sqrt()
}

/// The inner product.
fn dot(x: &[f32], y: &[f64]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    for (x, y) in x.chunks(LANES).zip(y.chunks(LANES)) {
        for ((lane, x), y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += f64::from(*x) * y;
        }
    }
    lanes.iter().sum()
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
    for (token, out) in out.iter_mut().enumerate() {
        *out = 0.0;
        if !tokens.eligible()[token] {
            continue;
        }
        let s = row(sketch, token);
        let product = dot(s, &mean);
        let divisor = match measure {
            Measure::Cosine => norm(s) * length,
            Measure::InnerProduct => 1.0,
        };
        if divisor > 0.0 {
            *out = (product / divisor) as f32;
        }
    }
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
    let (mut sum, mut n) = (vec![0.0f64; sketch.width], 0usize);
    for token in examples.into_iter().flat_map(|(_, rows)| rows) {
        if tokens.eligible()[token] && counts(token) {
            n += 1;
            for (sum, s) in sum.iter_mut().zip(row(sketch, token)) {
                *sum += f64::from(*s);
            }
        }
    }
    sum.iter().map(|sum| sum / n.max(1) as f64).collect()
}
