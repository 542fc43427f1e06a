//! Reading, templating, tokenising and packing traces; the Parquet token store.
