//! The cleaner: what is needed of mostly dead segments moves on, and what cannot move stays.

use std::time::{Duration, Instant};

use ringmain::disk::simulated::{SimulatedDisk, Simulation};
use ringmain::journal::format::record_bytes;
use ringmain::journal::{Config, Fetch, Journal, Ready};
use ringmain_faults::journal::driver::PATIENCE;
use ringmain_faults::journal::model::body;
use ringmain_faults::journal::owner::Owner;
use ringmain_faults::journal::rot::batches;

const SEGMENT_BYTES: u64 = 256 << 10;
/// What a segment takes: of so short a one more than a quarter is kept free for the longest group; of 64 MiB it is a fifteenth.
const ROOM_BYTES: u64 = SEGMENT_BYTES - (SEGMENT_BYTES / 4 + (16 << 10) + 8_192);
const STUCK: u64 = 9;

fn config() -> Config {
    Config {
        segment_bytes: SEGMENT_BYTES,
        batch_bytes: 16 << 10,
        cache_bytes: 64 << 10,
        journal_id: 7,
        ..Config::default()
    }
}

/// A process with a journal, its clock, and the lengths of what it has published.
struct Process {
    journal: Journal<SimulatedDisk>,
    owner: Owner,
    now: Instant,
}

impl Process {
    fn open(simulation: &Simulation) -> Self {
        let mut owner = Owner::default();
        let opened = Journal::open(simulation.disk(), config(), &mut owner);
        let (journal, _) = opened.expect("it opens");
        let mut process = Self { journal, owner, now: Instant::now() };
        process.turns(4, 0);
        process
    }

    /// Turns, with so many milliseconds between them.
    fn turns(&mut self, turns: usize, ms: u64) {
        for _ in 0..turns {
            self.now += Duration::from_millis(ms);
            self.journal.submit(&self.owner, self.now);
            assert_eq!(self.journal.reap().failed, None);
        }
    }

    fn publish(&mut self, queue: u64, length: usize) -> u64 {
        for _ in 0..100 {
            if self.journal.is_ready() == Ready::Ready {
                let sequence = self.owner.state().get(&queue).map_or(1, |queue| queue.next);
                let body = body(queue, sequence, length);
                return self.owner.publish(&mut self.journal, queue, &body).expect("it is ready");
            }
            self.turns(1, 0);
        }
        panic!("no room: {:?}", self.journal.is_ready());
    }

    fn acknowledge(&mut self, queue: u64, sequence: u64) {
        for _ in 0..100 {
            if self.owner.acknowledge(&mut self.journal, queue, sequence).is_ok() {
                return;
            }
            self.turns(1, 0);
        }
        panic!("no room for an acknowledgement");
    }

    /// Everything that is there can be had; its bytes in records.
    fn check(&mut self, length: impl Fn(u64, u64) -> usize) -> u64 {
        let state = self.owner.state().clone();
        let mut bytes = 0;
        for (queue, state) in state {
            for sequence in state.unacknowledged {
                let expected = body(queue, sequence, length(queue, sequence));
                let found = self.fetch(queue, sequence);
                assert_eq!(found, Some(expected), "{queue}/{sequence}");
                bytes += record_bytes(length(queue, sequence)) as u64;
            }
        }
        bytes
    }

    fn fetch(&mut self, queue: u64, sequence: u64) -> Option<Vec<u8>> {
        for _ in 0..20 {
            match self.journal.message(queue, sequence) {
                Fetch::Ready(stored) => return Some(stored.body.to_vec()),
                Fetch::Missing => return None,
                Fetch::Failed(damage) => panic!("{damage}"),
                Fetch::Pending => {
                    self.journal.reap();
                }
            }
        }
        panic!("a read does not come to its end");
    }

    fn used(&self) -> u64 {
        self.journal.statistics().segments as u64 * ROOM_BYTES
    }
}

/// One message in `every` is for a queue that nobody takes anything of; the others are done with soon.
fn work_queue(every: u64, messages: u64, lengths: [usize; 2]) {
    let simulation = Simulation::new();
    let mut process = Process::open(&simulation);
    let mut live = 0;
    let mut flowing = std::collections::VecDeque::new();
    let (mut most, mut at) = (0, 0);
    for number in 0..messages {
        if number % every == 0 {
            process.publish(STUCK, lengths[0]);
            live += record_bytes(lengths[0]) as u64;
        } else {
            let sequence = process.publish(1, lengths[1]);
            flowing.push_back(sequence);
        }
        if flowing.len() > 20 {
            let sequence = flowing.pop_front().expect("there are some");
            process.acknowledge(1, sequence);
        }
        if number % 8 == 0 {
            process.turns(2, 0);
        }
        let over = process.used().saturating_sub(2 * live);
        if over > most {
            (most, at) = (over, number);
        }
    }
    let figures = process.journal.statistics();
    println!(
        "one in {every}: needed at the end {live}, used at most twice that and {most} at {at}: {figures:?}"
    );
    assert!(most <= 4 * ROOM_BYTES, "{most} at {at}");
    assert!(figures.cleaned > 3, "{figures:?}");
    assert!(figures.copied_bytes * 3 <= figures.written_bytes, "{figures:?}");
    let length = |queue, _| if queue == STUCK { lengths[0] } else { lengths[1] };
    process.turns(20, 20);
    process.check(length);
    let before = process.owner.state().clone();
    assert!(process.used() <= 2 * live + 3 * ROOM_BYTES, "{:?}", process.journal.statistics());
    process.check(length);
    process.journal.close(&process.owner, PATIENCE).1.expect("a healthy disk");
    let mut again = Process::open(&simulation);
    assert_eq!(*again.owner.state(), before);
    again.check(length);
}

#[test]
fn a_stuck_queue_does_not_hold_the_disk() {
    work_queue(50, 30_000, [300, 300]);
}

#[test]
fn a_queue_that_is_stuck_with_a_tenth_of_the_messages() {
    work_queue(10, 12_000, [400, 400]);
}

#[test]
fn a_queue_that_is_stuck_with_a_fifth_of_the_messages() {
    work_queue(5, 12_000, [400, 400]);
}

#[test]
fn lengths_count_and_not_numbers() {
    work_queue(60, 12_000, [4_000, 500]);
}

#[test]
fn a_stream_is_never_cleaned() {
    let simulation = Simulation::new();
    let mut process = Process::open(&simulation);
    // Its oldest messages go one after the other, at the pace of the new ones. Batches of one message have much air around it.
    for number in 1..=3_000 {
        process.publish(1, 700);
        if number % 3 == 0 {
            process.turns(2, 11);
        }
        if number > 600 {
            process.acknowledge(1, number - 600);
        }
    }
    process.turns(20, 20);
    let figures = process.journal.statistics();
    assert!(figures.freed > 10 && figures.segments > 2, "{figures:?}");
    assert_eq!((figures.cleaned, figures.copied_bytes), (0, 0), "{figures:?}");
}

/// Segments with a few messages each of many queues, all others done with; nothing has been cleaned yet.
fn sparse(process: &mut Process, kept: &[u64]) -> u64 {
    // Acknowledged at the end only: before that nothing is worth it.
    let mut others = Vec::new();
    for number in 0..1_800_usize {
        if number % 30 == 0 {
            process.publish(kept[number / 30 % kept.len()], 500);
        } else {
            others.push(process.publish(1, 500));
        }
    }
    process.turns(4, 0);
    let segments = process.journal.statistics().segments as u64;
    for sequence in others {
        process.acknowledge(1, sequence);
    }
    segments
}

#[test]
fn copies_are_grouped_by_queue() {
    let simulation = Simulation::new();
    let mut process = Process::open(&simulation);
    let before = sparse(&mut process, &[5, 6, 7]);
    process.turns(40, 20);
    // What was freed is given back.
    process.turns(4, 10_000);
    let figures = process.journal.statistics();
    assert!(figures.cleaned > 0 && (figures.segments as u64) < before, "{before}: {figures:?}");
    // Neighbours in one batch are one run.
    assert!(figures.index_runs < 30, "{figures:?}");
    // It has come to its end.
    let deadline = process.journal.next_deadline();
    process.turns(10, 20);
    assert_eq!(process.journal.statistics(), figures);
    assert_eq!((deadline, process.journal.next_deadline()), (None, None));
    process.check(|_, _| 500);
}

#[test]
fn a_segment_that_cannot_be_read_stays_and_says_so() {
    let simulation = Simulation::new();
    let mut process = Process::open(&simulation);
    simulation.hold();
    simulation.flow();
    sparse(&mut process, &[5, 6, 7]);
    // Of the first segment everything but its beginning.
    let first = batches(&simulation).into_iter().min_by_key(|place| place.header.epoch);
    let first = first.expect("there are batches");
    simulation.make_unreadable(&first.file, 8_192..SEGMENT_BYTES);
    let mut damages = 0;
    let mut reads = Vec::new();
    for _ in 0..40 {
        process.turns(1, 20);
        if let Some(damage) = process.journal.take_damage() {
            assert_eq!(damage.file, first.file, "{damage}");
            damages += 1;
        }
        reads.push(process.journal.statistics().reads);
    }
    assert_eq!(damages, 1, "{:?}", process.journal.statistics());
    // No loop, and the others were cleaned all the same.
    assert_eq!(reads[30], reads[39]);
    let figures = process.journal.statistics();
    assert!(figures.cleaned > 0, "{figures:?}");
    assert!(batches(&simulation).iter().any(|place| place.header.epoch == first.header.epoch));
    // Nothing is lost: each message is there, or reports its damage.
    let mut lost = 0;
    let state = process.owner.state().clone();
    for (queue, state) in state {
        for sequence in state.unacknowledged {
            for _ in 0..20 {
                match process.journal.message(queue, sequence) {
                    Fetch::Ready(_) => break,
                    Fetch::Pending => {
                        process.journal.reap();
                    }
                    Fetch::Failed(_) => {
                        lost += 1;
                        break;
                    }
                    Fetch::Missing => panic!("{queue}/{sequence} has vanished"),
                }
            }
        }
    }
    assert!(lost > 0);
}

#[test]
fn on_a_full_disk_it_makes_room() {
    let simulation = Simulation::new();
    let mut process = Process::open(&simulation);
    sparse(&mut process, &[5, 6, 7]);
    let files = simulation.files().len();
    simulation.set_capacity(Some(files as u64 * SEGMENT_BYTES));
    for _ in 0..30 {
        // While it works, acks go on.
        process.turns(1, 20);
        let sequence = process.owner.state()[&5].unacknowledged.first().copied();
        if let Some(sequence) = sequence {
            process.acknowledge(5, sequence);
        }
    }
    process.turns(10, 1_100);
    let figures = process.journal.statistics();
    assert!(figures.cleaned > 0, "{figures:?}");
    assert_eq!(process.journal.is_ready(), Ready::Ready);
    process.check(|_, _| 500);
    for _ in 0..500 {
        process.publish(1, 500);
    }
}
