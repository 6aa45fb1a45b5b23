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
    /// The message found last: the next one asked for is mostly the one behind it.
    hint: Option<(Run, Place)>,
    /// Those who go through messages that are on the disk only; the one that came last is the last.
    readers: Vec<Reader>,
}

impl QueueRuns {
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
            queue.hint = None;
            queue.put_over(run);
        }
        self.runs = self.runs + queue.runs.len() - before;
    }

    /// The run with this message, and a place in its batch at or before the message.
    pub(super) fn find(&self, queue: u64, sequence: u64) -> Option<(Run, Place)> {
        let queue = self.queues.get(&queue)?;
        if sequence < queue.floor {
            return None;
        }
        if let Some((run, place)) = queue.hint
            && (place.sequence..=run.last()).contains(&sequence)
        {
            return Some((run, place));
        }
        let at = queue.runs.partition_point(|run| run.first <= sequence).checked_sub(1)?;
        let run = *queue.runs.get(at)?;
        let start = Place { sequence: run.first, lsn: run.lsn, location: run.location };
        (sequence <= run.last()).then_some((run, start))
    }

    /// The message found last.
    pub(super) fn set_hint(&mut self, run: Run, place: Place) {
        if let Some(queue) = self.queues.get_mut(&run.queue) {
            queue.hint = Some((run, place));
        }
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
            entry.runs.pop_front();
            self.runs -= 1;
        }
    }

    /// Removes what lies in a segment.
    pub(super) fn remove_segment(&mut self, epoch: u64, queues: impl Iterator<Item = u64>) {
        for queue in queues {
            if let Some(entry) = self.queues.get_mut(&queue) {
                let before = entry.runs.len();
                entry.runs.retain(|run| run.location.segment != epoch);
                entry.hint = None;
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
            .filter_map(|sequence| Some(index.find(1, sequence)?.0.location.segment))
            .collect();
        assert_eq!(segments, [[1; 7].as_slice(), &[3; 5], &[2; 8]].concat());
        assert_eq!(index.runs(), 3);
        // In the midst of one, whose rear keeps the place from where it is looked for.
        index.insert(run(1, 3, 2, 4));
        assert_eq!(
            index.find(1, 6),
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
        assert_eq!(index.find(1, 20).map(|found| found.0), Some(run(1, 1, 20, 6)));
    }

    #[test]
    fn finds_what_is_there_and_nothing_else() {
        let mut index = Index::default();
        index.insert(run(1, 10, 5, 1));
        index.insert(run(2, 1, 1, 1));
        index.insert(run(1, 15, 1, 2));
        assert_eq!(index.find(1, 14).map(|found| found.0), Some(run(1, 10, 5, 1)));
        assert_eq!(index.find(1, 15).map(|found| found.0), Some(run(1, 15, 1, 2)));
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
        let hint = Place { sequence: 4, lsn: 4, location };
        index.set_hint(run(1, 1, 9, 1), hint);
        assert_eq!(index.find(1, 6).map(|found| found.1), Some(hint));
        assert_eq!(index.find(1, 3).map(|found| found.1.sequence), Some(1));
        assert_eq!(index.find(1, 11).map(|found| found.1.sequence), Some(10));
    }
}
