//! Cross-crate tests: end to end, parity, faults.
