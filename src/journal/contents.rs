//! What lies in a segment, in short: which messages of which queues, and how long they are. No I/O.

use std::collections::HashMap;

use super::index::{QueueHash, Run};
use super::types::Snapshot;

/// Messages of one queue in one segment, with consecutive sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) queue: u64,
    pub(super) first: u64,
    pub(super) last: u64,
    /// Of their records, with headers.
    pub(super) bytes: u64,
}

impl Extent {
    /// Bytes of so many of its messages, if all are of the same length.
    pub(super) fn bytes_of(&self, messages: u64) -> u64 {
        let all = u128::from(self.last - self.first + 1);
        let bytes = u128::from(self.bytes) * u128::from(messages) / all;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

/// Durable messages of a segment.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// For the footer.
    pub(super) runs: Vec<Run>,
    /// One for each queue, but for what the cleaner has copied.
    extents: Vec<Extent>,
    /// The last one of each queue.
    places: HashMap<u64, usize, QueueHash>,
    /// One that was lately needed.
    needed: Option<usize>,
}

impl Contents {
    pub(super) fn add(&mut self, runs: &[Run]) {
        for run in runs {
            let bytes = u64::from(run.bytes);
            let known = self.places.get(&run.queue).and_then(|at| self.extents.get_mut(*at));
            match known.filter(|extent| extent.last + 1 == run.first) {
                Some(extent) => {
                    extent.last = run.last();
                    extent.bytes += bytes;
                }
                None => {
                    self.places.insert(run.queue, self.extents.len());
                    let (queue, first, last) = (run.queue, run.first, run.last());
                    self.extents.push(Extent { queue, first, last, bytes });
                }
            }
        }
        self.runs.extend_from_slice(runs);
    }

    pub(super) fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Queues with messages.
    pub(super) fn queues(&self) -> impl Iterator<Item = u64> {
        self.places.keys().copied()
    }

    pub(super) fn is_needed(&mut self, snapshot: &dyn Snapshot) -> bool {
        let asked = |extent: &Extent| snapshot.is_needed(extent.queue, extent.first, extent.last);
        if self.needed.and_then(|at| self.extents.get(at)).is_some_and(asked) {
            return true;
        }
        self.needed = self.extents.iter().position(asked);
        self.needed.is_some()
    }
}
