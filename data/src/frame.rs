//! A table of results: named columns of one length, written as Parquet and as JSON.

use std::{io, path::Path, sync::Arc};

use arrow::{
    array::{ArrayRef, Float64Array, RecordBatch, StringArray, UInt64Array},
    datatypes::{Field, Schema},
};
use parquet::arrow::ArrowWriter;
use serde_json::{Map, Value};
use t3s_core::atomic;

use crate::error::DataError;

/// Values of a column.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// Whole numbers.
    Whole(Vec<u64>),
    /// Numbers; one that is not finite is null in JSON.
    Numbers(Vec<f64>),
    /// Words.
    Words(Vec<String>),
}

impl Values {
    fn len(&self) -> usize {
        match self {
            Self::Whole(values) => values.len(),
            Self::Numbers(values) => values.len(),
            Self::Words(values) => values.len(),
        }
    }
}

/// A table.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Frame {
    columns: Vec<(String, Values)>,
}

impl Frame {
    /// Adds the column `name`.
    ///
    /// # Panics
    /// When it is not as long as the others: whoever makes a table knows its rows.
    #[must_use]
    pub fn with(mut self, name: &str, values: Values) -> Self {
        if let Some((_, first)) = self.columns.first() {
            assert_eq!(first.len(), values.len(), "column {name}");
        }
        self.columns.push((name.to_owned(), values));
        self
    }

    /// The rows, one object each.
    pub fn rows(&self) -> Vec<Map<String, Value>> {
        let n = self.columns.first().map_or(0, |(_, values)| values.len());
        let cell = |values: &Values, row: usize| match values {
            Values::Whole(values) => Value::from(values[row]),
            Values::Numbers(values) => Value::from(values[row]),
            Values::Words(values) => Value::from(values[row].as_str()),
        };
        (0..n)
            .map(|row| {
                let cells = self.columns.iter();
                cells
                    .map(|(name, values)| (name.clone(), cell(values, row)))
                    .collect()
            })
            .collect()
    }

    /// Writes the table as Parquet, whole or not at all.
    ///
    /// # Errors
    /// When the file cannot be written; what was there before is untouched.
    pub fn write_parquet(&self, path: &Path) -> Result<(), DataError> {
        let columns: Vec<(Field, ArrayRef)> = self
            .columns
            .iter()
            .map(|(name, values)| {
                let array: ArrayRef = match values {
                    Values::Whole(values) => Arc::new(UInt64Array::from(values.clone())),
                    Values::Numbers(values) => Arc::new(Float64Array::from(values.clone())),
                    Values::Words(values) => Arc::new(StringArray::from(values.clone())),
                };
                (Field::new(name, array.data_type().clone(), false), array)
            })
            .collect();
        let (fields, arrays): (Vec<Field>, Vec<ArrayRef>) = columns.into_iter().unzip();
        let schema = Arc::new(Schema::new(fields));
        let batch = RecordBatch::try_new(schema.clone(), arrays).expect("columns of one length");
        atomic::write(path, |file: &mut (dyn io::Write + Send)| {
            let mut writer = ArrowWriter::try_new(file, schema, None).map_err(io::Error::other)?;
            writer.write(&batch).map_err(io::Error::other)?;
            writer.close().map_err(io::Error::other)?;
            Ok(())
        })?;
        Ok(())
    }
}
