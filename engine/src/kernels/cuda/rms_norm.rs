//! Twin of `kernels::rms_norm`.

use candle_core::{DType, Result, Tensor};

use super::{
    launch::{Launch, Source, source, threads_for_eights},
    memory::{one_dtype, overwritten},
    residual::add_partial_sums,
};
use crate::kernels::buffers::run_of;

const SOURCE: Source = source!("rms_norm");

/// Threads of a block, at most: those of a row of 8192.
const THREADS: u32 = 1024;

pub(in crate::kernels) fn forward(x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
    let y = overwritten(x.shape(), x.dtype(), x.device())?;
    forward_into(x, w, eps, &y)?;
    Ok(y)
}

/// [`forward`] into `y`, which is like `x`.
pub(crate) fn forward_into(x: &Tensor, w: &Tensor, eps: f64, y: &Tensor) -> Result<()> {
    let (rows, width) = x.dims2()?;
    one_dtype("rms_norm", &[x, w, y])?;
    Launch::of(SOURCE, "rms_norm_forward", x)?
        .tensor(x)?
        .tensor(w)?
        .tensor(y)?
        .u32(width)?
        .f32(eps as f32)
        .run((rows, 1), threads_for_eights(width, THREADS))
}

pub(in crate::kernels) fn backward_in_place(
    dy: &Tensor,
    x: &Tensor,
    w: &Tensor,
    eps: f64,
    residual: Option<&Tensor>,
    slot: Option<&Tensor>,
) -> Result<()> {
    let (rows, width) = x.dims2()?;
    one_dtype("rms_norm", &[dy, x, w, residual.unwrap_or(dy)])?;
    // Without a sum over rows every row is a block of its own.
    let run = slot.map_or(1, |_| run_of(rows));
    let runs = rows.div_ceil(run);
    let partial = slot
        .map(|slot| overwritten((runs, width), DType::F32, slot.device()))
        .transpose()?;
    Launch::of(SOURCE, "rms_norm_backward", dy)?
        .tensor(dy)?
        .tensor(x)?
        .tensor(w)?
        .optional(residual)?
        .optional(partial.as_ref())?
        .u32(rows)?
        .u32(width)?
        .u32(run)?
        .f32(eps as f32)
        .run((runs, 1), threads_for_eights(width, THREADS))?;
    match (slot, partial) {
        (Some(slot), Some(partial)) => add_partial_sums(slot, &partial),
        _ => Ok(()),
    }
}
