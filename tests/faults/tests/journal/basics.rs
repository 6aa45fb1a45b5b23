//! The journal on a simulated disk: what goes in comes out, also after it was opened again.

use std::time::{Duration, Instant};

use ringmain::disk::simulated::{SimulatedDisk, Simulation};
use ringmain::journal::{AppendError, Config, Fetch, Journal, OpenError, Ready, inspect, verify};
use ringmain_faults::journal::driver::PATIENCE;
use ringmain_faults::journal::owner::Owner;

fn config() -> Config {
    Config {
        segment_bytes: 64 << 10,
        batch_bytes: 8 << 10,
        cache_bytes: 32 << 10,
        journal_id: 7,
        ..Config::default()
    }
}

fn open(simulation: &Simulation) -> (Journal<SimulatedDisk>, Owner) {
    let mut owner = Owner::default();
    let (journal, report) = Journal::open(simulation.disk(), config(), &mut owner).expect("opens");
    assert_eq!(report.last_lsn, journal.durable());
    (journal, owner)
}

/// Lets everything that was begun come to its end.
fn settle(journal: &mut Journal<SimulatedDisk>, owner: &Owner) {
    for _ in 0..100 {
        journal.submit(owner, Instant::now());
        let progress = journal.reap();
        assert_eq!(progress.failed, None);
    }
    assert_eq!(journal.durable(), journal.last_lsn());
}

fn fetch(journal: &mut Journal<SimulatedDisk>, queue: u64, sequence: u64) -> Option<Vec<u8>> {
    for _ in 0..10 {
        match journal.message(queue, sequence) {
            Fetch::Ready(stored) => {
                assert_eq!((stored.queue, stored.sequence), (queue, sequence));
                return Some(stored.body.to_vec());
            }
            Fetch::Missing => return None,
            Fetch::Failed(damage) => panic!("{damage}"),
            Fetch::Pending => {
                journal.reap();
            }
        }
    }
    panic!("a read does not come to its end");
}

#[test]
fn records_survive_reopening() {
    let simulation = Simulation::new();
    let (mut journal, mut owner) = open(&simulation);
    assert_eq!(journal.is_ready(), Ready::Full);
    settle(&mut journal, &owner);
    assert_eq!(journal.is_ready(), Ready::Ready);
    for number in 0..500 {
        owner
            .publish(&mut journal, number % 3, &number.to_le_bytes().repeat(40))
            .expect("there is room");
        settle(&mut journal, &owner);
    }
    assert!(journal.statistics().segments > 2, "{:?}", journal.statistics());
    for queue in 0..3 {
        for (sequence, body) in owner.messages(queue) {
            assert_eq!(fetch(&mut journal, queue, sequence).as_ref(), Some(&body));
        }
    }
    assert!(journal.statistics().reads > 0, "some are far");
    settle_witnessed(&mut journal, &owner);
    journal.close(&owner, PATIENCE).1.expect("a healthy disk");
    let (_, report) = Journal::open(simulation.disk(), config(), &mut Owner::default())
        .expect("opens, and changes nothing");
    assert_eq!((report.clean, report.cut_batches), (true, 0), "{report:?}");
    let (mut journal, again) = open(&simulation);
    assert_eq!(again.state(), owner.state());
    for queue in 0..3 {
        for (sequence, body) in owner.messages(queue) {
            assert_eq!(fetch(&mut journal, queue, sequence).as_ref(), Some(&body));
        }
    }
    owner = again;
    settle(&mut journal, &owner);
    owner.publish(&mut journal, 9, b"after").expect("there is room");
    settle(&mut journal, &owner);
    assert_eq!(fetch(&mut journal, 9, 1), Some(b"after".to_vec()));
}

#[test]
fn space_comes_back_when_everything_is_acknowledged() {
    let simulation = Simulation::new();
    let (mut journal, mut owner) = open(&simulation);
    settle(&mut journal, &owner);
    for _ in 0..3_000 {
        let sequence = owner.publish(&mut journal, 1, &[5; 200]).expect("there is room");
        owner.acknowledge(&mut journal, 1, sequence).expect("there is room");
        settle_witnessed(&mut journal, &owner);
    }
    let statistics = journal.statistics();
    assert!(statistics.freed > 5, "{statistics:?}");
    assert!(simulation.files().len() <= 6, "{:?}", simulation.files());
    drop(journal);
    let (_, again) = open(&simulation);
    assert_eq!(again.state(), owner.state());
}

/// What is acknowledged in one go leaves files that the next burst finds; after a pause only those that are held ready.
#[test]
fn freed_files_are_used_again_and_given_back() {
    let simulation = Simulation::new();
    let (mut journal, mut owner) = open(&simulation);
    let mut burst = |journal: &mut Journal<SimulatedDisk>| {
        let mut sequences = Vec::new();
        for number in 0..500 {
            sequences.push(owner.publish(journal, 1, &[5; 200]).expect("there is room"));
            if number % 20 == 0 {
                settle(journal, &owner);
            }
        }
        settle(journal, &owner);
        for some in sequences.chunks(50) {
            for sequence in some {
                owner.acknowledge(journal, 1, *sequence).expect("there is room");
            }
            settle(journal, &owner);
        }
        settle_witnessed(journal, &owner);
        let names = simulation.files().into_iter().map(|(name, _)| name);
        names.collect::<std::collections::BTreeSet<_>>()
    };
    settle(&mut journal, &Owner::default());
    let first = burst(&mut journal);
    for _ in 0..3 {
        assert_eq!(burst(&mut journal), first);
    }
    assert!(journal.statistics().freed > 15, "{:?}", journal.statistics());
    let mut now = Instant::now();
    for _ in 0..3 {
        now += Duration::from_secs(10);
        journal.submit(&owner, now);
        journal.reap();
    }
    assert_eq!(journal.next_deadline(), None);
    let figures = journal.statistics();
    assert_eq!(figures.spares, config().spares);
    assert_eq!(simulation.files().len(), figures.spares + figures.segments);
}

fn settle_witnessed(journal: &mut Journal<SimulatedDisk>, owner: &Owner) {
    let mut now = Instant::now();
    for _ in 0..6 {
        now += Duration::from_millis(20);
        journal.submit(owner, now);
        journal.reap();
    }
}

#[test]
fn groups_are_taken_back_and_limits_are_told() {
    let simulation = Simulation::new();
    let (mut journal, mut owner) = open(&simulation);
    settle(&mut journal, &owner);
    owner.publish(&mut journal, 1, b"one").expect("there is room");
    let before = journal.last_lsn();
    journal.begin();
    let mut draft = Owner::default();
    draft.publish(&mut journal, 1, b"draft").expect("there is room");
    let too_long = vec![0; 1 << 20];
    let error = draft.publish(&mut journal, 1, &too_long);
    assert_eq!(error, Err(AppendError::TooLarge { limit_bytes: config().group_bytes_max() }));
    journal.abort();
    assert_eq!(journal.last_lsn(), before);
    owner.publish(&mut journal, 1, b"two").expect("there is room");
    settle(&mut journal, &owner);
    assert_eq!(fetch(&mut journal, 1, 1), Some(b"one".to_vec()));
    assert_eq!(fetch(&mut journal, 1, 2), Some(b"two".to_vec()));
    assert_eq!(fetch(&mut journal, 1, 3), None);
}

/// As [`settle_witnessed`], with a second between the attempts to make a file.
fn settle_slowly(journal: &mut Journal<SimulatedDisk>, owner: &Owner, now: &mut Instant) {
    for _ in 0..6 {
        *now += Duration::from_millis(1_100);
        journal.submit(owner, *now);
        assert_eq!(journal.reap().failed, None);
    }
}

#[test]
fn a_full_disk_holds_producers_up_until_there_is_room() {
    let simulation = Simulation::new();
    simulation.set_capacity(Some(6 * (64 << 10)));
    let (mut journal, mut owner) = open(&simulation);
    let mut now = Instant::now();
    settle_slowly(&mut journal, &owner, &mut now);
    let mut published = Vec::new();
    while journal.is_ready() == Ready::Ready {
        published.push(owner.publish(&mut journal, 1, &[1; 2_000]).expect("there is room"));
        settle_slowly(&mut journal, &owner, &mut now);
    }
    let Ready::NoSpace { errno, .. } = journal.is_ready() else {
        panic!("{:?}", journal.is_ready());
    };
    assert_eq!(errno, libc::ENOSPC);
    assert_eq!(journal.durable(), journal.last_lsn(), "what was taken is durable");
    // Acks go on, and make room.
    for sequence in published {
        owner.acknowledge(&mut journal, 1, sequence).expect("acks have room");
        settle_slowly(&mut journal, &owner, &mut now);
    }
    settle_slowly(&mut journal, &owner, &mut now);
    assert_eq!(journal.is_ready(), Ready::Ready);
    owner.publish(&mut journal, 1, b"again").expect("there is room");
    settle_slowly(&mut journal, &owner, &mut now);
    drop(journal);
    let (_, again) = open(&simulation);
    assert_eq!(again.state(), owner.state());
}

/// An acknowledgement by itself takes as much of the disk as many messages, and frees only one.
#[test]
fn single_acks_on_a_full_disk_make_room_in_the_end() {
    for at_once in [20_u8, 1] {
        let simulation = Simulation::new();
        simulation.set_capacity(Some(8 * (64 << 10)));
        let (mut journal, mut owner) = open(&simulation);
        let mut now = Instant::now();
        settle_slowly(&mut journal, &owner, &mut now);
        let mut published = Vec::new();
        while journal.is_ready() == Ready::Ready {
            for _ in 0..at_once {
                published.push(owner.publish(&mut journal, 1, &[1; 100]).expect("there is room"));
            }
            // More may be taken before the disk says that it is full.
            for _ in 0..6 {
                now += Duration::from_millis(20);
                journal.submit(&owner, now);
                if journal.is_ready() == Ready::Ready {
                    let message = owner.publish(&mut journal, 1, &[1; 100]);
                    published.push(message.expect("there is room"));
                }
                assert_eq!(journal.reap().failed, None);
            }
            settle_slowly(&mut journal, &owner, &mut now);
        }
        for (sequence, number) in published.into_iter().zip(0..) {
            if number % 50 == 49 {
                // A restart does not use up what is held ready.
                drop(journal);
                let (again, state) = open(&simulation);
                (journal, owner) = (again, state);
                settle_slowly(&mut journal, &owner, &mut now);
            }
            owner.acknowledge(&mut journal, 1, sequence).expect("acks have room");
            settle_slowly(&mut journal, &owner, &mut now);
        }
        settle_slowly(&mut journal, &owner, &mut now);
        assert_eq!(journal.is_ready(), Ready::Ready);
        drop(journal);
        let (_, again) = open(&simulation);
        assert_eq!(again.state(), owner.state());
    }
}

/// Closing waits for the disk, but not for ever.
#[test]
fn a_disk_that_does_not_answer_is_given_up() {
    let simulation = Simulation::new();
    let (mut journal, mut owner) = open(&simulation);
    settle(&mut journal, &owner);
    owner.publish(&mut journal, 1, b"in flight").expect("there is room");
    let lsn = journal.last_lsn();
    simulation.fall_silent();
    let (disk, closed) = journal.close(&owner, Duration::from_millis(20));
    let failure = closed.expect_err("it cannot know");
    assert_eq!((failure.errno, failure.lsn), (libc::ETIMEDOUT, lsn), "{failure}");
    drop(disk);
}

/// A free file counts for nothing; a check says how many there are, and that each can be read.
#[test]
fn free_files_are_read_as_well() {
    let simulation = Simulation::new();
    let (mut journal, owner) = open(&simulation);
    settle(&mut journal, &owner);
    let spares = journal.statistics().spares;
    journal.close(&owner, PATIENCE).1.expect("a healthy disk");
    let free = || {
        let report = verify(&mut simulation.disk()).expect("nothing is damaged");
        (report.free_files, report.free_files_used_before)
    };
    assert_eq!(free(), (spares, 0));
    let seen = inspect(&mut simulation.disk()).expect("nothing is damaged");
    let spare = seen.segments.into_iter().find(|file| file.state == "free").expect("a free file");
    simulation.flip(&spare.file, 8_192, 1);
    assert_eq!(free(), (spares, 1));
    simulation.make_unreadable(&spare.file, 8_192..12_288);
    match verify(&mut simulation.disk()) {
        Err(OpenError::Io { file, .. }) => assert_eq!(file, spare.file),
        other => panic!("{other:?}"),
    }
}

/// Processes that die as soon as their first checkpoint is there do not use up the files of a full disk: beside a segment without
/// messages, which is what messages leave to acks, one free file is enough.
#[test]
fn a_crash_loop_on_a_full_disk_leaves_files() {
    for spares in [1, 3] {
        let simulation = Simulation::new();
        let open = || {
            let (mut owner, config) = (Owner::default(), Config { spares, ..config() });
            let opened = Journal::open(simulation.disk(), config, &mut owner);
            (opened.expect("opens").0, owner)
        };
        let (mut journal, mut owner) = open();
        settle(&mut journal, &owner);
        owner.publish(&mut journal, 1, b"kept").expect("there is room");
        settle_witnessed(&mut journal, &owner);
        drop(journal);
        let (mut journal, owner) = open();
        settle_witnessed(&mut journal, &owner);
        drop(journal);
        let bytes = simulation.files().iter().map(|(_, bytes)| bytes).sum();
        simulation.set_capacity(Some(bytes));
        for round in 0..20 {
            let (mut journal, owner) = open();
            let (before, now) = (journal.durable(), Instant::now());
            for _ in 0..3 {
                // Time stands still: nothing bears witness.
                journal.submit(&owner, now);
                journal.reap();
            }
            let figures = journal.statistics();
            assert!(journal.durable() > before, "{spares}, round {round}: {figures:?}");
            assert_eq!(figures.frontier_batches, 0);
            drop(journal);
            simulation.kill(round);
        }
        let (mut journal, mut owner) = open();
        settle_witnessed(&mut journal, &owner);
        assert_eq!(fetch(&mut journal, 1, 1).as_deref(), Some(&b"kept"[..]));
        owner.acknowledge(&mut journal, 1, 1).expect("there is room");
        settle(&mut journal, &owner);
    }
}
