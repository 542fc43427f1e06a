//! Random sign projections whose matrix is never stored whole: each sign is a bit of a hash.

use rayon::prelude::*;
use t3s_core::CounterRng;

use super::matmul::{Into, Mat, MatMut, Threads, matmul};

/// Rows of the sign matrix made at a time.
const BLOCK: usize = 4096;

/// `y = x R` with `R [n, k]` of signs, `R[v, i]` a bit of the hash of (stream, `v`, `i`).
///
/// # Shapes
/// `x [rows, n]`, result `[rows, k]`.
pub(super) fn project(x: &[f32], rows: usize, n: usize, k: usize, stream: &CounterRng) -> Vec<f32> {
    let mut y = vec![0.0; rows * k];
    let mut signs = vec![0.0f32; BLOCK.min(n) * k];
    for start in (0..n).step_by(BLOCK) {
        let len = BLOCK.min(n - start);
        let signs = &mut signs[..len * k];
        signs
            .par_chunks_mut(k)
            .enumerate()
            .for_each(|(row, signs)| {
                let v = (start + row) as u64;
                for (block, signs) in signs.chunks_mut(64).enumerate() {
                    let bits = stream.bits(v, block as u64);
                    for (i, sign) in signs.iter_mut().enumerate() {
                        *sign = if bits >> i & 1 == 0 { 1.0 } else { -1.0 };
                    }
                }
            });
        let x = Mat::new(&x[start..], rows, len, n);
        let signs = Mat::new(signs, len, k, k);
        let y = MatMut::new(&mut y, rows, k, k);
        matmul(y, Into::Add, x, signs, 1.0, Threads::All);
    }
    y
}
