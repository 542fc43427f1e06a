//! Model families as data: Hugging Face config to decoder.
