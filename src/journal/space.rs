//! Segments: begun with a checkpoint, sealed with a footer, freed when nothing in them is needed, used again.

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

use super::batch::{Batch, Sealed};
use super::canary::{Canary, planted};
use super::contents::Contents;
use super::engine::{Journal, Task};
use super::footer::{Footer, footer_bytes};
use super::format::{Header, RECORD_HEADER_BYTES, SNAPSHOT, SNAPSHOT_END, record_bytes};
use super::lengths::Limits;
use super::table::{Entry, KIND_FREED, KIND_SEGMENT, file_name};
use super::types::{Config, Lsn, RecordRef, Snapshot};
use crate::disk::{BLOCK_BYTES, Buffer, Disk, Durability, FileId, Operation, errno};

/// How long after a failed attempt a segment file is asked for again.
const RETRY: Duration = Duration::from_secs(1);
/// A freed file that is not held ready and was not needed for so long is removed.
const KEEP: Duration = Duration::from_secs(1);
/// The least that a power cut leaves whole.
const SECTOR_BYTES: usize = 512;

/// The segment that batches are appended to.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) epoch: u64,
    pub(super) file: FileId,
    pub(super) file_number: u64,
    pub(super) bytes: u64,
    pub(super) limits: Limits,
    /// See [`Journal::is_head_short`].
    pub(super) is_short: bool,
    pub(super) first_lsn: Lsn,
    /// Where the batch after the last closed one goes.
    pub(super) next_offset: u64,
    /// Last record of its checkpoint.
    pub(super) checkpoint_lsn: Lsn,
    pub(super) contents: Contents,
}

/// A segment that takes no more batches.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) entry: Entry,
    pub(super) file: FileId,
    pub(super) bytes: u64,
    pub(super) contents: Contents,
    /// Written, or not to be.
    pub(super) has_footer: bool,
    /// The record that says that it is free.
    pub(super) freed: Option<Lsn>,
    /// Reads in flight.
    pub(super) reads: u32,
    /// All of its messages that are needed have copies, the last one with this number.
    pub(super) copied: Option<Lsn>,
    /// What of it is needed, when that was last looked at.
    pub(super) live: Option<Live>,
    /// The cleaner could not read it.
    pub(super) unreadable: bool,
}

/// How much of a segment is needed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Live {
    /// With its share of what lies around.
    pub(super) bytes: u64,
    /// Of records.
    pub(super) record_bytes: u64,
}

impl Segment {
    pub(super) fn new(entry: Entry, file: FileId, bytes: u64, contents: Contents) -> Self {
        Self {
            entry,
            file,
            bytes,
            contents,
            has_footer: false,
            freed: None,
            reads: 0,
            copied: None,
            live: None,
            unreadable: false,
        }
    }

    /// Whether something is asked of it: messages that have no durable copy elsewhere.
    fn is_needed(&mut self, snapshot: &dyn Snapshot, durable: Lsn) -> bool {
        match self.copied {
            Some(lsn) => lsn > durable,
            None => self.contents.is_needed(snapshot),
        }
    }
}

/// A file that holds nothing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spare {
    pub(super) file: FileId,
    pub(super) number: u64,
    pub(super) bytes: u64,
}

/// Free files in which a segment begins that is younger than what the journal was taken for when it was opened: its checkpoint, or one
/// before it, is torn. The next checkpoint has many bytes in common with that one, in the same places. Written over it, and cut
/// off by the next power cut, it could make the torn one whole, and bring back what was behind it. So that beginning is
/// made void first, unless there is another file. None of this matters any more when the checkpoint of a younger
/// segment is durable.
#[derive(Debug, Default)]
pub(super) struct Torn {
    /// The first block without its first sector; `None` while it is being written.
    files: HashMap<FileId, Option<Buffer>>,
}

impl Torn {
    /// `block` is the first one, as it is. Only its first sector is changed, to what no batch begins with: whatever part of
    /// that is written, nothing becomes more whole than it was.
    pub(super) fn add(&mut self, file: FileId, mut block: Buffer) {
        block[..SECTOR_BYTES].fill(0);
        self.files.insert(file, Some(block));
    }

    pub(super) fn has(&self, file: FileId) -> bool {
        self.files.contains_key(&file) && !planted(Canary::CompleteTorn)
    }

    /// Its beginning is being made void.
    pub(super) fn is_written(&self, file: FileId) -> bool {
        self.files.get(&file).is_some_and(Option::is_none)
    }

    pub(super) fn is_void(&mut self, file: FileId) {
        self.files.remove(&file);
    }

    /// Nothing of it counts any more. What is being written comes to its end first.
    fn forget(&mut self) {
        self.files.retain(|_, block| block.is_none());
    }
}

/// Says that the segment of this epoch is free.
fn freed(epoch: u64) -> RecordRef<'static> {
    RecordRef { kind: KIND_FREED, flags: 0, queue: 0, sequence: epoch, parts: &[] }
}

/// Gathers a checkpoint.
struct Writer<'a, D: Disk> {
    journal: &'a mut Journal<D>,
    batch: Option<Batch>,
    sealed: Vec<Sealed>,
    epoch: u64,
    file_bytes: u64,
    #[cfg_attr(not(feature = "canary"), allow(dead_code))]
    records: u64,
}

impl<D: Disk> Writer<'_, D> {
    fn batch(&mut self) -> &mut Batch {
        let epoch = self.epoch;
        let offset = self.sealed.last().map_or(0, |sealed| sealed.header.end_offset());
        let journal = &mut *self.journal;
        self.batch.get_or_insert_with(|| {
            Batch::new(journal.cache.staging(), epoch, offset, journal.next_lsn)
        })
    }

    fn seal(&mut self, flags: u16) {
        self.batch();
        let Some(batch) = self.batch.take() else { return };
        self.journal.next_lsn = batch.next_lsn();
        let sealed = self.journal.seal(batch, flags, self.file_bytes);
        self.sealed.push(sealed);
    }

    fn emit(&mut self, record: &RecordRef<'_>) {
        let body: usize = record.parts.iter().map(|part| part.len()).sum();
        let Ok(length) = u32::try_from(body) else { return };
        let most = self.journal.config.batch_bytes;
        let batch = self.batch();
        if batch.count() > 0 && batch.bytes() + record_bytes(body) > most {
            self.seal(SNAPSHOT);
        }
        self.batch().append(record, length);
    }

    fn emit_of_owner(&mut self, record: &RecordRef<'_>) {
        self.records += 1;
        if !(planted(Canary::DropCheckpointRecord) && self.records == 2) {
            self.emit(record);
        }
    }
}

impl<D: Disk> Journal<D> {
    /// Begins a segment if the last one is full, or there is none yet.
    pub(super) fn begin_segment(&mut self, snapshot: &dyn Snapshot) {
        if !self.is_segment_due() && !self.is_head_too_long(snapshot) {
            return;
        }
        // With the last file it must be known what is free: else nobody could write that down if this process died.
        let is_last = match self.spares.len() {
            0 => self.usable_files().count() == 1,
            spares => spares == 1,
        };
        if self.head.is_some() && is_last && self.busy() > 0 {
            return;
        }
        self.take_recovered();
        if self.checkpoint_is_durable() {
            self.torn.forget();
        }
        let Some(spare) = self.next_free_file() else {
            self.void_torn();
            return;
        };
        // Empty, if there is one.
        self.staging = None;
        let (lsn, chain) = (self.next_lsn, self.chain);
        let useless = self.useless_segments(snapshot);
        let sealed = self.write_checkpoint(snapshot, spare.bytes, &useless);
        let end = sealed.last().map_or(0, |sealed| sealed.header.end_offset());
        let is_short = spare.bytes < self.wanted_bytes;
        let choices = Limits::in_file(&self.config, spare.bytes, is_short);
        let fitting = choices.iter().find(|one| end + one.room_bytes() <= spare.bytes);
        let Some(limits) = fitting.copied() else {
            // The state needs a longer file.
            if is_short {
                self.least_bytes = end + choices[1].room_bytes();
            } else {
                let most = choices[0].batch_bytes_max().next_multiple_of(BLOCK_BYTES) as u64;
                let wanted = end + choices[0].room_bytes() + most;
                self.wanted_bytes = wanted.next_multiple_of(self.config.segment_bytes);
            }
            (self.next_lsn, self.chain) = (lsn, chain);
            for Sealed { buffer, .. } in sealed {
                self.cache.recycle(buffer);
            }
            self.stage();
            return;
        };
        self.least_bytes = Config::SEGMENT_BYTES_MIN;
        if !is_short {
            self.wanted_bytes = self.config.segment_bytes;
        }
        self.spares.retain(|other| other.file != spare.file);
        self.surplus.retain(|other| other.file != spare.file);
        if let Some((entry, head)) = self.head_entry(lsn, chain).zip(self.head.take()) {
            let Head { file, bytes, contents, .. } = head;
            self.segments.push(Segment::new(entry, file, bytes, contents));
        }
        self.head = Some(Head {
            epoch: self.next_epoch,
            file: spare.file,
            file_number: spare.number,
            bytes: spare.bytes,
            limits,
            is_short,
            first_lsn: lsn,
            next_offset: end,
            checkpoint_lsn: self.next_lsn - 1,
            contents: Contents::default(),
        });
        for at in 0..self.segments.len() {
            if useless.contains(&self.segments[at].entry.epoch) {
                self.note_freed(at, self.next_lsn - 1);
            }
        }
        self.next_epoch += 1;
        self.figures.checkpoints += 1;
        self.closed.extend(sealed);
        self.look_for_free = true;
        self.cleaner.note_sealed();
        self.stage();
    }

    /// Whether the last segment is full or there is none, or a short one can be left for a long one.
    fn is_segment_due(&self) -> bool {
        match &self.staging {
            None => true,
            Some(staging) => {
                let is_long = |spare: &Spare| spare.bytes >= self.wanted_bytes;
                self.is_head_short()
                    && staging.is_empty()
                    && self.has_reserve()
                    && self.spares.iter().any(is_long)
            }
        }
    }

    /// There is no free file but those with torn beginnings: takes the first one's away.
    fn void_torn(&mut self) {
        let is_torn = |spare: &&Spare| self.torn.files.contains_key(&spare.file);
        let torn = self.usable_files().find(is_torn).copied();
        let block = torn.and_then(|Spare { file, number, .. }| {
            let block = self.torn.files.get_mut(&file)?;
            Some((file, number, block.take()))
        });
        // Of one that is being written there is no second one.
        let Some((file, number, Some(buffer))) = block else { return };
        let ticket = self.ticket(Task::Void { file, number });
        let durability = Durability::Durable;
        self.disk.submit(ticket, Operation::Write { file, offset: 0, buffer, durability });
    }

    /// Segments of which the next checkpoint says that they are free: those of which nothing is needed, as far as that is known.
    /// Who dies before it can say so in a record leaves them to the next start: see [`Self::take_recovered`].
    fn useless_segments(&mut self, snapshot: &dyn Snapshot) -> Vec<u64> {
        let (durable, end_lsn) = (self.durable(), self.next_lsn);
        let sealed = self.segments.iter_mut().filter(|segment| segment.freed.is_none());
        let known = sealed.filter(|segment| segment.entry.end_lsn <= durable + 1);
        let useless = known.filter_map(|segment| {
            let epoch = segment.entry.epoch;
            (!segment.is_needed(snapshot, durable)).then_some(epoch)
        });
        let head = self.head.iter_mut().filter(|_| end_lsn <= durable + 1);
        let head = head.filter_map(|head| {
            let epoch = head.epoch;
            (!head.contents.is_needed(snapshot)).then_some(epoch)
        });
        useless.chain(head).collect()
    }

    /// After a start without a free file: one that the journal said was free. That lacks a witness, which only a new segment could
    /// bring; but it was made durable before it was read, so that every recovery finds it.
    fn take_recovered(&mut self) {
        let (durable, usable) = (self.durable(), self.usable_bytes());
        let is_free = |segment: &Segment| {
            segment.freed.is_some_and(|lsn| lsn <= durable) && segment.bytes >= usable
        };
        if self.head.is_none()
            && self.usable_files().next().is_none()
            && let Some(at) = self.segments.iter().position(is_free)
        {
            let Segment { entry, file, bytes, .. } = self.segments.remove(at);
            self.figures.freed += 1;
            let spare = Spare { file, number: entry.file_number, bytes };
            if bytes >= self.wanted_bytes { &mut self.spares } else { &mut self.surplus }
                .push(spare);
        }
    }

    /// What the next checkpoint says about the present last segment.
    fn head_entry(&self, end_lsn: Lsn, chain: u64) -> Option<Entry> {
        let head = self.head.as_ref()?;
        Some(Entry {
            epoch: head.epoch,
            incarnation: self.identity.incarnation,
            file_number: head.file_number,
            first_lsn: head.first_lsn,
            end_lsn,
            end_offset: head.next_offset,
            chain,
        })
    }

    /// Says of the segments of these epochs that they are free.
    fn write_checkpoint(
        &mut self,
        snapshot: &dyn Snapshot,
        file_bytes: u64,
        free: &[u64],
    ) -> Vec<Sealed> {
        let epoch = self.next_epoch;
        let live = self.segments.iter().filter(|segment| segment.freed.is_none());
        let mut entries: Vec<Entry> = live.map(|segment| segment.entry).collect();
        entries.extend(self.head_entry(self.next_lsn, self.chain));
        let mut writer = Writer {
            journal: self,
            batch: None,
            sealed: Vec::new(),
            epoch,
            file_bytes,
            records: 0,
        };
        for entry in entries {
            let body = entry.encode();
            writer.emit(&RecordRef {
                kind: KIND_SEGMENT,
                flags: 0,
                queue: 0,
                sequence: entry.epoch,
                parts: &[&body],
            });
        }
        for epoch in free {
            writer.emit(&freed(*epoch));
        }
        snapshot.write(&mut |record| writer.emit_of_owner(&record));
        writer.seal(SNAPSHOT | SNAPSHOT_END);
        writer.sealed
    }

    /// Whether the last segment's checkpoint is durable, so that what comes before it matters for its messages only.
    pub(super) fn checkpoint_is_durable(&self) -> bool {
        self.head.as_ref().is_some_and(|head| self.durable() >= head.checkpoint_lsn)
    }

    /// Says of segments that they are free, and takes the files of those of which that is durable and witnessed.
    pub(super) fn free_segments(&mut self, snapshot: &dyn Snapshot) {
        self.take_freed();
        let starving = self.no_space.is_some();
        if !(self.look_for_free || starving) || !self.checkpoint_is_durable() || !self.has_room() {
            return;
        }
        self.look_for_free = false;
        let durable = self.durable();
        for at in 0..self.segments.len() {
            let segment = &mut self.segments[at];
            let done = segment.freed.is_none() && segment.entry.end_lsn <= durable + 1;
            if !done || segment.is_needed(snapshot, durable) {
                continue;
            }
            let epoch = segment.entry.epoch;
            let Ok((lsn, _)) = self.append(freed(epoch)) else {
                self.look_for_free = true;
                return;
            };
            self.cleaner.note_own(RECORD_HEADER_BYTES);
            self.note_freed(at, lsn);
        }
    }

    /// A segment is free as soon as this record counts.
    fn note_freed(&mut self, at: usize, lsn: Lsn) {
        let segment = &mut self.segments[at];
        segment.freed = Some(lsn);
        let epoch = segment.entry.epoch;
        let contents = std::mem::take(&mut segment.contents);
        self.index.remove_segment(epoch, contents.queues());
        self.cache.remove_segment(epoch);
        self.damaged.retain(|(segment, _), _| *segment != epoch);
    }

    /// A recovery that finds the record must also know, without this segment, that its own checkpoint counts: hence the witness.
    fn take_freed(&mut self) {
        let witnessed = self.frontier.witnessed();
        let mut at = 0;
        while let Some(segment) = self.segments.get(at) {
            let early = planted(Canary::ReuseEarly);
            let free = segment.freed.is_some_and(|lsn| lsn <= witnessed || early);
            if !free || segment.reads > 0 || self.is_writing_footer(segment.entry.epoch) {
                at += 1;
                continue;
            }
            let Segment { entry, file, bytes, .. } = self.segments.remove(at);
            self.figures.freed += 1;
            self.surplus.push(Spare { file, number: entry.file_number, bytes });
        }
    }

    fn is_writing_footer(&self, epoch: u64) -> bool {
        let mut tasks = self.tasks.values();
        tasks.any(|task| matches!(task, Task::Footer { epoch: other, .. } if *other == epoch))
    }

    /// Makes files ready ahead of need: freed ones, and new ones if there are none.
    pub(super) fn keep_spares(&mut self, now: Instant) {
        let fits = |spare: &Spare, wanted: u64| spare.bytes >= wanted;
        while self.spares.len() < self.config.spares.max(1) || self.wants_longer() {
            let wanted = self.wanted_bytes;
            let Some(at) = self.surplus.iter().position(|spare| fits(spare, wanted)) else { break };
            let spare = self.surplus.remove(at);
            self.spares.push(spare);
        }
        let creating = self.is_making_file();
        let wanted = self.spares.len() < self.config.spares || self.wants_longer();
        if wanted && !creating && self.retry_at.is_none_or(|at| now >= at) {
            self.retry_at = None;
            let (number, bytes) = (self.next_file, self.wanted_bytes);
            self.next_file += 1;
            let ticket = self.ticket(Task::Create { number, bytes });
            self.disk.submit(ticket, Operation::Create { name: file_name(number), bytes });
        }
        if !wanted {
            self.no_space = None;
            self.retry_at = None;
        }
        self.drop_surplus(now);
    }

    /// Removes freed files that are too many, and every so often those that were not needed since the last time: as many as there
    /// were at least.
    fn drop_surplus(&mut self, now: Instant) {
        self.give_back_short();
        self.surplus_least = self.surplus_least.min(self.surplus.len());
        let is_due = self.surplus_due.is_some_and(|due| due <= now);
        let idle = if is_due { self.surplus_least } else { 0 };
        let most = self.config.kept.min(self.surplus.len() - idle);
        // Before that the free files may still tell something to a recovery.
        if self.checkpoint_is_durable() && self.spares.len() >= self.config.spares {
            self.remove_surplus(most);
        }
        if self.surplus.is_empty() {
            self.surplus_due = None;
        } else if is_due || self.surplus_due.is_none() {
            self.surplus_due = Some(now + KEEP);
            self.surplus_least = self.surplus.len();
        }
    }

    /// A segment is to be begun and no file is long enough for messages.
    pub(super) fn wants_longer(&self) -> bool {
        let is_due = self.staging.is_none() || self.is_head_short();
        is_due && self.spares.iter().all(|spare| spare.bytes < self.wanted_bytes)
    }

    /// A segment file could not be made: that is no failure.
    pub(super) fn no_spare(&mut self, error: &io::Error) {
        self.no_space = Some((errno(error), error.to_string()));
        self.retry_at = Some(self.now + RETRY);
        self.look_at_head = true;
        self.give_back_long();
    }

    /// Footers of segments that are durable as a whole.
    pub(super) fn write_footers(&mut self) {
        if !self.checkpoint_is_durable() {
            return;
        }
        let durable = self.durable();
        for at in 0..self.segments.len() {
            let segment = &mut self.segments[at];
            let due = !segment.has_footer && segment.freed.is_none();
            if !due || segment.entry.end_lsn > durable + 1 {
                continue;
            }
            segment.has_footer = true;
            let runs = std::mem::take(&mut segment.contents.runs);
            let Entry { epoch, incarnation, first_lsn, end_lsn, end_offset, chain, .. } =
                segment.entry;
            let (file, file_bytes) = (segment.file, segment.bytes);
            // Without room there is no footer: the segment is read when the journal is opened.
            let bytes = footer_bytes(runs.len()) as u64;
            if bytes + end_offset > file_bytes {
                continue;
            }
            let footer = Footer { epoch, incarnation, first_lsn, end_lsn, end_offset, chain, runs };
            let header = Header {
                shard: self.identity.shard,
                journal_id: self.identity.journal_id,
                incarnation: self.identity.incarnation,
                durable_lsn: durable,
                file_blocks: super::batch::block_number(file_bytes),
                ..Header::default()
            };
            let buffer = footer.encode(header, file_bytes);
            let offset = file_bytes - buffer.len() as u64;
            let ticket = self.ticket(Task::Footer { epoch, offset });
            let durability = Durability::Durable;
            self.disk.submit(ticket, Operation::Write { file, offset, buffer, durability });
        }
    }
}
