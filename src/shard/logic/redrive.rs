//! Dead letters on their way back.

use super::dead_letter::{Stop, Transfer, read};
use super::effects::{Effect, Item, NO_SLOT};
use super::group::Waiter;
use super::headers;
use super::record::kind;
use super::types::{ControlResult, QueueDefinition};
use super::{Log, Logic};
use crate::shard::memory::{body_bytes, carried_bytes};

/// A request to move messages back, under way.
#[derive(Debug)]
pub(super) struct RedriveJob {
    pub(super) request: u64,
    pub(super) queue: u32,
    /// Ids of the queues to which whoever asks may send, in ascending order.
    pub(super) origins: Vec<u64>,
    /// Next sequence to look at.
    pub(super) next: u64,
    /// Only what was there when it began.
    pub(super) end: u64,
    pub(super) left: u64,
    pub(super) moved: u64,
}

impl Logic {
    /// Goes on with the redrives, in the order of their requests.
    pub(super) fn step_redrives(&mut self, log: &mut dyn Log, budget: &mut u32) {
        while let Some(mut job) = self.redrives.pop_front() {
            let done = self.step_redrive(&mut job, log, budget);
            if !done {
                self.redrives.push_front(job);
                return;
            }
            let result = ControlResult::Redriven(job.moved);
            self.effects.push_behind(Effect::Control { request: job.request, result });
        }
    }

    /// `false`: not finished, to be continued.
    fn step_redrive(&mut self, job: &mut RedriveJob, log: &mut dyn Log, budget: &mut u32) -> bool {
        while job.left > 0 {
            let Some(sequence) = self.next_dead_letter(job) else { return true };
            if *budget == 0 || !self.flush_gathered(log) {
                return false;
            }
            *budget -= 1;
            match self.redrive_one(job, sequence, log) {
                Ok(true) => {
                    job.moved += 1;
                    job.left -= 1;
                }
                // It stays: there is no way back for it, or it cannot be read.
                Ok(false) | Err(Stop::Lost(_) | Stop::Gone) => {}
                Err(Stop::Later) => return false,
            }
            job.next = sequence + 1;
        }
        true
    }

    /// The next one that no consumer has.
    fn next_dead_letter(&self, job: &RedriveJob) -> Option<u64> {
        let queue = self.queues.get(job.queue).filter(|queue| !queue.deleted)?;
        let group = queue.groups.first()?;
        let fresh = group.fresh.max(job.next);
        let candidates = [
            group.ready.range(job.next..).next().map(|(sequence, _)| *sequence),
            group.delayed.range(job.next..).next().map(|(sequence, _)| *sequence),
            Some(fresh),
        ];
        let end = job.end.min(queue.durable_end);
        candidates.into_iter().flatten().min().filter(|sequence| *sequence < end)
    }

    fn redrive_one(
        &mut self,
        job: &RedriveJob,
        sequence: u64,
        log: &mut dyn Log,
    ) -> Result<bool, Stop> {
        let index = job.queue;
        let Some(queue) = self.queues.get(index) else { return Ok(false) };
        let definition = &queue.definition;
        let body = read(log, queue, sequence)?;
        let origin = headers::find(body.metadata, headers::ORIGIN_QUEUE);
        let Some(to) = origin.and_then(|name| self.by_name.get(name).copied()) else {
            return Ok(false);
        };
        let fits = self.queues.get(to).is_some_and(|origin| {
            let QueueDefinition { id, slots, slot_size, max_message, .. } = origin.definition;
            // Whoever sends to the dead-letter queue can name any origin.
            !origin.deleted
                && origin.definition.dead_letter == definition.name
                && job.origins.binary_search(&id).is_ok()
                && body.payload.len() <= max_message as usize
                && body_bytes(body.metadata.len(), body.payload.len())
                    <= carried_bytes(slots, slot_size)
        });
        if !fits {
            return Ok(false);
        }
        self.scratch.clear();
        headers::copy_without_ours(body.metadata, &mut self.scratch);
        let metadata_bytes = self.scratch.len();
        self.scratch.extend_from_slice(body.payload);
        let (bytes, flags) = (body.payload.len() + body.metadata.len(), body.flags);
        let (from, kind) = (index, kind::ACKNOWLEDGED);
        let (group, record_flags) = (self.group_id(index, 0), 0);
        let transfer =
            Transfer { from, group, sequence, to, kind, record_flags, flags, metadata_bytes };
        self.transfer(transfer, log)?;
        let waiter = Waiter { consumer: u32::MAX, generation: 0, request: 0 };
        self.effects.items.push_back(Item { queue: index, sequence, waiter, slot: NO_SLOT });
        if let Some(queue) = self.queues.get_mut(index) {
            let end = queue.next_sequence;
            if let Some(group) = queue.groups.first_mut() {
                group.take(sequence);
                group.settle(bytes as u64, end);
            }
        }
        Ok(true)
    }
}
