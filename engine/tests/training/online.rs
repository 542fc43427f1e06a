//! Weights that depend on the step under way, against the same weights given beforehand.

use std::{
    ops::ControlFlow,
    sync::{Arc, Mutex},
};

use proptest::prelude::*;
use t3s_core::{
    ComponentError, Declaration, Example, SelectContext, SelectionStrategy, SignalRef, TokenTable,
    TokenView, When,
    objective::NextToken,
    plan::{Recompute, ScorePlan, TrainPlan},
    strategy::Scope,
};
use t3s_engine::{
    Accumulation, Columns, Decoder, Grads, OnlineSelection, Part, Scoring,
    loss_and_gradients_online, score,
};

use crate::{
    model::{Shape, examples, relative_error, values},
    setup::{NORMALISERS, decoder, flat, gradients, one_pass, trainer, weights},
};

/// `p_t` where the column `x` is above 0, else 0; writes down the steps it was asked in.
#[derive(Default)]
struct ProbabilityWhere {
    steps: Arc<Mutex<Vec<u64>>>,
}

impl SelectionStrategy for ProbabilityWhere {
    fn needs(&self) -> Vec<SignalRef> {
        vec![SignalRef::new("x")]
    }

    fn when(&self) -> When {
        When::Online
    }

    fn declare(&self) -> Declaration {
        Declaration::new(Scope::PerExample)
    }

    fn select(
        &self,
        tokens: &TokenView<'_>,
        cx: &SelectContext<'_>,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        self.steps.lock().expect("one thread").push(cx.step);
        let (x, logp) = (tokens.column("x")?, cx.current_logp.expect("online"));
        for ((out, x), logp) in out.iter_mut().zip(x).zip(logp) {
            *out = if *x > 0.0 { logp.exp() } else { 0.0 };
        }
        Ok(())
    }
}

/// Every target with the column `x`, by what `x` says of example id and position; its examples
/// are in another order than those that are trained on.
fn recorded(examples: &[Example], x: impl Fn(u64, u32) -> f32) -> TokenTable {
    let (mut offsets, mut ids, mut positions, mut xs) = (vec![0], vec![], vec![], vec![]);
    for example in examples.iter().rev() {
        for position in 1..example.n_tokens() {
            if example.trainable[position] {
                ids.push(example.ids[position]);
                positions.push(position as u32);
                xs.push(x(example.id, position as u32));
            }
        }
        offsets.push(ids.len() as u32);
    }
    let n = ids.len();
    let example_ids = examples.iter().rev().map(|e| e.id).collect();
    let mut table = TokenTable::new(example_ids, offsets, ids, positions, vec![true; n]).unwrap();
    table.insert("x", xs).unwrap();
    table
}

/// About two thirds of all tokens.
fn some(example: u64, position: u32) -> f32 {
    (example as f32 * 5.0 + position as f32) % 3.0 - 0.5
}

/// The weights that [`ProbabilityWhere`] would choose, multiplied into the examples' own.
fn beforehand(decoder: &Decoder, examples: &[Example]) -> Vec<Example> {
    let go_on = &mut |_| ControlFlow::Continue(());
    let how = Scoring::of(&ScorePlan::default(), Columns::default(), 0);
    let table = score(decoder, &NextToken, examples, &how, go_on).unwrap();
    let view = table.view();
    let logp = view.column("logp").unwrap();
    let mut examples = examples.to_vec();
    for (id, rows) in view.examples() {
        let example = examples.iter_mut().find(|e| e.id == id).unwrap();
        for row in rows {
            let position = view.positions()[row];
            let chosen = match some(id, position) > 0.0 {
                true => logp[row].exp(),
                false => 0.0,
            };
            example.weights[position as usize] *= chosen;
        }
    }
    examples
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn asked_during_the_pass_is_as_known_beforehand(
        lengths in prop::collection::vec(2usize..20, 1..6),
        seed in 0u64..1000,
        most in 1usize..40,
    ) {
        let decoder = decoder(2, None);
        let examples = examples(&Shape::TINY, &lengths, seed);
        let known = beforehand(&decoder, &examples);
        let strategy = Box::new(ProbabilityWhere::default());
        let online = OnlineSelection::new(strategy, recorded(&examples, some), 1);
        for normaliser in NORMALISERS {
            let (loss, wanted) = gradients(&decoder, &known, &one_pass(normaliser));
            for (packing, micro_batch_tokens, recompute) in [
                (true, 1 << 20, Recompute::None),
                (true, most, Recompute::Block),
                (false, most, Recompute::None),
            ] {
                let how = Accumulation { packing, micro_batch_tokens, recompute, ..one_pass(normaliser) };
                let part = Part { examples: examples.iter().collect(), draw: 0 };
                let mut grads = Grads::new(&decoder.params);
                let found = loss_and_gradients_online(
                    &decoder, &NextToken, &[part], &how, (&online, 1), &mut grads,
                )
                .unwrap();
                prop_assert!((found.loss - loss.loss).abs() <= 1e-5 * loss.loss, "{how:?}");
                prop_assert_eq!(found.kept_tokens, loss.kept_tokens);
                prop_assert_eq!(found.response_tokens, loss.response_tokens);
                prop_assert_eq!(found.tokens, loss.tokens);
                if loss.kept_tokens == 0 {
                    continue;
                }
                let slots: Vec<Option<Vec<f32>>> =
                    decoder.params.iter().map(|(id, _)| grads.get(id).map(values)).collect();
                let error = relative_error(&flat(&slots), &flat(&wanted));
                prop_assert!(error < 1e-5, "{how:?}: {error}");
            }
        }
    }
}

#[test]
fn a_trainer_asks_in_every_step_and_moves_by_what_was_chosen() {
    let plan = TrainPlan {
        batch_examples: 3,
        micro_batch_tokens: 20,
        ..TrainPlan::new(3, 1e-2)
    };
    let examples = examples(&Shape::TINY, &[14, 20, 9], 6);
    let strategy = ProbabilityWhere::default();
    let steps = Arc::clone(&strategy.steps);
    let table = recorded(&examples, some);
    let online = OnlineSelection::new(Box::new(strategy), table, 1);
    let mut asking = trainer(&plan, examples.clone(), 0).with_online(Arc::new(online));
    let before = weights(&asking.decoder().params);
    let report = asking.step().unwrap();
    asking.step().unwrap();
    let mut asked = steps.lock().unwrap().clone();
    // More than one pass each.
    assert!(asked.len() > 2);
    asked.dedup();
    assert_eq!(asked, [1, 2]);

    let known = beforehand(&decoder(1, None), &examples);
    let mut told = trainer(&plan, known, 0);
    let expected = told.step().unwrap();
    assert_eq!(report.kept_tokens, expected.kept_tokens);
    assert!((report.loss / expected.loss - 1.0).abs() < 1e-5);
    assert!((report.grad_norm / expected.grad_norm - 1.0).abs() < 1e-4);
    assert_ne!(before, weights(&asking.decoder().params));
}

#[test]
fn a_step_in_which_nothing_is_chosen_moves_nothing() {
    let examples = examples(&Shape::TINY, &[14, 20], 6);
    let table = recorded(&examples, |_, _| -1.0);
    let online = OnlineSelection::new(Box::new(ProbabilityWhere::default()), table, 1);
    let mut trainer = trainer(&TrainPlan::new(3, 1e-2), examples, 0).with_online(Arc::new(online));
    let before = weights(&trainer.decoder().params);
    let report = trainer.step().unwrap();
    assert_eq!((report.loss, report.kept_tokens), (0.0, 0));
    assert_eq!(before, weights(&trainer.decoder().params));
}

#[test]
fn a_selection_of_other_data_is_an_error() {
    let examples = examples(&Shape::TINY, &[14, 20], 6);
    let table = recorded(&examples[..1], some);
    let online = OnlineSelection::new(Box::new(ProbabilityWhere::default()), table, 1);
    let mut trainer = trainer(&TrainPlan::new(3, 1e-2), examples, 0).with_online(Arc::new(online));
    let message = trainer.step().unwrap_err().to_string();
    assert!(message.contains("no row for example 11"), "{message}");
}
