//! Client library of ringmain.

pub mod layout;
pub mod protocol;
pub mod sync;
pub mod sys;
