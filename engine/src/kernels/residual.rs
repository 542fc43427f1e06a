//! The residual connection: `y += x`.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::host;

const ELEMENTS_PER_TASK: usize = 1 << 14;

/// `y += x`, in place.
///
/// # Errors
/// When shapes disagree or the device has no kernel.
pub fn add_assign(y: &Tensor, x: &Tensor) -> Result<()> {
    host::expect("residual", x, y.dims())?;
    on_cuda!(y, super::cuda::residual::add_assign(y, x));
    let x = host::read("residual", x)?;
    host::write("residual", y, |y| {
        y.par_chunks_mut(ELEMENTS_PER_TASK)
            .zip(x.par_chunks(ELEMENTS_PER_TASK))
            .for_each(|(y, x)| {
                for (y, x) in y.iter_mut().zip(x) {
                    *y += x;
                }
            });
    })
}
