//! What travels in front of a payload: entries of {tag u8, reserved u8 = 0, length u16 little-endian, value}.
//!
//! | tag | value |
//! |---|---|
//! | 1 | key: bytes |
//! | 2 | header: name length u8, name (UTF-8), value bytes |
//! | 3 | own sequence of a named producer: its id u64, epoch u32, sequence u64; the first entry, see [`OwnSequence`] |
//! | 4 | trace context as W3C has it: trace id 16 bytes, span id 8 bytes, flags 1 byte |
//! | 5 | reserved: priority |
//! | 6 | time to live in milliseconds from the publish time: u64 |
//! | 7 | delay in milliseconds from the publish time: u64 |
//! | 8 | name of the queue that takes the reply (UTF-8) |
//! | 9 | number that the reply carries as well: u64 |
//!
//! Unknown tags are skipped. The whole is at most 65,535 bytes long; of a message to a brokered queue, see [`BROKERED_BYTES_MAX`].

use core::time::Duration;

/// Tags of entries.
pub mod tag {
    /// The key.
    pub const KEY: u8 = 1;
    /// A header.
    pub const HEADER: u8 = 2;
    /// Producer id, epoch and sequence.
    pub const PRODUCER_SEQUENCE: u8 = 3;
    /// Trace context.
    pub const TRACE: u8 = 4;
    /// Reserved.
    pub const PRIORITY: u8 = 5;
    /// Time to live.
    pub const TTL: u8 = 6;
    /// Delay.
    pub const DELAY: u8 = 7;
    /// Queue for the reply.
    pub const REPLY_TO: u8 = 8;
    /// Tells apart replies.
    pub const CORRELATION: u8 = 9;
}

/// Bytes in front of a value.
const ENTRY_HEADER_BYTES: usize = 4;

/// The headers that a message gets as a dead letter take no more bytes.
pub const DEAD_LETTER_BYTES: usize = 512;

/// Most encoded bytes that the sender of a message to a brokered queue may have: the rest is for a named producer's own sequence, and
/// for what the message gets as a dead letter.
pub const BROKERED_BYTES_MAX: usize =
    u16::MAX as usize - OwnSequence::ENTRY_BYTES - DEAD_LETTER_BYTES;

/// Trace context of a message, after W3C Trace Context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceId {
    /// Trace id.
    pub trace: [u8; 16],
    /// Span id.
    pub span: [u8; 8],
    /// Trace flags.
    pub flags: u8,
}

/// What a named producer says of a message: with it the shard knows those that it has stored before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnSequence {
    /// The producer's id in its queue.
    pub producer: u64,
    /// Its attachment.
    pub epoch: u32,
    /// The producer's number of the message, from 1.
    pub sequence: u64,
}

impl OwnSequence {
    /// Bytes of the entry.
    pub const ENTRY_BYTES: usize = ENTRY_HEADER_BYTES + 20;

    /// The entry.
    #[inline]
    #[must_use]
    pub fn encode(&self) -> [u8; Self::ENTRY_BYTES] {
        let mut entry = [0; Self::ENTRY_BYTES];
        entry[0] = tag::PRODUCER_SEQUENCE;
        entry[2] = 20;
        entry[4..12].copy_from_slice(&self.producer.to_le_bytes());
        entry[12..16].copy_from_slice(&self.epoch.to_le_bytes());
        entry[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        entry
    }

    /// The first entry of some metadata, if it is one of these. Anywhere else it means nothing.
    ///
    /// # Errors
    /// It has the tag, and is none.
    #[inline]
    pub fn first_of(metadata: &[u8]) -> Result<Option<Self>, MetadataError> {
        if metadata.first() != Some(&tag::PRODUCER_SEQUENCE) {
            return Ok(None);
        }
        let Some(entry) = metadata.first_chunk::<{ Self::ENTRY_BYTES }>() else {
            return Err(MetadataError::Malformed(0));
        };
        let field = |from: usize| number(&entry[from..from + 8]).unwrap_or_default();
        let own = Self {
            producer: field(4),
            epoch: u32::from_le_bytes([entry[12], entry[13], entry[14], entry[15]]),
            sequence: field(16),
        };
        if own.encode() == *entry { Ok(Some(own)) } else { Err(MetadataError::Malformed(0)) }
    }
}

/// Key, headers, trace id and times of one message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Key, e.g. to keep an order by.
    pub key: Option<Vec<u8>>,
    /// Names (1 to 255 bytes) and values, in order; names may repeat.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Trace id.
    pub trace: Option<TraceId>,
    /// Brokered queues: not given out any more when this time is over, counted from its publishing, in whole milliseconds.
    pub ttl: Option<Duration>,
    /// Brokered queues: not given out before this time is over, counted from its publishing, in whole milliseconds.
    pub delay: Option<Duration>,
    /// Name of the queue that takes the reply.
    pub reply_to: Option<String>,
    /// A reply carries the number of its request.
    pub correlation: Option<u64>,
}

/// What a shard looks at: both in milliseconds from the publish time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// Time to live.
    pub ttl_ms: Option<u64>,
    /// Delay.
    pub delay_ms: Option<u64>,
}

/// Reads the times out of encoded metadata; `None` if it is malformed.
#[must_use]
pub fn times(bytes: &[u8]) -> Option<Times> {
    let mut found = Times::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (&[tag, 0, low, high], behind) = rest.split_first_chunk::<ENTRY_HEADER_BYTES>()? else {
            return None;
        };
        let (value, behind) =
            behind.split_at_checked(usize::from(u16::from_le_bytes([low, high])))?;
        match tag {
            tag::TTL => found.ttl_ms = Some(number(value)?),
            tag::DELAY => found.delay_ms = Some(number(value)?),
            _ => {}
        }
        rest = behind;
    }
    Some(found)
}

fn number(value: &[u8]) -> Option<u64> {
    value.try_into().ok().map(u64::from_le_bytes)
}

/// What is shorter than a millisecond counts as one.
fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// Why metadata could not be written or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MetadataError {
    /// The whole is too long.
    #[error("metadata of {0} bytes: at most 65535 fit")]
    TooLong(usize),
    /// A header's name is empty or too long.
    #[error("header name of {0} bytes: 1 to 255 bytes are allowed")]
    NameLength(usize),
    /// The bytes are no metadata.
    #[error("malformed metadata at byte {0}")]
    Malformed(usize),
}

impl Metadata {
    /// Appends the encoded form to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), MetadataError> {
        let start = out.len();
        if let Some(key) = &self.key {
            push(out, tag::KEY, &[key])?;
        }
        for (name, value) in &self.headers {
            let length = u8::try_from(name.len()).unwrap_or(0);
            if length == 0 {
                return Err(MetadataError::NameLength(name.len()));
            }
            push(out, tag::HEADER, &[&[length], name.as_bytes(), value])?;
        }
        if let Some(trace) = &self.trace {
            push(out, tag::TRACE, &[&trace.trace, &trace.span, &[trace.flags]])?;
        }
        for (tag, time) in [(tag::TTL, self.ttl), (tag::DELAY, self.delay)] {
            if let Some(time) = time {
                push(out, tag, &[&milliseconds(time).to_le_bytes()])?;
            }
        }
        if let Some(queue) = &self.reply_to {
            push(out, tag::REPLY_TO, &[queue.as_bytes()])?;
        }
        if let Some(number) = self.correlation {
            push(out, tag::CORRELATION, &[&number.to_le_bytes()])?;
        }
        let length = out.len() - start;
        if length > usize::from(u16::MAX) { Err(MetadataError::TooLong(length)) } else { Ok(()) }
    }

    /// Reads the encoded form.
    pub fn decode(bytes: &[u8]) -> Result<Self, MetadataError> {
        let mut metadata = Self::default();
        let mut at = 0;
        while at < bytes.len() {
            let malformed = MetadataError::Malformed(at);
            let Some(&[tag, 0, low, high]) = bytes[at..].first_chunk::<ENTRY_HEADER_BYTES>() else {
                return Err(malformed);
            };
            let start = at + ENTRY_HEADER_BYTES;
            let end = start + usize::from(u16::from_le_bytes([low, high]));
            let Some(value) = bytes.get(start..end) else {
                return Err(malformed);
            };
            match tag {
                tag::KEY if metadata.key.is_none() => metadata.key = Some(value.to_vec()),
                tag::KEY => return Err(malformed),
                tag::HEADER => metadata.headers.push(header(value).ok_or(malformed)?),
                tag::TTL | tag::DELAY => {
                    let time = Duration::from_millis(number(value).ok_or(malformed)?);
                    let field =
                        if tag == tag::TTL { &mut metadata.ttl } else { &mut metadata.delay };
                    *field = Some(time);
                }
                tag::REPLY_TO => {
                    let name = core::str::from_utf8(value).map_err(|_| malformed)?;
                    metadata.reply_to = Some(name.to_owned());
                }
                tag::CORRELATION => metadata.correlation = Some(number(value).ok_or(malformed)?),
                tag::TRACE => metadata.trace = Some(trace(value).ok_or(malformed)?),
                _ => {}
            }
            at = end;
        }
        Ok(metadata)
    }
}

fn push(out: &mut Vec<u8>, tag: u8, parts: &[&[u8]]) -> Result<(), MetadataError> {
    let length = parts.iter().map(|part| part.len()).sum();
    let Ok(length_16) = u16::try_from(length) else {
        return Err(MetadataError::TooLong(length));
    };
    out.extend_from_slice(&[tag, 0]);
    out.extend_from_slice(&length_16.to_le_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
    Ok(())
}

fn header(value: &[u8]) -> Option<(String, Vec<u8>)> {
    let (&length, rest) = value.split_first()?;
    let (name, value) = rest.split_at_checked(usize::from(length))?;
    let name = core::str::from_utf8(name).ok().filter(|name| !name.is_empty())?;
    Some((name.to_owned(), value.to_vec()))
}

fn trace(value: &[u8]) -> Option<TraceId> {
    let (trace, rest) = value.split_first_chunk::<16>()?;
    let (span, rest) = rest.split_first_chunk::<8>()?;
    let &[flags] = rest else { return None };
    Some(TraceId { trace: *trace, span: *span, flags })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_sequences_come_back_and_damaged_ones_do_not() {
        let own = OwnSequence { producer: u64::MAX - 5, epoch: 7, sequence: 1 << 40 };
        let entry = own.encode();
        assert_eq!(OwnSequence::first_of(&entry), Ok(Some(own)));
        assert_eq!(OwnSequence::first_of(&[entry.as_slice(), b"more"].concat()), Ok(Some(own)));
        assert_eq!(OwnSequence::first_of(&[]), Ok(None));
        assert_eq!(OwnSequence::first_of(&[tag::KEY, 0, 1, 0, 3]), Ok(None));
        for length in 1..entry.len() {
            assert!(OwnSequence::first_of(&entry[..length]).is_err());
        }
        for at in 1..4 {
            let mut entry = entry;
            entry[at] ^= 1;
            assert!(OwnSequence::first_of(&entry).is_err());
        }
        assert_eq!(Metadata::decode(&entry), Ok(Metadata::default()));
    }
}
