//! What is asked of the kernel: packets with descriptors, sealed memory, mappings.

pub mod map;
pub mod memory;
pub mod packet;
