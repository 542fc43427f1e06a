//! What training and generation allocate while the emulated kernels run, against what `crate::footprint` predicts.

use std::sync::Arc;

use candle_core::{DType, Device};
use t3s_core::{
    AttentionPattern, CounterRng, DecodeRule, DecoderSpec, Example,
    adapter::{BlockDecoding, DecodeAttention, EndTokens},
    decoder_spec::{MlpSpec, MoeSpec},
    objective::NextToken,
    plan::{GeneratePlan, LoraPlan, Recompute, StatePrecision, TrainPlan},
};

use super::{counting, decode::stopping_at};
use crate::{
    Decoder, Footprint,
    footprint::{Answers, PassRows},
    generate,
    init::init_params,
    kernels::cuda::emulated,
    layers::lora,
    test_model,
    trainer::{CHECKED_TOKENS, Trainer},
};

const EXAMPLES: u64 = 7;
const TOKENS: u64 = 40;
/// What the host keeps for itself is counted too: examples, the lists that are on the device once more ...
const HOST: i64 = 32 << 10;
/// ... the name of each tensor, in the model and where there is something of it ...
const NAMES: i64 = 256;

/// ... and handles of tensors. How large they are differs from build to build.
fn handle() -> i64 {
    const N: i64 = 64;
    let zero = |_| candle_core::Tensor::zeros(1, DType::U8, &Device::Cpu).unwrap();
    let held = || {
        let _zeros: Vec<_> = (0..N).map(zero).collect();
        counting::live()
    };
    counting::counted(held) / N
}

/// Large enough for activations to outweigh what the host allocates for itself.
fn spec(hidden: usize) -> DecoderSpec {
    DecoderSpec {
        vocab: 300,
        width: 48,
        n_layers: 4,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 12,
        mlp: MlpSpec::SwiGlu { hidden },
        rope: t3s_core::decoder_spec::RopeSpec {
            theta: 1e4,
            rotary_dim: 12,
        },
        ..test_model::spec()
    }
}

fn examples() -> Vec<Example> {
    let rng = CounterRng::new(5, "footprint");
    let example = |id| Example {
        id,
        ids: (0..TOKENS)
            .map(|i| (rng.bits(id, i) % 300) as u32)
            .collect(),
        trainable: vec![true; TOKENS as usize],
        weights: vec![1.0; TOKENS as usize],
        prompt_len: 0,
        noisy_ids: None,
        answer: None,
    };
    (0..EXAMPLES).map(example).collect()
}

/// Bytes held between two steps; most bytes held in the second, and in the check before both.
struct Counted {
    between: i64,
    step: i64,
    check: i64,
}

fn trained(spec: &DecoderSpec, plan: &TrainPlan, with_check: bool) -> Counted {
    let mut params = init_params(spec, 4, &Device::Cpu, DType::BF16).unwrap();
    if let Some(lora) = &plan.lora {
        lora::attach(spec, &mut params, lora, 1).unwrap();
    }
    let decoder = Decoder::new(spec.clone(), params, plan.lora.as_ref()).unwrap();
    let (objective, examples) = (Box::new(NextToken), Arc::new(examples()));
    let mut trainer = Trainer::new(decoder, objective, examples, plan.clone(), 0).unwrap();
    counting::take_peak();
    if with_check {
        trainer.check_gradients().unwrap();
    }
    let check = counting::take_peak();
    trainer.step().unwrap();
    let between = counting::live();
    counting::take_peak();
    trainer.step().unwrap();
    Counted {
        between,
        step: counting::take_peak(),
        check,
    }
}

/// Off by less than `bound` either way.
fn expect(what: &str, found: i64, predicted: u64, bound: f64) {
    let ratio = predicted as f64 / found as f64;
    assert!(
        (ratio - 1.0).abs() < bound,
        "{what}: {found} bytes, predicted {predicted}: {ratio:.3} of it"
    );
}

fn check(hidden: usize, plan: TrainPlan, with_check: bool) {
    check_of(&format!("hidden {hidden}"), spec(hidden), plan, with_check);
}

fn check_of(model: &str, spec: DecoderSpec, plan: TrainPlan, with_check: bool) {
    let plan = TrainPlan {
        batch_examples: EXAMPLES as usize,
        packing: true,
        ..plan
    };
    let run = || counting::counted(|| trained(&spec, &plan, with_check));
    let Some(counted) = emulated::once(false, run) else {
        return;
    };
    let footprint = Footprint::of(&spec, DType::BF16, &plan);
    let rows = |examples| PassRows {
        rows: examples * TOKENS,
        asked: examples * (TOKENS - 1),
        positions: TOKENS,
        attention: AttentionPattern::Causal,
    };
    let all = rows(EXAMPLES);
    let what = format!("{model}, {:?}, {:?}", plan.lora, plan.recompute);
    let pass = counted.step - counted.between;
    expect(&format!("a pass, {what}"), pass, footprint.pass(all), 0.05);
    // Itself, the gradient and both moments.
    let learning = footprint.learning().len() as i64;
    let host_of_learning = learning * (4 * handle() + NAMES);
    let frozen = match plan.lora {
        Some(_) => spec.tensors().len() as i64 * (handle() + NAMES),
        None => 0,
    };
    let host = HOST + host_of_learning + frozen;
    let step = footprint.training(all);
    expect(&format!("a step, {what}"), counted.step - host, step, 0.1);
    if with_check {
        let few = footprint.gradient_check(rows(CHECKED_TOKENS / TOKENS));
        // Those of all weights are within the bound.
        let host = plan.lora.as_ref().map_or(0, |_| host_of_learning);
        expect(
            &format!("the check, {what}"),
            counted.check - host,
            few,
            0.1,
        );
    }
}

fn plan(recompute: Recompute, states: StatePrecision) -> TrainPlan {
    let mut plan = TrainPlan {
        recompute,
        ..TrainPlan::new(3, 1e-3)
    };
    plan.adamw.states = states;
    plan
}

#[test]
fn training_of_all_weights_takes_what_is_predicted() {
    check(160, plan(Recompute::None, StatePrecision::F32), true);
    check(160, plan(Recompute::Block, StatePrecision::Bf16), false);
}

#[test]
fn training_of_an_adapter_takes_what_is_predicted() {
    let lora = |recompute| TrainPlan {
        lora: Some(LoraPlan {
            rank: 3,
            ..LoraPlan::default()
        }),
        ..plan(recompute, StatePrecision::F32)
    };
    check(160, lora(Recompute::None), true);
    check(160, lora(Recompute::Block), false);
}

/// Experts as wide as `hidden` beside a shared one.
fn mixture(hidden: usize, shared_hidden: usize) -> DecoderSpec {
    DecoderSpec {
        mlp: MlpSpec::Moe(Box::new(MoeSpec {
            dense_hidden: 96,
            hidden,
            shared_hidden,
            ..test_model::mixture()
        })),
        ..spec(0)
    }
}

#[test]
fn training_of_a_mixture_of_experts_takes_what_is_predicted() {
    let all = |recompute| plan(recompute, StatePrecision::F32);
    let lora = |recompute| TrainPlan {
        lora: Some(LoraPlan {
            rank: 3,
            ..LoraPlan::default()
        }),
        ..all(recompute)
    };
    check_of("narrow", mixture(40, 24), all(Recompute::None), false);
    check_of("wide", mixture(72, 200), all(Recompute::Block), false);
    let segments = lora(Recompute::Every(2));
    check_of("narrow, adapted", mixture(40, 24), segments, true);
}

/// Where attention takes more than the feed-forward part, and segments of several blocks.
#[test]
fn training_in_segments_takes_what_is_predicted() {
    check(40, plan(Recompute::Every(2), StatePrecision::Bits8), false);
    check(40, plan(Recompute::Every(3), StatePrecision::F32), false);
}

/// Bytes that the host holds for itself while answers are written (ids, copies of lists) are counted too:
/// with a cache of megabytes they are few.
#[test]
fn generation_takes_what_is_predicted() {
    let spec = DecoderSpec {
        eos_ids: Vec::new(),
        ..spec(160)
    };
    let prompts: Vec<Vec<u32>> = (0..12).map(|i| vec![i as u32 + 1; 30 + i]).collect();
    let adapter = LoraPlan {
        rank: 3,
        ..LoraPlan::default()
    };
    let blocks = |attention, guidance| {
        DecodeRule::Blocks(BlockDecoding {
            mask_id: 299,
            block: 8,
            steps: 8,
            threshold: 2.0,
            attention,
            end_tokens: EndTokens::Free,
            guidance,
        })
    };
    for (rule, batch, new, top_k, lora) in [
        (DecodeRule::LeftToRight, 5, 3, 0, None),
        (DecodeRule::LeftToRight, 16, 200, 9, None),
        (DecodeRule::LeftToRight, 80, 2, 0, Some(&adapter)),
        (blocks(DecodeAttention::BlockCausal, 0.0), 16, 200, 9, None),
        (
            blocks(DecodeAttention::Bidirectional, 0.5),
            9,
            20,
            0,
            Some(&adapter),
        ),
    ] {
        let plan = GeneratePlan {
            batch,
            max_new_tokens: new,
            temperature: 1.0,
            top_k,
            ..GeneratePlan::default()
        };
        let run = || {
            counting::counted(|| {
                let mut params = init_params(&spec, 4, &Device::Cpu, DType::BF16).unwrap();
                if let Some(lora) = lora {
                    lora::attach(&spec, &mut params, lora, 1).unwrap();
                }
                let decoder = Decoder::new(spec.clone(), params, lora).unwrap();
                counting::take_peak();
                // To the first look: all there is has been allocated.
                let progress = &mut stopping_at(2);
                let _ = generate(&decoder, &rule, &prompts, 2, &plan, 3, progress);
                counting::take_peak()
            })
        };
        let Some(found) = emulated::once(false, run) else {
            return;
        };
        let footprint = Footprint {
            spec: &spec,
            dtype: DType::BF16,
            lora,
            recompute: Recompute::None,
            states: StatePrecision::F32,
        };
        let answers = Answers {
            plan: &plan,
            rule: &rule,
            prompts: prompts.len() as u64,
            samples: 2,
            longest: 41,
        };
        let predicted = footprint.generation(answers).unwrap();
        expect(
            &format!("{batch} answers, {rule:?}"),
            found - HOST,
            predicted,
            0.1,
        );
    }
}
