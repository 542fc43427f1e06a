//! Tensors out of safetensors files, one at a time: no file is ever held whole.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use safetensors::{
    Dtype,
    tensor::{Metadata, TensorInfo},
};

use crate::error::EngineError;

/// Longest header that the format allows, bytes.
const MAX_HEADER: u64 = 100_000_000;

/// An opened file: its header, and where the data begins.
pub(super) struct Opened {
    path: PathBuf,
    file: File,
    data: u64,
    length: u64,
    tensors: BTreeMap<String, TensorInfo>,
}

impl Opened {
    /// Reads and checks the header.
    pub(super) fn new(path: &Path) -> Result<Self, EngineError> {
        let io = |source| EngineError::io(path, source);
        let broken = |message: String| EngineError::Checkpoint {
            path: path.to_owned(),
            message,
        };
        let mut file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        let mut prefix = [0; 8];
        if length < 8 {
            return Err(broken(format!(
                "{length} bytes are no safetensors file; copy or download it again"
            )));
        }
        file.read_exact(&mut prefix).map_err(io)?;
        let header = u64::from_le_bytes(prefix);
        if header > MAX_HEADER || header > length - 8 {
            return Err(broken(format!(
                "its header should have {header} bytes and the file has {length}; it is truncated \
                 or no safetensors file"
            )));
        }
        let mut text = vec![0; header as usize];
        file.read_exact(&mut text).map_err(io)?;
        let metadata: Metadata = serde_json::from_slice(&text)
            .map_err(|e| broken(format!("its header is no safetensors header: {e}")))?;
        let tensors = metadata
            .tensors()
            .into_iter()
            .map(|(name, info)| (name, info.clone()))
            .collect();
        Ok(Self {
            path: path.to_owned(),
            file,
            data: 8 + header,
            length,
            tensors,
        })
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Reads the tensor `name` as f32.
    fn tensor(
        &mut self,
        name: &str,
        shape: &[usize],
        device: &Device,
    ) -> Result<Tensor, EngineError> {
        let info = &self.tensors[name];
        if info.shape != shape {
            return Err(EngineError::Shape {
                tensor: name.to_owned(),
                expected: shape.to_vec(),
                found: info.shape.clone(),
            });
        }
        let broken = |message: String| EngineError::Checkpoint {
            path: self.path.clone(),
            message,
        };
        let (start, end) = info.data_offsets;
        let bits = shape.iter().product::<usize>() * info.dtype.bitsize();
        if end < start || (end - start) * 8 != bits {
            return Err(broken(format!(
                "tensor {name} of shape {shape:?} has bytes {start} to {end} of the data, which \
                 its type {:?} contradicts; the header is damaged",
                info.dtype
            )));
        }
        let end_in_file = self.data.saturating_add(end as u64);
        if end_in_file > self.length {
            return Err(broken(format!(
                "tensor {name} of shape {shape:?} should end at byte {end_in_file}, but the file \
                 has {} bytes: it is truncated; copy or download it again",
                self.length
            )));
        }
        let dtype = match info.dtype {
            Dtype::F32 => DType::F32,
            Dtype::BF16 => DType::BF16,
            Dtype::F16 => DType::F16,
            Dtype::F64 => DType::F64,
            other => {
                return Err(broken(format!(
                    "tensor {name} is {other:?}; weights have to be F32, BF16, F16 or F64"
                )));
            }
        };
        let io = |source| EngineError::io(&self.path, source);
        let mut bytes = vec![0; end - start];
        self.file
            .seek(SeekFrom::Start(self.data + start as u64))
            .map_err(io)?;
        self.file.read_exact(&mut bytes).map_err(io)?;
        let tensor = Tensor::from_raw_buffer(&bytes, dtype, shape, &Device::Cpu)?;
        Ok(tensor.to_dtype(DType::F32)?.to_device(device)?)
    }
}

/// Reads the tensors `names` (with the shapes they must have) from `files`, as f32, in the order of
/// `names`.
///
/// # Errors
/// When a file is missing, truncated or no safetensors file, and when a tensor is missing or has
/// another shape; each is named.
pub fn read_tensors(
    files: &[PathBuf],
    names: &[(String, Vec<usize>)],
    device: &Device,
) -> Result<Vec<Tensor>, EngineError> {
    let mut opened = files
        .iter()
        .map(|path| Opened::new(path))
        .collect::<Result<Vec<_>, _>>()?;
    read_opened(&mut opened, names, device)
}

/// The same from files that are open.
pub(super) fn read_opened(
    files: &mut [Opened],
    names: &[(String, Vec<usize>)],
    device: &Device,
) -> Result<Vec<Tensor>, EngineError> {
    let mut file_of: BTreeMap<String, usize> = BTreeMap::new();
    for (index, file) in files.iter().enumerate() {
        for name in file.names() {
            if let Some(first) = file_of.insert(name.to_owned(), index) {
                return Err(EngineError::Checkpoint {
                    path: file.path.clone(),
                    message: format!("tensor {name} is in {} too", files[first].path.display()),
                });
            }
        }
    }
    names
        .iter()
        .map(|(name, shape)| {
            let Some(file) = file_of.get(name) else {
                return Err(EngineError::MissingTensor {
                    tensor: name.clone(),
                    hint: format!(
                        "it is in none of {}; the checkpoint is incomplete or of another model",
                        list(files)
                    ),
                });
            };
            files[*file].tensor(name, shape, device)
        })
        .collect()
}

fn list(files: &[Opened]) -> String {
    let names: Vec<String> = files.iter().map(|f| f.path.display().to_string()).collect();
    names.join(", ")
}
