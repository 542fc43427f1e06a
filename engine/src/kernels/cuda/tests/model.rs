//! A whole training step and a scoring pass through the emulated kernels, against the CPU's.

use std::sync::Arc;

use candle_core::{DType, Device};
use t3s_core::{
    DecoderSpec, Draw, ExampleBatch, ModelBatch, Objective,
    decoder_spec::MlpSpec,
    objective::{BlockDiffusion, Corruption, LossWeight, NextToken, RatioRange},
    plan::{LoraPlan, TrainPlan, sections::Recompute},
};

use super::{gpu, random, values};
use crate::{
    Decoder, Grads, Save,
    init::init_params,
    kernels::cuda::emulated::in_both_orders,
    layers::{Routes, lora},
    score::{batch_of, head_rows},
    test_model,
    trainer::Trainer,
};

/// How far two curves of two hundred losses may be apart, over the first loss. Emulated they were apart by
/// 3.3e-7 in f32 and 3.3e-3 in bfloat16; cuBLAS adds in another order.
const CURVE_F32: f64 = 1e-4;
const CURVE_BF16: f64 = 2e-2;

struct Step {
    logp: Vec<f32>,
    loss: f64,
    /// By parameter; empty for frozen ones.
    grads: Vec<Vec<f32>>,
    norm: f64,
}

fn step(decoder: &Decoder, objective: &dyn Objective) -> Step {
    let examples = test_model::examples(6);
    let packed = crate::score::PackedExamples::new(&examples);
    let mut rows = ModelBatch::default();
    let batch: ExampleBatch<'_> = packed.as_batch();
    objective
        .prepare(&batch, Draw::new(0, 0), &mut rows)
        .unwrap();
    let batch = batch_of(&rows, objective);
    let (hidden, tape) = decoder
        .forward(&rows.input_ids, &batch, Recompute::Block, Save::ForBackward)
        .unwrap();
    let asked = head_rows(&rows, &packed.ids, |row| Some(rows.weights[row])).unwrap();
    let mut grads = Grads::new(&decoder.params);
    let (output, d_hidden) = decoder
        .head_forward_backward(&hidden, &asked, None, &mut grads)
        .unwrap();
    decoder
        .backward(d_hidden, tape, &batch, &mut grads)
        .unwrap();
    Step {
        logp: output.logp,
        loss: output.loss_sum,
        grads: decoder
            .params
            .iter()
            .map(|(id, _)| grads.get(id).map(values).unwrap_or_default())
            .collect(),
        norm: grads.global_norm().unwrap(),
    }
}

fn decoder(lora: Option<&LoraPlan>, dtype: DType, device: &Device) -> Decoder {
    decoder_of(test_model::spec(), lora, dtype, device)
}

fn decoder_of(
    spec: DecoderSpec,
    lora: Option<&LoraPlan>,
    dtype: DType,
    device: &Device,
) -> Decoder {
    // Numbers that bfloat16 has, so that all start from the same.
    let mut params = init_params(&spec, 4, device, DType::BF16).unwrap();
    params.cast(dtype, |_| true).unwrap();
    if let Some(plan) = lora {
        lora::attach(&spec, &mut params, plan, 1).unwrap();
        // `B` of a fresh adapter is zero, and with it the gradient of `A`.
        let fresh = params.iter().filter(|(_, p)| p.name.contains(".lora_B"));
        let fresh: Vec<_> = fresh.map(|(id, p)| (id, p.tensor.clone())).collect();
        for (id, b) in fresh {
            let lent = (random(&format!("{id:?}"), b.dims()) * 0.05).unwrap();
            params.replace(id, lent.to_device(device).unwrap());
        }
    }
    Decoder::new(spec, params, lora).unwrap()
}

/// Frobenius.
fn relative(found: &[f32], wanted: &[f32]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let off: f64 = found.iter().zip(wanted).map(|(f, w)| square(f - w)).sum();
    let all: f64 = wanted.iter().map(|w| square(*w)).sum();
    (off / all.max(1e-30)).sqrt()
}

fn check(lora: Option<&LoraPlan>) {
    check_step(&NextToken, |dtype, device| decoder(lora, dtype, device));
}

/// A step of a model, made by `decoder`, against the CPU's.
fn check_step(objective: &dyn Objective, decoder: impl Fn(DType, &Device) -> Decoder) {
    let step = |dtype, device: &Device| step(&decoder(dtype, device), objective);
    let wanted = step(DType::F32, &Device::Cpu);
    let gpu = gpu();
    // In f32 what differs is the order of sums. In bfloat16 every activation is rounded to 2^-9, a
    // few dozen times on the way to the first layer's gradient.
    for (dtype, loss, gradient) in [(DType::F32, 1e-5, 1e-4), (DType::BF16, 1e-2, 6e-2)] {
        let check = |found: &Step, place: &str| {
            let what = format!("{dtype:?}, {place}");
            let error = (found.loss / wanted.loss - 1.0).abs();
            assert!(error < loss, "{what}: loss off by {error:e}");
            let error = (found.norm / wanted.norm - 1.0).abs();
            assert!(error < gradient, "{what}: norm off by {error:e}");
            for (index, (found, wanted)) in found.grads.iter().zip(&wanted.grads).enumerate() {
                let error = relative(found, wanted);
                assert!(error < gradient, "{what}, tensor {index}: {error:e}");
            }
        };
        if let Some([up, down]) = in_both_orders(|| step(dtype, &Device::Cpu)) {
            assert_eq!(
                (&up.logp, &up.grads),
                (&down.logp, &down.grads),
                "{dtype:?}"
            );
            check(&up, "emulated");
        }
        if let Some(gpu) = &gpu {
            check(&step(dtype, gpu), "GPU");
        }
    }
}

#[test]
fn a_step_of_all_weights_is_the_cpus() {
    check(None);
}

#[test]
fn a_step_of_an_adapter_is_the_cpus() {
    check(Some(&LoraPlan {
        rank: 3,
        ..LoraPlan::default()
    }));
}

/// A mixture of experts that fills in blocks.
fn check_mixture(lora: Option<&LoraPlan>) {
    let spec = DecoderSpec {
        mlp: MlpSpec::Moe(Box::new(test_model::mixture())),
        vocab: 38,
        ..test_model::spec()
    };
    let objective = BlockDiffusion {
        corruption: Corruption {
            // The texts use all ids below.
            mask_id: 37,
            ratio: RatioRange {
                low: 0.4,
                high: 0.8,
            },
            loss_weight: LossWeight::One,
        },
        block: 4,
        complementary: true,
        pad_to_block: false,
    };
    let decoder = |dtype, device: &Device| decoder_of(spec.clone(), lora, dtype, device);
    // What bfloat16 rounds may choose another expert where two are nearly tied, which is no error: there
    // the choices are those in f32.
    let mut chooses = decoder(DType::F32, &Device::Cpu);
    let routes = Arc::new(Routes::default());
    chooses.routes = Some(routes.clone());
    step(&chooses, &objective);
    check_step(&objective, |dtype, device| {
        let mut decoder = decoder(dtype, device);
        if dtype == DType::BF16 {
            decoder.routes = Some(Arc::new(routes.to_device(device)));
        }
        decoder
    });
}

#[test]
fn a_step_of_a_mixture_of_experts_is_the_cpus() {
    check_mixture(None);
}

#[test]
fn a_step_of_adapted_experts_is_the_cpus() {
    // A rank that tensor cores take, and one that they do not.
    for rank in [8, 3] {
        check_mixture(Some(&LoraPlan {
            rank,
            ..LoraPlan::default()
        }));
    }
}

/// Losses of training on three of `n` examples a step.
fn losses(dtype: DType, device: &Device, n: u64, plan: TrainPlan) -> Vec<f64> {
    let plan = TrainPlan {
        batch_examples: 3,
        ..plan
    };
    let steps = plan.steps;
    let examples = Arc::new(test_model::examples(n));
    let decoder = decoder(None, dtype, device);
    let mut trainer = Trainer::new(decoder, Box::new(NextToken), examples, plan, 0).unwrap();
    (0..steps)
        .map(|_| trainer.step_towards(steps).unwrap().loss)
        .collect()
}

/// Through the trainer: clipping, AdamW, several steps.
#[test]
fn training_follows_the_cpus_losses() {
    let losses = |dtype, device: &Device| losses(dtype, device, 3, TrainPlan::new(3, 5e-3));
    let wanted = losses(DType::F32, &Device::Cpu);
    let gpu = gpu();
    for (dtype, bound) in [(DType::F32, 1e-4), (DType::BF16, 3e-2)] {
        let check = |found: &[f64], place: &str| {
            for (found, wanted) in found.iter().zip(&wanted) {
                let error = (found / wanted - 1.0).abs();
                assert!(error < bound, "{dtype:?}, {place}: {found} {wanted}");
            }
        };
        if let Some([found, again]) = in_both_orders(|| losses(dtype, &Device::Cpu)) {
            assert_eq!(found, again);
            check(&found, "emulated");
        }
        if let Some(gpu) = &gpu {
            check(&losses(dtype, gpu), "GPU");
        }
    }
}

/// On a GPU only: two hundred steps would take the emulator minutes.
#[test]
fn two_hundred_steps_follow_the_cpus_losses() {
    let losses = |dtype, device: &Device| losses(dtype, device, 6, TrainPlan::new(200, 2e-3));
    let Some(gpu) = gpu() else { return };
    let wanted = losses(DType::F32, &Device::Cpu);
    for (dtype, bound) in [(DType::F32, CURVE_F32), (DType::BF16, CURVE_BF16)] {
        let found = losses(dtype, &gpu);
        let apart = found.iter().zip(&wanted).map(|(f, w)| (f - w).abs());
        let worst = apart.fold(0.0, f64::max) / wanted[0];
        eprintln!("{dtype:?}: {worst:.2e} of the first loss apart at most");
        assert!(
            worst < bound,
            "{dtype:?}: {worst}, {found:?} and {wanted:?}"
        );
    }
}

/// Losses until the plan's end or a step that fails, with its message; steps done; weights.
fn run_to_its_end(
    device: &Device,
    learning_rate: f64,
    pause: u64,
) -> (Vec<f64>, Option<String>, u64, Vec<Vec<u32>>) {
    let plan = TrainPlan {
        batch_examples: 1,
        ..TrainPlan::new(6, learning_rate)
    };
    let mut examples = test_model::examples(3);
    // In two of the six steps nothing is kept.
    examples[1].weights.fill(0.0);
    let examples = Arc::new(examples);
    let decoder = decoder(None, DType::F32, device);
    let mut trainer = Trainer::new(decoder, Box::new(NextToken), examples, plan, 0).unwrap();
    let mut losses = Vec::new();
    let (mut error, mut ahead) = (None, 0);
    while !trainer.is_done() && error.is_none() {
        match trainer.step_towards(pause) {
            Ok(report) => losses.push(report.loss),
            Err(failed) => error = Some(failed.to_string()),
        }
        let last = trainer.is_done() || error.is_some();
        assert!(!trainer.is_ahead() || (pause > 0 && !last));
        if trainer.is_ahead() {
            ahead += 1;
            let folder = std::path::Path::new("not written");
            let refused = trainer.save_state(folder).unwrap_err().to_string();
            assert!(refused.contains("is under way"), "{refused}");
        }
    }
    assert_eq!(ahead > 0, pause > 0);
    if let Some(error) = &error {
        // It comes again.
        assert_eq!(&trainer.step().unwrap_err().to_string(), error);
    }
    let bits = |t: &candle_core::Tensor| values(t).iter().map(|v| v.to_bits()).collect();
    let params = trainer.decoder().params.iter();
    let weights = params.map(|(_, p)| bits(&p.tensor)).collect();
    (losses, error, trainer.steps_done(), weights)
}

/// Whether the next step is under way before one is reported makes no difference, not even where a step
/// fails: the one after it has changed nothing.
#[test]
fn steps_ahead_are_steps() {
    let check = |device: &Device| {
        for learning_rate in [5e-3, 1e30] {
            let alone = run_to_its_end(device, learning_rate, 0);
            let ahead = run_to_its_end(device, learning_rate, u64::MAX);
            assert_eq!(alone, ahead, "{learning_rate}");
            assert_eq!(alone.1.is_some(), learning_rate > 1.0);
        }
    };
    in_both_orders(|| check(&Device::Cpu));
    if let Some(gpu) = gpu() {
        check(&gpu);
    }
}

/// Slopes are measured in f32 whatever the weights are, and nothing of it stays.
#[test]
fn gradients_of_bfloat16_weights_are_checked() {
    let run = |device: &Device| {
        let plan = TrainPlan::new(1, 5e-3);
        let mut examples = test_model::examples(1);
        examples[0].weights.fill(1.0);
        let decoder = decoder(None, DType::BF16, device);
        let before: Vec<Vec<f32>> = decoder
            .params
            .iter()
            .map(|(_, p)| values(&p.tensor))
            .collect();
        let objective = Box::new(NextToken);
        let mut trainer = Trainer::new(decoder, objective, Arc::new(examples), plan, 0).unwrap();
        let report = trainer.check_gradients().unwrap();
        assert!(report.groups.len() >= 4);
        for ((_, param), before) in trainer.decoder().params.iter().zip(before) {
            assert_eq!(param.tensor.dtype(), DType::BF16);
            assert_eq!(values(&param.tensor), before);
        }
    };
    in_both_orders(|| run(&Device::Cpu));
    if let Some(gpu) = gpu() {
        run(&gpu);
    }
}
