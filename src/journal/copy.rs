//! How the cleaner copies what is needed of a segment: listed by place, read in one go, appended by queue and sequence.

use super::canary::{Canary, planted};
use super::clean::PARTS;
use super::engine::{Journal, Task};
use super::format::{self, Header, record_bytes};
use super::read::READ_BLOCKS;
use super::types::{AppendError, FLAG_COPY, FLAG_MESSAGE, Lsn, RecordRef, Snapshot};
use crate::disk::{BLOCK_BYTES, Disk};

/// Pieces that are listed at a time.
const PIECES: usize = 1 << 16;
/// Longest read, in blocks.
const READ_BLOCKS_MAX: u32 = 256;

/// Needed messages of one queue in one batch, with consecutive sequences.
#[derive(Debug, Clone, Copy)]
struct Piece {
    block: u32,
    /// Offset of the first one's record in the batch, or of one before it.
    record: u32,
    queue: u64,
    first: u64,
    last: u64,
    lsn: Lsn,
}

/// A message that has been read.
#[derive(Debug)]
struct Copy {
    queue: u64,
    sequence: u64,
    kind: u8,
    flags: u8,
    body: Vec<u8>,
}

/// The segment that is being cleaned.
#[derive(Debug)]
pub(super) struct Victim {
    epoch: u64,
    /// Of the records that are needed, when it was chosen.
    bytes: u64,
    /// Where listing goes on: extent, and sequence in it.
    extent: usize,
    next: u64,
    is_listed: bool,
    /// By place, from when on they are read.
    pieces: Vec<Piece>,
    is_reading: bool,
    /// The piece that is read next.
    at: usize,
    /// Read and not yet appended.
    gathered: Vec<Copy>,
    gathered_bytes: usize,
    /// Last copy.
    last: Lsn,
}

/// What came of a piece of work.
#[derive(Debug)]
pub(super) enum Progress {
    /// There is more to do at once.
    More,
    /// For the disk, or for others.
    Waits,
    /// Everything that is needed has a copy, the last one with this number.
    Copied(Lsn),
    /// The segment is gone, or cannot be copied.
    GivenUp,
}

impl Victim {
    pub(super) fn new(epoch: u64, bytes: u64) -> Self {
        Self {
            epoch,
            bytes,
            extent: 0,
            next: 0,
            is_listed: false,
            pieces: Vec::new(),
            is_reading: false,
            at: 0,
            gathered: Vec::new(),
            gathered_bytes: 0,
            last: 0,
        }
    }

    /// Bytes to be read from the next piece on: what is needed and not far apart.
    fn read_bytes(&self) -> usize {
        let start = self.pieces[self.at].block;
        let mut end = start + READ_BLOCKS;
        for piece in &self.pieces[self.at..] {
            let behind = piece.block + READ_BLOCKS;
            if piece.block > end || behind > start + READ_BLOCKS_MAX {
                break;
            }
            end = behind;
        }
        (end - start) as usize * BLOCK_BYTES
    }
}

impl<D: Disk> Journal<D> {
    /// Goes on with a segment.
    pub(super) fn copy(
        &mut self,
        victim: &mut Victim,
        snapshot: &dyn Snapshot,
        work: &mut usize,
    ) -> Progress {
        let here = |one: &super::space::Segment| one.entry.epoch == victim.epoch;
        let Some(place) = self.segments.iter().position(here) else { return Progress::GivenUp };
        if self.segments[place].freed.is_some() {
            return Progress::GivenUp;
        }
        if planted(Canary::FreeBeforeCopies) {
            self.segments[place].copied = Some(0);
            return Progress::Copied(0);
        }
        loop {
            if *work == 0 {
                return Progress::More;
            }
            let is_through = victim.is_reading && victim.at == victim.pieces.len();
            let is_last = is_through && victim.gathered_bytes > 0;
            if is_last || victim.gathered_bytes >= self.chunk_bytes() {
                match self.store(victim) {
                    Progress::More => {}
                    other => return other,
                }
            } else if is_through && victim.is_listed {
                self.segments[place].copied = Some(victim.last);
                return Progress::Copied(victim.last);
            } else if is_through {
                victim.pieces.clear();
                victim.at = 0;
                victim.is_reading = false;
            } else if victim.is_reading {
                match self.gather(victim, place, snapshot, work) {
                    Progress::More => {}
                    other => return other,
                }
            } else {
                self.list(victim, place, snapshot, work);
            }
        }
    }

    /// Finds out which messages are needed, and where they lie.
    fn list(
        &mut self,
        victim: &mut Victim,
        place: usize,
        snapshot: &dyn Snapshot,
        work: &mut usize,
    ) {
        let extents = self.segments[place].contents.extents();
        let parts = &mut self.cleaner.parts;
        while let Some(extent) = extents.get(victim.extent) {
            if *work == 0 {
                return;
            }
            if victim.pieces.len() >= PIECES {
                break;
            }
            parts.clear();
            let from = extent.first.max(victim.next);
            let told = snapshot.needed(extent.queue, from, extent.last, PARTS, parts);
            *work = work.saturating_sub(4);
            for &(first, last) in &*parts {
                let runs = self.index.from(extent.queue, first);
                for run in runs.take_while(|run| run.first <= last) {
                    *work = work.saturating_sub(1);
                    // Others have a copy already.
                    if run.location.segment == victim.epoch {
                        victim.pieces.push(Piece {
                            block: run.location.batch,
                            record: run.location.record,
                            queue: extent.queue,
                            first: first.max(run.first),
                            last: last.min(run.last()),
                            lsn: run.lsn,
                        });
                    }
                }
            }
            victim.next = told.max(from + 1);
            if victim.next > extent.last {
                victim.extent += 1;
                victim.next = 0;
            }
        }
        victim.is_listed = victim.extent == extents.len();
        victim.pieces.sort_unstable_by_key(|piece| (piece.block, piece.record, piece.first));
        victim.is_reading = true;
    }

    /// Takes the messages of the next piece, or has them read.
    fn gather(
        &mut self,
        victim: &mut Victim,
        place: usize,
        snapshot: &dyn Snapshot,
        work: &mut usize,
    ) -> Progress {
        let piece = victim.pieces[victim.at];
        let Piece { block, queue, first, last, lsn, .. } = piece;
        if !snapshot.is_needed(queue, first, last) {
            victim.at += 1;
            *work = work.saturating_sub(1);
            return Progress::More;
        }
        if let Some(bytes) = self.cache.get(victim.epoch, block) {
            let count = last - first + 1;
            let before = victim.gathered.len();
            let end = Header::records_end_of_verified(bytes);
            let mut at = piece.record as usize;
            while ((victim.gathered.len() - before) as u64) < count
                && let Some((record, next)) = format::record_at(bytes, at, end)
            {
                at = next;
                *work = work.saturating_sub(1);
                let is_wanted = record.flags & FLAG_MESSAGE != 0
                    && record.queue == queue
                    && (first..=last).contains(&record.sequence);
                if is_wanted {
                    victim.gathered_bytes += record_bytes(record.body.len());
                    victim.gathered.push(Copy {
                        queue,
                        sequence: record.sequence,
                        kind: record.kind,
                        flags: record.flags | FLAG_COPY,
                        body: record.body.to_vec(),
                    });
                }
            }
            victim.at += 1;
            if (victim.gathered.len() - before) as u64 == count {
                return Progress::More;
            }
            let what = "a message is not where the index says";
            return self.give_up(victim, place, block, lsn, what);
        }
        if let Some(damage) = self.damaged.get(&(victim.epoch, block)).cloned() {
            return self.give_up(victim, place, block, lsn, &damage.what);
        }
        let reads =
            |task: &Task| matches!(task, Task::Read { segment, .. } if *segment == victim.epoch);
        if self.tasks.values().any(reads) || self.is_hindered(victim.epoch) {
            return Progress::Waits;
        }
        if self.begin_read(victim.epoch, block, lsn, victim.read_bytes()) {
            return Progress::Waits;
        }
        let what = "an index that leads out of the file";
        self.give_up(victim, place, block, lsn, what)
    }

    /// The segment stays as it is: nothing is lost, and it is not tried again before the next start.
    fn give_up(
        &mut self,
        victim: &Victim,
        place: usize,
        block: u32,
        lsn: Lsn,
        what: &str,
    ) -> Progress {
        self.segments[place].unreadable = true;
        self.cleaner.damage = Some(self.damage(victim.epoch, block, lsn, what));
        Progress::GivenUp
    }

    /// Appends what has been read.
    fn store(&mut self, victim: &mut Victim) -> Progress {
        // One batch with copies at a time, and that one mostly on its own.
        let has_room =
            self.staging.as_ref().is_some_and(|one| one.bytes() < self.limits().batch_bytes);
        if self.cleaner.copied > self.durable() || !has_room || self.is_hindered(victim.epoch) {
            return Progress::Waits;
        }
        if self.takes_files(victim.bytes) {
            if self.no_space.is_some() {
                return Progress::GivenUp;
            }
            if !self.may_copy(victim.bytes) {
                return Progress::Waits;
            }
        }
        victim.gathered.sort_unstable_by_key(|copy| (copy.queue, copy.sequence));
        let mut stored = 0;
        let mut progress = Progress::More;
        for Copy { queue, sequence, kind, flags, body } in &victim.gathered {
            let (kind, flags, queue, sequence) = (*kind, *flags, *queue, *sequence);
            let record = RecordRef { kind, flags, queue, sequence, parts: &[body] };
            match self.append(record) {
                Ok((lsn, _)) => {
                    let bytes = record_bytes(body.len());
                    victim.last = lsn;
                    victim.gathered_bytes -= bytes;
                    self.cleaner.note_copied(lsn, bytes);
                    self.figures.copied_bytes += bytes as u64;
                    stored += 1;
                }
                Err(AppendError::Full) => {
                    progress = Progress::Waits;
                    break;
                }
                // Written with longer segments, or the journal has failed.
                Err(AppendError::TooLarge { .. } | AppendError::Failed { .. }) => {
                    progress = Progress::GivenUp;
                    break;
                }
            }
        }
        victim.gathered.drain(..stored);
        if matches!(progress, Progress::GivenUp)
            && let Some(one) = self.segments.iter_mut().find(|one| one.entry.epoch == victim.epoch)
        {
            one.unreadable = true;
        }
        progress
    }
}
