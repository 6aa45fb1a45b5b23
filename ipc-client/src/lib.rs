//! Client library of ringmain.

pub mod layout;
pub mod protocol;
pub mod ring;
pub mod sync;
#[cfg(not(loom))]
pub mod sys;
