//! An example plugin: Llama (arXiv 2407.21783), Llama 3 and its like, as a model adapter. Keys and
//! tensor names as transformers' `LlamaConfig` and `LlamaForCausalLM` have them.
//!
//! An adapter is data: geometry, tensor names, objective, decode rule. What it cannot say in them,
//! it refuses by the name of the key: here the scaled rotary positions of Llama 3.1 and later.

use serde_json::Value;
use t3s_plugin::{
    ComponentError, DecodeRule, DecoderSpec, FamilyOptions, HfConfig, ModelAdapter, Objective,
    decoder_spec::{MlpSpec, RopeSpec, TensorNames},
    objective::NextToken,
    read_options, register_adapter, toml,
};

/// The adapter of `"model_type": "llama"`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Llama;

register_adapter!(
    "llama",
    Llama,
    "Llama dense decoders without scaled positions, autoregressive"
);

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct NoOptions {}

/// Keys that do not change what the model computes in training, or are read elsewhere.
const INERT: [&str; 18] = [
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "dtype",
    "model_type",
    "pad_token_id",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "chunk_size_feed_forward",
    "id2label",
    "label2id",
    "is_encoder_decoder",
    "problem_type",
    "_attn_implementation",
];

/// Keys that have to say this, where they are there.
const ONLY: [(&str, &str); 6] = [
    ("attention_bias", "false"),
    ("attention_dropout", "0.0"),
    ("hidden_act", "\"silu\""),
    ("mlp_bias", "false"),
    ("pretraining_tp", "1"),
    ("rope_scaling", "null"),
];

/// Keys that [`Llama::decoder`] reads.
const READ: [&str; 14] = [
    "eos_token_id",
    "head_dim",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_parameters",
    "rope_theta",
    "tie_word_embeddings",
    "vocab_size",
];

struct Keys<'c>(&'c HfConfig);

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.0.0.get(key).filter(|value| !value.is_null())
    }

    /// A count above zero; `default` where it is absent, `None` for a key that must be there.
    fn count(&self, key: &str, default: Option<usize>) -> Result<usize, ComponentError> {
        let found = self.get(key);
        let count = match found {
            None => default,
            Some(value) => value.as_u64().and_then(|n| usize::try_from(n).ok()),
        };
        count
            .filter(|n| (1..=DecoderSpec::LARGEST).contains(n))
            .ok_or_else(|| refused(key, found, "a whole number above 0, of a decoder's size"))
    }

    fn number(&self, key: &str, default: f64) -> Result<f64, ComponentError> {
        positive(key, self.get(key), default)
    }

    /// Refuses keys that nobody reads, and values that this adapter does not know.
    fn strict(&self) -> Result<(), ComponentError> {
        for (key, value) in &self.0.0 {
            let known = INERT.contains(&key.as_str()) || READ.contains(&key.as_str());
            if let Some((_, only)) = ONLY.iter().find(|(name, _)| name == key) {
                let text = value.to_string();
                let same = text == *only
                    || value.is_null()
                    || (*only == "0.0" && value.as_f64() == Some(0.0));
                if !same {
                    return Err(refused(key, Some(value), only));
                }
            } else if !known && !value.is_null() {
                return Err(refused(key, Some(value), "a Llama config without this key"));
            }
        }
        Ok(())
    }

    /// The base of the inverse frequencies: `rope_theta` (transformers 4), or in `rope_parameters`
    /// (transformers 5).
    fn theta(&self) -> Result<f64, ComponentError> {
        let Some(parameters) = self.get("rope_parameters") else {
            return self.number("rope_theta", 10_000.0);
        };
        let Some(pairs) = parameters.as_object() else {
            return Err(refused("rope_parameters", Some(parameters), "a table"));
        };
        for (key, value) in pairs {
            let known = key == "rope_theta" || (key == "rope_type" && value == "default");
            if !known {
                let key = format!("rope_parameters.{key}");
                return Err(refused(&key, Some(value), "unscaled positions"));
            }
        }
        let theta = parameters.get("rope_theta");
        let theta = positive("rope_parameters.rope_theta", theta, 10_000.0)?;
        if self.number("rope_theta", theta)? != theta {
            let found = self.get("rope_theta");
            return Err(refused("rope_theta", found, "rope_parameters.rope_theta"));
        }
        Ok(theta)
    }

    fn eos(&self, vocab: usize) -> Result<Vec<u32>, ComponentError> {
        let key = "eos_token_id";
        let id = |value: &Value| {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            id.filter(|id| (*id as usize) < vocab).ok_or_else(|| {
                let accepted = format!("a token id below vocab_size ({vocab}), or a list of them");
                refused(key, Some(value), &accepted)
            })
        };
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(ids)) => ids.iter().map(id).collect(),
            Some(value) => Ok(vec![id(value)?]),
        }
    }
}

fn positive(key: &str, value: Option<&Value>, default: f64) -> Result<f64, ComponentError> {
    let number = value.map_or(Some(default), Value::as_f64);
    number
        .filter(|n| n.is_finite() && *n > 0.0)
        .ok_or_else(|| refused(key, value, "a number above 0"))
}

fn refused(key: &str, found: Option<&Value>, accepted: &str) -> ComponentError {
    let found = found.map_or_else(|| "nothing".to_owned(), Value::to_string);
    ComponentError::config(key, format!("found {found}; expected {accepted}"))
}

impl ModelAdapter for Llama {
    fn claims(&self, config: &HfConfig) -> bool {
        config.model_type() == Some("llama")
    }

    fn decoder(&self, config: &HfConfig) -> Result<DecoderSpec, ComponentError> {
        let keys = Keys(config);
        keys.strict()?;
        let vocab = keys.count("vocab_size", None)?;
        let width = keys.count("hidden_size", None)?;
        let n_heads = keys.count("num_attention_heads", None)?;
        let n_kv_heads = keys.count("num_key_value_heads", Some(n_heads))?;
        let head_dim = keys.count("head_dim", Some(width / n_heads))?;
        if !n_heads.is_multiple_of(n_kv_heads) {
            let found = keys.get("num_key_value_heads");
            let accepted = format!("a divisor of num_attention_heads ({n_heads})");
            return Err(refused("num_key_value_heads", found, &accepted));
        }
        if !head_dim.is_multiple_of(2) {
            return Err(refused("head_dim", keys.get("head_dim"), "an even number"));
        }
        let tied = match keys.get("tie_word_embeddings") {
            None => false,
            Some(value) => value
                .as_bool()
                .ok_or_else(|| refused("tie_word_embeddings", Some(value), "true or false"))?,
        };
        Ok(DecoderSpec {
            spec_version: DecoderSpec::VERSION,
            vocab,
            width,
            n_layers: keys.count("num_hidden_layers", None)?,
            n_heads,
            n_kv_heads,
            head_dim,
            mlp: MlpSpec::SwiGlu {
                hidden: keys.count("intermediate_size", None)?,
            },
            norm_eps: keys.number("rms_norm_eps", 1e-6)?,
            rope: RopeSpec {
                theta: keys.theta()?,
                rotary_dim: head_dim,
            },
            qk_norm: false,
            qkv_bias: false,
            tied_head: tied,
            max_positions: keys.count("max_position_embeddings", Some(2048))?,
            initializer_range: keys.number("initializer_range", 0.02)?,
            eos_ids: keys.eos(vocab)?,
            names: TensorNames::llama(),
        })
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

#[cfg(test)]
mod tests {
    use t3s_plugin::laws;

    use super::*;

    #[test]
    fn it_keeps_the_laws() {
        let mut config = laws::generic_config("llama");
        laws::assert_adapter(|| Box::new(Llama), &config);
        // And as transformers 5 writes it.
        config.0.shift_remove("rope_theta");
        let rope = serde_json::json!({"rope_type": "default", "rope_theta": 5e5});
        config.0.insert("rope_parameters".to_owned(), rope);
        laws::assert_adapter(|| Box::new(Llama), &config);
    }
}
