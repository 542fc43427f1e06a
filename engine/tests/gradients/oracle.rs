//! The forward passes again, naive, in f64, one loop per formula. Gradients come from central
//! differences of these, so nothing here shares code or derivations with the engine.

use t3s_core::AttentionPattern;

/// `x W^T`.
pub fn linear(x: &[f64], w: &[f64], width: usize) -> Vec<f64> {
    x.chunks(width)
        .flat_map(|x| {
            w.chunks(width)
                .map(|w| x.iter().zip(w).map(|(x, w)| x * w).sum())
        })
        .collect()
}

pub fn rms_norm(x: &[f64], w: &[f64]) -> Vec<f64> {
    x.chunks(w.len())
        .flat_map(|x| {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
            let rms = (mean + 1e-6).sqrt();
            x.iter().zip(w).map(move |(x, w)| x / rms * w)
        })
        .collect()
}

/// Rotate-half rotary of the first `dim` elements of each head.
pub fn rotary(
    x: &[f64],
    heads: usize,
    head_dim: usize,
    dim: usize,
    theta: f64,
    positions: &[u32],
) -> Vec<f64> {
    let mut y = x.to_vec();
    for (row, position) in positions.iter().enumerate() {
        for head in 0..heads {
            let at = (row * heads + head) * head_dim;
            for i in 0..dim / 2 {
                let frequency = theta.powf(-2.0 * i as f64 / dim as f64);
                let (sin, cos) = (f64::from(*position) * frequency).sin_cos();
                let (a, b) = (x[at + i], x[at + i + dim / 2]);
                y[at + i] = a * cos - b * sin;
                y[at + i + dim / 2] = b * cos + a * sin;
            }
        }
    }
    y
}

/// Whether row `query` sees row `key` of an example of `len` rows, as the patterns' definitions say
/// it, one pair at a time.
pub fn sees(pattern: AttentionPattern, len: usize, query: usize, key: usize) -> bool {
    match pattern {
        AttentionPattern::Causal => key <= query,
        AttentionPattern::Bidirectional => true,
        AttentionPattern::BlockCausal { block } => key / block as usize <= query / block as usize,
        AttentionPattern::BlockDiffusion { block, views } => {
            let n = len / (views as usize + 1);
            let (query_copy, key_copy) = (query / n, key / n);
            let (query_block, key_block) = (query % n / block as usize, key % n / block as usize);
            let clean = views as usize;
            match (query_copy == clean, key_copy == clean) {
                (true, true) => key_block <= query_block,
                (true, false) => false,
                (false, true) => key_block < query_block,
                (false, false) => query_copy == key_copy && query_block == key_block,
            }
        }
        other => panic!("{other:?}"),
    }
}

/// Attention inside each example, one row at a time.
pub fn attention(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    (heads, kv_heads, d): (usize, usize, usize),
    offsets: &[u32],
    pattern: AttentionPattern,
) -> Vec<f64> {
    let mut out = vec![0.0; q.len()];
    for example in offsets.windows(2) {
        for row in example[0] as usize..example[1] as usize {
            for head in 0..heads {
                let kv = head * kv_heads / heads;
                let query = &q[(row * heads + head) * d..][..d];
                let (start, end) = (example[0] as usize, example[1] as usize);
                let keys: Vec<usize> = (start..end)
                    .filter(|key| sees(pattern, end - start, row - start, key - start))
                    .collect();
                let weight = |key: &usize| {
                    let key = &k[(key * kv_heads + kv) * d..][..d];
                    let dot: f64 = query.iter().zip(key).map(|(q, k)| q * k).sum();
                    (dot / (d as f64).sqrt()).exp()
                };
                let total: f64 = keys.iter().map(weight).sum();
                for key in &keys {
                    let p = weight(key) / total;
                    for i in 0..d {
                        out[(row * heads + head) * d + i] += p * v[(key * kv_heads + kv) * d + i];
                    }
                }
            }
        }
    }
    out
}

pub fn swiglu(gate: &[f64], up: &[f64]) -> Vec<f64> {
    gate.iter()
        .zip(up)
        .map(|(g, u)| g / (1.0 + (-g).exp()) * u)
        .collect()
}

/// The log-probabilities of every token of the vocabulary.
pub fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = logits.iter().map(|z| (z - largest).exp()).sum();
    logits.iter().map(|z| z - largest - total.ln()).collect()
}

/// `dL/dinputs[which]` by central differences.
pub fn gradient(inputs: &[Vec<f64>], which: usize, loss: &dyn Fn(&[Vec<f64>]) -> f64) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let mut inputs = inputs.to_vec();
    (0..inputs[which].len())
        .map(|i| {
            let here = inputs[which][i];
            inputs[which][i] = here + STEP;
            let ahead = loss(&inputs);
            inputs[which][i] = here - STEP;
            let behind = loss(&inputs);
            inputs[which][i] = here;
            (ahead - behind) / (2.0 * STEP)
        })
        .collect()
}

/// `<dL/dinputs[which], direction>` by central differences.
pub fn slope(
    inputs: &[Vec<f64>],
    which: usize,
    direction: &[f32],
    loss: &dyn Fn(&[Vec<f64>]) -> f64,
) -> f64 {
    const STEP: f64 = 1e-5;
    let moved = |step: f64| {
        let mut inputs = inputs.to_vec();
        for (x, d) in inputs[which].iter_mut().zip(direction) {
            *x += step * f64::from(*d);
        }
        loss(&inputs)
    };
    (moved(STEP) - moved(-STEP)) / (2.0 * STEP)
}

pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// Relative Frobenius distance of f32 results from f64 ones.
#[track_caller]
pub fn assert_close(what: &str, found: &[f32], wanted: &[f64], tolerance: f64) {
    assert_eq!(found.len(), wanted.len(), "{what}: length");
    let difference: Vec<f64> = found
        .iter()
        .zip(wanted)
        .map(|(f, w)| f64::from(*f) - w)
        .collect();
    let error = dot(&difference, &difference).sqrt() / dot(wanted, wanted).sqrt().max(1e-9);
    assert!(error <= tolerance, "{what}: relative error {error:e}");
}
