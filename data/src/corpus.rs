//! From a data file to tokenised examples.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use t3s_core::{
    Corpus, Example, Fingerprint,
    corpus::{CorpusHashes, CorpusWarning},
    plan::{DataFormat, DataPlan, RowFilter, TooLong},
};

use crate::{
    error::DataError,
    formats::{Parsed, RowReader, detect, parse},
    problems::gold_answer,
    response_mask::{Tokenized, tokenize},
    row::{Row, Rows},
    tokenizer::Tokenizer,
};

const TRUNCATED: &str = "longer than data.max_tokens, cut off at the end";
const TOO_LONG: &str = "longer than data.max_tokens, left out";
const EMPTY_AFTER_CUT: &str = "no trainable token left after truncation, left out";
const EMPTY: &str = "no trainable token, left out";
const FILTERED: &str = "not what data.filter asks for, left out";
const REPEATED: &str = "the same tokens as an earlier row";
const BLANK: &str = "a blank response, of which only the end is learnt";
const NO_ANSWER: &str = "no gold answer";

/// Reads, templates, tokenises, masks and truncates the rows of `plan` for a model with `vocab` ids.
/// `neutral` is the weight of a token of which a row says nothing, `extract_answer` the grader's
/// rule that finds an answer in a text.
///
/// # Errors
/// Each names file and line: a row that is broken, of another format, with an id or a weight that is
/// none, too long where that is an error; and the file, when no example is left.
pub fn load_corpus(
    plan: &DataPlan,
    tokenizer: &Tokenizer,
    vocab: usize,
    neutral: f32,
    extract_answer: &dyn Fn(&str) -> Option<String>,
) -> Result<Corpus, DataError> {
    tokenizer.expect_fits(vocab)?;
    let path = plan.train.as_path();
    let data = Fingerprint::of_file(path).map_err(|source| DataError::read(path, source))?;
    let mut loading = Loading {
        plan,
        tokenizer,
        vocab,
        neutral,
        extract_answer,
        format: plan.format,
        examples: Vec::new(),
        warnings: BTreeMap::new(),
        seen: BTreeSet::new(),
        filter_field_seen: false,
    };
    for row in limited(path, plan.limit)? {
        loading.add(&row?)?;
    }
    loading.finish(data)
}

/// The first `limit` rows of `path`; 0: all.
pub(crate) fn limited(
    path: &Path,
    limit: usize,
) -> Result<impl Iterator<Item = Result<Row, DataError>>, DataError> {
    let limit = if limit == 0 { usize::MAX } else { limit };
    Ok(Rows::open(path)?.take(limit))
}

/// Whether `row` is one that `filter` asks for.
pub(crate) fn passes(row: RowReader<'_>, filter: Option<&RowFilter>) -> bool {
    filter.is_none_or(|filter| {
        let wanted = serde_json::to_value(&filter.equals).unwrap_or_default();
        row.field(&filter.field).is_some_and(|found| {
            // 1 and 1.0 are one number.
            match (found.as_f64(), wanted.as_f64()) {
                (Some(found), Some(wanted)) => found == wanted,
                _ => *found == wanted,
            }
        })
    })
}

struct Loading<'l> {
    plan: &'l DataPlan,
    tokenizer: &'l Tokenizer,
    vocab: usize,
    neutral: f32,
    extract_answer: &'l dyn Fn(&str) -> Option<String>,
    format: DataFormat,
    examples: Vec<Example>,
    warnings: BTreeMap<&'static str, Vec<u64>>,
    seen: BTreeSet<Fingerprint>,
    filter_field_seen: bool,
}

impl Loading<'_> {
    fn add(&mut self, row: &Row) -> Result<(), DataError> {
        let reader = RowReader {
            path: &self.plan.train,
            row,
        };
        if let Some(filter) = &self.plan.filter {
            self.filter_field_seen |= reader.field(&filter.field).is_some();
        }
        if !passes(reader, self.plan.filter.as_ref()) {
            self.warn(FILTERED, row.index);
            return Ok(());
        }
        if self.format == DataFormat::Auto {
            self.format = detect(reader, &self.plan.fields)?;
        }
        let mut example = match parse(reader, self.format, &self.plan.fields)? {
            Parsed::Conversation { messages, answer } => {
                self.conversation(reader, messages, answer)?
            }
            Parsed::Tokens {
                ids,
                prompt_length,
                weights,
                noisy_ids,
                answer,
            } => Example {
                id: row.index,
                trainable: (0..ids.len()).map(|i| i >= prompt_length).collect(),
                weights: weights.unwrap_or_else(|| vec![self.neutral; ids.len()]),
                noisy_ids,
                prompt_len: prompt_length,
                answer: answer.and_then(|a| gold_answer(Some(&a), None, self.extract_answer)),
                ids,
            },
        };
        let noisy = example.noisy_ids.iter().flatten();
        let mut ids = example.ids.iter().chain(noisy);
        if let Some(id) = ids.find(|id| **id as usize >= self.vocab) {
            return Err(reader.error(format!(
                "token id {id}, but the model's vocabulary ends at {}; the row was tokenised for \
                 another model",
                self.vocab
            )));
        }
        if !self.fit(&mut example, reader)? {
            return Ok(());
        }
        // The first token of a text has nothing before it that could predict it.
        if !example.trainable.iter().skip(1).any(|t| *t) {
            let cut = self.warnings.get(TRUNCATED).and_then(|rows| rows.last());
            let what = if cut == Some(&row.index) {
                EMPTY_AFTER_CUT
            } else {
                EMPTY
            };
            self.warn(what, row.index);
            return Ok(());
        }
        if !self.seen.insert(Fingerprint::of_json(&example.ids)) {
            self.warn(REPEATED, row.index);
        }
        if example.answer.is_none() {
            self.warn(NO_ANSWER, row.index);
        }
        self.examples.push(example);
        Ok(())
    }

    fn conversation(
        &mut self,
        row: RowReader<'_>,
        mut messages: Vec<serde_json::Value>,
        answer: Option<String>,
    ) -> Result<Example, DataError> {
        if messages.last().is_none_or(|m| m["role"] != "assistant")
            && !messages.iter().any(|m| m["role"] == "assistant")
        {
            return Err(row.error(
                "no assistant message, so there is nothing to learn from; a question-answer row \
                 needs the field that data.fields.response names",
            ));
        }
        add_system(&mut messages, &self.plan.system);
        let response = messages.iter().rev().find(|m| m["role"] == "assistant");
        let response = response.and_then(|m| m["content"].as_str());
        if response.is_some_and(|text| text.trim().is_empty()) {
            self.warn(BLANK, row.row.index);
        }
        let answer = gold_answer(answer.as_deref(), response, self.extract_answer);
        let Tokenized {
            ids,
            trainable,
            prompt_len,
        } = tokenize(&messages, self.tokenizer).map_err(|error| match error {
            DataError::Template { message, .. } => row.error(format!("chat template: {message}")),
            other => other,
        })?;
        Ok(Example {
            id: row.row.index,
            weights: vec![self.neutral; ids.len()],
            noisy_ids: None,
            ids,
            trainable,
            prompt_len,
            answer,
        })
    }

    /// Cuts off what is too long; false where the example is left out.
    fn fit(&mut self, example: &mut Example, row: RowReader<'_>) -> Result<bool, DataError> {
        let (n, most) = (example.n_tokens(), self.plan.max_tokens);
        if n <= most {
            return Ok(true);
        }
        match self.plan.too_long {
            TooLong::Error => Err(row.error(format!(
                "{n} tokens, more than data.max_tokens = {most}; raise it, or write \
                 data.too_long = \"truncate\" or \"drop\""
            ))),
            TooLong::Drop => {
                self.warn(TOO_LONG, example.id);
                Ok(false)
            }
            TooLong::Truncate => {
                self.warn(TRUNCATED, example.id);
                example.ids.truncate(most);
                example.trainable.truncate(most);
                example.weights.truncate(most);
                if let Some(noisy) = &mut example.noisy_ids {
                    noisy.truncate(most);
                }
                example.prompt_len = example.prompt_len.min(most);
                Ok(true)
            }
        }
    }

    fn warn(&mut self, what: &'static str, row: u64) {
        self.warnings.entry(what).or_default().push(row);
    }

    fn finish(mut self, data: Fingerprint) -> Result<Corpus, DataError> {
        let path = &self.plan.train;
        if let (Some(filter), false) = (&self.plan.filter, self.filter_field_seen) {
            let field = &filter.field;
            return Err(DataError::file(
                path,
                format!("no row has the field {field} that data.filter names"),
            ));
        }
        if self.examples.is_empty() {
            let reasons: Vec<String> = self
                .warnings
                .iter()
                .map(|(what, rows)| format!("{} rows: {what}", rows.len()))
                .collect();
            let message = match reasons.is_empty() {
                true => "the file has no rows".to_owned(),
                false => format!("no example is left ({})", reasons.join("; ")),
            };
            return Err(DataError::file(path, message));
        }
        // Where no row has an answer nobody expects one.
        if self.warnings.get(NO_ANSWER).map(Vec::len) == Some(self.examples.len()) {
            self.warnings.remove(NO_ANSWER);
        }
        let tokens: Vec<_> = self
            .examples
            .iter()
            .map(|e| (e.id, &e.ids, &e.trainable, &e.weights, &e.noisy_ids))
            .collect();
        let hashes = CorpusHashes {
            data,
            tokenizer: self.tokenizer.fingerprint().clone(),
            chat_template: self.tokenizer.template_fingerprint(),
            tokens: Fingerprint::of_json(&tokens),
        };
        let warnings = self.warnings.into_iter().map(|(what, rows)| CorpusWarning {
            what: what.to_owned(),
            rows,
        });
        Ok(Corpus {
            hashes,
            warnings: warnings.collect(),
            examples: self.examples,
        })
    }
}

/// Puts a system message before a conversation that has none.
pub(crate) fn add_system(messages: &mut Vec<serde_json::Value>, system: &str) {
    if !system.is_empty() && messages.first().is_none_or(|m| m["role"] != "system") {
        let message = serde_json::json!({ "role": "system", "content": system });
        messages.insert(0, message);
    }
}
