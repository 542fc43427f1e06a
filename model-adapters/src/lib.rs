//! Model families as data: what a Hugging Face `config.json` says, as a decoder description, an
//! objective and a decoding rule. One file per family; a new one starts as a copy of `qwen3.rs`.

mod config_keys;
pub mod qwen3;

pub use config_keys::ConfigKeys;
pub use qwen3::Qwen3;
