//! Far messages of many queues: who waits, and for whom is read ahead.

use std::time::{Duration, Instant};

use super::{Config, FLAG_MESSAGE, Fetch, Journal, Ready, RecordRef, Replay, Snapshot, Stored};
use crate::disk::simulated::Simulation;

/// Needs everything, remembers nothing.
struct Owner;

impl Snapshot for Owner {
    fn write(&self, _: &mut dyn FnMut(RecordRef<'_>)) {}

    fn is_needed(&self, _: u64, _: u64, _: u64) -> bool {
        true
    }

    fn needed(&self, _: u64, first: u64, last: u64, _: usize, parts: &mut Vec<(u64, u64)>) -> u64 {
        parts.push((first, last));
        last + 1
    }
}

impl Replay for Owner {
    fn checkpoint_begin(&mut self) {}

    fn record(&mut self, _: Stored<'_>) -> Result<(), String> {
        Ok(())
    }

    fn checkpoint_end(&mut self) {}
}

/// A closed journal with so many messages of 4 KiB in each queue, one queue behind the other.
fn backlog(queues: &[u64]) -> (Simulation, Config) {
    let simulation = Simulation::new();
    let config = Config {
        segment_bytes: 4 << 20,
        batch_bytes: 32 << 10,
        cache_bytes: 1 << 20,
        journal_id: 9,
        ..Config::default()
    };
    let (mut journal, _) =
        Journal::open(simulation.disk(), config.clone(), &mut Owner).expect("a new journal");
    let body = [7; 4096];
    for (queue, messages) in (1..).zip(queues) {
        for sequence in 1..=*messages {
            while journal.is_ready() != Ready::Ready {
                journal.submit(&Owner, Instant::now());
                journal.reap();
            }
            let parts = &[&body[..]];
            let record = RecordRef { kind: 1, flags: FLAG_MESSAGE, queue, sequence, parts };
            journal.append(record).expect("it is ready");
        }
    }
    journal.close(&Owner, Duration::from_secs(60)).1.expect("a healthy disk");
    (simulation, config)
}

#[test]
fn those_who_went_away_do_not_keep_others_from_reading_ahead() {
    // More than is kept of what was read.
    const LAST: u64 = 5_000;
    let mut queues = vec![300; 8];
    queues.push(LAST);
    let (simulation, config) = backlog(&queues);
    let last = queues.len() as u64;
    let waits = |begun: u64| {
        let (mut journal, _) =
            Journal::open(simulation.disk(), config.clone(), &mut Owner).expect("opens");
        for queue in 1..=begun {
            while matches!(journal.message(queue, 1), Fetch::Pending) {
                journal.reap();
            }
        }
        let mut waits = 0;
        for sequence in 1..=LAST {
            while matches!(journal.message(last, sequence), Fetch::Pending) {
                waits += u32::from(sequence > LAST * 3 / 4);
                journal.reap();
            }
        }
        waits
    };
    let (alone, behind_others) = (waits(0), waits(last - 1));
    assert!(behind_others <= alone + 4, "{behind_others} waits, {alone} alone");
}

/// Those who come first in each turn do not take every place that becomes free, and what is read is still there when its turn comes.
#[test]
fn whoever_waits_for_a_read_gets_it_in_turn() {
    const MESSAGES: u64 = 300;
    let (simulation, config) = backlog(&[MESSAGES; 48]);
    let (mut journal, _) = Journal::open(simulation.disk(), config, &mut Owner).expect("opens");
    let mut next = [1; 48];
    for _ in 0..6 {
        for (queue, next) in (1..).zip(&mut next) {
            while *next <= MESSAGES && matches!(journal.message(queue, *next), Fetch::Ready(_)) {
                *next += 1;
            }
        }
        journal.reap();
    }
    assert!(next.iter().all(|next| *next > 1), "some get nothing: {next:?}");
}
