//! ringmain: a message broker for one Linux host. The library behind the `ringmain` command.

pub mod daemon;
pub mod disk;
pub mod journal;
pub mod shard;
