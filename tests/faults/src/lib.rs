//! Fault suites: what a process that dies at any step, a peer that writes anything, and ordinary load can do to a ring.
//!
//! The code of the suites lies here, so that the tests of this package, which run them, and its program, which the
//! canary test runs with planted bugs, are the same. `docs/testing.md` says what each covers.

pub mod arena;
pub mod child;
pub mod hostile;
pub mod journal;
pub mod kill_loops;
pub mod message;
pub mod random;
pub mod runner;
pub mod stress;
pub mod structure;
pub mod sweep;
