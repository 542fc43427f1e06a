//! A small tokenizer with the special tokens of several families, and a folder to put things in.

use std::{fs, path::PathBuf};

use serde_json::json;
use t3s_core::{Corpus, plan::DataPlan};
use t3s_data::{DataError, Tokenizer, load_corpus};
use tempfile::TempDir;
use tokenizers::{
    AddedToken,
    models::{
        TrainerWrapper,
        bpe::{BPE, BpeTrainerBuilder},
    },
    pre_tokenizers::byte_level::ByteLevel,
};

pub const SPECIAL: [&str; 8] = [
    "<bos>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
];

pub struct Folder {
    pub folder: TempDir,
}

impl Folder {
    /// A folder with `tokenizer.json` and the chat template `template` of `tests/templates`.
    pub fn new(template: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut tokenizer = tokenizers::Tokenizer::new(BPE::default());
        tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
        tokenizer.with_decoder(Some(ByteLevel::new(false, true, true)));
        let special = SPECIAL.map(|token| AddedToken::from(token, true));
        let trainer = BpeTrainerBuilder::new()
            .vocab_size(400)
            .special_tokens(special.to_vec())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .show_progress(false)
            .build();
        let texts = [
            "What is two and two? It is four.\n\n",
            "user assistant model system\n",
        ];
        let texts = texts.iter().cycle().take(20).map(|t| (*t).to_owned());
        tokenizer
            .train(&mut TrainerWrapper::BpeTrainer(trainer), texts)
            .unwrap();
        // Added, but no special tokens: as in Qwen3's tokenizer.
        let think = ["<think>", "</think>"].map(|token| AddedToken::from(token, false));
        tokenizer.add_tokens(think).unwrap();
        let path = folder.path().join("tokenizer.json");
        tokenizer.save(path, false).unwrap();
        let config = json!({ "bos_token": { "content": "<bos>" }, "eos_token": "<|im_end|>" });
        fs::write(
            folder.path().join("tokenizer_config.json"),
            config.to_string(),
        )
        .unwrap();
        let source = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("tests/templates")
            .join(format!("{template}.jinja"));
        fs::copy(source, folder.path().join("chat_template.jinja")).unwrap();
        Self { folder }
    }

    pub fn tokenizer(&self) -> Tokenizer {
        Tokenizer::load(self.folder.path(), None).unwrap()
    }

    /// A plan whose data file `name` holds `text`.
    pub fn data(&self, name: &str, text: &str) -> DataPlan {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        DataPlan::new(path)
    }

    pub fn load(&self, plan: &DataPlan) -> Result<Corpus, DataError> {
        load_corpus(plan, &self.tokenizer(), 500, 1.0, &after_hash)
    }

    /// The error of loading `text`, without the folder's name.
    pub fn refused(&self, text: &str) -> String {
        let error = self.load(&self.data("d.jsonl", text)).unwrap_err();
        self.short(&error.to_string())
    }

    pub fn short(&self, message: &str) -> String {
        message.replace(&format!("{}/", self.folder.path().display()), "")
    }
}

/// The grader's rule `hash`.
pub fn after_hash(text: &str) -> Option<String> {
    let (_, answer) = text.rsplit_once("####")?;
    Some(answer.trim().to_owned())
}

/// Texts of the runs of tokens that are learnt, in order, and of everything.
pub fn learnt(tokenizer: &Tokenizer, ids: &[u32], trainable: &[bool]) -> (Vec<String>, String) {
    let mut runs: Vec<Vec<u32>> = Vec::new();
    let mut before = false;
    for (id, may) in ids.iter().zip(trainable) {
        if *may && !before {
            runs.push(Vec::new());
        }
        if *may {
            runs.last_mut().unwrap().push(*id);
        }
        before = *may;
    }
    let text = |ids: &[u32]| tokenizer.decode(ids, false).unwrap();
    (runs.iter().map(|run| text(run)).collect(), text(ids))
}
