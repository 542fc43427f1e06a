//! The plan: what a TOML file says, read once, checked whole, resolved.
//!
//! [`sections`] are the tables as types; their doc comments are the manual (`docs/plans.md` is made
//! from them). A [`RunPlan`] is the resolved plan: every default filled in, every path made
//! absolute or relative to the working directory, nothing optional left that has a default.

pub mod sections;

pub use sections::*;
