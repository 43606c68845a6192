//! The `happen` binary.

fn main() {}
