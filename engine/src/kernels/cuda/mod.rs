//! The kernels on an NVIDIA GPU: the host's side of the `.cu` files beside the CPU kernels.
//!
//! Each function here is the twin of one in the file of the same name a folder up, which hands over
//! to it when its tensors are on a GPU ([`runs`]): the same arguments, results and checks. Tensors
//! are f32 or bfloat16 throughout (all of one call the same, but gradient slots, log-sum-exps and
//! statistics, which are f32); sums are f32 inside.
//!
//! Everything is ordered by the device's one stream, and nothing waits for it but what reads numbers
//! back: the head's statistics and the norm of the gradients.
//!
//! In unit tests [`emulated`] stands in for the GPU: the same `.cu` files as C++ on the CPU, started
//! by the same launches, and the CPU's matrix product in place of cuBLAS.

pub(super) mod adamw;
pub(super) mod attention;
pub(super) mod cross_entropy;
#[cfg(any(test, cudnn_attention))]
mod cudnn;
pub(super) mod embedding;
#[cfg(test)]
mod emulated;
mod gemm;
pub(super) mod gradients;
mod launch;
pub(super) mod linear;
mod memory;
pub(super) mod normal;
pub(super) mod residual;
pub(super) mod rms_norm;
pub(super) mod rotary;
pub(super) mod swiglu;
mod tensor_list;
#[cfg(test)]
mod tests;

use candle_core::{Device, Tensor};

/// Whether kernels for `tensor` are these.
pub(super) fn runs(tensor: &Tensor) -> bool {
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
