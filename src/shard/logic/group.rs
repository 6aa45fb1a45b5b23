//! One group of a queue: who has what, and what is to be given out.
//!
//! A message below `fresh` that is in none of the maps and not leased is done with. So acknowledged messages need no entry, and
//! neither do those that were never given out: all from `fresh` on.

use std::collections::{BTreeMap, BTreeSet};

use super::earned::Earned;
use super::types::Lsn;

/// Of a message that is set aside until something changes: it fits into no consumer's ring.
pub(super) const ASIDE_NS: u64 = u64::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Delayed {
    /// Deliveries so far.
    pub(super) count: u32,
    /// Monotonic; before [`super::Logic::start`] it is counted from then.
    pub(super) due_ns: u64,
}

/// A consumer that waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Waiter {
    pub(super) consumer: u32,
    pub(super) generation: u32,
    pub(super) request: u64,
}

/// A group that cannot go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stall {
    /// From 1; no other one since the start has it.
    pub(super) number: u64,
    /// The message that cannot be read.
    pub(super) sequence: u64,
    /// Why, and where it lies.
    pub(super) what: String,
}

/// How often a group has come to a stop, and why, since somebody asked.
#[derive(Debug, Default)]
pub(super) struct Stalls {
    begun: u64,
    untold: Vec<String>,
}

impl Stalls {
    /// Another one.
    pub(super) fn begin(&mut self, sequence: u64, what: String) -> Stall {
        self.begun += 1;
        self.untold.push(what.clone());
        Stall { number: self.begun, sequence, what }
    }

    /// Whether there was one since the start.
    pub(super) fn any(&self) -> bool {
        self.begun > 0
    }

    pub(super) fn take_untold(&mut self) -> Vec<String> {
        std::mem::take(&mut self.untold)
    }
}

/// Why nobody gets a message any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    MaxDeliveries,
    /// By a consumer.
    Rejected,
    /// Its TTL is over.
    Expired,
    /// A repair of the log gave it up.
    Gone,
}

/// A message that is to be moved to the dead-letter queue, or discarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Doomed {
    /// Deliveries so far.
    pub(super) count: u32,
    pub(super) reason: Reason,
    pub(super) waiter: Option<Waiter>,
}

#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) id: u32,
    pub(super) name: String,
    /// First sequence that was never given out.
    pub(super) fresh: u64,
    /// Back and available: deliveries so far.
    pub(super) ready: BTreeMap<u64, u32>,
    /// Back and not available yet.
    pub(super) delayed: BTreeMap<u64, Delayed>,
    /// The same by time.
    pub(super) due: BTreeSet<(u64, u64)>,
    pub(super) doomed: BTreeMap<u64, Doomed>,
    /// Messages in lease tables of its consumers.
    pub(super) leased: u64,
    /// Payload and metadata bytes of its messages. Of messages from before a restart only the sum is known.
    pub(super) bytes: u64,
    pub(super) consumers: Vec<u32>,
    /// Consumer that is next.
    pub(super) turn: usize,
    /// Entry in the timers.
    pub(super) armed_ns: Option<u64>,
    /// A message cannot be read: nothing goes on.
    pub(super) stalled: Option<Stall>,
    /// The record that created it; 0 if that was before the start.
    pub(super) created: Lsn,
    /// A deletion is on its way to the disk.
    pub(super) deleted: bool,
    /// Messages that a limit discarded before they were acknowledged.
    pub(super) skipped: u64,
    /// Messages from the disk that it may have.
    pub(super) earned: Earned,
    /// Expired messages too far behind `fresh` to be taken out: first and last.
    pub(super) beyond: Option<(u64, u64)>,
}

impl Group {
    pub(super) fn new(id: u32, name: &str, fresh: u64) -> Self {
        Self { id, name: name.to_owned(), fresh, ..Self::default() }
    }

    /// Messages that are not acknowledged, of those below `end`.
    pub(super) fn open(&self, end: u64) -> u64 {
        (self.ready.len() + self.delayed.len() + self.doomed.len()) as u64
            + self.leased
            + end.saturating_sub(self.fresh)
    }

    /// Whether it is back and not with anybody.
    pub(super) fn has_back(&self, sequence: u64) -> bool {
        self.ready.contains_key(&sequence)
            || self.delayed.contains_key(&sequence)
            || self.doomed.contains_key(&sequence)
    }

    /// Everything below this sequence has been given out: what is skipped is available.
    pub(super) fn advance(&mut self, fresh: u64) {
        while self.fresh < fresh {
            self.ready.insert(self.fresh, 0);
            self.fresh += 1;
        }
    }

    /// Takes a message out of wherever it is; its deliveries so far. `None` if it is done with or leased.
    pub(super) fn take(&mut self, sequence: u64) -> Option<u32> {
        if sequence >= self.fresh {
            self.advance(sequence);
            self.fresh = sequence + 1;
            return Some(0);
        }
        if let Some(count) = self.ready.remove(&sequence) {
            return Some(count);
        }
        if let Some(delayed) = self.delayed.remove(&sequence) {
            self.due.remove(&(delayed.due_ns, sequence));
            return Some(delayed.count);
        }
        self.doomed.remove(&sequence).map(|doomed| doomed.count)
    }

    pub(super) fn delay(&mut self, sequence: u64, delayed: Delayed) {
        self.delayed.insert(sequence, delayed);
        self.due.insert((delayed.due_ns, sequence));
    }

    /// What is due becomes available. Returns whether there was anything.
    pub(super) fn mature(&mut self, now_ns: u64) -> bool {
        let mut any = false;
        while let Some(&(due_ns, sequence)) = self.due.first()
            && due_ns <= now_ns
        {
            self.due.pop_first();
            if let Some(delayed) = self.delayed.remove(&sequence) {
                self.ready.insert(sequence, delayed.count);
                any = true;
            }
        }
        any
    }

    /// The first message that is with nobody, or would come next.
    fn head(&self) -> u64 {
        let heads =
            [self.ready.keys().next(), self.delayed.keys().next(), self.doomed.keys().next()];
        heads.into_iter().flatten().copied().fold(self.fresh, u64::min)
    }

    /// Forgets everything below this sequence that is not leased.
    pub(super) fn discard_below(&mut self, below: u64) {
        // What cannot be read is the first message: there is another one now.
        if self.head() < below {
            self.stalled = None;
        }
        self.fresh = self.fresh.max(below);
        self.ready = self.ready.split_off(&below);
        self.delayed = self.delayed.split_off(&below);
        self.doomed = self.doomed.split_off(&below);
        self.due.retain(|(_, sequence)| *sequence >= below);
    }

    /// Sequences that are back, in no order.
    pub(super) fn back(&self) -> impl Iterator<Item = u64> + '_ {
        self.ready.keys().chain(self.delayed.keys()).chain(self.doomed.keys()).copied()
    }

    /// Bytes of one message, for those whose length is not known any more.
    pub(super) fn mean_bytes(&self, end: u64) -> u64 {
        self.bytes.checked_div(self.open(end)).unwrap_or(0)
    }

    /// A message of this length is done with.
    pub(super) fn settle(&mut self, bytes: u64, end: u64) {
        self.bytes = if self.open(end) == 0 { 0 } else { self.bytes.saturating_sub(bytes) };
    }
}
