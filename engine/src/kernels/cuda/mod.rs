//! The kernels on an NVIDIA GPU: the host's side of the `.cu` files beside the CPU kernels.
//!
//! Each function here is the twin of one in the file of the same name a folder up, which hands over
//! to it when its tensors are on a GPU ([`runs`]): the same arguments, results and checks. Decoding is
//! the exception (`decode`, `sample`, `graph`): `crate::generate` calls it, since a GPU decodes another
//! way than a CPU. Tensors
//! are f32 or bfloat16 throughout (all of one call the same, but gradient slots, log-sum-exps and
//! statistics, which are f32); sums are f32 inside.
//!
//! Everything is ordered by the device's one stream, and nothing waits for it but what reads numbers
//! back: the head's statistics, the norm of the gradients, and generation when it looks for answers.
//!
//! In unit tests [`emulated`] stands in for the GPU: the same `.cu` files as C++ on the CPU, started
//! by the same launches, and the CPU's matrix product in place of cuBLAS.

pub(super) mod adamw;
mod addresses;
pub(crate) mod attention;
pub(super) mod cross_entropy;
#[cfg(any(test, cudnn_attention))]
mod cudnn;
pub(crate) mod decode;
pub(crate) mod embedding;
#[cfg(test)]
mod emulated;
pub(super) mod experts;
pub(crate) mod gemm;
pub(super) mod gradients;
pub(crate) mod graph;
mod launch;
pub(super) mod linear;
pub(crate) mod memory;
pub(super) mod normal;
pub(crate) mod residual;
pub(crate) mod rms_norm;
pub(crate) mod rotary;
pub(super) mod routing;
pub(crate) mod sample;
#[cfg(feature = "cuda")]
mod staging;
pub(crate) mod swiglu;
mod tensor_list;
#[cfg(test)]
mod tests;

use candle_core::{Device, Tensor};

/// Whether kernels for `tensor` are these.
pub(crate) fn runs(tensor: &Tensor) -> bool {
    runs_on(tensor.device())
}

/// Whether kernels on `device` are these.
pub(super) fn runs_on(device: &Device) -> bool {
    #[cfg(test)]
    if emulated::is_on() {
        return true;
    }
    device.is_cuda()
}
