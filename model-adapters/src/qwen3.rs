//! Qwen3, dense (arXiv 2505.09388): grouped-query attention with RMSNorm over each query and key
//! head, rotary positions, SwiGLU, no biases. Keys and tensor names as transformers'
//! `Qwen3Config` and `Qwen3ForCausalLM` have them, in the spelling of its versions 4 and 5.

use serde_json::{Value, json};
use t3s_core::{
    ComponentError, DecodeRule, DecoderSpec, FamilyOptions, HfConfig, ModelAdapter, Objective,
    decoder_spec::{MlpSpec, RopeSpec, TensorNames},
    objective::NextToken,
    register_adapter,
    registry::read_options,
};

use crate::config_keys::{ConfigKeys, positive, wrong};

/// The adapter of `"model_type": "qwen3"`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Qwen3;

register_adapter!(
    "qwen3",
    Qwen3,
    "Qwen3 dense decoders, autoregressive: next-token loss, left-to-right decoding"
);

/// Neither the objective nor the decoding of an autoregressive family has options.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct NoOptions {}

impl ModelAdapter for Qwen3 {
    fn claims(&self, config: &HfConfig) -> bool {
        config.model_type() == Some("qwen3")
    }

    fn decoder(&self, config: &HfConfig) -> Result<DecoderSpec, ComponentError> {
        let keys = ConfigKeys::new(config);
        let vocab = keys.count("vocab_size")?;
        let width = keys.count("hidden_size")?;
        let n_layers = keys.count("num_hidden_layers")?;
        let n_heads = keys.count("num_attention_heads")?;
        let n_kv_heads = keys.count_or("num_key_value_heads", n_heads)?;
        if !n_heads.is_multiple_of(n_kv_heads) {
            return Err(wrong(
                "num_key_value_heads",
                &json!(n_kv_heads),
                &format!("a divisor of num_attention_heads ({n_heads})"),
            ));
        }
        // Qwen3Config's own default, whatever hidden_size says.
        let head_dim = keys.count_or("head_dim", 128)?;
        if !head_dim.is_multiple_of(2) {
            return Err(wrong("head_dim", &json!(head_dim), "an even number"));
        }
        keys.only("hidden_act", json!("silu"))?;
        keys.only("attention_bias", json!(false))?;
        keys.only("attention_dropout", json!(0.0))?;
        sliding_window(&keys, n_layers)?;
        let spec = DecoderSpec {
            spec_version: DecoderSpec::VERSION,
            vocab,
            width,
            n_layers,
            n_heads,
            n_kv_heads,
            head_dim,
            mlp: MlpSpec::SwiGlu {
                hidden: keys.count("intermediate_size")?,
            },
            norm_eps: keys.positive_or("rms_norm_eps", 1e-6)?,
            rope: RopeSpec {
                theta: rope_theta(&keys)?,
                rotary_dim: head_dim,
            },
            qk_norm: true,
            qkv_bias: false,
            tied_head: keys.flag_or("tie_word_embeddings", false)?,
            max_positions: keys.count_or("max_position_embeddings", 32_768)?,
            initializer_range: keys.positive_or("initializer_range", 0.02)?,
            eos_ids: keys.ids("eos_token_id", vocab)?,
            names: TensorNames::llama(),
        };
        keys.finish()?;
        Ok(spec)
    }

    fn options(&self, _: &HfConfig) -> Result<FamilyOptions, ComponentError> {
        Ok(FamilyOptions::default())
    }

    fn objective(&self, options: &toml::Table) -> Result<Box<dyn Objective>, ComponentError> {
        read_options::<NoOptions>(options)?;
        Ok(Box::new(NextToken))
    }

    fn decode(&self, options: &toml::Table) -> Result<DecodeRule, ComponentError> {
        read_options::<NoOptions>(options)?;
        Ok(DecodeRule::LeftToRight)
    }
}

/// Every layer attends to all that is before it. `sliding_window` and `max_window_layers` are
/// written by transformers even where `use_sliding_window` says that they are not used.
fn sliding_window(keys: &ConfigKeys<'_>, n_layers: usize) -> Result<(), ComponentError> {
    keys.only("use_sliding_window", json!(false))?;
    keys.get("sliding_window");
    keys.get("max_window_layers");
    let Some(value) = keys.get("layer_types") else {
        return Ok(());
    };
    let full = |kinds: &Vec<Value>| {
        kinds.len() == n_layers && kinds.iter().all(|kind| kind == "full_attention")
    };
    if value.as_array().is_some_and(full) {
        Ok(())
    } else {
        let accepted = format!("{n_layers} times \"full_attention\"");
        Err(wrong("layer_types", value, &accepted))
    }
}

/// The base of the inverse frequencies: `rope_theta` (transformers 4), `rope_parameters`
/// (transformers 5), or both, if they agree.
fn rope_theta(keys: &ConfigKeys<'_>) -> Result<f64, ComponentError> {
    if let Some(scaling) = keys.get("rope_scaling") {
        let kind = scaling.get("rope_type").or_else(|| scaling.get("type"));
        if kind != Some(&json!("default")) || scaling.as_object().is_none_or(|s| s.len() != 1) {
            return Err(wrong("rope_scaling", scaling, "null: unscaled positions"));
        }
    }
    let old = keys
        .get("rope_theta")
        .map(|value| positive("rope_theta", value))
        .transpose()?;
    let new = match keys.get("rope_parameters") {
        None => None,
        Some(Value::Object(parameters)) => {
            let mut theta = None;
            for (name, value) in parameters {
                match name.as_str() {
                    "rope_type" if value == "default" => {}
                    "partial_rotary_factor" if value.as_f64() == Some(1.0) => {}
                    "rope_theta" => theta = Some(positive("rope_parameters.rope_theta", value)?),
                    _ => {
                        return Err(wrong(
                            &format!("rope_parameters.{name}"),
                            value,
                            "rope_theta, and rope_type \"default\"",
                        ));
                    }
                }
            }
            theta
        }
        Some(value) => return Err(wrong("rope_parameters", value, "a table")),
    };
    match (old, new) {
        (Some(old), Some(new)) if old != new => Err(wrong(
            "rope_theta",
            &json!(old),
            &format!("the same as rope_parameters.rope_theta ({new})"),
        )),
        _ => Ok(new.or(old).unwrap_or(10_000.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `config.json` of Qwen/Qwen3-0.6B, as published (transformers 4.51).
    const QWEN3_0_6B: &str = r#"{
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": false,
        "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
        "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02,
        "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28,
        "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": null,
        "rope_theta": 1000000, "sliding_window": null, "tie_word_embeddings": true,
        "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": true,
        "use_sliding_window": false, "vocab_size": 151936
    }"#;

    fn config(changes: Value) -> HfConfig {
        let mut config: serde_json::Map<String, Value> =
            serde_json::from_str(QWEN3_0_6B).expect("JSON");
        for (key, value) in changes.as_object().expect("an object") {
            match value {
                Value::String(text) if text == "(absent)" => config.remove(key),
                _ => config.insert(key.clone(), value.clone()),
            };
        }
        HfConfig(config)
    }

    fn spec(changes: Value) -> DecoderSpec {
        let config = config(changes);
        assert!(Qwen3.claims(&config));
        Qwen3.decoder(&config).expect("understood")
    }

    fn refusal(changes: Value) -> (String, String) {
        match Qwen3.decoder(&config(changes)).expect_err("refused") {
            ComponentError::Config { key, message } => (key, message),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn it_keeps_the_laws() {
        let config = config(json!({}));
        t3s_core::laws::assert_adapter(|| Box::new(Qwen3), &config);
    }

    #[test]
    fn a_published_config_is_understood() {
        let spec = spec(json!({}));
        assert_eq!((spec.vocab, spec.width, spec.n_layers), (151_936, 1024, 28));
        assert_eq!((spec.n_heads, spec.n_kv_heads, spec.head_dim), (16, 8, 128));
        assert_eq!(spec.mlp, MlpSpec::SwiGlu { hidden: 3072 });
        assert_eq!((spec.norm_eps, spec.rope.theta), (1e-6, 1e6));
        assert_eq!(spec.rope.rotary_dim, 128);
        assert!(spec.tied_head && spec.qk_norm && !spec.qkv_bias);
        assert_eq!(spec.max_positions, 40_960);
        assert_eq!(spec.eos_ids, [151_645]);
        let query = TensorNames::at(&spec.names.query, 3);
        assert_eq!(query, "model.layers.3.self_attn.q_proj.weight");
    }

    #[test]
    fn both_spellings_of_rotary_positions_are_read() {
        let new = json!({
            "rope_theta": "(absent)", "rope_scaling": "(absent)",
            "rope_parameters": {"rope_theta": 5e6, "rope_type": "default"},
        });
        assert_eq!(spec(new).rope.theta, 5e6);
        let both = json!({ "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"} });
        assert_eq!(spec(both).rope.theta, 1e6);
        let other = json!({ "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"} });
        assert_eq!(refusal(other).0, "rope_theta");
        let yarn = json!({ "rope_scaling": {"rope_type": "yarn", "factor": 4.0} });
        assert_eq!(refusal(yarn).0, "rope_scaling");
        let yarn = json!({ "rope_parameters": {"rope_theta": 1e6, "rope_type": "yarn"} });
        assert_eq!(refusal(yarn).0, "rope_parameters.rope_type");
        let factor = json!({ "rope_parameters": {"rope_theta": 1e6, "factor": 2.0} });
        assert_eq!(refusal(factor).0, "rope_parameters.factor");
    }

    #[test]
    fn heads_may_be_tied_or_not_and_eos_a_list() {
        let spec = spec(json!({ "tie_word_embeddings": "(absent)", "eos_token_id": [1, 2] }));
        assert!(!spec.tied_head);
        assert_eq!(spec.eos_ids, [1, 2]);
        assert!(
            self::spec(json!({ "eos_token_id": null }))
                .eos_ids
                .is_empty()
        );
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for (key, value) in [
            ("attention_bias", json!(true)),
            ("attention_dropout", json!(0.1)),
            ("hidden_act", json!("gelu")),
            ("use_sliding_window", json!(true)),
            (
                "layer_types",
                json!(["full_attention", "sliding_attention"]),
            ),
            ("quantization_config", json!({"bits": 4})),
            ("num_experts", json!(8)),
            ("hidden_size", json!("1024")),
            ("hidden_size", json!(0)),
            ("num_hidden_layers", json!("(absent)")),
            ("num_key_value_heads", json!(3)),
            ("head_dim", json!(65)),
            ("rms_norm_eps", json!(-1.0)),
            ("eos_token_id", json!(151_936)),
            ("tie_word_embeddings", json!(1)),
        ] {
            let (found, message) = refusal(json!({ key: value.clone() }));
            assert_eq!(found, key, "{value}: {message}");
        }
        let (key, message) = refusal(json!({ "rms_norm_epsilon": 1e-5 }));
        assert_eq!(key, "rms_norm_epsilon");
        assert!(message.contains("did you mean rms_norm_eps?"), "{message}");
    }

    #[test]
    fn other_families_are_not_claimed() {
        assert!(!Qwen3.claims(&config(json!({ "model_type": "qwen3_moe" }))));
        assert!(!Qwen3.claims(&config(json!({ "model_type": "(absent)" }))));
    }

    #[test]
    fn there_are_no_options() {
        let options: toml::Table = "mask_id = 3".parse().expect("TOML");
        let refused = Qwen3.objective(&options).err().expect("refused");
        assert!(refused.to_string().contains("mask_id"), "{refused}");
        assert!(Qwen3.decode(&options).is_err());
        let none = toml::Table::new();
        assert!(Qwen3.objective(&none).is_ok());
        assert_eq!(Qwen3.decode(&none), Ok(DecodeRule::LeftToRight));
    }

    #[test]
    fn the_adapter_is_registered() {
        let registry = t3s_core::registry::Registry::linked().expect("no clash");
        assert!(registry.adapter("qwen3").is_ok());
    }
}
