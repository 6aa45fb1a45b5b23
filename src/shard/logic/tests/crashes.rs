//! Crashes in the middle of a program: of the machine, or of the broker alone, so that its clients and their memory stay.

use std::collections::VecDeque;

use super::cases::consumer;
use super::memory::at_ms;
use super::model::State;
use super::programs::{Check, LEASE_MS, Program, QUEUES};
use crate::shard::logic::{HandleId, Refusal};

impl Program {
    pub(super) fn crash(&mut self, adopt: bool) -> Check {
        self.log.full = false;
        if self.history.back().is_none_or(|(lsn, _)| *lsn < self.durable) {
            self.note()?;
        }
        let durable = self.durable;
        self.history.retain(|(lsn, _)| *lsn >= durable);
        let at = self.random.below(self.history.len() as u64) as usize;
        let (lsn, model) = self.history[at].clone();
        self.log.cut(lsn);
        self.durable = lsn;
        self.seen_records = self.log.records.len();
        self.model = model;
        self.check_needed()?;
        self.model.crashed(self.ms);
        self.history = VecDeque::from([(lsn, self.model.clone())]);
        self.completions.clear();
        self.limited.clear();
        self.gone.clear();
        self.consumers.values_mut().for_each(|client| client.skipped = 0);
        self.answers.clear();
        self.controls.clear();
        self.port.events.clear();
        let (with_checkpoint, overlap) = (self.random.below(2) == 0, self.random.below(4));
        self.logic = self.log.replay(with_checkpoint, overlap)?;
        if self.random.below(2) == 0 {
            let far = self
                .model
                .queues
                .iter()
                .flat_map(|(id, queue)| queue.payloads.keys().map(|sequence| (*id, *sequence)));
            self.log.far = far.collect();
        }
        for queue in QUEUES {
            let (producer, lane) = self.producer(queue);
            self.logic.open_producer(producer, lane).map_err(|refusal| format!("{refusal:?}"))?;
            self.adopt_lane(producer, lane, queue)?;
        }
        // Who was not told of its attachment asks again.
        self.named.retain(|_, client| adopt && client.id.is_some());
        for (producer, client) in self.named.clone() {
            self.logic
                .adopt_named_producer(producer, client.lane, &client.name)
                .map_err(|refusal| format!("{refusal:?}"))?;
            self.adopt_lane(producer, client.lane, client.lane)?;
            self.named.get_mut(&producer).expect("attached").completions.clear();
        }
        if adopt {
            return self.adopt_consumers();
        }
        self.consumers.clear();
        self.tokens.clear();
        self.unreleased.clear();
        self.port.leases.clear();
        self.port.unseen.clear();
        self.port.room.clear();
        self.logic.start(at_ms(self.ms));
        Ok(())
    }

    /// What the lane has in the journal is completed, the rest is taken anew.
    pub(super) fn adopt_lane(&mut self, producer: HandleId, lane: u64, key: u64) -> Check {
        let from = self.released.get(&key).copied().unwrap_or(0);
        let runs = self.logic.lane_runs(producer, from);
        let found: Vec<_> = runs
            .iter()
            .flat_map(|run| {
                (0..u64::from(run.count))
                    .map(|at| (run.first_position + at * run.stride, run.first_sequence + at))
            })
            .collect();
        let stored = self.model.lanes.get(&lane).cloned().unwrap_or_default();
        let expected: Vec<_> =
            stored.iter().copied().filter(|(position, _)| *position >= from).collect();
        if found != expected {
            return Err(format!("lane {lane} from {from}: {found:?} instead of {expected:?}"));
        }
        // Positions go on where the journal ends: the client's messages behind it are those of the next publishes.
        if let Some(run) = runs.last() {
            self.lane_ends.insert(key, run.end());
        } else {
            self.lane_ends.insert(key, from.max(stored.back().map_or(0, |(at, _)| at + 2)));
        }
        Ok(())
    }

    pub(super) fn adopt_consumers(&mut self) -> Check {
        let clients: Vec<_> = self.consumers.clone().into_iter().collect();
        for (handle, client) in clients {
            let mut spec = consumer(client.credit);
            spec.group.clone_from(&client.group);
            spec.adopted = true;
            let opened = self.logic.open_consumer(&mut self.log, handle, &spec);
            // The group was deleted, or its creation was lost and nobody was told of it.
            let is_there = self.model.queues[&handle.queue].groups.contains_key(&client.group);
            let expected = if is_there { Ok(false) } else { Err(Refusal::NoGroup) };
            if opened != expected {
                return Err(format!("{handle:?} was adopted: {opened:?}"));
            }
            match self.consumers.get_mut(&handle) {
                Some(client) if is_there => client.ending = false,
                _ => self.gone(handle),
            }
        }
        for ((handle, slot), (attempt, sequence)) in self.port.leases.clone() {
            let now = at_ms(self.ms);
            let taken = self.logic.adopt_lease(handle, slot, sequence, attempt, now);
            let group = &self.consumers[&handle].group;
            let queue = self.model.queues.get_mut(&handle.queue).expect("queue");
            let group = queue.group(group);
            let open = &mut group.open;
            // Behind a reset that was lost two consumers may have it.
            let is_free =
                matches!(open.get(&sequence), Some(State::Back { .. } | State::Doomed { .. }));
            if taken != is_free {
                return Err(format!("adopted {sequence}: {taken}"));
            }
            if taken {
                if let Some(State::Doomed { count }) = open.get(&sequence) {
                    group.rejected.insert(sequence, *count);
                }
                let deadline_ms = self.ms + LEASE_MS;
                open.insert(sequence, State::With { handle, slot, attempt, deadline_ms });
            } else {
                self.port.leases.remove(&(handle, slot));
                self.port.unseen.remove(&(handle, slot));
            }
        }
        self.logic.start(at_ms(self.ms));
        for (handle, up, _) in std::mem::take(&mut self.unreleased) {
            self.submit(handle, up, true)?;
        }
        self.records()
    }
}
