//! A transaction as one message of a lane: what is to be published and acknowledged in one step.
//!
//! ```text
//! messages u32, acknowledgements u32
//! per message: producer {queue u64, handle u32, epoch u32}, metadata length u32, payload length u32, metadata, payload
//! per acknowledgement: consumer {queue u64, handle u32, epoch u32}, slot u32, attempt u32, sequence u64
//! ```

use super::{LeaseToken, WireError};
use crate::protocol::HandleKey;

/// Flag of the lane's message.
pub const FLAG_TRANSACTION: u16 = 16;

/// Messages and acknowledgements of one transaction at most.
pub const PARTS_MAX: usize = 4096;

/// One message of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// A producer of the session.
    pub producer: HandleKey,
    /// As in a lane.
    pub metadata: &'a [u8],
    /// As in a lane.
    pub payload: &'a [u8],
}

/// One acknowledgement of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// A consumer of the session.
    pub consumer: HandleKey,
    /// Which delivery.
    pub lease: LeaseToken,
}

/// The whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction<'a> {
    /// In this order.
    pub messages: Vec<Message<'a>>,
    /// In any order.
    pub acks: Vec<Ack>,
}

impl<'a> Transaction<'a> {
    /// As a payload.
    pub fn encode(&self, out: &mut Vec<u8>) {
        // Lengths of slices in a message of a ring, which has less than 4 GiB.
        let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes();
        let key = |out: &mut Vec<u8>, key: HandleKey| {
            out.extend_from_slice(&key.queue.to_le_bytes());
            out.extend_from_slice(&u32::from(key.handle).to_le_bytes());
            out.extend_from_slice(&key.epoch.to_le_bytes());
        };
        out.extend_from_slice(&length(self.messages.len()));
        out.extend_from_slice(&length(self.acks.len()));
        for message in &self.messages {
            key(out, message.producer);
            out.extend_from_slice(&length(message.metadata.len()));
            out.extend_from_slice(&length(message.payload.len()));
            out.extend_from_slice(message.metadata);
            out.extend_from_slice(message.payload);
        }
        for ack in &self.acks {
            key(out, ack.consumer);
            out.extend_from_slice(&ack.lease.slot.to_le_bytes());
            out.extend_from_slice(&ack.lease.attempt.to_le_bytes());
            out.extend_from_slice(&ack.lease.sequence.to_le_bytes());
        }
    }

    /// From a payload.
    ///
    /// # Errors
    /// [`WireError`] for anything else, and for more than [`PARTS_MAX`] messages and acknowledgements.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, WireError> {
        let malformed = WireError { kind: 0, length: bytes.len() };
        Self::read(bytes).ok_or(malformed)
    }

    fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut rest = Rest(bytes);
        let (messages, acks) = (rest.u32()? as usize, rest.u32()? as usize);
        if messages.saturating_add(acks) > PARTS_MAX {
            return None;
        }
        let mut found = Self::default();
        for _ in 0..messages {
            let producer = rest.key()?;
            let (metadata, payload) = (rest.u32()? as usize, rest.u32()? as usize);
            let (metadata, payload) = (rest.bytes(metadata)?, rest.bytes(payload)?);
            found.messages.push(Message { producer, metadata, payload });
        }
        for _ in 0..acks {
            let consumer = rest.key()?;
            let (slot, attempt, sequence) = (rest.u32()?, rest.u32()?, rest.u64()?);
            found.acks.push(Ack { consumer, lease: LeaseToken { slot, attempt, sequence } });
        }
        rest.0.is_empty().then_some(found)
    }
}

/// Reads off the front.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(front)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(*self.bytes(4)?.first_chunk()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(*self.bytes(8)?.first_chunk()?))
    }

    fn key(&mut self) -> Option<HandleKey> {
        let (queue, handle, epoch) = (self.u64()?, self.u32()?, self.u32()?);
        Some(HandleKey { queue, handle: u8::try_from(handle).ok()?, epoch })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_come_back_and_damaged_ones_do_not() {
        let key = |queue, handle| HandleKey { queue, handle, epoch: 9 };
        let transaction = Transaction {
            messages: vec![
                Message { producer: key(1, 2), metadata: b"meta", payload: b"payload" },
                Message { producer: key(u64::MAX, 254), metadata: b"", payload: b"" },
            ],
            acks: vec![Ack {
                consumer: key(3, 4),
                lease: LeaseToken { slot: 5, attempt: 6, sequence: 7 },
            }],
        };
        let mut bytes = Vec::new();
        transaction.encode(&mut bytes);
        assert_eq!(Transaction::decode(&bytes), Ok(transaction));
        for length in 0..bytes.len() {
            assert!(Transaction::decode(&bytes[..length]).is_err());
        }
        assert!(Transaction::decode(&[&bytes[..], &[0]].concat()).is_err());
        // Counts and lengths that are not there, and a handle that cannot be.
        for at in [0, 1, 3, 4, 7, 17, 24, 26, 28, 30] {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x80;
            assert!(Transaction::decode(&bytes).is_err(), "byte {at}");
        }
        let many = Transaction {
            messages: vec![
                Message { producer: key(1, 1), metadata: b"", payload: b"" };
                PARTS_MAX + 1
            ],
            acks: Vec::new(),
        };
        bytes.clear();
        many.encode(&mut bytes);
        assert!(Transaction::decode(&bytes).is_err());
    }
}
