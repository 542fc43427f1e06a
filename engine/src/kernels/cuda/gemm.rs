//! Matrix products: cuBLAS, f32 accumulation.

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::kernels::Into;

/// A row-major matrix inside a contiguous tensor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a> {
    tensor: &'a Tensor,
    /// Elements before the first.
    offset: usize,
    /// Elements between two rows.
    stride: usize,
    rows: usize,
    columns: usize,
    transposed: bool,
}

impl<'a> Matrix<'a> {
    /// The whole of a `[rows, columns]` tensor.
    pub(crate) fn new(tensor: &'a Tensor) -> Result<Self> {
        let (rows, columns) = tensor.dims2()?;
        Ok(Self {
            tensor,
            offset: 0,
            stride: columns,
            rows,
            columns,
            transposed: false,
        })
    }

    /// Columns `start..start + len`.
    pub(super) fn columns(self, start: usize, len: usize) -> Self {
        debug_assert!(!self.transposed && start + len <= self.columns);
        Self {
            offset: self.offset + start,
            columns: len,
            ..self
        }
    }

    /// The transpose.
    pub(crate) fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            transposed: !self.transposed,
            ..self
        }
    }
}

/// `dst (+)= scale * a b`. `a` and `b` have one type, `dst` that or f32.
pub(crate) fn gemm(
    op: &str,
    dst: &Tensor,
    into: Into,
    a: Matrix<'_>,
    b: Matrix<'_>,
    scale: f32,
) -> Result<()> {
    let c = Matrix::new(dst)?;
    if (c.rows, c.columns, a.columns) != (a.rows, b.columns, b.rows) {
        bail!(
            "{op}: no product of [{}, {}] and [{}, {}] is [{}, {}]",
            a.rows,
            a.columns,
            b.rows,
            b.columns,
            c.rows,
            c.columns
        );
    }
    super::memory::one_dtype(op, &[a.tensor, b.tensor])?;
    if dst.dtype() != a.tensor.dtype() && dst.dtype() != DType::F32 {
        bail!(
            "{op}: a product of {:?} into {:?}",
            a.tensor.dtype(),
            dst.dtype()
        );
    }
    if c.rows == 0 || c.columns == 0 {
        return Ok(());
    }
    match dst.device() {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => cublas(op, device, c, into, a, b, scale),
        #[cfg(test)]
        Device::Cpu => super::emulated::gemm(c, into, a, b, scale),
        device => bail!("{op}: no matrix product for the device {device:?} ({into:?}, {scale})"),
    }
}

/// cuBLAS reads column-major matrices: a row-major one is the transpose of what it sees, so it is
/// asked for `c^T = b^T a^T`, and each operand is as it stands unless it is transposed here.
#[cfg(feature = "cuda")]
fn cublas(
    op: &str,
    device: &candle_core::CudaDevice,
    c: Matrix<'_>,
    into: Into,
    a: Matrix<'_>,
    b: Matrix<'_>,
    scale: f32,
) -> Result<()> {
    use candle_core::cuda_backend::cudarc::cublas::{result::gemm_ex, sys};

    let operation = |m: Matrix<'_>| match m.transposed {
        false => sys::cublasOperation_t::CUBLAS_OP_N,
        true => sys::cublasOperation_t::CUBLAS_OP_T,
    };
    let pointer = |m: Matrix<'_>| -> Result<u64> {
        let bytes = m.offset * m.tensor.dtype().size_in_bytes();
        Ok(super::memory::address(op, m.tensor)? + bytes as u64)
    };
    let kind = |m: Matrix<'_>| match m.tensor.dtype() {
        DType::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
        _ => sys::cudaDataType_t::CUDA_R_32F,
    };
    let int = |n: usize| {
        i32::try_from(n).map_err(|_| candle_core::Error::Msg(format!("{op}: {n} rows or columns")))
    };
    let (alpha, beta) = (scale, if into == Into::Add { 1.0f32 } else { 0.0 });
    let blas = device.cublas_handle();
    let product = [int(c.rows)?, int(a.columns)?, int(c.columns)?];
    let (b_at, a_at, c_at) = (pointer(b)?, pointer(a)?, pointer(c)?);
    let (b_stride, a_stride, c_stride) = (int(b.stride)?, int(a.stride)?, int(c.stride)?);
    let named = || format!("{op} {} x {} x {}", product[0], product[1], product[2]);
    crate::profile::around(device, named, || {
        // SAFETY: shapes were checked against each other and each matrix lies inside its tensor by
        // construction; alpha and beta are host floats, which is the handle's default pointer mode.
        #[expect(unsafe_code, reason = "see the safety comment")]
        let result = unsafe {
            gemm_ex(
                *blas.handle(),
                operation(b),
                operation(a),
                product[2],
                product[0],
                product[1],
                std::ptr::from_ref(&alpha).cast(),
                b_at as *const _,
                kind(b),
                b_stride,
                a_at as *const _,
                kind(a),
                a_stride,
                std::ptr::from_ref(&beta).cast(),
                c_at as *mut _,
                kind(c),
                c_stride,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        result.map_err(|error| candle_core::Error::Msg(format!("{op}: cuBLAS: {error:?}")))
    })
}

#[cfg(test)]
impl Matrix<'_> {
    /// Rows and columns of the product's shape.
    pub(super) fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// The tensor that holds it.
    pub(super) fn tensor(&self) -> &Tensor {
        self.tensor
    }

    /// Index of element `(i, j)` in the tensor.
    pub(super) fn at(&self, i: usize, j: usize) -> usize {
        match self.transposed {
            false => self.offset + i * self.stride + j,
            true => self.offset + j * self.stride + i,
        }
    }
}
