//! Twin of `kernels::rotary`.

use std::{cell::RefCell, sync::Arc};

use candle_core::{DType, Device, Result, Tensor, bail};

use super::{
    launch::{Launch, Source, source},
    memory::{indices, one_dtype, overwritten, upload},
    residual::add_partial_sums,
};
use crate::kernels::{
    buffers::{ROTARY_WARPS as WARPS, rotary_warps},
    rotary::RotaryTable,
};

const SOURCE: Source = source!("rotary");

/// The widest head a warp can hold.
const MOST_HEAD_DIM: usize = 256;

pub(in crate::kernels) fn forward(
    x: &Tensor,
    norm: Option<&Tensor>,
    eps: f64,
    head_dim: usize,
    table: &RotaryTable,
    positions: &[u32],
) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let dtype = one_dtype("rotary", &[x, norm.unwrap_or(x)])?;
    check_head(head_dim)?;
    let heads = width / head_dim;
    let y = overwritten((rows, width), dtype, x.device())?;
    Launch::of(SOURCE, "rotary_forward", x)?
        .tensor(x)?
        .optional(norm)?
        .tensor(&angles(table, positions, x.device())?)?
        .tensor(&indices(positions, x.device())?)?
        .tensor(&y)?
        .u32(rows * heads)?
        .u32(heads)?
        .u32(head_dim)?
        .u32(table.rotary_dim())?
        .f32(eps as f32)
        .run(((rows * heads).div_ceil(WARPS), 1), 32 * WARPS as u32)?;
    Ok(y)
}

#[expect(clippy::too_many_arguments, reason = "those of the twin")]
pub(in crate::kernels) fn backward_in_place(
    dy: &Tensor,
    x: &Tensor,
    norm: Option<&Tensor>,
    eps: f64,
    head_dim: usize,
    table: &RotaryTable,
    positions: &[u32],
    slot: Option<&Tensor>,
) -> Result<()> {
    let (rows, width) = x.dims2()?;
    one_dtype("rotary", &[dy, x, norm.unwrap_or(x)])?;
    check_head(head_dim)?;
    let heads = width / head_dim;
    let warps = rotary_warps(rows * heads);
    let partial = slot
        .map(|_| overwritten((warps / WARPS, head_dim), DType::F32, x.device()))
        .transpose()?;
    // Heads that turn whole, by their size; `turns_whole` of rotary.cu.
    let kernel = match (head_dim, table.rotary_dim() == head_dim) {
        (64, true) => "rotary_backward_64",
        (128, true) => "rotary_backward_128",
        (256, true) => "rotary_backward_256",
        _ => "rotary_backward",
    };
    Launch::of(SOURCE, kernel, dy)?
        .tensor(dy)?
        .tensor(x)?
        .optional(norm)?
        .tensor(&angles(table, positions, x.device())?)?
        .tensor(&indices(positions, x.device())?)?
        .optional(partial.as_ref())?
        .u32(rows * heads)?
        .u32(heads)?
        .u32(head_dim)?
        .u32(table.rotary_dim())?
        .f32(eps as f32)
        .run((warps / WARPS, 1), 32 * WARPS as u32)?;
    match (slot, partial) {
        (Some(slot), Some(partial)) if rows > 0 => add_partial_sums(slot, &partial),
        _ => Ok(()),
    }
}

pub(crate) fn check_head(head_dim: usize) -> Result<()> {
    if head_dim > MOST_HEAD_DIM {
        bail!("rotary: heads of {head_dim}; the CUDA kernel has room for {MOST_HEAD_DIM}");
    }
    Ok(())
}

thread_local! {
    /// The table on the device. The host's stays alive, so that its address means it.
    static TABLE: RefCell<Option<(Arc<Vec<f32>>, Tensor)>> = const { RefCell::new(None) };
}

/// The angles of `positions` on the device, flat; copied when the table has grown.
pub(crate) fn angles(table: &RotaryTable, positions: &[u32], device: &Device) -> Result<Tensor> {
    let rows = table.covering(positions);
    TABLE.with_borrow_mut(|kept| {
        if let Some((known, tensor)) = kept
            && Arc::ptr_eq(known, &rows)
            && tensor.device().same_device(device)
        {
            return Ok(tensor.clone());
        }
        let tensor = upload(&rows, device)?;
        *kept = Some((rows, tensor.clone()));
        Ok(tensor)
    })
}
