//! What a journal was told, and what a disk must give back of it.

use std::collections::BTreeMap;

use ringmain::journal::Lsn;

use super::owner::Queue;

/// One record.
#[derive(Debug, Clone)]
pub struct Operation {
    pub lsn: Lsn,
    pub what: What,
    /// The journal may end behind it: it is the last one of its group.
    pub ends_group: bool,
}

/// What a record says.
#[derive(Debug, Clone)]
pub enum What {
    /// A message.
    Publish {
        queue: u64,
        sequence: u64,
        length: usize,
    },
    Ack {
        queue: u64,
        sequence: u64,
    },
}

/// Everything that was appended, in order.
#[derive(Debug, Clone, Default)]
pub struct Model {
    pub operations: Vec<Operation>,
}

/// The state after some of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    pub queues: BTreeMap<u64, Queue>,
    /// Lengths of the unacknowledged messages.
    pub lengths: BTreeMap<(u64, u64), usize>,
}

/// The bytes of a message follow from its name.
pub fn body(queue: u64, sequence: u64, length: usize) -> Vec<u8> {
    let mut random = crate::random::Random::new(queue << 32 ^ sequence);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&random.any().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

impl Model {
    /// After everything up to this record; an error if that tears a group.
    pub fn state_at(&self, lsn: Lsn) -> Result<State, String> {
        let count = self.operations.partition_point(|operation| operation.lsn <= lsn);
        let applied = &self.operations[..count];
        if let Some(last) = applied.last()
            && !last.ends_group
        {
            return Err(format!("the journal ends at {lsn}, within a group"));
        }
        let mut state = State::default();
        for operation in applied {
            state.apply(&operation.what);
        }
        Ok(state)
    }

    /// Forgets what was lost.
    pub fn truncate(&mut self, lsn: Lsn) {
        self.operations.retain(|operation| operation.lsn <= lsn);
    }
}

impl State {
    fn apply(&mut self, what: &What) {
        match what {
            What::Publish { queue, sequence, length } => {
                let entry = self.queues.entry(*queue).or_default();
                entry.next = sequence + 1;
                entry.unacknowledged.insert(*sequence);
                self.lengths.insert((*queue, *sequence), *length);
            }
            What::Ack { queue, sequence } => {
                let entry = self.queues.entry(*queue).or_default();
                entry.unacknowledged.remove(sequence);
                entry.acknowledged += 1;
                self.lengths.remove(&(*queue, *sequence));
            }
        }
    }
}
