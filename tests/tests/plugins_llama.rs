//! The Llama adapter, loaded as a plugin: a checkpoint of transformers gives transformers' logits.
//! `golden/llama-tiny` is made by `golden/llama.py`.

use std::{env, fs, path::Path};

use candle_core::{Device, Tensor};
use t3s_core::{
    Draw, ExampleBatch, HfConfig, ModelAdapter, ModelBatch,
    plan::sections::Recompute,
    plugin,
    registry::{Kind, Registry},
};
use t3s_engine::{Decoder, Params, Save, score::batch_of};
// Builds the library beside this test.
use t3s_example_llama as _;

/// Absolute, over logits up to 3.8. Measured 2.4e-6.
const LOGITS: f32 = 2e-5;
/// Absolute, nats. Measured 1.9e-6.
const LOGP: f32 = 2e-5;

fn adapter() -> Box<dyn ModelAdapter> {
    let test = env::current_exe().expect("a test has a path");
    let folder = test.parent().expect("and a folder");
    let name = format!("libt3s_example_llama{}", env::consts::DLL_SUFFIX);
    let plugin = plugin::load(&folder.join(name), None).unwrap_or_else(|e| panic!("{e}"));
    let registry = Registry::from_entries([]).expect("empty");
    let registry = plugin.add_to(registry).expect("no clash");
    assert_eq!(registry.of_kind(Kind::Adapter).count(), 1);
    registry.adapter("llama").expect("it is there")
}

fn golden() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/golden/llama-tiny"))
}

fn config() -> HfConfig {
    let text = fs::read_to_string(golden().join("config.json")).expect("a file");
    HfConfig(serde_json::from_str(&text).expect("an object"))
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn farthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

#[test]
fn a_loaded_adapter_matches_transformers() {
    let adapter = adapter();
    let config = config();
    assert!(adapter.claims(&config));
    let spec = adapter.decoder(&config).unwrap_or_else(|e| panic!("{e}"));
    let load = |name: &str| {
        candle_core::safetensors::load(golden().join(name), &Device::Cpu).expect("tensors")
    };
    let mut params = Params::default();
    let mut weights: Vec<_> = load("model.safetensors").into_iter().collect();
    weights.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, tensor) in weights {
        params.push(name, tensor);
    }
    let decoder = Decoder::new(spec, params, None).unwrap_or_else(|e| panic!("{e}"));

    let golden = load("golden.safetensors");
    let ids: Vec<i64> = golden["ids"].flatten_all().unwrap().to_vec1().unwrap();
    let ids: Vec<u32> = ids.into_iter().map(|id| id as u32).collect();
    let (n, vocab) = (ids.len(), 64);
    let batch = ExampleBatch {
        example_ids: &[0, 1],
        offsets: &[0, 24, 48],
        ids: &ids,
        trainable: &vec![true; n],
        weights: &vec![1.0; n],
        noisy_ids: &[],
    };
    // The plugin's objective prepares the rows, across the boundary.
    let objective = adapter
        .objective(&Default::default())
        .unwrap_or_else(|e| panic!("{e}"));
    let mut rows = ModelBatch::default();
    objective
        .prepare(&batch, Draw::default(), &mut rows)
        .unwrap_or_else(|e| panic!("{e}"));
    let linked = t3s_core::objective::NextToken;
    let mut expected = ModelBatch::default();
    t3s_core::Objective::prepare(&linked, &batch, Draw::default(), &mut expected).unwrap();
    assert_eq!(rows, expected);

    let (hidden, _) = decoder
        .forward(
            &rows.input_ids,
            &batch_of(&rows, objective.as_ref()),
            Recompute::None,
            Save::ForBackward,
        )
        .unwrap();
    let logits = floats(&decoder.logits(&hidden).unwrap());
    assert_eq!(rows.input_ids, ids, "every token is read");
    let off = farthest(&logits, &floats(&golden["logits"]));
    assert!(off < LOGITS, "logits are off by {off}");
    let mut logp = Vec::new();
    for (row, scores) in logits.chunks_exact(vocab).enumerate() {
        if let Some(target) = ids.get(rows.target_pos[row] as usize) {
            let total: f64 = scores.iter().map(|s| f64::from(*s).exp()).sum();
            logp.push((f64::from(scores[*target as usize]) - total.ln()) as f32);
        }
    }
    let off = farthest(&logp, &floats(&golden["logp"]));
    assert!(off < LOGP, "log-probabilities are off by {off}");
}

#[test]
fn what_it_does_not_know_is_refused_by_name() {
    let adapter = adapter();
    let refused = |key: &str, value: serde_json::Value| {
        let mut config = config();
        config.0.insert(key.to_owned(), value);
        adapter.decoder(&config).expect_err("refused").to_string()
    };
    let scaled = serde_json::json!({ "rope_type": "llama3", "factor": 8.0 });
    assert!(refused("rope_scaling", scaled).starts_with("config.json: rope_scaling: found {"));
    assert!(refused("attention_bias", true.into()).contains("attention_bias"));
    assert!(refused("num_experts", 8.into()).contains("num_experts"));
    assert!(refused("num_key_value_heads", 4.into()).contains("a divisor of num_attention_heads"));
    let mut other = config();
    other.0.insert("model_type".to_owned(), "qwen3".into());
    assert!(!adapter.claims(&other));
    let options = "typo = 1".parse().expect("TOML");
    assert!(
        adapter
            .decode(&options)
            .expect_err("refused")
            .to_string()
            .contains("typo")
    );
}
