//! The binary: flags -> config -> build -> run.
fn main() {}
