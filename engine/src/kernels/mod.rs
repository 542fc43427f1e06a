//! One fused function per operation; layers call them, tests compare them with naive oracles.
//!
//! f32 on CPU, in parallel over rows, heads or output tiles. Work is split by fixed block sizes and
//! partial sums are added in a fixed order, so results do not depend on how threads interleave.
//! Every kernel reads tensors through `host`, which refuses devices that have no kernel yet.

pub mod adamw;
pub mod attention;
mod attention_pattern;
pub mod cross_entropy;
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
pub mod residual;
pub mod rms_norm;
pub mod rotary;
pub(crate) mod simd;
mod sketch;
pub mod swiglu;
