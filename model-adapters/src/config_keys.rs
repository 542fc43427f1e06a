//! Reads a `config.json` key by key and refuses what nobody asked for.

use std::{cell::RefCell, collections::BTreeSet};

use serde_json::Value;
use t3s_core::{ComponentError, DecoderSpec, HfConfig, registry::nearest};

/// Keys that transformers writes into every `config.json` and that change nothing about what a
/// decoder computes: bookkeeping, generation defaults, training-time switches of other code.
const WITHOUT_EFFECT: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "auto_map",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dtype",
    "id2label",
    "is_encoder_decoder",
    "label2id",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "use_cache",
];

/// The keys of a `config.json`, each asked for by name; [`ConfigKeys::finish`] refuses the rest, so
/// that a switch this program does not know can never be silently ignored.
pub struct ConfigKeys<'c> {
    config: &'c HfConfig,
    asked: RefCell<BTreeSet<&'static str>>,
}

impl<'c> ConfigKeys<'c> {
    /// The keys of `config`.
    pub fn new(config: &'c HfConfig) -> Self {
        Self {
            config,
            asked: RefCell::default(),
        }
    }

    /// The value of `key`; `null` counts as absent.
    pub fn get(&self, key: &'static str) -> Option<&'c Value> {
        self.asked.borrow_mut().insert(key);
        self.config.0.get(key).filter(|value| !value.is_null())
    }

    /// A count of at least 1, and at most [`DecoderSpec::LARGEST`].
    ///
    /// # Errors
    /// When it is missing or is none.
    pub fn count(&self, key: &'static str) -> Result<usize, ComponentError> {
        let accepted = format!("a whole number from 1 to {}", DecoderSpec::LARGEST);
        match self.get(key) {
            None => Err(missing(key, &accepted)),
            Some(value) => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
                Some(count) if (1..=DecoderSpec::LARGEST).contains(&count) => Ok(count),
                _ => Err(wrong(key, value, &accepted)),
            },
        }
    }

    /// A count of at least 1, or `default`.
    ///
    /// # Errors
    /// When it is there and no count.
    pub fn count_or(&self, key: &'static str, default: usize) -> Result<usize, ComponentError> {
        match self.get(key) {
            None => Ok(default),
            Some(_) => self.count(key),
        }
    }

    /// A number above 0, or `default`.
    ///
    /// # Errors
    /// When it is there and no such number.
    pub fn positive_or(&self, key: &'static str, default: f64) -> Result<f64, ComponentError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => positive(key, value),
        }
    }

    /// `true` or `false`, or `default`.
    ///
    /// # Errors
    /// When it is there and neither.
    pub fn flag_or(&self, key: &'static str, default: bool) -> Result<bool, ComponentError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| wrong(key, value, "true or false")),
        }
    }

    /// Refuses `key` unless it is absent or `accepted`.
    ///
    /// # Errors
    /// When it is something else; says what would be accepted.
    pub fn only(&self, key: &'static str, accepted: Value) -> Result<(), ComponentError> {
        match self.get(key) {
            Some(value) if !same(value, &accepted) => {
                Err(wrong(key, value, &format!("only {accepted}")))
            }
            _ => Ok(()),
        }
    }

    /// The ids at which generation stops: none, one or a list.
    ///
    /// # Errors
    /// When an id is no id, or outside the vocabulary of `vocab` ids.
    pub fn ids(&self, key: &'static str, vocab: usize) -> Result<Vec<u32>, ComponentError> {
        let one = |value: &Value| match value.as_u64().and_then(|id| u32::try_from(id).ok()) {
            Some(id) if (id as usize) < vocab => Ok(id),
            _ => Err(wrong(
                key,
                value,
                &format!("ids below vocab_size ({vocab})"),
            )),
        };
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(ids)) => ids.iter().map(one).collect(),
            Some(id) => Ok(vec![one(id)?]),
        }
    }

    /// Refuses every key that nobody asked for and that is not known to have no effect.
    ///
    /// # Errors
    /// Names the first such key, and the known key it may be a slip of.
    pub fn finish(self) -> Result<(), ComponentError> {
        let asked = self.asked.into_inner();
        let stranger = self.config.0.iter().find(|(key, value)| {
            !value.is_null()
                && !asked.contains(key.as_str())
                && !WITHOUT_EFFECT.contains(&key.as_str())
        });
        let Some((key, value)) = stranger else {
            return Ok(());
        };
        let known = asked.iter().copied().chain(WITHOUT_EFFECT.iter().copied());
        let hint = match nearest(key, known) {
            Some(name) => format!("; did you mean {name}?"),
            None => "; it may change what the model computes, so it is not ignored".to_owned(),
        };
        Err(ComponentError::config(
            key,
            format!("{value}: this adapter does not know the key{hint}"),
        ))
    }
}

/// A number above 0.
pub(crate) fn positive(key: &str, value: &Value) -> Result<f64, ComponentError> {
    match value.as_f64() {
        Some(number) if number > 0.0 && number.is_finite() => Ok(number),
        _ => Err(wrong(key, value, "a number above 0")),
    }
}

/// `value` was found at `key`; `accepted` says what is understood.
pub(crate) fn wrong(key: &str, value: &Value, accepted: &str) -> ComponentError {
    ComponentError::config(
        key,
        format!("found {value}; this adapter understands {accepted}"),
    )
}

fn missing(key: &str, accepted: &str) -> ComponentError {
    ComponentError::config(key, format!("missing; write {accepted}"))
}

/// Equal, with `0` and `0.0` one number.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}
