//! What comes out of a program's turn, held against the model.

use std::collections::{BTreeMap, VecDeque};

use ringmain_client::layout::metadata::{Times, times};
use ringmain_client::wire::Outcome;

use super::memory::{Event, Record, at_ms};
use super::model::State;
use super::programs::{Check, Client, ORIGIN, Program};
use crate::shard::logic::record::{self, GroupCreated, GroupReset, MessageBody, Transaction, kind};
use crate::shard::logic::{ControlResult, HandleId, headers};

/// Name of a group by its number: a reset gives it another one.
fn group_name(records: &[Record], queue: u64, group: u32) -> Result<String, String> {
    let mut names = BTreeMap::from([(0, String::new())]);
    for record in records.iter().filter(|record| record.queue == queue) {
        match record.kind {
            kind::GROUP_CREATED => {
                let created: GroupCreated = record::decode(&record.body)?;
                names.insert(created.group, created.name);
            }
            kind::GROUP_RESET => {
                let reset: GroupReset = record::decode(&record.body)?;
                let name = names.remove(&reset.group).ok_or("reset of a group that is gone")?;
                names.insert(reset.becomes, name);
            }
            _ => {}
        }
    }
    names.remove(&group).ok_or_else(|| format!("group {group} of queue {queue} is not there"))
}

impl Program {
    /// What the logic wrote by itself: messages moved to the dead-letter queue, or discarded.
    pub(super) fn records(&mut self) -> Check {
        let mut letter = None;
        while let Some(record) = self.log.records.get(self.seen_records) {
            self.seen_records += 1;
            match record.kind {
                kind::TRANSACTION => {
                    let transaction: Transaction = record::decode(&record.body)?;
                    let messages = transaction.messages as usize;
                    let parts = &self.log.records[self.seen_records..][..messages];
                    if parts.iter().any(|part| part.kind != kind::MESSAGE) {
                        return Err("a transaction without its messages".to_owned());
                    }
                    self.seen_records += messages;
                }
                kind::MESSAGE => {
                    let body = MessageBody::parse(&record.body).ok_or("malformed message")?;
                    if body.lane == 0 {
                        letter = Some(record.clone());
                    }
                }
                kind::MOVED | kind::DISCARDED | kind::EXPIRED => {
                    let id = record.queue;
                    let mut taken_out = Vec::new();
                    record::read_ranges(&record.body, |group, first, messages| {
                        taken_out.extend((first..first + messages).map(|one| (group, one)));
                        Ok(())
                    })?;
                    let is_expired =
                        record.kind == kind::EXPIRED || record.flags & record::FLAG_EXPIRED != 0;
                    if record.kind == kind::MOVED && taken_out.len() != 1 {
                        return Err("one at a time".to_owned());
                    }
                    for (group, sequence) in taken_out {
                        let name = group_name(&self.log.records[..self.seen_records], id, group)?;
                        let (now_ms, queue) =
                            (self.ms, self.model.queues.get_mut(&id).expect("queue"));
                        let state = queue.group(&name).open.remove(&sequence);
                        let (State::Doomed { count } | State::Back { count, .. }) =
                            state.clone().ok_or_else(|| format!("{sequence} was done with"))?
                        else {
                            return Err(format!("{sequence} was taken out, it was {state:?}"));
                        };
                        let is_back = matches!(state, Some(State::Back { .. }));
                        if is_back != is_expired
                            || is_expired && !queue.is_expired(sequence, now_ms)
                        {
                            return Err(format!("{sequence} was taken out, it was {state:?}"));
                        }
                        queue.expired += u64::from(is_expired);
                        let payload = queue.payloads[&sequence].clone();
                        if id == ORIGIN {
                            let letter = letter.take().ok_or("the message itself was not moved")?;
                            self.letter(&letter, sequence, count, &payload, is_expired)?;
                        }
                    }
                }
                kind::TRIMMED => {
                    let (id, body) = (record.queue, record.body.clone());
                    let (below, reason) = record::decode_trimmed(&body).ok_or("malformed")?;
                    self.trimmed(id, below, reason)?;
                }
                _ => {}
            }
        }
        if letter.is_some() { Err("moved and still there".to_owned()) } else { Ok(()) }
    }

    pub(super) fn letter(
        &mut self,
        letter: &Record,
        sequence: u64,
        count: u32,
        payload: &[u8],
        is_expired: bool,
    ) -> Check {
        let body = MessageBody::parse(&letter.body).ok_or("malformed message")?;
        let header = |name| headers::find(body.metadata, name).unwrap_or_default();
        if header(headers::ORIGIN_QUEUE) != "q2"
            || header(headers::ORIGIN_SEQUENCE) != sequence.to_string()
            || header(headers::DELIVERIES) != count.to_string()
            || !["rejected", "max-deliveries", "expired"].contains(&header(headers::REASON))
            || (header(headers::REASON) == "expired") != is_expired
            || times(body.metadata) != Some(Times::default())
            || body.payload != payload
        {
            return Err(format!("dead letter of {sequence}: {letter:?}"));
        }
        let dead = self.model.queues.get_mut(&letter.queue).expect("queue");
        if dead.stored(payload, (None, None), body.published_ns) != letter.sequence {
            return Err("a sequence is not dense".to_owned());
        }
        Ok(())
    }

    pub(super) fn events(&mut self) -> Check {
        for event in std::mem::take(&mut self.port.events) {
            match event {
                Event::Completed { handle, position, sequence, outcome } if handle.handle != 1 => {
                    self.completed_named(handle, position, sequence, outcome)?;
                }
                Event::Completed { handle, position, sequence, outcome } => {
                    let expected =
                        self.completions.get_mut(&handle.queue).and_then(VecDeque::pop_front);
                    if expected != Some((position, sequence, outcome)) {
                        return Err(format!(
                            "{position}: {sequence}, {outcome:?} instead of {expected:?}"
                        ));
                    }
                }
                Event::Skipped { handle, messages } => self.told_of_skipped(handle, messages)?,
                Event::Delivered { handle, header, payload, .. } => {
                    if self.consumers[&handle].skipped > 0 {
                        return Err(format!("{handle:?} was not told of what it skips"));
                    }
                    let group = &self.consumers[&handle].group;
                    let queue = self.model.queues.get_mut(&handle.queue).expect("queue");
                    queue.delivered(group, handle, header.lease, &payload, self.ms)?;
                    self.tokens.push((handle, header.lease));
                    let held = self.held().filter(|((with, _), _)| *with == handle).count();
                    if held > self.consumers[&handle].credit as usize {
                        return Err(format!("{held} messages are with {handle:?}"));
                    }
                }
                Event::Answer { request, outcome, .. } => {
                    let expected = self.answers.remove(&request);
                    if expected != Some(outcome) && self.next_request < request + 1_000 {
                        return Err(format!("{request}: {outcome:?}, not {expected:?}"));
                    }
                }
                Event::Unreadable { .. } => {
                    return Err(format!("everything can be read: {event:?}"));
                }
                Event::Drained { handle } => {
                    let Client { group, skipped, .. } = &self.consumers[&handle];
                    if *skipped > 0 {
                        return Err(format!("{handle:?} was not told of what it skips"));
                    }
                    let queue = &self.model.queues[&handle.queue];
                    let durable = queue.durable;
                    let left = queue.groups[group].open.iter().find(|(sequence, state)| {
                        **sequence < durable
                            && !queue.is_expired(**sequence, self.ms)
                            && match state {
                                State::Back { must_ms, .. } => *must_ms <= self.ms,
                                State::With { handle: with, .. } => *with != handle,
                                State::Doomed { .. } => true,
                            }
                    });
                    if let Some(left) = left {
                        return Err(format!("not drained: {left:?}"));
                    }
                }
                Event::Control { request, result: ControlResult::Named { id, epoch, last } } => {
                    let mut clients = self.named.values_mut();
                    if let Some(client) = clients.find(|client| client.request == request) {
                        if (epoch, last) != (client.epoch, client.last) {
                            return Err(format!("epoch {epoch}, last {last}: {client:?}"));
                        }
                        client.id = Some(id);
                    }
                }
                Event::Control { request, result } => {
                    let same = |expected: &ControlResult| match (expected, &result) {
                        (ControlResult::Refused(code, _), ControlResult::Refused(found, _)) => {
                            code == found
                        }
                        (expected, result) => expected == result,
                    };
                    let expected = self.controls.remove(&request);
                    if expected.as_ref().is_some_and(|expected| !same(expected)) {
                        return Err(format!("{request}: {result:?}, not {expected:?}"));
                    }
                }
                Event::Ended { handle } => {
                    let client = self.consumers.get(&handle).ok_or("nobody was to end")?;
                    if !client.ending {
                        return Err(format!("{handle:?} ended, its group is there"));
                    }
                    self.logic.close_handle(&mut self.port, handle, at_ms(self.ms));
                    self.gone(handle);
                }
            }
        }
        Ok(())
    }

    fn completed_named(
        &mut self,
        handle: HandleId,
        position: u64,
        sequence: u64,
        outcome: Outcome,
    ) -> Check {
        let client = self.named.get_mut(&handle).ok_or("of nobody")?;
        let expected = client.completions.pop_front();
        let Some((_, _, _, own)) = expected else { return Err("of nothing".to_owned()) };
        if expected != Some((position, sequence, outcome, own)) {
            return Err(format!("{position}: {sequence} {outcome:?} instead of {expected:?}"));
        }
        let queue = &self.model.queues[&handle.queue];
        let stored = queue.named[&client.name].stored.get(&own);
        let is_durable = stored.is_none_or(|sequence| *sequence < queue.durable);
        if outcome == Outcome::Duplicate && !is_durable {
            return Err(format!("own sequence {own} is not durable yet"));
        }
        Ok(())
    }

    /// Everything that can happen happens; then nothing may be left undone.
    pub(super) fn settle(&mut self) -> Check {
        self.log.full = false;
        let mut rounds = 0;
        while rounds < 4 {
            let far = self.log.far.len();
            self.note()?;
            self.durable_to(self.log.last())?;
            self.dispatch()?;
            // One far message a call is asked for.
            rounds = if self.log.far.len() < far { 0 } else { rounds + 1 };
        }
        self.note()?;
        self.durable_to(self.log.last())?;
        self.check_limits()?;
        for (id, queue) in &self.model.queues {
            for (name, group) in &queue.groups {
                // Looks are at most about a millisecond late, and at most 1/128 of these TTLs.
                let stays = group.open.iter().find(|(sequence, state)| {
                    matches!(state, State::Back { .. })
                        && queue.is_expired(**sequence, self.ms.saturating_sub(3))
                });
                if let Some(stays) = stays {
                    return Err(format!("{stays:?} of {id} is over and stays at {}", self.ms));
                }
                let ready = group.open.iter().find(|(sequence, state)| {
                    !queue.is_expired(**sequence, self.ms)
                        && matches!(state, State::Back { must_ms, .. } if *must_ms <= self.ms)
                });
                let able = self.consumers.iter().find(|(handle, client)| {
                    let held = self.held().filter(|((with, _), _)| with == *handle).count();
                    handle.queue == *id
                        && client.group == *name
                        && !client.blocked
                        && held < client.credit as usize
                });
                if let (Some(ready), Some(able)) = (ready, able) {
                    return Err(format!("{ready:?} of {id} is not given to {able:?}"));
                }
                if let Some(doomed) =
                    group.open.iter().find(|(_, state)| matches!(state, State::Doomed { .. }))
                {
                    return Err(format!("{doomed:?} of {id} stays"));
                }
            }
            let info = self.logic.info(*id).expect("queue");
            let open = &queue.groups[""].open;
            let with = open.values().filter(|state| matches!(state, State::With { .. })).count();
            let found = (info.messages, info.unacknowledged, info.expired);
            if found != (queue.there().len() as u64, with as u64, queue.expired) {
                return Err(format!("{info:?} of {id}, {:?}", queue.groups));
            }
        }
        super::marks::check(&self.logic, &self.log)?;
        let held: BTreeMap<_, _> = self.held().collect();
        if held != self.port.leases {
            return Err(format!("leases {:?} instead of {held:?}", self.port.leases));
        }
        for (handle, client) in &self.named {
            if client.id.is_none() || !client.completions.is_empty() {
                return Err(format!("{handle:?} is not told: {client:?}"));
            }
        }
        if let Some((request, expected)) = self.controls.pop_first() {
            return Err(format!("{request} is not answered, {expected:?}"));
        }
        if let Some(left) = self.consumers.iter().find(|(_, client)| client.ending) {
            return Err(format!("{left:?} did not end"));
        }
        if let Some((request, outcome)) = self.answers.pop_first() {
            return Err(format!("{request} is not answered, {outcome:?}"));
        }
        Ok(())
    }
}
