//! The laws: property tests that any component must pass.
