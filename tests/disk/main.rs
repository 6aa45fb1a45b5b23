//! One suite over all disks, and what only real ones can show.

mod backends;
#[path = "../support/mounted.rs"]
mod mounted;
mod real;
mod suite;
