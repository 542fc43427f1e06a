//! Trains a byte-level BPE tokenizer, and writes it as a Hugging Face folder with a ChatML template.

use std::path::Path;

use serde_json::json;
use t3s_core::atomic;
use tokenizers::{
    AddedToken, Tokenizer,
    decoders::byte_level::ByteLevel as ByteLevelDecoder,
    models::{
        TrainerWrapper,
        bpe::{BPE, BpeTrainerBuilder},
    },
    pre_tokenizers::{byte_level::ByteLevel, digits::Digits, sequence::Sequence},
};

use crate::error::DataError;

/// Begins a text, and pads.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Opens a message.
pub const MESSAGE_START: &str = "<|im_start|>";
/// Closes a message, and so ends an answer.
pub const MESSAGE_END: &str = "<|im_end|>";

/// ChatML: `<|im_start|>role\ncontent<|im_end|>\n` for each message.
pub const CHAT_TEMPLATE: &str = "\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
";

/// The fewest tokens: 256 bytes and the three special ones.
pub const SMALLEST_VOCAB: usize = 259;

/// Trains on `texts` to at most `vocab_size` tokens (special ones included) and writes
/// `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` into the folder `out`.
/// Digits are tokens of their own, so that numbers are read digit by digit. Returns the number of
/// tokens.
///
/// # Errors
/// When `vocab_size` is below [`SMALLEST_VOCAB`], there is no text, or nothing can be written.
pub fn train_bpe(
    texts: impl Iterator<Item = String> + Send,
    vocab_size: usize,
    out: &Path,
) -> Result<usize, DataError> {
    let failed = |message: String| DataError::file(out, message);
    if vocab_size < SMALLEST_VOCAB {
        return Err(failed(format!(
            "a vocabulary of {vocab_size} has no room for 256 bytes and 3 special tokens; write \
             at least {SMALLEST_VOCAB}"
        )));
    }
    let library = |e: tokenizers::Error| failed(e.to_string());
    let mut tokenizer = Tokenizer::new(BPE::default());
    let byte_level = ByteLevel::new(false, true, true);
    tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![
        Digits::new(true).into(),
        byte_level.into(),
    ])));
    tokenizer.with_decoder(Some(ByteLevelDecoder::new(false, true, true)));
    let special = [END_OF_TEXT, MESSAGE_START, MESSAGE_END];
    let trainer = BpeTrainerBuilder::new()
        .vocab_size(vocab_size)
        .min_frequency(2)
        .special_tokens(special.map(|t| AddedToken::from(t, true)).to_vec())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .show_progress(false)
        .build();
    let mut seen = false;
    let texts = texts.inspect(|_| seen = true);
    tokenizer
        .train(&mut TrainerWrapper::BpeTrainer(trainer), texts)
        .map_err(library)?;
    if !seen {
        return Err(failed("there is no text to train on".to_owned()));
    }
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": null,
        "eos_token": MESSAGE_END,
        "pad_token": END_OF_TEXT,
        "unk_token": null,
        "clean_up_tokenization_spaces": false,
        "add_bos_token": false,
        "model_max_length": 1_000_000,
        "chat_template": CHAT_TEMPLATE,
    });
    std::fs::create_dir_all(out).map_err(|source| DataError::read(out, source))?;
    let config = serde_json::to_vec_pretty(&config).expect("plain data is JSON");
    let text = tokenizer.to_string(true).map_err(library)?;
    atomic::write_bytes(&out.join("tokenizer.json"), text.as_bytes())?;
    atomic::write_bytes(&out.join("tokenizer_config.json"), &config)?;
    atomic::write_bytes(&out.join("chat_template.jinja"), CHAT_TEMPLATE.as_bytes())?;
    Ok(tokenizer.get_vocab_size(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts() -> impl Iterator<Item = String> + Send {
        (0..200).map(|i| format!("Start with {i}, add {}? Then I add them.", i * 7))
    }

    #[test]
    fn a_trained_tokenizer_gives_every_text_back() {
        let folder = tempfile::tempdir().unwrap();
        let n = train_bpe(texts(), 320, folder.path()).unwrap();
        assert!((SMALLEST_VOCAB..=320).contains(&n), "{n}");
        let tokenizer = Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
        for text in ["Start with 12, add 900?", "naïve π ≠ 3 \n\t x", "12345", ""] {
            let ids = tokenizer.encode(text, false).unwrap();
            assert_eq!(tokenizer.decode(ids.get_ids(), true).unwrap(), text);
        }
        let digits = tokenizer.encode("1234", false).unwrap();
        assert_eq!(digits.len(), 4, "{:?}", digits.get_tokens());
        let special = tokenizer
            .encode("<|im_start|>user<|im_end|>", false)
            .unwrap();
        assert_eq!(special.get_ids()[0], 1);
        assert_eq!(special.get_ids().last(), Some(&2));
    }

    #[test]
    fn training_is_a_function_of_the_texts() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for folder in [&a, &b] {
            train_bpe(texts(), 400, folder.path()).unwrap();
        }
        let read = |f: &tempfile::TempDir| std::fs::read(f.path().join("tokenizer.json")).unwrap();
        assert_eq!(read(&a), read(&b));
    }

    #[test]
    fn too_small_a_vocabulary_and_no_text_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let message = |e: DataError| e.to_string();
        let refused = message(train_bpe(texts(), 100, folder.path()).unwrap_err());
        assert!(refused.contains("259"), "{refused}");
        let refused = message(train_bpe(std::iter::empty(), 400, folder.path()).unwrap_err());
        assert!(refused.contains("no text"), "{refused}");
        assert!(!folder.path().join("tokenizer.json").exists());
    }
}
