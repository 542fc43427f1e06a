//! Reading, templating, tokenising and packing traces; the Parquet token store.

pub mod arithmetic;
pub mod chat_template;
pub mod corpus;
pub mod error;
pub mod formats;
pub mod frame;
pub mod jsonl;
pub mod parquet_rows;
pub mod problems;
pub mod response_mask;
pub mod row;
pub mod store;
pub mod texts;
pub mod tokenizer;
pub mod train_bpe;

pub use corpus::load_corpus;
pub use error::DataError;
pub use problems::{Problem, load_problems};
pub use tokenizer::Tokenizer;
pub use train_bpe::train_bpe;
