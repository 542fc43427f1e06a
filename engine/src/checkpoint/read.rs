//! Tensors out of safetensors files, mapped into memory: what is read goes from the file's pages to where
//! it is computed with.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;
use safetensors::{
    Dtype,
    tensor::{Metadata, TensorInfo},
};

use super::stacked::Stack;
use crate::error::EngineError;

/// Longest header that the format allows, bytes.
const MAX_HEADER: u64 = 100_000_000;

/// An opened safetensors file. It has to keep its length while it is open: this program replaces files
/// whole and never shortens one.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    map: Mmap,
    /// Bytes of the length prefix and the header.
    header: usize,
    tensors: BTreeMap<String, TensorInfo>,
}

impl TensorFile {
    /// Reads and checks the header.
    ///
    /// # Errors
    /// When the file cannot be read, is truncated before the data, or is no safetensors file.
    pub fn open(path: &Path) -> Result<Self, EngineError> {
        let io = |source| EngineError::io(path, source);
        let broken = |message: String| EngineError::Checkpoint {
            path: path.to_owned(),
            message,
        };
        let file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        if length < 8 {
            return Err(broken(format!(
                "{length} bytes are no safetensors file; copy or download it again"
            )));
        }
        // SAFETY: the file is mapped for reading. Whoever changed it meanwhile would change weights, which
        // are numbers whatever their bits are; whoever shortened it would end this process, see the
        // type's documentation.
        #[expect(unsafe_code, reason = "see the safety comment")]
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let length = map.len() as u64;
        let Some(prefix) = map.first_chunk() else {
            return Err(broken("has been shortened; copy it again".to_owned()));
        };
        let size = u64::from_le_bytes(*prefix);
        if size > MAX_HEADER || size > length - 8 {
            return Err(broken(format!(
                "its header should have {size} bytes and the file has {length}; it is truncated \
                 or no safetensors file"
            )));
        }
        let header = 8 + size as usize;
        let metadata: Metadata = serde_json::from_slice(&map[8..header])
            .map_err(|e| broken(format!("its header is no safetensors header: {e}")))?;
        let tensors = metadata
            .tensors()
            .into_iter()
            .map(|(name, info)| (name, info.clone()))
            .collect();
        Ok(Self {
            path: path.to_owned(),
            map,
            header,
            tensors,
        })
    }

    /// Makes the members of `stack` tensors of this file, where it has the stack.
    ///
    /// # Errors
    /// When the stack has another number of members.
    pub(super) fn unstack(&mut self, stack: &Stack) -> Result<(), EngineError> {
        let Some(info) = self.tensors.remove(&stack.name) else {
            return Ok(());
        };
        let n = stack.members.len();
        let (start, end) = info.data_offsets;
        if info.shape.first() != Some(&n) || end < start {
            return Err(EngineError::Checkpoint {
                path: self.path.clone(),
                message: format!(
                    "tensor {} has the shape {:?}; it should hold {n} experts",
                    stack.name, info.shape
                ),
            });
        }
        let bytes = (end - start) / n;
        for (member, name) in stack.members.iter().enumerate() {
            let from = start + member * bytes;
            let info = TensorInfo {
                dtype: info.dtype,
                shape: info.shape[1..].to_vec(),
                data_offsets: (from, from + bytes),
            };
            if self.tensors.insert(name.clone(), info).is_some() {
                return Err(EngineError::Checkpoint {
                    path: self.path.clone(),
                    message: format!("tensor {name} is in {} too", stack.name),
                });
            }
        }
        Ok(())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The length prefix and the header, as they stand in the file: what data in the same order has
    /// to follow.
    pub fn header(&self) -> &[u8] {
        &self.map[..self.header]
    }

    /// The tensors' names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Type, shape and place of the tensor `name`.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// The tensors as their data lies in the file.
    pub fn in_order(&self) -> Vec<(String, TensorInfo)> {
        let mut all: Vec<_> = self.tensors.clone().into_iter().collect();
        all.sort_by_key(|(_, info)| info.data_offsets);
        all
    }

    /// Refuses a file whose data is not exactly what its header says, without a gap.
    ///
    /// # Errors
    /// Names the tensor, or the length.
    pub fn expect_whole(&self) -> Result<(), EngineError> {
        let mut end = 0;
        for (name, info) in self.in_order() {
            let (from, to) = info.data_offsets;
            if from != end || bytes_of(&info) != to.checked_sub(from) {
                return Err(self.broken(format!(
                    "tensor {name} has bytes {from} to {to} of the data, which its shape and type \
                     or its neighbours contradict; the header is damaged"
                )));
            }
            end = to;
        }
        let expected = self.header.saturating_add(end);
        if expected != self.map.len() {
            return Err(self.broken(format!(
                "should have {expected} bytes and has {}; copy or download it again",
                self.map.len()
            )));
        }
        Ok(())
    }

    /// The bytes of the tensor `name`, as they stand.
    ///
    /// # Errors
    /// When there is no such tensor, the header contradicts itself, or the file is truncated.
    pub fn bytes(&self, name: &str) -> Result<&[u8], EngineError> {
        let Some(info) = self.tensors.get(name) else {
            return Err(self.broken(format!("has no tensor {name}")));
        };
        let (start, end) = info.data_offsets;
        let shape = &info.shape;
        if bytes_of(info) != end.checked_sub(start) {
            return Err(self.broken(format!(
                "tensor {name} of shape {shape:?} has bytes {start} to {end} of the data, which \
                 its type {:?} contradicts; the header is damaged",
                info.dtype
            )));
        }
        let end_in_file = self.header.saturating_add(end);
        self.map
            .get(self.header.saturating_add(start)..end_in_file)
            .ok_or_else(|| {
                self.broken(format!(
                    "tensor {name} of shape {shape:?} should end at byte {end_in_file}, but the file \
                     has {} bytes: it is truncated; copy or download it again",
                    self.map.len()
                ))
            })
    }

    /// Reads one tensor. It is converted on the host, so that a device never holds another type of it
    /// than the one that was asked for; where the file has that type, the device copies it from there.
    fn tensor(&self, wanted: &Wanted, device: &Device) -> Result<Tensor, EngineError> {
        let Wanted { name, shape, .. } = wanted;
        let info = &self.tensors[name];
        if info.shape != *shape {
            return Err(EngineError::Shape {
                tensor: name.to_owned(),
                expected: shape.to_vec(),
                found: info.shape.clone(),
            });
        }
        let dtype = match info.dtype {
            Dtype::F32 => DType::F32,
            Dtype::BF16 => DType::BF16,
            Dtype::F16 => DType::F16,
            Dtype::F64 => DType::F64,
            other => {
                return Err(self.broken(format!(
                    "tensor {name} is {other:?}; weights have to be F32, BF16, F16 or F64"
                )));
            }
        };
        let bytes = self.bytes(name)?;
        if dtype == wanted.dtype {
            return Ok(Tensor::from_raw_buffer(bytes, dtype, shape, device)?);
        }
        let tensor = Tensor::from_raw_buffer(bytes, dtype, shape, &Device::Cpu)?;
        Ok(tensor.to_dtype(wanted.dtype)?.to_device(device)?)
    }

    fn broken(&self, message: String) -> EngineError {
        EngineError::Checkpoint {
            path: self.path.clone(),
            message,
        }
    }
}

/// A tensor that is looked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// Its name in the file.
    pub name: String,
    /// The shape that it must have.
    pub shape: Vec<usize>,
    /// The type that it is turned into, whatever the file has.
    pub dtype: DType,
}

/// What a tensor of this shape and type takes; `None` when that is no number of bytes.
fn bytes_of(info: &TensorInfo) -> Option<usize> {
    let bits = info
        .shape
        .iter()
        .try_fold(info.dtype.bitsize(), |n, d| n.checked_mul(*d))?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// Reads the tensors `wanted` from `files`, in this order, one after the other.
///
/// # Errors
/// When a file is missing, truncated or no safetensors file, and when a tensor is missing or has
/// another shape; each is named.
pub fn read_tensors(
    files: &[PathBuf],
    wanted: &[Wanted],
    device: &Device,
) -> Result<Vec<Tensor>, EngineError> {
    let mut opened = files
        .iter()
        .map(|path| TensorFile::open(path))
        .collect::<Result<Vec<_>, _>>()?;
    read_opened(&mut opened, wanted, device)
}

/// The same from files that are open.
pub(super) fn read_opened(
    files: &mut [TensorFile],
    wanted: &[Wanted],
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
    wanted
        .iter()
        .map(|wanted| {
            let name = &wanted.name;
            let Some(file) = file_of.get(name) else {
                return Err(EngineError::MissingTensor {
                    tensor: name.clone(),
                    hint: format!(
                        "it is in none of {}; the checkpoint is incomplete or of another model",
                        list(files)
                    ),
                });
            };
            files[*file].tensor(wanted, device)
        })
        .collect()
}

fn list(files: &[TensorFile]) -> String {
    let names: Vec<String> = files.iter().map(|f| f.path.display().to_string()).collect();
    names.join(", ")
}
