//! The logic against a plain model of a broker, with a log and clients in memory.

mod cases;
mod golden;
mod memory;
mod model;
mod programs;
