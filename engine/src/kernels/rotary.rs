//! Per-head RMSNorm and rotary position embedding of queries and keys, in one pass.
//!
//! Rotary (arXiv 2104.09864), rotate-half layout: with `d` rotated elements per head and
//! `f = p * theta^(-2i/d)`, elements `i` and `i + d/2` turn by the angle `f` at position `p`.

use std::sync::{Arc, RwLock};

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;
use t3s_core::decoder_spec::RopeSpec;

use super::{
    host::{self, ROWS_PER_TASK},
    rms_norm::{add_partial_sums, inverse_rms, row_backward},
    simd::vectorised,
};

/// Cosines and sines by position, grown as longer examples come.
#[derive(Debug)]
pub struct RotaryTable {
    inverse_frequencies: Vec<f32>,
    /// `[positions, rotary_dim]`: the cosines of a position, then its sines.
    rows: RwLock<Arc<Vec<f32>>>,
}

impl RotaryTable {
    /// An empty table of `spec`.
    pub fn new(spec: &RopeSpec) -> Self {
        let dim = spec.rotary_dim as f64;
        let frequency = |i: usize| spec.theta.powf(-2.0 * i as f64 / dim) as f32;
        Self {
            inverse_frequencies: (0..spec.rotary_dim / 2).map(frequency).collect(),
            rows: RwLock::new(Arc::default()),
        }
    }

    /// How many leading elements of a head are rotated.
    pub fn rotary_dim(&self) -> usize {
        2 * self.inverse_frequencies.len()
    }

    /// A table that covers every one of `positions`.
    pub(crate) fn covering(&self, positions: &[u32]) -> Arc<Vec<f32>> {
        let n_positions = positions.iter().max().map_or(0, |p| *p as usize + 1);
        let len = n_positions * self.rotary_dim();
        let rows = self.rows.read().expect("no holder of this lock panics");
        if rows.len() >= len {
            return rows.clone();
        }
        drop(rows);
        let mut rows = self.rows.write().expect("no holder of this lock panics");
        if rows.len() < len {
            let table = (0..n_positions.next_power_of_two()).flat_map(|position| {
                // The angle is rounded to f32 as the reference implementation rounds it; at
                // position 30 000 that is an error of 1e-3 which has to be the same here.
                let angles = self
                    .inverse_frequencies
                    .iter()
                    .map(move |f| f64::from(position as f32 * f));
                let cosines = angles.clone().map(|a| a.cos() as f32);
                cosines.chain(angles.map(|a| a.sin() as f32))
            });
            *rows = Arc::new(table.collect());
        }
        rows.clone()
    }
}

/// RMSNorm over each head (where `norm` is given), then rotary.
///
/// # Shapes
/// `x [rows, heads * head_dim]`, `norm [head_dim]`, `positions [rows]`, result like `x`.
///
/// # Errors
/// When shapes disagree or the device has no kernel.
pub fn forward(
    x: &Tensor,
    norm: Option<&Tensor>,
    eps: f64,
    head_dim: usize,
    table: &RotaryTable,
    positions: &[u32],
) -> Result<Tensor> {
    let (rows, width) = check(x, norm, head_dim, table, positions)?;
    on_cuda!(
        x,
        super::cuda::rotary::forward(x, norm, eps, head_dim, table, positions)
    );
    let x = host::read("rotary", x)?;
    let norm = norm.map(|w| host::read("rotary norm", w)).transpose()?;
    let norm = norm.as_deref();
    let (dim, half) = (table.rotary_dim(), table.rotary_dim() / 2);
    let table = table.covering(positions);
    let mut y = host::overwritten(rows * width);
    y.par_chunks_mut(width * ROWS_PER_TASK)
        .zip(x.par_chunks(width * ROWS_PER_TASK))
        .zip(positions.par_chunks(ROWS_PER_TASK))
        .for_each(|((y, x), positions)| {
            vectorised(
                #[inline(always)]
                || {
                    let rows = y.chunks_exact_mut(width).zip(x.chunks_exact(width));
                    for ((y, x), position) in rows.zip(positions) {
                        let (cos, sin) = table[*position as usize * dim..][..dim].split_at(half);
                        let heads = y.chunks_exact_mut(head_dim).zip(x.chunks_exact(head_dim));
                        for (y, x) in heads {
                            match norm {
                                Some(w) => {
                                    let inv = inverse_rms(x, eps);
                                    for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                                        *y = x * inv * w;
                                    }
                                }
                                None => y.copy_from_slice(x),
                            }
                            turn(&mut y[..dim], cos, sin, 1.0);
                        }
                    }
                },
            );
        });
    host::tensor(y, (rows, width))
}

/// Turns `dy` into `dL/dx`, in place; adds the norm's gradient into `slot` where given. `x` is what
/// `forward` read.
///
/// # Errors
/// When shapes disagree or the device has no kernel.
#[expect(
    clippy::too_many_arguments,
    reason = "forward's arguments, dy and slot"
)]
pub fn backward_in_place(
    dy: &Tensor,
    x: &Tensor,
    norm: Option<&Tensor>,
    eps: f64,
    head_dim: usize,
    table: &RotaryTable,
    positions: &[u32],
    slot: Option<&Tensor>,
) -> Result<()> {
    let (rows, width) = check(x, norm, head_dim, table, positions)?;
    host::expect("rotary output gradient", dy, &[rows, width])?;
    on_cuda!(
        x,
        super::cuda::rotary::backward_in_place(dy, x, norm, eps, head_dim, table, positions, slot)
    );
    let x = host::read("rotary", x)?;
    let norm = norm.map(|w| host::read("rotary norm", w)).transpose()?;
    let norm = norm.as_deref();
    let (dim, half) = (table.rotary_dim(), table.rotary_dim() / 2);
    let table = table.covering(positions);
    let mut partial = vec![0.0f32; rows.div_ceil(ROWS_PER_TASK) * head_dim];
    host::write("rotary", dy, |dy| {
        dy.par_chunks_mut(width * ROWS_PER_TASK)
            .zip(x.par_chunks(width * ROWS_PER_TASK))
            .zip(positions.par_chunks(ROWS_PER_TASK))
            .zip(partial.par_chunks_mut(head_dim))
            .for_each(|(((dy, x), positions), dw)| {
                vectorised(
                    #[inline(always)]
                    || {
                        let rows = dy.chunks_exact_mut(width).zip(x.chunks_exact(width));
                        for ((dy, x), position) in rows.zip(positions) {
                            let (cos, sin) =
                                table[*position as usize * dim..][..dim].split_at(half);
                            let heads = dy.chunks_exact_mut(head_dim);
                            for (dy, x) in heads.zip(x.chunks_exact(head_dim)) {
                                turn(&mut dy[..dim], cos, sin, -1.0);
                                if let Some(w) = norm {
                                    row_backward(dy, x, w, eps, dw);
                                }
                            }
                        }
                    },
                );
            });
    })?;
    match slot {
        Some(slot) => add_partial_sums(slot, &partial),
        None => Ok(()),
    }
}

/// Turns the pairs `(i, i + len/2)` of `head` by the table's angles; `direction` -1 turns back.
#[inline(always)]
pub(super) fn turn(head: &mut [f32], cos: &[f32], sin: &[f32], direction: f32) {
    let (first, second) = head.split_at_mut(cos.len());
    let n = first.len();
    let (second, sin) = (&mut second[..n], &sin[..n]);
    for i in 0..n {
        let (a, b, s) = (first[i], second[i], direction * sin[i]);
        first[i] = a * cos[i] - b * s;
        second[i] = b * cos[i] + a * s;
    }
}

fn check(
    x: &Tensor,
    norm: Option<&Tensor>,
    head_dim: usize,
    table: &RotaryTable,
    positions: &[u32],
) -> Result<(usize, usize)> {
    let (rows, width) = host::dims2("rotary input", x)?;
    if head_dim == 0 || !width.is_multiple_of(head_dim) || table.rotary_dim() > head_dim {
        bail!(
            "rotary input: width {width} is not a number of heads of {head_dim}, or more than that \
             is rotated ({})",
            table.rotary_dim()
        );
    }
    if positions.len() != rows {
        bail!("rotary: {} positions for {rows} rows", positions.len());
    }
    if let Some(norm) = norm {
        host::expect("rotary norm", norm, &[head_dim])?;
    }
    Ok((rows, width))
}
