//! Model families as data: what a Hugging Face `config.json` says, as a decoder description, an
//! objective and a decoding rule. One file per family; a new one starts as a copy of `qwen3.rs`.

mod config_keys;
mod diffusion_options;
pub mod llada;
pub mod llada2;
pub mod qwen3;

pub use config_keys::ConfigKeys;
pub use llada::Llada;
pub use llada2::Llada2;
pub use qwen3::Qwen3;
