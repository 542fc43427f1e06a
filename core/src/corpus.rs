//! Tokenised examples, and the data set they form.

use crate::Fingerprint;

/// One tokenised conversation.
///
/// *Mask* (may this token be trained on: response, not prompt) and *weight* (how much) are two
/// columns, never one. All columns are `[tokens]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Row number in the data file, from 0. Stays with the example through shuffling and packing.
    pub id: u64,
    /// Token ids.
    pub ids: Vec<u32>,
    /// The mask: may the token be a target.
    pub trainable: Vec<bool>,
    /// The token's weight as the data has it; where the data says nothing, the one that changes
    /// nothing ([`crate::Weighting::neutral`]).
    pub weights: Vec<f32>,
    /// What the model reads in place of `ids`, where the data fixes the corruption.
    pub noisy_ids: Option<Vec<u32>>,
    /// `ids[..prompt_len]` is what a model is given to generate its own answer.
    pub prompt_len: usize,
    /// The gold answer, where the data has one.
    pub answer: Option<String>,
}

impl Example {
    /// The number of tokens, prompt included.
    pub fn n_tokens(&self) -> usize {
        self.ids.len()
    }

    /// The number of tokens that may be trained on.
    pub fn n_trainable(&self) -> usize {
        self.trainable.iter().filter(|t| **t).count()
    }
}

/// A warning of the data stage with the rows it concerns.
#[derive(Debug, Clone, PartialEq)]
pub struct CorpusWarning {
    /// What happened, e.g. `"no trainable token left after truncation"`.
    pub what: String,
    /// Row numbers, from 0.
    pub rows: Vec<u64>,
}

/// What a token store has to agree with before it may be joined to a corpus.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CorpusHashes {
    /// Of the data file's bytes.
    pub data: Fingerprint,
    /// Of `tokenizer.json`.
    pub tokenizer: Fingerprint,
    /// Of the chat template's text.
    pub chat_template: Fingerprint,
    /// Of the token ids, masks and weights as they came out.
    pub tokens: Fingerprint,
}

/// A tokenised data set.
#[derive(Debug, Clone, PartialEq)]
pub struct Corpus {
    /// In the order of the file; rows that were dropped are missing.
    pub examples: Vec<Example>,
    /// What it was made from.
    pub hashes: CorpusHashes,
    /// Dropped, truncated and otherwise odd rows, by kind.
    pub warnings: Vec<CorpusWarning>,
}
