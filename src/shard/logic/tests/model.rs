//! A plain broker: every message has a state in every group, and that is all. It is told what is asked for, and judges
//! everything that comes out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ringmain_client::protocol::{GroupPlace, StartAt};
use ringmain_client::wire::{LeaseToken, Outcome, Up};

use super::keeps::Keeps;
use super::memory::at_ms;
use crate::shard::logic::{HandleId, TransactionAck};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// With nobody. It may be given out from one time on, and must be from another.
    Back {
        count: u32,
        may_ms: u64,
        must_ms: u64,
    },
    With {
        handle: HandleId,
        slot: u32,
        attempt: u32,
        deadline_ms: u64,
    },
    /// To be moved to the dead-letter queue or discarded.
    Doomed {
        count: u32,
    },
}

#[derive(Debug, Clone, Default)]
pub(super) struct Group {
    /// Messages that are not done with.
    pub(super) open: BTreeMap<u64, State>,
    /// Messages that a limit took from it.
    pub(super) skipped: u64,
    /// Rejected ones that somebody has had all the same since a restart, by a lease of before a reset: deliveries. The journal has the
    /// rejection until it hears something else.
    pub(super) rejected: BTreeMap<u64, u32>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Queue {
    pub(super) payloads: BTreeMap<u64, Vec<u8>>,
    /// When each message was published.
    pub(super) times: BTreeMap<u64, u64>,
    pub(super) next: u64,
    /// Messages below it are durable.
    pub(super) durable: u64,
    pub(super) groups: BTreeMap<String, Group>,
    pub(super) max_deliveries: u32,
    pub(super) lease_ms: u64,
    pub(super) keeps: Keeps,
    pub(super) named: BTreeMap<String, Named>,
    pub(super) ttl_ms: u64,
    /// When a message expires by its own TTL, if ever, and when its delay is over.
    pub(super) windows: BTreeMap<u64, (u64, u64)>,
    /// Bytes of metadata, if there are any.
    pub(super) metadata: BTreeMap<u64, u64>,
    /// Messages that groups have lost to their TTL.
    pub(super) expired: u64,
}

/// What is remembered of a named producer.
#[derive(Debug, Clone, Default)]
pub(super) struct Named {
    pub(super) epoch: u32,
    pub(super) last: u64,
    /// Sequences by own sequences.
    pub(super) stored: BTreeMap<u64, u64>,
}

/// What a crash brings back. Who is attached and who waits is the test's.
#[derive(Debug, Clone, Default)]
pub(super) struct Model {
    pub(super) queues: BTreeMap<u64, Queue>,
    /// Per lane: position and sequence of what is journaled.
    pub(super) lanes: BTreeMap<u64, VecDeque<(u64, u64)>>,
}

impl Queue {
    pub(super) fn new(max_deliveries: u32, lease_ms: u64, ttl_ms: u64) -> Self {
        let groups = BTreeMap::from([(String::new(), Group::default())]);
        let keeps = Keeps { first: 1, ..Keeps::default() };
        Self {
            next: 1,
            durable: 1,
            groups,
            max_deliveries,
            lease_ms,
            ttl_ms,
            keeps,
            ..Self::default()
        }
    }

    /// With a TTL of its own and a delay. Programs look at the clock in whole milliseconds.
    pub(super) fn stored(
        &mut self,
        payload: &[u8],
        (ttl_ms, delay_ms): (Option<u64>, Option<u64>),
        published_ns: u64,
    ) -> u64 {
        let sequence = self.next;
        let last_ns = self.times.last_key_value().map_or(0, |(_, last_ns)| *last_ns);
        let published_ns = published_ns.max(last_ns);
        self.times.insert(sequence, published_ns);
        self.next += 1;
        self.payloads.insert(sequence, payload.to_vec());
        let from_ms = self.published_ms(sequence);
        let after = |ms: u64| from_ms + ms;
        self.windows.insert(sequence, (ttl_ms.map_or(u64::MAX, after), delay_ms.map_or(0, after)));
        let state = self.fresh(sequence);
        for group in self.groups.values_mut() {
            group.open.insert(sequence, state.clone());
        }
        sequence
    }

    /// What becomes of a message of a named producer: what it is answered with, and its sequence or 0.
    pub(super) fn named(
        &mut self,
        name: &str,
        epoch: u32,
        own: u64,
        payload: &[u8],
        published_ns: u64,
    ) -> (Outcome, u64) {
        let named = self.named.get(name).expect("attached");
        if epoch < named.epoch {
            return (Outcome::Fenced, 0);
        }
        if own <= named.last {
            return (Outcome::Duplicate, 0);
        }
        let sequence = self.stored(payload, (None, None), published_ns);
        let named = self.named.get_mut(name).expect("attached");
        named.last = own;
        named.stored.insert(own, sequence);
        (Outcome::Done, sequence)
    }

    /// A message that was never delivered.
    fn fresh(&self, sequence: u64) -> State {
        let due_ms = self.windows.get(&sequence).map_or(0, |(_, due_ms)| *due_ms);
        State::Back { count: 0, may_ms: due_ms, must_ms: due_ms }
    }

    fn published_ms(&self, sequence: u64) -> u64 {
        (self.times[&sequence] - at_ms(0).realtime_ns).div_ceil(1_000_000)
    }

    pub(super) fn is_expired(&self, sequence: u64, now_ms: u64) -> bool {
        let Some((own_ms, _)) = self.windows.get(&sequence) else { return false };
        let by_queue = self.ttl_ms > 0 && self.published_ms(sequence) + self.ttl_ms <= now_ms;
        by_queue || *own_ms <= now_ms
    }

    pub(super) fn add_group(&mut self, name: &str, from: StartAt) {
        if !self.groups.contains_key(name) {
            let open = self.from(from);
            self.groups.insert(name.to_owned(), Group { open, ..Group::default() });
        }
    }

    /// All leases of the group are lost.
    pub(super) fn reset_group(&mut self, name: &str, to: StartAt) {
        let open = self.from(to);
        let group = self.group(name);
        group.open = open;
        group.rejected.clear();
    }

    /// What a group that starts there has.
    fn from(&self, start: StartAt) -> BTreeMap<u64, State> {
        let stream = self.keeps.is_stream();
        let mut there: Vec<u64> = self.there().into_iter().collect();
        there.retain(|sequence| !stream || *sequence >= self.keeps.first);
        match start {
            StartAt::First => {}
            StartAt::New => there.clear(),
            StartAt::Sequence(from) => there.retain(|sequence| *sequence >= from),
            StartAt::Time(from_ns) => there.retain(|sequence| self.times[sequence] >= from_ns),
            StartAt::Last(messages) => {
                let end = there.len();
                there.drain(..end.saturating_sub(messages as usize));
            }
        }
        there.into_iter().map(|sequence| (sequence, self.fresh(sequence))).collect()
    }

    /// What the answer to a request about a group that starts there says.
    pub(super) fn place(&self, start: StartAt) -> GroupPlace {
        let open = self.from(start);
        let first = open.first_key_value().map(|(sequence, _)| *sequence);
        GroupPlace { sequence: first.unwrap_or(self.next), messages: open.len() as u64 }
    }

    fn returned(&self, count: u32, rejected: bool, may_ms: u64) -> State {
        if rejected || self.max_deliveries > 0 && count >= self.max_deliveries {
            State::Doomed { count }
        } else {
            State::Back { count, may_ms, must_ms: may_ms }
        }
    }

    /// Messages that are with a consumer and fulfil a condition come back.
    pub(super) fn come_back(
        &mut self,
        which: impl Fn(&HandleId, u32, u64) -> bool,
        seen: impl Fn(&HandleId, u32) -> bool,
    ) {
        let mut changed = Vec::new();
        for (name, group) in &self.groups {
            for (sequence, state) in &group.open {
                if let State::With { handle, slot, attempt, deadline_ms } = state
                    && which(handle, *slot, *deadline_ms)
                {
                    let seen = seen(handle, *slot);
                    let count = if seen { *attempt } else { attempt - 1 };
                    changed.push((name.clone(), *sequence, self.returned(count, false, 0), seen));
                }
            }
        }
        for (name, sequence, state, seen) in changed {
            let group = self.group(&name);
            group.open.insert(sequence, state);
            if seen {
                group.rejected.remove(&sequence);
            }
        }
    }

    pub(super) fn group(&mut self, name: &str) -> &mut Group {
        self.groups.get_mut(name).expect("group")
    }

    /// What a delivery must be like. Returns what is wrong.
    pub(super) fn delivered(
        &mut self,
        name: &str,
        handle: HandleId,
        token: LeaseToken,
        payload: &[u8],
        now_ms: u64,
    ) -> Result<(), String> {
        let LeaseToken { slot, attempt, sequence } = token;
        if sequence >= self.durable {
            return Err(format!("{sequence} was given out before it was durable"));
        }
        if self.payloads.get(&sequence).map(Vec::as_slice) != Some(payload) {
            return Err(format!("{sequence} has another payload"));
        }
        let durable = self.durable;
        let is_expired = self.is_expired(sequence, now_ms);
        let deadline_ms = if self.lease_ms == 0 { u64::MAX } else { now_ms + self.lease_ms };
        let group = &self.groups[name];
        let first = group.open.iter().find(|(sequence, state)| {
            **sequence < durable
                && !self.is_expired(**sequence, now_ms)
                && matches!(state, State::Back { must_ms, .. } if *must_ms <= now_ms)
        });
        let first = first.map(|(sequence, _)| *sequence);
        let group = self.group(name);
        match group.open.get(&sequence) {
            Some(State::Back { count, may_ms, .. }) if *may_ms <= now_ms => {
                if *count + 1 != attempt {
                    return Err(format!("{sequence}: attempt {attempt} after {count} deliveries"));
                }
            }
            other => return Err(format!("{sequence} was given out, it is {other:?}")),
        }
        if is_expired {
            return Err(format!("{sequence} was given out after its time"));
        }
        if let Some(first) = first
            && first < sequence
        {
            return Err(format!("{sequence} was given out before {first}"));
        }
        group.open.insert(sequence, State::With { handle, slot, attempt, deadline_ms });
        Ok(())
    }

    /// What a consumer asks, and the answer that it must get.
    pub(super) fn asked(
        &mut self,
        name: &str,
        handle: HandleId,
        up: Up,
        again: bool,
        now_ms: u64,
    ) -> Outcome {
        let (Up::Ack { lease, .. }
        | Up::Nack { lease, .. }
        | Up::Extend { lease, .. }
        | Up::Reject { lease, .. }) = up
        else {
            return Outcome::Done;
        };
        // It was deleted.
        if !self.groups.contains_key(name) {
            return Outcome::LeaseLost;
        }
        let LeaseToken { slot, attempt, sequence } = lease;
        let (exists, state) = (
            sequence > 0 && sequence < self.durable,
            self.group(name).open.get(&sequence).cloned(),
        );
        let held = matches!(state, Some(State::With { handle: with, slot: at, attempt: number, .. })
            if (with, at, number) == (handle, slot, attempt));
        let returned = |queue: &Self| match up {
            Up::Nack { delay_ms, .. } => queue.returned(attempt, false, now_ms + delay_ms),
            _ => queue.returned(attempt, true, 0),
        };
        let fresh = match (held, up) {
            (true, Up::Ack { .. }) => None,
            (true, Up::Nack { .. } | Up::Reject { .. }) => Some(returned(self)),
            (true, Up::Extend { lease_ms, .. }) => {
                Some(State::With { handle, slot, attempt, deadline_ms: now_ms + lease_ms })
            }
            // Only what a dead broker may have done already.
            (false, Up::Ack { .. } | Up::Nack { .. } | Up::Reject { .. }) if again && exists => {
                let count = match state {
                    None => return Outcome::Done,
                    Some(State::Back { count, .. } | State::Doomed { count }) => count,
                    Some(State::With { .. }) => return Outcome::LeaseLost,
                };
                match up {
                    Up::Ack { .. } => return Outcome::LeaseLost,
                    _ if count >= attempt => return Outcome::Done,
                    _ if count + 1 == attempt => Some(returned(self)),
                    _ => return Outcome::LeaseLost,
                }
            }
            _ => return Outcome::LeaseLost,
        };
        let group = self.group(name);
        if !matches!(up, Up::Extend { .. }) {
            group.rejected.remove(&sequence);
        }
        match fresh {
            Some(state) => group.open.insert(sequence, state),
            None => group.open.remove(&sequence),
        };
        Outcome::Done
    }

    /// Messages that are stored: those that some group has not acknowledged, or a stream keeps.
    pub(super) fn there(&self) -> BTreeSet<u64> {
        let open = self.groups.values().flat_map(|group| group.open.keys().copied());
        let kept =
            if self.keeps.is_stream() { self.keeps.first..self.next } else { self.next..self.next };
        open.chain(kept).collect()
    }
}

impl Model {
    /// The sequence of the first message (0: there is none) if all leases are held; else nothing is done.
    pub(super) fn transaction(
        &mut self,
        messages: &[(u64, Vec<u8>)],
        acks: &[TransactionAck],
        published_ns: u64,
        group_of: impl Fn(HandleId) -> Option<String>,
    ) -> Option<u64> {
        let mut taken = Vec::new();
        for TransactionAck { handle, lease } in acks {
            let LeaseToken { slot, attempt, sequence } = *lease;
            let group = group_of(*handle)?;
            // Of a group that was deleted nobody has anything.
            let state = self.queues.get(&handle.queue)?.groups.get(&group)?.open.get(&sequence);
            let held = matches!(state, Some(State::With { handle: with, slot: at, attempt: number, .. })
                if (with, *at, *number) == (handle, slot, attempt));
            let ack = (handle.queue, group, sequence);
            if !held || taken.contains(&ack) {
                return None;
            }
            taken.push(ack);
        }
        for (queue, group, sequence) in taken {
            self.queues.get_mut(&queue)?.group(&group).open.remove(&sequence);
        }
        let mut stored = messages.iter().map(|(queue, payload)| {
            self.queues.get_mut(queue).expect("queue").stored(payload, (None, None), published_ns)
        });
        let first = stored.next().unwrap_or(0);
        stored.for_each(drop);
        Some(first)
    }

    /// The machine comes back with what was durable. Nobody has anything; delays start afresh, at the latest.
    pub(super) fn crashed(&mut self, now_ms: u64) {
        for queue in self.queues.values_mut() {
            queue.durable = queue.next;
            for group in queue.groups.values_mut() {
                let rejected = std::mem::take(&mut group.rejected);
                for (sequence, state) in &mut group.open {
                    if let Some(count) = rejected.get(sequence) {
                        *state = State::Doomed { count: *count };
                    }
                    let count = match state {
                        State::With { attempt, .. } => *attempt - 1,
                        State::Back { count, .. } => *count,
                        State::Doomed { .. } => continue,
                    };
                    // One that was delayed before its last delivery is delayed anew.
                    *state = if count > 0 {
                        State::Back { count, may_ms: 0, must_ms: now_ms + DELAY_MS_MAX }
                    } else {
                        let due_ms = queue.windows.get(sequence).map_or(0, |(_, due_ms)| *due_ms);
                        State::Back { count, may_ms: due_ms, must_ms: due_ms }
                    };
                }
            }
        }
    }
}

/// Longest delay that a test asks for.
pub(super) const DELAY_MS_MAX: u64 = 50;
