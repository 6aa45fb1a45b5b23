//! What travels in front of a payload: entries of {tag u8, reserved u8 = 0, length u16 little-endian, value}.
//!
//! | tag | value |
//! |---|---|
//! | 1 | key: bytes |
//! | 2 | header: name length u8, name (UTF-8), value bytes |
//! | 3 | own sequence of a named producer: its id u64, epoch u32, sequence u64; the first entry, see [`OwnSequence`] |
//! | 4 | trace context as W3C has it: trace id 16 bytes, span id 8 bytes, flags 1 byte |
//! | 5 to 8 | reserved: priority, time to live, delay, reply-to |
//!
//! Unknown tags are skipped. The whole is at most 65,535 bytes long.

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
    /// Reserved.
    pub const TTL: u8 = 6;
    /// Reserved.
    pub const DELAY: u8 = 7;
    /// Reserved.
    pub const REPLY_TO: u8 = 8;
}

/// Bytes in front of a value.
const ENTRY_HEADER_BYTES: usize = 4;

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
        let own = Self {
            producer: number(&entry[4..12]),
            epoch: u32::from_le_bytes([entry[12], entry[13], entry[14], entry[15]]),
            sequence: number(&entry[16..24]),
        };
        if own.encode() == *entry { Ok(Some(own)) } else { Err(MetadataError::Malformed(0)) }
    }
}

/// Eight bytes as a number.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Key, headers and trace id of one message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Key, e.g. to keep an order by.
    pub key: Option<Vec<u8>>,
    /// Names (1 to 255 bytes) and values, in order; names may repeat.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Trace id.
    pub trace: Option<TraceId>,
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
