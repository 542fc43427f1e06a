//! The models of a sum: whole ones, tensor by tensor, and low-rank adapters of the first.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use rayon::prelude::*;
use safetensors::{Dtype, tensor::TensorInfo};
use t3s_engine::{
    checkpoint::{self, ADAPTER_WEIGHTS, TensorFile},
    layers::lora,
};

use super::{MergeError, value, width};

/// A whole model's files, opened.
pub(super) struct Model {
    folder: PathBuf,
    files: Vec<TensorFile>,
    /// Tensor to its file.
    place: BTreeMap<String, usize>,
    /// Tensors that are written under another name: a tied head's is the embedding's.
    twins: BTreeMap<String, String>,
}

impl Model {
    /// Opens the model in `folder` and checks that its files are whole.
    pub(super) fn open(folder: &Path) -> Result<Self, MergeError> {
        let files = checkpoint::weight_files(folder)?
            .iter()
            .map(|path| {
                let file = TensorFile::open(path)?;
                // What is written anew has the old header, so the data has to follow it.
                file.expect_whole()?;
                Ok(file)
            })
            .collect::<Result<Vec<_>, MergeError>>()?;
        let mut place = BTreeMap::new();
        for (index, file) in files.iter().enumerate() {
            for name in file.names() {
                if let Some(other) = place.insert(name.to_owned(), index) {
                    return Err(MergeError::Tensor {
                        tensor: name.to_owned(),
                        message: format!(
                            "is in {} and in {}; the model is damaged",
                            files[other].path().display(),
                            file.path().display()
                        ),
                    });
                }
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
            files,
            place,
            twins: BTreeMap::new(),
        })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn files(&mut self) -> &mut [TensorFile] {
        &mut self.files
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.files[*self.place.get(name)?].info(name)
    }

    /// The tensor `name`, or what stands for it.
    pub(super) fn tensor(&mut self, name: &str) -> Result<(Dtype, Vec<u8>), MergeError> {
        let name = self.twins.get(name).map_or(name, String::as_str);
        let file = &self.files[self.place[name]];
        let dtype = file.info(name).map(|info| info.dtype);
        let bytes = file.bytes(name)?;
        let dtype = dtype.expect("bytes() has refused an unknown name");
        Ok((dtype, bytes.to_vec()))
    }

    /// The same tensors with the same shapes? What only one of the two has must be a copy of
    /// something that both have, as a tied head is.
    pub(super) fn match_with(&mut self, other: &mut Self) -> Result<(), MergeError> {
        let names: BTreeSet<String> = self
            .place
            .keys()
            .chain(other.place.keys())
            .cloned()
            .collect();
        for name in names {
            match (self.info(&name), other.info(&name)) {
                (Some(mine), Some(theirs)) if mine.shape != theirs.shape => {
                    return Err(MergeError::Tensor {
                        message: format!(
                            "has shape {:?} in {} and {:?} in {}",
                            mine.shape,
                            self.folder.display(),
                            theirs.shape,
                            other.folder.display()
                        ),
                        tensor: name,
                    });
                }
                (Some(_), Some(_)) => {}
                (Some(_), None) => match self.copy_of(&name, other)? {
                    Some(twin) => {
                        other.twins.insert(name, twin);
                    }
                    None => return Err(only_in(&name, self, other)),
                },
                (None, _) => {
                    if other.copy_of(&name, self)?.is_none() {
                        return Err(only_in(&name, other, self));
                    }
                }
            }
        }
        Ok(())
    }

    /// A tensor of this model that is the same as its `name`, and that `other` has too.
    fn copy_of(&mut self, name: &str, other: &Self) -> Result<Option<String>, MergeError> {
        let info = self.info(name).cloned();
        let alike = |candidate: &&String| {
            let found = self.info(candidate);
            let same = found.zip(info.as_ref());
            *candidate != name
                && other.place.contains_key(*candidate)
                && same.is_some_and(|(a, b)| a.dtype == b.dtype && a.shape == b.shape)
        };
        let candidates: Vec<String> = self.place.keys().filter(alike).cloned().collect();
        if candidates.is_empty() {
            return Ok(None);
        }
        let own = self.tensor(name)?;
        for candidate in candidates {
            if self.tensor(&candidate)? == own {
                return Ok(Some(candidate));
            }
        }
        Ok(None)
    }
}

fn only_in(name: &str, has: &Model, lacks: &Model) -> MergeError {
    MergeError::Tensor {
        tensor: name.to_owned(),
        message: format!(
            "is in {} and not in {}, and it is no copy of another tensor there, as a head is that is \
             tied to the embedding; they are not of one model",
            has.folder.display(),
            lacks.folder.display()
        ),
    }
}

/// A LoRA adapter of the first model: `W + (alpha / r) B A`.
pub(super) struct Adapter {
    file: TensorFile,
    scale: f64,
}

impl Adapter {
    /// Opens the adapter in `folder`; everything in it has to belong to a tensor of `first`.
    pub(super) fn open(folder: &Path, first: &Model) -> Result<Self, MergeError> {
        let plan = checkpoint::adapter_plan(folder)?;
        let file = TensorFile::open(&folder.join(ADAPTER_WEIGHTS))?;
        file.expect_whole()?;
        let rank = plan.rank;
        let mut known = BTreeSet::new();
        for name in first.place.keys() {
            let parts = ["lora_A", "lora_B"].map(|part| lora::adapter_name(name, part));
            let (a, b) = (file.info(&parts[0]), file.info(&parts[1]));
            let fits = match (a, b, first.info(name)) {
                (None, None, _) => continue,
                (Some(a), Some(b), Some(info)) => {
                    matches!(info.shape[..], [rows, columns]
                        if a.shape == [rank, columns] && b.shape == [rows, rank])
                }
                _ => false,
            };
            if !fits {
                return Err(MergeError::Tensor {
                    tensor: name.clone(),
                    message: format!(
                        "the adapter in {} has no lora_A and lora_B of rank {rank} that fit it",
                        folder.display()
                    ),
                });
            }
            known.extend(parts);
        }
        if let Some(stranger) = file.names().find(|name| !known.contains(*name)) {
            return Err(MergeError::Tensor {
                tensor: stranger.to_owned(),
                message: format!(
                    "of the adapter in {} belongs to no tensor of {}; it adapts another model",
                    folder.display(),
                    first.folder.display()
                ),
            });
        }
        Ok(Self {
            file,
            scale: plan.alpha / rank as f64,
        })
    }

    /// `(alpha / r) B A`, `[rows, columns]`; `None` where the tensor `name` is not adapted.
    pub(super) fn change(&mut self, name: &str) -> Result<Option<Vec<f64>>, MergeError> {
        let [a, b] = ["lora_A", "lora_B"].map(|part| lora::adapter_name(name, part));
        let Some(shape) = self.file.info(&a).map(|info| info.shape.clone()) else {
            return Ok(None);
        };
        let (rank, columns) = (shape[0], shape[1]);
        let (a, b) = (self.numbers(&a)?, self.numbers(&b)?);
        let mut change = vec![0.0; b.len() / rank * columns];
        change
            .par_chunks_mut(columns)
            .zip(b.par_chunks(rank))
            .for_each(|(row, b)| {
                for (b, a) in b.iter().zip(a.chunks_exact(columns)) {
                    for (sum, a) in row.iter_mut().zip(a) {
                        *sum += self.scale * b * a;
                    }
                }
            });
        Ok(Some(change))
    }

    fn numbers(&mut self, name: &str) -> Result<Vec<f64>, MergeError> {
        let dtype = self.file.info(name).map(|info| info.dtype);
        let bytes = self.file.bytes(name)?;
        let dtype = dtype.expect("bytes() has refused an unknown name");
        let width = width(dtype).ok_or_else(|| MergeError::Tensor {
            tensor: name.to_owned(),
            message: format!("is {dtype:?} and no number in F32, BF16, F16 or F64"),
        })?;
        Ok(bytes
            .chunks_exact(width)
            .map(|place| value(dtype, place))
            .collect())
    }
}
