//! The `happen` binary.

#[cfg_attr(not(test), expect(dead_code, reason = "the command that reads a history is the next step"))]
mod git_log;
#[cfg(test)]
#[path = "../tests/support/repository.rs"]
mod test_repository;

fn main() {}
