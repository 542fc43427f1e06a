//! The small operations between matrix products, for generation: plain slices, one thread, each row
//! by itself.

use super::{
    rms_norm::inverse_rms,
    rotary::turn,
    simd::{sigmoid, vectorised},
};

/// `y = x / rms(x) * w` per row of `w.len()` elements.
pub(crate) fn rms_norm(x: &[f32], w: &[f32], eps: f64, y: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || {
            for (y, x) in y.chunks_exact_mut(w.len()).zip(x.chunks_exact(w.len())) {
                let inverse = inverse_rms(x, eps);
                for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                    *y = x * inverse * w;
                }
            }
        },
    );
}

/// Norms (where `norm` is given) and turns each head of one row, in place. `angles` is one row of a
/// rotary table: cosines, then sines.
pub(crate) fn rotate(
    heads: &mut [f32],
    norm: Option<&[f32]>,
    eps: f64,
    head_dim: usize,
    angles: &[f32],
) {
    let (cos, sin) = angles.split_at(angles.len() / 2);
    vectorised(
        #[inline(always)]
        || {
            for head in heads.chunks_exact_mut(head_dim) {
                if let Some(w) = norm {
                    let inverse = inverse_rms(head, eps);
                    for (x, w) in head.iter_mut().zip(w) {
                        *x = *x * inverse * w;
                    }
                }
                turn(&mut head[..angles.len()], cos, sin, 1.0);
            }
        },
    );
}

/// `h = silu(gate) * up`; `gate_up` is `[rows, 2 * hidden]`, a row's gates before its ups.
pub(crate) fn swiglu(gate_up: &[f32], hidden: usize, h: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || {
            let rows = gate_up.chunks_exact(2 * hidden);
            for (h, gate_up) in h.chunks_exact_mut(hidden).zip(rows) {
                let (gate, up) = gate_up.split_at(hidden);
                for ((h, g), u) in h.iter_mut().zip(gate).zip(up) {
                    *h = g * sigmoid(*g) * u;
                }
            }
        },
    );
}
