//! A process that uses a journal at random, and what it was promised at which point of the disk's history.

use std::time::{Duration, Instant};

use ringmain::disk::simulated::{SimulatedDisk, Simulation};
use ringmain::journal::{AppendError, Config, Fetch, Journal, Lsn, OpenError, Ready};

use super::model::{Model, Operation, What, body};
use super::owner::Owner;
use crate::random::Random;

/// For what ends at once.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Small segments, so that a short run has many.
pub fn config() -> Config {
    Config {
        segment_bytes: 64 << 10,
        batch_bytes: 6 << 10,
        cache_bytes: 48 << 10,
        journal_id: 0x0123_4567_89ab_cdee,
        spares: 2,
        kept: 0,
        ..Config::default()
    }
}

/// What was promised at a point of the history.
#[derive(Debug, Clone, Copy)]
pub struct Promise {
    pub point: usize,
    /// Confirmed.
    pub durable: Lsn,
    /// Nothing beyond was ever appended.
    pub appended: Lsn,
}

/// A process with an open journal.
#[derive(Debug)]
pub struct Driver {
    pub simulation: Simulation,
    pub journal: Journal<SimulatedDisk>,
    pub owner: Owner,
    pub model: Model,
    pub promises: Vec<Promise>,
    /// The journal failed.
    pub failed: bool,
    /// A message that is there was not to be had.
    pub complaint: Option<String>,
    /// Nobody takes the messages of one queue, and those of the others are taken soon: the cleaner has work.
    stuck: bool,
    random: Random,
    now: Instant,
}

impl Driver {
    /// Opens the journal of a disk. The model keeps what is there.
    pub fn open(simulation: &Simulation, model: Model, seed: u64) -> Result<Self, OpenError> {
        Self::open_with(simulation, model, seed, config().segment_bytes)
    }

    /// The same; new segments have this length.
    pub fn open_with(
        simulation: &Simulation,
        mut model: Model,
        seed: u64,
        segment_bytes: u64,
    ) -> Result<Self, OpenError> {
        let mut owner = Owner::default();
        let config = Config {
            segment_bytes,
            // As in life: no two new journals have the same number, even if the second one takes the place of one of which
            // nothing was left but batches behind a torn beginning.
            journal_id: config().journal_id + u128::from(seed),
            spares: if seed.is_multiple_of(2) { Config::default().spares } else { config().spares },
            kept: if seed.is_multiple_of(4) { Config::default().kept } else { config().kept },
            ..config()
        };
        let (journal, report) = Journal::open(simulation.disk(), config, &mut owner)?;
        model.truncate(report.last_lsn);
        let mut driver = Self {
            simulation: simulation.clone(),
            journal,
            owner,
            model,
            promises: Vec::new(),
            failed: false,
            complaint: None,
            stuck: !seed.is_multiple_of(3),
            random: Random::new(seed),
            now: Instant::now(),
        };
        driver.promise();
        Ok(driver)
    }

    fn promise(&mut self) {
        let (durable, appended) = (self.journal.durable(), self.journal.last_lsn());
        self.promises.push(Promise { point: self.simulation.point(), durable, appended });
    }

    /// What was promised when that many things had happened.
    pub fn promised(&self, point: usize) -> (Lsn, Lsn) {
        let before = self.promises.iter().take_while(|promise| promise.point <= point);
        let durable = before.map(|promise| promise.durable).max().unwrap_or(0);
        let after = self.promises.iter().find(|promise| promise.point >= point);
        let last = self.promises.last().map_or(0, |promise| promise.appended);
        (durable, after.map_or(last, |promise| promise.appended))
    }

    pub fn submit(&mut self) {
        self.journal.submit(&self.owner, self.now);
        self.promise();
    }

    pub fn reap(&mut self) -> u32 {
        let progress = self.journal.reap();
        self.failed |= progress.failed.is_some();
        self.promise();
        progress.reads
    }

    fn note(&mut self, lsn: Lsn, what: What, ends_group: bool) {
        self.model.operations.push(Operation { lsn, what, ends_group });
    }

    fn publish(&mut self, queue: u64, ends_group: bool) -> Result<(), AppendError> {
        let length = match self.random.below(20) {
            0 => 7_000,
            1..4 => 1 + self.random.below(2_500),
            4 => 0,
            _ => self.random.below(400),
        };
        let sequence = self.owner.state().get(&queue).map_or(1, |queue| queue.next);
        let body = body(queue, sequence, length);
        let sequence = self.owner.publish(&mut self.journal, queue, &body)?;
        let what = What::Publish { queue, sequence, length };
        self.note(self.journal.last_lsn(), what, ends_group);
        Ok(())
    }

    /// Mostly the oldest message.
    fn acknowledge(&mut self, queue: u64) -> Result<(), AppendError> {
        let skip = if self.random.below(6) == 0 { self.random.below(8) } else { 0 };
        let state = self.owner.state().get(&queue);
        let Some(sequence) = state.and_then(|queue| queue.unacknowledged.iter().nth(skip).copied())
        else {
            return Ok(());
        };
        self.owner.acknowledge(&mut self.journal, queue, sequence)?;
        self.note(self.journal.last_lsn(), What::Ack { queue, sequence }, true);
        Ok(())
    }

    /// A short message in a batch of its own.
    pub fn publish_small(&mut self) {
        let sequence = self.owner.state().get(&1).map_or(1, |queue| queue.next);
        let bytes = body(1, sequence, 33);
        if self.owner.publish(&mut self.journal, 1, &bytes).is_ok() {
            let what = What::Publish { queue: 1, sequence, length: 33 };
            self.note(self.journal.last_lsn(), what, true);
        }
    }

    pub fn pass_second(&mut self) {
        self.now += Duration::from_millis(1_001);
    }

    /// Two messages for two queues, together.
    fn publish_group(&mut self) {
        if !self.journal.has_room() {
            return;
        }
        self.journal.begin();
        let first = self.publish(1, false);
        let second = self.publish(2, true);
        self.journal.commit();
        assert!(first.is_ok() && second.is_ok(), "there was room for a group");
    }

    /// One of the many things that a process may do next.
    pub fn step(&mut self) {
        self.now += Duration::from_millis(self.random.below(4) as u64);
        let mut queue = 1 + self.random.below(3) as u64;
        let ready = self.journal.is_ready() == Ready::Ready;
        match self.random.below(16) {
            0..5 if ready => {
                if self.stuck && self.random.below(8) == 0 {
                    queue = 4;
                }
                let _ = self.publish(queue, true);
            }
            5 if ready => self.publish_group(),
            6..10 if self.journal.has_room() => {
                for _ in 0..if self.stuck { 3 } else { 1 } {
                    let _ = self.acknowledge(queue);
                }
            }
            10..13 => self.submit(),
            13 => {
                self.now += Duration::from_millis(11);
                self.submit();
            }
            14 if self.random.below(2) == 0 => self.look(),
            _ => {
                let in_flight = self.simulation.in_flight();
                if !in_flight.is_empty() {
                    let one = &in_flight[self.random.below(in_flight.len())];
                    self.simulation.release(one.ticket);
                }
                self.reap();
            }
        }
    }

    /// A durable message that is not acknowledged can be had at any time.
    fn look(&mut self) {
        let durable = self.journal.durable();
        let known = self.model.operations.partition_point(|operation| operation.lsn <= durable);
        if known == 0 {
            return;
        }
        let What::Publish { queue, sequence, length } =
            self.model.operations[self.random.below(known)].what
        else {
            return;
        };
        if !self.owner.state().get(&queue).is_some_and(|it| it.unacknowledged.contains(&sequence)) {
            return;
        }
        let complaint = match self.journal.message(queue, sequence) {
            Fetch::Ready(stored) if stored.body == body(queue, sequence, length) => return,
            // A disk may be bad, but nothing vanishes.
            Fetch::Pending | Fetch::Failed(_) => return,
            other => format!("{queue}/{sequence} of {length} bytes: {other:?}"),
        };
        self.complaint.get_or_insert(complaint);
    }

    /// Lets everything come to its end, the witness included.
    pub fn settle(&mut self) {
        for _ in 0..200 {
            self.now += Duration::from_millis(11);
            self.submit();
            self.simulation.release_all();
            self.reap();
            let done = self.journal.durable() == self.journal.last_lsn()
                && self.simulation.in_flight().is_empty()
                && self.journal.is_ready() != Ready::Full;
            if done || self.failed {
                return;
            }
        }
    }

    /// Acknowledges everything, one by one: however full the disk is, that goes on, and then there is room for messages.
    pub fn drain(&mut self) -> Result<(), String> {
        self.settle();
        for queue in 1..=4 {
            while self.owner.state().get(&queue).is_some_and(|it| !it.unacknowledged.is_empty()) {
                let mut acknowledged = self.acknowledge(queue);
                for _ in 0..2 {
                    // With nothing in flight the next segment is still to be begun.
                    self.settle();
                    if acknowledged.is_err() {
                        acknowledged = self.acknowledge(queue);
                    }
                }
                self.settle();
                if acknowledged.is_err() || self.journal.durable() < self.journal.last_lsn() {
                    let figures = self.journal.statistics();
                    let files = self.simulation.files();
                    return Err(format!(
                        "acknowledgements are stuck ({acknowledged:?}): {figures:?} {files:?}"
                    ));
                }
            }
        }
        for _ in 0..8 {
            self.pass_second();
            self.settle();
        }
        match self.journal.is_ready() {
            Ready::Ready => Ok(()),
            other => Err(format!("{other:?} without a message: {:?}", self.simulation.files())),
        }
    }

    /// A message, whatever it takes; `None` if there is none.
    pub fn fetch(&mut self, queue: u64, sequence: u64) -> Result<Option<Vec<u8>>, String> {
        for _ in 0..64 {
            match self.journal.message(queue, sequence) {
                Fetch::Ready(stored) => {
                    if (stored.queue, stored.sequence) != (queue, sequence) {
                        return Err(format!("asked for {queue}/{sequence}, got {stored:?}"));
                    }
                    return Ok(Some(stored.body.to_vec()));
                }
                Fetch::Missing => return Ok(None),
                Fetch::Failed(damage) => return Err(damage.to_string()),
                Fetch::Pending => {}
            }
            self.simulation.release_all();
            self.reap();
        }
        Err(format!("the read of {queue}/{sequence} does not come to its end"))
    }

    /// That the journal holds what it must: at least what was confirmed, at most what was appended, nothing else.
    pub fn check(&mut self, full: &Model, (durable, appended): (Lsn, Lsn)) -> Result<(), String> {
        if let Some(complaint) = &self.complaint {
            return Err(complaint.clone());
        }
        let last = self.journal.durable();
        if last < durable {
            return Err(format!("confirmed up to {durable}, recovered up to {last}"));
        }
        if last > appended {
            return Err(format!("appended up to {appended}, recovered up to {last}"));
        }
        let expected = full.state_at(last)?;
        if *self.owner.state() != expected.queues {
            let found = self.owner.state();
            return Err(format!("at {last}: expected {:?}, found {found:?}", expected.queues));
        }
        for ((queue, sequence), length) in &expected.lengths {
            let found = self.fetch(*queue, *sequence)?;
            if found.as_deref() != Some(&body(*queue, *sequence, *length)[..]) {
                let found = found.map(|bytes| bytes.len());
                return Err(format!("{queue}/{sequence}: {found:?}, not {length} bytes"));
            }
        }
        for (queue, state) in &expected.queues {
            if self.fetch(*queue, state.next)?.is_some() {
                return Err(format!("{queue}/{}: an invented message", state.next));
            }
        }
        Ok(())
    }
}
