//! What a row says: a conversation, or tokens.

use std::path::Path;

use serde_json::{Value, json};
use t3s_core::plan::{DataFormat, FieldNames};

use crate::{
    error::DataError,
    row::{Row, field, field_names, kind_of},
};

/// A row with the file it is from, to be read field by field.
#[derive(Debug, Clone, Copy)]
pub struct RowReader<'r> {
    /// The file.
    pub path: &'r Path,
    /// The row.
    pub row: &'r Row,
}

impl<'r> RowReader<'r> {
    /// An error about this row.
    pub fn error(&self, message: impl Into<String>) -> DataError {
        DataError::row(self.path, self.row.number, message)
    }

    /// The field `name`; a dot goes down. `null` counts as absent.
    pub fn field(&self, name: &str) -> Option<&'r Value> {
        field(&self.row.value, name).filter(|value| !value.is_null())
    }
}

/// A row, understood.
#[derive(Debug, Clone, PartialEq)]
pub enum Parsed {
    /// Messages in the order of the conversation, as a chat template reads them.
    Conversation {
        /// `{"role": ..., "content": ...}` and whatever else the row has.
        messages: Vec<Value>,
        /// The row's answer field.
        answer: Option<String>,
    },
    /// A row that is tokenised already.
    Tokens {
        /// Token ids.
        ids: Vec<u32>,
        /// How many of them are prompt.
        prompt_length: usize,
        /// Weights, one per id; the prompt's are not read.
        weights: Option<Vec<f32>>,
        /// What the model reads in place of the ids, one per id.
        noisy_ids: Option<Vec<u32>>,
        /// The row's answer field.
        answer: Option<String>,
    },
}

/// The format of a file whose first row is `row`.
///
/// # Errors
/// When its fields are those of no format; lists them.
pub fn detect(row: RowReader<'_>, fields: &FieldNames) -> Result<DataFormat, DataError> {
    for (field, format) in [
        ("messages", DataFormat::Messages),
        ("conversations", DataFormat::Sharegpt),
        ("input_ids", DataFormat::Tokenized),
        (fields.question.as_str(), DataFormat::QuestionAnswer),
    ] {
        if row.field(field).is_some() {
            return Ok(format);
        }
    }
    Err(row.error(format!(
        "the fields {} are those of no known format; expected messages, conversations, input_ids, \
         or {} (data.fields names others)",
        field_names(&row.row.value),
        fields.question
    )))
}

/// Reads `row` as `format`, which is not [`DataFormat::Auto`].
///
/// # Errors
/// When a field is missing or of another type; names it.
pub fn parse(
    row: RowReader<'_>,
    format: DataFormat,
    fields: &FieldNames,
) -> Result<Parsed, DataError> {
    let answer = answer(row, fields)?;
    match format {
        DataFormat::Messages | DataFormat::Auto => Ok(Parsed::Conversation {
            messages: messages(row)?,
            answer,
        }),
        DataFormat::Sharegpt => Ok(Parsed::Conversation {
            messages: conversations(row)?,
            answer,
        }),
        DataFormat::QuestionAnswer => {
            let mut messages = vec![json!({
                "role": "user",
                "content": text(row, &fields.question)?,
            })];
            // A row of problems to be solved has no trace.
            if row.field(&fields.response).is_some() {
                messages.push(json!({
                    "role": "assistant",
                    "content": text(row, &fields.response)?,
                }));
            }
            Ok(Parsed::Conversation { messages, answer })
        }
        DataFormat::Tokenized => tokens(row, answer),
    }
}

fn text<'r>(row: RowReader<'r>, field: &str) -> Result<&'r str, DataError> {
    match row.field(field) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(row.error(format!(
            "{field}: expected a text, found {}",
            kind_of(other)
        ))),
        None => Err(row.error(format!("has no field {field}, which should hold a text"))),
    }
}

/// The answer field as text. Numbers are answers too.
fn answer(row: RowReader<'_>, fields: &FieldNames) -> Result<Option<String>, DataError> {
    if fields.answer.is_empty() {
        return Ok(None);
    }
    match row.field(&fields.answer) {
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Number(number)) => Ok(Some(number.to_string())),
        Some(other) => Err(row.error(format!(
            "{}: expected a text or a number, found {}",
            fields.answer,
            kind_of(other)
        ))),
        // A name that the plan writes down is meant; the default one may be absent.
        None if fields.answer != FieldNames::default().answer => Err(row.error(format!(
            "has no field {}, where data.fields.answer says the gold answer is",
            fields.answer
        ))),
        None => Ok(None),
    }
}

fn messages(row: RowReader<'_>) -> Result<Vec<Value>, DataError> {
    let list = match row.field("messages") {
        Some(Value::Array(list)) if !list.is_empty() => list,
        Some(other) => {
            return Err(row.error(format!(
                "messages: expected a list with at least one message, found {}",
                kind_of(other)
            )));
        }
        None => return Err(row.error("has no field messages, which should hold a list")),
    };
    for (index, message) in list.iter().enumerate() {
        for field in ["role", "content"] {
            let value = message.get(field);
            // A message with tool calls may have no content.
            let absent = field == "content" && message.get("tool_calls").is_some();
            if !absent && !value.is_some_and(Value::is_string) {
                let found = value.map_or("nothing", kind_of);
                return Err(row.error(format!(
                    "messages.{index}.{field}: expected a text, found {found}"
                )));
            }
        }
    }
    Ok(list.clone())
}

fn conversations(row: RowReader<'_>) -> Result<Vec<Value>, DataError> {
    let Some(Value::Array(list)) = row.field("conversations") else {
        return Err(row.error("has no field conversations, which should hold a list"));
    };
    let mut messages = Vec::with_capacity(list.len() + 1);
    if let Some(Value::String(system)) = row.field("system") {
        messages.push(json!({ "role": "system", "content": system }));
    }
    for (index, turn) in list.iter().enumerate() {
        let field = |name: &str| turn.get(name).and_then(Value::as_str);
        let (Some(from), Some(value)) = (field("from"), field("value")) else {
            return Err(row.error(format!(
                "conversations.{index}: expected the texts from and value"
            )));
        };
        let role = match from {
            "human" | "user" => "user",
            "gpt" | "assistant" | "model" | "chatgpt" | "bing" | "bard" => "assistant",
            "system" => "system",
            "tool" | "observation" | "function_response" => "tool",
            other => {
                return Err(row.error(format!(
                    "conversations.{index}.from: unknown speaker {other:?}; known: human, gpt, \
                     system, tool"
                )));
            }
        };
        messages.push(json!({ "role": role, "content": value }));
    }
    if messages.is_empty() {
        return Err(row.error("conversations: an empty list"));
    }
    Ok(messages)
}

fn tokens(row: RowReader<'_>, answer: Option<String>) -> Result<Parsed, DataError> {
    let list = |field: &str| match row.field(field) {
        Some(Value::Array(list)) => Ok(Some(list)),
        Some(other) => Err(row.error(format!(
            "{field}: expected a list, found {}",
            kind_of(other)
        ))),
        None => Ok(None),
    };
    let token_ids = |field: &str| -> Result<Option<Vec<u32>>, DataError> {
        let Some(list) = list(field)? else {
            return Ok(None);
        };
        let id = |(index, id): (usize, &Value)| {
            let whole = id.as_u64().and_then(|id| u32::try_from(id).ok());
            whole.ok_or_else(|| row.error(format!("{field}.{index}: {id} is no token id")))
        };
        list.iter()
            .enumerate()
            .map(id)
            .collect::<Result<_, _>>()
            .map(Some)
    };
    let ids = token_ids("input_ids")?
        .ok_or_else(|| row.error("has no field input_ids, which should hold a list of ids"))?;
    let noisy_ids = token_ids("noisy_ids")?;
    if let Some(noisy) = &noisy_ids
        && noisy.len() != ids.len()
    {
        return Err(row.error(format!(
            "noisy_ids: {} for {} input_ids; write one per id",
            noisy.len(),
            ids.len()
        )));
    }
    let prompt_length = match row.field("prompt_length") {
        None => {
            return Err(row.error("has no field prompt_length: how many of input_ids are prompt"));
        }
        Some(n) => match n.as_u64() {
            Some(n) if n <= ids.len() as u64 => n as usize,
            _ => {
                return Err(row.error(format!("prompt_length: {n} of {} input_ids", ids.len())));
            }
        },
    };
    let weights = match list("weights")? {
        None => None,
        Some(list) if list.len() != ids.len() => {
            return Err(row.error(format!(
                "weights: {} for {} input_ids; write one per id",
                list.len(),
                ids.len()
            )));
        }
        Some(list) => Some(
            list.iter()
                .enumerate()
                .map(|(index, weight)| match weight.as_f64() {
                    Some(w) if w >= 0.0 && (w as f32).is_finite() => Ok(w as f32),
                    _ => Err(row.error(format!(
                        "weights.{index}: {weight} is no weight; write a number of at least 0"
                    ))),
                })
                .collect::<Result<_, _>>()?,
        ),
    };
    Ok(Parsed::Tokens {
        ids,
        prompt_length,
        weights,
        noisy_ids,
        answer,
    })
}
