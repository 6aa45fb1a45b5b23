//! Messages whose every byte follows from their number.

use crate::random::Random;

/// A message that was sent, or is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Number that its bytes follow from.
    pub id: u64,
    /// Payload bytes.
    pub length: usize,
    /// Metadata bytes.
    pub metadata: usize,
    /// Position of its claim.
    pub position: u64,
    /// Whether whoever gets it next must be told that somebody may have seen it.
    pub redelivered: bool,
}

impl Message {
    /// Not sent yet.
    pub fn new(id: u64, length: usize, metadata: usize) -> Self {
        Self { id, length, metadata, position: 0, redelivered: false }
    }

    /// Its payload.
    pub fn payload(&self) -> Vec<u8> {
        bytes(self.id, self.length)
    }

    /// Its metadata: not valid TLV, the rings do not look into it.
    pub fn metadata_bytes(&self) -> Vec<u8> {
        bytes(!self.id, self.metadata)
    }
}

fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&random.any().to_ne_bytes());
    }
    bytes.truncate(length);
    bytes
}
