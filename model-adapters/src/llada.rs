//! LLaDA, dense (arXiv 2502.09992): a Llama-like decoder without a causal mask. Keys and tensor names
//! as the published `LLaDAConfig` and `LLaDAModelLM` (block type "llama") have them.

use serde_json::json;
use t3s_core::{
    ComponentError, DecodeRule, DecoderSpec, FamilyOptions, HfConfig, ModelAdapter, Objective,
    decoder_spec::{MlpSpec, RopeSpec, TensorNames},
    register_adapter,
};

use crate::{
    config_keys::{ConfigKeys, wrong},
    diffusion_options::{BlockDecodeOptions, MaskedObjectiveOptions, mask_option},
};

/// The adapter of `"model_type": "llada"`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Llada;

register_adapter!(
    "llada",
    Llada,
    "LLaDA dense decoders: masked diffusion with full attention, low-confidence remasking"
);

/// The published models' mask token.
const MASK_ID: u32 = 126_336;

/// Keys that concern initialisation and speed of other code, never what is computed.
const WITHOUT_EFFECT: &[&str] = &[
    "alibi_bias_max",
    "block_group_size",
    "flash_attention",
    "init_cutoff_factor",
    "init_device",
    "init_fn",
    "mlp_ratio",
    "precision",
    "rope_full_precision",
];

impl ModelAdapter for Llada {
    fn claims(&self, config: &HfConfig) -> bool {
        config.model_type() == Some("llada")
    }

    fn decoder(&self, config: &HfConfig) -> Result<DecoderSpec, ComponentError> {
        let keys = ConfigKeys::new(config);
        refuse_switches(&keys)?;
        for key in WITHOUT_EFFECT {
            keys.get(key);
        }
        let ids = keys.count("vocab_size")?;
        let vocab = keys.count_or("embedding_size", ids)?;
        if vocab < ids {
            let accepted = format!("at least vocab_size ({ids})");
            return Err(wrong("embedding_size", &json!(vocab), &accepted));
        }
        let width = keys.count("d_model")?;
        let n_heads = keys.count("n_heads")?;
        let n_kv_heads = keys.count_or("n_kv_heads", n_heads)?;
        if !n_heads.is_multiple_of(n_kv_heads) {
            let accepted = format!("a divisor of n_heads ({n_heads})");
            return Err(wrong("n_kv_heads", &json!(n_kv_heads), &accepted));
        }
        if !width.is_multiple_of(2 * n_heads) {
            let accepted = format!("heads of an even width in d_model ({width})");
            return Err(wrong("n_heads", &json!(n_heads), &accepted));
        }
        keys.ids("mask_token_id", vocab)?;
        let spec = DecoderSpec {
            spec_version: DecoderSpec::VERSION,
            vocab,
            width,
            n_layers: keys.count("n_layers")?,
            n_heads,
            n_kv_heads,
            head_dim: width / n_heads,
            mlp: MlpSpec::SwiGlu {
                hidden: keys.count("mlp_hidden_size")?,
            },
            norm_eps: keys.positive_or("rms_norm_eps", 1e-5)?,
            rope: RopeSpec {
                theta: keys.positive_or("rope_theta", 10_000.0)?,
                rotary_dim: width / n_heads,
            },
            qk_norm: false,
            qkv_bias: false,
            tied_head: keys.flag_or("weight_tying", false)?,
            max_positions: keys.count_or("max_sequence_length", 4096)?,
            initializer_range: keys.positive_or("init_std", 0.02)?,
            eos_ids: keys.ids("eos_token_id", vocab)?,
            names: names(),
        };
        keys.finish()?;
        Ok(spec)
    }

    fn options(&self, config: &HfConfig) -> Result<FamilyOptions, ComponentError> {
        mask_option(config)
    }

    fn objective(&self, options: &toml::Table) -> Result<Box<dyn Objective>, ComponentError> {
        Ok(Box::new(MaskedObjectiveOptions::read(options, MASK_ID)?))
    }

    fn decode(&self, options: &toml::Table) -> Result<DecodeRule, ComponentError> {
        BlockDecodeOptions::bidirectional(options, MASK_ID)
    }
}

/// What changes the computation in a way that is not implemented.
fn refuse_switches(keys: &ConfigKeys<'_>) -> Result<(), ComponentError> {
    keys.only("activation_type", json!("silu"))?;
    keys.only("block_type", json!("llama"))?;
    keys.only("layer_norm_type", json!("rms"))?;
    keys.only("rope", json!(true))?;
    keys.only("layer_norm_with_affine", json!(true))?;
    for key in [
        "alibi",
        "attention_layer_norm",
        "bias_for_layer_norm",
        "include_bias",
        "include_qkv_bias",
        "input_emb_norm",
        "scale_logits",
    ] {
        keys.only(key, json!(false))?;
    }
    for key in ["attention_dropout", "embedding_dropout", "residual_dropout"] {
        keys.only(key, json!(0.0))?;
    }
    // Of norms that are refused above, and of a switch whose absence leaves n_kv_heads to say it.
    keys.get("attention_layer_norm_with_affine");
    keys.only("multi_query_attention", json!(false))
}

fn names() -> TensorNames {
    let block = |name: &str| format!("model.transformer.blocks.{{layer}}.{name}.weight");
    TensorNames {
        embedding: "model.transformer.wte.weight".into(),
        final_norm: "model.transformer.ln_f.weight".into(),
        head: "model.transformer.ff_out.weight".into(),
        attention_norm: block("attn_norm"),
        query: block("q_proj"),
        key: block("k_proj"),
        value: block("v_proj"),
        output: block("attn_out"),
        query_norm: block("q_norm"),
        key_norm: block("k_norm"),
        mlp_norm: block("ff_norm"),
        gate: block("ff_proj"),
        up: block("up_proj"),
        down: block("ff_out"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// `config.json` of GSAI-ML/LLaDA-8B-Base.
    const BASE: &str = r#"{
        "activation_type": "silu", "alibi": false, "alibi_bias_max": 8.0,
        "architectures": ["LLaDAModelLM"], "attention_dropout": 0.0,
        "attention_layer_norm": false, "attention_layer_norm_with_affine": true,
        "bias_for_layer_norm": false, "block_group_size": 1, "block_type": "llama",
        "d_model": 4096, "embedding_dropout": 0.0, "embedding_size": 126464,
        "eos_token_id": 126081, "flash_attention": false, "include_bias": false,
        "include_qkv_bias": false, "init_cutoff_factor": null, "init_device": "meta",
        "init_fn": "mitchell", "init_std": 0.02, "input_emb_norm": false,
        "layer_norm_type": "rms", "layer_norm_with_affine": true, "mask_token_id": 126336,
        "max_sequence_length": 4096, "mlp_hidden_size": 12288, "mlp_ratio": 4,
        "model_type": "llada", "multi_query_attention": null, "n_heads": 32,
        "n_kv_heads": 32, "n_layers": 32, "pad_token_id": 126081, "precision": "amp_bf16",
        "residual_dropout": 0.0, "rms_norm_eps": 1e-05, "rope": true,
        "rope_full_precision": true, "rope_theta": 500000.0, "scale_logits": false,
        "use_cache": false, "vocab_size": 126464, "weight_tying": false
    }"#;

    fn config(changes: Value) -> HfConfig {
        let mut config: serde_json::Map<String, Value> = serde_json::from_str(BASE).expect("JSON");
        for (key, value) in changes.as_object().expect("an object") {
            config.insert(key.clone(), value.clone());
        }
        HfConfig(config)
    }

    #[test]
    fn it_keeps_the_laws() {
        let config = config(json!({}));
        t3s_core::laws::assert_adapter(|| Box::new(Llada), &config);
    }

    #[test]
    fn the_published_config_is_understood() {
        let config = config(json!({}));
        assert!(Llada.claims(&config));
        let spec = Llada.decoder(&config).expect("understood");
        assert_eq!((spec.head_dim, spec.rope.theta), (128, 5e5));
        // 8.02 billion.
        assert_eq!(spec.n_parameters() / 10_000_000, 801);
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for (key, value) in [
            ("block_type", json!("sequential")),
            ("alibi", json!(true)),
            ("include_bias", json!(true)),
            ("rope", json!(false)),
            ("multi_query_attention", json!(true)),
            ("n_kv_heads", json!(5)),
            ("embedding_size", json!(100)),
            ("clip_qkv", json!(8.0)),
        ] {
            match Llada.decoder(&config(json!({ key: value }))) {
                Err(ComponentError::Config { key: found, .. }) => assert_eq!(found, key),
                other => panic!("{key}: {other:?}"),
            }
        }
    }

    #[test]
    fn the_decode_rule_is_the_schedule_alone() {
        let DecodeRule::Blocks(rule) = Llada.decode(&toml::Table::new()).expect("defaults") else {
            panic!("another rule")
        };
        assert!(rule.threshold > 1.0 && rule.mask_id == MASK_ID);
        assert!(Llada.objective(&toml::Table::new()).is_ok());
    }
}
