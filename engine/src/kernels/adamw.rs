//! One fused pass over parameter, gradient and both moments, which are f32, bfloat16 or quantised.

use std::sync::LazyLock;

use candle_core::{DType, Device, Result, Shape, Tensor, bail};
use half::bf16;
use rayon::prelude::*;

use super::{gradients::Clip, host, simd::vectorised};

const ELEMENTS_PER_TASK: usize = 1 << 14;

/// The numbers of one step that are the same for every element of a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Coefficients {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Multiplies parameters that decay: `1 - lr * weight_decay`.
    pub keep: f32,
    /// `lr / (1 - beta1^t)`.
    pub step_size: f32,
    /// `1 / sqrt(1 - beta2^t)`.
    pub inverse_root_correction: f32,
    /// Added to the corrected root of the second moment.
    pub eps: f32,
    /// Of the draws that round bfloat16 parameters and moments, to which [`Item::index`] is added;
    /// another one in every step and for every tensor. What is f32 is not rounded.
    pub rounding_seed: u32,
}

/// A tensor of a step. All tensors in it have one shape.
#[derive(Debug, Clone, Copy)]
pub struct Item<'a> {
    /// What learns, f32 or bfloat16.
    pub parameter: &'a Tensor,
    /// f32.
    pub gradient: &'a Tensor,
    /// Renewed.
    pub moments: MomentPair<'a>,
    /// Whether [`Coefficients::keep`] is for it.
    pub decays: bool,
    /// Tells the tensors of a step apart.
    pub index: u32,
}

/// The running means of a gradient and of its square.
#[derive(Debug, Clone, Copy)]
pub enum MomentPair<'a> {
    /// Both f32, or both bfloat16 and rounded at random (`[adamw-bf16]`).
    Full(&'a Tensor, &'a Tensor),
    /// Both in 8 bits (`[adamw-8bit]`).
    Quantised(&'a Quantised, &'a Quantised),
}

impl Item<'_> {
    fn check(&self) -> Result<()> {
        let shape = self.parameter.dims();
        host::expect("adamw", self.gradient, shape)?;
        match self.moments {
            MomentPair::Full(first, second) => {
                for tensor in [first, second] {
                    host::expect("adamw", tensor, shape)?;
                }
                if first.dtype() != second.dtype() {
                    let (first, second) = (first.dtype(), second.dtype());
                    bail!(
                        "adamw: moments of {first:?} and {second:?}; both have to be of one type"
                    );
                }
            }
            MomentPair::Quantised(first, second) => {
                let blocks = self.parameter.elem_count().div_ceil(BLOCK);
                for moment in [first, second] {
                    host::expect("adamw", &moment.codes, shape)?;
                    host::expect("adamw", &moment.scales, &[blocks])?;
                }
            }
        }
        Ok(())
    }
}

/// `[adamw]` in docs/equations.md, in place, for all tensors of a step; gradients are multiplied by
/// what `clip` leaves of them.
///
/// # Errors
/// When shapes or the moments' types disagree, or the device has no kernel.
pub fn step(items: &[Item<'_>], c: Coefficients, clip: &Clip) -> Result<()> {
    if items.is_empty() {
        return Ok(());
    }
    items.iter().try_for_each(Item::check)?;
    on_cuda!(items[0].parameter, super::cuda::adamw::step(items, c, clip));
    let Clip::Known { factor, .. } = clip else {
        bail!("adamw: clipping on another device than the parameters'");
    };
    for item in items {
        let c = Coefficients {
            keep: if item.decays { c.keep } else { 1.0 },
            rounding_seed: c.rounding_seed.wrapping_add(item.index),
            ..c
        };
        one_tensor(item, c, *factor)?;
    }
    Ok(())
}

fn one_tensor(item: &Item<'_>, c: Coefficients, scale: f32) -> Result<()> {
    let gradient = host::read("adamw", item.gradient)?;
    host::write("adamw", item.parameter, |p| match item.moments {
        MomentPair::Full(first, second) if first.dtype() == DType::BF16 => {
            host::write_bf16("adamw", first, |m| {
                host::write_bf16("adamw", second, |v| {
                    update_bf16(p, &gradient, m, v, c, scale)
                })
            })?
        }
        MomentPair::Full(first, second) => host::write("adamw", first, |m| {
            host::write("adamw", second, |v| update(p, &gradient, m, v, c, scale))
        })?,
        MomentPair::Quantised(first, second) => host::write_bytes("adamw", &first.codes, |m| {
            host::write("adamw", &first.scales, |m_scales| {
                host::write_bytes("adamw", &second.codes, |v| {
                    host::write("adamw", &second.scales, |v_scales| {
                        update_8bit(p, &gradient, (m, m_scales), (v, v_scales), c, scale);
                    })
                })
            })
        })???,
    })?
}

fn update(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], c: Coefficients, scale: f32) {
    p.par_chunks_mut(ELEMENTS_PER_TASK)
        .zip(g.par_chunks(ELEMENTS_PER_TASK))
        .zip(m.par_chunks_mut(ELEMENTS_PER_TASK))
        .zip(v.par_chunks_mut(ELEMENTS_PER_TASK))
        .for_each(|(((p, g), m), v)| one_block(p, g, m, v, c, scale));
}

fn one_block(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], c: Coefficients, scale: f32) {
    vectorised(
        #[inline(always)]
        || {
            for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
                let g = g * scale;
                *m = c.beta1 * *m + (1.0 - c.beta1) * g;
                *v = c.beta2 * *v + (1.0 - c.beta2) * g * g;
                let root = v.sqrt() * c.inverse_root_correction + c.eps;
                *p = *p * c.keep - c.step_size * *m / root;
            }
        },
    );
}

fn update_bf16(
    p: &mut [f32],
    g: &[f32],
    m: &mut [bf16],
    v: &mut [bf16],
    c: Coefficients,
    scale: f32,
) {
    p.par_chunks_mut(BLOCK)
        .zip(g.par_chunks(BLOCK))
        .zip(m.par_chunks_mut(BLOCK).zip(v.par_chunks_mut(BLOCK)))
        .enumerate()
        .with_min_len(ELEMENTS_PER_TASK / BLOCK)
        .for_each(|(block, ((p, g), (m, v)))| {
            let (mut first, mut second) = ([0.0; BLOCK], [0.0; BLOCK]);
            let (first, second) = (&mut first[..p.len()], &mut second[..p.len()]);
            for ((first, second), (m, v)) in
                first.iter_mut().zip(&mut *second).zip(m.iter().zip(&*v))
            {
                (*first, *second) = (m.to_f32(), v.to_f32());
            }
            one_block(p, g, first, second, c, scale);
            let start = (block * BLOCK) as u64;
            for (i, (m, v)) in m.iter_mut().zip(v).enumerate() {
                let draw = draw_of(start + i as u64, c.rounding_seed);
                *m = rounded(first[i], draw_of_first(draw));
                *v = rounded(second[i], draw_of_second(draw));
            }
        });
}

/// The finaliser that adamw.cu has.
fn scramble(x: u32) -> u32 {
    let x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    let x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// What parameter `i` is rounded by on a GPU, and what the draws of its moments are made from.
fn draw_of(i: u64, seed: u32) -> u32 {
    scramble(scramble(i as u32 ^ seed).wrapping_add((i >> 32) as u32))
}

fn draw_of_first(draw: u32) -> u32 {
    scramble(draw.wrapping_add(0x9e37_79b9))
}

fn draw_of_second(draw: u32) -> u32 {
    scramble(draw.wrapping_add(0x3c6e_f372))
}

/// `x` rounded up or down at random, by the distance to both: the mean of what comes out is `x`.
fn rounded(x: f32, random: u32) -> bf16 {
    match x.is_finite() {
        true => bf16::from_bits((x.to_bits().wrapping_add(random & 0xffff) >> 16) as u16),
        false => bf16::from_f32(x),
    }
}

/// Elements that share a scale.
pub const BLOCK: usize = 256;

/// A moment in 8 bits per element, `[adamw-8bit]` in docs/equations.md: element `i` is
/// `map[codes[i]] * scales[i / BLOCK]`.
#[derive(Debug, Clone)]
pub struct Quantised {
    /// U8, the parameter's shape.
    pub codes: Tensor,
    /// F32, `[blocks]`: the largest magnitude of each block.
    pub scales: Tensor,
}

impl Quantised {
    /// Zeros.
    ///
    /// # Errors
    /// When they cannot be allocated.
    pub fn zeros(shape: &Shape, device: &Device) -> Result<Self> {
        let blocks = shape.elem_count().div_ceil(BLOCK);
        Ok(Self {
            codes: Tensor::zeros(shape, DType::U8, device)?,
            scales: Tensor::zeros(blocks, DType::F32, device)?,
        })
    }
}

/// The numbers that a code stands for, ascending.
pub(super) struct Maps {
    /// Of the first moment.
    pub signed: [f32; 256],
    /// Of the second.
    pub unsigned: [f32; 256],
}

pub(super) static MAPS: LazyLock<Maps> = LazyLock::new(|| Maps {
    signed: map(true),
    unsigned: map(false),
});

/// Dynamic quantisation (arXiv 2110.02861, section 2.2): seven decades, each cut into twice as many
/// equal parts as the one below it, of which the middles are taken; 0 and 1 besides.
fn map(signed: bool) -> [f32; 256] {
    let mut values = vec![0.0, 1.0];
    for decade in 0..7 {
        let parts = 1 << (decade + i32::from(!signed));
        for part in 0..parts {
            let middle = 0.1 + 0.9 * (f64::from(part) + 0.5) / f64::from(parts);
            let value = middle * 10f64.powi(decade - 6);
            values.push(value);
            if signed {
                values.push(-value);
            }
        }
    }
    values.sort_by(f64::total_cmp);
    let mut map = [0.0; 256];
    for (to, value) in map.iter_mut().zip(values) {
        *to = value as f32;
    }
    map
}

/// The code of the number next to `x` in `map`, the lower of two that are as near.
fn nearest(map: &[f32; 256], x: f32) -> u8 {
    // The last that is not above x.
    let (mut low, mut high) = (0usize, 255usize);
    while low < high {
        let middle = (low + high).div_ceil(2);
        match map[middle] <= x {
            true => low = middle,
            false => high = middle - 1,
        }
    }
    let above = (low + 1).min(255);
    match map[above] - x < x - map[low] {
        true => above as u8,
        false => low as u8,
    }
}

fn update_8bit(
    p: &mut [f32],
    g: &[f32],
    (m, m_scales): (&mut [u8], &mut [f32]),
    (v, v_scales): (&mut [u8], &mut [f32]),
    c: Coefficients,
    scale: f32,
) {
    let Maps { signed, unsigned } = &*MAPS;
    p.par_chunks_mut(BLOCK)
        .zip(g.par_chunks(BLOCK))
        .zip(m.par_chunks_mut(BLOCK).zip(m_scales))
        .zip(v.par_chunks_mut(BLOCK).zip(v_scales))
        .with_min_len(ELEMENTS_PER_TASK / BLOCK)
        .for_each(|(((p, g), (m, m_scale)), (v, v_scale))| {
            let (mut first, mut second) = ([0.0; BLOCK], [0.0; BLOCK]);
            let (first, second) = (&mut first[..p.len()], &mut second[..p.len()]);
            for (first, m) in first.iter_mut().zip(&*m) {
                *first = signed[usize::from(*m)] * *m_scale;
            }
            for (second, v) in second.iter_mut().zip(&*v) {
                *second = unsigned[usize::from(*v)] * *v_scale;
            }
            one_block(p, g, first, second, c, scale);
            let largest = |values: &[f32]| values.iter().fold(0.0f32, |a, b| a.max(b.abs()));
            (*m_scale, *v_scale) = (largest(first), largest(second));
            for (m, first) in m.iter_mut().zip(first) {
                *m = nearest(signed, relative(*first, *m_scale));
            }
            for (v, second) in v.iter_mut().zip(second) {
                let code = nearest(unsigned, relative(*second, *v_scale));
                // A second moment that vanishes under a first that does not would be an enormous step.
                *v = code.max(u8::from(*second > 0.0));
            }
        });
}

fn relative(value: f32, scale: f32) -> f32 {
    match scale > 0.0 {
        true => value / scale,
        false => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn codes_stand_for_numbers_in_order_from_the_largest_down_to_a_millionth() {
        for (map, lowest) in [(&MAPS.signed, -1.0), (&MAPS.unsigned, 0.0)] {
            assert!(map.is_sorted_by(|a, b| a < b));
            assert!(map.contains(&0.0) && map[255] == 1.0 && map[0] >= lowest);
        }
        let smallest = |map: &[f32]| map.iter().copied().filter(|v| *v > 0.0).fold(1.0, f32::min);
        assert!((smallest(&MAPS.signed) - 0.55e-6).abs() < 1e-9);
        assert!((smallest(&MAPS.unsigned) - 0.325e-6).abs() < 1e-9);
    }

    /// What is stored is a neighbour, the mean of many is the number itself, and no draw says
    /// anything about the others of its element.
    #[test]
    fn moments_are_rounded_without_bias_and_apart() {
        let n = 1u64 << 16;
        let streams: [fn(u32) -> u32; 3] = [|draw| draw, draw_of_first, draw_of_second];
        // A quarter of the way from 1 to the next bfloat16.
        let x = 1.0 + 0.25 / 128.0;
        let ups = streams.map(|stream| -> Vec<bool> {
            let stored = |i| rounded(x, stream(draw_of(i, 5))).to_f32();
            let stored: Vec<f32> = (0..n).map(stored).collect();
            assert!(stored.iter().all(|s| [1.0, 1.0 + 1.0 / 128.0].contains(s)));
            stored.iter().map(|s| *s > 1.0).collect()
        });
        let share = |n_up: usize| n_up as f64 / n as f64;
        let count = |up: &[bool]| share(up.iter().filter(|up| **up).count());
        // Five standard deviations of a mean of 2^16.
        let bound = |p: f64| 5.0 * (p * (1.0 - p) / n as f64).sqrt();
        for (a, up) in ups.iter().enumerate() {
            assert!((count(up) - 0.25).abs() < bound(0.25), "{}", count(up));
            for other in &ups[..a] {
                let both = share(up.iter().zip(other).filter(|(a, b)| **a && **b).count());
                assert!((both - 0.0625).abs() < bound(0.0625), "{both}");
            }
        }
        assert!(rounded(f32::NAN, 7).is_nan());
        assert_eq!(rounded(f32::NEG_INFINITY, 7), bf16::NEG_INFINITY);
        assert_eq!(rounded(0.0, 0xffff).to_f32(), 0.0);
    }

    proptest! {
        #[test]
        fn no_code_is_nearer(x in -1.0f32..=1.0) {
            for map in [&MAPS.signed, &MAPS.unsigned] {
                let found = map[usize::from(nearest(map, x))];
                let best = map.iter().map(|v| (v - x).abs()).fold(f32::MAX, f32::min);
                prop_assert_eq!((found - x).abs(), best);
            }
        }

        // Parts are widest beside the part below: 0.9 / 2^decade of values from 0.1 up.
        #[test]
        fn large_moments_lose_little(x in 0.1f32..=1.0, sign: bool) {
            let x = if sign { x } else { -x };
            let error = (MAPS.signed[usize::from(nearest(&MAPS.signed, x))] - x).abs();
            prop_assert!(error <= 0.9 / 64.0, "{}", error);
        }
    }
}
