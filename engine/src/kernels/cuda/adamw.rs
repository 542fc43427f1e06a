//! Twin of `kernels::adamw`; bfloat16 parameters are rounded at random, as bfloat16 moments are.

use std::cell::RefCell;

use candle_core::{DType, Device, Result, Tensor};

use super::launch::{Launch, Source, source};
use crate::kernels::adamw::{BLOCK, Coefficients, MAPS, Quantised};

const SOURCE: Source = source!("adamw");

pub(in crate::kernels) fn step(
    parameter: &Tensor,
    gradient: &Tensor,
    first: &Tensor,
    second: &Tensor,
    c: Coefficients,
) -> Result<()> {
    let n = parameter.elem_count();
    let kernel = match first.dtype() {
        DType::BF16 => "adamw_bf16_step",
        _ => "adamw_step",
    };
    let launch = Launch::of(SOURCE, kernel, parameter)?
        .tensor(parameter)?
        .tensor(gradient)?
        .tensor(first)?
        .tensor(second)?;
    coefficients(launch, n, c)?.per_element(n)
}

fn coefficients(launch: Launch, n: usize, c: Coefficients) -> Result<Launch> {
    launch
        .u64(n as u64)
        .f32(c.gradient_scale)
        .f32(c.beta1)
        .f32(c.beta2)
        .f32(c.keep)
        .f32(c.step_size)
        .f32(c.inverse_root_correction)
        .f32(c.eps)
        .u32(c.rounding_seed as usize)
}

pub(in crate::kernels) fn step_8bit(
    parameter: &Tensor,
    gradient: &Tensor,
    first: &Quantised,
    second: &Quantised,
    c: Coefficients,
) -> Result<()> {
    let n = parameter.elem_count();
    let [signed, unsigned] = maps(parameter.device())?;
    let launch = Launch::of(SOURCE, "adamw_8bit_step", parameter)?
        .tensor(parameter)?
        .tensor(gradient)?
        .tensor(&first.codes)?
        .tensor(&first.scales)?
        .tensor(&second.codes)?
        .tensor(&second.scales)?
        .tensor(&signed)?
        .tensor(&unsigned)?;
    coefficients(launch, n, c)?.run((n.div_ceil(BLOCK), 1), BLOCK as u32)
}

thread_local! {
    /// On the device that asked last.
    static ON_DEVICE: RefCell<Option<[Tensor; 2]>> = const { RefCell::new(None) };
}

/// Both maps on `device`.
fn maps(device: &Device) -> Result<[Tensor; 2]> {
    ON_DEVICE.with_borrow_mut(|kept| {
        if let Some(kept) = kept.as_ref().filter(|k| k[0].device().same_device(device)) {
            return Ok(kept.clone());
        }
        let made = [
            Tensor::new(&MAPS.signed, device)?,
            Tensor::new(&MAPS.unsigned, device)?,
        ];
        *kept = Some(made.clone());
        Ok(made)
    })
}
