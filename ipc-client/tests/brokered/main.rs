//! Brokered handles against the other end of their rings, in the same process: a control thread that speaks the daemon's
//! protocol, and shard ends that the tests drive.

mod confirms;
mod deliveries;
mod ends;
mod hostile;
mod restarts;
mod shard;
mod waking;
