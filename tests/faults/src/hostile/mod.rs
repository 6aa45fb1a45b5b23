//! .
pub fn run(_: impl Iterator<Item=String>) -> i32 { 0 }
