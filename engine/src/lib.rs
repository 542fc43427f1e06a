//! Everything with tensors: layers (forward and backward side by side), kernels, optimiser,
//! scoring, training, generation.

pub mod batch;
pub mod decoder;
pub mod error;
pub mod generate;
pub mod grads;
pub mod kernels;
mod kv_cache;
pub mod layers;
pub mod params;
pub mod sample;
pub mod score;

pub use batch::Batch;
pub use decoder::{Decoder, Tape};
pub use error::EngineError;
pub use generate::{Finish, GenerateProgress, Generation, generate};
pub use grads::Grads;
pub use layers::{Context, Layer, Save, Saved, head};
pub use params::{ParamId, Params};
pub use score::{Columns, score};
