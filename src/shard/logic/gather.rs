//! Acknowledgements and returns on their way into records: neighbours share one.

use std::collections::VecDeque;

use super::effects::{Effect, Item};
use super::record::{List, Returned, kind};
use super::types::RecordRef;
use super::{Log, Logic, canary};

#[derive(Debug)]
struct Gathered {
    queue: u32,
    queue_id: u64,
    group: u32,
    kind: u8,
    list: List,
    items: u32,
}

/// Records that are not appended yet.
#[derive(Debug, Default)]
pub(super) struct Gather {
    records: VecDeque<Gathered>,
    /// Memory that is used again.
    spare: Vec<List>,
    /// Acknowledgements in them.
    acknowledged: usize,
    /// Something in them is waited for.
    is_wanted: bool,
}

/// Lists kept for use.
const SPARE_MAX: usize = 64;
/// With so many records waiting for room, consumers wait as well.
const RECORDS_MAX: usize = 4096;
/// So many acknowledgements do not wait for others any more.
const PATIENT_MAX: usize = 256;

impl Gather {
    fn list(&mut self, queue: u32, queue_id: u64, group: u32, kind: u8) -> &mut Gathered {
        let fits = self.records.back().is_some_and(|last| {
            last.queue == queue && last.group == group && last.kind == kind && !last.list.is_full()
        });
        if !fits {
            let mut list = self.spare.pop().unwrap_or_default();
            list.begin(group);
            self.records.push_back(Gathered { queue, queue_id, group, kind, list, items: 0 });
        }
        let last = self.records.len() - 1;
        &mut self.records[last]
    }

    pub(super) fn is_full(&self) -> bool {
        self.records.len() >= RECORDS_MAX
    }

    pub(super) fn clear(&mut self) {
        self.records.clear();
        self.note_empty();
    }

    fn note_empty(&mut self) {
        self.acknowledged = 0;
        self.is_wanted = false;
    }

    fn recycle(&mut self, list: List) {
        if self.spare.len() < SPARE_MAX {
            self.spare.push(list);
        }
    }
}

impl Logic {
    /// An acknowledgement is on its way.
    pub(super) fn gather_acknowledged(&mut self, queue_id: u64, group: u32, item: Item) {
        let record = self.gathered.list(item.queue, queue_id, group, kind::ACKNOWLEDGED);
        record.list.range(item.sequence);
        if canary::planted(canary::Canary::AckAhead) {
            record.list.range(item.sequence + 1);
        }
        record.items += 1;
        self.gathered.acknowledged += 1;
        self.gathered.is_wanted |= item.waiter.request != 0;
        self.effects.items.push_back(item);
    }

    /// Whether nothing was gathered but a few acknowledgements that nobody waits for: [`Self::flush`] may come later, together with
    /// other records.
    pub fn is_patient(&self) -> bool {
        let gathered = &self.gathered;
        !gathered.records.is_empty()
            && !gathered.is_wanted
            && gathered.acknowledged < PATIENT_MAX
            && self.commands.is_empty()
            && self.overfull.is_empty()
    }

    /// A returned message is on its way; who waits for the record, if anybody.
    pub(super) fn gather_returned(
        &mut self,
        queue: u32,
        queue_id: u64,
        group: u32,
        mut entry: Returned,
        item: Option<Item>,
    ) {
        if canary::planted(canary::Canary::LoseCount) {
            entry.count = 0;
        }
        self.gathered.is_wanted = true;
        let record = self.gathered.list(queue, queue_id, group, kind::RETURNED);
        record.list.returned(&entry);
        if let Some(item) = item {
            record.items += 1;
            self.effects.items.push_back(item);
        }
    }

    /// Appends what was gathered, discards what is too much, and then carries out control requests that had to wait. `false`: the
    /// journal has no room.
    pub fn flush(&mut self, log: &mut dyn Log) -> bool {
        self.flush_gathered(log) && self.trim(log) && self.run_commands(log)
    }

    pub(super) fn flush_gathered(&mut self, log: &mut dyn Log) -> bool {
        while let Some(gathered) = self.gathered.records.front() {
            let record = RecordRef {
                kind: gathered.kind,
                flags: 0,
                queue: gathered.queue_id,
                sequence: 0,
                parts: &[gathered.list.as_bytes()],
            };
            let Ok((lsn, _)) = log.append(record) else { return false };
            if let Some(done) = self.gathered.records.pop_front() {
                let effect = Effect::Settled { queue: done.queue, items: done.items };
                self.effects.push(lsn, effect);
                self.gathered.recycle(done.list);
            }
        }
        self.gathered.note_empty();
        true
    }
}
