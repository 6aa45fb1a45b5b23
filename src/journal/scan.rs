//! What lies in a segment file: every batch with a valid header, wherever it is.

use super::canary::{Canary, planted};
use super::footer::{Footer, Trailer};
use super::format::{self, FOOTER, Header, HeaderError, Records};
use super::index::Run;
use super::table::{Entry, KIND_FREED, KIND_SEGMENT};
use super::types::{Config, Damage, FLAG_MESSAGE, Location, Lsn, OpenError};
use crate::disk::{BLOCK_BYTES, Buffer, Disk, FileId};

/// A batch, or what claims to be one.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) header: Header,
    /// The header is right, the rest is not.
    pub(super) error: Option<&'static str>,
    pub(super) runs: Vec<Run>,
    /// Of a checkpoint.
    pub(super) entries: Vec<Entry>,
    /// Epochs, and the records that free them.
    pub(super) freed: Vec<(u64, Lsn)>,
}

/// A segment file and what is known of its content.
#[derive(Debug)]
pub(super) struct FileFacts {
    pub(super) number: u64,
    pub(super) name: String,
    pub(super) file: FileId,
    pub(super) bytes: u64,
    /// Of the first block.
    pub(super) first: Option<Header>,
    /// The last block, whatever its index is like.
    pub(super) trailer: Option<Header>,
    pub(super) footer: Option<Footer>,
    /// In the order of their places; `None` as long as nobody looked.
    pub(super) found: Option<Vec<Found>>,
    /// Bytes that are not zero were seen where no batch is.
    pub(super) litter: bool,
}

/// Reads a file piece by piece.
#[derive(Debug)]
pub(super) struct Window {
    buffer: Buffer,
    start: u64,
    filled: usize,
    file_bytes: u64,
    pub(super) read_bytes: u64,
}

impl Window {
    const BYTES: usize = 1 << 20;

    pub(super) fn new(file_bytes: u64) -> Self {
        let bytes = usize::try_from(file_bytes).map_or(Self::BYTES, |bytes| bytes.min(Self::BYTES));
        Self { buffer: Buffer::new(bytes), start: 0, filled: 0, file_bytes, read_bytes: 0 }
    }

    /// These bytes, all within the file; `offset` is a multiple of a block.
    pub(super) fn at(
        &mut self,
        disk: &mut impl Disk,
        (file, name): (FileId, &str),
        offset: u64,
        length: usize,
    ) -> Result<&[u8], OpenError> {
        let within = |start: u64, filled: usize| {
            offset >= start && offset + length as u64 <= start + filled as u64
        };
        if !within(self.start, self.filled) {
            let left = usize::try_from(self.file_bytes - offset).unwrap_or(usize::MAX);
            let wanted = length.next_multiple_of(BLOCK_BYTES).max(Self::BYTES).min(left);
            if wanted > self.buffer.capacity() {
                self.buffer = Buffer::new(wanted);
            }
            self.buffer.set_length(wanted);
            self.filled = 0;
            disk.read(file, offset, &mut self.buffer).map_err(|error| OpenError::Io {
                call: "read",
                file: name.to_owned(),
                offset,
                error,
            })?;
            (self.start, self.filled) = (offset, wanted);
            self.read_bytes += wanted as u64;
        }
        let at = usize::try_from(offset - self.start).expect("within the buffer");
        Ok(&self.buffer[at..at + length])
    }
}

impl FileFacts {
    /// Looks at the first and the last block, and at the index if there is one.
    pub(super) fn look(
        disk: &mut impl Disk,
        (number, name, bytes): (u64, String, u64),
        file: FileId,
    ) -> Result<Self, OpenError> {
        if bytes < Config::SEGMENT_BYTES_MIN || !bytes.is_multiple_of(BLOCK_BYTES as u64) {
            let what = "the file is shorter than it was made".to_owned();
            return Err(OpenError::Corrupt(Damage { lsn: 0, file: name, offset: bytes, what }));
        }
        let mut facts = Self {
            number,
            name,
            file,
            bytes,
            first: None,
            trailer: None,
            footer: None,
            found: None,
            litter: false,
        };
        let mut block = Buffer::new(BLOCK_BYTES);
        facts.read(disk, 0, &mut block)?;
        facts.first = facts.header(&block, 0)?;
        let last = bytes - BLOCK_BYTES as u64;
        facts.read(disk, last, &mut block)?;
        let Some(trailer) = Trailer::decode(&block, bytes) else { return Ok(facts) };
        facts.trailer = Some(trailer.header);
        let of_another = |first: &Header| {
            (first.epoch, first.journal_id) != (trailer.header.epoch, trailer.header.journal_id)
        };
        if facts.first.as_ref().is_none_or(of_another) && !planted(Canary::IgnoreEpoch) {
            return Ok(facts);
        }
        if trailer.index_bytes() == 0 {
            facts.footer = trailer.footer(&[]);
        } else {
            let mut index = Buffer::new(trailer.index_bytes());
            facts.read(disk, trailer.index_offset(), &mut index)?;
            facts.footer = trailer.footer(&index);
        }
        Ok(facts)
    }

    pub(super) fn read(
        &self,
        disk: &mut impl Disk,
        offset: u64,
        buffer: &mut Buffer,
    ) -> Result<(), OpenError> {
        disk.read(self.file, offset, buffer).map_err(|error| OpenError::Io {
            call: "read",
            file: self.name.clone(),
            offset,
            error,
        })
    }

    /// The header of a block, if it is one that belongs there.
    fn header(&self, block: &[u8], offset: u64) -> Result<Option<Header>, OpenError> {
        match Header::decode(block) {
            // A copy of a batch, perhaps in the body of a message, is none.
            Ok(header) if header.offset != offset => Ok(None),
            Ok(header) if u64::from(header.file_blocks) * BLOCK_BYTES as u64 != self.bytes => {
                let what = "the file is not as long as it was made".to_owned();
                let (lsn, file, offset) = (header.first_lsn, self.name.clone(), self.bytes);
                Err(OpenError::Corrupt(Damage { lsn, file, offset, what }))
            }
            Ok(header) => Ok(Some(header)),
            Err(HeaderError::Version(found)) => {
                Err(OpenError::Version { file: self.name.clone(), found, known: format::VERSION })
            }
            Err(_) => Ok(None),
        }
    }

    /// Reads the whole file, once. The bytes that it took.
    pub(super) fn scan(&mut self, disk: &mut impl Disk) -> Result<u64, OpenError> {
        if self.found.is_some() {
            return Ok(0);
        }
        let mut window = Window::new(self.bytes);
        let mut found = Vec::new();
        let mut offset = 0;
        while offset < self.bytes {
            match self.scan_one(disk, &mut window, offset, &mut found) {
                Ok(next) => offset = next,
                Err(OpenError::Io { .. }) if planted(Canary::CutOnReadError) => break,
                Err(error) => return Err(error),
            }
        }
        self.found = Some(found);
        Ok(window.read_bytes)
    }

    /// Looks at one place; where to look next.
    fn scan_one(
        &mut self,
        disk: &mut impl Disk,
        window: &mut Window,
        offset: u64,
        found: &mut Vec<Found>,
    ) -> Result<u64, OpenError> {
        let next = offset + BLOCK_BYTES as u64;
        let block = window.at(disk, (self.file, &self.name), offset, BLOCK_BYTES)?;
        let Some(header) = self.header(block, offset)? else {
            self.litter |= block.iter().any(|byte| *byte != 0);
            return Ok(next);
        };
        if header.flags & FOOTER != 0 {
            return Ok(next);
        }
        if header.end_offset() > self.bytes {
            let error = Some("a batch is longer than what is left of its file");
            found.push(Found::broken(header, error));
            return Ok(next);
        }
        let bytes = window.at(disk, (self.file, &self.name), offset, header.disk_bytes())?;
        let error = format::body_error(bytes, &header);
        if let Some(what) = error {
            if planted(Canary::NeedStale) {
                let (file, what) = (self.name.clone(), what.to_owned());
                return Err(OpenError::Corrupt(Damage {
                    lsn: header.first_lsn,
                    file,
                    offset,
                    what,
                }));
            }
            found.push(Found::broken(header, error));
            return Ok(next);
        }
        found.push(Found::whole(header, bytes));
        Ok(header.end_offset())
    }
}

impl Found {
    fn broken(header: Header, error: Option<&'static str>) -> Self {
        let (runs, entries, freed) = Default::default();
        Self { header, error, runs, entries, freed }
    }

    /// `bytes` has been verified.
    fn whole(header: Header, bytes: &[u8]) -> Self {
        let mut found = Self::broken(header, None);
        for (lsn, record) in (header.first_lsn..).zip(Records::new(bytes, &header)) {
            match record.kind {
                KIND_SEGMENT => found.entries.extend(Entry::decode(record.body)),
                KIND_FREED => found.freed.push((record.sequence, lsn)),
                _ if record.flags & FLAG_MESSAGE != 0 => {
                    let location = Location {
                        segment: header.epoch,
                        batch: super::batch::block_number(header.offset),
                        record: record.offset,
                    };
                    let bytes = format::record_bytes(record.body.len());
                    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
                    found.note(record.queue, record.sequence, lsn, location, bytes);
                }
                _ => {}
            }
        }
        found
    }

    fn note(&mut self, queue: u64, sequence: u64, lsn: Lsn, location: Location, bytes: u32) {
        // Batches hold few queues, or few messages of each: looking backwards is enough.
        let near = self.runs.iter_mut().rev().take(16).find(|run| run.queue == queue);
        match near {
            Some(run) if run.last().checked_add(1) == Some(sequence) => run.extend(bytes),
            _ => self.runs.push(Run::new(queue, sequence, lsn, location, bytes)),
        }
    }
}
