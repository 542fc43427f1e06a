//! Moments of 8 and of 16 bits: training goes as with those of 32, and goes on bit for bit.

use std::sync::Arc;

use candle_core::{DType, Device};
use t3s_core::{
    Example,
    objective::NextToken,
    plan::{AdamWPlan, Schedule, StatePrecision, TrainPlan},
};
use t3s_engine::{Decoder, Trainer, adamw::AdamW, init_params};

use crate::{
    model::{Shape, examples},
    setup::weights,
};

/// Wide enough for most of its matrices to have 4096 elements.
const SHAPE: Shape = Shape {
    width: 64,
    hidden: 96,
    ..Shape::TINY
};
const STEPS: u64 = 60;

fn data() -> Vec<Example> {
    examples(&SHAPE, &[24, 31, 18, 27, 22, 30], 3)
}

fn trainer(states: StatePrecision) -> Trainer {
    let plan = TrainPlan {
        batch_examples: 3,
        schedule: Schedule::Linear,
        adamw: AdamWPlan {
            states,
            ..AdamWPlan::default()
        },
        ..TrainPlan::new(STEPS, 3e-3)
    };
    let params = init_params(&SHAPE.spec(), 4, &Device::Cpu, DType::F32).unwrap();
    let decoder = Decoder::new(SHAPE.spec(), params, None).unwrap();
    Trainer::new(decoder, Box::new(NextToken), Arc::new(data()), plan, 1).unwrap()
}

fn losses(trainer: &mut Trainer, n: u64) -> Vec<f64> {
    (0..n).map(|_| trainer.step().unwrap().loss).collect()
}

const SMALL: [StatePrecision; 2] = [StatePrecision::Bits8, StatePrecision::Bf16];

#[test]
fn the_loss_follows_that_of_full_moments() {
    let full = losses(&mut trainer(StatePrecision::F32), STEPS);
    assert!(full[59] < 0.5 * full[0], "{full:?}");
    for states in SMALL {
        let small = losses(&mut trainer(states), STEPS);
        let worst = full.iter().zip(&small).map(|(a, b)| (a - b).abs());
        let worst = worst.fold(0.0, f64::max);
        // Of a loss that falls by more than half.
        assert!(
            worst > 0.0 && worst < 0.03 * full[0],
            "{states:?}: {worst} of {}",
            full[0]
        );
    }
}

#[test]
fn large_tensors_are_quantised_and_small_ones_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let mut trainer = trainer(StatePrecision::Bits8);
    trainer.step().unwrap();
    trainer.save_state(&state).unwrap();
    let file = std::fs::read(state.join("state.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    for name in tensors
        .names()
        .iter()
        .filter_map(|name| name.strip_prefix("param/"))
    {
        let shape = tensors
            .tensor(&format!("param/{name}"))
            .unwrap()
            .shape()
            .to_vec();
        let n: usize = shape.iter().product();
        let scales = tensors.tensor(&format!("second_scales/{name}")).ok();
        let wanted = (n >= 4096).then(|| vec![n.div_ceil(256)]);
        assert_eq!(scales.map(|t| t.shape().to_vec()), wanted, "{name}");
    }
}

#[test]
fn moments_of_bfloat16_are_bfloat16_where_they_are_large() {
    let params = init_params(&SHAPE.spec(), 4, &Device::Cpu, DType::F32).unwrap();
    let plan = AdamWPlan {
        states: StatePrecision::Bf16,
        ..AdamWPlan::default()
    };
    for moments in AdamW::new(plan, &params).unwrap().moments() {
        for (_, tensor) in moments.state.tensors() {
            let wanted = match tensor.elem_count() {
                0..4096 => DType::F32,
                _ => DType::BF16,
            };
            assert_eq!(tensor.dtype(), wanted);
        }
    }
}

#[test]
fn an_interrupted_run_goes_on_bit_for_bit() {
    SMALL.into_iter().for_each(goes_on);
}

fn goes_on(states: StatePrecision) {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let mut whole = trainer(states);
    let all = losses(&mut whole, 9);
    let mut first = trainer(states);
    let mut parts = losses(&mut first, 4);
    first.save_state(&state).unwrap();
    let mut second = trainer(states);
    second.load_state(&state).unwrap();
    parts.extend(losses(&mut second, 5));
    assert_eq!(all, parts);
    assert!(weights(&whole.decoder().params) == weights(&second.decoder().params));
    // With moments of 32 bits it is another run.
    let mut full = trainer(StatePrecision::F32);
    let error = full.load_state(&state).unwrap_err().to_string();
    assert!(error.contains("another run"), "{error}");
}
