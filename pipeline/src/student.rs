//! A model folder opened as far as `config.json`: adapter, geometry, objective, decoding. Weights
//! are loaded when a stage needs them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device};
use serde_json::Value;
use t3s_core::{
    ComponentError, DecodeRule, DecoderSpec, Fingerprint, HfConfig, ModelAdapter, Objective,
    Weighting,
    plan::{DataPlan, DeviceChoice, StudentPlan, TrainPlan},
    registry::{Kind, Registry},
};
use t3s_data::Tokenizer;
use t3s_engine::{Decoder, checkpoint, init_params, layers::lora};

use crate::error::PipelineError;

/// A model, its family's way with it, and where it computes.
pub struct Student {
    /// The Hugging Face folder.
    pub path: PathBuf,
    /// Name of the adapter that claims its `config.json`.
    pub adapter_name: String,
    /// Geometry and tensor names.
    pub spec: DecoderSpec,
    /// How it answers.
    pub decode: DecodeRule,
    /// Where it computes.
    pub device: Device,
    /// The type of weights and activations there.
    pub dtype: DType,
    plan: StudentPlan,
    adapter: Box<dyn ModelAdapter>,
}

impl Student {
    /// Reads `config.json` of `plan.path` and finds its adapter.
    ///
    /// # Errors
    /// When the folder has no readable `config.json`, no adapter or several claim it, the adapter
    /// does not fully understand it, or the device is not there.
    pub fn open(
        plan: &StudentPlan,
        device: &DeviceChoice,
        registry: &Registry,
    ) -> Result<Self, PipelineError> {
        let config = read_config(&plan.path.join("config.json"))?;
        let (adapter_name, adapter) = adapter_of(plan, &config, registry)?;
        let place = format!("model adapter {adapter_name:?}");
        let component = |source| PipelineError::Component {
            component: format!("{}: {place}", plan.path.display()),
            source,
        };
        let spec = adapter.decoder(&config).map_err(component)?;
        let mut plan = plan.clone();
        let decided = adapter.options(&config).map_err(component)?;
        for (own, decided) in [
            (&mut plan.objective, decided.objective),
            (&mut plan.decode, decided.decode),
        ] {
            for (key, value) in decided {
                own.entry(key).or_insert(value);
            }
        }
        let decode = adapter
            .decode(&plan.decode)
            .map_err(refused("student.decode", &adapter_name))?;
        adapter
            .objective(&plan.objective)
            .map_err(refused("student.objective", &adapter_name))?;
        let (device, dtype) = t3s_engine::device::open(device, plan.precision)
            .map_err(|error| PipelineError::plan("device", error.to_string()))?;
        Ok(Self {
            path: plan.path.clone(),
            adapter_name,
            spec,
            decode,
            device,
            dtype,
            plan,
            adapter,
        })
    }

    /// The training objective, made anew.
    ///
    /// # Errors
    /// When the adapter refuses the options, which [`Student::open`] has tried.
    pub fn objective(&self) -> Result<Box<dyn Objective>, PipelineError> {
        self.fresh_objective()
            .map_err(refused("student.objective", &self.adapter_name))
    }

    pub(crate) fn fresh_objective(&self) -> Result<Box<dyn Objective>, ComponentError> {
        self.adapter.objective(&self.plan.objective)
    }

    /// What a token's weight means to the training objective.
    ///
    /// # Errors
    /// As [`Student::objective`].
    pub fn weighting(&self) -> Result<Weighting, PipelineError> {
        self.objective().map(|objective| objective.weighting())
    }

    /// The options of the adapter, as JSON: part of what a token store is made under.
    pub fn options(&self) -> Value {
        serde_json::json!({ "objective": self.plan.objective, "decode": self.plan.decode })
    }

    /// Loads the weights in `folder`: a whole model, or an adapter of this one.
    ///
    /// # Errors
    /// Those of the checkpoint: missing, truncated or mis-shaped tensors.
    pub fn load(&self, folder: &Path, stage: &str) -> Result<Decoder, PipelineError> {
        let error = PipelineError::engine(stage);
        let (spec, device, dtype) = (&self.spec, &self.device, self.dtype);
        match is_adapter(folder) {
            true => checkpoint::load_adapter(&self.path, folder, spec, device, dtype),
            false => checkpoint::load_decoder(folder, spec, device, dtype),
        }
        .map_err(error)
    }

    /// Refuses a folder without weights, without reading them.
    ///
    /// # Errors
    /// When it has none, or its index names a file that is not there.
    pub fn expect_weights(&self) -> Result<(), PipelineError> {
        let files = checkpoint::weight_files(&self.path);
        files.map(|_| ()).map_err(PipelineError::engine("student"))
    }

    /// The base's weights, or those of `start`, ready to be trained as `plan` says: all of them, a
    /// fresh adapter, or, where `start` is one, that adapter.
    ///
    /// # Errors
    /// Those of the checkpoint, of a plan that adapts nothing, and of an adapter that is not the
    /// plan's.
    pub fn load_for_training(
        &self,
        plan: &TrainPlan,
        seed: u64,
        stage: &str,
        start: Option<&Path>,
    ) -> Result<Decoder, PipelineError> {
        let error = PipelineError::engine(stage);
        if let Some(adapter) = start.filter(|folder| is_adapter(folder)) {
            let there = checkpoint::adapter_plan(adapter).map_err(&error)?;
            if plan.lora.as_ref() != Some(&there) {
                return Err(PipelineError::plan(
                    "train.lora",
                    "going on from a low-rank probe trains its adapter further, so rank, alpha and \
                     targets have to be those of [probe.lora]",
                ));
            }
            return self.load(adapter, stage);
        }
        let folder = start.unwrap_or(&self.path);
        let mut params = checkpoint::load_params(folder, &self.spec, &self.device, self.dtype)
            .map_err(&error)?;
        if let Some(lora) = &plan.lora {
            lora::attach(&self.spec, &mut params, lora, seed).map_err(&error)?;
        }
        Decoder::new(self.spec.clone(), params, plan.lora.as_ref()).map_err(&error)
    }

    /// The tokenizer in the model's folder, with the chat template that `data` names.
    ///
    /// # Errors
    /// When it cannot be read, or has ids that the model has not.
    pub fn tokenizer(&self, data: &DataPlan) -> Result<Tokenizer, PipelineError> {
        let template = Some(data.chat_template.as_path()).filter(|p| !p.as_os_str().is_empty());
        let error = PipelineError::data("tokenizer");
        let tokenizer = Tokenizer::load(&self.path, template).map_err(&error)?;
        tokenizer.expect_fits(self.spec.vocab).map_err(&error)?;
        Ok(tokenizer)
    }

    /// The fingerprint of the weights in `folder`; of an adapter's, together with its base.
    ///
    /// # Errors
    /// When a file cannot be read, or there is none.
    pub fn weights(&self, folder: &Path) -> Result<Fingerprint, PipelineError> {
        let own = fingerprint_weights(folder)?;
        let whole = match is_adapter(folder) {
            true => Fingerprint::of_json(&[fingerprint_weights(&self.path)?, own]),
            false => own,
        };
        Ok(match self.dtype {
            DType::F32 => whole,
            // What is computed from them is computed from rounded weights.
            rounded => Fingerprint::of_json(&(whole, rounded.as_str())),
        })
    }
}

/// Makes a student of random weights: `config.json` (from the file `config`, with the tokenizer's
/// vocabulary and end where it says nothing about them), the tokenizer's files, the weights.
///
/// # Errors
/// When the config is not understood, the tokenizer does not fit it, or nothing can be written.
pub fn init_student(
    config: &Path,
    tokenizer: &Path,
    seed: u64,
    out: &Path,
    registry: &Registry,
) -> Result<DecoderSpec, PipelineError> {
    let mut table = read_config(config)?;
    let loaded = Tokenizer::load(tokenizer, None).map_err(PipelineError::data("init"))?;
    let absent = |value: Option<&Value>| value.is_none_or(Value::is_null);
    if absent(table.0.get("vocab_size")) {
        table
            .0
            .insert("vocab_size".to_owned(), loaded.vocab_size().into());
    }
    if let (true, Some(id)) = (absent(table.0.get("eos_token_id")), loaded.eos_id()) {
        table.0.insert("eos_token_id".to_owned(), id.into());
    }
    let plan = StudentPlan::new(config.to_owned());
    let (name, adapter) = adapter_of(&plan, &table, registry)?;
    let spec = adapter
        .decoder(&table)
        .map_err(|source| PipelineError::Component {
            component: format!("{}: model adapter {name:?}", config.display()),
            source,
        })?;
    loaded
        .expect_fits(spec.vocab)
        .map_err(PipelineError::data("init"))?;
    let error = PipelineError::engine("init");
    let params = init_params(&spec, seed, &Device::Cpu, DType::F32).map_err(&error)?;
    checkpoint::create(out, &params, &table.0, tokenizer).map_err(&error)?;
    Ok(spec)
}

/// What an adapter says to the options in the plan's table `table`, under the key it is about.
fn refused(table: &str, adapter: &str) -> impl Fn(ComponentError) -> PipelineError {
    move |error| {
        let (key, message) = match &error {
            ComponentError::Options { key, message } if !key.is_empty() => {
                (format!("{table}.{key}"), message.clone())
            }
            _ => (table.to_owned(), error.to_string()),
        };
        PipelineError::plan(key, format!("{message} (model adapter {adapter:?})"))
    }
}

/// Whether `folder` holds a PEFT adapter and not a whole model.
pub fn is_adapter(folder: &Path) -> bool {
    folder.join("adapter_config.json").is_file()
}

pub(crate) fn read_config(path: &Path) -> Result<HfConfig, PipelineError> {
    let refuse = |message: String| PipelineError::plan("student.path", message);
    let text = fs::read(path).map_err(|source| {
        refuse(format!(
            "{}: {source}; a model is a Hugging Face folder with config.json, tokenizer.json and \
             safetensors",
            path.display()
        ))
    })?;
    serde_json::from_slice(&text)
        .map(HfConfig)
        .map_err(|error| refuse(format!("{}: {error}", path.display())))
}

pub(crate) fn adapter_of(
    plan: &StudentPlan,
    config: &HfConfig,
    registry: &Registry,
) -> Result<(String, Box<dyn ModelAdapter>), PipelineError> {
    if !plan.adapter.is_empty() {
        let adapter = registry
            .adapter(&plan.adapter)
            .map_err(PipelineError::registry("student.adapter"))?;
        return Ok((plan.adapter.clone(), adapter));
    }
    let mut claiming = Vec::new();
    for registration in registry.of_kind(Kind::Adapter) {
        let adapter = registry
            .adapter(registration.name)
            .map_err(PipelineError::registry("student.adapter"))?;
        if adapter.claims(config) {
            claiming.push((registration.name.to_owned(), adapter));
        }
    }
    let names = |list: &[(String, Box<dyn ModelAdapter>)]| {
        let names: Vec<&str> = list.iter().map(|(name, _)| name.as_str()).collect();
        names.join(", ")
    };
    match claiming.len() {
        1 => Ok(claiming.remove(0)),
        0 => {
            let known: Vec<&str> = registry.of_kind(Kind::Adapter).map(|r| r.name).collect();
            Err(PipelineError::plan(
                "student.path",
                format!(
                    "{}: no model adapter knows the model type {:?}; known: {}",
                    plan.path.join("config.json").display(),
                    config.model_type().unwrap_or("(none)"),
                    known.join(", ")
                ),
            ))
        }
        _ => Err(PipelineError::plan(
            "student.adapter",
            format!(
                "several adapters claim {}: {}; name one of them",
                plan.path.join("config.json").display(),
                names(&claiming)
            ),
        )),
    }
}

/// Of the names and bytes of every safetensors file and of the configuration beside them.
fn fingerprint_weights(folder: &Path) -> Result<Fingerprint, PipelineError> {
    let io = |e| PipelineError::io(folder, "read", e);
    let mut names: Vec<String> = fs::read_dir(folder)
        .map_err(io)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| {
            name.ends_with(".safetensors")
                || ["config.json", "adapter_config.json"].contains(&name.as_str())
        })
        .collect();
    names.sort_unstable();
    if !names.iter().any(|name| name.ends_with(".safetensors")) {
        return Err(PipelineError::plan(
            "student.path",
            format!(
                "{}: no safetensors file; make a random student with `t3s init`",
                folder.display()
            ),
        ));
    }
    let mut parts = Vec::new();
    for name in names {
        let path = folder.join(&name);
        let fingerprint =
            Fingerprint::of_file(&path).map_err(|e| PipelineError::io(&path, "read", e))?;
        parts.push((name, fingerprint));
    }
    Ok(Fingerprint::of_json(&parts))
}
