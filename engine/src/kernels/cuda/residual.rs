//! Twin of `kernels::residual`, and what adds rows up.

use candle_core::{DType, Result, Tensor};

use super::{
    launch::{Launch, Source, THREADS, source},
    memory::{one_dtype, overwritten},
};
use crate::kernels::buffers::run_of;

const SOURCE: Source = source!("residual");

pub(in crate::kernels) fn add_assign(y: &Tensor, x: &Tensor) -> Result<()> {
    one_dtype("residual", &[y, x])?;
    let n = y.elem_count();
    Launch::of(SOURCE, "add_assign", y)?
        .tensor(y)?
        .tensor(x)?
        .u64(n as u64)
        .per_eight(n)
}

/// `y[r] += bias`.
pub(crate) fn add_bias(y: &Tensor, bias: &Tensor) -> Result<()> {
    one_dtype("linear bias", &[y, bias])?;
    let n = y.elem_count();
    Launch::of(SOURCE, "add_bias", y)?
        .tensor(y)?
        .tensor(bias)?
        .u64(n as u64)
        .u32(bias.elem_count())?
        .per_element(n)
}

/// `slot += sum over rows of x`.
pub(super) fn add_rows(slot: &Tensor, x: &Tensor) -> Result<()> {
    let (rows, width) = x.dims2()?;
    let run = run_of(rows);
    let runs = rows.div_ceil(run);
    let partial = overwritten((runs, width), DType::F32, x.device())?;
    Launch::of(SOURCE, "sum_rows", x)?
        .tensor(x)?
        .tensor(&partial)?
        .u32(rows)?
        .u32(width)?
        .u32(run)?
        .run((width.div_ceil(THREADS as usize), runs), THREADS)?;
    add_partial_sums(slot, &partial)
}

/// `slot += sum over n of partial[n]`, in an order that `n` alone decides. `partial [n, width]`, `slot [width]`, f32.
pub(super) fn add_partial_sums(slot: &Tensor, partial: &Tensor) -> Result<()> {
    let (n, width) = partial.dims2()?;
    Launch::plain(SOURCE, "add_partial_sums", slot.device())
        .tensor(slot)?
        .tensor(partial)?
        .u32(n)?
        .u32(width)?
        .run((width.div_ceil(32), 1), 1024)
}
