//! Atomics behind one door, and the switches of the test builds.

pub mod atomic;
pub mod canary;
#[cfg(feature = "steps")]
pub mod step;

/// Whether this build has the switches of the fault suites in it (features `steps` or `canary`), which slow every access down.
/// So it is when the whole workspace is built in one command.
pub const INSTRUMENTED: bool = cfg!(any(feature = "steps", feature = "canary"));
