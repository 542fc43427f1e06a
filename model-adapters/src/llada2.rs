//! LLaDA 2.0 (arXiv 2512.15745): block diffusion over a mixture of experts. Grouped-query attention
//! with RMSNorm over each query and key head, one matrix for queries, keys and values, rotary
//! positions over part of each head, first blocks dense. Keys and tensor names as the published
//! `LLaDA2MoeConfig` and `LLaDA2MoeModelLM` have them.

use serde_json::json;
use t3s_core::{
    ComponentError, DecodeRule, DecoderSpec, FamilyOptions, HfConfig, ModelAdapter, Objective,
    decoder_spec::{MlpSpec, MoeNames, MoeSpec, RopeSpec, StackedNames, TensorNames},
    register_adapter,
};

use crate::{
    config_keys::{ConfigKeys, wrong},
    diffusion_options::{BlockDecodeOptions, BlockObjectiveOptions, mask_option},
};

/// The adapter of `"model_type": "llada2_moe"` and `"llada2_moe_veomni"`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Llada2;

register_adapter!(
    "llada2",
    Llada2,
    "LLaDA 2.0 mixture-of-experts decoders: block diffusion, block-wise denoising"
);

/// The published models' mask token.
const MASK_ID: u32 = 156_895;

impl ModelAdapter for Llada2 {
    fn claims(&self, config: &HfConfig) -> bool {
        // The second is what dFactory calls the same model with stacked experts.
        ["llada2_moe", "llada2_moe_veomni"]
            .map(Some)
            .contains(&config.model_type())
    }

    fn decoder(&self, config: &HfConfig) -> Result<DecoderSpec, ComponentError> {
        let keys = ConfigKeys::new(config);
        let vocab = keys.count("vocab_size")?;
        let width = keys.count("hidden_size")?;
        let n_heads = keys.count("num_attention_heads")?;
        let n_kv_heads = keys.count_or("num_key_value_heads", n_heads)?;
        divides(
            "num_key_value_heads",
            n_kv_heads,
            "num_attention_heads",
            n_heads,
        )?;
        let head_dim = keys.count_or("head_dim", width / n_heads)?;
        refuse_switches(&keys)?;
        let mut eos_ids = keys.ids("eos_token_id", vocab)?;
        if eos_ids.is_empty() {
            // The published configs name the end token as padding only.
            eos_ids = keys.ids("pad_token_id", vocab)?;
        }
        // Written by tools beside the published keys; objective and decoding have it as an option.
        keys.ids("mask_token_id", vocab)?;
        let spec = DecoderSpec {
            spec_version: DecoderSpec::VERSION,
            vocab,
            width,
            n_layers: keys.count("num_hidden_layers")?,
            n_heads,
            n_kv_heads,
            head_dim,
            mlp: MlpSpec::Moe(Box::new(experts(&keys)?)),
            norm_eps: keys.positive_or("rms_norm_eps", 1e-6)?,
            rope: RopeSpec {
                theta: keys.positive_or("rope_theta", 10_000.0)?,
                rotary_dim: rotary_dim(&keys, head_dim)?,
            },
            qk_norm: keys.flag_or("use_qk_norm", true)?,
            qkv_bias: false,
            tied_head: keys.flag_or("tie_word_embeddings", false)?,
            max_positions: keys.count_or("max_position_embeddings", 16_384)?,
            initializer_range: keys.positive_or("initializer_range", 0.02)?,
            eos_ids,
            names: names(),
        };
        keys.finish()?;
        Ok(spec)
    }

    fn options(&self, config: &HfConfig) -> Result<FamilyOptions, ComponentError> {
        mask_option(config)
    }

    fn objective(&self, options: &toml::Table) -> Result<Box<dyn Objective>, ComponentError> {
        BlockObjectiveOptions::read(options, MASK_ID)
    }

    fn decode(&self, options: &toml::Table) -> Result<DecodeRule, ComponentError> {
        BlockDecodeOptions::read(options, MASK_ID)
    }
}

/// What changes the computation in a way that is not implemented.
fn refuse_switches(keys: &ConfigKeys<'_>) -> Result<(), ComponentError> {
    keys.only("hidden_act", json!("silu"))?;
    keys.only("use_bias", json!(false))?;
    keys.only("use_qkv_bias", json!(false))?;
    keys.only("use_rmsnorm", json!(true))?;
    keys.only("attention_dropout", json!(0.0))?;
    keys.only("embedding_dropout", json!(0.0))?;
    keys.only("output_dropout", json!(0.0))?;
    keys.only("use_sliding_window", json!(false))?;
    keys.only("norm_head", json!(false))?;
    keys.only("norm_softmax", json!(false))?;
    keys.only("using_split_qkv_in_self_attention", json!(false))?;
    keys.get("sliding_window");
    keys.get("max_window_layers");
    if let Some(scaling) = keys.get("rope_scaling") {
        return Err(wrong("rope_scaling", scaling, "null: unscaled positions"));
    }
    keys.only("router_dtype", json!("fp32"))?;
    keys.only("score_function", json!("sigmoid"))?;
    // Concerns what transformers returns, not what it computes.
    keys.get("output_router_logits");
    Ok(())
}

/// How many elements of a head are rotated: `rotary_dim`, `partial_rotary_factor`, or both, if they
/// agree.
fn rotary_dim(keys: &ConfigKeys<'_>, head_dim: usize) -> Result<usize, ComponentError> {
    let factor = keys.positive_or("partial_rotary_factor", 1.0)?;
    let by_factor = (head_dim as f64 * factor) as usize;
    let dim = match keys.get("partial_rotary_factor") {
        Some(_) => keys.count_or("rotary_dim", by_factor)?,
        None => keys.count_or("rotary_dim", head_dim)?,
    };
    if keys.get("partial_rotary_factor").is_some() && dim != by_factor {
        let accepted = format!("the same as partial_rotary_factor times head_dim ({by_factor})");
        return Err(wrong("rotary_dim", &json!(dim), &accepted));
    }
    if dim == 0 || dim > head_dim || !dim.is_multiple_of(2) {
        let accepted = format!("an even number up to head_dim ({head_dim})");
        return Err(wrong("rotary_dim", &json!(dim), &accepted));
    }
    Ok(dim)
}

fn experts(keys: &ConfigKeys<'_>) -> Result<MoeSpec, ComponentError> {
    let n_experts = keys.count("num_experts")?;
    let hidden = keys.count("moe_intermediate_size")?;
    let n_groups = keys.count_or("n_group", 1)?;
    divides("n_group", n_groups, "num_experts", n_experts)?;
    let n_groups_kept = keys.count_or("topk_group", n_groups)?;
    if n_groups_kept > n_groups {
        let accepted = format!("at most n_group ({n_groups})");
        return Err(wrong("topk_group", &json!(n_groups_kept), &accepted));
    }
    let n_chosen = keys.count("num_experts_per_tok")?;
    let most = n_groups_kept * (n_experts / n_groups);
    if n_chosen > most {
        let accepted = format!("at most the {most} experts of the groups kept");
        return Err(wrong("num_experts_per_tok", &json!(n_chosen), &accepted));
    }
    let n_shared = match keys.get("num_shared_experts") {
        None => 0,
        Some(value) if value.as_u64() == Some(0) => 0,
        Some(_) => keys.count("num_shared_experts")?,
    };
    let dense_layers = match keys.get("first_k_dense_replace") {
        None => 0,
        Some(value) if value.as_u64() == Some(0) => 0,
        Some(_) => keys.count("first_k_dense_replace")?,
    };
    if n_shared * hidden > DecoderSpec::LARGEST {
        let accepted = format!("experts of {} in all", DecoderSpec::LARGEST);
        return Err(wrong("num_shared_experts", &json!(n_shared), &accepted));
    }
    let has_bias = keys.flag_or("moe_router_enable_expert_bias", true)?;
    let mlp = |name: &str| format!("model.layers.{{layer}}.mlp.{name}");
    let expert = |name: &str| mlp(&format!("experts.{{expert}}.{name}_proj.weight"));
    let shared = |name: &str| mlp(&format!("shared_experts.{name}_proj.weight"));
    Ok(MoeSpec {
        dense_layers,
        dense_hidden: keys.count("intermediate_size")?,
        n_experts,
        n_chosen,
        hidden,
        shared_hidden: n_shared * hidden,
        n_groups,
        n_groups_kept,
        normalise: keys.flag_or("norm_topk_prob", true)?,
        scale: keys.positive_or("routed_scaling_factor", 1.0)?,
        names: MoeNames {
            router: mlp("gate.weight"),
            choice_bias: has_bias.then(|| mlp("gate.expert_bias")),
            gate: expert("gate"),
            up: expert("up"),
            down: expert("down"),
            shared_gate: shared("gate"),
            shared_up: shared("up"),
            shared_down: shared("down"),
            // As dFactory's converter writes them, for grouped products.
            stacked: Some(StackedNames {
                gate: mlp("experts.gate_proj"),
                up: mlp("experts.up_proj"),
                down: mlp("experts.down_proj"),
            }),
        },
    })
}

fn divides(
    key: &'static str,
    value: usize,
    other_key: &str,
    other: usize,
) -> Result<(), ComponentError> {
    match other.is_multiple_of(value) {
        true => Ok(()),
        false => Err(wrong(
            key,
            &json!(value),
            &format!("a divisor of {other_key} ({other})"),
        )),
    }
}

fn names() -> TensorNames {
    let block = |name: &str| format!("model.layers.{{layer}}.{name}.weight");
    let qkv = block("attention.query_key_value");
    TensorNames {
        embedding: "model.word_embeddings.weight".into(),
        final_norm: "model.norm.weight".into(),
        head: "lm_head.weight".into(),
        attention_norm: block("input_layernorm"),
        query: qkv.clone(),
        key: qkv.clone(),
        value: qkv,
        output: block("attention.dense"),
        query_norm: block("attention.query_layernorm"),
        key_norm: block("attention.key_layernorm"),
        mlp_norm: block("post_attention_layernorm"),
        gate: block("mlp.gate_proj"),
        up: block("mlp.up_proj"),
        down: block("mlp.down_proj"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// `config.json` of inclusionAI/LLaDA2.0-mini, its keys that describe the decoder.
    const MINI: &str = r#"{
        "architectures": ["LLaDA2MoeModelLM"], "model_type": "llada2_moe",
        "num_hidden_layers": 20, "hidden_size": 2048, "intermediate_size": 5120,
        "first_k_dense_replace": 1, "hidden_act": "silu", "max_position_embeddings": 16384,
        "moe_intermediate_size": 512, "norm_topk_prob": true, "num_experts_per_tok": 8,
        "num_attention_heads": 16, "num_experts": 256, "num_key_value_heads": 4,
        "rope_theta": 600000, "rope_scaling": null, "tie_word_embeddings": false,
        "use_bias": false, "use_rmsnorm": true, "rms_norm_eps": 1e-06, "head_dim": 128,
        "num_shared_experts": 1, "use_cache": true, "use_qkv_bias": false,
        "vocab_size": 157184, "rotary_dim": 64, "partial_rotary_factor": 0.5,
        "router_dtype": "fp32", "moe_router_enable_expert_bias": true,
        "routed_scaling_factor": 2.5, "n_group": 8, "topk_group": 4,
        "score_function": "sigmoid", "pad_token_id": 156892, "attention_dropout": 0.0,
        "embedding_dropout": 0.0, "output_dropout": 0.0, "initializer_range": 0.02,
        "output_router_logits": false, "torch_dtype": "bfloat16"
    }"#;

    fn config(changes: Value) -> HfConfig {
        let mut config: serde_json::Map<String, Value> = serde_json::from_str(MINI).expect("JSON");
        for (key, value) in changes.as_object().expect("an object") {
            config.insert(key.clone(), value.clone());
        }
        HfConfig(config)
    }

    #[test]
    fn it_keeps_the_laws() {
        let config = config(json!({}));
        t3s_core::laws::assert_adapter(|| Box::new(Llada2), &config);
    }

    #[test]
    fn the_mini_config_is_understood() {
        let config = config(json!({}));
        assert!(Llada2.claims(&config));
        let spec = Llada2.decoder(&config).expect("understood");
        assert_eq!((spec.head_dim, spec.rope.rotary_dim), (128, 64));
        assert!(spec.fused_qkv() && spec.qk_norm && !spec.tied_head);
        assert_eq!(spec.eos_ids, [156_892]);
        let MlpSpec::Moe(moe) = &spec.mlp else {
            panic!("{:?}", spec.mlp)
        };
        assert_eq!(
            (moe.n_experts, moe.n_chosen, moe.shared_hidden),
            (256, 8, 512)
        );
        // 16.26 billion, the sum over the published shapes.
        let n = spec.n_parameters();
        assert_eq!(n / 10_000_000, 1625, "{n}");
    }

    #[test]
    fn the_flash_config_is_understood() {
        let flash = json!({
            "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
            "intermediate_size": 9216, "moe_intermediate_size": 1024,
            // As dFactory has it.
            "model_type": "llada2_moe_veomni", "norm_head": false, "norm_softmax": false,
            "using_split_qkv_in_self_attention": false, "use_cache": false,
            "max_window_layers": 28, "use_sliding_window": false, "transformers_version": "4.52.3",
            "auto_map": { "AutoConfig": "configuration_llada2_moe.LLaDA2MoeConfig" },
        });
        assert!(Llada2.claims(&config(flash.clone())));
        let spec = Llada2.decoder(&config(flash)).expect("understood");
        assert_eq!(spec.n_parameters() / 1_000_000_000, 102);
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for (key, value) in [
            ("score_function", json!("softmax")),
            ("router_dtype", json!("bf16")),
            ("use_qkv_bias", json!(true)),
            ("use_bias", json!(true)),
            ("rope_scaling", json!({"type": "yarn"})),
            ("n_group", json!(7)),
            ("topk_group", json!(9)),
            ("num_experts_per_tok", json!(200)),
            ("rotary_dim", json!(32)),
            ("num_key_value_heads", json!(5)),
            ("hidden_act", json!("gelu")),
            ("num_nextn_predict_layers", json!(1)),
            ("mask_token_id", json!(157_184)),
        ] {
            match Llada2.decoder(&config(json!({ key: value }))) {
                Err(ComponentError::Config { key: found, .. }) => assert_eq!(found, key),
                other => panic!("{key}: {other:?}"),
            }
        }
    }

    #[test]
    fn the_adapter_is_registered() {
        let registry = t3s_core::registry::Registry::linked().expect("no clash");
        assert!(registry.adapter("llada2").is_ok());
    }
}
