//! When the cleaner works, and on which segment: `docs/journal.md` has the rules. How it copies is in `copy.rs`.
//!
//! ```text
//! Waiting ──► Looking: how much of each segment is needed ──► Waiting ──► Copying ──► Freeing ──► Waiting
//! ```
//!
//! It is one more piece of [`Journal::submit`], with a bounded share of it, and waits for nothing there.

use std::time::{Duration, Instant};

use super::copy::Victim;
use super::engine::{Journal, Task};
use super::space::{Live, Segment};
use super::types::{Damage, Lsn, Snapshot};
use crate::disk::Disk;

/// Segments beyond twice what is needed from which on it works. The one that is written to comes on top.
const START_SEGMENTS: u64 = 1;
/// The same from which on it does not make way for others.
const URGENT_SEGMENTS: u64 = 2;
/// While others write, it copies one byte for so many of theirs.
const SHARE: u64 = 4;
/// Without batches of others for so long it works as fast as the disk.
const IDLE: Duration = Duration::from_millis(10);
/// It looks again after so many batches of others at least.
const LOOK_BATCHES: u64 = 64;
/// Copies at a time, at least, while others write.
const CHUNK_BYTES_MIN: usize = 64 << 10;
/// More than that if they write much: so that copies come to lie close together.
const CHUNK_RATIO: usize = 3;
/// Nothing is cleaned of which more than this part is needed, in 1024ths.
pub(super) const SHARE_MAX: u64 = 512;
/// Others wait until this part of a segment may be copied in one go: a half.
const ROUND: u64 = 2;
/// Steps of a turn: a question to the owner, a run or a message.
pub(super) const WORK: usize = 2048;
/// Parts that the owner is asked for at a time.
pub(super) const PARTS: usize = 256;

/// What it is about.
#[derive(Debug, Default)]
enum State {
    #[default]
    Waiting,
    Looking(Look),
    Copying(Box<Victim>),
    /// The copies of a segment are on their way to the disk.
    Freeing {
        lsn: Lsn,
    },
}

/// A look at all segments, one after the other.
#[derive(Debug, Default)]
struct Look {
    epoch: u64,
    extent: usize,
    /// Sequence in the extent.
    next: u64,
    /// Bytes of records of this segment so far: those that are needed, and all.
    live: u64,
    all: u64,
    /// Extents.
    seen: u64,
}

impl Look {
    /// At the beginning of this segment.
    fn segment(&self, epoch: u64) -> Self {
        Self { epoch, seen: self.seen, ..Self::default() }
    }

    fn next_segment(&self) -> Self {
        self.segment(self.epoch + 1)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Cleaner {
    state: State,
    /// For good.
    rests: bool,
    /// Batches of others since the last look began.
    batches: u64,
    /// A segment was sealed since.
    sealed: bool,
    /// Extents that the last look has seen.
    seen: u64,
    /// A segment to be cleaned is looked for.
    wanted: bool,
    urgent: bool,
    /// Bytes that may be copied while others write.
    credit: u64,
    /// What has been saved up is being spent.
    in_round: bool,
    /// Bytes of its own records, and of those that free segments, in the batch that is being gathered.
    own_bytes: usize,
    /// Bytes of the last batch of others, and when it was closed.
    others: usize,
    others_at: Option<Instant>,
    /// Last copy.
    pub(super) copied: Lsn,
    pub(super) damage: Option<Damage>,
    pub(super) due: Option<Instant>,
    pub(super) parts: Vec<(u64, u64)>,
}

impl Cleaner {
    /// A record that nobody asked for is in the batch that is being gathered.
    pub(super) fn note_own(&mut self, bytes: usize) {
        self.own_bytes += bytes;
    }

    /// Copies were appended.
    pub(super) fn note_copied(&mut self, lsn: Lsn, bytes: usize) {
        self.copied = lsn;
        self.credit = self.credit.saturating_sub(bytes as u64);
        self.note_own(bytes);
    }

    /// A batch was closed: bytes of its records, and on the disk; the most that may be saved up.
    pub(super) fn note_closed(
        &mut self,
        records: usize,
        bytes: usize,
        credit_max: u64,
        now: Instant,
    ) {
        let own = std::mem::take(&mut self.own_bytes);
        if records > own {
            self.others = bytes - own;
            self.others_at = Some(now);
            self.batches += 1;
            let earned = self.others as u64 / SHARE;
            self.credit = (self.credit + earned).min(credit_max);
        }
    }

    /// A segment takes no more batches.
    pub(super) fn note_sealed(&mut self) {
        self.sealed = true;
    }
}

/// Which part of a segment's file is needed, in 1024ths.
fn share(segment: &Segment) -> Option<u64> {
    Some(segment.live?.bytes * 1024 / segment.bytes.max(1))
}

impl<D: Disk> Journal<D> {
    /// No more cleaning, until the journal is opened again: it is to be closed soon.
    pub fn rest(&mut self) {
        self.cleaner.rests = true;
        self.cleaner.state = State::Waiting;
        self.cleaner.due = None;
    }

    /// What the cleaner could not read, once: that segment stays.
    pub fn take_damage(&mut self) -> Option<Damage> {
        self.cleaner.damage.take()
    }

    /// A piece of cleaning; whether there are new copies.
    pub(super) fn clean(&mut self, snapshot: &dyn Snapshot) -> bool {
        self.cleaner.due = None;
        if self.cleaner.rests || !self.checkpoint_is_durable() {
            return false;
        }
        let before = self.cleaner.copied;
        let mut work = WORK;
        loop {
            let (state, goes_on) = match std::mem::take(&mut self.cleaner.state) {
                State::Waiting => self.choose(),
                State::Looking(look) => self.look(look, snapshot, &mut work),
                State::Copying(victim) => self.go_on(victim, snapshot, &mut work),
                State::Freeing { lsn } if lsn <= self.durable() => {
                    self.figures.cleaned += 1;
                    // In the next turn.
                    self.look_for_free = true;
                    self.cleaner.due = Some(self.now);
                    (State::Waiting, true)
                }
                freeing @ State::Freeing { .. } => (freeing, false),
            };
            self.cleaner.state = state;
            if !goes_on {
                break;
            }
            if work == 0 {
                self.cleaner.due = Some(self.now);
                break;
            }
        }
        self.cleaner.copied > before
    }

    fn is_idle(&self) -> bool {
        self.cleaner.others_at.is_none_or(|at| self.now >= at + IDLE)
    }

    fn wait_for_idle(&mut self) {
        let at = self.cleaner.others_at.map(|at| at + IDLE);
        self.cleaner.due = at.into_iter().chain(self.cleaner.due).min();
    }

    /// Producers use the disk as it is, or somebody waits for what is read.
    pub(super) fn is_hindered(&self, victim: u64) -> bool {
        let others = |task: &Task| matches!(task, Task::Read { segment, .. } if *segment != victim);
        !self.cleaner.urgent
            && (self.busy() >= self.config.depth || self.tasks.values().any(others))
    }

    /// Bytes that are copied at a time.
    pub(super) fn chunk_bytes(&self) -> usize {
        let most = self.config.batch_bytes;
        if self.is_idle() {
            return most;
        }
        (CHUNK_RATIO * self.cleaner.others).clamp(CHUNK_BYTES_MIN.min(most), most)
    }

    /// What to do next.
    fn choose(&mut self) -> (State, bool) {
        let cleaner = &mut self.cleaner;
        // With fewer there is nothing to be gained.
        let worth = self.segments.len() as u64 > START_SEGMENTS;
        if worth && (cleaner.batches > 0 || cleaner.sealed) {
            let often = LOOK_BATCHES.max(cleaner.seen / 16);
            let due = cleaner.sealed || cleaner.batches >= often;
            if due || self.is_idle() {
                self.cleaner.batches = 0;
                self.cleaner.sealed = false;
                return (State::Looking(Look::default()), true);
            }
            self.wait_for_idle();
        }
        if !self.cleaner.wanted {
            return (State::Waiting, false);
        }
        match self.find_victim() {
            Some(victim) => (State::Copying(Box::new(victim)), true),
            None => (State::Waiting, false),
        }
    }

    /// The segment of which least is needed, if too much of the disk is taken and it may be copied now.
    fn find_victim(&mut self) -> Option<Victim> {
        let (durable, unit) = (self.durable(), self.config.segment_bytes);
        let used = self.segments.iter().filter(|one| one.freed.is_none() && one.copied.is_none());
        let excess: i64 = used
            .clone()
            .map(|one| {
                let live = one.live.map_or(one.bytes, |live| live.bytes);
                i64::try_from(one.bytes).unwrap_or(i64::MAX)
                    - 2 * i64::try_from(live).unwrap_or(i64::MAX / 2)
            })
            .sum();
        let exceeds = |segments: u64| u64::try_from(excess).is_ok_and(|one| one > segments * unit);
        let records = |one: &Segment| one.live.map_or(0, |live| live.record_bytes);
        let worth = used.filter(|one| {
            let sealed = one.entry.end_lsn <= durable + 1;
            let is_too_much = self.no_space.is_some() && self.takes_files(records(one));
            let is_sparse = share(one).is_some_and(|share| share <= SHARE_MAX);
            sealed && !one.unreadable && is_sparse && !is_too_much
        });
        let all: u64 = worth.clone().map(records).sum();
        let best = worth.min_by_key(|one| share(one));
        let best = best.map(|one| (one.entry.epoch, records(one)));
        let Some((epoch, live)) = best.filter(|_| exceeds(START_SEGMENTS)) else {
            self.cleaner.wanted = false;
            self.cleaner.in_round = false;
            return None;
        };
        self.cleaner.urgent = exceeds(URGENT_SEGMENTS);
        if !self.may_copy(live) {
            return None;
        }
        if !self.is_idle() {
            // Much at once, so that copies lie close together: among messages that are soon done with they would have to be copied again.
            let enough = if self.cleaner.in_round { live } else { live.max(all.min(unit / ROUND)) };
            if self.cleaner.credit < enough {
                self.cleaner.in_round = false;
                self.wait_for_idle();
                return None;
            }
        }
        self.cleaner.in_round = true;
        Some(Victim::new(epoch, live))
    }

    /// Goes on with asking how much of each segment is needed.
    fn look(&mut self, mut look: Look, snapshot: &dyn Snapshot, work: &mut usize) -> (State, bool) {
        let durable = self.durable();
        loop {
            let at = self.segments.partition_point(|one| one.entry.epoch < look.epoch);
            let Some(segment) = self.segments.get_mut(at) else {
                self.cleaner.seen = look.seen;
                self.cleaner.wanted = true;
                return (State::Waiting, true);
            };
            if segment.entry.epoch != look.epoch {
                look = look.segment(segment.entry.epoch);
            }
            let is_whole = segment.entry.end_lsn <= durable + 1;
            if segment.freed.is_some() || segment.copied.is_some() || !is_whole {
                look = look.next_segment();
                continue;
            }
            while let Some(extent) = segment.contents.extents().get(look.extent).copied() {
                if *work == 0 {
                    return (State::Looking(look), true);
                }
                let parts = &mut self.cleaner.parts;
                parts.clear();
                let from = extent.first.max(look.next);
                let told = snapshot.needed(extent.queue, from, extent.last, PARTS, parts);
                *work = work.saturating_sub(4 + parts.len());
                let messages = parts.iter().map(|(first, last)| last - first + 1).sum();
                look.live += extent.bytes_of(messages);
                look.next = told.max(from + 1);
                if look.next > extent.last {
                    look.all += extent.bytes;
                    look.seen += 1;
                    look.extent += 1;
                    look.next = 0;
                }
            }
            let record_bytes = look.live.min(look.all);
            let bytes = u128::from(segment.entry.end_offset) * u128::from(record_bytes);
            let bytes = bytes.checked_div(u128::from(look.all)).unwrap_or(0);
            let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
            segment.live = Some(Live { bytes, record_bytes });
            self.look_for_free |= bytes == 0;
            look = look.next_segment();
        }
    }

    /// Goes on with copying.
    fn go_on(
        &mut self,
        mut victim: Box<Victim>,
        snapshot: &dyn Snapshot,
        work: &mut usize,
    ) -> (State, bool) {
        use super::copy::Progress;
        match self.copy(&mut victim, snapshot, work) {
            Progress::More => (State::Copying(victim), true),
            Progress::Waits => (State::Copying(victim), false),
            Progress::Copied(lsn) => (State::Freeing { lsn }, true),
            Progress::GivenUp => (State::Waiting, true),
        }
    }
}
