//! What a T3S plugin is written against: the traits of a component, what they are given, and the
//! lines that register one.
//!
//! A plugin is a crate that depends on this one, on `serde` (with `derive`) and on `schemars`. Its
//! strategy is a struct whose public fields are its options:
//!
//! ```
//! use t3s_plugin::{
//!     ComponentError, Declaration, Scope, SelectContext, SelectionStrategy, SignalRef, TokenView,
//!     When, register_strategy,
//! };
//!
//! /// Keeps tokens that the base student finds unlikely.
//! #[derive(serde::Deserialize, schemars::JsonSchema)]
//! #[serde(deny_unknown_fields, default)]
//! pub struct Unlikely {
//!     /// Tokens of this log-probability or more leave the loss, nats.
//!     pub ceiling: f32,
//! }
//!
//! register_strategy!("unlikely", Unlikely, "tokens below a log-probability (ceiling)");
//!
//! impl Default for Unlikely {
//!     fn default() -> Self {
//!         Self { ceiling: -1.0 }
//!     }
//! }
//!
//! impl SelectionStrategy for Unlikely {
//!     fn needs(&self) -> Vec<SignalRef> {
//!         vec![SignalRef::new("logp@base")]
//!     }
//!
//!     fn when(&self) -> When {
//!         When::Recorded
//!     }
//!
//!     fn declare(&self) -> Declaration {
//!         Declaration::new(Scope::PerExample).falling("logp@base")
//!     }
//!
//!     fn select(
//!         &self,
//!         tokens: &TokenView<'_>,
//!         _: &SelectContext<'_>,
//!         out: &mut [f32],
//!     ) -> Result<(), ComponentError> {
//!         let logp = tokens.numbers("logp@base")?;
//!         for (row, out) in out.iter_mut().enumerate() {
//!             *out = f32::from(u8::from(tokens.eligible()[row] && logp[row] < self.ceiling));
//!         }
//!         Ok(())
//!     }
//! }
//!
//! # #[cfg(feature = "laws")]
//! t3s_plugin::laws::assert_strategy(|| Box::new(Unlikely::default()));
//! ```
//!
//! The last line is the test every plugin has: with the feature `laws` (in `[dev-dependencies]`) it
//! tries the strategy on a few hundred small inputs, and shows the smallest one that breaks a law.
//!
//! `plugins/examples/excess-loss` is a whole crate to copy.

mod export;

#[doc(hidden)]
pub use export::t3s_plugin;
#[cfg(feature = "laws")]
pub use t3s_core::laws;
pub use t3s_core::{
    AttentionPattern, CheckpointRef, ComponentError, ConfidenceSignal, CounterRng, Declaration,
    DecodeRule, DecoderSpec, Draw, ExampleBatch, FamilyOptions, HfConfig, ModelAdapter, ModelBatch,
    NO_TARGET, Objective, Observable, ObservableRef, SelectContext, SelectionStrategy, SignalRef,
    TokenTable, TokenView, Weighting, When, decoder_spec, objective, register_adapter,
    register_signal, register_strategy,
    registry::{Kind, Registry, read_options},
    strategy::{Scope, budget},
    toml,
};

/// Links plugins statically into a program: `t3s_plugin::plugins! { my_plugin, another }`.
///
/// A dependency that no line of code names is left out by the compiler, and its components with it;
/// this names them.
#[macro_export]
macro_rules! plugins {
    ($($plugin:ident),+ $(,)?) => {
        $(use $plugin as _;)+
    };
}
