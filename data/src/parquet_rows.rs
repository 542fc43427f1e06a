//! Parquet files read as rows.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use parquet::{
    file::{reader::FileReader, serialized_reader::SerializedFileReader},
    record::{Field, reader::RowIter},
};
use serde_json::{Map, Number, Value};

use crate::{error::DataError, row::Row};

/// Rows of a Parquet file: columns become fields, structs objects, lists lists.
pub struct ParquetRows {
    path: PathBuf,
    rows: RowIter<'static>,
    index: u64,
    finished: bool,
}

impl ParquetRows {
    /// Opens `path`.
    ///
    /// # Errors
    /// When it is not there or not a whole Parquet file.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let file = File::open(path).map_err(|e| DataError::read(path, e))?;
        let reader = SerializedFileReader::new(file).map_err(|e| broken(path, &e))?;
        if reader.metadata().file_metadata().num_rows() == 0 {
            return Err(DataError::file(path, "the file has no rows"));
        }
        Ok(Self {
            path: path.to_owned(),
            rows: RowIter::from_file_into(Box::new(reader)),
            index: 0,
            finished: false,
        })
    }
}

/// The message for a file that the Parquet reader refuses.
pub(crate) fn broken(path: &Path, error: &dyn std::fmt::Display) -> DataError {
    DataError::file(
        path,
        format!("not a whole Parquet file ({error}); it may be truncated: write it again"),
    )
}

impl Iterator for ParquetRows {
    type Item = Result<Row, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        match self.rows.next()? {
            Ok(row) => {
                let fields = row
                    .get_column_iter()
                    .map(|(name, field)| (name.clone(), value(field)))
                    .collect();
                let index = self.index;
                self.index += 1;
                Some(Ok(Row {
                    index,
                    number: index + 1,
                    value: Value::Object(fields),
                }))
            }
            Err(error) => {
                self.finished = true;
                Some(Err(DataError::row(
                    &self.path,
                    self.index + 1,
                    format!("cannot read this row ({error}); the file may be damaged"),
                )))
            }
        }
    }
}

/// Infinite and NaN floats become text, so that whoever reads the field says where they are.
fn float(x: f64) -> Value {
    Number::from_f64(x).map_or_else(|| Value::String(x.to_string()), Value::Number)
}

fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(x) => Value::Bool(*x),
        Field::Byte(x) => Value::from(*x),
        Field::Short(x) => Value::from(*x),
        Field::Int(x) => Value::from(*x),
        Field::Long(x) => Value::from(*x),
        Field::UByte(x) => Value::from(*x),
        Field::UShort(x) => Value::from(*x),
        Field::UInt(x) => Value::from(*x),
        Field::ULong(x) => Value::from(*x),
        Field::Float16(x) => float(f64::from(x.to_f32())),
        Field::Float(x) => float(f64::from(*x)),
        Field::Double(x) => float(*x),
        Field::Str(x) => Value::String(x.clone()),
        // Text that the writer did not mark as text.
        Field::Bytes(x) => match std::str::from_utf8(x.data()) {
            Ok(text) => Value::String(text.to_owned()),
            Err(_) => x.data().iter().copied().map(Value::from).collect(),
        },
        Field::Group(row) => Value::Object(
            row.get_column_iter()
                .map(|(name, field)| (name.clone(), value(field)))
                .collect::<Map<_, _>>(),
        ),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::MapInternal(map) => Value::Object(
            map.entries()
                .iter()
                .map(|(key, field)| {
                    let key = match value(key) {
                        Value::String(key) => key,
                        other => other.to_string(),
                    };
                    (key, value(field))
                })
                .collect(),
        ),
        // Dates and decimals: as text.
        other => Value::String(other.to_string()),
    }
}
