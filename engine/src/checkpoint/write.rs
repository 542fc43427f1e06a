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
    // The library's file is readable by its owner alone; a checkpoint is for everyone whom the
    // user's umask lets read.
    let io = |source| EngineError::io(path, source);
    let permissions = File::create(path)
        .and_then(|file| Ok(file.metadata()?.permissions()))
        .map_err(io)?;
    serialize_to_file(views(tensors)?, Some(metadata()), path)
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
    let views = views(tensors)?;
    let bytes = serialize(views, Some(metadata())).map_err(|e| cannot_write(path, e))?;
    Ok(atomic::write_bytes(path, &bytes)?)
}

fn views<'t>(
    tensors: impl IntoIterator<Item = (String, &'t Tensor)>,
) -> Result<Vec<(String, Values)>, EngineError> {
    tensors
        .into_iter()
        .map(|(name, tensor)| Ok((name, Values::new(tensor)?)))
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

/// A tensor on the CPU, turned into bytes when its turn comes.
struct Values {
    tensor: Tensor,
}

impl Values {
    fn new(tensor: &Tensor) -> Result<Self, EngineError> {
        let tensor = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        Ok(Self {
            tensor: tensor.contiguous()?,
        })
    }
}

impl View for Values {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.tensor.dims()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let values = crate::kernels::host::read("save", &self.tensor).expect("f32 on the CPU");
        Cow::Owned(values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    fn data_len(&self) -> usize {
        self.tensor.elem_count() * 4
    }
}
