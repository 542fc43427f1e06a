//! Random sign projections whose matrix is never stored whole: each sign is a bit of a hash.

use rayon::prelude::*;
use t3s_core::CounterRng;

use super::{
    matmul::{Into, Mat, MatMut, Threads, matmul},
    simd::with_scratch,
};

/// Rows of the sign matrix made at a time, by one thread: they stay in its cache, and what it adds
/// up is small beside what it reads.
const BLOCK: usize = 1024;

/// Eight signs for every value of a byte: bit `i` set is -1. Copying them is several times faster
/// than making each from its bit.
static SIGNS: [[f32; 8]; 256] = {
    let mut signs = [[1.0; 8]; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut bit = 0;
        while bit < 8 {
            if byte >> bit & 1 == 1 {
                signs[byte][bit] = -1.0;
            }
            bit += 1;
        }
        byte += 1;
    }
    signs
};

/// `y = x R` with `R [n, k]` of signs, `R[v, i]` a bit of the hash of (stream, `v`, `i`).
///
/// # Shapes
/// `x [rows, n]`, result `[rows, k]`.
///
/// # Numerics
/// Sums over `n` are added up in blocks of a fixed size, so the result does not depend on the number
/// of threads.
pub(super) fn project(x: &[f32], rows: usize, n: usize, k: usize, stream: &CounterRng) -> Vec<f32> {
    let mut y = vec![0.0; rows * k];
    if y.is_empty() {
        return y;
    }
    let mut parts = vec![0.0; n.div_ceil(BLOCK) * rows * k];
    parts
        .par_chunks_exact_mut(rows * k)
        .enumerate()
        .for_each(|(block, part)| {
            let start = block * BLOCK;
            let len = BLOCK.min(n - start);
            with_scratch(len * k, |signs| {
                for (row, signs) in signs.chunks_exact_mut(k).enumerate() {
                    write_signs(stream, (start + row) as u64, signs);
                }
                let part = MatMut::new(part, rows, k, k);
                let x = Mat::new(&x[start..], rows, len, n);
                let signs = Mat::new(signs, len, k, k);
                matmul(part, Into::Overwrite, x, signs, 1.0, Threads::One);
            });
        });
    y.par_chunks_exact_mut(k).enumerate().for_each(|(row, y)| {
        for part in parts.chunks_exact(rows * k) {
            for (y, part) in y.iter_mut().zip(&part[row * k..][..k]) {
                *y += part;
            }
        }
    });
    y
}

/// Row `v` of the sign matrix.
fn write_signs(stream: &CounterRng, v: u64, signs: &mut [f32]) {
    for (word, signs) in signs.chunks_mut(64).enumerate() {
        let bytes = stream.bits(v, word as u64).to_le_bytes();
        for (signs, byte) in signs.chunks_mut(8).zip(bytes) {
            signs.copy_from_slice(&SIGNS[usize::from(byte)][..signs.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, sign by sign; widths and lengths that fill no block and no byte.
    #[test]
    fn projections_are_those_of_the_hashed_signs() {
        let stream = CounterRng::new(3, "test");
        for (rows, n, k) in [(3, 5, 1), (2, 2 * BLOCK + 7, 67), (1, BLOCK, 64), (0, 4, 8)] {
            let draws = CounterRng::new(4, "values");
            let x: Vec<f32> = (0..(rows * n) as u64)
                .map(|i| draws.uniform(i, 0) as f32 - 0.5)
                .collect();
            let y = project(&x, rows, n, k, &stream);
            assert_eq!(y.len(), rows * k);
            for (at, y) in y.iter().enumerate() {
                let (row, i) = (at / k, at % k);
                let wanted: f64 = (0..n)
                    .map(|v| {
                        let bit = stream.bits(v as u64, (i / 64) as u64) >> (i % 64) & 1;
                        f64::from(x[row * n + v]) * if bit == 0 { 1.0 } else { -1.0 }
                    })
                    .sum();
                assert!(
                    (f64::from(*y) - wanted).abs() < 1e-4,
                    "{y}, wanted {wanted}"
                );
            }
        }
    }
}
