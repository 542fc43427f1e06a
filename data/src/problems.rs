//! Problems to be solved, from the same row formats as traces.

use std::path::Path;

use t3s_core::plan::{DataFormat, FieldNames};

use crate::{
    corpus::{add_system, limited},
    error::DataError,
    formats::{Parsed, RowReader, detect, parse},
    response_mask::tokenize,
    tokenizer::Tokenizer,
};

/// A problem, and what it is graded against.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// Row number, from 0.
    pub id: u64,
    /// The problem as text: the last user message, or the decoded prompt of a tokenised row.
    pub prompt: String,
    /// What the model is given, generation prompt included.
    pub prompt_ids: Vec<u32>,
    /// The gold answer.
    pub answer: Option<String>,
}

/// Reads the problems in `path`. The assistant's last turn, where a row has one, is not part of the
/// problem: the gold answer may be found in it.
///
/// # Errors
/// As [`load_corpus`](crate::load_corpus).
pub fn load_problems(
    path: &Path,
    format: DataFormat,
    fields: &FieldNames,
    limit: usize,
    system: &str,
    tokenizer: &Tokenizer,
    extract_answer: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<Problem>, DataError> {
    let mut format = format;
    let mut problems = Vec::new();
    for row in limited(path, limit)? {
        let row = row?;
        let reader = RowReader { path, row: &row };
        if format == DataFormat::Auto {
            format = detect(reader, fields)?;
        }
        problems.push(match parse(reader, format, fields)? {
            Parsed::Conversation {
                mut messages,
                answer,
            } => {
                add_system(&mut messages, system);
                let last = messages.iter().rposition(|m| m["role"] == "assistant");
                let response = last.map(|at| messages.split_off(at).swap_remove(0));
                let response = response.as_ref().and_then(|m| m["content"].as_str());
                let question = messages.iter().rev().find(|m| m["role"] == "user");
                let question = question.and_then(|m| m["content"].as_str());
                Problem {
                    id: row.index,
                    prompt: question.unwrap_or_default().to_owned(),
                    prompt_ids: prompt_ids(&messages, tokenizer)?,
                    answer: gold_answer(answer.as_deref(), response, extract_answer),
                }
            }
            Parsed::Tokens {
                ids,
                prompt_length,
                answer,
                ..
            } => {
                let prompt_ids = ids[..prompt_length].to_vec();
                Problem {
                    id: row.index,
                    prompt: tokenizer.decode(&prompt_ids, true)?,
                    prompt_ids,
                    answer: gold_answer(answer.as_deref(), None, extract_answer),
                }
            }
        });
    }
    if problems.is_empty() {
        return Err(DataError::file(path, "the file has no rows"));
    }
    Ok(problems)
}

fn prompt_ids(
    messages: &[serde_json::Value],
    tokenizer: &Tokenizer,
) -> Result<Vec<u32>, DataError> {
    // Earlier assistant turns are context here, not something to be learnt.
    if messages.iter().any(|m| m["role"] == "assistant") {
        return tokenizer.encode(&tokenizer.template()?.render(messages, true)?);
    }
    Ok(tokenize(messages, tokenizer)?.ids)
}

/// The gold answer: in the answer field what the grader's rule finds, or else all of it; without
/// that field, what the rule finds in the response.
pub(crate) fn gold_answer(
    field: Option<&str>,
    response: Option<&str>,
    extract: &dyn Fn(&str) -> Option<String>,
) -> Option<String> {
    match field.map(str::trim).filter(|text| !text.is_empty()) {
        Some(text) => Some(extract(text).unwrap_or_else(|| text.to_owned())),
        None => extract(response?),
    }
}
