//! Twin of `kernels::linear`.

use candle_core::{Result, Tensor};

use super::{
    gemm::{Matrix, gemm},
    memory::overwritten,
    residual,
};
use crate::kernels::Into;

pub(in crate::kernels) fn forward(
    x: &Tensor,
    w: &Tensor,
    scale: f32,
    into: Option<Tensor>,
) -> Result<Tensor> {
    let w = like(w, x)?;
    product(
        Matrix::new(x)?,
        Matrix::new(&w)?.t(),
        scale,
        into,
        x,
        w.dim(0)?,
    )
}

pub(in crate::kernels) fn backward_input(
    dy: &Tensor,
    w: &Tensor,
    scale: f32,
    into: Option<Tensor>,
) -> Result<Tensor> {
    let w = like(w, dy)?;
    product(
        Matrix::new(dy)?,
        Matrix::new(&w)?,
        scale,
        into,
        dy,
        w.dim(1)?,
    )
}

pub(in crate::kernels) fn backward_weight(
    dy: &Tensor,
    x: &Tensor,
    scale: f32,
    slot: &Tensor,
    into: Into,
) -> Result<()> {
    let (dy, x) = (Matrix::new(dy)?.t(), Matrix::new(x)?);
    gemm("linear", slot, into, dy, x, scale)
}

pub(in crate::kernels) fn add_bias(y: &Tensor, bias: &Tensor) -> Result<()> {
    residual::add_bias(y, &like(bias, y)?)
}

pub(in crate::kernels) fn backward_bias(dy: &Tensor, slot: &Tensor) -> Result<()> {
    residual::add_rows(slot, dy)
}

/// `w` in the type of the activations `x`: adapters are kept in f32 beside bfloat16 weights.
fn like(w: &Tensor, x: &Tensor) -> Result<Tensor> {
    w.to_dtype(x.dtype())
}

fn product(
    a: Matrix<'_>,
    b: Matrix<'_>,
    scale: f32,
    into: Option<Tensor>,
    rows_of: &Tensor,
    columns: usize,
) -> Result<Tensor> {
    match into {
        Some(y) => {
            gemm("linear", &y, Into::Add, a, b, scale)?;
            Ok(y)
        }
        None => {
            let shape = (rows_of.dim(0)?, columns);
            let y = overwritten(shape, rows_of.dtype(), rows_of.device())?;
            gemm("linear", &y, Into::Overwrite, a, b, scale)?;
            Ok(y)
        }
    }
}
