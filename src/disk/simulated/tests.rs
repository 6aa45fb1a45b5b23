//! The simulated disk itself.

use std::collections::BTreeSet;

use std::io;

use super::super::{BLOCK_BYTES, Buffer, Disk, Done, Durability, FileId, Operation, errno};
use super::image::SECTOR_BYTES;
use super::*;

const OPTIONS: CrashOptions = CrashOptions { limit: 4096, seed: 1, garbage: false };

fn filled(byte: u8, blocks: usize) -> Buffer {
    let mut buffer = Buffer::new(blocks * BLOCK_BYTES);
    buffer.fill(byte);
    buffer
}

/// A block that differs from zeros in its first two sectors only, so that states stay countable.
fn two_sectors(byte: u8) -> Buffer {
    let mut buffer = Buffer::new(BLOCK_BYTES);
    buffer[..2 * SECTOR_BYTES].fill(byte);
    buffer
}

fn write(file: FileId, offset: u64, buffer: Buffer, durability: Durability) -> Operation {
    Operation::Write { file, offset, buffer, durability }
}

fn first_bytes(states: CrashStates, name: &str) -> BTreeSet<Option<(u8, u8)>> {
    let first = |disk: Simulation| disk.bytes(name).map(|bytes| (bytes[0], bytes[SECTOR_BYTES]));
    states.map(first).collect()
}

#[test]
fn a_write_in_flight_may_be_there_sector_by_sector() {
    let simulation = Simulation::new();
    let mut disk = simulation.disk();
    let file = disk.create("a", 8192).unwrap();
    simulation.hold();
    disk.submit(Ticket(1), write(file, 0, two_sectors(7), Durability::Durable));
    assert_eq!(simulation.unflushed(), 1);
    disk.flush();
    let states = simulation.crash_states(simulation.point(), OPTIONS);
    assert!(states.is_exhaustive());
    let all = [(0, 0), (0, 7), (7, 0), (7, 7)].map(Some);
    assert_eq!(first_bytes(states, "a"), BTreeSet::from(all));
    let with_garbage = CrashOptions { garbage: true, ..OPTIONS };
    let states = simulation.crash_states(simulation.point(), with_garbage);
    // Nobody knows that the other six sectors hold zeros as before: garbage may be there as well.
    assert_eq!(states.is_exhaustive(), 9 * 2_usize.pow(6) <= 4096);
    assert!(simulation.release(Ticket(1)));
    let states = simulation.crash_states(simulation.point(), with_garbage);
    assert_eq!(first_bytes(states, "a"), BTreeSet::from([Some((7, 7))]));
    let mut completed = Vec::new();
    disk.reap(&mut completed);
    assert_eq!(completed.len(), 1);
    assert_eq!(completed[0].result.as_ref().ok(), Some(&Done::Whole));
}

#[test]
fn a_later_write_is_certain_after_a_sync_that_began_after_it() {
    let simulation = Simulation::new();
    let mut disk = simulation.disk();
    let file = disk.create("a", 4096).unwrap();
    disk.submit(Ticket(1), write(file, 0, two_sectors(7), Durability::Later));
    disk.flush();
    let before = simulation.point();
    assert_eq!(first_bytes(simulation.crash_states(before, OPTIONS), "a").len(), 4);
    disk.sync(file).unwrap();
    let after = first_bytes(simulation.crash_states(simulation.point(), OPTIONS), "a");
    assert_eq!(after, BTreeSet::from([Some((7, 7))]));
    // The sync is not in the history yet at its beginning.
    assert_eq!(first_bytes(simulation.crash_states(before + 1, OPTIONS), "a").len(), 4);
}

#[test]
fn a_failed_sync_makes_nothing_certain_for_this_process() {
    let simulation = Simulation::new();
    let mut disk = simulation.disk();
    let file = disk.create("a", 4096).unwrap();
    disk.submit(Ticket(1), write(file, 0, two_sectors(7), Durability::Later));
    disk.flush();
    simulation.fail(Site::Sync, 1, Fault::Error(libc::EIO));
    assert_eq!(errno(&disk.sync(file).unwrap_err()), libc::EIO);
    disk.sync(file).unwrap();
    assert_eq!(first_bytes(simulation.crash_states(simulation.point(), OPTIONS), "a").len(), 4);
    assert_eq!(simulation.fired(), [(Site::Sync, 1, Fault::Error(libc::EIO))]);
    let mut next = simulation.disk();
    let file = next.open("a").unwrap();
    next.sync(file).unwrap();
    assert_eq!(first_bytes(simulation.crash_states(simulation.point(), OPTIONS), "a").len(), 1);
}

#[test]
fn names_come_and_go_in_their_own_order() {
    let simulation = Simulation::new();
    let mut disk = simulation.disk();
    for name in ["a", "b"] {
        let file = disk.create(name, 4096).unwrap();
        disk.close(file);
    }
    disk.rename("a", "c").unwrap();
    disk.rename("c", "d").unwrap();
    disk.rename("b", "e").unwrap();
    let names = |point| -> BTreeSet<Vec<String>> {
        let states = simulation.crash_states(point, OPTIONS);
        states.map(|disk| disk.files().into_iter().map(|(name, _)| name).collect()).collect()
    };
    let both = |names: [&str; 2]| names.map(str::to_owned).to_vec();
    let possible = [["a", "b"], ["a", "e"], ["b", "c"], ["c", "e"], ["b", "d"], ["d", "e"]];
    assert_eq!(names(simulation.point()), possible.into_iter().map(both).collect());
    disk.sync_directory().unwrap();
    assert_eq!(names(simulation.point()), BTreeSet::from([both(["d", "e"])]));
}

#[test]
fn a_file_in_the_making_is_there_whole_or_not_at_all() {
    let simulation = Simulation::new();
    let mut disk = simulation.disk();
    simulation.hold();
    disk.submit(Ticket(1), Operation::Create { name: "a".to_owned(), bytes: 8192 });
    disk.flush();
    let lengths = |point| -> BTreeSet<Option<usize>> {
        let states = simulation.crash_states(point, CrashOptions::default());
        states.map(|disk| disk.bytes("a").map(|bytes| bytes.len())).collect()
    };
    assert_eq!(lengths(simulation.point()), BTreeSet::from([None, Some(8192)]));
    assert!(disk.open("a").is_err());
    disk.wait(None).unwrap();
    assert_eq!(lengths(simulation.point()), BTreeSet::from([Some(8192)]));
    let mut completed = Vec::new();
    disk.reap(&mut completed);
    let Ok(Done::Created(file)) = completed[0].result else { panic!("{completed:?}") };
    assert_eq!(errno(&disk.open("a").unwrap_err()), libc::EWOULDBLOCK);
    disk.submit(Ticket(2), Operation::Remove { file });
    disk.flush();
    assert_eq!(lengths(simulation.point()), BTreeSet::from([None, Some(8192)]));
    assert!(simulation.release(Ticket(2)));
    assert_eq!(lengths(simulation.point()), BTreeSet::from([None]));
}

#[test]
fn completions_come_in_the_order_that_the_test_wants() {
    let simulation = Simulation::new();
    let mut disk = simulation.disk();
    let file = disk.create("a", 5 * 4096).unwrap();
    simulation.hold();
    for number in 0..5 {
        let buffer = filled(u8::try_from(number).unwrap() + 1, 1);
        disk.submit(Ticket(number), write(file, number * 4096, buffer, Durability::Durable));
    }
    disk.flush();
    assert_eq!(simulation.in_flight()[3].offset, 3 * 4096);
    simulation.release(Ticket(3));
    simulation.release(Ticket(0));
    simulation.shuffle(9);
    disk.wait(None).unwrap();
    let mut completed = Vec::new();
    disk.reap(&mut completed);
    let tickets: Vec<u64> = completed.iter().map(|one| one.ticket.0).collect();
    assert_eq!(tickets, [3, 0]);
    for _ in 0..3 {
        disk.wait(None).unwrap();
        disk.reap(&mut completed);
    }
    assert_eq!(completed.len(), 5);
    assert!(completed.iter().all(|one| one.buffer.is_some()));
}

#[test]
fn a_kill_lets_any_part_land_and_takes_the_disk_away() {
    let mut seen = BTreeSet::new();
    for seed in 0..40 {
        let simulation = Simulation::new();
        let mut disk = simulation.disk();
        let file = disk.create("a", 4096).unwrap();
        simulation.hold();
        disk.submit(Ticket(1), write(file, 0, two_sectors(7), Durability::Durable));
        disk.submit(Ticket(2), Operation::Create { name: "b".to_owned(), bytes: 4096 });
        disk.flush();
        simulation.kill(seed);
        assert!(disk.list().is_err());
        let mut next = simulation.disk();
        let file = next.open("a").unwrap();
        let mut buffer = Buffer::new(4096);
        next.read(file, 0, &mut buffer).unwrap();
        seen.insert((buffer[0], buffer[SECTOR_BYTES], simulation.files().len()));
        // What the next process syncs is what it has read.
        next.sync(file).unwrap();
        next.sync_directory().unwrap();
        let files = simulation.files();
        for state in simulation.crash_states(simulation.point(), CrashOptions::default()) {
            assert_eq!(state.bytes("a").as_deref(), Some(&buffer[..]));
            assert_eq!(state.files(), files);
        }
    }
    assert_eq!(seen.len(), 8);
}

#[test]
fn faults_hit_the_call_they_are_meant_for() {
    let simulation = Simulation::new();
    let mut disk = simulation.disk();
    let file = disk.create("a", 8192).unwrap();
    simulation.fail(Site::BeginWrite, 2, Fault::Short);
    simulation.fail_call(4, Fault::Error(libc::ENOSPC));
    for byte in 1..=2 {
        let write = write(file, 0, filled(byte, 2), Durability::Durable);
        disk.submit(Ticket(byte.into()), write);
    }
    disk.submit(Ticket(3), Operation::Create { name: "b".to_owned(), bytes: 4096 });
    disk.flush();
    let mut completed = Vec::new();
    disk.reap(&mut completed);
    assert!(completed[0].result.is_ok());
    let short = completed[1].result.as_ref().unwrap_err();
    assert_eq!((short.kind(), errno(short)), (io::ErrorKind::WriteZero, libc::EIO));
    assert_eq!(errno(completed[2].result.as_ref().unwrap_err()), libc::ENOSPC);
    let bytes = simulation.bytes("a").unwrap();
    assert_eq!((bytes[0], bytes[4096]), (2, 1));
    assert_eq!((simulation.calls(Site::BeginWrite), simulation.total_calls()), (2, 4));
    // The failed write may still be there whole, or not at all.
    let states = simulation.crash_states(simulation.point(), CrashOptions { limit: 10, ..OPTIONS });
    assert!(!states.is_exhaustive());
    let states: BTreeSet<Vec<u8>> = states.filter_map(|disk| disk.bytes("a")).collect();
    assert!(states.contains(&vec![1; 8192]) && states.contains(&vec![2; 8192]));
}

#[test]
fn rot_lost_reads_and_a_full_disk() {
    let simulation = Simulation::new();
    simulation.put("a", &[5; 8192]);
    let mut disk = simulation.disk();
    let file = disk.open("a").unwrap();
    let mut buffer = Buffer::new(4096);
    simulation.flip("a", 4097, 0x81);
    disk.read(file, 4096, &mut buffer).unwrap();
    assert_eq!(buffer[..3], [5, 0x84, 5]);
    simulation.make_unreadable("a", 100..101);
    assert_eq!(errno(&disk.read(file, 0, &mut buffer).unwrap_err()), libc::EIO);
    disk.read(file, 4096, &mut buffer).unwrap();
    simulation.truncate("a", 5000);
    let short = disk.read(file, 4096, &mut buffer).unwrap_err();
    assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
    simulation.set_capacity(Some(10_000));
    assert_eq!(errno(&disk.create("b", 8192).unwrap_err()), libc::ENOSPC);
    disk.create("b", 4096).unwrap();
    assert_eq!(errno(&disk.create("b", 4096).unwrap_err()), libc::EEXIST);
}
