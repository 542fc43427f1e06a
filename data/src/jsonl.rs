//! One JSON object per line.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{
    error::DataError,
    row::{Row, kind_of},
};

/// The longest line that is read, bytes: a guard against a binary file or a single huge array.
const LONGEST_LINE: u64 = 1 << 28;

/// Rows of a JSONL file. Blank lines, CRLF and a byte-order mark are tolerated.
pub struct JsonlRows {
    path: PathBuf,
    reader: BufReader<File>,
    line: Vec<u8>,
    number: u64,
    index: u64,
    finished: bool,
}

impl JsonlRows {
    /// Opens `path`.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let file = File::open(path).map_err(|e| DataError::read(path, e))?;
        Ok(Self {
            path: path.to_owned(),
            reader: BufReader::with_capacity(1 << 16, file),
            line: Vec::new(),
            number: 0,
            index: 0,
            finished: false,
        })
    }

    /// The next line that is not blank; false at the end.
    fn advance(&mut self) -> Result<bool, DataError> {
        use std::io::Read;
        loop {
            self.line.clear();
            let n = (&mut self.reader)
                .take(LONGEST_LINE)
                .read_until(b'\n', &mut self.line)
                .map_err(|e| DataError::read(&self.path, e))?;
            if n == 0 {
                return Ok(false);
            }
            self.number += 1;
            if n as u64 == LONGEST_LINE && !self.line.ends_with(b"\n") {
                return Err(DataError::row(
                    &self.path,
                    self.number,
                    format!(
                        "a line of more than {LONGEST_LINE} bytes; expected one JSON object per line"
                    ),
                ));
            }
            if self.number == 1 && self.line.starts_with(b"\xef\xbb\xbf") {
                self.line.drain(..3);
            }
            if !self.line.iter().all(u8::is_ascii_whitespace) {
                return Ok(true);
            }
        }
    }

    fn read(&mut self) -> Result<Option<Row>, DataError> {
        if !self.advance()? {
            return Ok(None);
        }
        let error = |message| DataError::row(&self.path, self.number, message);
        let text = std::str::from_utf8(&self.line).map_err(|e| {
            error(format!(
                "not UTF-8 at byte {} of the line; save the file as UTF-8",
                e.valid_up_to() + 1
            ))
        })?;
        let value: Value = serde_json::from_str(text.trim_end()).map_err(|e| {
            // serde counts lines within the text it was given; there is one.
            let reason = e.to_string();
            let reason = reason.split(" at line ").next().unwrap_or_default();
            let hint = match ["NaN", "Infinity"].iter().any(|word| text.contains(word)) {
                true => " (NaN and Infinity are no JSON)",
                false => "",
            };
            error(format!(
                "broken JSON at column {}: {reason}{hint}; expected one JSON object on this line",
                e.column()
            ))
        })?;
        if !value.is_object() {
            return Err(error(format!(
                "expected one JSON object per line, found {}",
                kind_of(&value)
            )));
        }
        let row = Row {
            index: self.index,
            number: self.number,
            value,
        };
        self.index += 1;
        Ok(Some(row))
    }
}

impl Iterator for JsonlRows {
    type Item = Result<Row, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let found = self.read().transpose();
        // After an error the place in the file means nothing.
        self.finished = !matches!(found, Some(Ok(_)));
        found
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(bytes: &[u8]) -> Vec<Result<Row, String>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        std::fs::write(&path, bytes).unwrap();
        JsonlRows::open(&path)
            .unwrap()
            .map(|row| {
                row.map_err(|e| {
                    e.to_string()
                        .replace(&format!("{}/", folder.path().display()), "")
                })
            })
            .collect()
    }

    #[test]
    fn blank_lines_crlf_and_a_byte_order_mark_are_tolerated() {
        let rows = read(b"\xef\xbb\xbf{\"a\":1}\r\n\r\n  \n{\"a\":\"\xc3\xa9\"}");
        let row = |index, number, value| {
            Ok(Row {
                index,
                number,
                value,
            })
        };
        assert_eq!(
            rows,
            [
                row(0, 1, json!({"a": 1})),
                row(1, 4, json!({"a": "\u{e9}"}))
            ]
        );
        assert!(read(b"\n\n").is_empty());
    }

    #[test]
    fn broken_lines_are_named_and_end_the_file() {
        let found = |bytes: &[u8]| {
            let rows = read(bytes);
            assert!(rows[..rows.len() - 1].iter().all(Result::is_ok));
            rows.last().unwrap().clone().unwrap_err()
        };
        assert_eq!(
            found(b"{\"a\":1}\n\n{\"a\":1,}\n{\"a\":1}\n"),
            "a.jsonl:3: broken JSON at column 8: trailing comma; expected one JSON object on this \
             line"
        );
        assert_eq!(
            found(b"{\"a\":1}\n{\"a\": \"cut"),
            "a.jsonl:2: broken JSON at column 10: EOF while parsing a string; expected one JSON \
             object on this line"
        );
        assert_eq!(
            found(b"[1]\n"),
            "a.jsonl:1: expected one JSON object per line, found a list"
        );
        assert_eq!(
            found(b"{\"a\":1}\n{\"a\":\"\xff\"}\n"),
            "a.jsonl:2: not UTF-8 at byte 7 of the line; save the file as UTF-8"
        );
    }
}
