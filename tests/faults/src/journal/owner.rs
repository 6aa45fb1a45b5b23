//! An owner of a journal that is obviously right: queues of messages that are acknowledged, in maps.

use std::collections::{BTreeMap, BTreeSet};

use ringmain::disk::Disk;
use ringmain::journal::{AppendError, FLAG_MESSAGE, Journal, RecordRef, Replay, Snapshot, Stored};

const KIND_MESSAGE: u8 = 1;
const KIND_ACK: u8 = 2;
const KIND_QUEUE: u8 = 3;

/// What it knows of a queue, without the bodies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Queue {
    pub next: u64,
    pub unacknowledged: BTreeSet<u64>,
    /// Every ack that was ever given.
    pub acknowledged: u64,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Owner {
    queues: BTreeMap<u64, Queue>,
    bodies: BTreeMap<(u64, u64), Vec<u8>>,
    /// Said by a replay: something cannot be.
    pub nonsense: Option<String>,
}

impl Owner {
    pub fn state(&self) -> &BTreeMap<u64, Queue> {
        &self.queues
    }

    /// The unacknowledged messages that were published through this very value.
    pub fn messages(&self, queue: u64) -> Vec<(u64, Vec<u8>)> {
        let wanted = (queue, 0)..=(queue, u64::MAX);
        let live = |sequence: &u64| self.queues[&queue].unacknowledged.contains(sequence);
        let bodies = self.bodies.range(wanted).filter(|((_, sequence), _)| live(sequence));
        bodies.map(|((_, sequence), body)| (*sequence, body.clone())).collect()
    }

    /// Forgets what the messages were.
    pub fn drop_bodies(&mut self) {
        self.bodies.clear();
    }

    pub fn publish<D: Disk>(
        &mut self,
        journal: &mut Journal<D>,
        queue: u64,
        body: &[u8],
    ) -> Result<u64, AppendError> {
        let next = self.queues.get(&queue).map_or(1, |queue| queue.next);
        journal.append(RecordRef {
            kind: KIND_MESSAGE,
            flags: FLAG_MESSAGE,
            queue,
            sequence: next,
            parts: &[&body[..body.len() / 2], &body[body.len() / 2..]],
        })?;
        self.bodies.insert((queue, next), body.to_vec());
        self.publish_done(queue, next);
        Ok(next)
    }

    fn publish_done(&mut self, queue: u64, sequence: u64) {
        let queue = self.queues.entry(queue).or_default();
        queue.next = sequence + 1;
        queue.unacknowledged.insert(sequence);
    }

    pub fn acknowledge<D: Disk>(
        &mut self,
        journal: &mut Journal<D>,
        queue: u64,
        sequence: u64,
    ) -> Result<(), AppendError> {
        let parts: &[&[u8]] = &[];
        journal.append(RecordRef { kind: KIND_ACK, flags: 0, queue, sequence, parts })?;
        self.acknowledge_done(queue, sequence);
        self.bodies.remove(&(queue, sequence));
        if let Some(first) = self.queues[&queue].unacknowledged.first() {
            journal.forget(queue, *first);
        }
        Ok(())
    }

    fn acknowledge_done(&mut self, queue: u64, sequence: u64) {
        let entry = self.queues.entry(queue).or_default();
        if entry.unacknowledged.remove(&sequence) {
            entry.acknowledged += 1;
        } else {
            self.nonsense = Some(format!("queue {queue}: ack of {sequence}, which is not there"));
        }
    }
}

impl Replay for Owner {
    fn checkpoint_begin(&mut self) {}

    fn record(&mut self, record: Stored<'_>) -> Result<(), String> {
        let Stored { kind, queue, sequence, body, .. } = record;
        match kind {
            KIND_MESSAGE => {
                let next = self.queues.get(&queue).map_or(1, |queue| queue.next);
                if next != sequence {
                    return Err(format!("queue {queue}: {sequence} follows {next}"));
                }
                self.bodies.insert((queue, sequence), body.to_vec());
                self.publish_done(queue, sequence);
            }
            KIND_ACK => {
                self.acknowledge_done(queue, sequence);
                self.bodies.remove(&(queue, sequence));
            }
            KIND_QUEUE => {
                let number = |at: usize| {
                    u64::from_le_bytes(body[at * 8..at * 8 + 8].try_into().expect("eight bytes"))
                };
                let entry = Queue {
                    next: sequence,
                    acknowledged: number(0),
                    unacknowledged: (1..body.len() / 8).map(number).collect(),
                };
                self.queues.insert(queue, entry);
            }
            other => return Err(format!("kind {other}")),
        }
        match self.nonsense.take() {
            Some(nonsense) => Err(nonsense),
            None => Ok(()),
        }
    }

    fn checkpoint_end(&mut self) {}
}

impl Snapshot for Owner {
    fn write(&self, emit: &mut dyn FnMut(RecordRef<'_>)) {
        for (queue, state) in &self.queues {
            let mut body = state.acknowledged.to_le_bytes().to_vec();
            body.extend(state.unacknowledged.iter().flat_map(|sequence| sequence.to_le_bytes()));
            emit(RecordRef {
                kind: KIND_QUEUE,
                flags: 0,
                queue: *queue,
                sequence: state.next,
                parts: &[&body],
            });
        }
    }

    fn is_needed(&self, queue: u64, first: u64, last: u64) -> bool {
        let queue = self.queues.get(&queue);
        queue.is_some_and(|queue| queue.unacknowledged.range(first..=last).next().is_some())
    }

    fn needed(
        &self,
        queue: u64,
        first: u64,
        last: u64,
        limit: usize,
        parts: &mut Vec<(u64, u64)>,
    ) -> u64 {
        let Some(queue) = self.queues.get(&queue) else { return last + 1 };
        let mut told = queue.unacknowledged.range(first..=last).take(limit + 1).copied();
        for sequence in told.by_ref().take(limit) {
            match parts.last_mut() {
                Some(part) if part.1 + 1 == sequence => part.1 = sequence,
                _ => parts.push((sequence, sequence)),
            }
        }
        told.next().unwrap_or(last + 1)
    }
}
