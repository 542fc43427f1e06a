//! Each law of adapters catches an adapter that breaks it, and only it.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::{
    AttentionPattern, ComponentError, DecodeRule, DecoderSpec, ExampleBatch, HfConfig,
    ModelAdapter, ModelBatch, NO_TARGET, Objective,
    adapter::{BlockDecoding, DecodeAttention, EndTokens},
    decoder_spec::{MlpSpec, RopeSpec, TensorNames},
    objective::{Draw, NextToken, Weighting},
};

/// An adapter of the generic config, but for `fault`.
struct Family {
    fault: &'static str,
    asked: AtomicU32,
}

/// Over all instances: each asking differs from the one before.
static ASKED_OPTIONS: AtomicU32 = AtomicU32::new(0);

fn family(fault: &'static str) -> Box<dyn ModelAdapter> {
    Box::new(Family {
        fault,
        asked: AtomicU32::new(0),
    })
}

impl Family {
    fn count(&self, config: &HfConfig, key: &str) -> Result<usize, ComponentError> {
        let found = config.0.get(key);
        let count = found.and_then(serde_json::Value::as_u64);
        match count {
            Some(count) if (1..=1 << 24).contains(&count) => Ok(count as usize),
            _ if self.fault == "nameless" => Err(ComponentError::Failed("no number".to_owned())),
            _ if self.fault == "panics" => panic!("{found:?}"),
            _ => Err(ComponentError::config(
                key,
                "expected a whole number above 0",
            )),
        }
    }

    fn no_options(&self, options: &toml::Table) -> Result<(), ComponentError> {
        match options.keys().next() {
            Some(_) if self.fault == "any-option" => Ok(()),
            Some(_) if self.fault == "some-option" => {
                Err(ComponentError::Failed("bad options".to_owned()))
            }
            Some(key) => Err(ComponentError::option(key, "there are no options")),
            None => Ok(()),
        }
    }
}

impl ModelAdapter for Family {
    fn claims(&self, config: &HfConfig) -> bool {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        match self.fault {
            "claims-once" => asked == 0,
            "claims-all" => true,
            _ => config.model_type() == Some("family"),
        }
    }

    fn decoder(&self, config: &HfConfig) -> Result<DecoderSpec, ComponentError> {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        let count = |key| self.count(config, key);
        let (heads, kv) = (count("num_attention_heads")?, count("num_key_value_heads")?);
        if !heads.is_multiple_of(kv) && self.fault != "takes-kv" {
            let message = "no divisor of num_attention_heads";
            return Err(ComponentError::config("num_key_value_heads", message));
        }
        let head_dim = count("head_dim")?;
        if !head_dim.is_multiple_of(2) {
            return Err(ComponentError::config("head_dim", "odd"));
        }
        Ok(DecoderSpec {
            spec_version: DecoderSpec::VERSION,
            vocab: count("vocab_size")?,
            width: count("hidden_size")?,
            n_layers: count("num_hidden_layers")?,
            n_heads: heads,
            n_kv_heads: kv,
            head_dim,
            mlp: MlpSpec::SwiGlu {
                hidden: count("intermediate_size")?,
            },
            norm_eps: if self.fault == "spec" { 0.0 } else { 1e-6 },
            rope: RopeSpec {
                theta: 1e4
                    + if self.fault == "decoder" {
                        f64::from(asked)
                    } else {
                        0.0
                    },
                rotary_dim: head_dim,
            },
            qk_norm: false,
            qkv_bias: false,
            tied_head: false,
            max_positions: count("max_position_embeddings")?,
            initializer_range: 0.02,
            eos_ids: vec![],
            names: match self.fault {
                "names" => TensorNames {
                    up: "model.layers.{layer}.mlp.gate_proj.weight".into(),
                    ..TensorNames::llama()
                },
                _ => TensorNames::llama(),
            },
        })
    }

    fn options(&self, _: &HfConfig) -> Result<FamilyOptions, ComponentError> {
        let mut options = FamilyOptions::default();
        match self.fault {
            "options" if ASKED_OPTIONS.fetch_add(1, Ordering::Relaxed) % 2 == 1 => {
                options.decode.insert("steps".to_owned(), 3.into());
            }
            _ => {}
        }
        Ok(options)
    }

    fn objective(&self, options: &toml::Table) -> Result<Box<dyn Objective>, ComponentError> {
        self.no_options(options)?;
        Ok(Box::new(Rows {
            fault: self.fault,
            asked: AtomicU32::new(0),
        }))
    }

    fn decode(&self, options: &toml::Table) -> Result<DecodeRule, ComponentError> {
        self.no_options(options)?;
        let rule = BlockDecoding {
            mask_id: 7,
            block: 4,
            steps: 4,
            threshold: 0.9,
            end_tokens: EndTokens::Free,
            guidance: 0.0,
            attention: DecodeAttention::BlockCausal,
        };
        match self.fault {
            "block" => Ok(DecodeRule::Blocks(BlockDecoding { block: 0, ..rule })),
            "mask" => Ok(DecodeRule::Blocks(BlockDecoding {
                mask_id: 320,
                ..rule
            })),
            _ => Ok(DecodeRule::LeftToRight),
        }
    }
}

/// The next token, but for a fault.
struct Rows {
    fault: &'static str,
    asked: AtomicU32,
}

impl Objective for Rows {
    fn attention(&self) -> AttentionPattern {
        match self.fault {
            "attention" => AttentionPattern::BlockCausal { block: 0 },
            _ => AttentionPattern::Causal,
        }
    }

    fn weighting(&self) -> Weighting {
        Weighting::Loss
    }

    fn prepare(
        &self,
        batch: &ExampleBatch<'_>,
        draw: Draw,
        out: &mut ModelBatch,
    ) -> Result<(), ComponentError> {
        if self.fault == "refuses-none" && batch.ids.is_empty() {
            return Err(ComponentError::Failed("no tokens".to_owned()));
        }
        NextToken.prepare(batch, draw, out)?;
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        let prompt = batch.trainable.iter().position(|trainable| !trainable);
        let target = out
            .target_pos
            .iter()
            .position(|target| *target != NO_TARGET);
        match (self.fault, target, prompt) {
            ("weight", Some(row), _) => out.weights[row] = f32::NAN,
            ("outside", Some(row), _) => out.target_pos[row] = batch.ids.len() as u32,
            ("neighbour", Some(row), _) if batch.offsets.len() > 2 => {
                out.target_pos[row] = batch.offsets[1] + 3;
            }
            ("prompt-target", Some(row), Some(token)) => out.target_pos[row] = token as u32,
            ("prompt", _, Some(token)) => out.input_ids[token] ^= 1,
            ("vocabulary", Some(row), _) => out.input_ids[row] = 320,
            ("weightless", _, _) => {
                for (target, weight) in out.target_pos.iter().zip(&mut out.weights) {
                    *weight += f32::from(u8::from(*target == NO_TARGET));
                }
            }
            ("offsets", Some(_), _) => out.offsets[0] = 1,
            ("length", _, _) => out.weights.push(0.0),
            ("draws", Some(row), _) => out.weights[row] = asked as f32,
            _ => {}
        }
        Ok(())
    }
}

#[test]
fn a_lawful_adapter_passes() {
    assert_adapter(|| family(""), &generic_config("family"));
}

#[test]
fn each_law_of_adapters_catches_its_fault_and_no_other() {
    let config = generic_config("family");
    let options = FamilyOptions::default();
    for (fault, law) in [
        ("claims-once", "claims"),
        ("claims-all", "claims"),
        ("decoder", "decoder"),
        ("spec", "decoder"),
        ("names", "decoder"),
        ("options", "options"),
        ("nameless", "keys"),
        ("panics", "keys"),
        ("takes-kv", "keys"),
        ("any-option", "unknown-option"),
        ("some-option", "unknown-option"),
        ("block", "decode"),
        ("mask", "decode"),
        ("attention", "objective"),
        ("refuses-none", "rows"),
        ("weight", "rows"),
        ("outside", "rows"),
        ("neighbour", "rows"),
        ("prompt-target", "rows"),
        ("prompt", "rows"),
        ("vocabulary", "rows"),
        ("weightless", "rows"),
        ("offsets", "rows"),
        ("length", "rows"),
        ("draws", "draws"),
    ] {
        let make = || family(fault);
        let subject = adapter::Subject {
            make: &make,
            config: &config,
            options: &options,
        };
        let found = adapter::broken(&subject, false);
        let mut laws: Vec<&str> = found.iter().map(|broken| broken.law).collect();
        // Rows that no rule allows differ from themselves where they hold a NaN, and where examples
        // are refused the later law cannot ask.
        if ["weight", "refuses-none"].contains(&fault) {
            laws.retain(|law| *law != "draws");
        }
        // Options that come and go are refused where they are there.
        if fault == "options" {
            laws.truncate(1);
        }
        assert_eq!(laws, [law], "{fault}: {found:#?}");
    }
}

#[test]
fn the_input_of_a_broken_law_is_shown() {
    let broken = |fault| {
        let config = generic_config("family");
        adapter(|| family(fault), &config, &FamilyOptions::default()).unwrap_err()
    };
    assert_eq!(
        broken("takes-kv").to_string(),
        "law \"keys\" is broken: taken, but the decoder's n_kv_heads is 2, no divisor of n_heads \
         (1)\nsmallest input found:\nthe config with \"num_attention_heads\": 1"
    );
    let rows = broken("prompt").to_string();
    assert!(rows.contains("in place of the prompt's"), "{rows}");
    assert!(
        rows.contains("\nexample 3, position 0, prompt: id "),
        "{rows}"
    );
}
