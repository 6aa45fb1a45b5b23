//! A batch that is being gathered: private memory into which records are copied. No I/O.

use std::collections::HashMap;

use super::format::{self, HEADER_BYTES, Header};
use super::index::{QueueHash, Run};
use super::types::{FLAG_MESSAGE, Location, Lsn, RecordRef};
use crate::disk::{BLOCK_BYTES, Buffer};

/// Where a group began.
#[derive(Debug, Clone, Copy)]
struct Mark {
    used: usize,
    count: u32,
}

/// Records on their way to the disk.
#[derive(Debug)]
pub(super) struct Batch {
    buffer: Buffer,
    /// Bytes of header and records.
    used: usize,
    count: u32,
    epoch: u64,
    offset: u64,
    first_lsn: Lsn,
    runs: Vec<Run>,
    /// Last run of each queue.
    run_places: HashMap<u64, usize, QueueHash>,
    last_run: usize,
    group: Option<Mark>,
}

/// What is left of a batch when its bytes are on their way.
#[derive(Debug)]
pub(super) struct Sealed {
    /// As long as the batch on the disk.
    pub(super) buffer: Buffer,
    pub(super) header: Header,
    pub(super) runs: Vec<Run>,
}

impl Batch {
    /// An empty one for this place.
    pub(super) fn new(mut buffer: Buffer, epoch: u64, offset: u64, first_lsn: Lsn) -> Self {
        buffer.set_length(buffer.capacity());
        Self {
            buffer,
            used: HEADER_BYTES,
            count: 0,
            epoch,
            offset,
            first_lsn,
            runs: Vec::new(),
            run_places: HashMap::default(),
            last_run: 0,
            group: None,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes without the padding.
    pub(super) fn bytes(&self) -> usize {
        self.used
    }

    /// Bytes of the records of the group, or of none.
    pub(super) fn group_bytes(&self) -> usize {
        self.group.map_or(0, |mark| self.used - mark.used)
    }

    pub(super) fn in_group(&self) -> bool {
        self.group.is_some()
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Number of the next record.
    pub(super) fn next_lsn(&self) -> Lsn {
        self.first_lsn + u64::from(self.count)
    }

    /// Makes the buffer long enough for these bytes.
    fn reserve(&mut self, bytes: usize) {
        if bytes > self.buffer.len() {
            let mut longer = Buffer::new(bytes.max(2 * self.buffer.len()));
            longer[..self.used].copy_from_slice(&self.buffer[..self.used]);
            self.buffer = longer;
        }
    }

    /// Copies a record; the caller has looked at the limits.
    pub(super) fn append(&mut self, record: &RecordRef<'_>, body: u32) -> (Lsn, Location) {
        let end = self.used + format::record_bytes(body as usize);
        self.reserve(end);
        format::write_record(&mut self.buffer[self.used..end], record, body);
        let location = Location {
            segment: self.epoch,
            batch: block_number(self.offset),
            record: u32::try_from(self.used).expect("a batch is shorter than 4 GiB"),
        };
        let lsn = self.next_lsn();
        if record.flags & FLAG_MESSAGE != 0 {
            let bytes = bytes_32(end - self.used);
            self.note_message(record.queue, record.sequence, lsn, location, bytes);
        }
        self.used = end;
        self.count += 1;
        (lsn, location)
    }

    fn note_message(
        &mut self,
        queue: u64,
        sequence: u64,
        lsn: Lsn,
        location: Location,
        bytes: u32,
    ) {
        let near = self.runs.get(self.last_run).is_some_and(|run| run.queue == queue);
        let place = if near { Some(self.last_run) } else { self.run_places.get(&queue).copied() };
        if let Some(place) = place {
            let run = &mut self.runs[place];
            if run.first + u64::from(run.count) == sequence {
                run.extend(bytes);
                self.last_run = place;
                return;
            }
        }
        self.last_run = self.runs.len();
        self.run_places.insert(queue, self.last_run);
        self.runs.push(Run::new(queue, sequence, lsn, location, bytes));
    }

    pub(super) fn begin(&mut self) {
        self.group = Some(Mark { used: self.used, count: self.count });
    }

    pub(super) fn commit(&mut self) {
        self.group = None;
    }

    /// Takes the group's records back.
    pub(super) fn abort(&mut self) {
        let Some(mark) = self.group.take() else { return };
        if mark.count == self.count {
            return;
        }
        (self.used, self.count) = (mark.used, mark.count);
        self.runs.clear();
        self.run_places.clear();
        self.last_run = 0;
        let mut at = HEADER_BYTES;
        let mut lsn = self.first_lsn;
        let mut messages = Vec::new();
        while let Some((record, next)) = format::record_at(&self.buffer, at, self.used) {
            if record.flags & FLAG_MESSAGE != 0 {
                let bytes = bytes_32(next - at);
                messages.push((record.queue, record.sequence, lsn, record.offset, bytes));
            }
            at = next;
            lsn += 1;
        }
        for (queue, sequence, lsn, record, bytes) in messages {
            let batch = block_number(self.offset);
            let location = Location { segment: self.epoch, batch, record };
            self.note_message(queue, sequence, lsn, location, bytes);
        }
    }

    /// Completes the header, of which the caller gives what a batch does not know, and lets the bytes go.
    pub(super) fn seal(mut self, header: Header) -> Sealed {
        let mut header = Header {
            epoch: self.epoch,
            offset: self.offset,
            first_lsn: self.first_lsn,
            count: self.count,
            length: u32::try_from(self.used).expect("a batch is shorter than 4 GiB"),
            ..header
        };
        self.buffer.set_length(header.disk_bytes());
        format::seal(&mut self.buffer, &mut header);
        Sealed { buffer: self.buffer, header, runs: self.runs }
    }
}

/// Bytes of a record.
fn bytes_32(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a batch is shorter than 4 GiB")
}

/// Offsets in segments as [`Location`] has them. A segment has fewer than 2^32 blocks.
pub(super) fn block_number(offset: u64) -> u32 {
    u32::try_from(offset / BLOCK_BYTES as u64).expect("a segment has fewer than 2^32 blocks")
}
