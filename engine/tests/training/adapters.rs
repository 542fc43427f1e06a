//! PEFT adapters: what is written is read back, what is more than plain LoRA is refused.

use std::{fs, path::PathBuf};

use candle_core::{DType, Device};
use serde_json::{Value, json};
use t3s_core::plan::{LoraPlan, TrainPlan};
use t3s_engine::{
    Decoder, EngineError, Trainer,
    checkpoint::{Wanted, load_adapter, load_decoder, read_tensors, save_params, write_tensors},
};
use tempfile::TempDir;

use crate::{
    model::{Shape, examples, tensor},
    setup::{gradients, lora_plan, one_pass, trainer, weights, write_config},
};

/// A base model on disk and an adapter of it that was trained for a few steps.
pub struct Adapted {
    folder: TempDir,
    pub trainer: Trainer,
}

impl Adapted {
    pub fn new(lora: LoraPlan) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let plan = TrainPlan {
            lora: Some(lora),
            ..TrainPlan::new(3, 3e-2)
        };
        let data = examples(&Shape::TINY, &[12, 9, 15], 8);
        let mut made = Self {
            trainer: trainer(&plan, data, 2),
            folder,
        };
        let like = made.folder.path().join("like");
        fs::create_dir(&like).unwrap();
        write_config(&like, true);
        save_params(&made.base(), &Shape::TINY.params(1), &like, usize::MAX).unwrap();
        while !made.trainer.is_done() {
            made.trainer.step().unwrap();
        }
        made.trainer
            .save_model(&made.adapter(), &made.base())
            .unwrap();
        made
    }

    pub fn base(&self) -> PathBuf {
        self.folder.path().join("base")
    }

    pub fn adapter(&self) -> PathBuf {
        self.folder.path().join("adapter")
    }

    pub fn load(&self) -> Result<Decoder, EngineError> {
        let spec = Shape::TINY.spec();
        load_adapter(
            &self.base(),
            &self.adapter(),
            &spec,
            &Device::Cpu,
            DType::F32,
        )
    }

    fn config(&self) -> Value {
        serde_json::from_slice(&fs::read(self.adapter().join("adapter_config.json")).unwrap())
            .unwrap()
    }

    fn write_config(&self, config: &Value) {
        let path = self.adapter().join("adapter_config.json");
        fs::write(path, config.to_string()).unwrap();
    }

    fn refused(&self, words: &[&str]) {
        let error = self.load().unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "{word:?} is not in {error:?}");
        }
    }
}

#[test]
fn an_adapter_is_loaded_as_it_was_saved() {
    for lora in [lora_plan(), LoraPlan::default()] {
        let adapted = Adapted::new(lora);
        let loaded = adapted.load().unwrap();
        let mut saved = weights(&adapted.trainer.decoder().params);
        let mut found = weights(&loaded.params);
        saved.sort_by(|a, b| a.0.cmp(&b.0));
        found.sort_by(|a, b| a.0.cmp(&b.0));
        assert!(saved == found);

        let data = examples(&Shape::TINY, &[16], 9);
        let how = one_pass(Default::default());
        let loss = |decoder: &Decoder| gradients(decoder, &data, &how).0.loss;
        assert_eq!(loss(&loaded), loss(adapted.trainer.decoder()));
        let base = load_decoder(&adapted.base(), &loaded.spec, &Device::Cpu, DType::F32).unwrap();
        assert!(
            (loss(&base) - loss(&loaded)).abs() > 1e-3,
            "it adapts nothing"
        );
    }
}

#[test]
fn what_is_more_than_plain_lora_is_refused() {
    let adapted = Adapted::new(lora_plan());
    let plain = adapted.config();
    for (key, value) in [
        ("use_dora", json!(true)),
        ("use_rslora", json!(true)),
        ("lora_bias", json!(true)),
        ("bias", json!("all")),
        ("rank_pattern", json!({ "q_proj": 2 })),
        ("alpha_pattern", json!({ "q_proj": 2 })),
        ("modules_to_save", json!(["lm_head"])),
        ("layers_to_transform", json!([0])),
        ("layer_replication", json!([[0, 2], [1, 3]])),
        ("trainable_token_indices", json!([1])),
        ("init_lora_weights", json!("pissa")),
        ("peft_type", json!("IA3")),
        ("target_modules", json!("all-linear")),
        ("target_modules", json!(["embed_tokens"])),
        ("r", json!(-1)),
        ("r", json!(0)),
        ("lora_alpha", Value::Null),
    ] {
        let mut config = plain.clone();
        config[key] = value;
        adapted.write_config(&config);
        let word = match key {
            "r" => "lora",
            "target_modules" => "target",
            key => key,
        };
        adapted.refused(&[word]);
    }
    // What peft writes beside, and what changes nothing.
    let mut config = plain;
    config["loftq_config"] = json!({});
    config["use_qalora"] = json!(false);
    config["init_lora_weights"] = json!("gaussian");
    config["lora_dropout"] = json!(0.05);
    config["layer_replication"] = Value::Null;
    adapted.write_config(&config);
    adapted.load().unwrap();
}

#[test]
fn an_adapter_whose_tensors_do_not_fit_is_refused() {
    let adapted = Adapted::new(lora_plan());
    let file = adapted.adapter().join("adapter_model.safetensors");
    let bytes = fs::read(&file).unwrap();
    for cut in (0..bytes.len()).step_by(211).chain([bytes.len() - 1]) {
        fs::write(&file, &bytes[..cut]).unwrap();
        adapted.refused(&["adapter_model.safetensors"]);
    }
    fs::write(&file, &bytes).unwrap();

    let name = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight";
    let plain = adapted.config();
    let mut config = plain.clone();
    config["r"] = json!(4);
    adapted.write_config(&config);
    adapted.refused(&["lora_A", "[3, 24]", "[4, 24]"]);
    config["r"] = json!(3);
    config["target_modules"] = json!(["q_proj", "down_proj", "v_proj"]);
    adapted.write_config(&config);
    adapted.refused(&["v_proj.lora_A", "missing"]);
    // Tensors that would silently not be used.
    config["target_modules"] = json!(["down_proj"]);
    adapted.write_config(&config);
    adapted.refused(&["q_proj.lora_A", "none of the adapter"]);

    adapted.write_config(&plain);
    adapted.load().unwrap();
    let only = tensor(vec![0.5; 72], &[3, 24]);
    write_tensors(&file, [(name.to_owned(), &only)]).unwrap();
    adapted.refused(&["missing"]);
    let wanted = Wanted {
        name: name.to_owned(),
        shape: vec![3, 24],
        dtype: DType::F32,
    };
    let read = read_tensors(&[file], &[wanted], &Device::Cpu).unwrap();
    assert_eq!(crate::model::values(&read[0]), [0.5; 72]);
    fs::remove_file(adapted.adapter().join("adapter_config.json")).unwrap();
    adapted.refused(&["adapter_config.json"]);
}
