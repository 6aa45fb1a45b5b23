//! Brokered queues: one thread per shard, with one journal.
//!
//! [`logic`] decides, without I/O, clock or threads; everything else here carries that out.

pub mod control;
mod far;
pub mod figures;
mod handle;
mod handles;
mod log;
pub mod logic;
pub mod memory;
mod requests;
mod spin;
pub mod start;
mod take;
#[cfg(test)]
mod tests;
mod thread;
