//! A journal that is opened with segments of another length than before, on a disk that is full.

use std::time::{Duration, Instant};

use ringmain::disk::simulated::{Fault, SimulatedDisk, Simulation, Site};
use ringmain::journal::{AppendError, Config, Journal, Ready, Room, verify};
use ringmain_faults::journal::owner::Owner;
use ringmain_faults::random::Random;

const UNIT: u64 = 64 << 10;

fn config(segment_bytes: u64) -> Config {
    Config {
        segment_bytes,
        batch_bytes: 8 << 10,
        cache_bytes: 32 << 10,
        journal_id: 7,
        ..Config::default()
    }
}

/// A process whose clock is its own.
struct Process {
    simulation: Simulation,
    journal: Journal<SimulatedDisk>,
    owner: Owner,
    now: Instant,
}

impl Process {
    fn open(simulation: &Simulation, config: Config) -> Self {
        let mut owner = Owner::default();
        let (journal, _) = Journal::open(simulation.disk(), config, &mut owner).expect("opens");
        let simulation = simulation.clone();
        let mut process = Self { simulation, journal, owner, now: Instant::now() };
        process.settle();
        process
    }

    /// Some seconds in which nobody does anything.
    fn settle(&mut self) {
        for _ in 0..60 {
            self.now += Duration::from_millis(101);
            self.journal.submit(&self.owner, self.now);
            assert_eq!(self.journal.reap().failed, None);
        }
        assert_eq!(self.journal.durable(), self.journal.last_lsn());
    }

    /// Until the disk is full.
    fn fill(&mut self, bytes: usize) {
        while self.journal.is_ready() == Ready::Ready {
            self.owner.publish(&mut self.journal, 1, &vec![1; bytes]).expect("there is room");
            self.settle();
        }
        assert!(matches!(self.journal.is_ready(), Ready::NoSpace { .. }));
    }

    /// The oldest message that is left, at once.
    fn acknowledge(&mut self, queue: u64) -> bool {
        let acked = self.try_to_acknowledge(queue);
        assert!(!matches!(acked, Some(Err(_))), "{queue}: {:?}", self.simulation.files());
        acked.is_some()
    }

    fn try_to_acknowledge(&mut self, queue: u64) -> Option<Result<(), AppendError>> {
        let state = self.owner.state().get(&queue);
        let sequence = state.and_then(|queue| queue.unacknowledged.first().copied())?;
        let acked = self.owner.acknowledge(&mut self.journal, queue, sequence);
        for _ in 0..4 {
            self.now += Duration::from_millis(11);
            self.journal.submit(&self.owner, self.now);
            assert_eq!(self.journal.reap().failed, None);
        }
        Some(acked)
    }

    fn drain(&mut self) {
        while self.acknowledge(1) {}
        self.settle();
    }

    /// The same where free files are exchanged meanwhile: acknowledgements may have to wait for that.
    fn drain_patiently(&mut self) {
        let mut waits = 0;
        while let Some(acked) = self.try_to_acknowledge(1) {
            if acked.is_err() {
                self.settle();
                waits += 1;
                assert!(waits < 10, "{:?}", self.simulation.files());
            }
        }
        self.settle();
    }

    /// That another process finds the same.
    fn expect_the_same(self) {
        drop(self.journal);
        let mut again = Owner::default();
        Journal::open(self.simulation.disk(), config(UNIT), &mut again).expect("opens");
        assert_eq!(again.state(), self.owner.state());
        verify(&mut self.simulation.disk()).expect("nothing is damaged");
    }
}

/// Lengths before and after, in units, for a disk of twelve.
const SIZES: [(u64, u64); 7] = [(1, 2), (1, 3), (2, 3), (1, 1), (2, 1), (3, 1), (3, 2)];

#[test]
fn acks_go_on_with_segments_of_another_length_and_all_of_it_comes_back() {
    for spares in [2, 3] {
        for (before, after) in SIZES {
            let simulation = Simulation::new();
            simulation.set_capacity(Some(12 * UNIT));
            let config = |units| Config { spares, ..config(units * UNIT) };
            let mut process = Process::open(&simulation, config(before));
            process.fill(1_000);
            drop(process);
            let mut process = Process::open(&simulation, config(after));
            let mut acked = 0;
            while process.acknowledge(1) {
                acked += 1;
                // Time and again it dies.
                if acked % 40 == 0 {
                    drop(process);
                    process = Process::open(&simulation, config(after));
                }
            }
            process.settle();
            assert_eq!(process.journal.is_ready(), Ready::Ready, "{spares}: {before} {after}");
            assert_eq!(process.journal.room(), Room::Enough);
            process.fill(1_000);
            process.drain();
            assert_eq!(process.journal.is_ready(), Ready::Ready);
            let files = simulation.files();
            assert!(files.iter().all(|(_, bytes)| *bytes >= after * UNIT), "{files:?}");
            process.expect_the_same();
        }
    }
}

#[test]
fn longer_segments_than_the_disk_has_room_for_take_acks_and_no_messages() {
    let simulation = Simulation::new();
    simulation.set_capacity(Some(12 * UNIT));
    let mut process = Process::open(&simulation, config(UNIT));
    process.fill(1_000);
    drop(process);
    let mut process = Process::open(&simulation, config(64 * UNIT));
    process.drain();
    assert!(matches!(process.journal.is_ready(), Ready::NoSpace { .. }));
    let Room::Lacking(lack) = process.journal.room() else { panic!("there is room") };
    assert_eq!((lack.files, lack.file_bytes), (4, 64 * UNIT));
    // Others can be carried out, but nothing that is long.
    assert_eq!(process.journal.is_stuck(), None);
    assert_eq!(process.owner.publish(&mut process.journal, 2, b"short"), Ok(1));
    let long = process.owner.publish(&mut process.journal, 2, &[7; 20_000]);
    assert_eq!(long, Err(AppendError::Full));
    process.settle();
    drop(process);
    // With room it goes on; nothing that was there is lost.
    simulation.set_capacity(Some(500 * UNIT));
    let mut process = Process::open(&simulation, config(64 * UNIT));
    assert_eq!(process.journal.is_ready(), Ready::Ready);
    assert_eq!(process.owner.publish(&mut process.journal, 2, &[7; 20_000]), Ok(2));
    process.settle();
    let files = simulation.files();
    assert!(files.iter().filter(|(_, bytes)| *bytes == UNIT).count() <= 1, "{files:?}");
    process.expect_the_same();
}

/// Room that somebody else makes is taken without a restart, in the middle of acknowledgements.
#[test]
fn service_comes_back_as_soon_as_there_is_room() {
    let simulation = Simulation::new();
    simulation.set_capacity(Some(12 * UNIT));
    let mut process = Process::open(&simulation, config(UNIT));
    process.fill(1_000);
    drop(process);
    let mut process = Process::open(&simulation, config(4 * UNIT));
    for _ in 0..10 {
        assert!(process.acknowledge(1));
    }
    assert!(matches!(process.journal.is_ready(), Ready::NoSpace { .. }));
    simulation.set_capacity(Some(32 * UNIT));
    process.settle();
    assert_eq!(process.journal.is_ready(), Ready::Ready);
    process.owner.publish(&mut process.journal, 2, &[7; 50_000]).expect("there is room");
    process.settle();
    process.expect_the_same();
}

/// A stuck queue holds every segment: the cleaner makes room in short files, too.
#[test]
fn short_segments_of_a_full_disk_are_cleaned() {
    for (before, after) in [(1, 2), (1, 3), (2, 1), (3, 1)] {
        let simulation = Simulation::new();
        simulation.set_capacity(Some(24 * UNIT));
        let mut process = Process::open(&simulation, config(before * UNIT));
        let mut number = 0;
        while process.journal.is_ready() == Ready::Ready {
            let queue = if number % 20 == 0 { 9 } else { 1 };
            let message = process.owner.publish(&mut process.journal, queue, &[1; 1_000]);
            message.expect("there is room");
            process.settle();
            number += 1;
        }
        drop(process);
        let mut process = Process::open(&simulation, config(after * UNIT));
        process.drain();
        assert_eq!(process.journal.is_ready(), Ready::Ready, "{before} {after}");
        assert!(process.journal.statistics().cleaned > 0);
        assert!(!process.owner.state()[&9].unacknowledged.is_empty());
        process.fill(1_000);
        process.expect_the_same();
    }
}

/// A disk on which too long a length was tried first, with nothing in the journal or a little.
#[test]
fn free_files_that_are_too_long_make_room_for_shorter_ones() {
    for (capacity, before, after) in [(13, 4, 2), (13, 4, 1), (14, 4, 3), (15, 5, 2), (25, 8, 3)] {
        for backlog in [0, 30] {
            let case = format!("{capacity}: {before} {after}, {backlog}");
            let simulation = Simulation::new();
            simulation.set_capacity(Some(capacity * UNIT));
            let mut process = Process::open(&simulation, config(UNIT));
            for _ in 0..backlog {
                process.owner.publish(&mut process.journal, 1, &[1; 1_000]).expect("there is room");
                process.settle();
            }
            drop(process);
            // There is room for three, and messages need four.
            let mut process = Process::open(&simulation, config(before * UNIT));
            process.drain();
            assert!(matches!(process.journal.is_ready(), Ready::NoSpace { .. }), "{case}");
            drop(process);
            let mut process = Process::open(&simulation, config(after * UNIT));
            let files = simulation.files();
            assert_eq!(process.journal.is_ready(), Ready::Ready, "{case}: {files:?}");
            assert_eq!(process.journal.room(), Room::Enough, "{case}");
            for _ in 0..3 {
                process.fill(1_000);
                process.drain_patiently();
                assert_eq!(process.journal.is_ready(), Ready::Ready, "{case}");
            }
            process.expect_the_same();
        }
    }
}

/// Whatever lengths were tried before, and however each of those processes died: where four files of the last length fit on the disk,
/// service comes back.
#[test]
fn any_lengths_one_after_the_other_end_in_service() {
    let mut random = Random::new(7);
    for round in 0..500 {
        let capacity = 8 + random.below(24);
        let simulation = Simulation::new();
        simulation.set_capacity(Some(capacity as u64 * UNIT));
        let starts = 1 + random.below(5);
        let mut case = format!("{round}: {capacity},");
        for start in 0..starts {
            let is_last = start + 1 == starts;
            let units = 1 + random.below(capacity / if is_last { 4 } else { 2 });
            case += &format!(" {units}");
            let mut process = Process::open(&simulation, config(units as u64 * UNIT));
            if is_last {
                process.drain_patiently();
                let files = simulation.files();
                assert_eq!(process.journal.is_ready(), Ready::Ready, "{case}: {files:?}");
                process.owner.publish(&mut process.journal, 1, b"one").expect("there is room");
                process.settle();
                process.expect_the_same();
                break;
            }
            for _ in 0..random.below(60) {
                if process.journal.is_ready() == Ready::Ready {
                    let bytes = [1; 1_000];
                    process.owner.publish(&mut process.journal, 1, &bytes).expect("there is room");
                    process.settle();
                }
            }
            for _ in 0..random.below(60) {
                process.try_to_acknowledge(1);
            }
        }
    }
}

/// A file that cannot be made for another reason than room: that is no reason to give others up.
#[test]
fn long_files_stay_while_no_file_can_be_made() {
    let simulation = Simulation::new();
    simulation.set_capacity(Some(13 * UNIT));
    drop(Process::open(&simulation, config(4 * UNIT)));
    let before = simulation.files();
    simulation.set_capacity(Some(100 * UNIT));
    let made = simulation.calls(Site::BeginCreate);
    for nth in 1..=20 {
        simulation.fail(Site::BeginCreate, made + nth, Fault::Error(libc::EMFILE));
    }
    let mut process = Process::open(&simulation, config(2 * UNIT));
    assert_eq!(simulation.files(), before);
    assert!(matches!(process.journal.is_ready(), Ready::NoSpace { .. }));
    for _ in 0..4 {
        process.settle();
    }
    assert_eq!(process.journal.is_ready(), Ready::Ready);
    process.expect_the_same();
}
