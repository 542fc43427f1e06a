//! The `t3s` program.

fn main() {}
