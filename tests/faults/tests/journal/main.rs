//! The journal on a simulated disk.

mod basics;
mod crashes;
