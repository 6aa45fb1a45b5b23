//! The index of a whole segment, at the end of its file: a cache that saves reading the segment when a journal is opened. No I/O.
//!
//! The last block has a header; the index lies in the blocks in front of it.

use super::format::{self, FOOTER, HEADER_BYTES, Header, u64_at};
use super::index::Run;
use super::types::{Location, Lsn};
use crate::disk::{BLOCK_BYTES, Buffer};

/// Bytes of a run.
const RUN_BYTES: usize = 40;
/// Bytes of header and fixed part.
#[allow(clippy::cast_possible_truncation)] // a few dozen bytes
const TRAILER_BYTES: u32 = HEADER_BYTES as u32 + 56;

/// What a footer says about its segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Footer {
    pub(super) epoch: u64,
    /// Of the batches in the segment.
    pub(super) incarnation: u64,
    pub(super) first_lsn: Lsn,
    pub(super) end_lsn: Lsn,
    pub(super) end_offset: u64,
    /// Chain value of the last batch.
    pub(super) chain: u64,
    pub(super) runs: Vec<Run>,
}

/// Blocks of an index with this many runs.
fn index_bytes(runs: usize) -> usize {
    (runs * RUN_BYTES).next_multiple_of(BLOCK_BYTES)
}

/// Bytes of a footer with this many runs.
pub(super) fn footer_bytes(runs: usize) -> usize {
    index_bytes(runs) + BLOCK_BYTES
}

impl Footer {
    /// Its bytes, to be written at the end of a file of this length; what they do not know comes with the header.
    pub(super) fn encode(&self, header: Header, file_bytes: u64) -> Buffer {
        let index = index_bytes(self.runs.len());
        let mut buffer = Buffer::new(footer_bytes(self.runs.len()));
        for (run, target) in self.runs.iter().zip(buffer[..index].chunks_exact_mut(RUN_BYTES)) {
            target[0..8].copy_from_slice(&run.queue.to_le_bytes());
            target[8..16].copy_from_slice(&run.first.to_le_bytes());
            target[16..20].copy_from_slice(&run.count.to_le_bytes());
            target[20..24].copy_from_slice(&run.location.batch.to_le_bytes());
            target[24..28].copy_from_slice(&run.location.record.to_le_bytes());
            target[28..32].copy_from_slice(&run.bytes.to_le_bytes());
            target[32..40].copy_from_slice(&run.lsn.to_le_bytes());
        }
        let checksum = format::body_checksum(&buffer[..index]);
        let fields = [
            self.incarnation,
            self.first_lsn,
            self.end_lsn,
            self.end_offset,
            self.chain,
            self.runs.len() as u64,
            checksum,
        ];
        let block = &mut buffer[index..];
        for (number, field) in fields.iter().enumerate() {
            let at = HEADER_BYTES + number * 8;
            block[at..at + 8].copy_from_slice(&field.to_le_bytes());
        }
        let mut header = Header {
            flags: FOOTER,
            epoch: self.epoch,
            offset: file_bytes - BLOCK_BYTES as u64,
            first_lsn: self.end_lsn,
            length: TRAILER_BYTES,
            previous: self.chain,
            ..header
        };
        format::seal(block, &mut header);
        buffer
    }
}

/// The last block of a file, if it is that of a footer.
#[derive(Debug)]
pub(super) struct Trailer {
    pub(super) header: Header,
    footer: Footer,
    runs: u64,
    checksum: u64,
}

impl Trailer {
    pub(super) fn decode(block: &[u8], file_bytes: u64) -> Option<Self> {
        let header = Header::decode(block).ok()?;
        let place = file_bytes.checked_sub(BLOCK_BYTES as u64)?;
        let as_expected = header.flags == FOOTER
            && header.offset == place
            && header.length == TRAILER_BYTES
            && format::body_error(block, &header).is_none();
        if !as_expected {
            return None;
        }
        let field = |number: usize| u64_at(block, HEADER_BYTES + number * 8);
        let footer = Footer {
            epoch: header.epoch,
            incarnation: field(0),
            first_lsn: field(1),
            end_lsn: field(2),
            end_offset: field(3),
            chain: field(4),
            runs: Vec::new(),
        };
        let trailer = Self { header, footer, runs: field(5), checksum: field(6) };
        // Also bounds the index by the length of the file.
        let index = trailer.runs.checked_mul(RUN_BYTES as u64)?;
        let sound = trailer.footer.end_lsn == header.first_lsn
            && trailer.footer.first_lsn <= trailer.footer.end_lsn
            && index <= place
            && trailer.index_offset() >= trailer.footer.end_offset;
        sound.then_some(trailer)
    }

    /// Bytes of the index in front of the block, in whole blocks.
    pub(super) fn index_bytes(&self) -> usize {
        index_bytes(usize::try_from(self.runs).unwrap_or(0))
    }

    /// Where the index begins in the file.
    pub(super) fn index_offset(&self) -> u64 {
        self.header.offset.saturating_sub(self.index_bytes() as u64)
    }

    /// With the index.
    pub(super) fn footer(mut self, index: &[u8]) -> Option<Footer> {
        if format::body_checksum(index) != self.checksum || index.len() != self.index_bytes() {
            return None;
        }
        let count = usize::try_from(self.runs).ok()?;
        let segment = self.footer.epoch;
        self.footer.runs = (index.chunks_exact(RUN_BYTES).take(count))
            .map(|bytes| {
                let number = |at: usize| {
                    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
                };
                let location = Location { segment, batch: number(20), record: number(24) };
                Run {
                    queue: u64_at(bytes, 0),
                    first: u64_at(bytes, 8),
                    count: number(16),
                    bytes: number(28),
                    lsn: u64_at(bytes, 32),
                    location,
                }
            })
            .collect();
        let sound =
            |run: &Run| run.count > 0 && run.first.checked_add(u64::from(run.count)).is_some();
        self.footer.runs.iter().all(sound).then_some(self.footer)
    }
}
