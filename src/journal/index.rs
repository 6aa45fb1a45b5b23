//! Where messages lie: runs of consecutive sequences of one queue in one batch. A cache; the records are the truth.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use super::canary::{Canary, planted};
use super::types::{Location, Lsn};

/// Messages of one queue in one batch, with consecutive sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) queue: u64,
    /// Sequence of the first message.
    pub(super) first: u64,
    /// Messages.
    pub(super) count: u32,
    /// Of their records, with headers.
    pub(super) bytes: u32,
    /// Number of the first message's record, or of one before it.
    pub(super) lsn: Lsn,
    /// Place of that record.
    pub(super) location: Location,
}

impl Run {
    /// Of one message.
    pub(super) fn new(queue: u64, first: u64, lsn: Lsn, location: Location, bytes: u32) -> Self {
        Self { queue, first, count: 1, bytes, lsn, location }
    }

    /// One more message behind the last one.
    pub(super) fn extend(&mut self, bytes: u32) {
        self.count += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Those of its messages that lie in this range, which contains one at least.
    pub(super) fn part(&self, from: u64, to: u64) -> Self {
        let (first, last) = (self.first.max(from), self.last().min(to));
        let count = u32::try_from(last - first + 1).unwrap_or(self.count);
        let share = u64::from(self.bytes) * u64::from(count) / u64::from(self.count);
        Self { first, count, bytes: u32::try_from(share).unwrap_or(u32::MAX), ..*self }
    }

    /// Sequence of the last message.
    pub(super) fn last(&self) -> u64 {
        self.first + u64::from(self.count) - 1
    }
}

/// For keys that are numbers of our own, so that nobody can choose them to collide.
pub(super) type QueueHash = BuildHasherDefault<NumberHasher>;

/// One multiplication.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        let mixed = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

#[derive(Debug, Default)]
struct QueueRuns {
    /// Nobody asks for messages below.
    floor: u64,
    /// By sequence.
    runs: VecDeque<Run>,
    /// Messages found last, by several who go through the queue at places of their own: the next one that somebody asks for is
    /// mostly the one behind his last.
    hints: [Option<Hint>; HINTS],
    /// The hint that is overwritten next.
    turn: usize,
    /// Those who go through messages that are on the disk only; the one that came last is the last.
    readers: Vec<Reader>,
}

/// As many as a queue with a few groups needs.
const HINTS: usize = 4;

/// A message that was found.
#[derive(Debug, Clone, Copy)]
struct Hint {
    /// Its run, counted from the first one there is.
    at: usize,
    sequence: u64,
    lsn: Lsn,
    /// Place of its record in the batch.
    record: u32,
    /// Place of the record behind it.
    next: u32,
}

/// What is known of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found<'a> {
    at: usize,
    /// The run that it belongs to.
    pub(super) run: &'a Run,
    /// A place in its batch at or before it.
    pub(super) place: Place,
}

/// The number of a run until there are other runs of its queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct RunNumber(usize);

impl Found<'_> {
    pub(super) fn number(&self) -> RunNumber {
        RunNumber(self.at)
    }
}

impl Hint {
    /// From where a message of this run is looked for that is this one or lies behind it.
    fn place(&self, run: &Run, sequence: u64) -> Place {
        let Location { segment, batch, .. } = run.location;
        // From one to the next, nothing is looked at twice.
        let is_behind = sequence > self.sequence;
        let record = if is_behind { self.next } else { self.record };
        Place {
            sequence: self.sequence + u64::from(is_behind),
            lsn: self.lsn + u64::from(is_behind),
            location: Location { segment, batch, record },
        }
    }
}

impl QueueRuns {
    #[inline(always)]
    fn find(&self, sequence: u64) -> Option<Found<'_>> {
        if sequence < self.floor {
            return None;
        }
        // Exactly behind one that was found, or that one again: else one reader would go on from the place of another.
        let is_near = |hint: &&Hint| sequence.wrapping_sub(hint.sequence) <= 1;
        if let Some(hint) = self.hints.iter().flatten().find(is_near)
            && let Some(run) = self.runs.get(hint.at)
            && sequence <= run.last()
        {
            return Some(Found { at: hint.at, run, place: hint.place(run, sequence) });
        }
        let at = self.runs.partition_point(|run| run.first <= sequence).checked_sub(1)?;
        let run = self.runs.get(at).filter(|run| sequence <= run.last())?;
        let before = |hint: &&Hint| hint.at == at && hint.sequence <= sequence;
        let nearest = self.hints.iter().flatten().filter(before).max_by_key(|hint| hint.sequence);
        let start = Place { sequence: run.first, lsn: run.lsn, location: run.location };
        let place = nearest.map_or(start, |hint| hint.place(run, sequence));
        Some(Found { at, run, place })
    }

    #[inline(always)]
    fn set_hint(&mut self, hint: Hint) {
        let is_mine = |old: &Option<Hint>| {
            old.as_ref().is_some_and(|old| hint.sequence.wrapping_sub(old.sequence) <= 1)
        };
        let mine = self.hints.iter().position(is_mine).unwrap_or_else(|| {
            self.turn = (self.turn + 1) % HINTS;
            self.turn
        });
        self.hints[mine] = Some(hint);
    }

    /// The oldest run is gone.
    fn pop_front(&mut self) {
        self.runs.pop_front();
        for hint in &mut self.hints {
            *hint = hint.and_then(|hint| Some(Hint { at: hint.at.checked_sub(1)?, ..hint }));
        }
    }

    /// Puts a run in the place of what is there of its messages. Runs never overlap.
    fn put_over(&mut self, run: Run) {
        let from = self.runs.partition_point(|other| other.last() < run.first);
        let to = self.runs.partition_point(|other| other.first <= run.last());
        if planted(Canary::PreferOldPlace) && from < to {
            return;
        }
        let over: Vec<Run> = self.runs.drain(from..to).collect();
        let before = over.first().filter(|old| old.first < run.first);
        let before = before.map(|old| old.part(0, run.first - 1));
        let behind = over.last().filter(|old| old.last() > run.last());
        let behind = behind.map(|old| old.part(run.last() + 1, u64::MAX));
        for part in [behind, Some(run), before].into_iter().flatten() {
            self.runs.insert(from, part);
        }
    }
}

/// Readers of a queue that are known by their place; another one takes the place of the one that was silent longest.
const READERS: usize = 8;

/// Somebody who goes through far messages, and what was read for him ahead.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Reader {
    /// The message that was asked for last.
    pub(super) at: u64,
    /// Everything from `at` up to this one was asked of the disk.
    pub(super) next: u64,
    /// Of each read that lies ahead, the sequence behind its last message, and its bytes.
    pub(super) ahead: VecDeque<(u64, usize)>,
    /// Bytes that had been read, by all together, when it was last heard of.
    heard_of: u64,
}

impl Reader {
    /// Nothing was read ahead for it yet.
    pub(super) fn new(at: u64, next: u64) -> Self {
        Self { at, next, ..Self::default() }
    }

    fn ahead_bytes(&self) -> usize {
        self.ahead.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// A place in a batch from where a message is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Messages from this sequence on are looked for from here.
    pub(super) sequence: u64,
    /// Number of the record there.
    pub(super) lsn: Lsn,
    pub(super) location: Location,
}

/// All runs of durable messages that may be asked for.
#[derive(Debug, Default)]
pub(super) struct Index {
    queues: HashMap<u64, QueueRuns, QueueHash>,
    runs: usize,
    /// Of all readers.
    ahead_bytes: usize,
}

impl Index {
    pub(super) fn runs(&self) -> usize {
        self.runs
    }

    /// Of messages that are there already this is the newer place, which counts from now on.
    pub(super) fn insert(&mut self, run: Run) {
        let queue = self.queues.entry(run.queue).or_default();
        if run.last() < queue.floor {
            return;
        }
        let before = queue.runs.len();
        if queue.runs.back().is_none_or(|back| back.last() < run.first) {
            queue.runs.push_back(run);
        } else {
            queue.hints = Default::default();
            queue.put_over(run);
        }
        self.runs = self.runs + queue.runs.len() - before;
    }

    /// A message, if there is one with this sequence.
    #[inline(always)]
    pub(super) fn find(&self, queue: u64, sequence: u64) -> Option<Found<'_>> {
        self.queues.get(&queue)?.find(sequence)
    }

    /// A message of a run was found at this place of its batch, and the record behind it at another.
    #[inline(always)]
    pub(super) fn set_hint(&mut self, queue: u64, number: RunNumber, place: Place, next: u32) {
        let Some(queue) = self.queues.get_mut(&queue) else { return };
        let Place { sequence, lsn, location } = place;
        queue.set_hint(Hint { at: number.0, sequence, lsn, record: location.record, next });
    }

    /// Runs of a queue from the one with this message on, or from the first one behind it.
    pub(super) fn from(&self, queue: u64, sequence: u64) -> impl Iterator<Item = &Run> {
        self.queues.get(&queue).into_iter().flat_map(move |queue| {
            let at = queue.runs.partition_point(|run| run.last() < sequence);
            queue.runs.range(at..)
        })
    }

    /// Whether anybody goes through far messages of this queue.
    pub(super) fn has_readers(&self, queue: u64) -> bool {
        self.queues.get(&queue).is_some_and(|queue| !queue.readers.is_empty())
    }

    /// Takes the reader out who is about to ask for this message.
    pub(super) fn take_reader(&mut self, queue: u64, sequence: u64) -> Option<Reader> {
        let readers = &mut self.queues.get_mut(&queue)?.readers;
        let mine = |reader: &Reader| (reader.at..=reader.next).contains(&sequence);
        let reader = readers.iter().position(mine).map(|at| readers.remove(at))?;
        self.ahead_bytes -= reader.ahead_bytes();
        Some(reader)
    }

    /// Bytes that were read ahead for anybody, and that nobody has come to yet.
    pub(super) fn ahead_bytes(&self) -> usize {
        self.ahead_bytes
    }

    /// Puts a reader back, or a new one in, when so many bytes have been read.
    pub(super) fn put_reader(&mut self, queue: u64, mut reader: Reader, bytes_read: u64) {
        reader.heard_of = bytes_read;
        let Some(queue) = self.queues.get_mut(&queue) else { return };
        if queue.readers.len() >= READERS {
            self.ahead_bytes -= queue.readers.remove(0).ahead_bytes();
        }
        self.ahead_bytes += reader.ahead_bytes();
        queue.readers.push(reader);
    }

    /// Forgets the readers that were last heard of when fewer bytes had been read.
    pub(super) fn forget_readers(&mut self, bytes_read: u64) {
        for queue in self.queues.values_mut() {
            queue.readers.retain(|reader| reader.heard_of >= bytes_read);
        }
        let readers = self.queues.values().flat_map(|queue| &queue.readers);
        self.ahead_bytes = readers.map(Reader::ahead_bytes).sum();
    }

    pub(super) fn forget(&mut self, queue: u64, below: u64) {
        if below == u64::MAX {
            if let Some(gone) = self.queues.remove(&queue) {
                self.runs -= gone.runs.len();
                self.ahead_bytes -= gone.readers.iter().map(Reader::ahead_bytes).sum::<usize>();
            }
            return;
        }
        let entry = self.queues.entry(queue).or_default();
        entry.floor = entry.floor.max(below);
        while entry.runs.front().is_some_and(|run| run.last() < entry.floor) {
            entry.pop_front();
            self.runs -= 1;
        }
    }

    /// Removes what lies in a segment.
    pub(super) fn remove_segment(&mut self, epoch: u64, queues: impl Iterator<Item = u64>) {
        for queue in queues {
            if let Some(entry) = self.queues.get_mut(&queue) {
                let before = entry.runs.len();
                entry.runs.retain(|run| run.location.segment != epoch);
                entry.hints = Default::default();
                self.runs -= before - entry.runs.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(queue: u64, first: u64, count: u32, segment: u64) -> Run {
        let location = Location { segment, batch: 0, record: 128 };
        Run { queue, first, count, bytes: 100 * count, lsn: first, location }
    }

    #[test]
    fn the_newer_place_counts_and_the_rest_stays() {
        let mut index = Index::default();
        index.insert(run(1, 1, 10, 1));
        index.insert(run(1, 11, 10, 2));
        index.insert(run(1, 8, 5, 3));
        let segments: Vec<u64> = (1..=20)
            .filter_map(|sequence| Some(index.find(1, sequence)?.run.location.segment))
            .collect();
        assert_eq!(segments, [[1; 7].as_slice(), &[3; 5], &[2; 8]].concat());
        assert_eq!(index.runs(), 3);
        // In the midst of one, whose rear keeps the place from where it is looked for.
        index.insert(run(1, 3, 2, 4));
        assert_eq!(
            index.find(1, 6).map(|found| (*found.run, found.place)),
            Some((
                Run { first: 5, count: 3, bytes: 300, ..run(1, 1, 3, 1) },
                Place { sequence: 5, lsn: 1, location: run(1, 1, 1, 1).location }
            ))
        );
        assert_eq!(index.runs(), 5);
        // Over many, and exactly.
        index.insert(run(1, 1, 20, 5));
        assert_eq!(index.runs(), 1);
        index.insert(run(1, 1, 20, 6));
        index.remove_segment(5, [1].into_iter());
        assert_eq!(index.find(1, 20).map(|found| *found.run), Some(run(1, 1, 20, 6)));
    }

    #[test]
    fn finds_what_is_there_and_nothing_else() {
        let mut index = Index::default();
        index.insert(run(1, 10, 5, 1));
        index.insert(run(2, 1, 1, 1));
        index.insert(run(1, 15, 1, 2));
        assert_eq!(index.find(1, 14).map(|found| *found.run), Some(run(1, 10, 5, 1)));
        assert_eq!(index.find(1, 15).map(|found| *found.run), Some(run(1, 15, 1, 2)));
        assert_eq!(index.find(1, 9), None);
        assert_eq!(index.find(1, 16), None);
        assert_eq!(index.find(3, 1), None);
        index.forget(1, 12);
        assert_eq!(index.find(1, 11), None);
        assert!(index.find(1, 12).is_some());
        index.remove_segment(1, [1, 2].into_iter());
        assert_eq!(index.find(1, 12), None);
        assert_eq!(index.runs(), 1);
        index.forget(1, u64::MAX);
        assert_eq!(index.runs(), 0);
    }

    #[test]
    fn a_hint_serves_only_its_batch() {
        let mut index = Index::default();
        index.insert(run(1, 1, 9, 1));
        index.insert(run(1, 10, 9, 2));
        let location = Location { segment: 1, batch: 0, record: 500 };
        let set_hint = |index: &mut Index, sequence| {
            let number = index.find(1, sequence).expect("there").number();
            index.set_hint(1, number, Place { sequence, lsn: sequence, location }, 600);
        };
        let place = |index: &Index, sequence| {
            let place = index.find(1, sequence)?.place;
            Some((place.sequence, place.location.record))
        };
        set_hint(&mut index, 4);
        assert_eq!(place(&index, 4), Some((4, 500)));
        assert_eq!(place(&index, 5), Some((5, 600)));
        assert_eq!(place(&index, 6), Some((5, 600)));
        assert_eq!(place(&index, 3), Some((1, 128)));
        assert_eq!(place(&index, 11), Some((10, 128)));
        // Runs that come and go.
        set_hint(&mut index, 12);
        index.insert(run(1, 19, 9, 3));
        index.forget(1, 11);
        assert_eq!(place(&index, 13), Some((13, 600)));
        assert_eq!(place(&index, 20), Some((19, 128)));
        index.remove_segment(2, [1].into_iter());
        assert_eq!((place(&index, 13), place(&index, 20)), (None, Some((19, 128))));
    }

    #[test]
    fn each_of_several_readers_goes_on_from_his_place() {
        let mut index = Index::default();
        index.insert(run(1, 1, 1000, 1));
        let at = |sequence: u64| u32::try_from(128 + 100 * sequence).expect("small");
        let mut next = [1, 300, 5, 700];
        for round in 0..200 {
            for next in &mut next {
                let found = index.find(1, *next).expect("there");
                assert!(round == 0 || found.place.sequence == *next);
                let location = Location { record: at(*next), ..found.run.location };
                let (number, place) =
                    (found.number(), Place { sequence: *next, lsn: *next, location });
                index.set_hint(1, number, place, at(*next + 1));
                *next += 1;
            }
        }
    }
}
