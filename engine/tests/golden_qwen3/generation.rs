//! Greedy generation: after every prefix of the dumped texts the next token is the arg max of the
//! dumped logits there.

use std::ops::ControlFlow;

use t3s_core::{DecodeRule, plan::sections::GeneratePlan};
use t3s_engine::generate;

use crate::{SHAPE, reference};

#[test]
fn every_next_token_is_the_arg_max_of_the_reference() {
    let mut spec = SHAPE.spec();
    spec.eos_ids.clear();
    let Some((decoder, golden)) = reference(spec) else {
        return;
    };
    let ids: Vec<Vec<i64>> = golden["ids"].to_vec2().unwrap();
    let logits: Vec<Vec<Vec<f32>>> = golden["logits"].to_vec3().unwrap();
    let mut prompts = Vec::new();
    let mut wanted = Vec::new();
    for (ids, logits) in ids.iter().zip(&logits) {
        for (last, logits) in logits.iter().enumerate() {
            prompts.push(ids[..=last].iter().map(|id| *id as u32).collect());
            let best = |a: &usize, b: &usize| logits[*a].total_cmp(&logits[*b]);
            let best = (0..logits.len()).max_by(best).expect("a vocabulary");
            wanted.push(vec![best as u32]);
        }
    }
    let plan = GeneratePlan {
        max_new_tokens: 1,
        temperature: 0.0,
        ..GeneratePlan::default()
    };
    let go_on = &mut |_| ControlFlow::Continue(());
    let answers = generate(
        &decoder,
        &DecodeRule::LeftToRight,
        &prompts,
        1,
        &plan,
        0,
        go_on,
    );
    let found: Vec<Vec<u32>> = answers.unwrap().into_iter().map(|a| a.ids).collect();
    assert_eq!(found.len(), 80);
    assert_eq!(found, wanted);
}
