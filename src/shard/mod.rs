//! Brokered queues: one thread per shard, with one journal.
//!
//! [`logic`] decides, without I/O, clock or threads; everything else here carries that out.

pub mod logic;
