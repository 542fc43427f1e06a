//! Tensors as addresses, and small host data on the device.

use std::cell::RefCell;

use candle_core::{CpuStorage, DType, Device, Result, Shape, Storage, Tensor, WithDType, bail};

use crate::kernels::buffers::KEPT_LISTS;

/// A new tensor of unspecified values, for kernels that write every one of them.
#[expect(unsafe_code, reason = "see the safety comment")]
pub(crate) fn overwritten(
    shape: impl Into<Shape>,
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    // SAFETY: every bit pattern is a number of these types, and each caller writes all elements
    // before anything reads one.
    unsafe { Tensor::empty(shape, dtype, device) }
}

/// Zeros.
pub(crate) fn zeros(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
    Tensor::zeros(shape, dtype, device)
}

/// Where the first element of a contiguous tensor is, as kernels see it.
pub(super) fn address(op: &str, tensor: &Tensor) -> Result<u64> {
    if !tensor.is_contiguous() {
        bail!("{op}: the tensor is not contiguous; call contiguous() first");
    }
    let (storage, layout) = tensor.storage_and_layout();
    let offset = (layout.start_offset() * tensor.dtype().size_in_bytes()) as u64;
    let start = match &*storage {
        #[cfg(feature = "cuda")]
        Storage::Cuda(storage) => on_device(op, storage)?,
        // Only the emulator gets here: `runs` is false for tensors on the CPU otherwise.
        Storage::Cpu(storage) => on_host(op, storage)?,
        _ => bail!("{op}: no kernel for the device {:?}", tensor.device()),
    };
    Ok(start + offset)
}

#[cfg(feature = "cuda")]
fn on_device(op: &str, storage: &candle_core::CudaStorage) -> Result<u64> {
    use candle_core::cuda_backend::{CudaStorageSlice as Slice, cudarc::driver::DevicePtr};

    let stream = storage.device.cuda_stream();
    // The guards record events, which are off: there is one stream.
    Ok(match &storage.slice {
        Slice::F32(values) => values.device_ptr(&stream).0,
        Slice::BF16(values) => values.device_ptr(&stream).0,
        Slice::F64(values) => values.device_ptr(&stream).0,
        Slice::U32(values) => values.device_ptr(&stream).0,
        Slice::U8(values) => values.device_ptr(&stream).0,
        _ => bail!("{op}: kernels compute in F32 or BF16"),
    })
}

fn on_host(op: &str, storage: &CpuStorage) -> Result<u64> {
    Ok(match storage {
        CpuStorage::F32(values) => values.as_ptr() as u64,
        CpuStorage::BF16(values) => values.as_ptr() as u64,
        CpuStorage::F64(values) => values.as_ptr() as u64,
        CpuStorage::U32(values) => values.as_ptr() as u64,
        CpuStorage::U8(values) => values.as_ptr() as u64,
        _ => bail!("{op}: kernels compute in F32 or BF16"),
    })
}

/// `values` on the device. The copy is queued; nothing waits for what is queued before it.
pub(crate) fn upload<T: WithDType>(values: &[T], device: &Device) -> Result<Tensor> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) if !values.is_empty() => {
            let tensor = overwritten(values.len(), T::DTYPE, device)?;
            // SAFETY: these are numbers without padding; any bytes are `u8`s.
            #[expect(unsafe_code, reason = "see the safety comment")]
            let bytes =
                unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) };
            super::staging::copy(bytes, address("upload", &tensor)?, cuda)?;
            Ok(tensor)
        }
        _ => Tensor::new(values, device),
    }
}

thread_local! {
    /// Least recently used first.
    static INDICES: RefCell<Vec<(Vec<u32>, Tensor)>> = const { RefCell::new(Vec::new()) };
}

/// `values` on the device. The same list again, as every layer of a pass asks, is not copied again.
pub(super) fn indices(values: &[u32], device: &Device) -> Result<Tensor> {
    INDICES.with_borrow_mut(|kept| {
        let same = |(known, tensor): &(Vec<u32>, Tensor)| {
            known == values && tensor.device().same_device(device)
        };
        if let Some(at) = kept.iter().position(same) {
            let found = kept.remove(at);
            let tensor = found.1.clone();
            kept.push(found);
            return Ok(tensor);
        }
        let tensor = upload(values, device)?;
        if kept.len() == KEPT_LISTS {
            kept.remove(0);
        }
        kept.push((values.to_vec(), tensor.clone()));
        Ok(tensor)
    })
}

/// Refuses tensors of several types in one call, and types that have no kernel.
pub(super) fn one_dtype(op: &str, tensors: &[&Tensor]) -> Result<DType> {
    let dtype = tensors[0].dtype();
    if !matches!(dtype, DType::F32 | DType::BF16) {
        bail!("{op}: found {dtype:?}; the CUDA kernels compute in F32 or BF16");
    }
    if let Some(other) = tensors.iter().find(|t| t.dtype() != dtype) {
        bail!(
            "{op}: found {dtype:?} and {:?} in one call; convert one of them",
            other.dtype()
        );
    }
    Ok(dtype)
}
