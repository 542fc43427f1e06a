//! Everything with tensors: layers (forward and backward side by side), kernels, optimiser,
//! scoring, training, generation.

pub mod batch;
pub mod grads;
pub mod layers;
pub mod params;

pub use batch::Batch;
pub use grads::Grads;
pub use layers::{Context, Layer, Save, Saved};
pub use params::{ParamId, Params};
