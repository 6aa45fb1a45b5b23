//! The client crate against the real daemon: one daemon for each test, in a temporary folder of its own.

mod asynchronous;
mod broker_loss;
mod closing;
mod deaths;
mod forked;
mod forms;
mod harness;
mod overflow;
mod policies;
mod selecting;
mod waiting;
