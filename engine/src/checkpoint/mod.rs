//! Models on disk: Hugging Face folders and PEFT adapters, in safetensors.
//!
//! transformers, vLLM and peft load what is written here as it is, and what they write is read.

mod adapter;
mod folder;
mod read;
mod stacked;
mod write;

pub use adapter::{ADAPTER_WEIGHTS, adapter_plan, load_adapter, save_adapter};
pub use folder::{create, load_decoder, load_params, save_decoder, save_params, weight_files};
pub use read::{TensorFile, Wanted, read_tensors};
pub use write::{save_tensors, write_tensors};
