//! Brokered handles against the other end of their rings, in the same process: a control thread that speaks the daemon's
//! protocol, and shard ends that the tests drive.
#![cfg(not(loom))]

#[cfg(feature = "tokio")]
mod asynchronous;
mod confirms;
mod deliveries;
mod ends;
mod hostile;
mod restarts;
mod shard;
mod speed;
mod waking;
