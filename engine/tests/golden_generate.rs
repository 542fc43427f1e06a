//! Greedy generation on the dumped reference `golden/qwen3-tiny`: after every prefix of its texts the
//! next token is the arg max of the logits that transformers' Qwen3 computed there.

#[path = "gradients/model.rs"]
#[expect(dead_code, reason = "shared with the gradient tests")]
mod model;

use std::{ops::ControlFlow, path::PathBuf};

use candle_core::{Device, Tensor};
use model::Shape;
use t3s_core::{DecodeRule, plan::sections::GeneratePlan};
use t3s_engine::{Decoder, Params, generate};

const SHAPE: Shape = Shape {
    vocab: 512,
    width: 64,
    n_layers: 3,
    n_heads: 4,
    n_kv_heads: 2,
    head_dim: 32,
    hidden: 160,
    tied: true,
    qk_norm: true,
    qkv_bias: false,
};

fn folder() -> Option<PathBuf> {
    let shared = match std::env::var_os("T3S_SHARED") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared"),
    };
    let folder = shared.join("golden/qwen3-tiny");
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!(
        "SKIPPED: no {}; set T3S_SHARED to the folder that holds golden/",
        folder.display()
    );
    None
}

#[test]
fn every_next_token_is_the_arg_max_of_the_reference() {
    let Some(folder) = folder() else { return };
    let load =
        |name: &str| candle_core::safetensors::load(folder.join(name), &Device::Cpu).expect(name);
    let mut params = Params::default();
    let mut weights: Vec<(String, Tensor)> = load("model.safetensors").into_iter().collect();
    weights.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, tensor) in weights {
        params.push(name, tensor);
    }
    let mut spec = SHAPE.spec();
    spec.eos_ids.clear();
    let decoder = Decoder::new(spec, params, None).unwrap();

    let golden = load("golden.safetensors");
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
