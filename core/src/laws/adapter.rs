//! The laws of model adapters.
//!
//! An adapter is asked about a `config.json` that it understands and about that file with one key
//! changed, and about small generated examples. Legal specs are those of [`DecoderSpec::check`].

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::{Value, json};

use super::{ASKED, Asked, Broken, prepared, said};
use crate::{
    ComponentError, DecodeRule, DecoderSpec, HfConfig, ModelAdapter, adapter::FamilyOptions,
};

/// What is held to the laws.
pub(super) struct Subject<'a> {
    pub make: &'a dyn Fn() -> Box<dyn ModelAdapter>,
    pub config: &'a HfConfig,
    /// What a plan would say in `[student.objective]` and `[student.decode]`.
    pub options: &'a FamilyOptions,
}

/// Why a law does not hold: the input, where it needs one, and what was expected and found.
pub(super) type Fault = (String, String);

type Check = fn(&Subject<'_>) -> Result<(), Fault>;

const LAWS: [(&str, Check); 9] = [
    ("claims", claims),
    ("decoder", decoder),
    ("options", options),
    ("keys", keys),
    ("unknown-option", unknown_option),
    ("decode", decode),
    ("objective", prepared::objective),
    ("rows", prepared::rows),
    ("draws", prepared::draws),
];

/// The laws that the adapters of `make` break; only the first if `stop`.
pub(super) fn broken(subject: &Subject<'_>, stop: bool) -> Vec<Broken> {
    let mut found = Vec::new();
    for (law, check) in LAWS {
        ASKED.set(Some(Asked {
            law: law.to_owned(),
            case: None,
        }));
        let answer = catch_unwind(AssertUnwindSafe(|| check(subject)));
        ASKED.set(None);
        let answer = answer.unwrap_or_else(|panic| {
            let message = format!("it panicked: {}", said(panic.as_ref()));
            Err((String::new(), message))
        });
        if let Err((input, message)) = answer {
            found.push(Broken {
                law,
                input,
                message,
            });
            // What the other laws say of an adapter that has no decoder means nothing.
            if stop || law == "decoder" {
                break;
            }
        }
    }
    found
}

/// A `config.json` as those of the Llama family are, whose `model_type` is `name`: for adapters
/// that come without one.
pub fn generic_config(name: &str) -> HfConfig {
    let config = json!({
        "model_type": name,
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": false,
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    });
    match config {
        Value::Object(config) => HfConfig(config),
        _ => HfConfig(serde_json::Map::new()),
    }
}

impl Subject<'_> {
    /// What the config decides, and before that what was given.
    pub fn all_options(&self) -> Result<FamilyOptions, Fault> {
        let refused = |error| fault("", format!("the config's options were refused: {error}"));
        let mut options = (self.make)().options(self.config).map_err(refused)?;
        options.objective.extend(self.options.objective.clone());
        options.decode.extend(self.options.decode.clone());
        Ok(options)
    }

    pub fn spec(&self) -> Result<DecoderSpec, Fault> {
        let refused = |error| fault("", format!("the config was refused: {error}"));
        (self.make)().decoder(self.config).map_err(refused)
    }
}

pub(super) fn fault(input: impl Into<String>, message: impl Into<String>) -> Fault {
    (input.into(), message.into())
}

/// It claims its own config, no empty one, and always the same.
fn claims(subject: &Subject<'_>) -> Result<(), Fault> {
    let adapter = (subject.make)();
    for (what, asked) in [
        ("", adapter.claims(subject.config)),
        (" when asked again", adapter.claims(subject.config)),
        (" when made again", (subject.make)().claims(subject.config)),
    ] {
        if !asked {
            return Err(fault("", format!("the config is not claimed{what}")));
        }
    }
    if adapter.claims(&HfConfig(serde_json::Map::new())) {
        return Err(fault("{}", "a config that says nothing is claimed"));
    }
    Ok(())
}

/// The config has one decoder, and a legal one.
fn decoder(subject: &Subject<'_>) -> Result<(), Fault> {
    let spec = subject.spec()?;
    spec.check().map_err(|error| fault("", error.to_string()))?;
    let adapter = (subject.make)();
    for what in ["", " again"] {
        let again = adapter.decoder(subject.config).ok();
        if again.as_ref() != Some(&spec) {
            let message = format!("asked{what}, {spec:?} became {again:?}");
            return Err(fault("", message));
        }
    }
    Ok(())
}

/// The config decides the same options, always.
fn options(subject: &Subject<'_>) -> Result<(), Fault> {
    let (options, again) = (subject.all_options()?, subject.all_options()?);
    match options == again {
        true => Ok(()),
        false => Err(fault("", format!("{options:?} became {again:?}"))),
    }
}

/// What every key is replaced with. Those of the second list may be of the key's own type.
const WRONG: [&str; 4] = ["\"no such value\"", "[[]]", "{\"no-such-key\": 1}", "-1"];
const ODD: [&str; 7] = [
    "0",
    "1",
    "3",
    "0.5",
    "true",
    "false",
    "18446744073709551615",
];

/// A config with one key less or another value has a legal decoder, or an error that names a key:
/// that key, where the value is of a wrong type.
fn keys(subject: &Subject<'_>) -> Result<(), Fault> {
    for key in subject.config.0.keys() {
        let mut without = subject.config.clone();
        without.0.shift_remove(key);
        changed(subject, key, &without, "without", true)?;
        for (texts, strict) in [(&WRONG[..], true), (&ODD[..], false)] {
            for text in texts {
                let value =
                    serde_json::from_str(text).map_err(|error| fault(*text, error.to_string()))?;
                let mut config = subject.config.clone();
                config.0.insert(key.clone(), value);
                changed(subject, key, &config, text, strict)?;
            }
        }
    }
    Ok(())
}

fn changed(
    subject: &Subject<'_>,
    key: &str,
    config: &HfConfig,
    text: &str,
    strict: bool,
) -> Result<(), Fault> {
    let input = match text {
        "without" => format!("the config without {key:?}"),
        text => format!("the config with {key:?}: {text}"),
    };
    let answer = catch_unwind(AssertUnwindSafe(|| {
        let adapter = (subject.make)();
        let spec = adapter.decoder(config)?;
        adapter.options(config)?;
        Ok(spec)
    }));
    let answer: Result<DecoderSpec, ComponentError> = answer.map_err(|panic| {
        let message = format!("it panicked: {}", said(panic.as_ref()));
        fault(input.clone(), message)
    })?;
    match answer {
        Ok(spec) => spec
            .check()
            .map_err(|error| fault(input, format!("taken, but {error}"))),
        Err(error) if names(&error, key) => Ok(()),
        // A good value of one key may make that of another a bad one.
        Err(error) if !strict && config.0.keys().any(|key| names(&error, key)) => Ok(()),
        Err(error) => Err(fault(
            input,
            format!("refused, but the error does not name the key: {error}"),
        )),
    }
}

/// Whether `error` is about `key`, by its key or as a word of its message.
fn names(error: &ComponentError, key: &str) -> bool {
    let message = error.to_string();
    let inside = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let mut words = message.split(|c| !inside(c));
    match error {
        ComponentError::Options { key: found, .. } | ComponentError::Config { key: found, .. }
            if found == key =>
        {
            true
        }
        _ => words.any(|word| word == key),
    }
}

/// Options that do not exist are refused by name.
fn unknown_option(subject: &Subject<'_>) -> Result<(), Fault> {
    const UNKNOWN: &str = "no-such-option";
    let adapter = (subject.make)();
    let with = |options: &toml::Table| {
        let mut options = options.clone();
        options.insert(UNKNOWN.to_owned(), toml::Value::Boolean(true));
        options
    };
    let options = subject.all_options()?;
    let objective = adapter.objective(&with(&options.objective)).err();
    let decode = adapter.decode(&with(&options.decode)).err();
    for (who, error) in [("objective", objective), ("decode rule", decode)] {
        match error {
            Some(error) if names(&error, UNKNOWN) => {}
            Some(error) => {
                let message = format!("the {who}'s refusal does not name it: {error}");
                return Err(fault(format!("{UNKNOWN} = true"), message));
            }
            None => {
                let message = format!(
                    "the {who} took an option that does not exist; write \
                     #[serde(deny_unknown_fields)]"
                );
                return Err(fault(format!("{UNKNOWN} = true"), message));
            }
        }
    }
    Ok(())
}

/// The options make one rule, which fills the vocabulary's positions in at least one step.
fn decode(subject: &Subject<'_>) -> Result<(), Fault> {
    let refused = |error| fault("", format!("the decode options were refused: {error}"));
    let adapter = (subject.make)();
    let options = subject.all_options()?.decode;
    let rule = adapter.decode(&options).map_err(refused)?;
    let again = adapter.decode(&options).map_err(refused)?;
    if again != rule {
        return Err(fault("", format!("{rule:?} became {again:?}")));
    }
    let DecodeRule::Blocks(blocks) = &rule else {
        return Ok(());
    };
    let vocab = subject.spec()?.vocab;
    let legal = blocks.block > 0
        && blocks.steps > 0
        && blocks.threshold >= 0.0
        && (blocks.mask_id as usize) < vocab;
    match legal {
        true => Ok(()),
        false => Err(fault(
            "",
            format!(
                "{blocks:?}: block and steps are at least 1, the threshold at least 0, and the \
                 mask is one of {vocab} ids"
            ),
        )),
    }
}
