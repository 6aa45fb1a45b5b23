//! What goes through the two rings of a brokered handle (see [`crate::layout::pair`]).
//!
//! A producer's lane carries the messages themselves: payload and metadata as on a direct queue. Everything else is one of the small
//! fixed records below, the payload of one ring message, little-endian. The reader bounds every value; what it cannot
//! understand is a [`WireError`] and the end of that handle, of nothing else.

pub mod transaction;

/// Bytes in front of the payload of a [`Down::Delivery`].
pub const DELIVERY_HEADER_BYTES: usize = 40;

/// Longest record other than a delivery, in bytes. A ring that carries only these has slots of 64 bytes.
pub const RECORD_BYTES_MAX: usize = 48;

/// The bytes are none of the records that were expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed record of kind {kind} and {length} bytes")]
pub struct WireError {
    /// First byte, or 0.
    pub kind: u8,
    /// Bytes.
    pub length: usize,
}

/// What became of a message or a request. The numbers are part of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Outcome {
    /// Done, and on stable storage if the queue is durable.
    Done = 0,
    /// The journal failed; `detail` is the errno. What was not confirmed may or may not be there after a repair.
    JournalFailed = 1,
    /// The queue is deleted.
    QueueDeleted = 2,
    /// The message is longer than a journal batch takes; `detail` is the limit in bytes.
    TooLarge = 3,
    /// The lease is over: the message was given to another consumer, acknowledged, moved, or discarded.
    LeaseLost = 4,
    /// The daemon did not understand the request.
    Invalid = 5,
    /// The queue has reached its limit and rejects.
    QueueFull = 6,
    /// A success: a message with this own sequence of its producer was stored before, and is as safe as `Done` says. It was not
    /// stored again.
    Duplicate = 7,
    /// Somebody else has attached under the producer's name: nothing of this handle is stored any more.
    Fenced = 8,
    /// A transaction has a handle that this shard does not serve for this session: nothing of it is done.
    CrossShard = 9,
}

impl Outcome {
    /// From its number.
    pub const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Done,
            1 => Self::JournalFailed,
            2 => Self::QueueDeleted,
            3 => Self::TooLarge,
            4 => Self::LeaseLost,
            5 => Self::Invalid,
            6 => Self::QueueFull,
            7 => Self::Duplicate,
            8 => Self::Fenced,
            9 => Self::CrossShard,
            _ => return None,
        })
    }
}

/// Names one delivery of one message: a stale one is answered with [`Outcome::LeaseLost`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeaseToken {
    /// Entry of the consumer's lease table.
    pub slot: u32,
    /// Number of the delivery, from 1.
    pub attempt: u32,
    /// Sequence of the message.
    pub sequence: u64,
}

/// From a consumer to the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Up {
    /// The message is done with. `request` comes back in [`Down::Answer`]; 0 asks for no answer.
    Ack {
        /// Which delivery.
        lease: LeaseToken,
        /// For the answer.
        request: u64,
    },
    /// Give it out again, not before this many milliseconds.
    Nack {
        /// Which delivery.
        lease: LeaseToken,
        /// For the answer.
        request: u64,
        /// Milliseconds.
        delay_ms: u64,
    },
    /// The lease shall end this many milliseconds from now.
    Extend {
        /// Which delivery.
        lease: LeaseToken,
        /// For the answer.
        request: u64,
        /// Milliseconds.
        lease_ms: u64,
    },
    /// To the dead-letter queue at once, or discarded if there is none.
    Reject {
        /// Which delivery.
        lease: LeaseToken,
        /// For the answer.
        request: u64,
    },
    /// At most this many messages may be unacknowledged. The shard bounds it by the lease table.
    Credit {
        /// Messages; 0 pauses.
        credit: u32,
    },
    /// Asks for one answer when everything that this consumer submitted before is carried out and, on a durable queue, on
    /// stable storage: acknowledgements need not be answered one by one.
    Flush {
        /// For the answer.
        request: u64,
    },
}

/// From the shard to the client, other than a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Down {
    /// The messages of this lane from one position to another have these sequences, one by one, and this outcome.
    Completed {
        /// Lane position of the first message.
        first_position: u64,
        /// Lane position of the last message.
        last_position: u64,
        /// Sequence of the first message; the others follow without gaps.
        first_sequence: u64,
        /// Messages.
        count: u32,
        /// What became of all of them. Anything but `Done` has no sequence, also `Duplicate`.
        outcome: Outcome,
        /// See [`Outcome`].
        detail: u64,
    },
    /// A message: [`DELIVERY_HEADER_BYTES`] and then the payload; the metadata is the ring message's.
    Delivery(DeliveryHeader),
    /// The answer to a request of [`Up`].
    Answer {
        /// As in the request.
        request: u64,
        /// What became of it.
        outcome: Outcome,
        /// See [`Outcome`].
        detail: u64,
    },
    /// Everything that was there has been delivered: to one who drains or looks on. More may come.
    Drained,
    /// A limit of the queue has discarded messages that the consumer's group had not got yet. In front of the next delivery.
    Skipped {
        /// How many since the last record of this kind.
        messages: u64,
    },
    /// The message that comes next cannot be read: the consumer's group gets nothing until the journal is repaired or the queue purged.
    Unreadable {
        /// Its sequence; 0: that is over.
        sequence: u64,
    },
}

/// In front of a delivered payload.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeliveryHeader {
    /// For ack, nack, extend and reject. `attempt` above 1 marks a redelivery; 0 if the message is only shown.
    pub lease: LeaseToken,
    /// When the shard took the message: nanoseconds since 1970, never smaller than that of the sequence before.
    pub published_ns: u64,
    /// Length of the lease in milliseconds; 0: as long as the process lives.
    pub lease_ms: u64,
}

impl DeliveryHeader {
    /// The front of a [`Down::Delivery`].
    // Of whole words: a piece that is loaded longer than it was stored a moment before waits for the store buffer.
    #[inline(always)]
    pub fn encode(&self) -> [u8; DELIVERY_HEADER_BYTES] {
        let LeaseToken { slot, attempt, sequence } = self.lease;
        let words = [
            u64::from(kind::DELIVERY) | u64::from(slot) << 32,
            u64::from(attempt),
            sequence,
            self.published_ns,
            self.lease_ms,
        ];
        let mut bytes = [0; DELIVERY_HEADER_BYTES];
        for (into, word) in bytes.chunks_exact_mut(8).zip(words) {
            into.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

mod kind {
    pub(super) const ACK: u8 = 1;
    pub(super) const NACK: u8 = 2;
    pub(super) const EXTEND: u8 = 3;
    pub(super) const REJECT: u8 = 4;
    pub(super) const CREDIT: u8 = 5;
    pub(super) const FLUSH: u8 = 6;
    pub(super) const COMPLETED: u8 = 16;
    pub(super) const DELIVERY: u8 = 17;
    pub(super) const ANSWER: u8 = 18;
    pub(super) const DRAINED: u8 = 19;
    pub(super) const SKIPPED: u8 = 20;
    pub(super) const UNREADABLE: u8 = 21;
}

/// A record on its way into a ring.
#[derive(Debug, Clone, Copy)]
pub struct Encoded {
    bytes: [u8; RECORD_BYTES_MAX],
    length: usize,
}

impl Encoded {
    // All of it inline: the length is then a constant at each step, and nothing is copied between them.
    #[inline(always)]
    fn new(kind: u8) -> Self {
        let mut bytes = [0; RECORD_BYTES_MAX];
        bytes[0] = kind;
        Self { bytes, length: 4 }
    }

    #[inline(always)]
    fn u32(mut self, value: u32) -> Self {
        self.bytes[self.length..self.length + 4].copy_from_slice(&value.to_le_bytes());
        self.length += 4;
        self
    }

    #[inline(always)]
    fn u64(mut self, value: u64) -> Self {
        self.bytes[self.length..self.length + 8].copy_from_slice(&value.to_le_bytes());
        self.length += 8;
        self
    }

    #[inline(always)]
    fn lease(self, lease: LeaseToken) -> Self {
        self.u32(lease.slot).u32(lease.attempt).u32(0).u64(lease.sequence)
    }
}

impl AsRef<[u8]> for Encoded {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Reads fields off the front; a record that is too short has been refused before.
struct Fields<'a>(&'a [u8]);

// Inline for the same reason as in [`Encoded`].
impl Fields<'_> {
    #[inline(always)]
    fn u32(&mut self) -> u32 {
        let (value, rest) = self.0.split_first_chunk().expect("the length was checked");
        self.0 = rest;
        u32::from_le_bytes(*value)
    }

    #[inline(always)]
    fn u64(&mut self) -> u64 {
        let (value, rest) = self.0.split_first_chunk().expect("the length was checked");
        self.0 = rest;
        u64::from_le_bytes(*value)
    }

    #[inline(always)]
    fn lease(&mut self) -> LeaseToken {
        let (slot, attempt, _) = (self.u32(), self.u32(), self.u32());
        LeaseToken { slot, attempt, sequence: self.u64() }
    }
}

/// The fields behind the kind of a record, if it has exactly this length.
#[inline(always)]
fn fields(bytes: &[u8], length: usize) -> Result<Fields<'_>, WireError> {
    if bytes.len() == length { Ok(Fields(&bytes[4..])) } else { Err(malformed(bytes)) }
}

fn malformed(bytes: &[u8]) -> WireError {
    WireError { kind: bytes.first().copied().unwrap_or(0), length: bytes.len() }
}

impl Up {
    /// As a payload.
    #[inline]
    pub fn encode(&self) -> Encoded {
        match *self {
            Self::Ack { lease, request } => Encoded::new(kind::ACK).lease(lease).u64(request),
            Self::Nack { lease, request, delay_ms } => {
                Encoded::new(kind::NACK).lease(lease).u64(request).u64(delay_ms)
            }
            Self::Extend { lease, request, lease_ms } => {
                Encoded::new(kind::EXTEND).lease(lease).u64(request).u64(lease_ms)
            }
            Self::Reject { lease, request } => Encoded::new(kind::REJECT).lease(lease).u64(request),
            Self::Credit { credit } => Encoded::new(kind::CREDIT).u32(credit),
            Self::Flush { request } => Encoded::new(kind::FLUSH).u64(request),
        }
    }

    /// From a payload.
    ///
    /// # Errors
    /// [`WireError`] for anything else.
    #[inline]
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        match bytes.first().copied().unwrap_or(0) {
            kind::ACK => {
                let mut from = fields(bytes, 32)?;
                Ok(Self::Ack { lease: from.lease(), request: from.u64() })
            }
            kind::NACK => {
                let mut from = fields(bytes, 40)?;
                Ok(Self::Nack { lease: from.lease(), request: from.u64(), delay_ms: from.u64() })
            }
            kind::EXTEND => {
                let mut from = fields(bytes, 40)?;
                Ok(Self::Extend { lease: from.lease(), request: from.u64(), lease_ms: from.u64() })
            }
            kind::REJECT => {
                let mut from = fields(bytes, 32)?;
                Ok(Self::Reject { lease: from.lease(), request: from.u64() })
            }
            kind::CREDIT => Ok(Self::Credit { credit: fields(bytes, 8)?.u32() }),
            kind::FLUSH => Ok(Self::Flush { request: fields(bytes, 12)?.u64() }),
            _ => Err(malformed(bytes)),
        }
    }
}

impl Down {
    /// As a payload; a delivery's payload follows it.
    #[inline]
    pub fn encode(&self) -> Encoded {
        match *self {
            Self::Completed {
                first_position,
                last_position,
                first_sequence,
                count,
                outcome,
                detail,
            } => Encoded::new(kind::COMPLETED)
                .u32(count)
                .u64(first_position)
                .u64(last_position)
                .u64(first_sequence)
                .u64(detail)
                .u32(outcome as u32),
            Self::Delivery(header) => {
                let mut bytes = [0; RECORD_BYTES_MAX];
                bytes[..DELIVERY_HEADER_BYTES].copy_from_slice(&header.encode());
                Encoded { bytes, length: DELIVERY_HEADER_BYTES }
            }
            Self::Answer { request, outcome, detail } => {
                Encoded::new(kind::ANSWER).u32(outcome as u32).u64(request).u64(detail)
            }
            Self::Drained => Encoded::new(kind::DRAINED),
            Self::Skipped { messages } => Encoded::new(kind::SKIPPED).u64(messages),
            Self::Unreadable { sequence } => Encoded::new(kind::UNREADABLE).u64(sequence),
        }
    }

    /// From a payload, or from the first [`DELIVERY_HEADER_BYTES`] of a longer one.
    ///
    /// # Errors
    /// [`WireError`] for anything else.
    #[inline]
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let outcome = |number| Outcome::from_number(number).ok_or_else(|| malformed(bytes));
        match bytes.first().copied().unwrap_or(0) {
            kind::COMPLETED => {
                let mut from = fields(bytes, 44)?;
                Ok(Self::Completed {
                    count: from.u32(),
                    first_position: from.u64(),
                    last_position: from.u64(),
                    first_sequence: from.u64(),
                    detail: from.u64(),
                    outcome: outcome(from.u32())?,
                })
            }
            kind::DELIVERY => {
                let front = bytes.get(..DELIVERY_HEADER_BYTES).ok_or_else(|| malformed(bytes))?;
                let mut from = fields(front, DELIVERY_HEADER_BYTES)?;
                Ok(Self::Delivery(DeliveryHeader {
                    lease: from.lease(),
                    published_ns: from.u64(),
                    lease_ms: from.u64(),
                }))
            }
            kind::ANSWER => {
                let mut from = fields(bytes, 24)?;
                let outcome = outcome(from.u32())?;
                Ok(Self::Answer { outcome, request: from.u64(), detail: from.u64() })
            }
            kind::DRAINED => fields(bytes, 4).map(|_| Self::Drained),
            kind::SKIPPED => Ok(Self::Skipped { messages: fields(bytes, 12)?.u64() }),
            kind::UNREADABLE => Ok(Self::Unreadable { sequence: fields(bytes, 12)?.u64() }),
            _ => Err(malformed(bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: LeaseToken = LeaseToken { slot: 7, attempt: 3, sequence: u64::MAX - 1 };

    #[test]
    fn records_come_back_and_shortened_ones_do_not() {
        let up = [
            Up::Ack { lease: LEASE, request: 9 },
            Up::Nack { lease: LEASE, request: 9, delay_ms: 1 << 40 },
            Up::Extend { lease: LEASE, request: 9, lease_ms: 5 },
            Up::Reject { lease: LEASE, request: 0 },
            Up::Credit { credit: 17 },
            Up::Flush { request: 1 << 33 },
        ];
        for record in up {
            let encoded = record.encode();
            assert_eq!(Up::decode(encoded.as_ref()), Ok(record));
            for length in 0..encoded.as_ref().len() {
                assert!(Up::decode(&encoded.as_ref()[..length]).is_err());
            }
        }
        let down = [
            Down::Completed {
                first_position: 1,
                last_position: 5,
                first_sequence: 100,
                count: 3,
                outcome: Outcome::JournalFailed,
                detail: 5,
            },
            Down::Delivery(DeliveryHeader { lease: LEASE, published_ns: 8, lease_ms: 30_000 }),
            Down::Answer { request: 3, outcome: Outcome::LeaseLost, detail: 0 },
            Down::Drained,
            Down::Skipped { messages: 1 << 40 },
            Down::Unreadable { sequence: u64::MAX },
        ];
        for record in down {
            let encoded = record.encode();
            assert_eq!(Down::decode(encoded.as_ref()), Ok(record));
            for length in 0..encoded.as_ref().len() {
                assert!(Down::decode(&encoded.as_ref()[..length]).is_err());
            }
        }
        assert_eq!(DELIVERY_HEADER_BYTES, 40);
    }

    #[test]
    fn unknown_outcomes_are_refused() {
        let mut bytes = Down::Answer { request: 3, outcome: Outcome::Done, detail: 0 }
            .encode()
            .as_ref()
            .to_vec();
        bytes[4] = 200;
        assert!(Down::decode(&bytes).is_err());
    }
}
