//! The journal under power cuts, rot, errors and kills, on a simulated disk.

pub mod crash;
pub mod driver;
pub mod model;
pub mod owner;
