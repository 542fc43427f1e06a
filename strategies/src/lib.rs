//! Built-in signals and selection strategies.
