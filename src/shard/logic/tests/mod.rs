//! The logic against a plain model of a broker, with a log and clients in memory.

// Test numbers are small.
#![allow(clippy::cast_possible_truncation)]

mod cases;
mod crashes;
mod dead_letters;
mod expiry;
mod golden;
mod groups;
mod judge;
mod keeps;
mod limits;
mod marks;
mod memory;
mod model;
mod named;
mod programs;
mod requests;
mod transactions;
