//! The vocabulary of T3S: what the data, the engine, the plugins and the pipeline say to each other.
//!
//! No tensors here. Strategies, signals and adapters are functions over plain data; only the engine
//! touches tensors. Everything in this crate compiles in seconds and can be tested without a model.

pub mod adapter;
#[cfg(feature = "host")]
pub mod atomic;
pub mod component;
#[cfg(feature = "host")]
pub mod corpus;
pub mod decoder_spec;
#[cfg(feature = "host")]
pub mod fingerprint;
#[cfg(any(test, feature = "laws"))]
pub mod laws;
pub mod objective;
pub mod observable;
#[cfg(feature = "host")]
pub mod packing;
#[cfg(feature = "host")]
pub mod plan;
pub mod plugin;
pub mod registry;
pub mod rng;
pub mod signal;
pub mod strategy;
pub mod table;

// Macros in `registry` name these through `$crate`, so that a component crate needs one dependency.
#[doc(hidden)]
pub use inventory;
#[doc(hidden)]
pub use toml;

pub use adapter::{DecodeRule, FamilyOptions, HfConfig, ModelAdapter};
pub use component::ComponentError;
#[cfg(feature = "host")]
pub use corpus::{Corpus, Example};
pub use decoder_spec::DecoderSpec;
#[cfg(feature = "host")]
pub use fingerprint::Fingerprint;
pub use objective::{
    AttentionPattern, Draw, ExampleBatch, ModelBatch, NO_TARGET, Objective, Weighting,
};
pub use observable::{CheckpointRef, Observable, ObservableRef, SignalRef};
pub use rng::CounterRng;
pub use signal::ConfidenceSignal;
pub use strategy::{Declaration, SelectContext, SelectionStrategy, When};
pub use table::{TableError, TokenTable, TokenView, TokenWeights};
