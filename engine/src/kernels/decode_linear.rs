//! `y = x W^T` for generation: the weights repacked once, few rows at a time, one thread.
//!
//! A general matrix product chooses its blocking by the number of rows, so the last bit of a row
//! depends on the rows beside it, and sampled text with it. Here every output element is one chain
//! of fused multiply-adds over the inputs in order, whatever the number of rows or threads: an answer
//! is the same in any batch. The repacked weights also spare small products the packing that a
//! general routine repeats on every call.

use super::simd::vectorised;

/// Outputs per panel: two AVX2 vectors.
const LANES: usize = 16;
/// Rows per register tile: 6 x 16 accumulators fill twelve of sixteen AVX2 registers.
const TILE: usize = 6;

/// The weights of one or more linear maps of the same input, one after the other.
#[derive(Debug, Clone)]
pub(crate) struct PackedLinear {
    /// `[out / LANES, in, LANES]`, the last panel filled up with zeros.
    panels: Vec<f32>,
    bias: Option<Vec<f32>>,
    width: usize,
    out: usize,
}

impl PackedLinear {
    /// Packs `weights`, each `[rows, width]` row by row, as if stacked; `bias` is `[out]`.
    pub(crate) fn new(weights: &[&[f32]], width: usize, bias: Option<Vec<f32>>) -> Self {
        assert!(width > 0 && weights.iter().all(|w| w.len().is_multiple_of(width)));
        let out = weights.iter().map(|w| w.len() / width).sum::<usize>();
        assert!(bias.as_ref().is_none_or(|b| b.len() == out));
        let mut panels = vec![0.0; out.div_ceil(LANES) * width * LANES];
        let rows = weights.iter().flat_map(|w| w.chunks_exact(width));
        for (i, row) in rows.enumerate() {
            let panel = &mut panels[i / LANES * width * LANES..][..width * LANES];
            for (lanes, w) in panel.chunks_exact_mut(LANES).zip(row) {
                lanes[i % LANES] = *w;
            }
        }
        Self {
            panels,
            bias,
            width,
            out,
        }
    }

    /// Columns of the result.
    pub(crate) fn out(&self) -> usize {
        self.out
    }

    /// `y = x W^T + b`, or `y += x W^T + b` with `add`.
    ///
    /// # Shapes
    /// `x [rows, in]`, `y [rows, out]`.
    pub(crate) fn apply(&self, x: &[f32], y: &mut [f32], add: bool) {
        let rows = x.len() / self.width;
        assert_eq!((x.len(), y.len()), (rows * self.width, rows * self.out));
        vectorised(
            #[inline(always)]
            || {
                for (p, panel) in self.panels.chunks_exact(self.width * LANES).enumerate() {
                    let first = p * LANES;
                    let mut row = 0;
                    while row < rows {
                        let n = TILE.min(rows - row);
                        let x = &x[row * self.width..][..n * self.width];
                        let y = &mut y[row * self.out..][..n * self.out];
                        match n {
                            6 => self.tile::<6>(panel, first, x, y, add),
                            5 => self.tile::<5>(panel, first, x, y, add),
                            4 => self.tile::<4>(panel, first, x, y, add),
                            3 => self.tile::<3>(panel, first, x, y, add),
                            2 => self.tile::<2>(panel, first, x, y, add),
                            _ => self.tile::<1>(panel, first, x, y, add),
                        }
                        row += n;
                    }
                }
            },
        );
    }

    #[inline(always)]
    fn tile<const ROWS: usize>(
        &self,
        panel: &[f32],
        first: usize,
        x: &[f32],
        y: &mut [f32],
        add: bool,
    ) {
        let width = self.width;
        let x: [&[f32]; ROWS] = std::array::from_fn(|row| &x[row * width..][..width]);
        let (panel, _) = panel.as_chunks::<LANES>();
        let panel = &panel[..width];
        let mut sums = [[0.0f32; LANES]; ROWS];
        for k in 0..width {
            for row in 0..ROWS {
                let x = x[row][k];
                for lane in 0..LANES {
                    sums[row][lane] = panel[k][lane].mul_add(x, sums[row][lane]);
                }
            }
        }
        let n = LANES.min(self.out - first);
        for (row, sums) in sums.iter().enumerate() {
            let y = &mut y[row * self.out + first..][..n];
            for (lane, y) in y.iter_mut().enumerate() {
                let bias = self.bias.as_ref().map_or(0.0, |bias| bias[first + lane]);
                let sum = sums[lane] + bias;
                *y = if add { *y + sum } else { sum };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wave(len: usize, seed: f32) -> Vec<f32> {
        (0..len)
            .map(|i| (seed + i as f32 * 12.9898).sin())
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn is_the_product_and_does_not_see_the_other_rows(
            rows in 1usize..20,
            width in 1usize..70,
            outs in prop::collection::vec(1usize..40, 1..4),
            add: bool,
            with_bias: bool,
        ) {
            let out: usize = outs.iter().sum();
            let weights: Vec<Vec<f32>> =
                outs.iter().enumerate().map(|(i, o)| wave(o * width, i as f32)).collect();
            let slices: Vec<&[f32]> = weights.iter().map(Vec::as_slice).collect();
            let bias = with_bias.then(|| wave(out, 9.0));
            let linear = PackedLinear::new(&slices, width, bias.clone());
            let (x, before) = (wave(rows * width, 5.0), wave(rows * out, 7.0));
            let mut y = before.clone();
            linear.apply(&x, &mut y, add);

            let stacked = weights.concat();
            for row in 0..rows {
                for o in 0..out {
                    let products = (0..width)
                        .map(|k| f64::from(x[row * width + k]) * f64::from(stacked[o * width + k]));
                    let mut wanted: f64 = products.sum();
                    wanted += bias.as_ref().map_or(0.0, |b| f64::from(b[o]));
                    wanted += if add { f64::from(before[row * out + o]) } else { 0.0 };
                    let found = f64::from(y[row * out + o]);
                    prop_assert!((found - wanted).abs() < 1e-4, "{} instead of {}", found, wanted);
                }
                let mut alone = before[row * out..][..out].to_vec();
                linear.apply(&x[row * width..][..width], &mut alone, add);
                prop_assert_eq!(&alone, &y[row * out..][..out]);
            }
        }
    }
}
