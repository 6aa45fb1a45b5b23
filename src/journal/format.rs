//! The bytes of a batch: `docs/journal-format.md`. No I/O, no allocation from what was read.

use xxhash_rust::xxh3::xxh3_64;

use super::canary::{Canary, planted};
use super::types::{Lsn, RecordRef};
use crate::disk::BLOCK_BYTES;

/// Bytes in front of the records of each batch.
pub const HEADER_BYTES: usize = 128;
/// Bytes in front of the body of each record.
pub const RECORD_HEADER_BYTES: usize = 24;
/// Records begin at multiples of this many bytes.
pub const RECORD_ALIGNMENT: usize = 8;
/// First bytes of each batch.
pub const MAGIC: u64 = u64::from_le_bytes(*b"ringjrnl");
/// Version of all this.
pub const VERSION: u16 = 1;

/// The records are part of a checkpoint.
pub const SNAPSHOT: u16 = 1;
/// The last batch of a checkpoint.
pub const SNAPSHOT_END: u16 = 2;
/// Bears witness and nothing else.
pub const FRONTIER: u16 = 4;
/// Written by a clean stop.
pub const CLEAN: u16 = 8;
/// No batch, but the footer of a segment.
pub const FOOTER: u16 = 16;
/// Stands for a batch that `journal repair` has given up; its records are lost.
pub const FILLER: u16 = 32;
const FLAGS: u16 = SNAPSHOT | SNAPSHOT_END | FRONTIER | CLEAN | FOOTER | FILLER;

/// In front of each batch, and of each footer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// [`SNAPSHOT`] and the like.
    pub flags: u16,
    /// Number of the shard.
    pub shard: u32,
    /// Of these 128 bytes.
    pub checksum: u64,
    /// Of everything behind them up to the end of the last block.
    pub body_checksum: u64,
    /// Id of the journal.
    pub journal_id: u128,
    /// How often the journal had been opened.
    pub incarnation: u64,
    /// Epoch of the segment.
    pub epoch: u64,
    /// Place in the segment in bytes.
    pub offset: u64,
    /// Number of the first record, or that of the next one if there is none.
    pub first_lsn: Lsn,
    /// Everything up to this record was durable when the batch was made.
    pub durable_lsn: Lsn,
    /// Records.
    pub count: u32,
    /// Bytes, with this header, without the zeros behind.
    pub length: u32,
    /// Length of the segment file in blocks: a file that has lost its end is noticed.
    pub file_blocks: u32,
    /// [`Header::chain`] of the batch before, also over the border of segments; 0 for the first of a journal.
    pub previous: u64,
    /// [`FILLER`]s only: the chain value of the batch that it stands for.
    pub substitute: u64,
}

/// Why a block is not the beginning of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderError {
    /// It does not begin as one.
    NoMagic,
    /// The checksum is wrong.
    Checksum,
    /// It is of another version.
    Version(u16),
    /// The checksum is right and the fields contradict each other.
    Malformed,
}

impl HeaderError {
    /// In words.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::NoMagic => "no batch begins here",
            Self::Checksum => "the checksum of a header is wrong",
            Self::Version(_) => "a header has another version",
            Self::Malformed => "the fields of a header contradict each other",
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// A little-endian number at a place that must exist.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn u128_at(bytes: &[u8], at: usize) -> u128 {
    u128::from_le_bytes(bytes[at..at + 16].try_into().expect("sixteen bytes"))
}

impl Header {
    /// As bytes, with its checksum.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.flags.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.shard.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.body_checksum.to_le_bytes());
        bytes[32..48].copy_from_slice(&self.journal_id.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.incarnation.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[64..72].copy_from_slice(&self.offset.to_le_bytes());
        bytes[72..80].copy_from_slice(&self.first_lsn.to_le_bytes());
        bytes[80..88].copy_from_slice(&self.durable_lsn.to_le_bytes());
        bytes[88..92].copy_from_slice(&self.count.to_le_bytes());
        bytes[96..100].copy_from_slice(&self.length.to_le_bytes());
        bytes[100..104].copy_from_slice(&self.file_blocks.to_le_bytes());
        bytes[104..112].copy_from_slice(&self.previous.to_le_bytes());
        bytes[112..120].copy_from_slice(&self.substitute.to_le_bytes());
        let checksum = xxh3_64(&bytes);
        bytes[16..24].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// From the beginning of a block.
    pub fn decode(block: &[u8]) -> Result<Self, HeaderError> {
        let Some(bytes) = block.get(..HEADER_BYTES) else { return Err(HeaderError::NoMagic) };
        if u64_at(bytes, 0) != MAGIC {
            return Err(HeaderError::NoMagic);
        }
        let mut copy = [0; HEADER_BYTES];
        copy.copy_from_slice(bytes);
        let checksum = u64_at(&copy, 16);
        copy[16..24].fill(0);
        if xxh3_64(&copy) != checksum {
            return Err(HeaderError::Checksum);
        }
        let version = u16_at(bytes, 8);
        if version != VERSION {
            return Err(HeaderError::Version(version));
        }
        let header = Self {
            flags: u16_at(bytes, 10),
            shard: u32_at(bytes, 12),
            checksum,
            body_checksum: u64_at(bytes, 24),
            journal_id: u128_at(bytes, 32),
            incarnation: u64_at(bytes, 48),
            epoch: u64_at(bytes, 56),
            offset: u64_at(bytes, 64),
            first_lsn: u64_at(bytes, 72),
            durable_lsn: u64_at(bytes, 80),
            count: u32_at(bytes, 88),
            length: u32_at(bytes, 96),
            file_blocks: u32_at(bytes, 100),
            previous: u64_at(bytes, 104),
            substitute: u64_at(bytes, 112),
        };
        if u32_at(bytes, 92) != 0 || u64_at(bytes, 120) != 0 || !header.is_sound() {
            return Err(HeaderError::Malformed);
        }
        Ok(header)
    }

    /// Where the records of a batch end, from its first bytes. They must have been decoded before: nothing is checked.
    #[must_use]
    pub fn records_end_of_verified(batch: &[u8]) -> usize {
        batch.get(96..100).map_or(0, |bytes| u32_at(bytes, 0) as usize)
    }

    fn is_sound(&self) -> bool {
        let records = if self.flags & (FILLER | FOOTER) == 0 { u64::from(self.count) } else { 0 };
        self.flags & !FLAGS == 0
            && u64::from(self.length) >= HEADER_BYTES as u64 + records * RECORD_HEADER_BYTES as u64
            && self.offset.is_multiple_of(BLOCK_BYTES as u64)
            && self.end_offset_wide() <= u64::from(self.file_blocks) * BLOCK_BYTES as u64
            && (1..=u64::MAX / 2).contains(&self.first_lsn)
            && self.durable_lsn < u64::MAX / 2
            && self.epoch > 0
            && self.incarnation > 0
    }

    /// Of an offset that may be anything.
    fn end_offset_wide(&self) -> u64 {
        self.offset.saturating_add(self.disk_bytes() as u64)
    }

    /// What the next batch names as its predecessor.
    #[must_use]
    pub fn chain(&self) -> u64 {
        if self.flags & FILLER != 0 { self.substitute } else { self.checksum }
    }

    /// Number of the record after the last one.
    #[must_use]
    pub fn end_lsn(&self) -> Lsn {
        self.first_lsn + u64::from(self.count)
    }

    /// Bytes on the disk.
    #[must_use]
    pub fn disk_bytes(&self) -> usize {
        (self.length as usize).next_multiple_of(BLOCK_BYTES)
    }

    /// Place of the next batch in the segment in bytes.
    #[must_use]
    pub fn end_offset(&self) -> u64 {
        self.offset + self.disk_bytes() as u64
    }
}

/// Checksum of a body, its padding included.
#[must_use]
pub fn body_checksum(body: &[u8]) -> u64 {
    xxh3_64(body)
}

/// Ends a batch: zeros behind it, checksums and header in front. `bytes` is as long as the batch on the disk.
pub fn seal(bytes: &mut [u8], header: &mut Header) {
    bytes[header.length as usize..].fill(0);
    header.body_checksum = body_checksum(&bytes[HEADER_BYTES..]);
    let encoded = header.encode();
    header.checksum = u64_at(&encoded, 16);
    bytes[..HEADER_BYTES].copy_from_slice(&encoded);
}

/// What is wrong with a batch whose header is right; `bytes` begins with it and may be longer. `None`: nothing.
#[must_use]
pub fn body_error(bytes: &[u8], header: &Header) -> Option<&'static str> {
    let Some(bytes) = bytes.get(..header.disk_bytes()) else {
        return Some("a batch is longer than what is left of its file");
    };
    let is_right = body_checksum(&bytes[HEADER_BYTES..]) == header.body_checksum;
    if !is_right && !planted(Canary::TrustBody) {
        return Some("the checksum of a batch is wrong");
    }
    if header.flags & (FILLER | FOOTER) != 0 {
        return None;
    }
    let mut records = Records::new(bytes, header);
    let whole = records.by_ref().count() == header.count as usize && records.is_at_end();
    (!whole).then_some("the records of a batch do not fit into it")
}

/// A record within its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordView<'a> {
    /// Offset in the batch in bytes.
    pub offset: u32,
    /// See [`RecordRef`].
    pub kind: u8,
    /// See [`RecordRef`].
    pub flags: u8,
    /// See [`RecordRef`].
    pub queue: u64,
    /// See [`RecordRef`].
    pub sequence: u64,
    /// Joined.
    pub body: &'a [u8],
}

/// Bytes that a record takes.
#[must_use]
pub fn record_bytes(body: usize) -> usize {
    (RECORD_HEADER_BYTES + body).next_multiple_of(RECORD_ALIGNMENT)
}

/// Writes a record; `target` is exactly [`record_bytes`] long.
pub fn write_record(target: &mut [u8], record: &RecordRef<'_>, body: u32) {
    target[0..4].copy_from_slice(&body.to_le_bytes());
    target[4] = record.kind;
    target[5] = record.flags;
    target[6..8].fill(0);
    target[8..16].copy_from_slice(&record.queue.to_le_bytes());
    target[16..24].copy_from_slice(&record.sequence.to_le_bytes());
    let mut at = RECORD_HEADER_BYTES;
    for part in record.parts {
        target[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    target[at..].fill(0);
}

/// Reads the record at an offset, if it ends before `end`; with the offset of the next one.
#[must_use]
pub fn record_at(batch: &[u8], offset: usize, end: usize) -> Option<(RecordView<'_>, usize)> {
    let header = batch.get(offset..offset.checked_add(RECORD_HEADER_BYTES)?)?;
    let length = u32_at(header, 0) as usize;
    let next = offset.checked_add(record_bytes(length))?;
    if next > end || u16_at(header, 6) != 0 {
        return None;
    }
    let body = offset + RECORD_HEADER_BYTES;
    let view = RecordView {
        offset: u32::try_from(offset).ok()?,
        kind: header[4],
        flags: header[5],
        queue: u64_at(header, 8),
        sequence: u64_at(header, 16),
        body: batch.get(body..body + length)?,
    };
    Some((view, next))
}

/// The records of a batch, as far as they fit into it.
#[derive(Debug)]
pub struct Records<'a> {
    batch: &'a [u8],
    next: usize,
    end: usize,
    left: u32,
}

impl<'a> Records<'a> {
    /// `batch` begins with this header.
    #[must_use]
    pub fn new(batch: &'a [u8], header: &Header) -> Self {
        let end = header.length as usize;
        let none = header.flags & (FILLER | FOOTER) != 0;
        Self { batch, next: HEADER_BYTES, end, left: if none { 0 } else { header.count } }
    }

    fn is_at_end(&self) -> bool {
        self.left == 0 && self.next == self.end
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = RecordView<'a>;

    fn next(&mut self) -> Option<RecordView<'a>> {
        self.left = self.left.checked_sub(1)?;
        let (record, next) = record_at(self.batch, self.next, self.end)?;
        self.next = next;
        Some(record)
    }
}
