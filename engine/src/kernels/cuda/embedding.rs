//! Twin of `kernels::embedding`, and gathers and scatters of rows.

use candle_core::{DType, Result, Tensor};

use super::{
    launch::{Launch, Source, THREADS, source, threads_for_eights},
    memory::{indices, one_dtype, overwritten, zeros},
};

const SOURCE: Source = source!("embedding");

/// `y[r] = table[ids[r]]`; the ids have been checked.
pub(in crate::kernels) fn forward(table: &Tensor, ids: &[u32]) -> Result<Tensor> {
    let width = table.dim(1)?;
    let dtype = one_dtype("embedding", &[table])?;
    let y = overwritten((ids.len(), width), dtype, table.device())?;
    if ids.is_empty() {
        return Ok(y);
    }
    forward_into(table, &indices(ids, table.device())?, &y)?;
    Ok(y)
}

/// `y[r] = table[ids[r]]` with ids on the device, as many as there are; further rows of `y` stay.
pub(crate) fn forward_into(table: &Tensor, ids: &Tensor, y: &Tensor) -> Result<()> {
    let width = table.dim(1)?;
    one_dtype("embedding", &[table, y])?;
    Launch::of(SOURCE, "gather_rows", table)?
        .tensor(table)?
        .tensor(ids)?
        .tensor(y)?
        .u32(width)?
        .run((ids.elem_count(), 1), threads_for_eights(width, THREADS))
}

/// `slot[ids[r]] += dy[r]`, rows of an id in order.
pub(in crate::kernels) fn backward(dy: &Tensor, ids: &[u32], slot: &Tensor) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    let (rows, width) = dy.dims2()?;
    let mut order: Vec<u32> = (0..rows as u32).collect();
    // Stable: rows of one id stay in order.
    order.sort_by_key(|row| ids[*row as usize]);
    let (mut unique, mut starts) = (Vec::new(), Vec::new());
    for (at, row) in order.iter().enumerate() {
        let id = ids[*row as usize];
        if unique.last() != Some(&id) {
            unique.push(id);
            starts.push(at as u32);
        }
    }
    starts.push(rows as u32);
    let device = dy.device();
    Launch::of(SOURCE, "embedding_backward", dy)?
        .tensor(dy)?
        .tensor(&indices(&unique, device)?)?
        .tensor(&indices(&starts, device)?)?
        .tensor(&indices(&order, device)?)?
        .tensor(slot)?
        .u32(width)?
        .run((unique.len(), width.div_ceil(THREADS as usize)), THREADS)
}

/// `x[r] *= factors[r]`, in place.
pub(super) fn scale_rows(x: &Tensor, factors: &Tensor) -> Result<()> {
    let (rows, width) = x.dims2()?;
    Launch::of(SOURCE, "scale_rows", x)?
        .tensor(x)?
        .tensor(factors)?
        .u32(width)?
        .run((rows, 1), threads_for_eights(width, THREADS))
}

/// `y[rows[r]] = factors[r] * x[r]`; `x` is f32, no row of `y` is named twice.
pub(super) fn scatter_scaled(
    x: &Tensor,
    rows: &Tensor,
    factors: &Tensor,
    y: &Tensor,
) -> Result<()> {
    debug_assert_eq!(x.dtype(), DType::F32);
    let (n, width) = x.dims2()?;
    Launch::of(SOURCE, "scatter_scaled", y)?
        .tensor(x)?
        .tensor(rows)?
        .tensor(factors)?
        .tensor(y)?
        .u32(width)?
        .run((n, 1), threads_for_eights(width, THREADS))
}

/// Zeros like `[rows, width]` of `like`.
pub(super) fn blank(like: &Tensor) -> Result<Tensor> {
    zeros(like.shape(), like.dtype(), like.device())
}
