//! The journal under power cuts, rot, errors and kills, on a simulated disk.

pub mod owner;
