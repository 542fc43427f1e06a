//! Rows of a data file, whatever its kind.

use std::path::Path;

use serde_json::Value;

use crate::{error::DataError, jsonl::JsonlRows, parquet_rows::ParquetRows};

/// One row and where it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Which row it is, from 0, blank lines not counted.
    pub index: u64,
    /// Line of a JSONL file, row of a Parquet file, from 1.
    pub number: u64,
    /// What it holds.
    pub value: Value,
}

/// The rows of a file, one at a time; the whole file is never in memory.
pub enum Rows {
    /// One JSON object per line.
    Jsonl(JsonlRows),
    /// Columns become fields.
    Parquet(Box<ParquetRows>),
}

impl Rows {
    /// Opens `path`: Parquet when its name ends in `.parquet` or its first bytes are `PAR1`, one
    /// JSON object per line otherwise.
    ///
    /// # Errors
    /// When there is no such file, it is a folder, it is empty, or it is a broken Parquet file.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let found = std::fs::metadata(path).map_err(|e| DataError::read(path, e))?;
        if found.is_dir() {
            return Err(DataError::file(
                path,
                "is a folder; name a JSONL or Parquet file",
            ));
        }
        if found.len() == 0 {
            return Err(DataError::file(
                path,
                "the file is empty; expected one JSON object per line, or Parquet",
            ));
        }
        let named = path
            .extension()
            .is_some_and(|e| e.eq_ignore_ascii_case("parquet"));
        if named || starts_as_parquet(path)? {
            ParquetRows::open(path).map(|rows| Self::Parquet(Box::new(rows)))
        } else {
            JsonlRows::open(path).map(Self::Jsonl)
        }
    }
}

impl Iterator for Rows {
    type Item = Result<Row, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Jsonl(rows) => rows.next(),
            Self::Parquet(rows) => rows.next(),
        }
    }
}

fn starts_as_parquet(path: &Path) -> Result<bool, DataError> {
    use std::io::Read;
    let mut start = Vec::with_capacity(4);
    std::fs::File::open(path)
        .and_then(|file| file.take(4).read_to_end(&mut start))
        .map_err(|e| DataError::read(path, e))?;
    Ok(start == b"PAR1")
}

/// What a JSON value is, for messages.
pub(crate) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The field `path` of a row: a dot goes down, unless it is part of a name. Of several readings the
/// one with the longest first name counts.
pub(crate) fn field<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    if let Some(found) = value.get(path) {
        return Some(found);
    }
    path.rmatch_indices('.')
        .find_map(|(at, _)| field(value.get(&path[..at])?, &path[at + 1..]))
}

/// The names of a row's fields, for messages.
pub(crate) fn field_names(value: &Value) -> String {
    match value {
        Value::Object(fields) if fields.is_empty() => "none".to_owned(),
        Value::Object(fields) => fields
            .keys()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(", "),
        _ => "none".to_owned(),
    }
}
