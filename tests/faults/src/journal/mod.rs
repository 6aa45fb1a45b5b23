//! The journal under power cuts, rot, errors and kills, on a simulated disk.

pub mod crash;
pub mod driver;
pub mod errors;
pub mod forged;
pub mod kills;
pub mod model;
pub mod owner;
pub mod repairs;
pub mod rot;
pub mod torn;
