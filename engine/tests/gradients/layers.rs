//! Every layer's values and gradients against the naive f64 forward and its central differences.

use std::sync::Arc;

use candle_core::Tensor;
use proptest::prelude::*;
use t3s_core::{AttentionPattern, decoder_spec::RopeSpec};
use t3s_engine::{
    Batch, Context, Grads, Layer, ParamId, Params, Save,
    kernels::{
        attention::{self, Forwarded, Heads},
        embedding,
        rotary::{self, RotaryTable},
    },
    layers::{Autograd, Linear, Lora, Projection, RmsNorm, SwiGlu},
};

use crate::{
    model::{random, tensor, values},
    oracle::{self, assert_close, wide},
};

/// Relative, Frobenius: f32 against f64. Measured at most 4e-7 over the cases below.
const TOLERANCE: f64 = 3e-6;

pub fn batch(lengths: &[usize]) -> Batch {
    let mut offsets = vec![0u32];
    let mut positions = Vec::new();
    for length in lengths {
        positions.extend(0..*length as u32);
        offsets.push(positions.len() as u32);
    }
    Batch {
        positions: Arc::new(positions),
        offsets: Arc::new(offsets),
        attention: AttentionPattern::Causal,
    }
}

/// Runs `layer` forward and backward and compares with `f(inputs)`, where `inputs[0]` is `x`
/// (`rows` rows) and the others are the tensors of `learns`.
fn check(
    layer: &dyn Layer,
    params: &Params,
    learns: &[ParamId],
    rows: usize,
    x: Vec<f32>,
    f: &dyn Fn(&[Vec<f64>]) -> Vec<f64>,
) {
    let batch = batch(&[rows]);
    let cx = Context {
        params,
        batch: &batch,
        routes: None,
    };
    let width = x.len() / rows;
    let mut inputs = vec![wide(&x)];
    inputs.extend(learns.iter().map(|id| wide(&values(params.tensor(*id)))));

    let x = tensor(x, &[rows, width]);
    let (y, saved) = layer.forward(&cx, &x, Save::ForBackward).unwrap();
    let (again, _) = layer.forward(&cx, &x, Save::Nothing).unwrap();
    assert_eq!(values(&y), values(&again));
    assert_close("values", &values(&y), &f(&inputs), TOLERANCE);

    let dy = random(77, 0, y.elem_count());
    let mut grads = Grads::new(params);
    let dy_tensor = tensor(dy.clone(), y.dims());
    let dx = layer.backward(&cx, &dy_tensor, saved, &mut grads).unwrap();
    assert_eq!(values(&dy_tensor), dy, "backward may not change its input");
    let dy = wide(&dy);
    let loss = |inputs: &[Vec<f64>]| oracle::dot(&f(inputs), &dy);
    let wanted = oracle::gradient(&inputs, 0, &loss);
    assert_close("dx", &values(&dx), &wanted, TOLERANCE);
    for (index, id) in learns.iter().enumerate() {
        let wanted = oracle::gradient(&inputs, index + 1, &loss);
        let found = values(grads.get(*id).expect("it learns"));
        let name = &params.param(*id).name;
        assert_close(name, &found, &wanted, TOLERANCE);
    }

    // Gradients add up: a second pass doubles them.
    let (_, saved) = layer.forward(&cx, &x, Save::ForBackward).unwrap();
    let once: Vec<Vec<f32>> = learns
        .iter()
        .map(|id| values(grads.get(*id).expect("it learns")))
        .collect();
    layer.backward(&cx, &dy_tensor, saved, &mut grads).unwrap();
    for (id, once) in learns.iter().zip(once) {
        let twice: Vec<f64> = once.iter().map(|g| 2.0 * f64::from(*g)).collect();
        let found = values(grads.get(*id).expect("it learns"));
        assert_close("accumulated", &found, &twice, 1e-6);
    }
}

fn matrix(params: &mut Params, name: &str, dims: &[usize]) -> ParamId {
    let stream = params.len() as u64 + 1;
    let values = random(5, stream, dims.iter().product());
    params.push(name, tensor(values, dims))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn linear(rows in 1usize..70, width in 1usize..20, out in 1usize..20, has_bias: bool) {
        let mut params = Params::default();
        let weight = matrix(&mut params, "weight", &[out, width]);
        let bias = has_bias.then(|| matrix(&mut params, "bias", &[out]));
        let mut learns = vec![weight];
        learns.extend(bias);
        let x = random(1, 0, rows * width);
        check(&Linear { weight, bias }, &params, &learns, rows, x, &|inputs| {
            let mut y = oracle::linear(&inputs[0], &inputs[1], width);
            if let Some(bias) = inputs.get(2) {
                y.chunks_mut(out).for_each(|y| y.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
            }
            y
        });
    }

    #[test]
    fn lora(rows in 1usize..40, width in 1usize..12, out in 1usize..12, rank in 1usize..5) {
        let mut params = Params::default();
        let weight = matrix(&mut params, "weight", &[out, width]);
        let a = matrix(&mut params, "lora_A", &[rank, width]);
        let b = matrix(&mut params, "lora_B", &[out, rank]);
        params.set_trainable(weight, false);
        let frozen = Linear { weight, bias: None };
        let layer = Projection::Adapted(Lora { frozen, a, b, scale: 1.75 });
        let w = wide(&values(params.tensor(weight)));
        let x = random(2, 0, rows * width);
        check(&layer, &params, &[a, b], rows, x, &|inputs| {
            let y = oracle::linear(&inputs[0], &w, width);
            let xa = oracle::linear(&inputs[0], &inputs[1], width);
            let low = oracle::linear(&xa, &inputs[2], rank);
            y.iter().zip(&low).map(|(y, l)| y + 1.75 * l).collect()
        });
    }

    // A row of one element has no direction: its gradient is of the order of eps, below f32's reach.
    #[test]
    fn rms_norm(rows in 1usize..70, width in 2usize..40) {
        let mut params = Params::default();
        let weight = matrix(&mut params, "weight", &[width]);
        let x = random(3, 0, rows * width);
        let layer = RmsNorm { weight, eps: 1e-6 };
        check(&layer, &params, &[weight], rows, x, &|inputs| {
            oracle::rms_norm(&inputs[0], &inputs[1])
        });
    }

    #[test]
    fn swiglu(rows in 1usize..30, width in 1usize..10, hidden in 1usize..20) {
        let mut params = Params::default();
        let mut project = |name: &str, out, width| {
            matrix(&mut params, name, &[out, width])
        };
        let learns =
            [project("gate", hidden, width), project("up", hidden, width), project("down", width, hidden)];
        let [gate, up, down] =
            learns.map(|weight| Projection::Plain(Linear { weight, bias: None }));
        let x = random(4, 0, rows * width).iter().map(|x| 3.0 * x).collect();
        check(&SwiGlu { gate, up, down }, &params, &learns, rows, x, &|inputs| {
            let gate = oracle::linear(&inputs[0], &inputs[1], width);
            let up = oracle::linear(&inputs[0], &inputs[2], width);
            oracle::linear(&oracle::swiglu(&gate, &up), &inputs[3], hidden)
        });
    }

    #[test]
    fn autograd_of_a_closure(rows in 1usize..10, width in 1usize..8) {
        let mut params = Params::default();
        let weight = matrix(&mut params, "weight", &[width, width]);
        let layer = Autograd::new("test", vec![weight], |x: &Tensor, p: &[Tensor]| {
            x + x.matmul(&p[0].t()?)?.silu()?
        });
        let x = random(6, 0, rows * width);
        check(&layer, &params, &[weight], rows, x, &|inputs| {
            let z = oracle::linear(&inputs[0], &inputs[1], width);
            inputs[0].iter().zip(&z).map(|(x, z)| x + z / (1.0 + (-z).exp())).collect()
        });
    }

    #[test]
    fn head_norm_and_rotary(
        lengths in prop::collection::vec(1usize..40, 1..3),
        heads in 1usize..4,
        half in 1usize..9,
        unrotated in 0usize..4,
        has_norm: bool,
    ) {
        let (dim, head_dim) = (2 * half, 2 * half + unrotated);
        let batch = batch(&lengths);
        let rows = batch.n_rows();
        // Not starting at 0, as in generation.
        let positions: Vec<u32> = batch.positions.iter().map(|p| p + 5).collect();
        let table = RotaryTable::new(&RopeSpec { theta: 100.0, rotary_dim: dim });
        let x = tensor(random(8, 0, rows * heads * head_dim), &[rows, heads * head_dim]);
        let w = tensor(random(8, 1, head_dim), &[head_dim]);
        let norm = has_norm.then_some(&w);
        let y = rotary::forward(&x, norm, 1e-6, head_dim, &table, &positions).unwrap();
        let dy = random(8, 2, y.elem_count());
        let dx = tensor(dy.clone(), y.dims());
        let dw = tensor(vec![0.0; head_dim], &[head_dim]);
        rotary::backward_in_place(&dx, &x, norm, 1e-6, head_dim, &table, &positions, Some(&dw))
            .unwrap();

        let inputs = [wide(&values(&x)), wide(&values(&w))];
        let f = |inputs: &[Vec<f64>]| {
            let normed = match has_norm {
                true => oracle::rms_norm(&inputs[0], &inputs[1]),
                false => inputs[0].clone(),
            };
            oracle::rotary(&normed, heads, head_dim, dim, 100.0, &positions)
        };
        let dy = wide(&dy);
        let loss = |inputs: &[Vec<f64>]| oracle::dot(&f(inputs), &dy);
        assert_close("values", &values(&y), &f(&inputs), TOLERANCE);
        assert_close("dx", &values(&dx), &oracle::gradient(&inputs, 0, &loss), TOLERANCE);
        if has_norm {
            assert_close("dw", &values(&dw), &oracle::gradient(&inputs, 1, &loss), TOLERANCE);
        }
    }

    #[test]
    fn attention_over_packed_examples(
        lengths in prop::collection::vec(0usize..150, 1..4),
        kv_heads in 1usize..3,
        group in 1usize..4,
        d in 1usize..20,
    ) {
        prop_assume!(lengths.iter().sum::<usize>() > 0);
        check_attention(&lengths, kv_heads, group, d, AttentionPattern::Causal);
    }

    #[test]
    fn attention_of_every_pattern(
        lengths in prop::collection::vec(0usize..60, 1..3),
        group in 1usize..3,
        d in 1usize..6,
        block in 1u32..40,
        views in 1u32..3,
        kind in 0usize..3,
    ) {
        prop_assume!(lengths.iter().sum::<usize>() > 0);
        let (pattern, copies) = match kind {
            0 => (AttentionPattern::Bidirectional, 1),
            1 => (AttentionPattern::BlockCausal { block }, 1),
            _ => (AttentionPattern::BlockDiffusion { block, views }, views as usize + 1),
        };
        let lengths: Vec<usize> = lengths.iter().map(|n| n * copies).collect();
        check_attention(&lengths, 2, group, d, pattern);
    }
}

/// More keys than one tile holds, and more than one backward task takes.
#[test]
fn attention_over_a_long_example() {
    check_attention(&[700, 1], 2, 1, 4, AttentionPattern::Causal);
    check_attention(&[3, 1537], 1, 2, 4, AttentionPattern::Causal);
    for pattern in [
        AttentionPattern::Bidirectional,
        AttentionPattern::BlockCausal { block: 32 },
        AttentionPattern::BlockDiffusion {
            block: 32,
            views: 1,
        },
    ] {
        check_attention(&[1302, 2], 1, 1, 4, pattern);
    }
}

#[test]
fn patterns_that_do_not_fit_are_refused() {
    let (q, heads) = (
        tensor(vec![0.0; 10], &[5, 2]),
        Heads {
            n_heads: 1,
            n_kv_heads: 1,
            head_dim: 2,
        },
    );
    for pattern in [
        AttentionPattern::BlockDiffusion { block: 2, views: 1 },
        AttentionPattern::BlockDiffusion { block: 0, views: 4 },
        AttentionPattern::BlockDiffusion { block: 2, views: 0 },
        AttentionPattern::BlockCausal { block: 0 },
    ] {
        assert!(attention::forward(&q, &q, &q, heads, &[0, 5], pattern).is_err());
    }
}

/// The head sizes that models have, which take other paths through the matrix products.
#[test]
fn attention_of_usual_head_sizes() {
    check_attention(&[70, 0, 65], 2, 2, 32, AttentionPattern::Causal);
    check_attention(&[129, 3], 1, 4, 64, AttentionPattern::Causal);
    check_attention(&[66], 1, 1, 128, AttentionPattern::Causal);
}

fn check_attention(
    lengths: &[usize],
    n_kv_heads: usize,
    group: usize,
    d: usize,
    pattern: AttentionPattern,
) {
    let batch = batch(lengths);
    let rows = batch.n_rows();
    let heads = Heads {
        n_heads: n_kv_heads * group,
        n_kv_heads,
        head_dim: d,
    };
    let draw = |stream, heads: usize, scale: f32| {
        let values = random(9, stream, rows * heads * d);
        let values = values.iter().map(|v| scale * v).collect();
        tensor(values, &[rows, heads * d])
    };
    // Scores of several nats, so that probabilities are far from uniform.
    let q = draw(0, heads.n_heads, 3.0);
    let (k, v) = (draw(1, n_kv_heads, 3.0), draw(2, n_kv_heads, 1.0));
    let (out, lse) = attention::forward(&q, &k, &v, heads, &batch.offsets, pattern).unwrap();
    let d_out = draw(3, heads.n_heads, 1.0);
    let forwarded = Forwarded {
        q: &q,
        k: &k,
        v: &v,
        out: &out,
        lse: &lse,
    };
    let (dq, dk, dv) =
        attention::backward(&d_out, forwarded, heads, &batch.offsets, pattern).unwrap();

    let inputs = [&q, &k, &v].map(|t| wide(&values(t)));
    let sizes = (heads.n_heads, n_kv_heads, d);
    let f = |i: &[Vec<f64>]| oracle::attention(&i[0], &i[1], &i[2], sizes, &batch.offsets, pattern);
    assert_close("values", &values(&out), &f(&inputs), TOLERANCE);
    let d_out = wide(&values(&d_out));
    let loss = |inputs: &[Vec<f64>]| oracle::dot(&f(inputs), &d_out);
    for (which, grad) in [dq, dk, dv].iter().enumerate() {
        let grad = values(grad);
        // One direction along the gradient itself finds a gradient that is too long or points
        // elsewhere; random ones find what it lacks.
        let norm = grad.iter().map(|g| g * g).sum::<f32>().sqrt();
        for stream in 0..3 {
            let direction = match stream {
                0 => grad.iter().map(|g| g / norm.max(1e-30)).collect(),
                _ => random(10, stream, grad.len()),
            };
            let wanted = oracle::slope(&inputs, which, &direction, &loss);
            let found = oracle::dot(&wide(&grad), &wide(&direction));
            let scale = f64::from(norm) * oracle::dot(&wide(&direction), &wide(&direction)).sqrt();
            let error = (found - wanted).abs() / scale.max(1e-6);
            // Where a probability is next to 1, the gradient is a small difference of large terms.
            assert!(
                error <= 1e-5,
                "input {which}, direction {stream}: {error:e}"
            );
        }
    }
}

#[test]
fn embedding_gradients_add_up_over_repeated_ids() {
    let (vocab, width) = (7, 70);
    let table = tensor(random(11, 0, vocab * width), &[vocab, width]);
    let ids = [3, 3, 0, 6, 3, 0];
    let y = embedding::forward(&table, &ids).unwrap();
    let rows: Vec<Vec<f32>> = table.to_vec2().unwrap();
    let wanted: Vec<f32> = ids
        .iter()
        .flat_map(|id| rows[*id as usize].clone())
        .collect();
    assert_eq!(values(&y), wanted);

    let dy = random(11, 1, ids.len() * width);
    let slot = tensor(vec![1.0; vocab * width], &[vocab, width]);
    embedding::backward(&tensor(dy.clone(), &[ids.len(), width]), &ids, &slot).unwrap();
    let mut wanted = vec![1.0f64; vocab * width];
    for (row, id) in ids.iter().enumerate() {
        for i in 0..width {
            wanted[*id as usize * width + i] += f64::from(dy[row * width + i]);
        }
    }
    assert_close("slot", &values(&slot), &wanted, 1e-6);
    let error = embedding::forward(&table, &[1, 7]).unwrap_err().to_string();
    assert!(error.contains("row 1 has id 7"), "{error}");
}

#[test]
fn autograd_names_what_an_operation_without_gradient_cuts_off() {
    let mut params = Params::default();
    let weight = matrix(&mut params, "blocks.0.weight", &[4, 4]);
    let layer = Autograd::new("my-block", vec![weight], |x: &Tensor, p: &[Tensor]| {
        let z = x.matmul(&p[0].t()?)?;
        // The fused softmax has no backward pass in candle; the residual path does.
        x + candle_nn::ops::softmax_last_dim(&z)?
    });
    let batch = batch(&[2]);
    let cx = Context {
        params: &params,
        batch: &batch,
        routes: None,
    };
    let x = tensor(random(12, 0, 8), &[2, 4]);
    let (y, saved) = layer.forward(&cx, &x, Save::ForBackward).unwrap();
    let mut grads = Grads::new(&params);
    let error = layer.backward(&cx, &y, saved, &mut grads).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("my-block") && error.contains("blocks.0.weight"),
        "{error}"
    );

    params.set_trainable(weight, false);
    let layer = Autograd::new("my-block", vec![weight], |x: &Tensor, _: &[Tensor]| {
        candle_nn::ops::softmax_last_dim(x)
    });
    let cx = Context {
        params: &params,
        batch: &batch,
        routes: None,
    };
    let (y, saved) = layer.forward(&cx, &x, Save::ForBackward).unwrap();
    let mut grads = Grads::new(&params);
    let error = layer.backward(&cx, &y, saved, &mut grads).unwrap_err();
    assert!(error.to_string().contains("its input"), "{error}");
}
