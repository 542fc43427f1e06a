//! One fused pass over parameter, gradient and both moments.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::{host, simd::vectorised};

const ELEMENTS_PER_TASK: usize = 1 << 14;

/// The numbers of one step that are the same for every element of a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Coefficients {
    /// Multiplies the gradient first: what clipping leaves of it.
    pub gradient_scale: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Multiplies the parameter: `1 - lr * weight_decay`.
    pub keep: f32,
    /// `lr / (1 - beta1^t)`.
    pub step_size: f32,
    /// `1 / sqrt(1 - beta2^t)`.
    pub inverse_root_correction: f32,
    /// Added to the corrected root of the second moment.
    pub eps: f32,
    /// Of the draws that round bfloat16 parameters; another one in every step and for every tensor.
    /// f32 parameters are not rounded.
    pub rounding_seed: u32,
}

/// `[adamw]` in docs/equations.md, in place. All four tensors have one shape.
///
/// # Errors
/// When shapes disagree or the device has no kernel.
pub fn step(
    parameter: &Tensor,
    gradient: &Tensor,
    first: &Tensor,
    second: &Tensor,
    c: Coefficients,
) -> Result<()> {
    for tensor in [gradient, first, second] {
        host::expect("adamw", tensor, parameter.dims())?;
    }
    on_cuda!(
        parameter,
        super::cuda::adamw::step(parameter, gradient, first, second, c)
    );
    let gradient = host::read("adamw", gradient)?;
    host::write("adamw", parameter, |p| {
        host::write("adamw", first, |m| {
            host::write("adamw", second, |v| update(p, &gradient, m, v, c))
        })
    })??
}

fn update(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], c: Coefficients) {
    p.par_chunks_mut(ELEMENTS_PER_TASK)
        .zip(g.par_chunks(ELEMENTS_PER_TASK))
        .zip(m.par_chunks_mut(ELEMENTS_PER_TASK))
        .zip(v.par_chunks_mut(ELEMENTS_PER_TASK))
        .for_each(|(((p, g), m), v)| {
            vectorised(
                #[inline(always)]
                || {
                    for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
                        let g = g * c.gradient_scale;
                        *m = c.beta1 * *m + (1.0 - c.beta1) * g;
                        *v = c.beta2 * *v + (1.0 - c.beta2) * g * g;
                        let root = v.sqrt() * c.inverse_root_correction + c.eps;
                        *p = *p * c.keep - c.step_size * *m / root;
                    }
                },
            );
        });
}
