//! `h = silu(g) * u`, with `silu(g) = g / (1 + e^-g)`.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::{
    host,
    simd::{sigmoid, vectorised},
};

const ELEMENTS_PER_TASK: usize = 1 << 13;

/// `silu(gate) * up`, elementwise.
///
/// # Errors
/// When shapes disagree or the device has no kernel.
pub fn forward(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    host::expect("swiglu", up, gate.dims())?;
    on_cuda!(gate, super::cuda::swiglu::forward(gate, up));
    let (g, u) = (host::read("swiglu", gate)?, host::read("swiglu", up)?);
    let mut h = host::overwritten(g.len());
    h.par_chunks_mut(ELEMENTS_PER_TASK)
        .zip(g.par_chunks(ELEMENTS_PER_TASK))
        .zip(u.par_chunks(ELEMENTS_PER_TASK))
        .for_each(|((h, g), u)| {
            vectorised(
                #[inline(always)]
                || {
                    for ((h, g), u) in h.iter_mut().zip(g).zip(u) {
                        *h = g * sigmoid(*g) * u;
                    }
                },
            );
        });
    host::tensor(h, gate.shape())
}

/// Turns `gate` into `dL/dgate`, `up` into `dL/dup` and `dh` into `h`, all in place: nothing is
/// allocated, and the caller gets back the `h` it needs for the next weight gradient.
///
/// `dgate = dh * u * s * (1 + g * (1 - s))`, `dup = dh * g * s`, with `s = sigmoid(g)`.
///
/// # Errors
/// When shapes disagree or the device has no kernel.
pub fn backward_in_place(gate: &Tensor, up: &Tensor, dh: &Tensor) -> Result<()> {
    host::expect("swiglu", up, gate.dims())?;
    host::expect("swiglu output gradient", dh, gate.dims())?;
    on_cuda!(gate, super::cuda::swiglu::backward_in_place(gate, up, dh));
    host::write("swiglu", gate, |g| {
        host::write("swiglu", up, |u| {
            host::write("swiglu", dh, |dh| {
                g.par_chunks_mut(ELEMENTS_PER_TASK)
                    .zip(u.par_chunks_mut(ELEMENTS_PER_TASK))
                    .zip(dh.par_chunks_mut(ELEMENTS_PER_TASK))
                    .for_each(|((g, u), dh)| {
                        vectorised(
                            #[inline(always)]
                            || {
                                for ((g, u), dh) in g.iter_mut().zip(u).zip(dh) {
                                    let s = sigmoid(*g);
                                    let silu = *g * s;
                                    let dg = *dh * *u * s * (1.0 + *g * (1.0 - s));
                                    let h = silu * *u;
                                    *u = *dh * silu;
                                    *g = dg;
                                    *dh = h;
                                }
                            },
                        );
                    });
            })
        })
    })??
}
