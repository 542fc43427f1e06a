//! CPU slices of tensors: borrowed, written in place, or new.

use std::{cell::Cell, marker::PhantomData, ops::Deref};

use candle_core::{
    CpuStorage, DType, Device, InplaceOp1, Layout, Result, Shape, Storage, StorageRef, Tensor, bail,
};
use half::bf16;

/// The elements of a contiguous f32 tensor on the CPU, locked for reading.
pub(crate) struct View<'a> {
    storage: StorageRef<'a>,
    start: usize,
    len: usize,
}

/// Borrows the elements of `tensor` for the operation `op`.
///
/// # Errors
/// When the tensor is not f32, not contiguous, or on a device that has no such kernel.
pub(crate) fn read<'a>(op: &str, tensor: &'a Tensor) -> Result<View<'a>> {
    check::<f32>(op, tensor)?;
    let (storage, layout) = tensor.storage_and_layout();
    Ok(View {
        storage,
        start: layout.start_offset(),
        len: layout.shape().elem_count(),
    })
}

impl Deref for View<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.start..self.start + self.len],
            _ => unreachable!("`read` has checked device and dtype"),
        }
    }
}

/// What tensors that kernels write hold.
trait Element: Sized {
    const DTYPE: DType;

    fn of(storage: &mut CpuStorage) -> Option<&mut Vec<Self>>;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;

    fn of(storage: &mut CpuStorage) -> Option<&mut Vec<Self>> {
        match storage {
            CpuStorage::F32(values) => Some(values),
            _ => None,
        }
    }
}

impl Element for u8 {
    const DTYPE: DType = DType::U8;

    fn of(storage: &mut CpuStorage) -> Option<&mut Vec<Self>> {
        match storage {
            CpuStorage::U8(values) => Some(values),
            _ => None,
        }
    }
}

impl Element for bf16 {
    const DTYPE: DType = DType::BF16;

    fn of(storage: &mut CpuStorage) -> Option<&mut Vec<Self>> {
        match storage {
            CpuStorage::BF16(values) => Some(values),
            _ => None,
        }
    }
}

fn check<T: Element>(op: &str, tensor: &Tensor) -> Result<()> {
    match tensor.device() {
        Device::Cpu => {}
        device => bail!("{op}: no kernel for the device {device:?} in this build; use cpu"),
    }
    if tensor.dtype() != T::DTYPE {
        bail!(
            "{op}: found {:?}; the CPU kernels compute in {:?} here",
            tensor.dtype(),
            T::DTYPE
        );
    }
    if !tensor.is_contiguous() {
        bail!("{op}: the tensor is not contiguous; call contiguous() first");
    }
    Ok(())
}

/// Runs `body` on the elements of `tensor`, in place. Everything that shares the tensor's storage
/// sees the change, so callers write only into tensors they made or accumulate into.
///
/// The storage is locked meanwhile: `body` must not touch the same tensor again.
pub(crate) fn write<R>(
    op: &'static str,
    tensor: &Tensor,
    body: impl FnOnce(&mut [f32]) -> R,
) -> Result<R> {
    write_any(op, tensor, body)
}

/// [`write()`] of a tensor of bytes.
pub(crate) fn write_bytes<R>(
    op: &'static str,
    tensor: &Tensor,
    body: impl FnOnce(&mut [u8]) -> R,
) -> Result<R> {
    write_any(op, tensor, body)
}

/// [`write()`] of a tensor of bfloat16.
pub(crate) fn write_bf16<R>(
    op: &'static str,
    tensor: &Tensor,
    body: impl FnOnce(&mut [bf16]) -> R,
) -> Result<R> {
    write_any(op, tensor, body)
}

fn write_any<T: Element, R>(
    op: &'static str,
    tensor: &Tensor,
    body: impl FnOnce(&mut [T]) -> R,
) -> Result<R> {
    check::<T>(op, tensor)?;
    let write = Write {
        op,
        body: Cell::new(Some(body)),
        result: Cell::new(None),
        element: PhantomData,
    };
    tensor.inplace_op1(&write)?;
    Ok(write.result.into_inner().expect("candle ran the operation"))
}

struct Write<T, F, R> {
    op: &'static str,
    body: Cell<Option<F>>,
    result: Cell<Option<R>>,
    element: PhantomData<T>,
}

impl<T: Element, R, F: FnOnce(&mut [T]) -> R> InplaceOp1 for Write<T, F, R> {
    fn name(&self) -> &'static str {
        self.op
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let Some(values) = T::of(storage) else {
            bail!("{}: not a tensor of {:?}", self.op, T::DTYPE)
        };
        let start = layout.start_offset();
        let body = self.body.take().expect("candle runs an operation once");
        let values = &mut values[start..start + layout.shape().elem_count()];
        self.result.set(Some(body(values)));
        Ok(())
    }
}

/// A tensor made of `values`, without a copy.
pub(crate) fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape.into(), &Device::Cpu)
}

/// `len` floats of unspecified value, for kernels that write every one of them before anyone reads.
#[expect(unsafe_code, clippy::uninit_vec, reason = "see the safety comment")]
pub(crate) fn overwritten(len: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(len);
    // SAFETY: the capacity is `len`, every bit pattern is an f32, and each caller writes all
    // elements before reading any. Zeroing them first costs a single-threaded pass over each
    // activation, about a tenth of a training step.
    unsafe { values.set_len(len) };
    values
}

/// The two sizes of a `[rows, columns]` tensor.
///
/// # Errors
/// Names `what` when it has another number of dimensions.
pub(crate) fn dims2(what: &str, tensor: &Tensor) -> Result<(usize, usize)> {
    match tensor.dims() {
        [rows, columns] => Ok((*rows, *columns)),
        found => bail!("{what}: expected [rows, columns], found {found:?}"),
    }
}

/// Refuses a tensor that does not have the shape `expected`.
pub(crate) fn expect(what: &str, tensor: &Tensor, expected: &[usize]) -> Result<()> {
    if tensor.dims() == expected {
        Ok(())
    } else {
        bail!(
            "{what}: expected shape {expected:?}, found {:?}",
            tensor.dims()
        )
    }
}

/// Rows per parallel task. Fixed, so that partial sums do not depend on the number of threads.
pub(crate) const ROWS_PER_TASK: usize = 32;
