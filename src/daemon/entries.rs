//! What the keeper stores for the broker: keys and values as bytes.
//!
//! The bytes outlive the broker that wrote them, and the next one may be of another version: every value starts with
//! the version of its form, and keys sort so that whatever an entry refers to comes before it.

use ringmain_client::layout::Geometry;
use ringmain_client::protocol::{Kind, Role, StartAt, WakeMode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::shard::memory::PairSize;

/// Version of the values below.
const FORM: u8 = 1;

/// Key of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Counters,
    Session(u64),
    Doorbell(u32),
    Queue(u64),
    Handle { queue: u64, handle: u8 },
    Shard(u32),
    Segment(u64),
    Link(u64),
    BrokeredQueue(u64),
    BrokeredHandle { queue: u64, handle: u8 },
    SessionQueue(u64),
}

impl Key {
    pub(super) fn bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(10);
        match self {
            Self::Counters => bytes.push(1),
            Self::Session(number) => {
                bytes.push(2);
                bytes.extend_from_slice(&number.to_be_bytes());
            }
            Self::Doorbell(doorbell) => {
                bytes.push(3);
                bytes.extend_from_slice(&doorbell.to_be_bytes());
            }
            Self::Queue(queue) => {
                bytes.push(4);
                bytes.extend_from_slice(&queue.to_be_bytes());
            }
            Self::Handle { queue, handle } => {
                bytes.push(5);
                bytes.extend_from_slice(&queue.to_be_bytes());
                bytes.push(handle);
            }
            Self::Shard(shard) => {
                bytes.push(6);
                bytes.extend_from_slice(&shard.to_be_bytes());
            }
            Self::Segment(number) => {
                bytes.push(7);
                bytes.extend_from_slice(&number.to_be_bytes());
            }
            Self::Link(session) => {
                bytes.push(8);
                bytes.extend_from_slice(&session.to_be_bytes());
            }
            Self::BrokeredQueue(queue) => {
                bytes.push(9);
                bytes.extend_from_slice(&queue.to_be_bytes());
            }
            Self::BrokeredHandle { queue, handle } => {
                bytes.push(10);
                bytes.extend_from_slice(&queue.to_be_bytes());
                bytes.push(handle);
            }
            Self::SessionQueue(queue) => {
                bytes.push(11);
                bytes.extend_from_slice(&queue.to_be_bytes());
            }
        }
        bytes
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        Some(match kind {
            1 if rest.is_empty() => Self::Counters,
            2 => Self::Session(u64::from_be_bytes(rest.try_into().ok()?)),
            3 => Self::Doorbell(u32::from_be_bytes(rest.try_into().ok()?)),
            4 => Self::Queue(u64::from_be_bytes(rest.try_into().ok()?)),
            5 => {
                let (handle, queue) = rest.split_last()?;
                Self::Handle { queue: u64::from_be_bytes(queue.try_into().ok()?), handle: *handle }
            }
            6 => Self::Shard(u32::from_be_bytes(rest.try_into().ok()?)),
            7 => Self::Segment(u64::from_be_bytes(rest.try_into().ok()?)),
            8 => Self::Link(u64::from_be_bytes(rest.try_into().ok()?)),
            9 => Self::BrokeredQueue(u64::from_be_bytes(rest.try_into().ok()?)),
            10 => {
                let (handle, queue) = rest.split_last()?;
                let queue = u64::from_be_bytes(queue.try_into().ok()?);
                Self::BrokeredHandle { queue, handle: *handle }
            }
            11 => Self::SessionQueue(u64::from_be_bytes(rest.try_into().ok()?)),
            _ => return None,
        })
    }
}

/// Numbers below these may be in use already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CountersEntry {
    pub(super) session: u64,
    pub(super) queue: u64,
    pub(super) doorbell: u32,
    pub(super) epoch: u32,
}

/// With one descriptor: the pidfd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SessionEntry {
    /// Chosen by the client.
    pub(super) id: u64,
    pub(super) pid: u32,
    pub(super) uid: u32,
}

/// With two descriptors: the memfd and the socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DoorbellEntry {
    pub(super) session: u64,
}

/// With the descriptors of the queue's memory, writable, in the order of [`super::rings::regions`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct QueueEntry {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) layout_version: u32,
    pub(super) slots: u32,
    pub(super) slot_size: u32,
    pub(super) max_message: u32,
    pub(super) wake_mode: WakeMode,
    pub(super) owner_uid: u32,
    pub(super) group_gid: u32,
    pub(super) mode: u32,
    /// Session id and pid of its creator, while that may not have been told yet that it exists.
    pub(super) creating: Option<(u64, u32)>,
    /// The daemon takes messages out of it just now; if it dies over it, its own handle needs repair.
    pub(super) purging: bool,
}

impl QueueEntry {
    pub(super) fn geometry(&self) -> Result<Geometry, String> {
        Geometry::new(Some(self.slots), Some(self.slot_size), Some(self.max_message))
            .map_err(|error| error.to_string())
    }
}

/// No descriptors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HandleEntry {
    pub(super) role: Role,
    pub(super) epoch: u32,
    pub(super) session: u64,
    /// The doorbell that publishers of the queue may fetch.
    pub(super) doorbell: Option<u32>,
    /// Given back while it owned slots. Older brokers kept such handles; this one repairs them at once.
    pub(super) dirty: bool,
}

/// With one descriptor: the shard's page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ShardEntry {
    /// Whether its queues are all stored: nobody has to wait for its journal to be opened.
    pub(super) known: bool,
}

/// A file of a journal in memory. With one descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SegmentEntry {
    pub(super) shard: u32,
    pub(super) name: String,
    pub(super) bytes: u64,
}

/// A session's link. With a descriptor for its memory, then an eventfd for each shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LinkEntry {}

/// A brokered queue; its messages, groups and delivery rules are the shard's. No descriptors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BrokeredQueueEntry {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) shard: u32,
    pub(super) slots: u32,
    pub(super) slot_size: u32,
    pub(super) max_message: u32,
    pub(super) owner_uid: u32,
    pub(super) group_gid: u32,
    pub(super) mode: u32,
    /// As in [`QueueEntry`].
    pub(super) creating: Option<(u64, u32)>,
}

/// That a queue is deleted when this session ends. No descriptors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SessionQueueEntry {
    pub(super) session: u64,
}

/// With the descriptors of [`crate::shard::memory::PairFiles`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BrokeredHandleEntry {
    pub(super) epoch: u32,
    pub(super) session: u64,
    pub(super) layout_version: u32,
    pub(super) wake_mode: WakeMode,
    pub(super) size: PairSize,
    pub(super) ready_index: u32,
    /// Producers: the lane's number in the journal, never used again.
    pub(super) lane: u64,
    /// Consumers, as asked for.
    pub(super) group: String,
    pub(super) from: StartAt,
    pub(super) credit: u32,
    pub(super) browse: bool,
    /// Producers: the name, if there is one.
    pub(super) producer: String,
}

/// Bytes of a value.
pub(super) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // Writing plain data into a vector has no way to fail; an empty value would be refused when it is read.
    postcard::to_extend(value, vec![FORM]).unwrap_or_default()
}

/// A value from its bytes.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    match bytes.split_first() {
        Some((&FORM, body)) => postcard::from_bytes(body).map_err(|error| error.to_string()),
        Some((form, _)) => {
            Err(format!("form {form} of a stored entry is not known to this version"))
        }
        None => Err("empty entry".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_back_and_sort_by_dependence() {
        let keys = [
            Key::Counters,
            Key::Session(u64::MAX),
            Key::Doorbell(3),
            Key::Queue(1),
            Key::Queue(256),
            Key::Handle { queue: 1, handle: 254 },
            Key::Handle { queue: 256, handle: 1 },
            Key::Shard(1),
            Key::Segment(7),
            Key::Link(3),
            Key::BrokeredQueue(1),
            Key::BrokeredHandle { queue: 1, handle: 254 },
            Key::SessionQueue(1),
        ];
        for pair in keys.windows(2) {
            assert!(pair[0].bytes() < pair[1].bytes());
        }
        for key in keys {
            assert_eq!(Key::parse(&key.bytes()), Some(key));
        }
        assert_eq!(Key::parse(&[]), None);
        assert_eq!(Key::parse(&[99, 0]), None);
        assert_eq!(Key::parse(&[9, 0]), None);
        assert_eq!(Key::parse(&[4, 0]), None);
    }

    #[test]
    fn values_come_back_and_foreign_forms_do_not() {
        let entry = SessionEntry { id: 5, pid: 6, uid: 7 };
        let mut bytes = encode(&entry);
        assert_eq!(decode::<SessionEntry>(&bytes), Ok(entry));
        bytes[0] = 2;
        assert!(decode::<SessionEntry>(&bytes).is_err());
        assert!(decode::<SessionEntry>(&[]).is_err());
    }
}
