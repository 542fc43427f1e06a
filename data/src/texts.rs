//! The texts of a file, for training a tokenizer.

use std::{fs, path::Path};

use serde_json::Value;

use crate::{
    error::DataError,
    row::{Rows, field},
};

/// Every text of `path`: the text values of its rows (only of `fields`, where some are named), or
/// the lines of a file that is neither `.jsonl` nor `.parquet`.
///
/// # Errors
/// When the file or a row cannot be read.
pub fn texts_of(path: &Path, fields: &[String]) -> Result<Vec<String>, DataError> {
    let rows = path
        .extension()
        .is_some_and(|e| e == "jsonl" || e == "parquet");
    if !rows {
        let text = fs::read_to_string(path).map_err(|source| DataError::read(path, source))?;
        return Ok(text.lines().map(str::to_owned).collect());
    }
    let mut texts = Vec::new();
    for row in Rows::open(path)? {
        let row = row?;
        if fields.is_empty() {
            collect(&row.value, &mut texts);
        }
        for name in fields {
            let value = field(&row.value, name)
                .ok_or_else(|| DataError::row(path, row.number, format!("has no field {name}")))?;
            collect(value, &mut texts);
        }
    }
    Ok(texts)
}

fn collect(value: &Value, texts: &mut Vec<String>) {
    match value {
        Value::String(text) => texts.push(text.clone()),
        Value::Array(list) => list.iter().for_each(|value| collect(value, texts)),
        Value::Object(fields) => fields.values().for_each(|value| collect(value, texts)),
        _ => {}
    }
}
