//! Sparse index of a queue: when messages were published, and how many bytes lie below them. docs/brokered.md has the promises.

use std::collections::VecDeque;

use super::record;

/// Between two marks at least, when they are made.
const STEP_NS: u64 = 1_000_000;
/// Marks of a queue at most.
const MARKS_MAX: usize = 4096;
/// Of these, after a thinning at most.
const KEPT_MAX: usize = MARKS_MAX / 4 * 3;
/// Marks of a queue in a checkpoint at most.
const STORED_MAX: usize = 1024;
/// Two neighbours may be as far apart as this part of their distance to the end.
const PART: u64 = 64;
/// Memory that an empty index keeps, in marks.
const SPARE: usize = 16;

/// What is known about one message, exactly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) sequence: u64,
    /// When it was published, since 1970.
    pub(super) published_ns: u64,
    /// Payload and metadata of all messages below it, since the queue was created.
    pub(super) bytes_below: u64,
}

/// Where a message is, as far as marks tell: at `from` or behind it, and at `to` or before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) from: u64,
    /// `None`: behind the last mark, possibly not there at all.
    pub(super) to: Option<u64>,
}

/// The marks of a queue, by sequence; times and bytes do not decrease.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Marks {
    marks: VecDeque<Mark>,
    /// Payload and metadata of all messages since the queue was created.
    bytes: u64,
    /// Of the latest message, whether it has a mark or not.
    latest: Mark,
}

impl Marks {
    /// The next message of the queue, with its bytes. Its time is not below that of the one before. There is a new mark after a
    /// millisecond, or after so many bytes.
    #[inline]
    pub(super) fn appended(
        &mut self,
        sequence: u64,
        published_ns: u64,
        bytes: usize,
        step_bytes: u64,
    ) {
        let is_due = |last: &Mark| {
            published_ns.saturating_sub(last.published_ns) >= STEP_NS
                || self.bytes - last.bytes_below >= step_bytes
        };
        let mark = Mark { sequence, published_ns, bytes_below: self.bytes };
        if self.marks.back().is_none_or(is_due) {
            self.push(mark);
        }
        self.latest = mark;
        self.bytes = self.bytes.saturating_add(bytes as u64);
    }

    /// The latest message has no mark yet.
    fn has_later(&self) -> bool {
        self.marks.back().is_some_and(|last| last.sequence < self.latest.sequence)
    }

    #[cold]
    fn push(&mut self, mark: Mark) {
        // The last message before a pause, or it would count as young as the first one behind it.
        let paused = mark.published_ns.saturating_sub(self.latest.published_ns) >= STEP_NS;
        if paused && self.has_later() {
            self.marks.push_back(self.latest);
        }
        if self.marks.len() >= MARKS_MAX - 1 {
            self.marks = thinned(&self.marks, self.bytes, KEPT_MAX);
        }
        self.marks.push_back(mark);
    }

    /// Messages below this sequence are never asked for again.
    pub(super) fn forget_below(&mut self, below: u64) {
        while self.marks.get(1).is_some_and(|second| second.sequence <= below) {
            self.marks.pop_front();
        }
        self.spare();
    }

    /// No message is needed.
    pub(super) fn clear(&mut self) {
        self.marks.clear();
        self.spare();
    }

    fn spare(&mut self) {
        if self.marks.capacity() > SPARE && self.marks.len() < self.marks.capacity() / 4 {
            self.marks.shrink_to(self.marks.len().max(SPARE / 2));
        }
    }

    /// Payload and metadata of all messages since the queue was created.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// No message from this sequence on was published before this time. `None`: nothing is known.
    pub(super) fn time_from(&self, sequence: u64) -> Option<u64> {
        self.before(sequence).map(|mark| mark.published_ns)
    }

    /// Below this sequence are at least so many bytes.
    pub(super) fn bytes_below(&self, sequence: u64) -> u64 {
        self.before(sequence).map_or(0, |mark| mark.bytes_below)
    }

    /// When the first message with a mark was published, from this sequence on.
    pub(super) fn next_time(&self, sequence: u64) -> Option<u64> {
        let at = self.marks.partition_point(|mark| mark.sequence < sequence);
        self.marks.get(at).map(|mark| mark.published_ns)
    }

    /// The last mark at or before a message.
    fn before(&self, sequence: u64) -> Option<&Mark> {
        let behind = self.marks.partition_point(|mark| mark.sequence <= sequence);
        behind.checked_sub(1).and_then(|at| self.marks.get(at))
    }

    /// Where the first message is that was published at this time or later.
    pub(super) fn at_time(&self, published_ns: u64) -> Bounds {
        self.bounds(|mark| mark.published_ns < published_ns)
    }

    /// Where the first message is below which there are at least so many bytes.
    pub(super) fn at_bytes(&self, bytes_below: u64) -> Bounds {
        self.bounds(|mark| mark.bytes_below < bytes_below)
    }

    /// `is_before` holds for the first marks and not for the others.
    fn bounds(&self, is_before: impl Fn(&Mark) -> bool) -> Bounds {
        let at = self.marks.partition_point(is_before);
        let last_before = at.checked_sub(1).and_then(|last| self.marks.get(last));
        Bounds {
            from: last_before.map_or(1, |mark| mark.sequence + 1),
            to: self.marks.get(at).map(|mark| mark.sequence),
        }
    }

    /// As bodies of records; none if there is nothing to say.
    pub(super) fn write(&self, mut emit: impl FnMut(&[u8])) {
        let stored;
        let marks = if self.marks.len() >= STORED_MAX {
            stored = thinned(&self.marks, self.bytes, STORED_MAX - 1);
            &stored
        } else {
            &self.marks
        };
        if self.bytes == 0 && marks.is_empty() {
            return;
        }
        let mut list = record::MarkList::default();
        list.begin(self.bytes);
        for mark in marks.iter().chain(self.has_later().then_some(&self.latest)) {
            if list.is_full() {
                emit(list.as_bytes());
                list.begin(self.bytes);
            }
            list.mark(mark);
        }
        emit(list.as_bytes());
    }

    /// From the body of a record, of a queue whose next message has this sequence and whose last one was published then.
    pub(super) fn read(
        &mut self,
        body: &[u8],
        next_sequence: u64,
        published_ns: u64,
    ) -> Result<(), String> {
        let marks = &mut self.marks;
        let bytes = record::read_marks(body, |mark| {
            let is_behind = |last: &Mark| {
                mark.sequence > last.sequence
                    && mark.published_ns >= last.published_ns
                    && mark.bytes_below >= last.bytes_below
            };
            if !(1..next_sequence).contains(&mark.sequence)
                || !marks.back().is_none_or(is_behind)
                || marks.len() >= MARKS_MAX
                || mark.published_ns > published_ns
            {
                return Err("impossible mark".to_owned());
            }
            marks.push_back(mark);
            Ok(())
        })?;
        if self.marks.back().is_some_and(|last| last.bytes_below > bytes) {
            return Err("impossible mark".to_owned());
        }
        self.bytes = bytes;
        self.latest = self.marks.back().copied().unwrap_or_default();
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn all(&self) -> impl Iterator<Item = &Mark> {
        self.marks.iter()
    }
}

/// At most so many marks, the first and the last one among them. Those go whose neighbours are close for their distance to the end.
fn thinned(marks: &VecDeque<Mark>, bytes: u64, most: usize) -> VecDeque<Mark> {
    let mut part = PART;
    let mut kept = merged(marks, bytes, part);
    while kept.len() > most && part > 1 {
        part /= 2;
        kept = merged(&kept, bytes, part);
    }
    while kept.len() > most {
        let last = kept.len() - 1;
        let places = kept.iter().enumerate();
        let every_other = places.filter(|(at, _)| at % 2 == 0 || *at == last);
        kept = every_other.map(|(_, mark)| *mark).collect();
    }
    kept
}

/// From the end on, leaves out each mark whose neighbours may be neighbours.
fn merged(marks: &VecDeque<Mark>, bytes: u64, part: u64) -> VecDeque<Mark> {
    let Some(&last) = marks.back() else { return VecDeque::new() };
    let mut kept = VecDeque::with_capacity(marks.len() / 2);
    kept.push_front(last);
    let mut behind = last;
    let mut before = marks.iter().rev().skip(1).peekable();
    while let Some(&mark) = before.next() {
        let is_close = before.peek().is_some_and(|before| {
            behind.published_ns - before.published_ns
                <= (last.published_ns - behind.published_ns) / part
                && behind.bytes_below - before.bytes_below
                    <= bytes.saturating_sub(behind.bytes_below) / part
        });
        if !is_close {
            kept.push_front(mark);
            behind = mark;
        }
    }
    kept
}
