//! What the crate asks of the kernel. Each kind of call lives in one file, and nowhere else.

pub mod affinity;
pub mod clock;
pub mod datagram;
pub mod eventfd;
pub mod fork;
pub mod futex;
pub mod kernel;
pub mod map;
pub mod membarrier;
pub mod memory;
pub mod packet;
pub mod slice;
