//! The dumped reference `golden/qwen3-tiny`: what transformers' Qwen3 computes in float32.

#[path = "../gradients/model.rs"]
#[expect(dead_code, reason = "shared with the gradient tests")]
mod model;

mod generation;
mod parity;

use std::{collections::HashMap, path::PathBuf};

use candle_core::{DType, Device, Tensor};
use model::Shape;
use t3s_core::DecoderSpec;
use t3s_engine::{Decoder, Params};

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

/// The reference model, as `spec` describes it, and what was dumped; says so when it is not there.
fn reference(spec: DecoderSpec) -> Option<(Decoder, HashMap<String, Tensor>)> {
    reference_on(spec, &Device::Cpu, DType::F32)
}

/// The same with weights of `dtype` on `device`; what was dumped stays on the CPU.
fn reference_on(
    spec: DecoderSpec,
    device: &Device,
    dtype: DType,
) -> Option<(Decoder, HashMap<String, Tensor>)> {
    let shared = match std::env::var_os("T3S_SHARED") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared"),
    };
    let folder = shared.join("golden/qwen3-tiny");
    if !folder.is_dir() {
        eprintln!(
            "SKIPPED: no {}; set T3S_SHARED to the folder that holds golden/",
            folder.display()
        );
        return None;
    }
    let load =
        |name: &str| candle_core::safetensors::load(folder.join(name), &Device::Cpu).expect(name);
    let mut weights: Vec<(String, Tensor)> = load("model.safetensors").into_iter().collect();
    weights.sort_by(|a, b| a.0.cmp(&b.0));
    let mut params = Params::default();
    for (name, tensor) in weights {
        let tensor = tensor.to_device(device).and_then(|t| t.to_dtype(dtype));
        params.push(name, tensor.expect("weights fit"));
    }
    let decoder = Decoder::new(spec, params, None).expect("the reference is a Qwen3");
    Some((decoder, load("golden.safetensors")))
}
