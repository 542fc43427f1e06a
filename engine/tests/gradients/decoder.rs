//! The whole decoder: gradients, and the laws that packing, recomputing and scaling must obey.

use std::ops::ControlFlow;

use proptest::prelude::*;
use t3s_core::{
    AttentionPattern, Draw, Example, ModelBatch, Objective,
    decoder_spec::TensorNames,
    objective::NextToken,
    plan::sections::{LoraPlan, Recompute, ScorePlan},
};
use t3s_engine::{
    Columns, Decoder, EngineError, Grads, Save, Scoring,
    layers::{
        head::SketchSpec,
        lora::{self, adapter_name},
    },
    score,
    score::{PackedExamples, batch_of, head_rows},
};

use crate::{
    model::{Shape, examples, random, relative_error, values},
    oracle,
};

/// Loss sum and gradients of `examples` with their weights times `scale` as coefficients.
fn gradients(
    decoder: &Decoder,
    examples: &[Example],
    recompute: Recompute,
    scale: f32,
    grads: &mut Grads,
) -> f64 {
    let packed = PackedExamples::new(examples);
    let mut rows = ModelBatch::default();
    NextToken
        .prepare(&packed.as_batch(), Draw::default(), &mut rows)
        .unwrap();
    let batch = batch_of(&rows, &NextToken);
    let (hidden, tape) = decoder
        .forward(&rows.input_ids, &batch, recompute, Save::ForBackward)
        .unwrap();
    let weighted = |row: usize| Some(rows.weights[row] * scale).filter(|w| *w > 0.0);
    let asked = head_rows(&rows, &packed.ids, weighted).unwrap();
    let (output, d_hidden) = decoder
        .head_forward_backward(&hidden, &asked, None, grads)
        .unwrap();
    decoder.backward(d_hidden, tape, &batch, grads).unwrap();
    output.loss_sum
}

fn all_gradients(decoder: &Decoder, grads: &Grads) -> Vec<Option<Vec<f32>>> {
    decoder
        .params
        .iter()
        .map(|(id, _)| grads.get(id).map(values))
        .collect()
}

/// The same loss, in f64, from tensors in the order of `decoder.params`.
fn oracle_loss(decoder: &Decoder, examples: &[Example], params: &[Vec<f64>]) -> f64 {
    let spec = &decoder.spec;
    let names = &spec.names;
    let get = |name: &str| &params[decoder.params.id(name).expect(name).index()];
    let (d, heads, kv) = (spec.head_dim, spec.n_heads, spec.n_kv_heads);
    let mut loss = 0.0;
    for example in examples {
        let rows = example.ids.len();
        let positions: Vec<u32> = (0..rows as u32).collect();
        let table = get(&names.embedding);
        let mut x: Vec<f64> = example
            .ids
            .iter()
            .flat_map(|id| table[*id as usize * spec.width..][..spec.width].to_vec())
            .collect();
        for layer in 0..spec.n_layers {
            let at = |name: &String| TensorNames::at(name, layer);
            let project = |x: &[f64], name: &String, width: usize| {
                let mut y = oracle::linear(x, get(&at(name)), width);
                let a = adapter_name(&at(name), "lora_A");
                if decoder.params.id(&a).is_some() {
                    let a = get(&a);
                    let rank = a.len() / width;
                    let xa = oracle::linear(x, a, width);
                    let low = oracle::linear(&xa, get(&adapter_name(&at(name), "lora_B")), rank);
                    let scale = 32.0 / rank as f64;
                    y.iter_mut().zip(low).for_each(|(y, l)| *y += scale * l);
                }
                if let Some(id) = decoder.params.id(&TensorNames::bias(&at(name))) {
                    let bias = &params[id.index()];
                    for y in y.chunks_mut(bias.len()) {
                        y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
                    }
                }
                y
            };
            let n = oracle::rms_norm(&x, get(&at(&names.attention_norm)));
            let turned = |name: &String, norm: &String, heads: usize| {
                let raw = project(&n, name, spec.width);
                let normed = match spec.qk_norm {
                    true => oracle::rms_norm(&raw, get(&at(norm))),
                    false => raw,
                };
                oracle::rotary(&normed, heads, d, d, spec.rope.theta, &positions)
            };
            let q = turned(&names.query, &names.query_norm, heads);
            let k = turned(&names.key, &names.key_norm, kv);
            let v = project(&n, &names.value, spec.width);
            let out = oracle::attention(
                &q,
                &k,
                &v,
                (heads, kv, d),
                &[0, rows as u32],
                AttentionPattern::Causal,
            );
            let out = project(&out, &names.output, heads * d);
            x.iter_mut().zip(out).for_each(|(x, o)| *x += o);
            let n = oracle::rms_norm(&x, get(&at(&names.mlp_norm)));
            let gate = project(&n, &names.gate, spec.width);
            let up = project(&n, &names.up, spec.width);
            let hidden = oracle::swiglu(&gate, &up);
            let out = project(&hidden, &names.down, hidden.len() / rows);
            x.iter_mut().zip(out).for_each(|(x, o)| *x += o);
        }
        let x = oracle::rms_norm(&x, get(&names.final_norm));
        let head = match spec.tied_head {
            true => table,
            false => get(&names.head),
        };
        let logits = oracle::linear(&x, head, spec.width);
        for (row, z) in logits.chunks(spec.vocab).enumerate() {
            if row + 1 < rows && example.trainable[row + 1] {
                let target = example.ids[row + 1] as usize;
                loss -= f64::from(example.weights[row + 1]) * oracle::log_softmax(z)[target];
            }
        }
    }
    loss
}

/// Loss and the slope along every tensor's gradient and one random direction, against f64.
fn check_against_oracle(decoder: &Decoder, examples: &[Example]) {
    let mut grads = Grads::new(&decoder.params);
    let loss = gradients(decoder, examples, Recompute::None, 1.0, &mut grads);
    let params: Vec<Vec<f64>> = decoder
        .params
        .iter()
        .map(|(_, p)| oracle::wide(&values(&p.tensor)))
        .collect();
    let f = |params: &[Vec<f64>]| oracle_loss(decoder, examples, params);
    let wanted = f(&params);
    assert!(
        (loss - wanted).abs() < 1e-5 * wanted,
        "{loss}, wanted {wanted}"
    );
    for (id, param) in decoder.params.iter().filter(|(_, p)| p.trainable) {
        let grad = values(grads.get(id).expect("it learns"));
        let norm = grad.iter().map(|g| g * g).sum::<f32>().sqrt();
        assert!(norm > 0.0, "{}", param.name);
        let along = grad.iter().map(|g| g / norm).collect();
        for direction in [along, random(31, id.index() as u64, grad.len())] {
            let wanted = oracle::slope(&params, id.index(), &direction, &f);
            let wide = oracle::wide(&direction);
            let found = oracle::dot(&oracle::wide(&grad), &wide);
            let scale = f64::from(norm) * oracle::dot(&wide, &wide).sqrt();
            let error = (found - wanted).abs() / scale;
            // Measured at most 1.5e-6.
            assert!(error < 1e-5, "{}: {error:e}", param.name);
        }
    }
}

#[test]
fn gradients_of_tied_and_untied_decoders_match_f64() {
    for tied in [true, false] {
        let shape = Shape {
            tied,
            ..Shape::TINY
        };
        let decoder = Decoder::new(shape.spec(), shape.params(1), None).unwrap();
        check_against_oracle(&decoder, &examples(&shape, &[9, 1, 17], 2));
    }
}

#[test]
fn gradients_with_biases_and_without_head_norms_match_f64() {
    for (qk_norm, n_kv_heads) in [(false, 1), (true, 4)] {
        let shape = Shape {
            qk_norm,
            qkv_bias: true,
            n_kv_heads,
            ..Shape::TINY
        };
        let decoder = Decoder::new(shape.spec(), shape.params(3), None).unwrap();
        check_against_oracle(&decoder, &examples(&shape, &[11, 6], 4));
    }
}

fn lora_plan() -> LoraPlan {
    LoraPlan {
        rank: 3,
        ..LoraPlan::default()
    }
}

#[test]
fn lora_starts_as_the_base_and_learns_only_its_own() {
    let shape = Shape::TINY;
    let examples = examples(&shape, &[9, 14], 3);
    let plain = Decoder::new(shape.spec(), shape.params(1), None).unwrap();
    let mut params = shape.params(1);
    lora::attach(&shape.spec(), &mut params, &lora_plan(), 4).unwrap();
    let mut decoder = Decoder::new(shape.spec(), params, Some(&lora_plan())).unwrap();

    let mut grads = Grads::new(&plain.params);
    let base = gradients(&plain, &examples, Recompute::None, 1.0, &mut grads);
    let mut grads = Grads::new(&decoder.params);
    let adapted = gradients(&decoder, &examples, Recompute::None, 1.0, &mut grads);
    assert_eq!(base, adapted, "B is zero");
    for (id, param) in decoder.params.iter() {
        let is_adapter = param.name.starts_with("base_model.model.model.layers.");
        assert_eq!(param.trainable, is_adapter, "{}", param.name);
        assert_eq!(grads.get(id).is_some(), is_adapter, "{}", param.name);
    }

    // With B away from zero, everything matters.
    let ids: Vec<_> = decoder
        .params
        .iter()
        .filter(|(_, p)| p.name.contains("lora_B"))
        .map(|(id, p)| (id, p.tensor.dims().to_vec()))
        .collect();
    assert_eq!(ids.len(), 7 * shape.n_layers);
    for (id, dims) in ids {
        let b = random(5, id.index() as u64, dims.iter().product());
        let b = b.iter().map(|b| 0.05 * b).collect();
        decoder.params.replace(id, crate::model::tensor(b, &dims));
    }
    check_against_oracle(&decoder, &examples);
}

#[test]
fn lora_refuses_what_adapts_nothing() {
    let shape = Shape::TINY;
    let refuse = |plan: LoraPlan| {
        let mut params = shape.params(1);
        lora::attach(&shape.spec(), &mut params, &plan, 4)
            .unwrap_err()
            .to_string()
    };
    let targets = vec!["q_proj".to_owned(), "query".to_owned()];
    assert!(
        refuse(LoraPlan {
            targets,
            ..lora_plan()
        })
        .contains("\"query\" is no projection")
    );
    assert!(
        refuse(LoraPlan {
            rank: 0,
            ..lora_plan()
        })
        .contains("lora.rank")
    );
    let error = Decoder::new(shape.spec(), shape.params(1), Some(&lora_plan())).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("q_proj.lora_A.weight is missing; attach"),
        "{error}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn recomputing_changes_nothing(every in 1usize..5, seed: u64) {
        let shape = Shape { n_layers: 5, ..Shape::TINY };
        let decoder = Decoder::new(shape.spec(), shape.params(seed), None).unwrap();
        let examples = examples(&shape, &[9, 70], seed);
        let run = |recompute| {
            let mut grads = Grads::new(&decoder.params);
            let loss = gradients(&decoder, &examples, recompute, 1.0, &mut grads);
            (loss, all_gradients(&decoder, &grads))
        };
        let kept = run(Recompute::None);
        prop_assert_eq!(&kept, &run(Recompute::None), "the same run twice");
        prop_assert_eq!(&kept, &run(Recompute::Block));
        prop_assert_eq!(&kept, &run(Recompute::Every(every)));
    }

    #[test]
    fn packing_changes_nothing(
        lengths in prop::collection::vec(1usize..90, 2..5),
        seed: u64,
    ) {
        let shape = Shape::TINY;
        let decoder = Decoder::new(shape.spec(), shape.params(seed), None).unwrap();
        let examples = examples(&shape, &lengths, seed);
        prop_assume!(examples.iter().any(|e| e.trainable[1..].contains(&true)));
        let mut packed = Grads::new(&decoder.params);
        let loss = gradients(&decoder, &examples, Recompute::None, 1.0, &mut packed);
        let mut alone = Grads::new(&decoder.params);
        let mut sum = 0.0;
        for example in examples.chunks(1) {
            sum += gradients(&decoder, example, Recompute::None, 1.0, &mut alone);
        }
        prop_assert!((loss - sum).abs() <= 1e-6 * sum);
        for (id, param) in decoder.params.iter() {
            let [a, b] = [&packed, &alone].map(|g| values(g.get(id).expect("it learns")));
            let error = relative_error(&a, &b);
            prop_assert!(error < 1e-5, "{}: {error:e}", param.name);
        }
    }

    #[test]
    fn weights_scale_gradients(seed: u64) {
        let shape = Shape::TINY;
        let decoder = Decoder::new(shape.spec(), shape.params(seed), None).unwrap();
        let examples = examples(&shape, &[12, 33], seed);
        let run = |scale| {
            let mut grads = Grads::new(&decoder.params);
            let loss = gradients(&decoder, &examples, Recompute::None, scale, &mut grads);
            (loss, all_gradients(&decoder, &grads))
        };
        let (loss, grads) = run(1.0);
        let (small_loss, small) = run(1.0 / 64.0);
        // A power of two: exact.
        prop_assert_eq!(loss / 64.0, small_loss);
        for (grad, small) in grads.iter().flatten().zip(small.iter().flatten()) {
            let wanted: Vec<f32> = grad.iter().map(|g| g / 64.0).collect();
            prop_assert_eq!(&wanted, small);
        }
    }
}

#[test]
fn bad_batches_and_tensors_are_named() {
    let shape = Shape::TINY;
    let decoder = Decoder::new(shape.spec(), shape.params(1), None).unwrap();
    let batch = crate::layers::batch(&[3]);
    let forward = |ids: &[u32]| {
        decoder
            .forward(ids, &batch, Recompute::None, Save::Nothing)
            .map(|_| ())
            .unwrap_err()
    };
    let error = forward(&[1, 37, 2]);
    assert!(
        matches!(
            error,
            EngineError::TokenId {
                row: 1,
                id: 37,
                vocab: 37
            }
        ),
        "{error}"
    );
    assert!(
        forward(&[1, u32::MAX, 2])
            .to_string()
            .contains("4294967295")
    );
    assert!(forward(&[1, 2]).to_string().contains("2 ids, 3 positions"));
    let (hidden, tape) = decoder
        .forward(&[1, 2, 3], &batch, Recompute::None, Save::Nothing)
        .unwrap();
    let mut grads = Grads::new(&decoder.params);
    assert!(decoder.backward(hidden, tape, &batch, &mut grads).is_err());

    let wide = Shape {
        hidden: 41,
        ..shape
    };
    let error = Decoder::new(wide.spec(), shape.params(1), None)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("mlp.gate_proj.weight has shape [40, 24]"),
        "{error}"
    );
    assert!(error.contains("[41, 24]"), "{error}");
    let deep = Shape {
        n_layers: 4,
        ..shape
    };
    let error = Decoder::new(deep.spec(), shape.params(1), None)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("model.layers.3.input_layernorm.weight is missing"),
        "{error}"
    );
}

#[test]
fn scoring_gives_one_row_per_target_whatever_the_passes() {
    let shape = Shape::TINY;
    let decoder = Decoder::new(shape.spec(), shape.params(1), None).unwrap();
    let examples = examples(&shape, &[12, 1, 30, 5], 6);
    let sketch = SketchSpec { width: 4, seed: 1 };
    let columns = Columns {
        sketch: Some(sketch),
        ..Columns::SCALARS
    };
    let how = |batch_tokens| Scoring {
        batch_tokens,
        ..Scoring::of(&ScorePlan::default(), columns, 0)
    };
    let run = |batch_tokens| {
        let mut heard = Vec::new();
        let table = score(
            &decoder,
            &NextToken,
            &examples,
            &how(batch_tokens),
            &mut |done| {
                heard.push(done);
                ControlFlow::Continue(())
            },
        );
        (table.unwrap(), heard)
    };
    let (table, heard) = run(1000);
    assert_eq!(heard, [48]);
    let (small, heard) = run(14);
    assert_eq!(heard, [13, 43, 48]);

    let (view, small) = (table.view(), small.view());
    assert_eq!(view.example_ids(), [10, 11, 12, 13]);
    let mut row = 0;
    for (e, example) in examples.iter().enumerate() {
        assert_eq!(view.offsets()[e] as usize, row);
        for position in 1..example.ids.len() {
            if example.trainable[position] {
                assert_eq!(view.positions()[row] as usize, position);
                assert_eq!(view.token_ids()[row], example.ids[position]);
                row += 1;
            }
        }
    }
    assert_eq!(view.n_tokens(), row);
    for name in ["logp", "entropy", "rank", "grad_norm"] {
        let [a, b] = [&view, &small].map(|v| v.column(name).unwrap());
        assert!(relative_error(a, b) < 1e-6, "{name}");
    }
    assert_eq!(view.sketch("sketch").unwrap().values.len(), 4 * row);

    let mut stop = |_| ControlFlow::Break(());
    let error = score(&decoder, &NextToken, &examples, &how(14), &mut stop).unwrap_err();
    assert!(matches!(error, EngineError::Interrupted));

    let mut broken = decoder.clone();
    let id = broken.params.id("model.norm.weight").unwrap();
    broken
        .params
        .replace(id, crate::model::tensor(vec![f32::NAN; 24], &[24]));
    let mut go_on = |_| ControlFlow::Continue(());
    let error = score(&broken, &NextToken, &examples, &how(14), &mut go_on).unwrap_err();
    assert!(
        error.to_string().contains("example 10, position"),
        "{error}"
    );
}
