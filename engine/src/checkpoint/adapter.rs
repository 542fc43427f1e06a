//! LoRA adapters as peft writes and reads them: `adapter_config.json`, `adapter_model.safetensors`.

use std::{fs, path::Path};

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use t3s_core::{DecoderSpec, atomic, plan::LoraPlan};

use super::{
    folder::{load_params, write_file},
    read::{TensorFile, Wanted, read_opened},
    write::write_tensors,
};
use crate::{decoder::Decoder, error::EngineError, layers::lora, params::Params};

const CONFIG: &str = "adapter_config.json";
/// The tensors of an adapter, in its folder.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";

/// Keys of `adapter_config.json` that change what an adapter computes, and the values with which it
/// is plain LoRA.
fn plain() -> [(&'static str, Value); 10] {
    [
        ("bias", json!("none")),
        ("use_dora", json!(false)),
        ("use_rslora", json!(false)),
        ("fan_in_fan_out", json!(false)),
        ("rank_pattern", json!({})),
        ("alpha_pattern", json!({})),
        ("modules_to_save", Value::Null),
        ("layers_to_transform", Value::Null),
        ("exclude_modules", Value::Null),
        ("lora_bias", json!(false)),
    ]
}

/// Keys that change it too, which plain LoRA leaves out, null or empty. They are newer than some
/// versions of peft, so they are not written.
const ABSENT: [&str; 6] = [
    "alora_invocation_tokens",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
];

/// Ways of starting that leave the base model as it is. The others subtract from it what they put
/// into the adapter, so the adapter belongs to a base that the folder does not hold.
fn keeps_base(init: &Value) -> bool {
    match init {
        Value::Null | Value::Bool(_) => true,
        Value::String(name) => ["gaussian", "eva", "orthogonal"].contains(&name.as_str()),
        _ => false,
    }
}

/// Writes the adapter tensors of `params`; `base` is the model they adapt.
///
/// # Errors
/// When it cannot be written; what was there before is untouched.
pub fn save_adapter(
    folder: &Path,
    params: &Params,
    plan: &LoraPlan,
    base: &Path,
) -> Result<(), EngineError> {
    let mut config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": plan.rank,
        "lora_alpha": plan.alpha,
        "lora_dropout": 0.0,
        "target_modules": plan.targets,
        "init_lora_weights": true,
        "inference_mode": true,
    });
    for (key, value) in plain() {
        config[key] = value;
    }
    let text = serde_json::to_vec_pretty(&config).expect("a JSON object is JSON");
    let tensors: Vec<(String, &Tensor)> = params
        .iter()
        .filter(|(_, param)| param.name.contains(".lora_"))
        .map(|(_, param)| (param.name.clone(), &param.tensor))
        .collect();
    atomic::write_folder(folder, |new| {
        write_file(&new.join(CONFIG), &text)?;
        write_tensors(&new.join(ADAPTER_WEIGHTS), tensors)
    })
}

/// The model in `base`, with weights of `dtype`, with the adapter in `folder`, which is f32.
///
/// # Errors
/// When either cannot be read, a tensor is missing or has another shape, or the adapter is more than
/// plain LoRA; names the key.
pub fn load_adapter(
    base: &Path,
    folder: &Path,
    spec: &DecoderSpec,
    device: &Device,
    dtype: DType,
) -> Result<Decoder, EngineError> {
    let plan = adapter_plan(folder)?;
    let mut params = load_params(base, spec, device, dtype)?;
    // The adapter's names and shapes are those of a fresh one.
    let mut fresh = Params::default();
    for (_, param) in params.iter() {
        fresh.push(param.name.clone(), param.tensor.clone());
    }
    lora::attach(spec, &mut fresh, &plan, 0)?;
    let wanted: Vec<Wanted> = fresh
        .iter()
        .skip(params.len())
        .map(|(_, param)| Wanted {
            name: param.name.clone(),
            shape: param.tensor.dims().to_vec(),
            dtype: DType::F32,
        })
        .collect();
    let path = folder.join(ADAPTER_WEIGHTS);
    let mut file = [TensorFile::open(&path)?];
    let stranger = |name: &&str| !wanted.iter().any(|known| known.name == *name);
    if let Some(name) = file[0].names().find(stranger) {
        return Err(EngineError::Checkpoint {
            path,
            message: format!("tensor {name} is none of the adapter that {CONFIG} describes"),
        });
    }
    let tensors = read_opened(&mut file, &wanted, device)?;
    for (wanted, tensor) in wanted.into_iter().zip(tensors) {
        params.push(wanted.name, tensor);
    }
    Decoder::new(spec.clone(), params, Some(&plan))
}

/// Rank, scale and targets of the adapter in `folder`.
///
/// # Errors
/// When its configuration cannot be read, or it is more than plain LoRA; names the key.
pub fn adapter_plan(folder: &Path) -> Result<LoraPlan, EngineError> {
    let path = folder.join(CONFIG);
    let refuse = |message: String| EngineError::Checkpoint {
        path: path.clone(),
        message,
    };
    let text = fs::read(&path).map_err(|source| EngineError::io(&path, source))?;
    let config: Value = serde_json::from_slice(&text).map_err(|e| refuse(e.to_string()))?;
    let empty = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(table) => table.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    };
    if config["peft_type"] != "LORA" {
        return Err(refuse(format!(
            "peft_type is {}; only \"LORA\" is understood",
            config["peft_type"]
        )));
    }
    for (key, value) in plain() {
        let found = &config[key];
        if *found != value && !empty(found) {
            return Err(refuse(format!(
                "{key} is {found}; only {value}, plain LoRA, is understood"
            )));
        }
    }
    if let Some(key) = ABSENT.iter().find(|key| !empty(&config[**key])) {
        let found = &config[*key];
        return Err(refuse(format!(
            "{key} is {found}; only plain LoRA is understood, without it"
        )));
    }
    if !keeps_base(&config["init_lora_weights"]) {
        return Err(refuse(format!(
            "init_lora_weights is {}, which changes the base model; convert the adapter to plain \
             LoRA when saving it with peft",
            config["init_lora_weights"]
        )));
    }
    let targets = config["target_modules"].as_array().and_then(|list| {
        let names = list.iter().map(|name| name.as_str().map(str::to_owned));
        names.collect::<Option<Vec<String>>>()
    });
    match (config["r"].as_u64(), config["lora_alpha"].as_f64(), targets) {
        (Some(rank), Some(alpha), Some(targets)) if rank > 0 => Ok(LoraPlan {
            rank: rank as usize,
            alpha,
            targets,
        }),
        _ => Err(refuse(
            "r (at least 1), lora_alpha and a list target_modules are needed".to_owned(),
        )),
    }
}
