//! Twin of `kernels::adamw`; bfloat16 parameters are rounded at random.

use candle_core::{Result, Tensor};

use super::launch::{Launch, Source, source};
use crate::kernels::adamw::Coefficients;

const SOURCE: Source = source!("adamw");

pub(in crate::kernels) fn step(
    parameter: &Tensor,
    gradient: &Tensor,
    first: &Tensor,
    second: &Tensor,
    c: Coefficients,
) -> Result<()> {
    let n = parameter.elem_count();
    Launch::of(SOURCE, "adamw_step", parameter)?
        .tensor(parameter)?
        .tensor(gradient)?
        .tensor(first)?
        .tensor(second)?
        .u64(n as u64)
        .f32(c.gradient_scale)
        .f32(c.beta1)
        .f32(c.beta2)
        .f32(c.keep)
        .f32(c.step_size)
        .f32(c.inverse_root_correction)
        .f32(c.eps)
        .u32(c.rounding_seed as usize)?
        .per_element(n)
}
