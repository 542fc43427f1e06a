//! Attention of one row over its cache: `softmax(q K^T / sqrt(head_dim)) V`, per head.
//!
//! A row reads its own cache and nothing else, positions in order: the result does not depend on the
//! rows beside it.

use super::simd::{self, vectorised};
use crate::kv_cache::{BLOCK, KvCache};

/// Attends from one row.
///
/// # Shapes
/// `query`, `out` `[heads * head_dim]`; `cache` holds at least `visible` positions, of which the
/// first `visible` are seen; query head `h` reads key/value head `h / (heads / kv_heads)`.
pub(crate) fn attend(
    query: &[f32],
    cache: &KvCache,
    layer: usize,
    visible: usize,
    n_kv_heads: usize,
    head_dim: usize,
    out: &mut [f32],
) {
    let group = query.len() / head_dim / n_kv_heads;
    let padded = visible.next_multiple_of(BLOCK);
    let scale = 1.0 / (head_dim as f32).sqrt();
    simd::with_scratch(padded, |scores| {
        vectorised(
            #[inline(always)]
            || {
                for kv_head in 0..n_kv_heads {
                    for head in kv_head * group..(kv_head + 1) * group {
                        let query = &query[head * head_dim..][..head_dim];
                        let blocks = cache.head(layer, kv_head);
                        for (scores, block) in scores.chunks_exact_mut(BLOCK).zip(blocks) {
                            score(query, block.keys, scale, scores);
                        }
                        let inverse = softmax(&mut scores[..visible]);
                        let out = &mut out[head * head_dim..][..head_dim];
                        out.fill(0.0);
                        let blocks = cache.head(layer, kv_head);
                        for (weights, block) in scores[..visible].chunks(BLOCK).zip(blocks) {
                            mix(weights, block.values, out);
                        }
                        out.iter_mut().for_each(|y| *y *= inverse);
                    }
                }
            },
        );
    });
}

/// `scores[j] = scale * q . k_j` for the positions of one block; keys are `[head_dim, BLOCK]`.
#[inline(always)]
fn score(query: &[f32], keys: &[f32], scale: f32, scores: &mut [f32]) {
    // Two chains of sums, so that one does not wait for the other.
    let mut sums = [[0.0f32; BLOCK]; 2];
    let (keys, _) = keys.as_chunks::<BLOCK>();
    let (pairs, last) = keys.as_chunks::<2>();
    let (queries, last_query) = query.as_chunks::<2>();
    for (keys, query) in pairs.iter().zip(queries) {
        for chain in 0..2 {
            for lane in 0..BLOCK {
                sums[chain][lane] = keys[chain][lane].mul_add(query[chain], sums[chain][lane]);
            }
        }
    }
    for (keys, query) in last.iter().zip(last_query) {
        for lane in 0..BLOCK {
            sums[0][lane] = keys[lane].mul_add(*query, sums[0][lane]);
        }
    }
    for (lane, score) in scores.iter_mut().enumerate() {
        *score = (sums[0][lane] + sums[1][lane]) * scale;
    }
}

/// Turns scores into `exp(score - largest)`; returns the inverse of their sum.
#[inline(always)]
fn softmax(scores: &mut [f32]) -> f32 {
    let largest = simd::max(scores);
    for score in scores.iter_mut() {
        *score = simd::exp(*score - largest);
    }
    1.0 / simd::sum(scores.len(), |i| scores[i])
}

/// `out += sum_j weights[j] * v_j` over the positions of one block, in order.
#[inline(always)]
fn mix(weights: &[f32], values: &[f32], out: &mut [f32]) {
    let n = out.len();
    // Elements in the outer loop keep the sums in registers.
    const LANES: usize = 32;
    let mut start = 0;
    while start + LANES <= n {
        let mut sums = [0.0f32; LANES];
        sums.copy_from_slice(&out[start..start + LANES]);
        for (weight, value) in weights.iter().zip(values.chunks_exact(n)) {
            let value = &value[start..start + LANES];
            for lane in 0..LANES {
                sums[lane] = value[lane].mul_add(*weight, sums[lane]);
            }
        }
        out[start..start + LANES].copy_from_slice(&sums);
        start += LANES;
    }
    for (weight, value) in weights.iter().zip(values.chunks_exact(n)) {
        for (y, v) in out[start..].iter_mut().zip(&value[start..]) {
            *y = v.mul_add(*weight, *y);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kv_cache::CacheShape;

    fn wave(len: usize, seed: f32) -> Vec<f32> {
        (0..len)
            .map(|i| (seed + i as f32 * 12.9898).sin() * 2.0)
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn is_softmax_of_the_visible_positions(
            n_kv_heads in 1usize..4,
            group in 1usize..4,
            head_dim in 1usize..70,
            visible in 1usize..50,
            hidden in 0usize..20,
        ) {
            let shape = CacheShape { n_layers: 2, n_kv_heads, head_dim };
            let width = n_kv_heads * head_dim;
            let n = visible + hidden;
            let (keys, values) = (wave(n * width, 1.0), wave(n * width, 2.0));
            let mut cache = KvCache::new(shape);
            for position in 0..n {
                let row = position * width..(position + 1) * width;
                cache.write(0, position, &vec![9.0; width], &vec![9.0; width]);
                cache.write(1, position, &keys[row.clone()], &values[row]);
            }
            let query = wave(group * width, 3.0);
            let mut out = vec![f32::NAN; group * width];
            attend(&query, &cache, 1, visible, n_kv_heads, head_dim, &mut out);

            for head in 0..n_kv_heads * group {
                let kv = head / group;
                let at = |table: &[f32], j: usize, i: usize| {
                    f64::from(table[j * width + kv * head_dim + i])
                };
                let score = |j: usize| -> f64 {
                    let products = (0..head_dim)
                        .map(|i| f64::from(query[head * head_dim + i]) * at(&keys, j, i));
                    products.sum::<f64>() / (head_dim as f64).sqrt()
                };
                let masses: Vec<f64> = (0..visible).map(|j| score(j).exp()).collect();
                let sum: f64 = masses.iter().sum();
                for i in 0..head_dim {
                    let mixed: f64 = (0..visible).map(|j| masses[j] * at(&values, j, i)).sum();
                    let found = f64::from(out[head * head_dim + i]);
                    prop_assert!((found - mixed / sum).abs() < 1e-5, "{found} {}", mixed / sum);
                }
            }
        }
    }
}
