//! Client library of ringmain.

pub mod layout;
pub mod protocol;
pub mod ring;
pub mod sync;
