//! The built-in signals and strategies, one file each. A new one starts as a copy of one of these.

pub mod current;
pub mod inner;
pub mod ranking;
pub mod rules;
pub mod share;
pub mod signals;

pub use share::Share;

#[cfg(test)]
mod laws;
#[cfg(test)]
mod manual;
