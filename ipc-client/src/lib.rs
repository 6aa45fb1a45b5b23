//! Client library of ringmain.
#![deny(missing_docs)]

pub mod layout;
pub mod protocol;
pub mod ring;
pub mod sync;
#[cfg(not(loom))]
pub mod sys;

#[cfg(not(loom))]
mod client;
pub mod wait;

#[cfg(not(loom))]
pub use client::*;
