//! Hugging Face folders: what is written is read back, what does not fit is refused by name.

use std::{collections::HashMap, fs, path::Path};

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use t3s_core::DecoderSpec;
use t3s_engine::{
    EngineError, Params,
    checkpoint::{load_params, save_params},
};
use tempfile::TempDir;

use crate::{
    model::{Shape, tensor, values},
    setup::{weights, write_config},
};

const UP: &str = "model.layers.1.mlp.up_proj.weight";

fn spec(tied: bool) -> DecoderSpec {
    Shape {
        tied,
        ..Shape::TINY
    }
    .spec()
}

fn params(tied: bool) -> Params {
    Shape {
        tied,
        ..Shape::TINY
    }
    .params(1)
}

pub fn load(folder: &Path, tied: bool) -> Result<Params, EngineError> {
    load_params(folder, &spec(tied), &Device::Cpu, DType::F32)
}

/// By name, since the order of a file is its own.
pub fn sorted(params: &Params) -> Vec<(String, Vec<f32>)> {
    let mut weights = weights(params);
    weights.sort_by(|a, b| a.0.cmp(&b.0));
    weights
}

/// A folder `like` with a config, and `model` written like it.
pub fn saved(tied: bool, shard_bytes: usize) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let like = folder.path().join("like");
    fs::create_dir(&like).unwrap();
    write_config(&like, tied);
    save_params(
        &folder.path().join("model"),
        &params(tied),
        &like,
        shard_bytes,
    )
    .unwrap();
    folder
}

fn by_name(params: &Params) -> HashMap<String, Tensor> {
    let pair = |p: &t3s_engine::params::Param| (p.name.clone(), p.tensor.clone());
    params.iter().map(|(_, p)| pair(p)).collect()
}

/// A folder whose only file holds `tensors`, as another program would write them.
fn foreign(tensors: &HashMap<String, Tensor>) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    candle_core::safetensors::save(tensors, folder.path().join("model.safetensors")).unwrap();
    folder
}

fn refused(tensors: &HashMap<String, Tensor>, words: &[&str]) {
    let folder = foreign(tensors);
    let error = load(folder.path(), true).unwrap_err().to_string();
    for word in words {
        assert!(error.contains(word), "{word:?} is not in {error:?}");
    }
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn what_is_saved_is_loaded() {
    for tied in [true, false] {
        for shard_bytes in [usize::MAX, 20_000, 1] {
            let folder = saved(tied, shard_bytes);
            let model = folder.path().join("model");
            assert_eq!(sorted(&load(&model, tied).unwrap()), sorted(&params(tied)));
            assert_eq!(
                model.join("model.safetensors").is_file(),
                shard_bytes == usize::MAX
            );
        }
    }
}

#[test]
fn shards_are_small_and_the_index_is_whole() {
    let most = 20_000;
    let folder = saved(true, most);
    let model = folder.path().join("model");
    let index = json_of(&model.join("model.safetensors.index.json"));
    let map = index["weight_map"].as_object().unwrap();
    let mut shards: Vec<&str> = map.values().map(|v| v.as_str().unwrap()).collect();
    shards.sort_unstable();
    shards.dedup();
    assert!(shards.len() >= 3, "{shards:?}");
    let mut total = 0;
    for (n, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", n + 1, shards.len());
        assert_eq!(*shard, name);
        let tensors = candle_core::safetensors::load(model.join(shard), &Device::Cpu).unwrap();
        assert!(tensors.keys().all(|name| map[name] == *shard));
        let bytes: usize = tensors.values().map(|t| t.elem_count() * 4).sum();
        assert!(
            bytes <= most || tensors.len() == 1,
            "{shard}: {bytes} bytes"
        );
        total += bytes;
    }
    assert_eq!(index["metadata"]["total_size"], total);
    assert_eq!(total, params(true).n_elements(false) * 4);
    assert_eq!(map.len(), params(true).len());

    let shard = model.join(shards[1]);
    let bytes = fs::read(&shard).unwrap();
    fs::remove_file(&shard).unwrap();
    let error = load(&model, true).unwrap_err().to_string();
    assert!(
        error.contains(shards[1]) && error.contains("index"),
        "{error}"
    );
    fs::write(&shard, &bytes[..bytes.len() - 4]).unwrap();
    let error = load(&model, true).unwrap_err().to_string();
    assert!(
        error.contains(shards[1]) && error.contains("truncated"),
        "{error}"
    );
    // The same tensor in two files: which one would it be?
    fs::copy(model.join(shards[0]), &shard).unwrap();
    let error = load(&model, true).unwrap_err().to_string();
    assert!(
        error.contains(shards[0]) && error.contains("too"),
        "{error}"
    );
    for broken in [
        "{",
        "{}",
        r#"{"weight_map": {"a": 3}}"#,
        r#"{"weight_map": {"a": "../b"}}"#,
    ] {
        fs::write(model.join("model.safetensors.index.json"), broken).unwrap();
        let error = load(&model, true).unwrap_err().to_string();
        assert!(error.contains("index.json"), "{error}");
    }
}

#[test]
fn half_precision_is_loaded_as_f32() {
    for dtype in [DType::BF16, DType::F16, DType::F64] {
        let mut tensors = by_name(&params(true));
        for tensor in tensors.values_mut() {
            *tensor = tensor.to_dtype(dtype).unwrap();
        }
        let folder = foreign(&tensors);
        let loaded = load(folder.path(), true).unwrap();
        for (_, param) in loaded.iter() {
            assert_eq!(param.tensor.dtype(), DType::F32);
            let wanted = tensors[&param.name].to_dtype(DType::F32).unwrap();
            assert_eq!(values(&param.tensor), values(&wanted), "{}", param.name);
        }
    }
    let mut tensors = by_name(&params(true));
    let whole = tensors[UP].to_dtype(DType::I64).unwrap();
    tensors.insert(UP.into(), whole);
    refused(&tensors, &[UP, "I64"]);
}

#[test]
fn what_does_not_fit_the_config_is_named() {
    let good = by_name(&params(true));
    let mut tensors = good.clone();
    tensors.insert(UP.into(), tensor(vec![0.0; 12], &[3, 4]));
    refused(&tensors, &[UP, "[3, 4]", "[40, 24]"]);
    // The right number of values in another shape is another tensor.
    tensors.insert(UP.into(), good[UP].t().unwrap().contiguous().unwrap());
    refused(&tensors, &[UP, "[24, 40]", "[40, 24]"]);
    tensors.remove(UP);
    refused(&tensors, &[UP, "missing"]);
    let mut tensors = good.clone();
    let stranger = "model.layers.3.mlp.up_proj.weight";
    tensors.insert(stranger.into(), good[UP].clone());
    refused(&tensors, &[stranger]);
    tensors.remove(stranger);
    tensors.insert(
        "model.layers.0.self_attn.q_proj.bias".into(),
        tensor(vec![0.0; 32], &[32]),
    );
    refused(&tensors, &["q_proj.bias"]);

    let empty = tempfile::tempdir().unwrap();
    let error = load(empty.path(), true).unwrap_err().to_string();
    assert!(error.contains("model.safetensors"), "{error}");
}

#[test]
fn a_tied_head_may_be_stored_twice() {
    let mut tensors = by_name(&params(true));
    let head = tensors["model.embed_tokens.weight"].copy().unwrap();
    tensors.insert("lm_head.weight".into(), head);
    tensors.insert(
        "model.rotary_emb.inv_freq".into(),
        tensor(vec![1.0; 4], &[4]),
    );
    let folder = foreign(&tensors);
    assert_eq!(
        sorted(&load(folder.path(), true).unwrap()),
        sorted(&params(true))
    );
    // Untied, the head is a tensor that is needed.
    tensors.remove("lm_head.weight");
    let folder = foreign(&tensors);
    let error = load(folder.path(), false).unwrap_err().to_string();
    assert!(error.contains("lm_head.weight"), "{error}");
}

#[test]
fn companions_go_along_and_the_config_says_f32() {
    let folder = saved(true, usize::MAX);
    let (like, model) = (folder.path().join("like"), folder.path().join("model"));
    fs::write(like.join("tokenizer.json"), "{\"a\": 1}").unwrap();
    fs::write(like.join("chat_template.jinja"), "{{ x }}").unwrap();
    fs::write(like.join("optimizer.pt"), "no").unwrap();
    save_params(&model, &params(true), &like, usize::MAX).unwrap();
    let mut names: Vec<String> = fs::read_dir(&model)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "chat_template.jinja",
            "config.json",
            "model.safetensors",
            "tokenizer.json"
        ]
    );
    for name in ["tokenizer.json", "chat_template.jinja"] {
        assert_eq!(
            fs::read(like.join(name)).unwrap(),
            fs::read(model.join(name)).unwrap()
        );
    }
    let mut config = json_of(&like.join("config.json"));
    assert_eq!(config["torch_dtype"], "bfloat16");
    config["torch_dtype"] = json!("float32");
    assert_eq!(json_of(&model.join("config.json")), config);
    config["dtype"] = json!("float16");
    fs::write(like.join("config.json"), config.to_string()).unwrap();
    // Into the folder it is like, too.
    save_params(&like, &params(true), &like, usize::MAX).unwrap();
    assert_eq!(json_of(&like.join("config.json"))["dtype"], "float32");
    assert_eq!(
        fs::read_to_string(like.join("chat_template.jinja")).unwrap(),
        "{{ x }}"
    );
    assert_eq!(sorted(&load(&like, true).unwrap()), sorted(&params(true)));
    assert_eq!(
        fs::read_dir(folder.path()).unwrap().count(),
        2,
        "nothing is left behind"
    );
}

/// What is computed in bfloat16 is read as it stands, and everything else is rounded to it.
#[test]
fn weights_are_read_in_the_type_that_is_asked_for() {
    for stored in [DType::BF16, DType::F32] {
        let params = params(true);
        let tensors = by_name(&params)
            .into_iter()
            .map(|(name, t)| (name, t.to_dtype(stored).unwrap()))
            .collect();
        let folder = foreign(&tensors);
        let read = load_params(folder.path(), &spec(true), &Device::Cpu, DType::BF16).unwrap();
        for (_, param) in read.iter() {
            assert_eq!(param.tensor.dtype(), DType::BF16);
            let wanted = tensors[&param.name].to_dtype(DType::BF16).unwrap();
            let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<half::bf16>().unwrap();
            assert_eq!(bits(&param.tensor), bits(&wanted), "{}", param.name);
        }
    }
}
