//! Arithmetic on the weights of models: `base + final - bottleneck`, tensor by tensor.
//!
//! The result has the files, headers and element types of the first model, so that what loads the
//! first loads the result. Three tensors are in memory at a time, never a model.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use safetensors::{
    Dtype,
    tensor::{Metadata, TensorInfo},
};
use serde::Serialize;
use t3s_core::atomic::{self, AtomicError};
use t3s_engine::{EngineError, checkpoint};

/// Longest header that the format allows, bytes.
const MAX_HEADER: u64 = 100_000_000;
/// What goes along from the first model's folder, by extension: configuration, tokenizer, index.
const COMPANIONS: &[&str] = &["json", "jinja", "txt", "model"];

/// A model added or taken away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    /// Whether it is added.
    pub plus: bool,
    /// The Hugging Face folder.
    pub folder: PathBuf,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
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
    /// A model has no weights that can be found.
    #[error(transparent)]
    Weights(#[from] EngineError),
    /// A file is damaged.
    #[error("{}: {message}", .path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
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
    let mut terms = Vec::new();
    let mut sign = Some(true);
    for word in words {
        sign = match (sign, word.as_str()) {
            (None, "+") => Some(true),
            (None, "-") => Some(false),
            (None, word) => {
                return Err(MergeError::Expression(format!(
                    "there is no + or - before {word:?}"
                )));
            }
            (Some(_), "+" | "-") => {
                return Err(MergeError::Expression(format!(
                    "a folder is missing before {word:?}"
                )));
            }
            (Some(plus), folder) => {
                terms.push(Term {
                    plus,
                    folder: folder.into(),
                });
                None
            }
        };
    }
    match sign {
        None if terms.len() >= 2 => Ok(terms),
        None => Err(MergeError::Expression("that is one model alone".to_owned())),
        Some(_) => Err(MergeError::Expression(
            "the last folder is missing".to_owned(),
        )),
    }
}

/// Computes the signed sum of `terms` in f64, rounds it once to the first model's element types, and
/// writes it as the new folder `out`.
///
/// # Errors
/// When `out` is there, a model is damaged, tensors are missing, differ in shape or give something
/// that is not finite; nothing is left behind then.
pub fn merge(terms: &[Term], out: &Path) -> Result<Merged, MergeError> {
    if fs::symlink_metadata(out).is_ok() {
        return Err(MergeError::Exists(out.to_owned()));
    }
    let mut models = terms
        .iter()
        .map(|term| Model::open(&term.folder))
        .collect::<Result<Vec<_>, _>>()?;
    let Some((first, others)) = models.split_first_mut() else {
        return Err(MergeError::Expression("there is no model".to_owned()));
    };
    for other in others.iter() {
        first.compare(other)?;
    }
    let signs: Vec<bool> = terms.iter().map(|term| term.plus).collect();
    let mut merged = Merged {
        out: out.to_owned(),
        tensors: 0,
        weights: 0,
    };
    atomic::write_folder(out, |new| {
        first.copy_companions(new)?;
        for file in &mut first.files {
            let name = file.path.file_name().expect("an opened file has a name");
            let path = new.join(name);
            let mut to = BufWriter::new(File::create(&path).map_err(io(&path, "create"))?);
            to.write_all(&file.header).map_err(io(&path, "write"))?;
            for (name, info) in file.in_order() {
                let mut bytes = file.read(&info)?;
                let rest = others
                    .iter_mut()
                    .map(|model| model.read(&name))
                    .collect::<Result<Vec<_>, _>>()?;
                add(&name, info.dtype, &mut bytes, &signs, &rest)?;
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

/// Makes the first model's `bytes` the signed sum of all.
fn add(
    name: &str,
    dtype: Dtype,
    bytes: &mut [u8],
    signs: &[bool],
    rest: &[(Dtype, Vec<u8>)],
) -> Result<(), MergeError> {
    let wrong = |message: String| MergeError::Tensor {
        tensor: name.to_owned(),
        message,
    };
    let Some(width) = width(dtype) else {
        // Counters and the like are no weights: they stay, and have to agree.
        if rest.iter().all(|(d, b)| *d == dtype && b == bytes) {
            return Ok(());
        }
        return Err(wrong(format!(
            "is {dtype:?}, which is not added, and it differs between the models"
        )));
    };
    let mut sums = Vec::with_capacity(rest.len());
    for (dtype, bytes) in rest {
        let width = self::width(*dtype).ok_or_else(|| {
            wrong(format!(
                "is {dtype:?} in one model and no number in F32, BF16, F16 or F64"
            ))
        })?;
        sums.push((*dtype, width, bytes));
    }
    for (index, place) in bytes.chunks_exact_mut(width).enumerate() {
        let mut sum = value(dtype, place);
        for ((dtype, width, bytes), plus) in sums.iter().zip(&signs[1..]) {
            let other = value(*dtype, &bytes[index * width..][..*width]);
            sum = if *plus { sum + other } else { sum - other };
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

/// A model's files, opened.
struct Model {
    folder: PathBuf,
    files: Vec<Weights>,
    /// Tensor to its file.
    place: BTreeMap<String, usize>,
}

impl Model {
    fn open(folder: &Path) -> Result<Self, MergeError> {
        let files = checkpoint::weight_files(folder)?
            .iter()
            .map(|path| Weights::open(path))
            .collect::<Result<Vec<_>, _>>()?;
        let mut place = BTreeMap::new();
        for (index, file) in files.iter().enumerate() {
            for name in file.tensors.keys() {
                if let Some(other) = place.insert(name.clone(), index) {
                    return Err(MergeError::Broken {
                        path: file.path.clone(),
                        message: format!("tensor {name} is in {} too", files[other].path.display()),
                    });
                }
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
            files,
            place,
        })
    }

    /// The same tensors with the same shapes?
    fn compare(&self, other: &Self) -> Result<(), MergeError> {
        let names: BTreeSet<&String> = self.place.keys().chain(other.place.keys()).collect();
        for name in names {
            let wrong = |message: String| MergeError::Tensor {
                tensor: name.clone(),
                message,
            };
            match (self.info(name), other.info(name)) {
                (Some(mine), Some(theirs)) if mine.shape != theirs.shape => {
                    return Err(wrong(format!(
                        "has shape {:?} in {} and {:?} in {}",
                        mine.shape,
                        self.folder.display(),
                        theirs.shape,
                        other.folder.display()
                    )));
                }
                (Some(_), Some(_)) => {}
                (mine, _) => {
                    let (has, lacks) = match mine {
                        Some(_) => (self, other),
                        None => (other, self),
                    };
                    return Err(wrong(format!(
                        "is in {} and not in {}; they are not of one model",
                        has.folder.display(),
                        lacks.folder.display()
                    )));
                }
            }
        }
        Ok(())
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.files[*self.place.get(name)?].tensors.get(name)
    }

    fn read(&mut self, name: &str) -> Result<(Dtype, Vec<u8>), MergeError> {
        let file = &mut self.files[self.place[name]];
        let info = file.tensors[name].clone();
        Ok((info.dtype, file.read(&info)?))
    }

    fn copy_companions(&self, to: &Path) -> Result<(), MergeError> {
        for entry in fs::read_dir(&self.folder).map_err(io(&self.folder, "list"))? {
            let path = entry.map_err(io(&self.folder, "list"))?.path();
            let extension = path.extension().and_then(|e| e.to_str());
            if let (true, Some(name)) = (path.is_file(), path.file_name())
                && extension.is_some_and(|e| COMPANIONS.contains(&e))
            {
                fs::copy(&path, to.join(name)).map_err(io(&path, "copy"))?;
            }
        }
        Ok(())
    }
}

/// An opened safetensors file.
struct Weights {
    path: PathBuf,
    file: File,
    /// The length prefix and the header, as they stand.
    header: Vec<u8>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl Weights {
    fn open(path: &Path) -> Result<Self, MergeError> {
        let broken = |message: String| MergeError::Broken {
            path: path.to_owned(),
            message,
        };
        let mut file = File::open(path).map_err(io(path, "open"))?;
        let length = file.metadata().map_err(io(path, "read"))?.len();
        let mut prefix = [0; 8];
        if length < 8 {
            return Err(broken(format!("{length} bytes are no safetensors file")));
        }
        file.read_exact(&mut prefix).map_err(io(path, "read"))?;
        let size = u64::from_le_bytes(prefix);
        if size > MAX_HEADER || size > length - 8 {
            return Err(broken(format!(
                "its header should have {size} bytes and the file has {length}; it is truncated or \
                 no safetensors file"
            )));
        }
        let mut header = prefix.to_vec();
        header.resize(8 + size as usize, 0);
        file.read_exact(&mut header[8..])
            .map_err(io(path, "read"))?;
        let metadata: Metadata = serde_json::from_slice(&header[8..])
            .map_err(|e| broken(format!("its header is no safetensors header: {e}")))?;
        let tensors: BTreeMap<String, TensorInfo> = metadata
            .tensors()
            .into_iter()
            .map(|(name, info)| (name, info.clone()))
            .collect();
        let opened = Self {
            path: path.to_owned(),
            file,
            header,
            tensors,
        };
        // What is written anew has the old header, so the data must follow it without a gap.
        let mut end = 0;
        for (name, info) in opened.in_order() {
            let bits = info
                .shape
                .iter()
                .try_fold(info.dtype.bitsize(), |n, d| n.checked_mul(*d));
            let (from, to) = info.data_offsets;
            if from != end || to < from || bits != (to - from).checked_mul(8) {
                return Err(broken(format!(
                    "tensor {name} has bytes {from} to {to} of the data, which its shape and type \
                     or its neighbours contradict; the header is damaged"
                )));
            }
            end = to;
        }
        let expected = (opened.header.len() as u64).saturating_add(end as u64);
        if expected != length {
            return Err(broken(format!(
                "should have {expected} bytes and has {length}; copy or download it again"
            )));
        }
        Ok(opened)
    }

    /// The tensors as their data lies in the file.
    fn in_order(&self) -> Vec<(String, TensorInfo)> {
        let mut all: Vec<_> = self.tensors.clone().into_iter().collect();
        all.sort_by_key(|(_, info)| info.data_offsets);
        all
    }

    fn read(&mut self, info: &TensorInfo) -> Result<Vec<u8>, MergeError> {
        let (from, to) = info.data_offsets;
        let mut bytes = vec![0; to - from];
        self.file
            .seek(SeekFrom::Start((self.header.len() + from) as u64))
            .and_then(|_| self.file.read_exact(&mut bytes))
            .map_err(io(&self.path, "read"))?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests;
