//! A whole model: `config.json`, tokenizer, weights in one file or in shards with an index.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device};
use serde_json::{Map, Value, json};
use t3s_core::{DecoderSpec, atomic};

use super::{
    read::{TensorFile, Wanted, read_opened},
    stacked::{Entry, Stack, entries, stacks, stacks_in},
    write::write_entries,
};
use crate::{
    decoder::Decoder,
    error::EngineError,
    params::{Params, dtype_of},
};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Largest shard, bytes: what transformers writes too.
const SHARD_BYTES: usize = 5_000_000_000;

/// What goes along with the weights, where it is there.
const COMPANIONS: &[&str] = &[
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
];

/// The safetensors files of the model in `folder`.
///
/// # Errors
/// When there are none, or the index is broken or names a file that is not there.
pub fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, EngineError> {
    let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
    if !index.is_file() {
        if single.is_file() {
            return Ok(vec![single]);
        }
        return Err(EngineError::Checkpoint {
            path: folder.to_owned(),
            message: format!(
                "has neither {SINGLE} nor {INDEX}; make a random student with `t3s init`"
            ),
        });
    }
    let broken = |message: String| EngineError::Checkpoint {
        path: index.clone(),
        message,
    };
    let text = fs::read(&index).map_err(|source| EngineError::io(&index, source))?;
    let parsed: Value = serde_json::from_slice(&text).map_err(|e| broken(e.to_string()))?;
    let map = parsed.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| broken("has no table weight_map".to_owned()))?;
    let mut names = BTreeSet::new();
    for (tensor, file) in map {
        let name = file.as_str().filter(|name| !name.contains(['/', '\\']));
        names.insert(name.ok_or_else(|| broken(format!("{tensor}: {file} is no file name")))?);
    }
    let files: Vec<PathBuf> = names.into_iter().map(|name| folder.join(name)).collect();
    match files.iter().find(|file| !file.is_file()) {
        Some(missing) => Err(broken(format!(
            "{} is not there; copy or download it again",
            missing.display()
        ))),
        None => Ok(files),
    }
}

/// The weights of `spec` in `folder`, as `dtype`.
///
/// # Errors
/// When a file is missing or truncated, and when a tensor is missing, has another shape, or is none
/// of the model's; each is named.
pub fn load_params(
    folder: &Path,
    spec: &DecoderSpec,
    device: &Device,
    dtype: DType,
) -> Result<Params, EngineError> {
    let mut files = weight_files(folder)?
        .iter()
        .map(|path| TensorFile::open(path))
        .collect::<Result<Vec<_>, _>>()?;
    for stack in stacks(spec) {
        for file in &mut files {
            file.unstack(&stack)?;
        }
    }
    let wanted: Vec<Wanted> = spec
        .tensors()
        .into_iter()
        .map(|tensor| Wanted {
            name: tensor.name,
            shape: tensor.shape,
            dtype: dtype_of(tensor.role, dtype),
        })
        .collect();
    let known: BTreeSet<&str> = wanted.iter().map(|wanted| wanted.name.as_str()).collect();
    let ignored = |name: &str| {
        // A tied head may be stored twice; frequencies follow from the config.
        (spec.tied_head && name == spec.names.head) || name.ends_with(".rotary_emb.inv_freq")
    };
    for file in &files {
        let stranger = |name: &&str| !known.contains(name) && !ignored(name);
        if let Some(name) = file.names().find(stranger) {
            return Err(EngineError::Checkpoint {
                path: folder.to_owned(),
                message: format!(
                    "tensor {name} is none of the model that config.json describes; the weights \
                     are of another model"
                ),
            });
        }
    }
    let tensors = read_opened(&mut files, &wanted, device)?;
    let mut params = Params::default();
    for (wanted, tensor) in wanted.into_iter().zip(tensors) {
        params.push(wanted.name, tensor);
    }
    Ok(params)
}

/// The model in `folder`, with weights of `dtype`.
///
/// # Errors
/// As [`load_params`].
pub fn load_decoder(
    folder: &Path,
    spec: &DecoderSpec,
    device: &Device,
    dtype: DType,
) -> Result<Decoder, EngineError> {
    Decoder::new(
        spec.clone(),
        load_params(folder, spec, device, dtype)?,
        None,
    )
}

/// Writes `decoder` as a Hugging Face folder, with `config.json` and tokenizer of the folder `like`.
///
/// # Errors
/// When it cannot be written; what was there before is untouched.
pub fn save_decoder(folder: &Path, decoder: &Decoder, like: &Path) -> Result<(), EngineError> {
    let stacks = stacks_in(like, &decoder.spec)?;
    save_like(folder, &decoder.params, like, &stacks, SHARD_BYTES)
}

/// The same of bare weights, in shards of at most `shard_bytes` (a larger tensor is a shard of its
/// own).
///
/// # Errors
/// When it cannot be written; what was there before is untouched.
pub fn save_params(
    folder: &Path,
    params: &Params,
    like: &Path,
    shard_bytes: usize,
) -> Result<(), EngineError> {
    save_like(folder, params, like, &[], shard_bytes)
}

fn save_like(
    folder: &Path,
    params: &Params,
    like: &Path,
    stacks: &[Stack],
    shard_bytes: usize,
) -> Result<(), EngineError> {
    let path = like.join("config.json");
    let text = fs::read(&path).map_err(|source| EngineError::io(&path, source))?;
    let config: Map<String, Value> =
        serde_json::from_slice(&text).map_err(|e| EngineError::Checkpoint {
            path,
            message: e.to_string(),
        })?;
    let entries = entries(params, stacks);
    write_model(folder, entries, &config, like, shard_bytes)
}

/// Writes a new model: the configuration `config`, the tokenizer of the folder `tokenizer`, the
/// weights `params`.
///
/// # Errors
/// When it cannot be written; what was there before is untouched.
pub fn create(
    folder: &Path,
    params: &Params,
    config: &Map<String, Value>,
    tokenizer: &Path,
) -> Result<(), EngineError> {
    write_model(folder, entries(params, &[]), config, tokenizer, SHARD_BYTES)
}

fn write_model(
    folder: &Path,
    entries: Vec<Entry<'_>>,
    config: &Map<String, Value>,
    companions: &Path,
    shard_bytes: usize,
) -> Result<(), EngineError> {
    let config = in_f32(config);
    atomic::write_folder(folder, |new| {
        write_file(&new.join("config.json"), &config)?;
        copy_companions(companions, new)?;
        write_shards(new, entries, shard_bytes)
    })
}

/// `config.json` with the element type that is written. transformers 5 loads weights in the type
/// that it names, so a left-over `bfloat16` would cost 16 bits of every weight.
fn in_f32(config: &Map<String, Value>) -> Vec<u8> {
    let mut config = config.clone();
    for key in ["torch_dtype", "dtype"] {
        if let Some(dtype) = config.get_mut(key) {
            *dtype = json!("float32");
        }
    }
    serde_json::to_vec_pretty(&config).expect("a JSON object is JSON")
}

/// Copies tokenizer, chat template and generation defaults.
pub(super) fn copy_companions(from: &Path, to: &Path) -> Result<(), EngineError> {
    for name in COMPANIONS {
        let source = from.join(name);
        if source.is_file() {
            let bytes = fs::read(&source).map_err(|e| EngineError::io(&source, e))?;
            write_file(&to.join(name), &bytes)?;
        }
    }
    Ok(())
}

pub(super) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), EngineError> {
    fs::write(path, bytes).map_err(|source| EngineError::io(path, source))
}

fn write_shards(
    folder: &Path,
    entries: Vec<Entry<'_>>,
    shard_bytes: usize,
) -> Result<(), EngineError> {
    let mut shards: Vec<Vec<Entry<'_>>> = Vec::new();
    let (mut filled, mut total) = (0, 0);
    for entry in entries {
        let bytes = entry.elem_count() * 4;
        if shards.is_empty() || filled + bytes > shard_bytes {
            shards.push(Vec::new());
            filled = 0;
        }
        (filled, total) = (filled + bytes, total + bytes);
        let shard = shards.last_mut().expect("pushed above");
        shard.push(entry);
    }
    if shards.len() <= 1 {
        return write_entries(&folder.join(SINGLE), shards.into_iter().flatten());
    }
    let n = shards.len();
    let mut weight_map: BTreeMap<String, String> = BTreeMap::new();
    for (index, shard) in shards.into_iter().enumerate() {
        let file = format!("model-{:05}-of-{n:05}.safetensors", index + 1);
        for entry in &shard {
            weight_map.insert(entry.name.clone(), file.clone());
        }
        write_entries(&folder.join(&file), shard)?;
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
    let text = serde_json::to_vec_pretty(&index).expect("plain data is JSON");
    write_file(&folder.join(INDEX), &text)
}
