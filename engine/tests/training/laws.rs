//! What a step's loss and gradients may not depend on, and what they have to be proportional to.

use proptest::prelude::*;
use t3s_core::{
    Example,
    plan::{LoraPlan, Normaliser, Recompute, TrainPlan},
};
use t3s_engine::Accumulation;

use crate::{
    model::{Shape, examples, relative_error},
    setup::{NORMALISERS, decoder, flat, gradients, lora_plan, one_pass, trainer, weights},
};

/// Relative, of the whole gradient; passes differ in the order of their sums.
const SAME: f64 = 1e-5;

/// Between one and six examples of 2 to 20 tokens, with something kept among them.
fn batches() -> impl Strategy<Value = Vec<Example>> {
    (prop::collection::vec(2usize..20, 1..6), 0u64..1000).prop_map(|(lengths, seed)| {
        let mut examples = examples(&Shape::TINY, &lengths, seed);
        examples[0].trainable[1] = true;
        examples[0].weights[1] = 0.75;
        examples
    })
}

fn scaled(examples: &[Example], by: f32) -> Vec<Example> {
    let mut examples = examples.to_vec();
    for weight in examples.iter_mut().flat_map(|e| &mut e.weights) {
        *weight *= by;
    }
    examples
}

/// Tokens that count as response: those that may be trained on and that something comes before.
fn response_tokens(examples: &[Example]) -> usize {
    let of = |e: &Example| e.trainable[1..].iter().filter(|t| **t).count();
    examples.iter().map(of).sum()
}

fn times(values: &[f32], factor: f64) -> Vec<f32> {
    values
        .iter()
        .map(|v| (f64::from(*v) * factor) as f32)
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_common_factor_of_the_weights_is_one_of_the_gradients(examples in batches()) {
        let decoder = decoder(1, None);
        let small = scaled(&examples, 1.0 / 64.0);
        for normaliser in NORMALISERS {
            let how = one_pass(normaliser);
            let (loss, whole) = gradients(&decoder, &examples, &how);
            let (small_loss, part) = gradients(&decoder, &small, &how);
            let factor = match normaliser {
                Normaliser::SumWeights => 1.0,
                _ => 1.0 / 64.0,
            };
            prop_assert!(loss.loss > 0.1, "{loss:?}");
            prop_assert!((small_loss.loss / (loss.loss * factor) - 1.0).abs() < 1e-6);
            let error = relative_error(&flat(&part), &times(&flat(&whole), factor));
            prop_assert!(error < 1e-6, "{normaliser:?}: {error}");
            prop_assert_eq!(small_loss.kept_tokens, loss.kept_tokens);
        }
    }

    #[test]
    fn how_a_step_is_computed_does_not_change_it(examples in batches(), most in 1usize..40) {
        let decoder = decoder(2, None);
        for normaliser in NORMALISERS {
            let (loss, wanted) = gradients(&decoder, &examples, &one_pass(normaliser));
            for (packing, micro_batch_tokens, recompute) in [
                (false, 1 << 20, Recompute::None),
                (true, most, Recompute::None),
                (true, 1, Recompute::Block),
                (true, 1 << 20, Recompute::Block),
                (false, most, Recompute::Every(2)),
            ] {
                let how = Accumulation { packing, micro_batch_tokens, recompute, ..one_pass(normaliser) };
                let (other, found) = gradients(&decoder, &examples, &how);
                prop_assert!((other.loss / loss.loss - 1.0).abs() < SAME, "{how:?}");
                let error = relative_error(&flat(&found), &flat(&wanted));
                prop_assert!(error < SAME, "{how:?}: {error}");
                prop_assert_eq!(other.kept_tokens, loss.kept_tokens);
                prop_assert_eq!(other.response_tokens, loss.response_tokens);
                prop_assert_eq!(other.tokens, loss.tokens);
            }
        }
    }

    #[test]
    fn an_example_of_weight_zero_only_counts_as_response(examples in batches(), seed in 0u64..99) {
        let decoder = decoder(3, None);
        let mut silent = crate::model::examples(&Shape::TINY, &[11], seed);
        silent[0].trainable[4] = true;
        silent[0].weights.fill(0.0);
        let mut more = silent;
        more.extend(examples.clone());
        for normaliser in NORMALISERS {
            let how = one_pass(normaliser);
            let (loss, wanted) = gradients(&decoder, &examples, &how);
            let (with, found) = gradients(&decoder, &more, &how);
            let factor = match normaliser {
                Normaliser::AllResponseTokens => {
                    response_tokens(&examples) as f64 / response_tokens(&more) as f64
                }
                _ => 1.0,
            };
            prop_assert!((with.loss / (factor * loss.loss) - 1.0).abs() < SAME);
            let error = relative_error(&flat(&found), &times(&flat(&wanted), factor));
            prop_assert!(error < SAME, "{normaliser:?}: {error}");
            prop_assert_eq!(with.response_tokens, response_tokens(&more));
        }
    }
}

#[test]
fn a_token_of_weight_zero_contributes_nothing() {
    let decoder = decoder(4, None);
    let mut kept = examples(&Shape::TINY, &[9, 13], 5);
    // The last token of an example is a target and nothing else: no later row reads it.
    kept[1].trainable[12] = true;
    kept[1].weights[12] = 0.0;
    let mut other = kept.clone();
    other[1].ids[12] = (kept[1].ids[12] + 1) % Shape::TINY.vocab as u32;
    let mut masked = kept.clone();
    masked[1].trainable[12] = false;
    masked[1].weights[12] = 1.0;
    for normaliser in NORMALISERS {
        let how = one_pass(normaliser);
        let (loss, wanted) = gradients(&decoder, &kept, &how);
        assert_eq!(
            gradients(&decoder, &other, &how),
            (loss, wanted.clone()),
            "{normaliser:?}"
        );
        let (without, found) = gradients(&decoder, &masked, &how);
        assert_eq!(without.kept_tokens, loss.kept_tokens);
        assert_eq!(without.response_tokens + 1, loss.response_tokens);
        let factor = match normaliser {
            Normaliser::AllResponseTokens => {
                loss.response_tokens as f64 / without.response_tokens as f64
            }
            _ => 1.0,
        };
        let error = relative_error(&flat(&found), &times(&flat(&wanted), factor));
        assert!(error < 1e-6, "{normaliser:?}: {error}");
    }
}

#[test]
fn the_first_token_of_an_example_is_never_a_target() {
    let decoder = decoder(4, None);
    let mut first = examples(&Shape::TINY, &[9], 5);
    first[0].trainable[0] = true;
    first[0].weights[0] = 1.0;
    let mut not = first.clone();
    not[0].trainable[0] = false;
    not[0].weights[0] = 0.0;
    for normaliser in NORMALISERS {
        let how = one_pass(normaliser);
        assert_eq!(
            gradients(&decoder, &first, &how),
            gradients(&decoder, &not, &how)
        );
    }
}

#[test]
fn only_adapters_get_gradients_and_move() {
    let plan = TrainPlan {
        lora: Some(lora_plan()),
        ..TrainPlan::new(4, 1e-2)
    };
    let examples = examples(&Shape::TINY, &[14, 20, 9], 6);
    let adapted = decoder(1, plan.lora.as_ref());
    let (_, slots) = gradients(&adapted, &examples, &one_pass(Normaliser::SumWeights));
    for ((_, param), slot) in adapted.params.iter().zip(&slots) {
        let adapter = param.name.contains(".lora_");
        assert_eq!(param.trainable, adapter, "{}", param.name);
        assert_eq!(slot.is_some(), adapter, "{}", param.name);
    }

    let mut trainer = trainer(&plan, examples, 0);
    let before = weights(&trainer.decoder().params);
    trainer.step().unwrap();
    let once = weights(&trainer.decoder().params);
    trainer.step().unwrap();
    let twice = weights(&trainer.decoder().params);
    for (((name, before), (_, once)), (_, twice)) in before.iter().zip(&once).zip(&twice) {
        // As long as `B` is zero, `A` has no gradient: it moves from the second step on.
        assert_eq!(before != once, name.contains(".lora_B"), "{name}");
        assert_eq!(once != twice, name.contains(".lora_"), "{name}");
    }
}

#[test]
fn a_fresh_adapter_changes_nothing() {
    let plan = LoraPlan {
        targets: LoraPlan::default().targets,
        ..lora_plan()
    };
    let examples = examples(&Shape::TINY, &[14, 20], 6);
    let how = one_pass(Normaliser::SumWeights);
    let (plain, _) = gradients(&decoder(7, None), &examples, &how);
    let (adapted, _) = gradients(&decoder(7, Some(&plan)), &examples, &how);
    assert_eq!(plain, adapted);
}
