//! Plugins: components in shared libraries, built in any workspace, by any compiler, or in C.
//!
//! [`abi`] is the C interface, [`elf`] looks at a file before the system's loader may, [`load`] makes
//! a [`Plugin`] of it, whose components enter a [`Registry`](crate::registry::Registry) beside the linked ones.
//! What a Rust plugin exports is written in `plugins/sdk`.
//!
//! A plugin runs with the rights of the user. What can be checked is checked before it is asked
//! anything; a plugin that ends the process cannot be stopped from doing so, but `t3s plugin test`
//! survives it, in a child process.

#![allow(
    unsafe_code,
    reason = "a foreign library is called; every block says why it may"
)]

pub mod abi;
#[cfg(feature = "host")]
mod adapter;
#[cfg(feature = "host")]
mod call;
#[cfg(feature = "host")]
mod component;
mod describe;
#[cfg(feature = "host")]
pub mod elf;
#[cfg(feature = "host")]
mod error;
#[cfg(all(feature = "host", target_os = "linux"))]
pub mod guard;
#[cfg(feature = "host")]
mod loader;

pub use describe::{SignalDescription, StrategyDescription};
#[cfg(feature = "host")]
pub use error::{Cause, PluginError};
#[cfg(feature = "host")]
pub use loader::{Plugin, load};
