//! The journal on a simulated disk.

mod basics;
mod canaries;
mod clean;
mod crashes;
mod damage;
mod disks;
mod far;
mod golden;
mod sizes;
