//! Readers that go through old messages at their own speed while new ones are written: each gets every message once, in order,
//! unaltered, wherever it lies at that moment.

use std::time::Instant;

use ringmain::disk::simulated::Simulation;
use ringmain::journal::{Config, Fetch, Journal, Ready};
use ringmain_faults::journal::driver::PATIENCE;
use ringmain_faults::journal::model::body;
use ringmain_faults::journal::owner::Owner;
use ringmain_faults::random::Random;

const QUEUES: usize = 2;

#[derive(Debug)]
struct Reader {
    /// Index of its queue.
    at: usize,
    queue: u64,
    next: u64,
    /// Messages that it takes at a time, at most; it changes.
    speed: usize,
    pending: u32,
}

/// The random length of a message.
fn length(queue: u64, sequence: u64) -> usize {
    let mut random = Random::new(queue << 48 | sequence);
    match random.below(40) {
        0 => 6_000,
        1..6 => 1_500,
        _ => random.below(300),
    }
}

pub(super) fn run(seed: u64, messages: u64) {
    let mut random = Random::new(seed);
    let simulation = Simulation::new();
    let config = Config {
        segment_bytes: 256 << 10,
        batch_bytes: [6 << 10, 24 << 10][random.below(2)],
        cache_bytes: [32 << 10, 128 << 10, 1 << 20][random.below(3)],
        journal_id: 9,
        ..Config::default()
    };
    let mut owner = Owner::default();
    let (mut journal, _) =
        Journal::open(simulation.disk(), config, &mut owner).expect("a new journal");
    let mut readers: Vec<Reader> = (0..1 + random.below(4))
        .map(|_| {
            let at = random.below(QUEUES);
            Reader { at, queue: 1 + at as u64, next: 1, speed: random.below(60), pending: 0 }
        })
        .collect();
    let mut written = [0_u64; QUEUES];
    let mut now = Instant::now();
    while readers.iter().any(|reader| reader.next <= messages)
        || written.iter().any(|written| *written < messages)
    {
        now += std::time::Duration::from_millis(1);
        for _ in 0..random.below(40) {
            let at = random.below(QUEUES);
            let (queue, sequence) = (1 + at as u64, written[at] + 1);
            if sequence > messages || journal.is_ready() != Ready::Ready {
                break;
            }
            let bytes = body(queue, sequence, length(queue, sequence));
            owner.publish(&mut journal, queue, &bytes).expect("it is ready");
            written[at] = sequence;
        }
        journal.submit(&owner, now);
        if random.below(3) > 0 {
            journal.reap();
        }
        for reader in &mut readers {
            if random.below(30) == 0 {
                // From asleep to as fast as can be.
                reader.speed = [0, 1, 20, 400][random.below(4)];
            }
            if written.iter().all(|written| *written == messages) {
                reader.speed = 400;
            }
            for _ in 0..reader.speed {
                if reader.next > messages {
                    break;
                }
                match journal.message(reader.queue, reader.next) {
                    Fetch::Ready(found) => {
                        let wanted =
                            body(reader.queue, reader.next, length(reader.queue, reader.next));
                        assert_eq!((found.queue, found.sequence), (reader.queue, reader.next));
                        assert_eq!(found.body, wanted, "seed {seed}: {reader:?}");
                        reader.next += 1;
                        reader.pending = 0;
                    }
                    // Not durable yet.
                    Fetch::Missing => {
                        assert!(
                            reader.next > written[reader.at]
                                || journal.durable() < journal.last_lsn()
                        );
                        break;
                    }
                    Fetch::Pending => {
                        reader.pending += 1;
                        assert!(reader.pending < 1_000, "seed {seed}: a read never ends");
                        break;
                    }
                    Fetch::Failed(damage) => panic!("seed {seed}: {damage}"),
                }
            }
        }
        let statistics = journal.statistics();
        assert!(statistics.cached_bytes < (4 << 20), "{statistics:?}");
    }
}

#[test]
fn readers_of_any_speed_get_everything_once_in_order() {
    for seed in 0..12 {
        run(seed, 1_500);
    }
}

#[test]
fn whoever_goes_through_a_backlog_reads_it_once() {
    let simulation = Simulation::new();
    let config = Config {
        segment_bytes: 1 << 20,
        batch_bytes: 32 << 10,
        cache_bytes: 4 << 20,
        journal_id: 9,
        ..Config::default()
    };
    let mut owner = Owner::default();
    let open = |owner: &mut Owner| {
        Journal::open(simulation.disk(), config.clone(), owner).expect("opens").0
    };
    let mut journal = open(&mut owner);
    let mut bytes = 0;
    for sequence in 1..=20_000 {
        while journal.is_ready() != Ready::Ready {
            journal.submit(&owner, Instant::now());
            journal.reap();
        }
        let body = body(1, sequence, 300);
        bytes += body.len();
        owner.publish(&mut journal, 1, &body).expect("it is ready");
    }
    journal.close(&owner, PATIENCE).1.expect("a healthy disk");
    let mut journal = open(&mut Owner::default());
    for sequence in 1..=20_000 {
        loop {
            match journal.message(1, sequence) {
                Fetch::Ready(found) => break assert_eq!(found.body, body(1, sequence, 300)),
                Fetch::Pending => drop(journal.reap()),
                other => panic!("{sequence}: {other:?}"),
            }
        }
    }
    // Each read has at least 128 KiB, but for the ends of segments.
    let (reads, segments) = (journal.statistics().reads, journal.statistics().segments);
    let most = bytes / (128 << 10) + 3 * segments + 8;
    assert!(reads <= most as u64, "{reads} reads of {bytes} bytes in {segments} segments");
}
