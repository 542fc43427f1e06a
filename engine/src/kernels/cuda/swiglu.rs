//! Twin of `kernels::swiglu`.

use candle_core::{Result, Tensor};

use super::{
    launch::{Launch, Source, source},
    memory::{one_dtype, overwritten},
};

const SOURCE: Source = source!("swiglu");

pub(in crate::kernels) fn forward(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let dtype = one_dtype("swiglu", &[gate, up])?;
    let n = gate.elem_count();
    let h = overwritten(gate.shape(), dtype, gate.device())?;
    Launch::of(SOURCE, "swiglu_forward", gate)?
        .tensor(gate)?
        .tensor(up)?
        .tensor(&h)?
        .u64(n as u64)
        .per_eight(n)?;
    Ok(h)
}

/// `h = silu(gate) * up` of rows `both`, gates and ups side by side: `[rows, 2 * hidden]` into
/// `[rows, hidden]`.
pub(crate) fn side_by_side(both: &Tensor, h: &Tensor) -> Result<()> {
    one_dtype("swiglu", &[both, h])?;
    let (n, hidden) = (h.elem_count(), h.dim(1)?);
    Launch::of(SOURCE, "swiglu_side_by_side", both)?
        .tensor(both)?
        .tensor(h)?
        .u64(n as u64)
        .u32(hidden)?
        .per_element(n)
}

pub(in crate::kernels) fn backward_in_place(gate: &Tensor, up: &Tensor, dh: &Tensor) -> Result<()> {
    one_dtype("swiglu", &[gate, up, dh])?;
    let n = gate.elem_count();
    Launch::of(SOURCE, "swiglu_backward", gate)?
        .tensor(gate)?
        .tensor(up)?
        .tensor(dh)?
        .u64(n as u64)
        .per_eight(n)
}
