//! Attention by cuDNN against the portable kernels and the CPU, on a GPU where there is one that has
//! both.

use candle_core::{DType, Device, Tensor};
use t3s_core::AttentionPattern;

use super::{attention_both_ways, attention_inputs, error, gpu, same};
use crate::kernels::{
    attention::{self, Forwarded, Heads},
    cuda::cudnn::{Bucket, Packed, missing, parts},
};

/// Largest difference over the largest value of an example. cuDNN rounds probabilities, the gradients
/// of scores and, of grouped heads, each query head's share of a key's gradient to bfloat16 (2^-9 of
/// each) before it adds them.
const BOUND: f32 = 2e-2;
/// The log-sum-exp is f32 throughout.
const LSE_BOUND: f32 = 1e-3;

const PATTERNS: [AttentionPattern; 2] = [AttentionPattern::Causal, AttentionPattern::Bidirectional];
const RESULTS: [&str; 5] = ["out", "lse", "dq", "dk", "dv"];

fn heads(n_heads: usize, n_kv_heads: usize, head_dim: usize) -> Heads {
    Heads {
        n_heads,
        n_kv_heads,
        head_dim,
    }
}

fn offsets(lengths: &[u32]) -> Vec<u32> {
    let mut offsets = vec![0];
    for len in lengths {
        offsets.push(offsets[offsets.len() - 1] + len);
    }
    offsets
}

/// A GPU with cuDNN; says so when there is none.
fn library() -> Option<Device> {
    let gpu = gpu()?;
    let Device::Cuda(device) = &gpu else {
        unreachable!("it was asked for")
    };
    match missing(device).unwrap() {
        None => Some(gpu),
        // On such a GPU there is nothing to check.
        Some(why) if why.contains("compute capability") => {
            eprintln!("SKIPPED: attention by cuDNN: {why}");
            None
        }
        Some(why) => {
            eprintln!("SKIPPED on a GPU: attention by cuDNN: {why}");
            None
        }
    }
}

/// `inputs` rounded to bfloat16, as `dtype`, on `device`.
fn placed(inputs: &[Tensor], dtype: DType, device: &Device) -> Vec<Tensor> {
    let place = |t: &Tensor| {
        let t = t.to_dtype(DType::BF16).unwrap().to_dtype(dtype).unwrap();
        t.to_device(device).unwrap()
    };
    inputs.iter().map(place).collect()
}

fn packed(t: &[&Tensor], heads: Heads, offsets: &[u32], pattern: AttentionPattern) -> Packed {
    Packed::of(t, heads, offsets, pattern)
        .unwrap()
        .unwrap_or_else(|| panic!("no plan for {heads:?}, {offsets:?}, {pattern:?}"))
}

fn by_cudnn(t: &[Tensor], heads: Heads, offsets: &[u32], pattern: AttentionPattern) -> Vec<Tensor> {
    let (q, k, v, d_out) = (&t[0], &t[1], &t[2], &t[3]);
    let (out, lse) = packed(&[q, k, v], heads, offsets, pattern)
        .forward(q, k, v)
        .unwrap();
    let forwarded = Forwarded {
        q,
        k,
        v,
        out: &out,
        lse: &lse,
    };
    let (dq, dk, dv) = packed(&[q, k, v, &out, d_out], heads, offsets, pattern)
        .backward(d_out, forwarded)
        .unwrap();
    vec![out, lse, dq, dk, dv]
}

/// Largest error of each result, each example by its own measure.
fn errors(found: &[Tensor], wanted: &[Tensor], offsets: &[u32]) -> Vec<f32> {
    let of_example = |found: &Tensor, wanted: &Tensor, w: &[u32]| {
        let (start, len) = (w[0] as usize, (w[1] - w[0]) as usize);
        let rows = |t: &Tensor| t.narrow(0, start, len).unwrap();
        error(&rows(found), &rows(wanted))
    };
    let pairs = found.iter().zip(wanted);
    pairs
        .map(|(found, wanted)| {
            let filled = offsets.windows(2).filter(|w| w[0] < w[1]);
            filled
                .map(|w| of_example(found, wanted, w))
                .fold(0.0, f32::max)
        })
        .collect()
}

fn check(gpu: &Device, heads: Heads, lengths: &[u32], pattern: AttentionPattern) {
    let offsets = offsets(lengths);
    let inputs = attention_inputs(heads, &offsets);
    let on_gpu = placed(&inputs, DType::BF16, gpu);
    let on_cpu = placed(&inputs, DType::F32, &Device::Cpu);
    let found = by_cudnn(&on_gpu, heads, &offsets, pattern);
    let portable = attention_both_ways(&on_gpu, heads, &offsets, pattern);
    let wanted = attention_both_ways(&on_cpu, heads, &offsets, pattern);
    for (than, wanted) in [("the CPU", &wanted), ("the portable kernels", &portable)] {
        let errors = errors(&found, wanted, &offsets);
        eprintln!("cuDNN, {heads:?}, {pattern:?}, {lengths:?}: {errors:?} from {than}");
        for (result, error) in RESULTS.iter().zip(errors) {
            let bound = if *result == "lse" { LSE_BOUND } else { BOUND };
            assert!(
                error <= bound,
                "{result}, {heads:?}, {pattern:?}, {lengths:?}: {error:e} from {than}"
            );
        }
    }
    let again = by_cudnn(&on_gpu, heads, &offsets, pattern);
    for (result, (found, again)) in RESULTS.iter().zip(found.iter().zip(&again)) {
        assert!(
            same(std::slice::from_ref(found), std::slice::from_ref(again)),
            "{result}, {heads:?}, {pattern:?}, {lengths:?}: other bits in a second run"
        );
    }
}

#[test]
fn attention_by_cudnn_matches_its_twins() {
    let Some(gpu) = library() else { return };
    for pattern in PATTERNS {
        for heads in [heads(4, 4, 64), heads(4, 2, 96), heads(8, 2, 128)] {
            check(&gpu, heads, &[2, 63, 64, 65, 0, 200, 1100], pattern);
            check(&gpu, heads, &[300], pattern);
        }
        check(&gpu, heads(2, 1, 80), &[128, 129, 3], pattern);
        check(&gpu, heads(2, 1, 256), &[70, 190], pattern);
    }
}

/// Long examples beside short ones are computed in parts, each from its own first row on.
#[test]
fn attention_by_cudnn_in_parts_matches_its_twins() {
    let Some(gpu) = library() else {
        return;
    };
    let lengths = [4096, 129, 4000, 2, 700];
    assert!(parts(heads(16, 8, 64), &offsets(&lengths)).len() > 1);
    check(&gpu, heads(16, 8, 64), &lengths, AttentionPattern::Causal);
}

/// Many short examples and a long one: most of the surplus that rounding up makes.
#[test]
fn attention_by_cudnn_matches_its_twins_on_many_examples() {
    let Some(gpu) = library() else { return };
    let mut lengths: Vec<u32> = (0..34).map(|i| 2 + i * 7 % 40).collect();
    lengths.insert(9, 777);
    for pattern in PATTERNS {
        check(&gpu, heads(4, 1, 128), &lengths, pattern);
    }
}

#[test]
fn attention_by_cudnn_uses_plans_again_for_another_batch_of_like_sizes() {
    let Some(gpu) = library() else { return };
    let heads = heads(4, 2, 64);
    let batches = [[200, 30, 90], [129, 192, 2], [130, 131, 132]].map(|lengths| offsets(&lengths));
    for pattern in PATTERNS {
        let bucket = |offsets: &[u32]| Bucket::of(DType::BF16, heads, offsets, pattern).unwrap();
        let sized = [[150, 140, 130], [129, 192, 2], [180, 170, 160]].map(|l| offsets(&l));
        assert!(sized.iter().all(|b| bucket(b) == bucket(&sized[0])));
        let runs: Vec<_> = sized
            .iter()
            .chain(&batches)
            .map(|offsets| {
                let inputs = attention_inputs(heads, offsets);
                let t = placed(&inputs, DType::BF16, &gpu);
                (offsets, by_cudnn(&t, heads, offsets, pattern), t, inputs)
            })
            .collect();
        // After all the others: the same bits, and right.
        for (offsets, first, t, inputs) in &runs {
            assert!(same(first, &by_cudnn(t, heads, offsets, pattern)));
            let t = placed(inputs, DType::F32, &Device::Cpu);
            let wanted = attention_both_ways(&t, heads, offsets, pattern);
            let errors = errors(first, &wanted, offsets);
            assert!(
                errors.iter().all(|e| *e <= BOUND),
                "{offsets:?}: {errors:?}"
            );
        }
    }
}

/// The log-sum-exp lies where the portable kernels look for it, and theirs where cuDNN does.
#[test]
fn attention_by_cudnn_keeps_the_statistics_of_the_portable_kernels() {
    let Some(gpu) = library() else { return };
    let (heads, offsets) = (heads(4, 2, 64), offsets(&[5, 200, 64]));
    for pattern in PATTERNS {
        let inputs = attention_inputs(heads, &offsets);
        let t = placed(&inputs, DType::BF16, &gpu);
        let found = by_cudnn(&t, heads, &offsets, pattern);
        let portable = attention_both_ways(&t, heads, &offsets, pattern);
        fn of<'a>(t: &'a [Tensor], results: &'a [Tensor]) -> Forwarded<'a> {
            Forwarded {
                q: &t[0],
                k: &t[1],
                v: &t[2],
                out: &results[0],
                lse: &results[1],
            }
        }
        let (dq, dk, dv) = crate::kernels::cuda::attention::portable_backward(
            &t[3],
            of(&t, &found),
            heads,
            &offsets,
            pattern,
        )
        .unwrap();
        let crossed = errors(&[dq, dk, dv], &portable[2..], &offsets);
        assert!(crossed.iter().all(|e| *e <= BOUND), "{crossed:?}");
        let (dq, dk, dv) = packed(&[&t[0], &t[1], &t[2], &t[3]], heads, &offsets, pattern)
            .backward(&t[3], of(&t, &portable))
            .unwrap();
        let crossed = errors(&[dq, dk, dv], &portable[2..], &offsets);
        assert!(crossed.iter().all(|e| *e <= BOUND), "{crossed:?}");
    }
}

/// What layers call takes cuDNN where it applies, and is right where it does not.
#[test]
fn attention_on_a_gpu_is_by_cudnn_where_it_applies() {
    let Some(gpu) = library() else { return };
    let heads = heads(4, 2, 64);
    let pattern = AttentionPattern::Causal;
    for (lengths, applies) in [(&[70, 2, 90], true), (&[70, 1, 90], false)] {
        let offsets = offsets(lengths);
        let t = placed(&attention_inputs(heads, &offsets), DType::BF16, &gpu);
        let (q, k, v) = (&t[0], &t[1], &t[2]);
        let (out, lse) = attention::forward(q, k, v, heads, &offsets, pattern).unwrap();
        let forwarded = Forwarded {
            q,
            k,
            v,
            out: &out,
            lse: &lse,
        };
        let (dq, dk, dv) = attention::backward(&t[3], forwarded, heads, &offsets, pattern).unwrap();
        let wanted = match applies {
            true => by_cudnn(&t, heads, &offsets, pattern),
            false => attention_both_ways(&t, heads, &offsets, pattern),
        };
        assert!(same(&[out, lse, dq, dk, dv], &wanted), "{lengths:?}");
    }
}
