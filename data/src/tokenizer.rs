//! A Hugging Face tokenizer and its chat template.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};
use t3s_core::Fingerprint;

use crate::{chat_template::ChatTemplate, error::DataError};

/// `tokenizer.json` and the chat template of a model folder.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    template: Option<ChatTemplate>,
    special: HashSet<u32>,
    eos: Option<u32>,
    vocab_size: usize,
    fingerprint: Fingerprint,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and the chat template in `folder`: `chat_template.jinja`, or
    /// `chat_template` in `tokenizer_config.json`; `chat_template_override` is a Jinja file used
    /// instead. A folder without a template will do for rows that are tokenised already.
    ///
    /// # Errors
    /// When a file cannot be read or is broken, or the template is not valid Jinja.
    pub fn load(folder: &Path, chat_template_override: Option<&Path>) -> Result<Self, DataError> {
        let path = folder.join("tokenizer.json");
        let bytes = fs::read(&path).map_err(|e| DataError::read(&path, e))?;
        let mut inner = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|e| {
            DataError::file(
                &path,
                format!("not a tokenizer that can be read ({e}); expected Hugging Face's format"),
            )
        })?;
        // A chat template writes its special tokens itself.
        inner.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
        inner
            .with_truncation(None)
            .map_err(|e| DataError::file(&path, e.to_string()))?;
        inner.with_padding(None);
        let config = Config::read(folder)?;
        let template = template(folder, &config, chat_template_override)?;
        let special = inner
            .get_added_tokens_decoder()
            .iter()
            .filter(|(_, token)| token.special)
            .map(|(id, _)| *id)
            .collect();
        let vocab_size = inner
            .get_vocab(true)
            .values()
            .max()
            .map_or(0, |id| *id as usize + 1);
        let eos = config
            .special_tokens
            .get("eos_token")
            .and_then(Value::as_str)
            .and_then(|token| inner.token_to_id(token));
        Ok(Self {
            inner,
            path,
            template,
            special,
            eos,
            vocab_size,
            fingerprint: Fingerprint::of_bytes(&bytes),
        })
    }

    /// The tokens of `text`. Special tokens written in it are recognised; none are added.
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|e| self.error(format!("cannot tokenise a text: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids`, without special tokens when `skip_special`.
    ///
    /// # Errors
    /// When the tokenizer's decoder refuses them.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, DataError> {
        self.inner
            .decode(ids, skip_special)
            .map_err(|e| self.error(format!("cannot decode tokens: {e}")))
    }

    /// The text that each of `ids` adds to what is before it: concatenated they are the decoded
    /// text. Where several tokens share a character (the bytes of an emoji), the last of them has it
    /// and the others have none; bytes that never come to a character are U+FFFD at their last token.
    ///
    /// # Errors
    /// When the tokenizer's decoder refuses them.
    pub fn pieces(&self, ids: &[u32]) -> Result<Vec<String>, DataError> {
        // Tokens that may share a character: no encoding needs more bytes for one.
        const LONGEST: usize = 4;
        let mut pieces = Vec::with_capacity(ids.len());
        // `start` is the first token whose text is not complete. It is decoded after the character
        // before it, since a decoder may strip the space of what comes first.
        let (mut context, mut start) = (0, 0);
        for end in 1..=ids.len() {
            let before = self.decode(&ids[context..start], false)?;
            let text = self.decode(&ids[context..end], false)?;
            let added = text.strip_prefix(before.as_str()).unwrap_or(&text);
            let open = added.ends_with('\u{FFFD}') && end - start < LONGEST && end < ids.len();
            if open {
                pieces.push(String::new());
            } else {
                pieces.push(added.to_owned());
                (context, start) = (start, end);
            }
        }
        Ok(pieces)
    }

    /// How the vocabulary spells the token `id`; the bytes of a byte-level one are letters there.
    pub fn spelling(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// One more than the largest token id.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of `eos_token`, where the tokenizer's configuration names one.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// Is `id` a special token, such as the end of a turn.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// The fingerprint of `tokenizer.json`.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint.clone()
    }

    /// The fingerprint of the chat template's text; of the empty text where there is none.
    pub fn template_fingerprint(&self) -> Fingerprint {
        self.template
            .as_ref()
            .map_or_else(|| Fingerprint::of_bytes(b""), |t| t.fingerprint().clone())
    }

    /// The chat template.
    ///
    /// # Errors
    /// When there is none.
    pub fn template(&self) -> Result<&ChatTemplate, DataError> {
        self.template.as_ref().ok_or_else(|| {
            self.error(
                "there is no chat template beside it; name a Jinja file in data.chat_template, or \
                 add chat_template.jinja",
            )
        })
    }

    /// Checks that every token id is below `vocab`.
    ///
    /// # Errors
    /// When one is not; names the largest.
    pub fn expect_fits(&self, vocab: usize) -> Result<(), DataError> {
        if self.vocab_size <= vocab {
            return Ok(());
        }
        let largest = self.vocab_size - 1;
        let token = self.inner.id_to_token(largest as u32).unwrap_or_default();
        Err(self.error(format!(
            "token {token:?} has id {largest}, but the model's vocabulary has {vocab} tokens \
             (vocab_size in config.json); use the tokenizer the model was made with"
        )))
    }

    fn error(&self, message: impl Into<String>) -> DataError {
        DataError::file(&self.path, message)
    }
}

/// What `tokenizer_config.json` and `special_tokens_map.json` say.
struct Config {
    path: PathBuf,
    template: Option<String>,
    special_tokens: Map<String, Value>,
}

impl Config {
    fn read(folder: &Path) -> Result<Self, DataError> {
        let path = folder.join("tokenizer_config.json");
        let config = read_object(&path)?;
        let map = read_object(&folder.join("special_tokens_map.json"))?;
        let mut special_tokens = Map::new();
        for (key, value) in map.iter().chain(&config) {
            // Either the text or {"content": text, "lstrip": ..., ...}.
            let text = value.as_str().or_else(|| value["content"].as_str());
            if let (true, Some(text)) = (key.ends_with("_token"), text) {
                special_tokens.insert(key.clone(), text.into());
            }
        }
        let template = match config.get("chat_template") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text.clone()),
            Some(Value::Array(named)) => Some(default_of(named, &path)?),
            Some(_) => {
                return Err(DataError::file(
                    &path,
                    "chat_template is neither text nor a list of named templates",
                ));
            }
        };
        Ok(Self {
            path,
            template,
            special_tokens,
        })
    }
}

/// Of several named templates, the one called `default`, or the only one.
fn default_of(named: &[Value], path: &Path) -> Result<String, DataError> {
    let text = |entry: &Value| entry["template"].as_str().map(str::to_owned);
    named
        .iter()
        .find(|entry| entry["name"] == "default")
        .or(named.first().filter(|_| named.len() == 1))
        .and_then(text)
        .ok_or_else(|| {
            let names: Vec<_> = named.iter().filter_map(|e| e["name"].as_str()).collect();
            DataError::file(
                path,
                format!(
                    "chat_template has no template named \"default\" (it has: {}); name a Jinja \
                     file in data.chat_template",
                    names.join(", ")
                ),
            )
        })
}

fn template(
    folder: &Path,
    config: &Config,
    instead: Option<&Path>,
) -> Result<Option<ChatTemplate>, DataError> {
    let beside = folder.join("chat_template.jinja");
    let (origin, source) = match instead {
        Some(path) => (path, Some(read_text(path)?)),
        None if beside.is_file() => (beside.as_path(), Some(read_text(&beside)?)),
        None => (config.path.as_path(), config.template.clone()),
    };
    source
        .map(|source| ChatTemplate::new(origin, &source, config.special_tokens.clone()))
        .transpose()
}

fn read_text(path: &Path) -> Result<String, DataError> {
    fs::read_to_string(path).map_err(|e| DataError::read(path, e))
}

/// The JSON object in `path`; empty when there is no such file.
fn read_object(path: &Path) -> Result<Map<String, Value>, DataError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(e) => return Err(DataError::read(path, e)),
    };
    serde_json::from_str(&text)
        .map_err(|e| DataError::file(path, format!("not a JSON object: {e}")))
}
