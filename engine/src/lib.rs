//! Everything with tensors: layers (forward and backward side by side), kernels, optimiser,
//! scoring, training, generation.

pub mod accumulate;
pub mod adamw;
pub mod allocator;
pub mod batch;
pub mod checkpoint;
pub mod decoder;
pub mod device;
pub mod error;
pub mod footprint;
pub mod generate;
pub mod grads;
pub mod init;
pub mod kernels;
mod kv_cache;
pub mod layers;
pub mod memory;
pub mod normaliser;
pub mod online;
pub mod params;
pub mod profile;
pub mod sample;
pub mod schedule;
pub mod score;
#[cfg(test)]
mod test_model;
pub mod trainer;

// For closures that become layers (`layers::Autograd`): the same version of the tensor library.
pub use candle_core;
pub use candle_nn;

pub use accumulate::{
    Accumulation, BatchLoss, Part, loss_and_gradients, loss_and_gradients_online,
};
pub use batch::Batch;
pub use decoder::{Decoder, Tape};
pub use error::EngineError;
pub use footprint::Footprint;
pub use generate::{Finish, GenerateProgress, Generation, generate};
pub use grads::Grads;
pub use init::init_params;
pub use layers::{Context, Layer, Save, Saved, head};
pub use online::OnlineSelection;
pub use params::{ParamId, Params};
pub use score::{Columns, Scoring, score, tokens_read};
pub use trainer::{StepReport, Trainer};
