//! Tensors into a safetensors file, one at a time.

use std::{
    borrow::Cow,
    collections::HashMap,
    fs::{self, File},
    path::Path,
};

use candle_core::{DType, Device, Tensor};
use safetensors::{Dtype, SafeTensorError, View, serialize, tensor::serialize_to_file};
use t3s_core::atomic;

use super::stacked::Entry;
use crate::error::EngineError;

/// Writes `tensors` as f32 into the new file `path`, with the metadata that transformers asks for.
/// Not atomic by itself: callers write into a folder that is moved into place.
///
/// # Errors
/// When the file cannot be written.
pub fn write_tensors<'t>(
    path: &Path,
    tensors: impl IntoIterator<Item = (String, &'t Tensor)>,
) -> Result<(), EngineError> {
    let single = |(name, tensor)| Entry::single(name, tensor);
    write_entries(path, tensors.into_iter().map(single))
}

/// The same of tensors, some of which are stacks.
pub(super) fn write_entries<'t>(
    path: &Path,
    entries: impl IntoIterator<Item = Entry<'t>>,
) -> Result<(), EngineError> {
    // The library's file is readable by its owner alone; a checkpoint is for everyone whom the
    // user's umask lets read.
    let io = |source| EngineError::io(path, source);
    let permissions = File::create(path)
        .and_then(|file| Ok(file.metadata()?.permissions()))
        .map_err(io)?;
    serialize_to_file(views(entries)?, Some(metadata()), path)
        .map_err(|e| cannot_write(path, e))?;
    fs::set_permissions(path, permissions).map_err(io)
}

/// Writes `tensors` as f32 into the file `path`, whole or not at all.
///
/// # Errors
/// When the file cannot be written; what was there before is untouched.
pub fn save_tensors<'t>(
    path: &Path,
    tensors: impl IntoIterator<Item = (String, &'t Tensor)>,
) -> Result<(), EngineError> {
    let single = |(name, tensor)| Entry::single(name, tensor);
    let views = views(tensors.into_iter().map(single))?;
    let bytes = serialize(views, Some(metadata())).map_err(|e| cannot_write(path, e))?;
    Ok(atomic::write_bytes(path, &bytes)?)
}

fn views<'t>(
    entries: impl IntoIterator<Item = Entry<'t>>,
) -> Result<Vec<(String, Values)>, EngineError> {
    entries
        .into_iter()
        .map(|entry| Ok((entry.name.clone(), Values::new(&entry)?)))
        .collect()
}

fn metadata() -> HashMap<String, String> {
    HashMap::from([("format".to_owned(), "pt".to_owned())])
}

fn cannot_write(path: &Path, error: SafeTensorError) -> EngineError {
    match error {
        SafeTensorError::IoError(source) => EngineError::io(path, source),
        error => EngineError::Checkpoint {
            path: path.to_owned(),
            message: format!("cannot be written: {error}"),
        },
    }
}

/// Tensors on the CPU, turned into bytes when their turn comes.
struct Values {
    shape: Vec<usize>,
    parts: Vec<Tensor>,
}

impl Values {
    fn new(entry: &Entry<'_>) -> Result<Self, EngineError> {
        let on_cpu = |part: &&Tensor| -> Result<Tensor, EngineError> {
            let part = part.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
            Ok(part.contiguous()?)
        };
        let parts = entry
            .parts
            .iter()
            .map(on_cpu)
            .collect::<Result<Vec<_>, _>>()?;
        let mut shape = parts.first().map_or(&[][..], |part| part.dims()).to_vec();
        if entry.is_stack {
            shape.insert(0, parts.len());
        }
        Ok(Self { shape, parts })
    }
}

impl View for Values {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = Vec::with_capacity(self.data_len());
        for part in &self.parts {
            let values = crate::kernels::host::read("save", part).expect("f32 on the CPU");
            bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        }
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        self.parts.iter().map(|part| part.elem_count() * 4).sum()
    }
}
