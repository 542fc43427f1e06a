//! Training lowers the loss, the check before it passes, and numbers that are none stop it.

use std::sync::Arc;

use candle_core::{DType, Device};
use t3s_core::{
    Example,
    objective::NextToken,
    plan::{LoraPlan, Schedule, TrainPlan},
};
use t3s_engine::{Decoder, EngineError, Params, Trainer, init_params, layers::lora};

use crate::{
    model::{Shape, examples, tensor},
    setup::{lora_plan, trainer, weights},
};

/// Counting up by one from several starts: what comes next follows from the token alone.
fn counting(n: usize) -> Vec<Example> {
    let example = |e: usize| Example {
        id: e as u64,
        ids: (0..16).map(|i| ((3 * e + i) % 30) as u32).collect(),
        trainable: (0..16).map(|i| i >= 2).collect(),
        weights: vec![1.0; 16],
        prompt_len: 2,
        noisy_ids: None,
        answer: None,
    };
    (0..n).map(example).collect()
}

fn constant(steps: u64, learning_rate: f64, lora: Option<LoraPlan>) -> TrainPlan {
    TrainPlan {
        batch_examples: 8,
        schedule: Schedule::Constant,
        lora,
        ..TrainPlan::new(steps, learning_rate)
    }
}

/// A student that starts from nothing, as `t3s init` makes it.
fn untrained(plan: &TrainPlan) -> Trainer {
    let spec = Shape::TINY.spec();
    let mut params = init_params(&spec, 4, &Device::Cpu, DType::F32).unwrap();
    if let Some(plan) = &plan.lora {
        lora::attach(&spec, &mut params, plan, 4).unwrap();
    }
    let decoder = Decoder::new(spec, params, plan.lora.as_ref()).unwrap();
    let examples = Arc::new(counting(16));
    Trainer::new(decoder, Box::new(NextToken), examples, plan.clone(), 1).unwrap()
}

#[test]
fn full_training_learns_a_toy_task() {
    let mut trainer = untrained(&constant(120, 1e-2, None));
    trainer.check_gradients().unwrap();
    let first = trainer.step().unwrap();
    let uniform = (Shape::TINY.vocab as f64).ln();
    assert!((first.loss - uniform).abs() < 0.3, "{first:?}");
    assert_eq!((first.tokens, first.kept_tokens), (8 * 16, 8 * 14));
    let mut last = first;
    while !trainer.is_done() {
        last = trainer.step().unwrap();
    }
    assert_eq!(last.step, 120);
    assert!((last.epoch - 60.0).abs() < 1e-9, "{last:?}");
    assert!(last.loss < 0.05, "{last:?}");
}

#[test]
fn an_adapter_learns_too() {
    let plan = LoraPlan {
        rank: 8,
        alpha: 16.0,
        ..LoraPlan::default()
    };
    let mut trainer = trainer(&constant(80, 1e-2, Some(plan)), counting(16), 1);
    trainer.check_gradients().unwrap();
    let first = trainer.step().unwrap().loss;
    let mut last = first;
    while !trainer.is_done() {
        last = trainer.step().unwrap().loss;
    }
    assert!(last < first / 4.0, "{first} to {last}");
}

#[test]
fn a_larger_weight_is_learnt_faster() {
    // Two tokens that contradict one another after the same prompt: the weights decide.
    let example = |id, answer, weight| Example {
        id,
        ids: vec![5, 6, answer],
        trainable: vec![false, false, true],
        weights: vec![0.0, 0.0, weight],
        prompt_len: 2,
        noisy_ids: None,
        answer: None,
    };
    let data = vec![example(0, 7, 0.25), example(1, 8, 0.75)];
    let mut trainer = trainer(&constant(150, 1e-2, None), data, 1);
    let mut loss = 0.0;
    while !trainer.is_done() {
        loss = trainer.step().unwrap().loss;
    }
    // The least weighted loss there is: the entropy of (1/4, 3/4).
    let entropy = -(0.25 * 0.25f64.ln() + 0.75 * 0.75f64.ln());
    assert!((loss - entropy).abs() < 5e-3, "{loss} is not {entropy}");
}

#[test]
fn the_gradient_check_passes_and_leaves_every_bit() {
    for lora in [None, Some(lora_plan())] {
        let mut trainer = trainer(&constant(3, 1e-3, lora.clone()), counting(8), 1);
        let before = weights(&trainer.decoder().params);
        let report = trainer.check_gradients().unwrap();
        assert!(weights(&trainer.decoder().params) == before);
        let groups: Vec<&str> = report.groups.iter().map(|g| g.group).collect();
        match lora {
            Some(_) => assert_eq!(groups, ["lora"]),
            None => {
                assert_eq!(groups.len(), 4, "{groups:?}");
                for group in ["embedding", "attention", "feed-forward", "norms"] {
                    assert!(groups.contains(&group), "{groups:?}");
                }
            }
        }
        for group in report.groups {
            assert!(group.tensors > 0 && group.claimed > 0.0, "{group:?}");
            let error = (group.measured / group.claimed - 1.0).abs();
            assert!(error < 0.05, "{group:?}");
        }
        // It leaves no trace in the run either.
        let mut unchecked = self::trainer(&constant(3, 1e-3, lora), counting(8), 1);
        let same = |trainer: &mut Trainer| trainer.step().unwrap().loss.to_bits();
        assert_eq!(same(&mut trainer), same(&mut unchecked));
        assert!(weights(&trainer.decoder().params) == weights(&unchecked.decoder().params));
    }
}

/// A trainer whose weight `name` holds `value` at its first place.
fn poisoned(name: &str, value: f32) -> Trainer {
    let mut params = Params::default();
    for (_, param) in Shape::TINY.params(1).iter() {
        let mut values = crate::model::values(&param.tensor);
        if param.name == name {
            values[0] = value;
        }
        params.push(param.name.clone(), tensor(values, param.tensor.dims()));
    }
    let decoder = Decoder::new(Shape::TINY.spec(), params, None).unwrap();
    let plan = constant(3, 1e-3, None);
    Trainer::new(decoder, Box::new(NextToken), Arc::new(counting(4)), plan, 1).unwrap()
}

#[test]
fn a_weight_that_is_no_number_stops_the_first_step() {
    for name in [
        "model.norm.weight",
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.2.self_attn.k_norm.weight",
    ] {
        for value in [f32::NAN, f32::INFINITY] {
            let mut trainer = poisoned(name, value);
            let error = trainer.step().unwrap_err();
            assert!(matches!(error, EngineError::NotFinite { .. }), "{error}");
            assert!(error.to_string().contains("step 1"), "{error}");
            assert_eq!(trainer.steps_done(), 0);
            assert!(poisoned(name, value).check_gradients().is_err());
        }
    }
}

#[test]
fn a_loss_weight_that_is_no_weight_is_refused() {
    for weight in [f32::NAN, f32::INFINITY, -1.0] {
        let mut data = counting(3);
        data[1].weights[5] = weight;
        let mut trainer = trainer(&constant(3, 1e-3, None), data, 1);
        let before = weights(&trainer.decoder().params);
        let error = trainer.step().unwrap_err().to_string();
        assert!(
            error.contains("weight") && error.contains(&weight.to_string()),
            "{error}"
        );
        assert!(weights(&trainer.decoder().params) == before);
        assert_eq!(trainer.steps_done(), 0);
    }
}

/// The next step is prepared during the one before; its error waits for its turn, and comes again.
#[test]
fn an_error_of_the_next_step_waits_for_that_step() {
    let mut data = counting(6);
    data[4].weights[5] = f32::NAN;
    let plan = TrainPlan {
        batch_examples: 1,
        ..constant(12, 1e-3, None)
    };
    let mut trainer = trainer(&plan, data, 1);
    let good = (0..6).take_while(|_| trainer.step().is_ok()).count() as u64;
    assert!(
        (1..6).contains(&good),
        "the seed puts it in between: {good}"
    );
    let before = weights(&trainer.decoder().params);
    for _ in 0..2 {
        let error = trainer.step().unwrap_err().to_string();
        assert!(error.contains("weight") && error.contains("NaN"), "{error}");
        assert_eq!(trainer.steps_done(), good);
        assert!(weights(&trainer.decoder().params) == before);
    }
}

#[test]
fn a_run_that_diverges_stops_with_the_weights_of_the_step_before() {
    let mut trainer = trainer(
        &constant(50, 1e30, None),
        examples(&Shape::TINY, &[12; 5], 2),
        1,
    );
    let error = loop {
        let before = weights(&trainer.decoder().params);
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        trainer.save_state(&path("before")).unwrap();
        let done = trainer.steps_done();
        let Err(error) = trainer.step() else { continue };
        assert!(done > 0, "{error}");
        assert_eq!(trainer.steps_done(), done);
        // Compared as text: a NaN equals itself there.
        let after = weights(&trainer.decoder().params);
        assert_eq!(format!("{before:?}"), format!("{after:?}"));
        trainer.save_state(&path("after")).unwrap();
        for file in ["state.json", "state.safetensors"] {
            let bytes = |state: &str| std::fs::read(path(state).join(file)).unwrap();
            assert!(bytes("before") == bytes("after"), "{file} changed");
        }
        let words = format!("step {}", done + 1);
        assert!(error.to_string().contains(&words), "{error}");
        break error;
    };
    assert!(matches!(error, EngineError::NotFinite { .. }), "{error}");
}

#[test]
fn a_step_in_which_nothing_is_kept_moves_nothing() {
    let mut data = counting(4);
    for example in &mut data[..3] {
        example.weights.fill(0.0);
    }
    let plan = TrainPlan {
        batch_examples: 1,
        ..constant(8, 1e-2, None)
    };
    let mut trainer = trainer(&plan, data, 1);
    let mut moved = 0;
    for _ in 0..8 {
        let before = weights(&trainer.decoder().params);
        let report = trainer.step().unwrap();
        let same = weights(&trainer.decoder().params) == before;
        assert_eq!(same, report.kept_tokens == 0, "{report:?}");
        assert!(!same || report.loss == 0.0 && report.grad_norm == 0.0);
        moved += usize::from(!same);
    }
    assert_eq!(moved, 2);
}

#[test]
fn no_example_is_refused() {
    let decoder = crate::setup::decoder(1, None);
    let made = Trainer::new(
        decoder,
        Box::new(NextToken),
        Arc::default(),
        constant(1, 1e-3, None),
        0,
    );
    let error = made.err().unwrap().to_string();
    assert!(error.contains("no example"), "{error}");
}
