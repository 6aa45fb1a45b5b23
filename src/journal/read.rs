//! Messages: near ones from memory, far ones from the disk, verified.
//!
//! Who asks for a far message mostly wants those behind it: some reads are begun ahead, of whole batches, where the index says that
//! the queue has messages. They come into the part of the memory that is for reads. Whoever has come near the end of the queue finds
//! the batches that were written lately, and reads no more.

use std::collections::{BTreeSet, VecDeque};
use std::io;

use super::cache::Origin;
use super::canary::{Canary, planted};
use super::engine::{Journal, Task};
use super::format::{self, HEADER_BYTES, Header, RecordView};
use super::index::{Place, Reader, Run};
use super::table::file_name;
use super::types::{Damage, FLAG_MESSAGE, Fetch, Location, Lsn, Stored};
use crate::disk::{BLOCK_BYTES, Buffer, Disk, Operation};

/// Read at once where nothing is known of what follows.
const READ_BYTES: usize = READ_BLOCKS as usize * BLOCK_BYTES;
pub(super) const READ_BLOCKS: u32 = 32;

/// Longest read of several batches.
const READ_BYTES_MAX: u64 = 1 << 20;

/// Reads that are begun ahead for one reader.
const READS_AHEAD: usize = 4;

/// Runs that are looked at for that at a time.
const RUNS_AHEAD: usize = 64;

/// Reads in flight at the same time.
const READS: usize = 32;
/// With so many in flight nothing is read ahead: the others are for those who wait.
const READS_FOR_AHEAD: usize = READS / 2;

/// Reads that wait for a place in flight, in the order in which they were asked for: else those who come first in each turn would
/// take every place that becomes free, and the others would get nothing before those are through.
#[derive(Debug, Default)]
pub(super) struct WaitingReads {
    order: VecDeque<Wanted>,
    places: BTreeSet<(u64, u32)>,
}

#[derive(Debug)]
struct Wanted {
    segment: u64,
    block: u32,
    lsn: Lsn,
    bytes: usize,
}

impl WaitingReads {
    fn push(&mut self, wanted: Wanted) {
        if self.places.insert((wanted.segment, wanted.block)) {
            self.order.push_back(wanted);
        }
    }

    fn pop(&mut self) -> Option<Wanted> {
        let wanted = self.order.pop_front()?;
        self.places.remove(&(wanted.segment, wanted.block));
        Some(wanted)
    }
}

/// How many messages from the disk may be given out before this is set anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FarTurn {
    /// To all together.
    pub all: u32,
    /// Of these, to those who have earned none.
    pub unearned: u32,
    /// Somebody who has earned one was refused.
    pub refused_earned: bool,
    /// Somebody who has not was refused.
    pub refused_unearned: bool,
}

impl FarTurn {
    pub(super) const UNLIMITED: Self = Self::new(u32::MAX, u32::MAX);

    /// Nobody was refused.
    #[must_use]
    pub const fn new(all: u32, unearned: u32) -> Self {
        Self { all, unearned, refused_earned: false, refused_unearned: false }
    }

    /// Takes one message off for somebody; `false`: refused.
    fn admits(&mut self, earned: &mut u32) -> bool {
        let (limit, refused) = if *earned > 0 {
            (&mut *earned, &mut self.refused_earned)
        } else {
            (&mut self.unearned, &mut self.refused_unearned)
        };
        if self.all == 0 || *limit == 0 {
            *refused = true;
            return false;
        }
        *limit -= 1;
        self.all -= 1;
        true
    }
}

/// A message in a batch that is in memory.
struct Spot<'a> {
    record: RecordView<'a>,
    lsn: Lsn,
    /// Place of the record behind it.
    next: u32,
}

/// A record of a batch that has been verified.
fn stored(record: RecordView<'_>, location: Location, lsn: Lsn) -> Stored<'_> {
    let (kind, flags, queue) = (record.kind, record.flags, record.queue);
    let (sequence, body) = (record.sequence, record.body);
    Stored { lsn, location, kind, flags, queue, sequence, body }
}

/// Looks for a message from a place in its batch on.
#[inline(always)]
fn walk(bytes: &[u8], from: Place, queue: u64, sequence: u64) -> Option<Spot<'_>> {
    let end = Header::records_end_of_verified(bytes);
    let (mut at, mut lsn) = (from.location.record as usize, from.lsn);
    loop {
        let (record, next) = format::record_at(bytes, at, end)?;
        let is_message = record.flags & FLAG_MESSAGE != 0;
        let is_it = record.sequence == sequence || planted(Canary::NearestMessage);
        if is_message && record.queue == queue && is_it {
            let next = u32::try_from(next).ok()?;
            return Some(Spot { record, lsn, next });
        }
        at = next;
        lsn += 1;
    }
}

impl<D: Disk> Journal<D> {
    /// What [`Self::message_for_reader`] gives out from now on of messages that come from the disk. Without a call any number.
    pub fn allow_far(&mut self, turn: FarTurn) {
        self.far = turn;
    }

    /// What is left of that, and what was refused since.
    pub fn far(&self) -> FarTurn {
        self.far
    }

    /// A durable message.
    pub fn message(&mut self, queue: u64, sequence: u64) -> Fetch<'_> {
        self.fetch(queue, sequence, None)
    }

    /// As [`Self::message`], for somebody who goes through many: also [`Fetch::Pending`] if it comes from the disk, and neither
    /// [`Self::allow_far`] nor what he has earned allows it. What he has earned becomes less by what he gets from the disk.
    #[inline(always)]
    pub fn message_for_reader(&mut self, queue: u64, sequence: u64, earned: &mut u32) -> Fetch<'_> {
        self.fetch(queue, sequence, Some(earned))
    }

    // For each message that is given out: inline as far as nothing is read.
    #[inline(always)]
    fn fetch(&mut self, queue: u64, sequence: u64, earned: Option<&mut u32>) -> Fetch<'_> {
        let Some(found) = self.index.find(queue, sequence) else { return Fetch::Missing };
        let (number, place, lsn) = (found.number(), found.place, found.run.lsn);
        let is_first = place.sequence == found.run.first;
        let Location { segment, batch, .. } = place.location;
        let Some(near) = self.cache.find(segment, batch) else {
            let run = *found.run;
            return self.read_far(queue, sequence, &run);
        };
        // The first message of a batch that is asked for: the reads ahead go on.
        if is_first && self.index.has_readers(queue) {
            self.follow(queue, sequence);
        }
        if let Some(earned) = earned
            && near.origin == Origin::Read
            && !self.far.admits(earned)
        {
            return Fetch::Pending;
        }
        let Some(spot) = walk(self.cache.bytes_of(near), place, queue, sequence) else {
            let what = "a message is not where the index says";
            return Fetch::Failed(self.damage(segment, batch, lsn, what));
        };
        let location = Location { segment, batch, record: spot.record.offset };
        let place = Place { sequence, lsn: spot.lsn, location };
        self.index.set_hint(queue, number, place, spot.next);
        Fetch::Ready(stored(spot.record, location, spot.lsn))
    }

    /// The record at a place that `append` or a replay has told.
    pub fn read(&mut self, location: Location) -> Fetch<'_> {
        let Location { segment, batch, record } = location;
        if !self.is_near(segment, batch) {
            return self.read_if_whole(segment, batch, 0, READ_BYTES);
        }
        let Some(bytes) = self.cache.get(segment, batch) else { return Fetch::Pending };
        let Ok(header) = Header::decode(bytes) else { return Fetch::Missing };
        let end = Header::records_end_of_verified(bytes);
        let mut at = HEADER_BYTES;
        let mut lsn = header.first_lsn;
        while at < record as usize {
            let Some((_, next)) = format::record_at(bytes, at, end) else { break };
            at = next;
            lsn += 1;
        }
        if at != record as usize {
            return Fetch::Missing;
        }
        let record = format::record_at(bytes, at, bytes.len());
        record.map_or(Fetch::Missing, |(record, _)| Fetch::Ready(stored(record, location, lsn)))
    }

    /// Segment and batch of a durable message; the record is the message's or one before it.
    pub fn locate(&self, queue: u64, sequence: u64) -> Option<Location> {
        self.index.find(queue, sequence).map(|found| found.place.location)
    }

    fn is_near(&self, segment: u64, batch: u32) -> bool {
        self.cache.get(segment, batch).is_some()
    }

    /// Begins to read a message and what lies behind it.
    #[cold]
    #[inline(never)]
    fn read_far(&mut self, queue: u64, sequence: u64, run: &Run) -> Fetch<'_> {
        let (segment, batch) = (run.location.segment, run.location.batch);
        if self.damaged.contains_key(&(segment, batch)) || self.is_being_read(segment, batch) {
            return self.read_if_whole(segment, batch, run.lsn, READ_BYTES);
        }
        self.forget_silent_readers();
        // While many wait, each gets a little.
        let (bytes, next) = if self.index.ahead_bytes() < self.cache.ahead_bytes_max() {
            self.extent(run)
        } else {
            (READ_BYTES, run.last() + 1)
        };
        let reader = Reader::new(sequence, next);
        // Whoever asked for this one before had it taken away from under him.
        self.index.take_reader(queue, sequence);
        self.index.put_reader(queue, reader, self.cache.bytes_read());
        if let Fetch::Failed(damage) = self.read_if_whole(segment, batch, run.lsn, bytes) {
            return Fetch::Failed(damage);
        }
        self.follow(queue, sequence);
        Fetch::Pending
    }

    /// What was read ahead for whoever has been silent for so long has made room for others meanwhile; he may never come back.
    fn forget_silent_readers(&mut self) {
        let (now, kept) = (self.cache.bytes_read(), 2 * self.cache.read_bytes_max() as u64);
        if now.saturating_sub(self.readers_looked_at) >= kept / 2 {
            self.readers_looked_at = now;
            self.index.forget_readers(now.saturating_sub(kept));
        }
    }

    /// Bytes from the beginning of a run's batch to the end of a batch, and the sequence behind the last message of the queue there.
    fn extent(&self, run: &Run) -> (usize, u64) {
        let start = run.location;
        let mut next = run.last() + 1;
        for other in self.index.from(run.queue, next).take(RUNS_AHEAD) {
            let place = other.location;
            if place.segment != start.segment || place.batch < start.batch {
                break;
            }
            let blocks = place.batch - start.batch;
            if blocks >= READ_BLOCKS {
                let bytes = u64::from(blocks) * BLOCK_BYTES as u64;
                if bytes <= READ_BYTES_MAX {
                    return (usize::try_from(bytes).unwrap_or(READ_BYTES), next);
                }
                break;
            }
            next = other.last() + 1;
        }
        (READ_BYTES, next)
    }

    /// A reader has come to this message: the reads ahead of him are begun.
    fn follow(&mut self, queue: u64, sequence: u64) {
        let Some(mut reader) = self.index.take_reader(queue, sequence) else { return };
        reader.at = sequence;
        while reader.ahead.front().is_some_and(|(end, _)| *end <= sequence) {
            reader.ahead.pop_front();
        }
        let mut is_near_end = false;
        for _ in 0..RUNS_AHEAD {
            let others_wait = !self.waiting_reads.order.is_empty();
            if reader.ahead.len() >= READS_AHEAD
                || others_wait
                || self.reads_in_flight().0 >= READS_FOR_AHEAD
            {
                break;
            }
            let Some(run) = self.index.from(queue, reader.next).next().copied() else {
                is_near_end = reader.ahead.is_empty();
                break;
            };
            let (segment, batch) = (run.location.segment, run.location.batch);
            if self.is_near(segment, batch) {
                reader.next = run.last() + 1;
                continue;
            }
            let (bytes, next) = self.extent(&run);
            let ahead: usize = reader.ahead.iter().map(|(_, bytes)| bytes).sum();
            if self.index.ahead_bytes() + ahead + bytes > self.cache.ahead_bytes_max() {
                break;
            }
            if !self.may_read(bytes)
                || !matches!(self.read_if_whole(segment, batch, run.lsn, bytes), Fetch::Pending)
            {
                break;
            }
            self.figures.reads_ahead += 1;
            reader.next = next;
            reader.ahead.push_back((next, bytes));
        }
        // Otherwise all that follows is in memory: he is no reader of far messages any more.
        if !is_near_end {
            self.index.put_reader(queue, reader, self.cache.bytes_read());
        }
    }

    /// Reads in flight, and the bytes of their memory.
    fn reads_in_flight(&self) -> (usize, usize) {
        let bytes = self.tasks.values().filter_map(|task| match task {
            Task::Read { bytes, .. } => Some(*bytes),
            _ => None,
        });
        bytes.fold((0, 0), |(reads, all), bytes| (reads + 1, all + bytes))
    }

    /// Whether a read of so many bytes may begin. What is read at a time must fit into the memory for it: else some of it would be gone
    /// before those who wait for it are served, time and again.
    fn may_read(&self, bytes: usize) -> bool {
        let (reads, in_flight) = self.reads_in_flight();
        // Memory that is used again may be twice as long.
        reads == 0 || reads < READS && in_flight + 2 * bytes <= self.cache.read_bytes_max()
    }

    /// Or is about to be.
    fn is_being_read(&self, segment: u64, batch: u32) -> bool {
        if self.waiting_reads.places.contains(&(segment, batch)) {
            return true;
        }
        let under_way = |task: &Task| matches!(task, Task::Read { segment: s, block: b, .. } if (*s, *b) == (segment, batch));
        self.tasks.values().any(under_way)
    }

    /// Begins a read, or says what came of it.
    fn read_if_whole(&mut self, segment: u64, batch: u32, lsn: Lsn, bytes: usize) -> Fetch<'_> {
        if let Some(damage) = self.damaged.get(&(segment, batch)) {
            return Fetch::Failed(damage.clone());
        }
        if self.is_being_read(segment, batch) {
            return Fetch::Pending;
        }
        if !self.may_read(bytes) || !self.waiting_reads.order.is_empty() {
            self.waiting_reads.push(Wanted { segment, block: batch, lsn, bytes });
            return Fetch::Pending;
        }
        if self.begin_read(segment, batch, lsn, bytes) {
            Fetch::Pending
        } else {
            let what = "the journal has no such place";
            Fetch::Failed(self.damage(segment, batch, lsn, what))
        }
    }

    /// As many of the reads that wait as there are places for. What nobody can read any more is left to whoever asks again.
    pub(super) fn begin_waiting_reads(&mut self) {
        while let Some(first) = self.waiting_reads.order.front()
            && self.may_read(first.bytes)
            && let Some(Wanted { segment, block, lsn, bytes }) = self.waiting_reads.pop()
        {
            let is_known =
                self.is_near(segment, block) || self.damaged.contains_key(&(segment, block));
            if is_known || !self.begin_read(segment, block, lsn, bytes) {
                self.reads_done += 1;
            }
        }
    }

    pub(super) fn begin_read(&mut self, segment: u64, block: u32, lsn: Lsn, bytes: usize) -> bool {
        let Some((file, _)) = self.file_of(segment) else { return false };
        let offset = u64::from(block) * BLOCK_BYTES as u64;
        let Some(left) = self.segment_bytes(segment).and_then(|bytes| bytes.checked_sub(offset))
        else {
            return false;
        };
        let bytes = bytes.min(usize::try_from(left).unwrap_or(usize::MAX));
        if bytes < BLOCK_BYTES {
            return false;
        }
        self.figures.reads += 1;
        self.count_read(segment, 1);
        let buffer = self.cache.for_reading(bytes);
        let bytes = buffer.capacity();
        let ticket = self.ticket(Task::Read { segment, block, lsn, bytes });
        self.disk.submit(ticket, Operation::Read { file, offset, buffer });
        self.disk.flush();
        true
    }

    fn segment_bytes(&self, segment: u64) -> Option<u64> {
        let old = self.segments.iter().find(|one| one.entry.epoch == segment);
        let head = self.head.as_ref().filter(|head| head.epoch == segment);
        old.map(|one| one.bytes).or_else(|| head.map(|head| head.bytes))
    }

    fn count_read(&mut self, segment: u64, by: i32) {
        if let Some(one) = self.segments.iter_mut().find(|one| one.entry.epoch == segment) {
            one.reads = one.reads.saturating_add_signed(by);
        }
    }

    /// Whether somebody may ask again.
    pub(super) fn read_done(
        &mut self,
        segment: u64,
        block: u32,
        lsn: Lsn,
        result: io::Result<()>,
        buffer: Option<Buffer>,
    ) -> bool {
        self.count_read(segment, -1);
        let outcome = match (result, buffer) {
            (Ok(()), Some(buffer)) => self.verified(segment, block, buffer),
            (Ok(()), None) => Err("a read came back without its buffer".to_owned()),
            (Err(error), _) => Err(error.to_string()),
        };
        match outcome {
            Ok(Verified::Whole(buffer)) => {
                self.cache.insert(segment, block, buffer, Origin::Read);
            }
            Ok(Verified::Longer(bytes)) => {
                return !self.begin_read(segment, block, lsn, bytes);
            }
            Err(what) => {
                let damage = self.damage(segment, block, lsn, &what);
                self.damaged.insert((segment, block), damage);
            }
        }
        true
    }

    pub(super) fn damage(&self, segment: u64, block: u32, lsn: Lsn, what: &str) -> Damage {
        let file = self.file_of(segment).map_or(String::new(), |(_, number)| file_name(number));
        let offset = u64::from(block) * BLOCK_BYTES as u64;
        Damage { lsn, file, offset, what: what.to_owned() }
    }

    /// The batch that was read, and those behind it that are whole and durable.
    fn verified(&self, segment: u64, block: u32, mut buffer: Buffer) -> Result<Verified, String> {
        let start = u64::from(block) * BLOCK_BYTES as u64;
        let mut length = 0;
        while length + BLOCK_BYTES <= buffer.len() {
            let rest = &buffer[length..];
            let first = length == 0;
            let header = match Header::decode(rest) {
                Ok(header) => header,
                Err(error) if first => return Err(error.text().to_owned()),
                Err(_) => break,
            };
            let mine = header.epoch == segment
                && header.offset == start + length as u64
                && header.journal_id == self.identity.journal_id
                && header.end_lsn() <= self.durable() + 1;
            if !mine {
                if first {
                    return Err("there is a batch that does not belong here".to_owned());
                }
                break;
            }
            if header.disk_bytes() > rest.len() {
                if first && rest.len() < self.left_in_segment(segment, start) {
                    return Ok(Verified::Longer(header.disk_bytes()));
                }
                if !first {
                    break;
                }
            }
            match format::body_error(rest, &header) {
                None => length += header.disk_bytes(),
                Some(what) if first => return Err(what.to_owned()),
                Some(_) => break,
            }
        }
        buffer.set_length(length);
        Ok(Verified::Whole(buffer))
    }

    fn left_in_segment(&self, segment: u64, offset: u64) -> usize {
        let bytes = self.segment_bytes(segment).unwrap_or(0);
        usize::try_from(bytes.saturating_sub(offset)).unwrap_or(usize::MAX)
    }
}

enum Verified {
    /// As long as the batches in it.
    Whole(Buffer),
    /// Must be read with this many bytes.
    Longer(usize),
}
