//! `y = x W^T` and its three gradients, each one matrix product that may add to what is there.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::{
    host,
    matmul::{Into, Mat, MatMut, Threads, matmul},
};

/// `scale * x W^T`, added to `into` where given (in place; `into` is returned).
///
/// # Shapes
/// `x [rows, in]`, `w [out, in]`, result `[rows, out]`.
///
/// # Errors
/// When shapes disagree or the device has no kernel.
pub fn forward(x: &Tensor, w: &Tensor, scale: f32, into: Option<Tensor>) -> Result<Tensor> {
    let (rows, width) = host::dims2("linear input", x)?;
    let (out, _) = host::dims2("linear weight", w)?;
    host::expect("linear weight", w, &[out, width])?;
    on_cuda!(x, super::cuda::linear::forward(x, w, scale, into));
    let (x, w) = (host::read("linear", x)?, host::read("linear", w)?);
    let (x, w) = (
        Mat::new(&x, rows, width, width),
        Mat::new(&w, out, width, width),
    );
    product("linear", x, w.t(), scale, rows, out, into)
}

/// `dx = scale * dy W`, added to `into` where given.
///
/// # Shapes
/// `dy [rows, out]`, `w [out, in]`, result `[rows, in]`.
///
/// # Errors
/// When shapes disagree or the device has no kernel.
pub fn backward_input(dy: &Tensor, w: &Tensor, scale: f32, into: Option<Tensor>) -> Result<Tensor> {
    let (rows, out) = host::dims2("linear output gradient", dy)?;
    let (_, width) = host::dims2("linear weight", w)?;
    host::expect("linear weight", w, &[out, width])?;
    on_cuda!(dy, super::cuda::linear::backward_input(dy, w, scale, into));
    let (dy, w) = (host::read("linear", dy)?, host::read("linear", w)?);
    let (dy, w) = (
        Mat::new(&dy, rows, out, out),
        Mat::new(&w, out, width, width),
    );
    product("linear", dy, w, scale, rows, width, into)
}

/// `dW (+)= scale * dy^T x`, in place.
///
/// # Shapes
/// `dy [rows, out]`, `x [rows, in]`, `slot [out, in]`.
///
/// # Errors
/// When shapes disagree or the device has no kernel.
pub fn backward_weight(
    dy: &Tensor,
    x: &Tensor,
    scale: f32,
    slot: &Tensor,
    into: Into,
) -> Result<()> {
    let (rows, out) = host::dims2("linear output gradient", dy)?;
    let (_, width) = host::dims2("linear input", x)?;
    host::expect("linear input", x, &[rows, width])?;
    host::expect("linear weight gradient", slot, &[out, width])?;
    on_cuda!(
        dy,
        super::cuda::linear::backward_weight(dy, x, scale, slot, into)
    );
    let (dy, x) = (host::read("linear", dy)?, host::read("linear", x)?);
    let (dy, x) = (
        Mat::new(&dy, rows, out, out),
        Mat::new(&x, rows, width, width),
    );
    host::write("linear", slot, |slot| {
        let slot = MatMut::new(slot, out, width, width);
        matmul(slot, into, dy.t(), x, scale, Threads::All);
    })
}

fn product(
    op: &'static str,
    lhs: Mat<'_>,
    rhs: Mat<'_>,
    scale: f32,
    rows: usize,
    columns: usize,
    into: Option<Tensor>,
) -> Result<Tensor> {
    match into {
        Some(tensor) => {
            host::expect("linear result", &tensor, &[rows, columns])?;
            host::write(op, &tensor, |dst| {
                let dst = MatMut::new(dst, rows, columns, columns);
                matmul(dst, Into::Add, lhs, rhs, scale, Threads::All);
            })?;
            Ok(tensor)
        }
        None => {
            let mut values = host::overwritten(rows * columns);
            let dst = MatMut::new(&mut values, rows, columns, columns);
            matmul(dst, Into::Overwrite, lhs, rhs, scale, Threads::All);
            host::tensor(values, (rows, columns))
        }
    }
}

/// Adds the row `bias` to every row of `y`, in place.
///
/// # Shapes
/// `y [rows, out]`, `bias [out]`.
///
/// # Errors
/// When shapes disagree or the device has no kernel.
pub fn add_bias(y: &Tensor, bias: &Tensor) -> Result<()> {
    let (_, out) = host::dims2("linear output", y)?;
    host::expect("linear bias", bias, &[out])?;
    on_cuda!(y, super::cuda::linear::add_bias(y, bias));
    let bias = host::read("linear bias", bias)?;
    host::write("linear bias", y, |y| {
        y.par_chunks_mut(out * host::ROWS_PER_TASK)
            .for_each(|rows| {
                for row in rows.chunks_exact_mut(out) {
                    for (y, b) in row.iter_mut().zip(&*bias) {
                        *y += b;
                    }
                }
            });
    })
}

/// `db += sum over rows of dy`, in place.
///
/// # Shapes
/// `dy [rows, out]`, `slot [out]`.
///
/// # Errors
/// When shapes disagree or the device has no kernel.
pub fn backward_bias(dy: &Tensor, slot: &Tensor) -> Result<()> {
    let (_, out) = host::dims2("linear output gradient", dy)?;
    host::expect("linear bias gradient", slot, &[out])?;
    on_cuda!(dy, super::cuda::linear::backward_bias(dy, slot));
    let dy = host::read("linear bias", dy)?;
    host::write("linear bias", slot, |slot| {
        for row in dy.chunks_exact(out) {
            for (sum, dy) in slot.iter_mut().zip(row) {
                *sum += dy;
            }
        }
    })
}
