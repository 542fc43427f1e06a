//! One fused function per operation; layers call them, tests compare them with naive oracles.
//!
//! f32 on CPU, in parallel over rows, heads or output tiles. Work is split by fixed block sizes and
//! partial sums are added in a fixed order, so results do not depend on how threads interleave.
//! Every kernel reads tensors through `host`, which refuses devices that have no kernel. Tensors on an
//! NVIDIA GPU are handed over to the twins in `cuda`, in builds that have them.

/// Hands over to the CUDA twin where `$tensor` is on a GPU; nothing in a build without one.
macro_rules! on_cuda {
    ($tensor:expr, $twin:expr) => {
        #[cfg(any(test, feature = "cuda"))]
        if $crate::kernels::cuda::runs($tensor) {
            return $twin;
        }
    };
}

pub mod adamw;
pub mod attention;
mod attention_pattern;
pub(crate) mod buffers;
pub mod cross_entropy;
#[cfg(any(test, feature = "cuda"))]
pub(crate) mod cuda;
pub(crate) mod decode_attention;
pub(crate) mod decode_linear;
pub(crate) mod decode_rows;
mod disjoint;
pub mod embedding;
pub mod experts;
pub mod gradients;
pub(crate) mod host;
pub mod linear;
pub(crate) mod matmul;
pub mod normal;
pub mod residual;
pub mod rms_norm;
pub mod rotary;
pub mod routing;
pub(crate) mod simd;
mod sketch;
pub mod swiglu;

pub use matmul::Into;

/// Whether there are kernels for the type of `tensor` where it is.
pub(crate) fn compute_in_its_type(tensor: &candle_core::Tensor) -> bool {
    use candle_core::DType;
    on_cuda!(tensor, matches!(tensor.dtype(), DType::F32 | DType::BF16));
    tensor.dtype() == DType::F32
}
