//! One suite over all disks, and what only real ones can show.

mod backends;
mod real;
mod suite;
