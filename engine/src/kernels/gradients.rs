//! What happens to gradients between backward pass and optimiser.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::{
    host,
    simd::{dot, vectorised},
};

const ELEMENTS_PER_TASK: usize = 1 << 14;

/// Sets every element to zero, in place.
///
/// # Errors
/// When the device has no kernel.
pub fn zero(slot: &Tensor) -> Result<()> {
    on_cuda!(slot, super::cuda::gradients::zero(slot));
    host::write("zero", slot, |values| {
        values
            .par_chunks_mut(ELEMENTS_PER_TASK)
            .for_each(|values| values.fill(0.0));
    })
}

/// Multiplies every element by `factor`, in place.
///
/// # Errors
/// When the device has no kernel.
pub fn scale(slot: &Tensor, factor: f32) -> Result<()> {
    on_cuda!(slot, super::cuda::gradients::scale(slot, factor));
    host::write("scale", slot, |values| {
        values
            .par_chunks_mut(ELEMENTS_PER_TASK)
            .for_each(|values| values.iter_mut().for_each(|value| *value *= factor));
    })
}

/// The inner product of two tensors of one shape, in f64 over blocks of f32: the same whatever the
/// number of threads.
///
/// # Errors
/// When shapes disagree or the device has no kernel.
pub fn inner_product(a: &Tensor, b: &Tensor) -> Result<f64> {
    const BLOCK: usize = 1024;
    host::expect("inner product", a, b.dims())?;
    let (a, b) = (
        host::read("inner product", a)?,
        host::read("inner product", b)?,
    );
    let partial: Vec<f64> = a
        .par_chunks(ELEMENTS_PER_TASK)
        .zip(b.par_chunks(ELEMENTS_PER_TASK))
        .map(|(a, b)| {
            let blocks = a.chunks(BLOCK).zip(b.chunks(BLOCK));
            blocks.map(|(a, b)| f64::from(dot(a, b))).sum::<f64>()
        })
        .collect();
    Ok(partial.iter().sum())
}

/// The sum of the squares, in f64 over blocks of f32: the same whatever the number of threads.
///
/// # Errors
/// When the device has no kernel.
pub fn sum_of_squares(slot: &Tensor) -> Result<f64> {
    const BLOCK: usize = 1024;
    on_cuda!(
        slot,
        Ok(super::cuda::gradients::sums_of_squares(&[slot])?[0])
    );
    let values = host::read("norm", slot)?;
    let partial: Vec<f64> = values
        .par_chunks(ELEMENTS_PER_TASK)
        .map(|values| {
            vectorised(
                #[inline(always)]
                || {
                    values
                        .chunks(BLOCK)
                        .map(|v| f64::from(dot(v, v)))
                        .sum::<f64>()
                },
            )
        })
        .collect();
    Ok(partial.iter().sum())
}

/// The norm of gradients, and by what clipping multiplies them: on a GPU, where both stay until
/// somebody asks.
#[derive(Debug)]
pub enum Clip {
    /// Known.
    Known {
        /// Global 2-norm.
        norm: f64,
        /// At most 1.
        factor: f32,
    },
    /// On a device, maybe not computed yet; both NaN where a log-prob or the norm is no number.
    OnDevice {
        /// `[1]`, f64.
        norm: Tensor,
        /// `[1]`, f32.
        factor: Tensor,
    },
}

impl Clip {
    /// The norm; waits for the device.
    ///
    /// # Errors
    /// When the device fails.
    pub fn norm(&self) -> Result<f64> {
        match self {
            Self::Known { norm, .. } => Ok(*norm),
            Self::OnDevice { norm, .. } => Ok(norm.to_vec1::<f64>()?[0]),
        }
    }
}

/// Clips the gradients `slots` to the norm `largest`, if that is above 0. On a GPU `statistics` (`[rows,
/// 4]`, the first of a row its log-prob) are looked at too, without waiting for them, and `failed` (`[1]`,
/// f64): where it is NaN, norm and factor are, and it becomes NaN where they are.
///
/// # Errors
/// When the device has no kernel.
pub fn clip(
    slots: &[&Tensor],
    largest: f64,
    statistics: &[&Tensor],
    failed: Option<&Tensor>,
) -> Result<Clip> {
    #[cfg(any(test, feature = "cuda"))]
    if let Some(first) = slots.first()
        && super::cuda::runs(first)
    {
        let (norm, factor) = super::cuda::gradients::clip(slots, largest, statistics, failed)?;
        return Ok(Clip::OnDevice { norm, factor });
    }
    // Everything is known, or nothing is learnt in this step.
    debug_assert!(
        statistics.is_empty() && (failed.is_none() || slots.is_empty()),
        "what the CPU has found is known"
    );
    let norm = sums_of_squares(slots)?.iter().sum::<f64>().sqrt();
    let factor = match largest > 0.0 && norm > largest {
        true => largest / norm,
        false => 1.0,
    };
    Ok(Clip::Known {
        norm,
        factor: factor as f32,
    })
}

/// [`sum_of_squares`] of each of `slots`, which are on one device: on a GPU one wait for all.
///
/// # Errors
/// When the device has no kernel.
pub fn sums_of_squares(slots: &[&Tensor]) -> Result<Vec<f64>> {
    if slots.is_empty() {
        return Ok(Vec::new());
    }
    on_cuda!(slots[0], super::cuda::gradients::sums_of_squares(slots));
    slots.iter().map(|slot| sum_of_squares(slot)).collect()
}
