//! Atomics behind one door, and the switches of the test builds.

pub mod atomic;
pub mod canary;
#[cfg(feature = "steps")]
pub mod step;
