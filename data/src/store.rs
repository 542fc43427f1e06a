//! The token store: one Parquet file per checkpoint, one row per response token. A selection is the
//! same with a `weight` column.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Write},
    path::Path,
    sync::Arc,
};

use arrow::{
    array::{
        Array, ArrayRef, FixedSizeListArray, Float32Array, RecordBatch, UInt32Array, UInt64Array,
    },
    datatypes::{DataType, Field, Schema},
};
use parquet::{
    arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder},
    basic::Compression,
    file::{metadata::KeyValue, properties::WriterProperties},
};
use serde::{Deserialize, Serialize};
use t3s_core::{
    Fingerprint, Observable, TokenTable, TokenView, TokenWeights, atomic, corpus::CorpusHashes,
    table::Sketch,
};

use crate::error::DataError;

/// The key of the metadata in the Parquet footer.
const META_KEY: &str = "t3s";
/// The layout that this version writes and reads.
const FORMAT: u32 = 1;
const WEIGHT: &str = "weight";
/// What the names of a selection's signals begin with.
const SIGNAL: &str = "signal:";

/// What a store was made from: opening it against anything else is an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreMeta {
    /// Data, tokenizer, chat template, tokens.
    pub hashes: CorpusHashes,
    /// Of the weights that scored.
    pub weights: Fingerprint,
    /// The model adapter.
    pub adapter: String,
    /// Its options, JSON.
    pub adapter_options: String,
    /// How tokens were scored: `exact`, or the estimator and its draws. Stores of one selection have
    /// the same.
    #[serde(default = "exact")]
    pub estimator: String,
    /// Version of the program.
    pub tool_version: String,
}

/// What the stores of versions that knew no other way were made with.
fn exact() -> String {
    "exact".to_owned()
}

#[derive(Serialize, Deserialize)]
struct Footer {
    format: u32,
    #[serde(flatten)]
    meta: StoreMeta,
}

/// Writes `table` with the columns that are named after an [`Observable`], whole or not at all.
///
/// # Errors
/// When the file cannot be written; what was there before is untouched.
pub fn write_table(path: &Path, table: &TokenTable, meta: &StoreMeta) -> Result<(), DataError> {
    let view = table.view();
    let mut columns = key_columns(&view);
    for observable in Observable::ALL {
        let name = observable.name();
        if let Ok(values) = view.column(name) {
            columns.push(match observable {
                // Counts, and exact in f32 as far as a vocabulary goes.
                Observable::Rank => column(name, ranks(values)),
                _ => column(name, Float32Array::from(values.to_vec())),
            });
        } else if let Ok(sketch) = view.sketch(name) {
            columns.push(sketch_column(name, sketch.width, sketch.values)?);
        }
    }
    write(path, columns, meta)
}

/// Writes `weights` beside the tokens of `signals`, and its columns, which are what the strategy
/// read, as `signal:NAME`: a selection.
///
/// # Errors
/// When the file cannot be written; what was there before is untouched.
pub fn write_selection(
    path: &Path,
    signals: &TokenTable,
    weights: &TokenWeights,
    meta: &StoreMeta,
) -> Result<(), DataError> {
    let view = signals.view();
    let mut columns = key_columns(&view);
    let weights = Float32Array::from(weights.as_slice().to_vec());
    columns.push(column(WEIGHT, weights));
    for (name, values) in view.columns() {
        let name = format!("{SIGNAL}{name}");
        columns.push(column(&name, Float32Array::from(values.to_vec())));
    }
    write(path, columns, meta)
}

/// Reads a token store. Every row may be trained on: prompts are not in it.
///
/// # Errors
/// When the file is missing, damaged, no token store, or of another layout.
pub fn read_table(path: &Path) -> Result<(TokenTable, StoreMeta), DataError> {
    let mut read = Read::open(path)?;
    let mut table = read.tokens(path)?;
    for observable in Observable::ALL {
        let name = observable.name();
        if let Some(values) = read.floats.remove(name) {
            table.insert(name, values)?;
        } else if let Some(sketch) = read.sketches.remove(name) {
            table.insert_sketch(name, sketch)?;
        }
    }
    Ok((table, read.meta))
}

/// Reads a selection: the tokens with a column for each signal that the strategy read, and the
/// weights.
///
/// # Errors
/// As [`read_table`]; when there is no `weight` column, or a weight is not in `[0, 1]`.
pub fn read_selection(path: &Path) -> Result<(TokenTable, TokenWeights, StoreMeta), DataError> {
    let mut read = Read::open(path)?;
    let mut table = read.tokens(path)?;
    let weights = read.floats.remove(WEIGHT).ok_or_else(|| {
        DataError::file(
            path,
            "has no column weight: it is a token store, not a selection",
        )
    })?;
    let weights = TokenWeights::new(&table.view(), weights)?;
    for (name, values) in read.floats {
        if let Some(signal) = name.strip_prefix(SIGNAL) {
            table.insert(signal, values)?;
        }
    }
    Ok((table, weights, read.meta))
}

/// Refuses a store that was made from other data than `wanted` says. The weights may differ: each
/// checkpoint has its own.
///
/// # Errors
/// Names the first thing that differs.
pub fn expect(path: &Path, found: &StoreMeta, wanted: &StoreMeta) -> Result<(), DataError> {
    let (a, b) = (&found.hashes, &wanted.hashes);
    let pairs = [
        ("data file", a.data.short(), b.data.short()),
        ("tokenizer", a.tokenizer.short(), b.tokenizer.short()),
        (
            "chat template",
            a.chat_template.short(),
            b.chat_template.short(),
        ),
        ("set of tokens", a.tokens.short(), b.tokens.short()),
        ("model adapter", &found.adapter, &wanted.adapter),
        (
            "adapter options",
            &found.adapter_options,
            &wanted.adapter_options,
        ),
        ("estimator", &found.estimator, &wanted.estimator),
    ];
    match pairs.into_iter().find(|(_, found, wanted)| found != wanted) {
        None => Ok(()),
        Some((what, found, expected)) => Err(DataError::Mismatch {
            path: path.to_owned(),
            what,
            found: found.to_owned(),
            expected: expected.to_owned(),
        }),
    }
}

type Column = (Field, ArrayRef);

fn column(name: &str, values: impl Array + 'static) -> Column {
    let field = Field::new(name, values.data_type().clone(), false);
    (field, Arc::new(values))
}

fn ranks(values: &[f32]) -> UInt32Array {
    values
        .iter()
        .map(|rank| *rank as u32)
        .collect::<Vec<_>>()
        .into()
}

fn key_columns(view: &TokenView<'_>) -> Vec<Column> {
    let examples: Vec<u64> = view
        .examples()
        .flat_map(|(id, rows)| std::iter::repeat_n(id, rows.len()))
        .collect();
    vec![
        column("example", UInt64Array::from(examples)),
        column("position", UInt32Array::from(view.positions().to_vec())),
        column("token_id", UInt32Array::from(view.token_ids().to_vec())),
    ]
}

fn sketch_column(name: &str, width: usize, values: &[f32]) -> Result<Column, DataError> {
    let item = Arc::new(Field::new("item", DataType::Float32, false));
    let values = Arc::new(Float32Array::from(values.to_vec()));
    let list = FixedSizeListArray::try_new(item, width as i32, values, None)
        .expect("a sketch holds `width` values per token");
    Ok(column(name, list))
}

fn write(path: &Path, columns: Vec<Column>, meta: &StoreMeta) -> Result<(), DataError> {
    // Rows per group: what a reader has to hold at once.
    const GROUP: usize = 1 << 18;
    let footer = Footer {
        format: FORMAT,
        meta: meta.clone(),
    };
    let footer = serde_json::to_string(&footer).expect("plain data is JSON");
    let (fields, arrays): (Vec<Field>, Vec<ArrayRef>) = columns.into_iter().unzip();
    let schema = Arc::new(Schema::new(fields));
    let batch = RecordBatch::try_new(schema.clone(), arrays).expect("columns of one length");
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_max_row_group_row_count(Some(GROUP))
        .set_key_value_metadata(Some(vec![KeyValue::new(META_KEY.to_owned(), footer)]))
        .build();
    atomic::write(path, |file: &mut (dyn Write + Send)| {
        let mut writer =
            ArrowWriter::try_new(file, schema, Some(properties)).map_err(io::Error::other)?;
        writer.write(&batch).map_err(io::Error::other)?;
        writer.close().map_err(io::Error::other)?;
        Ok(())
    })?;
    Ok(())
}

/// Columns of a file, by name.
struct Read {
    meta: StoreMeta,
    examples: Vec<u64>,
    ids: BTreeMap<String, Vec<u32>>,
    floats: BTreeMap<String, Vec<f32>>,
    sketches: BTreeMap<String, Sketch>,
}

impl Read {
    fn open(path: &Path) -> Result<Self, DataError> {
        let file = File::open(path).map_err(|source| DataError::read(path, source))?;
        let damaged = |e: &dyn std::fmt::Display| {
            DataError::file(
                path,
                format!("not a whole Parquet file ({e}); it may be truncated: write it again"),
            )
        };
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| damaged(&e))?;
        let pairs = builder.metadata().file_metadata().key_value_metadata();
        let footer = pairs
            .into_iter()
            .flatten()
            .find(|pair| pair.key == META_KEY)
            .and_then(|pair| pair.value.clone())
            .ok_or_else(|| {
                DataError::file(
                    path,
                    "a Parquet file, but no token store; make one with t3s score",
                )
            })?;
        let footer: Footer = serde_json::from_str(&footer)
            .map_err(|e| DataError::file(path, format!("its metadata cannot be read: {e}")))?;
        if footer.format != FORMAT {
            return Err(DataError::file(
                path,
                format!(
                    "written by t3s {} in layout {}; this program reads layout {FORMAT}: score \
                     again",
                    footer.meta.tool_version, footer.format
                ),
            ));
        }
        let mut read = Self {
            meta: footer.meta,
            examples: Vec::new(),
            ids: BTreeMap::new(),
            floats: BTreeMap::new(),
            sketches: BTreeMap::new(),
        };
        for batch in builder.build().map_err(|e| damaged(&e))? {
            read.add(&batch.map_err(|e| damaged(&e))?, path)?;
        }
        Ok(read)
    }

    fn add(&mut self, batch: &RecordBatch, path: &Path) -> Result<(), DataError> {
        for (field, array) in batch.schema().fields().iter().zip(batch.columns()) {
            let name = field.name().clone();
            let any = array.as_any();
            if array.null_count() > 0 {
                return Err(DataError::file(path, format!("column {name} has nulls")));
            }
            if let Some(values) = any.downcast_ref::<UInt64Array>() {
                self.examples.extend_from_slice(values.values());
            } else if let Some(values) = any.downcast_ref::<UInt32Array>() {
                if name == Observable::Rank.name() {
                    let ranks = self.floats.entry(name).or_default();
                    ranks.extend(values.values().iter().map(|rank| *rank as f32));
                } else {
                    let ids = self.ids.entry(name).or_default();
                    ids.extend_from_slice(values.values());
                }
            } else if let Some(values) = any.downcast_ref::<Float32Array>() {
                let floats = self.floats.entry(name).or_default();
                floats.extend_from_slice(values.values());
            } else if let Some(list) = any.downcast_ref::<FixedSizeListArray>() {
                let values = list.values().as_any().downcast_ref::<Float32Array>();
                let values = values.ok_or_else(|| {
                    DataError::file(path, format!("column {name} is no list of 32-bit floats"))
                })?;
                let sketch = self.sketches.entry(name).or_insert_with(|| Sketch {
                    width: list.value_length() as usize,
                    values: Vec::new(),
                });
                sketch.values.extend_from_slice(values.values());
            } else {
                let kind = array.data_type();
                return Err(DataError::file(
                    path,
                    format!("column {name} has the unexpected type {kind}"),
                ));
            }
        }
        Ok(())
    }

    /// The tokens without their columns; rows of an example have to stand together.
    fn tokens(&mut self, path: &Path) -> Result<TokenTable, DataError> {
        let mut ids = |name: &str| {
            self.ids
                .remove(name)
                .ok_or_else(|| DataError::file(path, format!("has no column {name}")))
        };
        let (positions, token_ids) = (ids("position")?, ids("token_id")?);
        let n = token_ids.len();
        if self.examples.len() != n {
            return Err(DataError::file(path, "has no column example"));
        }
        let mut example_ids: Vec<u64> = Vec::new();
        let mut offsets = Vec::new();
        for (row, example) in self.examples.iter().enumerate() {
            if example_ids.last() != Some(example) {
                example_ids.push(*example);
                offsets.push(row as u32);
            }
        }
        offsets.push(n as u32);
        let mut sorted = example_ids.clone();
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(DataError::file(
                path,
                format!("rows of example {} do not stand together", pair[0]),
            ));
        }
        Ok(TokenTable::new(
            example_ids,
            offsets,
            token_ids,
            positions,
            vec![true; n],
        )?)
    }
}
