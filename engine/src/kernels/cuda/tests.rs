//! Every CUDA kernel against its CPU twin, f32 and bfloat16: emulated, in both orders of threads, and
//! on a GPU where the build knows GPUs and there is one.

mod adamw;
mod blocks;
pub(super) mod counting;
#[cfg(cudnn_attention)]
mod cudnn;
mod decode;
mod experts;
mod footprint;
mod model;

use candle_core::{DType, Device, Tensor};
use t3s_core::{AttentionPattern, CounterRng, decoder_spec::RopeSpec};

use super::{
    emulated::{in_both_orders, overwrite},
    memory::overwritten,
};
use crate::kernels::{
    Into, attention, cross_entropy, embedding, gradients, linear, normal, residual, rms_norm,
    rotary::{self, RotaryTable},
    swiglu,
};
use crate::memory;

/// Largest difference in f32, relative to the largest value: sums in another order.
const F32: f32 = 3e-6;
/// In bfloat16, which keeps 8 bits: half a unit in the last place is 2^-9.
const BF16: f32 = 6e-3;

fn random(name: &str, shape: &[usize]) -> Tensor {
    let rng = CounterRng::new(11, name);
    let n = shape.iter().product::<usize>() as u64;
    let values: Vec<f32> = (0..n)
        .map(|i| rng.uniform(i, 0) as f32 * 2.0 - 1.0)
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn ids(name: &str, n: usize, below: u64) -> Vec<u32> {
    let rng = CounterRng::new(12, name);
    (0..n as u64)
        .map(|i| (rng.bits(i, 0) % below) as u32)
        .collect()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    let flat = tensor.flatten_all().unwrap();
    flat.to_dtype(DType::F32).unwrap().to_vec1().unwrap()
}

/// Largest difference over largest value.
fn error(found: &Tensor, wanted: &Tensor) -> f32 {
    assert_eq!(found.dims(), wanted.dims());
    let (found, wanted) = (values(found), values(wanted));
    let largest = wanted.iter().fold(1e-6f32, |a, b| a.max(b.abs()));
    assert!(found.iter().all(|f| f.is_finite()), "not finite");
    let errors = found.iter().zip(&wanted).map(|(f, w)| (f - w).abs());
    errors.fold(0.0, f32::max) / largest
}

/// The first GPU; says so when there is none.
fn gpu() -> Option<Device> {
    use t3s_core::plan::{DeviceChoice, Precision};
    match crate::device::open(&DeviceChoice::Cuda(0), Precision::F32) {
        Ok((device, _)) => Some(device),
        Err(error) => {
            eprintln!("SKIPPED on a GPU: {error}");
            None
        }
    }
}

/// Runs `body` on the CPU in f32, and in f32 and bfloat16 on the emulated and on a real GPU, each time
/// on fresh copies of `inputs`, and compares what it returns. Inputs are numbers that bfloat16 has,
/// so that all start from the same.
fn compare(what: &str, inputs: &[Tensor], body: impl Fn(&[Tensor]) -> Vec<Tensor>) {
    let rounded = |dtype, device: &Device| -> Vec<Tensor> {
        let round = |t: &Tensor| {
            let t = t.to_dtype(DType::BF16).unwrap().to_dtype(dtype).unwrap();
            t.copy().unwrap().to_device(device).unwrap()
        };
        inputs.iter().map(round).collect()
    };
    let wanted = body(&rounded(DType::F32, &Device::Cpu));
    let gpu = gpu();
    for (dtype, bound) in [(DType::F32, F32), (DType::BF16, BF16)] {
        let check = |found: &[Tensor], place: &str| {
            for (index, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
                let error = error(found, wanted);
                assert!(
                    error <= bound,
                    "{what}, result {index}, {dtype:?}, {place}: {error:e}"
                );
            }
        };
        if let Some([up, down]) = in_both_orders(|| body(&rounded(dtype, &Device::Cpu))) {
            check(&up, "emulated");
            assert!(
                same(&up, &down),
                "{what}, {dtype:?}: threads in another order"
            );
        }
        if let Some(gpu) = &gpu {
            let found = body(&rounded(dtype, gpu));
            check(&found, "GPU");
            let again = body(&rounded(dtype, gpu));
            assert!(
                same(&found, &again),
                "{what}, {dtype:?}: another run on the GPU"
            );
        }
    }
}

/// Bit for bit.
fn same(a: &[Tensor], b: &[Tensor]) -> bool {
    let bits = |t: &Tensor| -> Vec<u32> { values(t).iter().map(|v| v.to_bits()).collect() };
    a.iter().map(bits).eq(b.iter().map(bits))
}

/// An f32 gradient slot with something in it, where `like` is.
fn slot(shape: &[usize], like: &Tensor) -> Tensor {
    random("slot", shape).to_device(like.device()).unwrap()
}

#[test]
fn rms_norm_matches_its_twin() {
    // More rows than a run has, and widths that are no multiple of anything.
    for (rows, width) in [(1, 1), (19, 24), (70, 300), (9, 1030)] {
        let inputs = [
            random("x", &[rows, width]),
            random("w", &[width]),
            random("dy", &[rows, width]),
            random("residual", &[rows, width]),
        ];
        compare("rms_norm", &inputs, |t| {
            let y = rms_norm::forward(&t[0], &t[1], 1e-6).unwrap();
            let plain = t[2].copy().unwrap();
            rms_norm::backward_in_place(&plain, &t[0], &t[1], 1e-6, None, None).unwrap();
            let dw = slot(&[width], &t[0]);
            rms_norm::backward_in_place(&t[2], &t[0], &t[1], 1e-6, Some(&t[3]), Some(&dw)).unwrap();
            vec![y, plain, t[2].clone(), dw]
        });
    }
}

#[test]
fn rotary_matches_its_twin() {
    for (heads, head_dim, rotary_dim) in [
        (3, 8, 8),
        (2, 32, 16),
        (3, 64, 64),
        (2, 80, 80),
        (2, 128, 64),
        (2, 128, 128),
        (1, 256, 256),
    ] {
        let spec = RopeSpec {
            theta: 1e4,
            rotary_dim,
        };
        let positions = ids("positions", 21, 40);
        let inputs = [
            random("x", &[21, heads * head_dim]),
            random("norm", &[head_dim]),
            random("dy", &[21, heads * head_dim]),
        ];
        for with_norm in [true, false] {
            compare("rotary", &inputs, |t| {
                let table = RotaryTable::new(&spec);
                let norm = with_norm.then_some(&t[1]);
                let y = rotary::forward(&t[0], norm, 1e-6, head_dim, &table, &positions).unwrap();
                let dw = slot(&[head_dim], &t[0]);
                let (x, dy, slot) = (&t[0], &t[2], with_norm.then_some(&dw));
                rotary::backward_in_place(dy, x, norm, 1e-6, head_dim, &table, &positions, slot)
                    .unwrap();
                vec![y, dy.clone(), dw]
            });
        }
    }
}

#[test]
fn elementwise_kernels_match_their_twins() {
    let inputs = [
        random("g", &[37, 29]),
        random("u", &[37, 29]),
        random("d", &[37, 29]),
    ];
    compare("swiglu", &inputs, |t| {
        let h = swiglu::forward(&t[0], &t[1]).unwrap();
        swiglu::backward_in_place(&t[0], &t[1], &t[2]).unwrap();
        vec![h, t[0].clone(), t[1].clone(), t[2].clone()]
    });
    compare("residual", &inputs, |t| {
        residual::add_assign(&t[0], &t[1]).unwrap();
        vec![t[0].clone()]
    });
}

#[test]
fn linear_layers_match_their_twins() {
    let inputs = [
        random("x", &[13, 7]),
        random("w", &[5, 7]),
        random("dy", &[13, 5]),
        random("bias", &[5]),
        random("into", &[13, 7]),
    ];
    compare("linear", &inputs, |t| {
        let y = linear::forward(&t[0], &t[1], 0.5, None).unwrap();
        linear::add_bias(&y, &t[3]).unwrap();
        let dx = linear::backward_input(&t[2], &t[1], 2.0, Some(t[4].clone())).unwrap();
        let (dw, db) = (slot(&[5, 7], &t[0]), slot(&[5], &t[0]));
        linear::backward_weight(&t[2], &t[0], 0.5, &dw, Into::Add).unwrap();
        linear::backward_bias(&t[2], &db).unwrap();
        vec![y, dx, dw, db]
    });
}

#[test]
fn embeddings_match_their_twins() {
    let width = 261;
    let ids = ids("ids", 50, 9);
    let inputs = [random("table", &[9, width]), random("dy", &[50, width])];
    compare("embedding", &inputs, |t| {
        let y = embedding::forward(&t[0], &ids).unwrap();
        let slot = slot(&[9, width], &t[0]);
        embedding::backward(&t[1], &ids, &slot).unwrap();
        vec![y, slot]
    });
}

#[test]
fn sums_and_scales_of_gradients_match_their_twins() {
    let inputs = [random("a", &[300, 67]), random("b", &[3])];
    compare("gradients", &inputs, |t| {
        // Gradients are f32 whatever the activations are.
        let wide = |t: &Tensor| t.to_dtype(DType::F32).unwrap().copy().unwrap();
        let (a, b, scaled, zeroed) = (wide(&t[0]), wide(&t[1]), wide(&t[0]), wide(&t[0]));
        gradients::scale(&scaled, 0.5).unwrap();
        gradients::zero(&zeroed).unwrap();
        let sums = gradients::sums_of_squares(&[&a, &b, &scaled, &zeroed]).unwrap();
        assert_eq!(sums[3], 0.0);
        let sums: Vec<f32> = sums.iter().map(|sum| *sum as f32).collect();
        vec![scaled, zeroed, Tensor::new(sums, &Device::Cpu).unwrap()]
    });
}

#[test]
fn clipping_matches_its_twin_and_passes_on_what_is_no_number() {
    // Several chunks, and one that is no multiple of anything.
    let inputs = [random("a", &[300, 331]), random("b", &[3])];
    let found = |clip: &gradients::Clip| match clip {
        gradients::Clip::Known { norm, factor } => vec![*norm as f32, *factor],
        gradients::Clip::OnDevice { factor, .. } => {
            vec![clip.norm().unwrap() as f32, values(factor)[0]]
        }
    };
    compare("clip", &inputs, |t| {
        let wide = |t: &Tensor| t.to_dtype(DType::F32).unwrap().copy().unwrap();
        let (a, b) = (wide(&t[0]), wide(&t[1]));
        let clips = [0.0, 2.0, 1e6].map(|largest| gradients::clip(&[&a, &b], largest, &[], None));
        let found: Vec<f32> = clips
            .iter()
            .flat_map(|c| found(c.as_ref().unwrap()))
            .collect();
        vec![Tensor::new(found, &Device::Cpu).unwrap()]
    });
    let check = |device: &Device| {
        for (logp, is_number) in [(-3.0, true), (f32::NEG_INFINITY, false), (f32::NAN, false)] {
            let rows = Tensor::new(&[[-1.0, f32::NAN, 0.0, 0.0], [logp, 0.0, 0.0, 0.0]], device);
            let ones = Tensor::ones(7, DType::F32, device).unwrap();
            let clip = gradients::clip(&[&ones], 1.0, &[&rows.unwrap()], None).unwrap();
            assert!(
                found(&clip).iter().all(|n| n.is_finite() == is_number),
                "{logp}"
            );
        }
    };
    in_both_orders(|| check(&Device::Cpu));
    if let Some(gpu) = gpu() {
        check(&gpu);
    }
}

/// An odd number of them, and more than one block.
#[test]
fn draws_of_a_normal_match_their_twin() {
    compare("normal", &[random("like", &[1])], |t| {
        let stream = CounterRng::new(5, "normal");
        vec![normal::draw(&stream, 0.02, &[3, 347], t[0].dtype(), t[0].device()).unwrap()]
    });
}

const PATTERNS: [AttentionPattern; 4] = [
    AttentionPattern::Causal,
    AttentionPattern::Bidirectional,
    AttentionPattern::BlockCausal { block: 5 },
    AttentionPattern::BlockDiffusion { block: 4, views: 2 },
];

/// Queries, keys, values and the gradient of the output.
pub(super) fn attention_inputs(heads: attention::Heads, offsets: &[u32]) -> [Tensor; 4] {
    let rows = *offsets.last().unwrap() as usize;
    [
        random("q", &[rows, heads.width()]),
        random("k", &[rows, heads.kv_width()]),
        random("v", &[rows, heads.kv_width()]),
        random("d_out", &[rows, heads.width()]),
    ]
}

/// Output, log-sum-exp and the three gradients: by the CPU, or by the portable kernels where GPU code
/// runs.
pub(super) fn attention_both_ways(
    t: &[Tensor],
    heads: attention::Heads,
    offsets: &[u32],
    pattern: AttentionPattern,
) -> Vec<Tensor> {
    let (q, k, v) = (&t[0], &t[1], &t[2]);
    let portable = super::runs(q);
    let (out, lse) = match portable {
        true => super::attention::portable_forward(q, k, v, heads, offsets, pattern),
        false => attention::forward(q, k, v, heads, offsets, pattern),
    }
    .unwrap();
    let forwarded = attention::Forwarded {
        q,
        k,
        v,
        out: &out,
        lse: &lse,
    };
    let (dq, dk, dv) = match portable {
        true => super::attention::portable_backward(&t[3], forwarded, heads, offsets, pattern),
        false => attention::backward(&t[3], forwarded, heads, offsets, pattern),
    }
    .unwrap();
    vec![out, lse, dq, dk, dv]
}

fn check_attention(heads: attention::Heads, offsets: &[u32], pattern: AttentionPattern) {
    let inputs = attention_inputs(heads, offsets);
    compare(&format!("attention {heads:?} {pattern:?}"), &inputs, |t| {
        attention_both_ways(t, heads, offsets, pattern)
    });
}

#[test]
fn attention_matches_its_twin_in_every_pattern() {
    let heads = attention::Heads {
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 20,
    };
    for pattern in PATTERNS {
        // Several tiles, one row, an empty example; each divisible by three copies.
        check_attention(heads, &[0, 150, 150, 153, 180], pattern);
    }
}

#[test]
fn attention_of_wide_heads_matches_its_twin() {
    for head_dim in [64, 128, 192] {
        let heads = attention::Heads {
            n_heads: 2,
            n_kv_heads: 1,
            head_dim,
        };
        check_attention(heads, &[0, 70], AttentionPattern::Causal);
    }
}

/// Tensor cores take bfloat16 of three sizes: every pattern, tiles that end early, several examples,
/// several query heads per key.
#[test]
fn attention_on_tensor_cores_matches_its_twin_in_every_pattern() {
    for (head_dim, pattern) in [64, 96, 128, 64].into_iter().zip(PATTERNS) {
        let heads = attention::Heads {
            n_heads: 2,
            n_kv_heads: 1,
            head_dim,
        };
        check_attention(heads, &[0, 75, 75, 78, 108], pattern);
    }
}

/// The driver's figures: what a tensor takes is in them.
#[test]
fn a_gpu_says_what_it_holds() {
    let Some(gpu) = gpu() else { return };
    memory::reset_peak(&gpu);
    let (bytes, free) = (64u64 << 20, memory::available_bytes(&gpu).unwrap());
    let held = overwritten(bytes as usize / 4, DType::F32, &gpu).unwrap();
    let peak = memory::peak_bytes(&gpu).unwrap();
    assert!(peak >= bytes && peak < 2 * (free + bytes), "{peak} {free}");
    assert_eq!(held.elem_count(), 16 << 20);
}

/// It is an error that says what to do, and nothing else goes on differently.
#[test]
fn a_gpu_without_room_says_so_and_computes_on() {
    let Some(gpu) = gpu() else { return };
    let far_too_many = memory::available_bytes(&gpu).unwrap() as usize;
    let error = overwritten(far_too_many, DType::F32, &gpu).unwrap_err();
    let error = crate::EngineError::from(error);
    assert!(
        matches!(error, crate::EngineError::OutOfMemory { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("train.micro_batch_tokens"));
    let one = random("x", &[3, 5]).to_device(&gpu).unwrap();
    let sum = one.copy().unwrap();
    residual::add_assign(&sum, &one).unwrap();
    let doubled: Vec<f32> = values(&one).iter().map(|v| 2.0 * v).collect();
    assert_eq!(values(&sum), doubled);
}

fn head_rows(n: usize, vocab: u64) -> Vec<cross_entropy::HeadRow> {
    let targets = ids("targets", n, vocab);
    let rows = targets
        .iter()
        .enumerate()
        .map(|(i, target)| cross_entropy::HeadRow {
            row: 2 * i as u32 + 1,
            target: *target,
            coefficient: [0.0, 0.25, 1.5][i % 3],
        });
    rows.collect()
}

#[test]
fn the_head_matches_its_twin() {
    let (width, vocab) = (24, 2500);
    let rows = head_rows(7, vocab as u64);
    let sketch = cross_entropy::SketchSpec { width: 70, seed: 3 };
    // Large enough that some probabilities are far from even.
    let scaled = (random("hidden", &[16, width]) * 4.0).unwrap();
    let inputs = [scaled, random("weight", &[vocab, width])];
    let cases = [
        (Some(Into::Add), Some(sketch)),
        (Some(Into::Overwrite), None),
        (None, Some(sketch)),
        (None, None),
    ];
    for (backward, sketch) in cases {
        compare("head", &inputs, |t| {
            let dw = slot(&[vocab, width], &t[0]);
            let gradients = match backward {
                Some(into) => cross_entropy::HeadGradients::Hidden {
                    weight_slot: Some((&dw, into)),
                },
                None => cross_entropy::HeadGradients::None,
            };
            let (output, d_hidden) =
                cross_entropy::run(&t[0], &t[1], &rows, sketch, gradients).unwrap();
            let output = output.read().unwrap();
            let n = output.logp.len();
            let column = |values: Vec<f32>| Tensor::from_vec(values, n, &Device::Cpu).unwrap();
            let ranks = output.rank.iter().map(|rank| *rank as f32).collect();
            assert_eq!(output.sketch.is_some(), sketch.is_some());
            let mut results = vec![
                column(output.logp),
                column(output.entropy),
                column(ranks),
                column(output.grad_norm),
                Tensor::new(&[output.loss_sum as f32], &Device::Cpu).unwrap(),
                dw,
            ];
            results.extend(d_hidden);
            if let Some(sketch) = output.sketch {
                assert_eq!(sketch.values.len(), n * sketch.width);
                results.push(Tensor::new(sketch.values, &Device::Cpu).unwrap());
            }
            results
        });
    }
}

#[test]
fn the_head_keeps_what_is_left_of_one_and_passes_nan_on() {
    let weight = Tensor::new(&[[30.0f32], [0.0], [-1.0]], &Device::Cpu).unwrap();
    let hidden = Tensor::new(&[[1.0f32], [f32::NAN]], &Device::Cpu).unwrap();
    let row = |row| cross_entropy::HeadRow {
        row,
        target: 0,
        coefficient: 0.0,
    };
    let run = || {
        let none = cross_entropy::HeadGradients::None;
        let (output, _) =
            cross_entropy::run(&hidden, &weight, &[row(0), row(1)], None, none).unwrap();
        output.read().unwrap()
    };
    let wanted = run();
    let Some(found) = in_both_orders(run) else {
        return;
    };
    for found in found {
        assert!(
            (found.logp[0] / wanted.logp[0] - 1.0).abs() < 1e-5,
            "{found:?}"
        );
        assert!((found.grad_norm[0] / wanted.grad_norm[0] - 1.0).abs() < 1e-5);
        assert!(found.logp[1].is_nan() && found.entropy[1].is_nan() && found.grad_norm[1].is_nan());
    }
}
