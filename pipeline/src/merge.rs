//! Arithmetic on the weights of models: `base + final - bottleneck`, tensor by tensor.
//!
//! The result has the files, headers and element types of the first model, so that what loads the
//! first loads the result. One tensor of each model is in memory at a time, never a model.
//!
//! Low-rank adapters stand for the first model with themselves added. A head that is tied to the
//! embedding may be written down in one model and left out in another.

mod model;

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use t3s_core::{
    atomic::{self, AtomicError},
    plan::merge::signed,
};
use t3s_engine::EngineError;

use crate::student::is_adapter;
use model::{Adapter, Model};

/// What goes along from the first model's folder, by extension: configuration, tokenizer, index.
const COMPANIONS: &[&str] = &["json", "jinja", "txt", "model"];

/// A model added or taken away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    /// Whether it is added.
    pub plus: bool,
    /// The Hugging Face folder; or, but for the first, that of an adapter of the first.
    pub folder: PathBuf,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Merged {
    /// The new folder.
    pub out: PathBuf,
    /// Tensors of the result.
    pub tensors: usize,
    /// Weights of the result.
    pub weights: u64,
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// The expression cannot be read.
    #[error("{0}; write it as FOLDER + FOLDER - FOLDER, with spaces around the signs")]
    Expression(String),
    /// The target is there.
    #[error("{}: is there already; remove it or choose another folder with --out", .0.display())]
    Exists(PathBuf),
    /// A model's weights or an adapter cannot be read.
    #[error(transparent)]
    Weights(#[from] EngineError),
    /// An adapter stands where the model that it adapts should.
    #[error(
        "{}: is an adapter; adapters are added to the first model, so write the model that they \
         adapt there",
        .0.display()
    )]
    FirstIsAdapter(PathBuf),
    /// The models do not go together.
    #[error("tensor {tensor}: {message}")]
    Tensor {
        /// Its name.
        tensor: String,
        /// What the models disagree on.
        message: String,
    },
    /// The result could not be put into place.
    #[error(transparent)]
    Write(#[from] AtomicError),
    /// A file could not be read or written.
    #[error("{}: cannot {action} it: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What failed.
        action: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

fn io(path: &Path, action: &'static str) -> impl Fn(std::io::Error) -> MergeError {
    move |source| MergeError::Io {
        path: path.to_owned(),
        action,
        source,
    }
}

/// Reads `A + B - C`, one word each.
///
/// # Errors
/// When words are missing, or signs are not between folders.
pub fn parse(words: &[String]) -> Result<Vec<Term>, MergeError> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let terms = signed(&words).map_err(MergeError::Expression)?;
    let term = |(plus, folder): (bool, &str)| Term {
        plus,
        folder: folder.into(),
    };
    Ok(terms.into_iter().map(term).collect())
}

/// Computes the signed sum of `terms` in f64, rounds it once to the first model's element types, and
/// writes it as the new folder `out`.
///
/// # Errors
/// When `out` is there, a model is damaged, tensors are missing, differ in shape or give something
/// that is not finite, or an adapter adapts what the first model has not; nothing is left behind
/// then.
pub fn merge(terms: &[Term], out: &Path) -> Result<Merged, MergeError> {
    if fs::symlink_metadata(out).is_ok() {
        return Err(MergeError::Exists(out.to_owned()));
    }
    let Some((first, others)) = terms.split_first() else {
        return Err(MergeError::Expression("there is no model".to_owned()));
    };
    if is_adapter(&first.folder) {
        return Err(MergeError::FirstIsAdapter(first.folder.clone()));
    }
    let mut first = Model::open(&first.folder)?;
    let mut others = others
        .iter()
        .map(|term| Other::open(term, &mut first))
        .collect::<Result<Vec<_>, _>>()?;
    let mut merged = Merged {
        out: out.to_owned(),
        tensors: 0,
        weights: 0,
    };
    atomic::write_folder(out, |new| {
        copy_companions(first.folder(), new)?;
        for file in first.files() {
            let name = file.path().file_name().expect("an opened file has a name");
            let path = new.join(name);
            let mut to = BufWriter::new(File::create(&path).map_err(io(&path, "create"))?);
            to.write_all(file.header()).map_err(io(&path, "write"))?;
            for (name, info) in file.in_order() {
                let mut bytes = file.bytes(&name)?.to_vec();
                let rest = others
                    .iter_mut()
                    .map(|other| other.part(&name))
                    .collect::<Result<Vec<_>, _>>()?;
                add(&name, info.dtype, &mut bytes, &rest)?;
                to.write_all(&bytes).map_err(io(&path, "write"))?;
                merged.tensors += 1;
                merged.weights += info.shape.iter().product::<usize>() as u64;
            }
            to.flush().map_err(io(&path, "write"))?;
        }
        Ok::<_, MergeError>(())
    })?;
    Ok(merged)
}

/// A term after the first.
struct Other {
    plus: bool,
    weights: Weights,
}

enum Weights {
    Whole(Model),
    Adapted(Adapter),
}

/// What a term adds to one tensor.
struct Part {
    plus: bool,
    values: Values,
}

enum Values {
    /// A tensor as it is stored.
    Stored(Dtype, Vec<u8>),
    /// The first model's own, with these added to its elements where the adapter reaches it.
    Own(Option<Vec<f64>>),
}

impl Other {
    fn open(term: &Term, first: &mut Model) -> Result<Self, MergeError> {
        let weights = if is_adapter(&term.folder) {
            Weights::Adapted(Adapter::open(&term.folder, first)?)
        } else {
            let mut model = Model::open(&term.folder)?;
            first.match_with(&mut model)?;
            Weights::Whole(model)
        };
        Ok(Self {
            plus: term.plus,
            weights,
        })
    }

    fn part(&mut self, name: &str) -> Result<Part, MergeError> {
        let values = match &mut self.weights {
            Weights::Whole(model) => {
                let (dtype, bytes) = model.tensor(name)?;
                Values::Stored(dtype, bytes)
            }
            Weights::Adapted(adapter) => Values::Own(adapter.change(name)?),
        };
        Ok(Part {
            plus: self.plus,
            values,
        })
    }
}

fn copy_companions(from: &Path, to: &Path) -> Result<(), MergeError> {
    for entry in fs::read_dir(from).map_err(io(from, "list"))? {
        let path = entry.map_err(io(from, "list"))?.path();
        let extension = path.extension().and_then(|e| e.to_str());
        if let (true, Some(name)) = (path.is_file(), path.file_name())
            && extension.is_some_and(|e| COMPANIONS.contains(&e))
        {
            fs::copy(&path, to.join(name)).map_err(io(&path, "copy"))?;
        }
    }
    Ok(())
}

/// Makes the first model's `bytes` the signed sum of all.
fn add(name: &str, dtype: Dtype, bytes: &mut [u8], rest: &[Part]) -> Result<(), MergeError> {
    let wrong = |message: String| MergeError::Tensor {
        tensor: name.to_owned(),
        message,
    };
    let Some(width) = width(dtype) else {
        // Counters and the like are no weights: they stay, and have to agree.
        let same = |part: &Part| match &part.values {
            Values::Stored(d, b) => *d == dtype && b == bytes,
            Values::Own(change) => change.is_none(),
        };
        if rest.iter().all(same) {
            return Ok(());
        }
        return Err(wrong(format!(
            "is {dtype:?}, which is not added, and it differs between the models"
        )));
    };
    for part in rest {
        if let Values::Stored(dtype, _) = &part.values
            && self::width(*dtype).is_none()
        {
            return Err(wrong(format!(
                "is {dtype:?} in one model and no number in F32, BF16, F16 or F64"
            )));
        }
    }
    for (index, place) in bytes.chunks_exact_mut(width).enumerate() {
        let own = value(dtype, place);
        let mut sum = own;
        for part in rest {
            let other = match &part.values {
                Values::Stored(dtype, bytes) => {
                    let width = self::width(*dtype).expect("checked above");
                    value(*dtype, &bytes[index * width..][..width])
                }
                Values::Own(None) => own,
                Values::Own(Some(change)) => own + change[index],
            };
            sum = if part.plus { sum + other } else { sum - other };
        }
        if !put(dtype, sum, place) {
            return Err(wrong(format!(
                "its element {index} comes to {sum}, which {dtype:?} cannot hold"
            )));
        }
    }
    Ok(())
}

/// Bytes of an element that can be added.
fn width(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::BF16 | Dtype::F16 => Some(2),
        Dtype::F32 => Some(4),
        Dtype::F64 => Some(8),
        _ => None,
    }
}

fn value(dtype: Dtype, bytes: &[u8]) -> f64 {
    match (dtype, bytes) {
        (Dtype::BF16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f64(),
        (Dtype::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f64(),
        (Dtype::F32, &[a, b, c, d]) => f64::from(f32::from_le_bytes([a, b, c, d])),
        (_, bytes) => f64::from_le_bytes(bytes.try_into().expect("8 bytes: width()")),
    }
}

/// Rounds `sum` into `place`; false when it is not finite there.
fn put(dtype: Dtype, sum: f64, place: &mut [u8]) -> bool {
    match dtype {
        Dtype::BF16 => {
            let rounded = bf16::from_f32(sum as f32);
            place.copy_from_slice(&rounded.to_le_bytes());
            rounded.is_finite()
        }
        Dtype::F16 => {
            let rounded = f16::from_f32(sum as f32);
            place.copy_from_slice(&rounded.to_le_bytes());
            rounded.is_finite()
        }
        Dtype::F32 => {
            place.copy_from_slice(&(sum as f32).to_le_bytes());
            (sum as f32).is_finite()
        }
        _ => {
            place.copy_from_slice(&sum.to_le_bytes());
            sum.is_finite()
        }
    }
}

#[cfg(test)]
mod tests;
