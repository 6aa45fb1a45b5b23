//! Random programs: clients, time, a disk that is late, crashes; the model judges everything that comes out.

mod groups;
mod names;
mod times;
mod transactions;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ringmain_client::protocol::Overflow;
use ringmain_client::wire::{LeaseToken, Outcome, Up};

use super::cases::consumer;
use super::keeps::{self, Gone, LIMITED};
use super::memory::{MemoryLog, MemoryPort, at_ms, definition, handle};
use super::model::{DELAY_MS_MAX, Model, Queue, State};
use crate::shard::logic::record::kind;
use crate::shard::logic::{ControlResult, HandleId, Limits, Logic, Lsn, Refusal, StartAt, canary};

/// Takes the dead letters of `ORIGIN`; the third queue has none.
pub(super) const DEAD: u64 = 1;
pub(super) const ORIGIN: u64 = 2;
/// Its messages expire.
pub(super) const TTL: u64 = 4;
pub(super) const TTL_MS: u64 = 120;
pub(super) const QUEUES: [u64; 4] = [DEAD, ORIGIN, 3, TTL];
/// Those that have no limits.
const UNLIMITED: [u64; 3] = [DEAD, ORIGIN, TTL];
pub(super) const LEASE_MS: u64 = 40;

pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end
    }

    pub(super) fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() {
            None
        } else {
            Some(from[self.below(from.len() as u64) as usize].clone())
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) group: String,
    pub(super) credit: u32,
    pub(super) blocked: bool,
    /// Messages that a limit took from its group, and that it was not told of.
    pub(super) skipped: u64,
    /// Its group is deleted.
    pub(super) ending: bool,
}

/// A producer with a name, with the lane of its own.
#[derive(Debug, Clone)]
pub(super) struct NamedClient {
    pub(super) name: String,
    pub(super) lane: u64,
    pub(super) request: u64,
    /// What it must be told.
    pub(super) epoch: u32,
    pub(super) last: u64,
    /// Id, once it was told.
    pub(super) id: Option<u64>,
    /// Completions that must come: position, sequence, outcome, own sequence.
    pub(super) completions: VecDeque<(u64, u64, Outcome, u64)>,
}

pub(super) struct Program {
    pub(super) random: Random,
    pub(super) logic: Logic,
    pub(super) log: MemoryLog,
    pub(super) port: MemoryPort,
    pub(super) ms: u64,
    pub(super) durable: Lsn,
    /// Records that the model has seen.
    pub(super) seen_records: usize,
    pub(super) model: Model,
    /// The model at places of the log, from the durable one on.
    pub(super) history: VecDeque<(Lsn, Model)>,
    pub(super) consumers: BTreeMap<HandleId, Client>,
    pub(super) tokens: Vec<(HandleId, LeaseToken)>,
    /// How many producers each queue has had, one after the other in the same place.
    pub(super) producers: BTreeMap<u64, u32>,
    pub(super) lane_ends: BTreeMap<u64, u64>,
    pub(super) released: BTreeMap<u64, u64>,
    /// Attached under a name, in the order of their attachments.
    pub(super) named: BTreeMap<HandleId, NamedClient>,
    /// Completions that must come, per queue: position, sequence and outcome.
    pub(super) completions: BTreeMap<u64, VecDeque<(u64, u64, Outcome)>>,
    /// Queues whose producers wait for room.
    pub(super) limited: BTreeSet<u64>,
    /// Discarded messages that consumers are busy with.
    pub(super) gone: Vec<Gone>,
    pub(super) answers: BTreeMap<u64, Outcome>,
    /// Submissions whose slots are not released, and when they may be.
    pub(super) unreleased: Vec<(HandleId, Up, Option<Lsn>)>,
    pub(super) controls: BTreeMap<u64, ControlResult>,
    pub(super) next_request: u64,
    pub(super) next_handle: u8,
}

pub(super) type Check = Result<(), String>;

impl Program {
    fn new(seed: u64) -> Self {
        let mut program = Self {
            random: Random::new(seed),
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
            producers: QUEUES.map(|queue| (queue, 1)).into(),
            lane_ends: BTreeMap::new(),
            released: BTreeMap::new(),
            named: BTreeMap::new(),
            completions: BTreeMap::new(),
            limited: BTreeSet::new(),
            gone: Vec::new(),
            answers: BTreeMap::new(),
            unreleased: Vec::new(),
            controls: BTreeMap::new(),
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
            if id == TTL {
                definition.ttl_ms = TTL_MS;
            }
            if id == LIMITED {
                definition.durable = false;
                definition.limits = keeps::rules(seed);
                definition.ttl_ms = keeps::ttl_ms(seed);
            }
            let mut rules = Queue::new(definition.max_deliveries, LEASE_MS, definition.ttl_ms);
            rules.keeps.limits = definition.limits;
            program.model.queues.insert(id, rules);
            program.logic.create_queue(&mut program.log, 1 << 40, definition);
        }
        for queue in QUEUES {
            let (producer, lane) = program.producer(queue);
            program.logic.open_producer(producer, lane).expect("queue");
        }
        program.durable_to(program.log.last()).expect("definitions");
        program.note().expect("definitions");
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
        self.go_on();
        for _ in 0..=self.random.below(5) {
            let position = *self.lane_ends.entry(queue).or_default();
            let next = position + 1 + self.random.below(2);
            let payload: Vec<u8> =
                format!("{queue}/{position}/{}", "x".repeat(self.random.below(30) as usize)).into();
            let mut now = at_ms(self.ms);
            now.realtime_ns += self.random.below(900_000);
            let (metadata, times) = self.times();
            let (producer, lane) = self.producer(queue);
            let (model, last) =
                (self.model.queues.get_mut(&queue).expect("queue"), self.log.last());
            let Limits { max_bytes, overflow, .. } = model.keeps.limits;
            let may_refuse = model.is_full() || max_bytes > 0;
            let published = self.logic.publish(
                &mut self.log,
                producer,
                position,
                next,
                0,
                &metadata,
                &payload,
                now,
            );
            let stored = self.log.last() > last;
            match published {
                Ok(()) if stored && !model.is_full() => {}
                Ok(()) if !stored && may_refuse && overflow == Overflow::Reject => {}
                Err(Refusal::Full) if self.log.full => return Ok(()),
                Err(Refusal::Limit) if may_refuse && overflow == Overflow::Block => {
                    self.limited.insert(queue);
                    return Ok(());
                }
                other => return Err(format!("{other:?}, stored {stored}, {model:?}")),
            }
            // Offered again before it was told: it does not wait any more.
            self.limited.remove(&queue);
            self.lane_ends.insert(queue, next);
            let completions = self.completions.entry(queue).or_default();
            if !stored {
                completions.push_back((position, 0, Outcome::QueueFull));
                continue;
            }
            let sequence = model.stored(&payload, times, now.realtime_ns);
            model.metadata.insert(sequence, metadata.len() as u64);
            self.model.lanes.entry(lane).or_default().push_back((position, sequence));
            completions.push_back((position, sequence, Outcome::Done));
        }
        self.records()
    }

    /// The producer that a queue has now, and its lane.
    pub(super) fn producer(&self, queue: u64) -> (HandleId, u64) {
        let epoch = self.producers[&queue];
        (HandleId { queue, handle: 1, epoch }, u64::from(epoch) << 32 | queue)
    }

    /// A producer goes, as soon as everything that it sent is stored; the next one has its place and a lane of its own.
    fn replace_producer(&mut self) -> Check {
        let queue = self.random.pick(&QUEUES).expect("some");
        let unfinished = |waiting: &VecDeque<_>| !waiting.is_empty();
        if self.completions.get(&queue).is_some_and(unfinished) || self.limited.contains(&queue) {
            return Ok(());
        }
        let (gone, _) = self.producer(queue);
        self.logic.close_handle(&mut self.port, gone, at_ms(self.ms));
        self.limited.remove(&queue);
        self.producers.entry(queue).and_modify(|epoch| *epoch += 1);
        self.lane_ends.remove(&queue);
        self.released.remove(&queue);
        let (next, lane) = self.producer(queue);
        self.logic.open_producer(next, lane).map_err(|refusal| format!("{refusal:?}"))
    }

    fn open(&mut self) -> Check {
        if self.consumers.len() > 7 {
            return Ok(());
        }
        let queue = self.random.pick(&QUEUES).expect("some");
        let group = self.random.pick(&["", "", "audit"]).expect("some").to_owned();
        self.next_handle = if self.next_handle > 250 { 10 } else { self.next_handle + 1 };
        let handle = handle(queue, self.next_handle);
        if self.consumers.contains_key(&handle) || self.named.contains_key(&handle) {
            return Ok(());
        }
        let credit = 1 + self.random.below(6) as u32;
        let mut spec = consumer(credit);
        spec.group = group.clone();
        spec.from = self.start_at(queue);
        let opened = self.logic.open_consumer(&mut self.log, handle, &spec);
        let may_wait = self.log.full || matches!(spec.from, StartAt::Time(_));
        if may_wait && opened == Err(Refusal::Full) {
            return Ok(());
        }
        let is_new = opened.expect("room");
        let rules = self.model.queues.get_mut(&queue).expect("queue");
        assert_eq!(is_new, !rules.groups.contains_key(&group));
        rules.add_group(&group, spec.from);
        let client = Client { group, credit, blocked: false, ending: false, skipped: 0 };
        self.consumers.insert(handle, client);
        self.note()
    }

    fn close(&mut self) {
        let handles: Vec<_> = self.consumers.keys().copied().collect();
        let Some(handle) = self.random.pick(&handles) else { return };
        let unseen = self.port.unseen.clone();
        let queue = self.model.queues.get_mut(&handle.queue).expect("queue");
        queue
            .come_back(|with, _, _| *with == handle, |with, slot| !unseen.contains(&(*with, slot)));
        self.logic.close_handle(&mut self.port, handle, at_ms(self.ms));
        self.gone(handle);
    }

    /// Nobody is there to hear of acknowledgements that are not durable.
    pub(super) fn gone(&mut self, handle: HandleId) {
        self.consumers.remove(&handle);
        self.port.room.remove(&handle);
        self.port.leases.retain(|(with, _), _| *with != handle);
        self.port.unseen.retain(|(with, _)| *with != handle);
        self.unreleased.retain(|(with, _, _)| *with != handle);
        self.gone.retain(|gone| gone.handle != handle);
        self.tokens.retain(|(with, _)| *with != handle);
        self.answers.clear();
        self.next_request += 1_000;
    }

    pub(super) fn submit(&mut self, handle: HandleId, up: Up, again: bool) -> Check {
        let Some(client) = self.consumers.get(&handle) else { return Ok(()) };
        let queue = self.model.queues.get_mut(&handle.queue).expect("queue");
        let outcome = queue.asked(&client.group, handle, up, again, self.ms);
        if let Up::Ack { request, lease }
        | Up::Nack { request, lease, .. }
        | Up::Extend { request, lease, .. }
        | Up::Reject { request, lease } = up
        {
            if request != 0 {
                self.answers.insert(request, outcome);
            }
            let named = (handle, lease.slot, lease.attempt, lease.sequence);
            self.gone.retain(|gone| (gone.handle, gone.slot, gone.attempt, gone.sequence) != named);
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

    fn purge(&mut self) -> Check {
        let queue = self.random.pick(&QUEUES).expect("some");
        // What was gathered before counts before.
        self.logic.flush(&mut self.log);
        self.records()?;
        self.next_request += 1;
        let rules = self.model.queues.get_mut(&queue).expect("queue");
        let messages = rules.there().len() as u64;
        rules.keeps.first = rules.next;
        self.controls.insert(self.next_request, ControlResult::Purged(messages));
        for group in rules.groups.values_mut() {
            group.open.clear();
        }
        self.logic.purge(&mut self.log, self.next_request, queue);
        self.note()
    }

    pub(super) fn held(&self) -> impl Iterator<Item = ((HandleId, u32), (u32, u64))> + '_ {
        let gone = |gone: &Gone| ((gone.handle, gone.slot), (gone.attempt, gone.sequence));
        let with = self.model.queues.values().flat_map(|queue| {
            queue.groups.values().flat_map(|group| {
                group.open.iter().filter_map(|(sequence, state)| match state {
                    State::With { handle, slot, attempt, .. } => {
                        Some(((*handle, *slot), (*attempt, *sequence)))
                    }
                    _ => None,
                })
            })
        });
        with.chain(self.gone.iter().map(gone))
    }

    /// The model at this place of the log, if everything is in it.
    pub(super) fn note(&mut self) -> Check {
        let flushed = self.logic.flush(&mut self.log);
        self.records()?;
        if flushed {
            let last = self.log.last();
            for (_, _, lsn) in &mut self.unreleased {
                lsn.get_or_insert(last);
            }
            self.history.retain(|(lsn, _)| *lsn < last);
            self.history.push_back((last, self.model.clone()));
        }
        Ok(())
    }

    pub(super) fn durable_to(&mut self, lsn: Lsn) -> Check {
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
            let to = to.map_or(end, |(position, _, _)| *position);
            self.released.insert(queue, to);
            self.logic.released(self.producer(queue).0, to);
        }
        Ok(())
    }

    pub(super) fn dispatch(&mut self) -> Check {
        self.port.blind = self.random.below(3) == 0;
        self.logic.dispatch(&mut self.log, &mut self.port, at_ms(self.ms));
        self.records()?;
        self.events()
    }

    fn step(&mut self) -> Check {
        match self.random.below(100) {
            0..12 => self.publish()?,
            12..16 => self.publish_named()?,
            16 | 17 => self.transact()?,
            18 => self.attach_named()?,
            19 if self.random.below(3) == 0 => self.detach_named(),
            19 => self.attach_named()?,
            20..26 => self.open()?,
            26..28 => self.close(),
            28..54 => self.ask()?,
            54 => self.replace_producer()?,
            55..58 => self.credit()?,
            58..62 => self.room(),
            62..69 => self.time()?,
            69 if !self.log.full => self.group()?,
            70 if !self.log.full && self.random.below(2) == 0 => self.edit()?,
            70 if !self.log.full => self.purge()?,
            69..72 => self.log.full = !self.log.full,
            72..82 => self.late_disk()?,
            82..92 => self.dispatch()?,
            92..94 => {
                // With acknowledgements that wait for room it would be ahead of the log.
                self.log.full = false;
                self.note()?;
                self.log.write_checkpoint(&self.logic);
            }
            94..97 => self.settle()?,
            97 => self.crash(false)?,
            _ => self.crash(true)?,
        }
        if self.random.below(3) > 0 {
            self.note()?;
        }
        // With choices of its own: the programs stay what they are.
        let mut random = Random::new(self.log.last());
        if random.below(16) == 0 {
            self.needed(&mut random)?;
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
                let client =
                    Client { group, credit: 4096, blocked: false, ending: false, skipped: 0 };
                self.consumers.insert(handle, client);
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
