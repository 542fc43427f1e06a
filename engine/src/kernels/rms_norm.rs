//! `y = x / rms(x) * w` with `rms(x) = sqrt(mean(x^2) + eps)`, per row (arXiv 1910.07467).

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::{
    host::{self, ROWS_PER_TASK},
    simd::{dot, sum, vectorised},
};

/// Normalises every row.
///
/// # Shapes
/// `x [rows, width]`, `w [width]`, result `[rows, width]`.
///
/// # Errors
/// When shapes disagree or the device has no kernel.
pub fn forward(x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
    let (rows, width) = host::dims2("rms_norm input", x)?;
    host::expect("rms_norm weight", w, &[width])?;
    on_cuda!(x, super::cuda::rms_norm::forward(x, w, eps));
    let (x, w) = (host::read("rms_norm", x)?, host::read("rms_norm", w)?);
    let mut y = host::overwritten(rows * width);
    y.par_chunks_mut(width * ROWS_PER_TASK)
        .zip(x.par_chunks(width * ROWS_PER_TASK))
        .for_each(|(y, x)| {
            vectorised(
                #[inline(always)]
                || {
                    for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                        let inv = inverse_rms(x, eps);
                        for ((y, x), w) in y.iter_mut().zip(x).zip(&*w) {
                            *y = x * inv * w;
                        }
                    }
                },
            );
        });
    host::tensor(y, (rows, width))
}

/// Turns `dy` into `dL/dx`, in place, plus `residual` where given (the gradient that flows past the
/// norm). Adds `dL/dw` into `slot` where given.
///
/// `dx = inv * (dy * w - xhat * mean(dy * w * xhat))`, `dw = sum over rows of dy * xhat`, with
/// `xhat = x * inv`.
///
/// # Shapes
/// `dy`, `x`, `residual` `[rows, width]`; `w`, `slot` `[width]`.
///
/// # Errors
/// When shapes disagree or the device has no kernel.
pub fn backward_in_place(
    dy: &Tensor,
    x: &Tensor,
    w: &Tensor,
    eps: f64,
    residual: Option<&Tensor>,
    slot: Option<&Tensor>,
) -> Result<()> {
    let (rows, width) = host::dims2("rms_norm input", x)?;
    host::expect("rms_norm output gradient", dy, &[rows, width])?;
    host::expect("rms_norm weight", w, &[width])?;
    if let Some(residual) = residual {
        host::expect("rms_norm residual", residual, &[rows, width])?;
    }
    on_cuda!(
        x,
        super::cuda::rms_norm::backward_in_place(dy, x, w, eps, residual, slot)
    );
    let (x, w) = (host::read("rms_norm", x)?, host::read("rms_norm", w)?);
    let residual = residual.map(|r| host::read("rms_norm", r)).transpose()?;
    let residual = residual.as_deref();
    let n_tasks = rows.div_ceil(ROWS_PER_TASK);
    let mut partial = vec![0.0f32; n_tasks * width];
    host::write("rms_norm", dy, |dy| {
        dy.par_chunks_mut(width * ROWS_PER_TASK)
            .zip(x.par_chunks(width * ROWS_PER_TASK))
            .zip(partial.par_chunks_mut(width))
            .enumerate()
            .for_each(|(task, ((dy, x), dw))| {
                let first = task * ROWS_PER_TASK * width;
                let residual = residual.map(|r| &r[first..first + dy.len()]);
                vectorised(
                    #[inline(always)]
                    || {
                        let rows = dy.chunks_exact_mut(width).zip(x.chunks_exact(width));
                        for (row, (dy, x)) in rows.enumerate() {
                            row_backward(dy, x, &w, eps, dw);
                            if let Some(residual) = residual {
                                let residual = &residual[row * width..][..width];
                                for (dx, r) in dy.iter_mut().zip(residual) {
                                    *dx += r;
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

/// `1 / sqrt(mean(x^2) + eps)`.
#[inline(always)]
pub(super) fn inverse_rms(x: &[f32], eps: f64) -> f32 {
    let mean = sum(x.len(), |i| x[i] * x[i]) / x.len() as f32;
    1.0 / (mean + eps as f32).sqrt()
}

/// Turns `dy` into `dx` and adds to `dw`, for one row.
#[inline(always)]
pub(super) fn row_backward(dy: &mut [f32], x: &[f32], w: &[f32], eps: f64, dw: &mut [f32]) {
    let n = x.len();
    let (dy, w, dw) = (&mut dy[..n], &w[..n], &mut dw[..n]);
    let inv = inverse_rms(x, eps);
    for i in 0..n {
        dw[i] += dy[i] * x[i] * inv;
        dy[i] *= w[i];
    }
    let mean = dot(dy, x) * inv / n as f32;
    for i in 0..n {
        dy[i] = inv * (dy[i] - x[i] * inv * mean);
    }
}

/// `slot += sum over tasks of partial[task]`, in the order of the tasks.
pub(super) fn add_partial_sums(slot: &Tensor, partial: &[f32]) -> Result<()> {
    host::write("rms_norm", slot, |slot| {
        for partial in partial.chunks_exact(slot.len()) {
            for (sum, p) in slot.iter_mut().zip(partial) {
                *sum += p;
            }
        }
    })
}
