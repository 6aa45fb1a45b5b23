//! Random programs: clients, time, a disk that is late, crashes; the model judges everything that comes out.

use std::collections::{BTreeMap, VecDeque};

use ringmain_client::wire::{LeaseToken, Outcome, Up};

use super::cases::consumer;
use super::memory::{Event, MemoryLog, MemoryPort, Record, at_ms, definition, handle};
use super::model::{DELAY_MS_MAX, Model, Queue, State};
use crate::shard::logic::record::{self, MessageBody, kind};
use crate::shard::logic::{ControlResult, HandleId, Logic, Lsn, StartAt, canary, headers};

/// Takes the dead letters of `ORIGIN`; the third queue has none.
const DEAD: u64 = 1;
const ORIGIN: u64 = 2;
const QUEUES: [u64; 3] = [DEAD, ORIGIN, 3];
const LEASE_MS: u64 = 40;

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() {
            None
        } else {
            Some(from[self.below(from.len() as u64) as usize].clone())
        }
    }
}

#[derive(Debug, Clone)]
struct Client {
    group: String,
    credit: u32,
    blocked: bool,
}

struct Program {
    random: Random,
    logic: Logic,
    log: MemoryLog,
    port: MemoryPort,
    ms: u64,
    durable: Lsn,
    /// Records that the model has seen.
    seen_records: usize,
    model: Model,
    /// The model at places of the log, from the durable one on.
    history: VecDeque<(Lsn, Model)>,
    consumers: BTreeMap<HandleId, Client>,
    tokens: Vec<(HandleId, LeaseToken)>,
    lane_ends: BTreeMap<u64, u64>,
    released: BTreeMap<u64, u64>,
    /// Completions that must come, per queue: position and sequence.
    completions: BTreeMap<u64, VecDeque<(u64, u64)>>,
    answers: BTreeMap<u64, Outcome>,
    /// Submissions whose slots are not released, and when they may be.
    unreleased: Vec<(HandleId, Up, Option<Lsn>)>,
    purges: BTreeMap<u64, u64>,
    next_request: u64,
    next_handle: u8,
}

type Check = Result<(), String>;

impl Program {
    fn new(seed: u64) -> Self {
        let mut program = Self {
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            logic: Logic::new(7),
            log: MemoryLog::default(),
            port: MemoryPort::default(),
            ms: 0,
            durable: 0,
            seen_records: 0,
            model: Model::default(),
            history: VecDeque::new(),
            consumers: BTreeMap::new(),
            tokens: Vec::new(),
            lane_ends: BTreeMap::new(),
            released: BTreeMap::new(),
            completions: BTreeMap::new(),
            answers: BTreeMap::new(),
            unreleased: Vec::new(),
            purges: BTreeMap::new(),
            next_request: 1,
            next_handle: 10,
        };
        program.logic.start(at_ms(0));
        for id in QUEUES {
            let mut definition = definition(id, &format!("q{id}"));
            definition.lease_ms = LEASE_MS;
            if id == ORIGIN {
                definition.max_deliveries = 3;
                definition.dead_letter = format!("q{DEAD}");
            }
            let rules = Queue::new(definition.max_deliveries, LEASE_MS);
            program.model.queues.insert(id, rules);
            program.logic.create_queue(&mut program.log, 1 << 40, definition);
        }
        for queue in QUEUES {
            program.logic.open_producer(handle(queue, 1), queue).expect("queue");
        }
        program.durable_to(program.log.last()).expect("definitions");
        program.note();
        program
    }

    fn request(&mut self) -> u64 {
        if self.random.below(2) == 0 {
            return 0;
        }
        self.next_request += 1;
        self.next_request
    }

    fn publish(&mut self) -> Check {
        let queue = self.random.pick(&QUEUES).expect("some");
        for _ in 0..=self.random.below(5) {
            let position = *self.lane_ends.entry(queue).or_default();
            let next = position + 1 + self.random.below(2);
            let payload: Vec<u8> =
                format!("{queue}/{position}/{}", "x".repeat(self.random.below(30) as usize)).into();
            let now = at_ms(self.ms);
            let producer = handle(queue, 1);
            self.logic
                .publish(&mut self.log, producer, position, next, 0, &[], &payload, now)
                .map_err(|refusal| format!("{refusal:?}"))?;
            self.lane_ends.insert(queue, next);
            let sequence = self.model.queues.get_mut(&queue).expect("queue").stored(&payload);
            self.model.lanes.entry(queue).or_default().push_back((position, sequence));
            self.completions.entry(queue).or_default().push_back((position, sequence));
        }
        self.records()
    }

    fn open(&mut self) {
        if self.consumers.len() > 7 {
            return;
        }
        let queue = self.random.pick(&QUEUES).expect("some");
        let group = self.random.pick(&["", "", "audit"]).expect("some").to_owned();
        self.next_handle = if self.next_handle > 250 { 10 } else { self.next_handle + 1 };
        let handle = handle(queue, self.next_handle);
        if self.consumers.contains_key(&handle) {
            return;
        }
        let credit = 1 + self.random.below(6) as u32;
        let mut spec = consumer(credit);
        spec.group = group.clone();
        spec.from =
            self.random.pick(&[StartAt::First, StartAt::New, StartAt::Sequence(4)]).expect("some");
        let rules = self.model.queues.get_mut(&queue).expect("queue");
        let from = match spec.from {
            StartAt::First => 1,
            StartAt::New => rules.next,
            StartAt::Sequence(sequence) => sequence,
        };
        rules.add_group(&group, from);
        self.logic.open_consumer(&mut self.log, handle, &spec).expect("room");
        self.consumers.insert(handle, Client { group, credit, blocked: false });
        self.note();
    }

    fn close(&mut self) {
        let handles: Vec<_> = self.consumers.keys().copied().collect();
        let Some(handle) = self.random.pick(&handles) else { return };
        let unseen = self.port.unseen.clone();
        let queue = self.model.queues.get_mut(&handle.queue).expect("queue");
        queue
            .come_back(|with, _, _| *with == handle, |with, slot| !unseen.contains(&(*with, slot)));
        self.logic.close_handle(&mut self.port, handle, at_ms(self.ms));
        self.consumers.remove(&handle);
        self.port.room.remove(&handle);
        // Acknowledgements that are not durable: nobody is there to hear of it.
        self.port.leases.retain(|(with, _), _| *with != handle);
        self.unreleased.retain(|(with, _, _)| *with != handle);
        self.tokens.retain(|(with, _)| *with != handle);
        self.answers.clear();
        self.next_request += 1_000;
    }

    fn submit(&mut self, handle: HandleId, up: Up, again: bool) -> Check {
        let Some(client) = self.consumers.get(&handle) else { return Ok(()) };
        let queue = self.model.queues.get_mut(&handle.queue).expect("queue");
        let outcome = queue.asked(&client.group, handle, up, again, self.ms);
        if let Up::Ack { request, .. }
        | Up::Nack { request, .. }
        | Up::Extend { request, .. }
        | Up::Reject { request, .. } = up
            && request != 0
        {
            self.answers.insert(request, outcome);
        }
        self.unreleased.push((handle, up, None));
        let now = at_ms(self.ms);
        self.logic
            .submission(&mut self.port, handle, up, again, now)
            .map_err(|refusal| format!("{refusal:?}"))?;
        self.events()
    }

    fn ask(&mut self) -> Check {
        for _ in 0..=self.random.below(4) {
            if self.tokens.is_empty() {
                return Ok(());
            }
            let at = self.random.below(self.tokens.len() as u64) as usize;
            // Tokens are used again now and then: those are stale.
            let (handle, lease) = if self.random.below(8) == 0 {
                self.tokens[at]
            } else {
                self.tokens.swap_remove(at)
            };
            let request = self.request();
            let up = match self.random.below(10) {
                0..6 => Up::Ack { lease, request },
                6 => Up::Nack { lease, request, delay_ms: 0 },
                7 => Up::Nack { lease, request, delay_ms: 1 + self.random.below(DELAY_MS_MAX) },
                8 => Up::Extend { lease, request, lease_ms: self.random.below(3 * LEASE_MS) },
                _ => Up::Reject { lease, request },
            };
            self.submit(handle, up, false)?;
        }
        Ok(())
    }

    fn credit(&mut self) -> Check {
        let handles: Vec<_> = self.consumers.keys().copied().collect();
        let Some(handle) = self.random.pick(&handles) else { return Ok(()) };
        let credit = self.random.below(8) as u32;
        self.consumers.get_mut(&handle).expect("open").credit = credit;
        self.submit(handle, Up::Credit { credit }, false)
    }

    fn room(&mut self) {
        let handles: Vec<_> = self.consumers.keys().copied().collect();
        let Some(handle) = self.random.pick(&handles) else { return };
        let client = self.consumers.get_mut(&handle).expect("open");
        client.blocked = !client.blocked;
        if client.blocked {
            self.port.room.insert(handle, self.random.below(3) as u32);
        } else {
            self.port.room.remove(&handle);
            self.logic.room(handle);
        }
    }

    fn time(&mut self) -> Check {
        self.ms += self.random.below(25);
        let (ms, unseen) = (self.ms, self.port.unseen.clone());
        for queue in self.model.queues.values_mut() {
            queue.come_back(
                |_, _, deadline_ms| deadline_ms <= ms,
                |with, slot| !unseen.contains(&(*with, slot)),
            );
        }
        let due = self.logic.next_deadline();
        self.logic.on_time(&mut self.port, at_ms(ms));
        let leases = self.port.leases.len();
        if due.is_none_or(|due| due > ms * 1_000_000) && leases < self.held().count() {
            return Err("the deadline is late".to_owned());
        }
        self.events()
    }

    fn purge(&mut self) -> Check {
        let queue = self.random.pick(&QUEUES).expect("some");
        // What was gathered before counts before.
        self.logic.flush(&mut self.log);
        self.records()?;
        self.next_request += 1;
        let rules = self.model.queues.get_mut(&queue).expect("queue");
        self.purges.insert(self.next_request, rules.there(u64::MAX));
        for group in rules.groups.values_mut() {
            group.open.clear();
        }
        self.logic.purge(&mut self.log, self.next_request, queue);
        self.note();
        Ok(())
    }

    fn held(&self) -> impl Iterator<Item = ((HandleId, u32), (u32, u64))> + '_ {
        self.model.queues.values().flat_map(|queue| {
            queue.groups.values().flat_map(|group| {
                group.open.iter().filter_map(|(sequence, state)| match state {
                    State::With { handle, slot, attempt, .. } => {
                        Some(((*handle, *slot), (*attempt, *sequence)))
                    }
                    _ => None,
                })
            })
        })
    }

    /// What the logic wrote by itself: messages moved to the dead-letter queue, or discarded.
    fn records(&mut self) -> Check {
        let mut letter = None;
        while let Some(record) = self.log.records.get(self.seen_records) {
            self.seen_records += 1;
            match record.kind {
                kind::MESSAGE => {
                    let body = MessageBody::parse(&record.body).ok_or("malformed message")?;
                    if body.lane == 0 {
                        letter = Some(record.clone());
                    }
                }
                kind::MOVED | kind::DISCARDED => {
                    let id = record.queue;
                    let mut taken_out = (0, 0);
                    record::read_ranges(&record.body, |group, first, messages| {
                        taken_out = (group, first);
                        if messages == 1 { Ok(()) } else { Err("one at a time".to_owned()) }
                    })?;
                    let (group, sequence) = taken_out;
                    let queue = self.model.queues.get_mut(&id).expect("queue");
                    let name = if group == 0 { "" } else { "audit" };
                    let state = queue.group(name).open.remove(&sequence);
                    let Some(State::Doomed { count }) = state else {
                        return Err(format!("{sequence} was taken out, it was {state:?}"));
                    };
                    let payload = queue.payloads[&sequence].clone();
                    if id == ORIGIN {
                        let letter = letter.take().ok_or("the message itself was not moved")?;
                        self.letter(&letter, sequence, count, &payload)?;
                    }
                }
                _ => {}
            }
        }
        if letter.is_some() { Err("moved and still there".to_owned()) } else { Ok(()) }
    }

    fn letter(&mut self, letter: &Record, sequence: u64, count: u32, payload: &[u8]) -> Check {
        let body = MessageBody::parse(&letter.body).ok_or("malformed message")?;
        let header = |name| headers::find(body.metadata, name).unwrap_or_default();
        if header(headers::ORIGIN_QUEUE) != "q2"
            || header(headers::ORIGIN_SEQUENCE) != sequence.to_string()
            || header(headers::DELIVERIES) != count.to_string()
            || !["rejected", "max-deliveries"].contains(&header(headers::REASON))
            || body.payload != payload
        {
            return Err(format!("dead letter of {sequence}: {letter:?}"));
        }
        let dead = self.model.queues.get_mut(&letter.queue).expect("queue");
        if dead.stored(payload) != letter.sequence {
            return Err("a sequence is not dense".to_owned());
        }
        Ok(())
    }

    fn events(&mut self) -> Check {
        for event in std::mem::take(&mut self.port.events) {
            match event {
                Event::Completed { handle, position, sequence, outcome } => {
                    let expected =
                        self.completions.get_mut(&handle.queue).and_then(VecDeque::pop_front);
                    if expected != Some((position, sequence)) || outcome != Outcome::Done {
                        return Err(format!("{position}: {sequence} instead of {expected:?}"));
                    }
                }
                Event::Delivered { handle, header, payload, .. } => {
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
                Event::Drained { handle } => {
                    let group = &self.consumers[&handle].group;
                    let queue = &self.model.queues[&handle.queue];
                    let durable = queue.durable;
                    let left = queue.groups[group].open.iter().find(|(sequence, state)| {
                        **sequence < durable
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
                Event::Control { request, result } => {
                    let expected = self.purges.remove(&request).map(ControlResult::Purged);
                    if expected.is_some_and(|expected| expected != result) {
                        return Err(format!("{request}: {result:?}"));
                    }
                }
            }
        }
        Ok(())
    }

    /// The model at this place of the log, if everything is in it.
    fn note(&mut self) {
        if self.logic.flush(&mut self.log) {
            let last = self.log.last();
            for (_, _, lsn) in &mut self.unreleased {
                lsn.get_or_insert(last);
            }
            self.history.retain(|(lsn, _)| *lsn < last);
            self.history.push_back((last, self.model.clone()));
        }
    }

    fn durable_to(&mut self, lsn: Lsn) -> Check {
        self.durable = lsn.max(self.durable);
        let mut ends = BTreeMap::new();
        for record in &self.log.records[..self.durable as usize] {
            if record.kind == kind::MESSAGE {
                ends.insert(record.queue, record.sequence + 1);
            }
        }
        for (queue, end) in ends {
            self.model.queues.get_mut(&queue).expect("queue").durable = end;
        }
        self.logic.on_durable(self.durable, &mut self.port, &mut self.log, at_ms(self.ms));
        while self.history.len() > 1 && self.history[1].0 <= self.durable {
            self.history.pop_front();
        }
        let durable = self.durable;
        self.unreleased.retain(|(_, _, lsn)| lsn.is_none_or(|lsn| lsn > durable));
        self.events()
    }

    fn late_disk(&mut self) -> Check {
        let ahead = self.log.last() - self.durable;
        let lsn = self.durable + self.random.below(ahead + 1);
        self.durable_to(lsn)?;
        if self.random.below(3) == 0 {
            // Only what is durable and completed is released.
            let queue = self.random.pick(&QUEUES).expect("some");
            let to = self.completions.get(&queue).and_then(|waiting| waiting.front());
            let end = self.lane_ends.get(&queue).copied().unwrap_or(0);
            let to = to.map_or(end, |(position, _)| *position);
            self.released.insert(queue, to);
            self.logic.released(handle(queue, 1), to);
        }
        Ok(())
    }

    fn dispatch(&mut self) -> Check {
        self.port.blind = self.random.below(3) == 0;
        self.logic.dispatch(&mut self.log, &mut self.port, at_ms(self.ms));
        self.records()?;
        self.events()
    }

    /// Everything that can happen happens; then nothing may be left undone.
    fn settle(&mut self) -> Check {
        let mut rounds = 0;
        while rounds < 4 {
            let far = self.log.far.len();
            self.note();
            self.durable_to(self.log.last())?;
            self.dispatch()?;
            // One far message a call is asked for.
            rounds = if self.log.far.len() < far { 0 } else { rounds + 1 };
        }
        self.note();
        self.durable_to(self.log.last())?;
        for (id, queue) in &self.model.queues {
            for (name, group) in &queue.groups {
                let ready = group.open.iter().find(|(_, state)| {
                    matches!(state, State::Back { must_ms, .. } if *must_ms <= self.ms)
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
            if (info.messages, info.unacknowledged) != (queue.there(u64::MAX), with as u64) {
                return Err(format!("{info:?} of {id}, {:?}", queue.groups));
            }
        }
        let held: BTreeMap<_, _> = self.held().collect();
        if held != self.port.leases {
            return Err(format!("leases {:?} instead of {held:?}", self.port.leases));
        }
        if let Some((request, outcome)) = self.answers.pop_first() {
            return Err(format!("{request} is not answered, {outcome:?}"));
        }
        Ok(())
    }

    fn crash(&mut self, adopt: bool) -> Check {
        let at = self.random.below(self.history.len() as u64) as usize;
        let (lsn, model) = self.history[at].clone();
        self.log.cut(lsn);
        self.durable = lsn;
        self.seen_records = self.log.records.len();
        self.model = model;
        self.model.crashed(self.ms);
        self.history = VecDeque::from([(lsn, self.model.clone())]);
        self.completions.clear();
        self.answers.clear();
        self.purges.clear();
        self.log.forgotten.clear();
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
            self.adopt_lane(queue)?;
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
    fn adopt_lane(&mut self, queue: u64) -> Check {
        let producer = handle(queue, 1);
        self.logic.open_producer(producer, queue).map_err(|refusal| format!("{refusal:?}"))?;
        let from = self.released.get(&queue).copied().unwrap_or(0);
        let runs = self.logic.lane_runs(producer, from);
        let found: Vec<_> = runs
            .iter()
            .flat_map(|run| {
                (0..u64::from(run.count))
                    .map(|at| (run.first_position + at * run.stride, run.first_sequence + at))
            })
            .collect();
        let lane = self.model.lanes.get(&queue).cloned().unwrap_or_default();
        let expected: Vec<_> =
            lane.iter().copied().filter(|(position, _)| *position >= from).collect();
        if found != expected {
            return Err(format!("lane {queue} from {from}: {found:?} instead of {expected:?}"));
        }
        // Positions go on where the journal ends: the client's messages behind it are those of the next publishes.
        if let Some(run) = runs.last() {
            self.lane_ends.insert(queue, run.end());
        } else {
            self.lane_ends.insert(queue, from.max(lane.back().map_or(0, |(at, _)| at + 2)));
        }
        Ok(())
    }

    fn adopt_consumers(&mut self) -> Check {
        let clients: Vec<_> = self.consumers.clone().into_iter().collect();
        for (handle, client) in clients {
            let mut spec = consumer(client.credit);
            spec.group.clone_from(&client.group);
            // Its creation may have been lost.
            self.model.queues.get_mut(&handle.queue).expect("queue").add_group(&client.group, 1);
            self.logic
                .open_consumer(&mut self.log, handle, &spec)
                .map_err(|refusal| format!("{refusal:?}"))?;
        }
        for ((handle, slot), (attempt, sequence)) in self.port.leases.clone() {
            let now = at_ms(self.ms);
            let taken = self.logic.adopt_lease(handle, slot, sequence, attempt, now);
            let group = &self.consumers[&handle].group;
            let queue = self.model.queues.get_mut(&handle.queue).expect("queue");
            let open = &mut queue.group(group).open;
            if taken != open.contains_key(&sequence) {
                return Err(format!("adopted {sequence}: {taken}"));
            }
            if taken {
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

    fn step(&mut self) -> Check {
        match self.random.below(100) {
            0..20 => self.publish()?,
            20..26 => self.open(),
            26..28 => self.close(),
            28..55 => self.ask()?,
            55..58 => self.credit()?,
            58..62 => self.room(),
            62..70 => self.time()?,
            70..71 => self.purge()?,
            71..82 => self.late_disk()?,
            82..92 => self.dispatch()?,
            92..94 => {
                self.note();
                self.log.write_checkpoint(&self.logic);
            }
            94..97 => self.settle()?,
            97 => self.crash(false)?,
            _ => self.crash(true)?,
        }
        if self.random.below(3) > 0 {
            self.note();
        }
        Ok(())
    }

    /// At the end everything that is left is given out, in order, as it was sent.
    fn finish(&mut self) -> Check {
        self.settle()?;
        self.crash(false)?;
        let queues: Vec<u64> = QUEUES.into();
        for queue in queues {
            let groups: Vec<String> = self.model.queues[&queue].groups.keys().cloned().collect();
            for (number, group) in groups.into_iter().enumerate() {
                let handle = handle(queue, 200 + number as u8);
                let mut spec = consumer(4096);
                (spec.leases, spec.group) = (4096, group.clone());
                self.logic.open_consumer(&mut self.log, handle, &spec).expect("room");
                self.consumers.insert(handle, Client { group, credit: 4096, blocked: false });
            }
        }
        self.ms += DELAY_MS_MAX + 1;
        self.logic.on_time(&mut self.port, at_ms(self.ms));
        self.settle()
    }
}

fn run(seed: u64, steps: u32) -> Check {
    let mut program = Program::new(seed);
    for step in 0..steps {
        program.step().map_err(|what| format!("seed {seed}, step {step}: {what}"))?;
    }
    program.finish().map_err(|what| format!("seed {seed}, end: {what}"))
}

#[test]
fn programs_do_what_the_model_says() {
    let seeds = std::env::var("RINGMAIN_PROGRAMS").ok().and_then(|text| text.parse().ok());
    for seed in 1..=seeds.unwrap_or(400) {
        if let Err(what) = run(seed, 300) {
            panic!("{what}");
        }
    }
}

/// Each planted bug is caught, by an error of the model, of the replay, or an assertion.
#[test]
fn planted_bugs_are_caught() {
    for canary in canary::Canary::ALL {
        let caught = (1..=60).any(|seed| {
            let outcome = std::thread::spawn(move || {
                canary::plant(Some(canary));
                run(seed, 300)
            });
            !matches!(outcome.join(), Ok(Ok(())))
        });
        assert!(caught, "{canary:?}");
    }
}
