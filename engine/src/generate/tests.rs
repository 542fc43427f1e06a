//! Generation against a full forward pass per token, and what an answer must not depend on.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use proptest::prelude::*;
use t3s_core::{
    AttentionPattern, CounterRng, DecoderSpec,
    decoder_spec::{MlpSpec, RopeSpec, TensorNames},
    plan::sections::{LoraPlan, Recompute},
};

use super::{
    frozen::{Buffers, FrozenDecoder, Row},
    *,
};
use crate::{Batch, Params, Save, kv_cache::KvCache};

const VOCAB: usize = 53;

pub(crate) fn spec(tied_head: bool, qk_norm: bool, qkv_bias: bool) -> DecoderSpec {
    let name = |rest: &str| format!("layers.{{layer}}.{rest}.weight");
    DecoderSpec {
        spec_version: DecoderSpec::VERSION,
        vocab: VOCAB,
        width: 24,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 10,
        mlp: MlpSpec::SwiGlu { hidden: 40 },
        norm_eps: 1e-6,
        rope: RopeSpec {
            theta: 1e4,
            rotary_dim: 8,
        },
        qk_norm,
        qkv_bias,
        tied_head,
        max_positions: 64,
        initializer_range: 0.02,
        eos_ids: vec![7, 11],
        names: TensorNames {
            embedding: "embedding".into(),
            final_norm: "final_norm".into(),
            head: "head".into(),
            attention_norm: name("attention_norm"),
            query: name("q_proj"),
            key: name("k_proj"),
            value: name("v_proj"),
            output: name("o_proj"),
            query_norm: name("query_norm"),
            key_norm: name("key_norm"),
            mlp_norm: name("mlp_norm"),
            gate: name("gate_proj"),
            up: name("up_proj"),
            down: name("down_proj"),
        },
    }
}

/// Weights large enough that contexts matter: logits of neighbouring tokens differ by units.
pub(crate) fn decoder(spec: DecoderSpec, lora: Option<&LoraPlan>) -> Decoder {
    let rng = CounterRng::new(11, "test-weights");
    let mut params = Params::default();
    let mut push = |name: String, shape: &[usize]| {
        let index = params.len() as u64;
        let spread = if shape.len() == 1 {
            0.5
        } else {
            1.2 / (shape[1] as f64).sqrt()
        };
        let centre = if shape.len() == 1 && !name.ends_with(".bias") {
            1.0
        } else {
            0.0
        };
        let value = |i: u64| (centre + (rng.uniform(index, i) * 2.0 - 1.0) * spread * 1.7) as f32;
        let n: usize = shape.iter().product();
        let values: Vec<f32> = (0..n as u64).map(value).collect();
        params.push(
            name,
            Tensor::from_vec(values, shape, &Device::Cpu).expect("shape fits"),
        );
    };
    let names = &spec.names;
    let (q, kv) = (
        spec.n_heads * spec.head_dim,
        spec.n_kv_heads * spec.head_dim,
    );
    let (width, hidden) = (spec.width, 40);
    push(names.embedding.clone(), &[spec.vocab, width]);
    push(names.final_norm.clone(), &[width]);
    push(names.head.clone(), &[spec.vocab, width]);
    for layer in 0..spec.n_layers {
        let matrices: [(&String, &[usize]); 11] = [
            (&names.attention_norm, &[width]),
            (&names.query, &[q, width]),
            (&names.key, &[kv, width]),
            (&names.value, &[kv, width]),
            (&names.output, &[width, q]),
            (&names.query_norm, &[spec.head_dim]),
            (&names.key_norm, &[spec.head_dim]),
            (&names.mlp_norm, &[width]),
            (&names.gate, &[hidden, width]),
            (&names.up, &[hidden, width]),
            (&names.down, &[width, hidden]),
        ];
        for (name, shape) in matrices {
            push(TensorNames::at(name, layer), shape);
        }
        for (name, out) in [(&names.query, q), (&names.key, kv), (&names.value, kv)] {
            push(
                TensorNames::at(name, layer).replace(".weight", ".bias"),
                &[out],
            );
        }
        if lora.is_some() {
            for (module, out, columns) in [("q_proj", q, width), ("down_proj", width, hidden)] {
                let name = format!("base_model.model.layers.{layer}.{module}.lora_");
                push(format!("{name}A.weight"), &[3, columns]);
                push(format!("{name}B.weight"), &[out, 3]);
            }
        }
    }
    Decoder::new(spec, params, lora).expect("a complete decoder")
}

pub(crate) fn prompts(n: usize) -> Vec<Vec<u32>> {
    let length = |p: usize| 1 + p * 7 % 23;
    (0..n)
        .map(|p| {
            (0..length(p))
                .map(|i| ((i * 31 + p * 17 + 3) % VOCAB) as u32)
                .collect()
        })
        .collect()
}

pub(crate) fn plan(temperature: f64, batch: usize) -> GeneratePlan {
    GeneratePlan {
        max_new_tokens: 20,
        temperature,
        batch,
        ..GeneratePlan::default()
    }
}

fn run(
    decoder: &Decoder,
    prompts: &[Vec<u32>],
    samples: usize,
    plan: &GeneratePlan,
) -> Vec<Generation> {
    let rule = DecodeRule::LeftToRight;
    let go_on = &mut |_| ControlFlow::Continue(());
    generate(decoder, &rule, prompts, samples, plan, 3, go_on).expect("generates")
}

/// The last row's logits by a forward pass over the whole text.
fn full_logits(decoder: &Decoder, ids: &[u32]) -> Vec<f32> {
    let batch = Batch {
        positions: Arc::new((0..ids.len() as u32).collect()),
        offsets: Arc::new(vec![0, ids.len() as u32]),
        attention: AttentionPattern::Causal,
    };
    let (hidden, _) = decoder
        .forward(ids, &batch, Recompute::None, Save::Nothing)
        .expect("forward");
    let last = hidden
        .narrow(0, ids.len() - 1, 1)
        .and_then(|row| row.contiguous());
    let logits = decoder.logits(&last.expect("a row")).expect("logits");
    logits.flatten_all().and_then(|l| l.to_vec1()).expect("f32")
}

/// Every variant of the architecture that a spec can express.
pub(crate) fn decoders() -> Vec<Decoder> {
    let lora = LoraPlan {
        rank: 3,
        alpha: 5.0,
        targets: vec!["q_proj".into(), "down_proj".into()],
    };
    vec![
        decoder(spec(true, true, false), None),
        decoder(spec(false, false, true), None),
        decoder(spec(false, true, true), Some(&lora)),
    ]
}

#[test]
fn cached_logits_are_those_of_a_full_forward_pass() {
    for decoder in decoders() {
        let texts = prompts(5);
        let frozen = FrozenDecoder::new(&decoder, 64).expect("packs");
        let mut caches = vec![KvCache::new(frozen.shape); texts.len()];
        let mut buffers = Buffers::default();
        // All texts side by side, cut into passes of seven rows.
        let mut rows = Vec::new();
        for (cache, ids) in texts.iter().enumerate() {
            let row = |(position, id): (usize, &u32)| Row {
                cache,
                position,
                id: *id,
                wants_logits: position % 3 == 0,
            };
            rows.extend(ids.iter().enumerate().map(row));
        }
        let mut worst = 0.0f32;
        for rows in rows.chunks(7) {
            frozen.read(rows, &mut caches, &mut buffers);
            let mut found = buffers.logits.chunks_exact(VOCAB);
            for row in rows.iter().filter(|row| row.wants_logits) {
                let wanted = full_logits(&decoder, &texts[row.cache][..=row.position]);
                let found = found.next().expect("one row per asking row");
                for (found, wanted) in found.iter().zip(&wanted) {
                    worst = worst.max((found - wanted).abs());
                }
            }
            assert!(found.next().is_none());
        }
        // Logits are of size 4; f32 keeps seven digits of them.
        assert!(worst < 2e-5, "{worst:e}");
    }
}

#[test]
fn greedy_with_a_cache_is_greedy_without() {
    for decoder in decoders() {
        let prompts = prompts(6);
        let answers = run(&decoder, &prompts, 1, &plan(0.0, 4));
        assert_eq!(answers.len(), 6);
        for answer in &answers {
            let mut text = prompts[answer.prompt].clone();
            for step in 0..20 {
                let logits = full_logits(&decoder, &text);
                let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let next = logits.iter().position(|z| *z == largest).expect("finite") as u32;
                if step == answer.ids.len() {
                    assert_eq!(answer.finish, Finish::Eos);
                    assert!(decoder.spec.eos_ids.contains(&next));
                    break;
                }
                assert_eq!(
                    answer.ids[step], next,
                    "prompt {}, token {step}",
                    answer.prompt
                );
                text.push(next);
            }
        }
        let ends = |finish| answers.iter().filter(|a| a.finish == finish).count();
        assert_eq!(ends(Finish::Eos) + ends(Finish::Length), 6);
    }
}

#[test]
fn both_ends_occur_and_are_counted() {
    let decoder = decoder(spec(true, true, false), None);
    let mut last = GenerateProgress::default();
    let mut record = |progress| {
        last = progress;
        ControlFlow::Continue(())
    };
    let (rule, plan) = (DecodeRule::LeftToRight, plan(1.0, 8));
    let answers = generate(&decoder, &rule, &prompts(20), 2, &plan, 3, &mut record).expect("runs");
    let cut = answers
        .iter()
        .filter(|a| a.finish == Finish::Length)
        .count();
    assert!(cut > 0 && cut < 40, "{cut}");
    let tokens: usize = answers.iter().map(|a| a.ids.len()).sum();
    let wanted = GenerateProgress {
        answers_done: 40,
        answers: 40,
        truncated: cut,
        tokens: tokens + 40 - cut,
    };
    assert_eq!(last, wanted);
    for answer in answers {
        assert_eq!(answer.ids.len() == 20, answer.finish == Finish::Length);
        assert!(
            answer
                .ids
                .iter()
                .all(|id| !decoder.spec.eos_ids.contains(id))
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Bit for bit: tokens drawn at temperature 1 are those of a batch of one.
    #[test]
    fn an_answer_does_not_depend_on_what_is_beside_it(
        batch in 2usize..12,
        n_prompts in 1usize..14,
        samples in 1usize..6,
        threads in 1usize..5,
        top_k in 0usize..9,
    ) {
        let decoder = decoder(spec(false, true, false), None);
        let prompts = prompts(14);
        let alone = GeneratePlan { top_k, ..plan(1.0, 1) };
        let beside = GeneratePlan { batch, ..alone.clone() };
        let wanted = run(&decoder, &prompts[..n_prompts], 6, &alone);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        let found = pool.install(|| run(&decoder, &prompts[..n_prompts], samples, &beside));
        let order: Vec<_> = found.iter().map(|a| (a.prompt, a.sample)).collect();
        let sorted: Vec<_> =
            (0..n_prompts).flat_map(|p| (0..samples).map(move |s| (p, s))).collect();
        prop_assert_eq!(order, sorted);
        for answer in &found {
            prop_assert_eq!(answer, &wanted[answer.prompt * 6 + answer.sample]);
        }
    }
}

#[test]
fn answers_differ_by_sample_and_by_seed() {
    let decoder = decoder(spec(true, true, false), None);
    let answers = run(&decoder, &prompts(1), 8, &plan(1.0, 8));
    for (i, answer) in answers.iter().enumerate() {
        assert!(answers[..i].iter().all(|other| other.ids != answer.ids));
    }
    let other = generate(
        &decoder,
        &DecodeRule::LeftToRight,
        &prompts(1),
        8,
        &plan(1.0, 8),
        4,
        &mut |_| ControlFlow::Continue(()),
    );
    assert!(
        other
            .expect("runs")
            .iter()
            .zip(&answers)
            .all(|(a, b)| a.ids != b.ids)
    );
    let copies = run(&decoder, &prompts(3), 4, &plan(0.0, 8));
    assert_eq!(copies.len(), 12);
    assert!(
        copies
            .chunks(4)
            .all(|c| c.iter().all(|a| a.ids == c[0].ids))
    );
    assert_eq!((copies[6].prompt, copies[6].sample), (1, 2));
}

#[test]
fn the_last_position_is_the_end() {
    let mut spec = spec(true, true, false);
    spec.eos_ids.clear();
    let decoder = decoder(spec, None);
    let plan = GeneratePlan {
        max_new_tokens: 50,
        ..plan(1.0, 2)
    };
    let prompts = vec![vec![1; 60], vec![2; 64], vec![3; 14]];
    let answers = run(&decoder, &prompts, 1, &plan);
    let lengths: Vec<usize> = answers.iter().map(|a| a.ids.len()).collect();
    assert_eq!(lengths, [4, 0, 50]);
    assert!(answers.iter().all(|a| a.finish == Finish::Length));
}

#[test]
fn an_interrupt_stops_before_and_during() {
    let mut spec = spec(true, true, false);
    spec.eos_ids.clear();
    spec.max_positions = 100_000;
    let decoder = decoder(spec, None);
    let plan = GeneratePlan {
        max_new_tokens: 90_000,
        ..plan(1.0, 4)
    };
    for calls in [1, 2] {
        let mut seen = 0;
        let mut stop_at = |_| {
            seen += 1;
            if seen == calls {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let rule = DecodeRule::LeftToRight;
        let result = generate(&decoder, &rule, &prompts(4), 2, &plan, 3, &mut stop_at);
        assert!(matches!(result, Err(EngineError::Interrupted)));
    }
}

#[test]
fn bad_input_is_named() {
    let mut spec = spec(true, true, false);
    let fine = decoder(spec.clone(), None);
    let attempt = |decoder: &Decoder, prompts: &[Vec<u32>], plan: &GeneratePlan| {
        let go_on = &mut |_| ControlFlow::Continue(());
        generate(
            decoder,
            &DecodeRule::LeftToRight,
            prompts,
            1,
            plan,
            3,
            go_on,
        )
        .expect_err("refused")
        .to_string()
    };
    for (prompts, wanted) in [
        (vec![vec![1], vec![]], "prompt 1"),
        (vec![vec![1; 65]], "64 positions"),
        (vec![vec![1, 53]], "53"),
    ] {
        let message = attempt(&fine, &prompts, &plan(1.0, 4));
        assert!(message.contains(wanted), "{message}");
    }
    let message = attempt(&fine, &prompts(1), &plan(1.0, 0));
    assert!(message.contains("generate.batch"), "{message}");
    let none = run(&fine, &prompts(2), 0, &plan(0.0, 4));
    assert!(none.is_empty() && run(&fine, &[], 3, &plan(1.0, 4)).is_empty());

    spec.eos_ids.clear();
    let mut diverged = decoder(spec, None);
    let id = diverged.params.id("final_norm").expect("there");
    let nan = Tensor::full(f32::NAN, 24, &Device::Cpu).and_then(|t| t.contiguous());
    diverged.params.replace(id, nan.expect("a tensor"));
    let message = attempt(&diverged, &prompts(3), &plan(1.0, 2));
    assert!(message.contains("diverged"), "{message}");
}
