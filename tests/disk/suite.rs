//! What every disk does.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use ringmain::disk::{
    BLOCK_BYTES, Buffer, Completed, Disk, Done, Durability, FileId, Operation, Ticket,
};
use ringmain_client::sys::eventfd::EventFd;

use crate::backends;

/// A test that waits longer than this has found a lost wake-up.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn filled(byte: u8, blocks: usize) -> Buffer {
    let mut buffer = Buffer::new(blocks * BLOCK_BYTES);
    buffer.fill(byte);
    buffer
}

/// Flushes and collects until `count` operations have completed, by ticket.
pub(crate) fn finish(disk: &mut dyn Disk, count: usize) -> BTreeMap<u64, Completed> {
    let (mut all, mut completed) = (BTreeMap::new(), Vec::new());
    let deadline = Instant::now() + PATIENCE;
    disk.flush();
    loop {
        disk.reap(&mut completed);
        for one in completed.drain(..) {
            assert!(all.insert(one.ticket.0, one).is_none(), "a ticket came back twice");
        }
        if all.len() >= count {
            return all;
        }
        assert!(Instant::now() < deadline, "{} of {count} operations came back", all.len());
        disk.wait(Some(Duration::from_secs(1))).unwrap();
    }
}

fn write(file: FileId, offset: u64, buffer: Buffer) -> Operation {
    Operation::Write { file, offset, buffer, durability: Durability::Durable }
}

fn created(completed: &Completed) -> FileId {
    match completed.result {
        Ok(Done::Created(file)) => file,
        ref other => panic!("no file was made: {other:?}"),
    }
}

#[test]
fn what_is_written_is_read() {
    for mut backend in backends::all() {
        let disk = &mut *backend.disk;
        let file = disk.create("a", 64 * 4096).unwrap();
        assert_eq!(disk.length(file).unwrap(), 64 * 4096);
        let mut buffer = filled(9, 64);
        disk.read(file, 0, &mut buffer).unwrap();
        assert!(buffer.iter().all(|byte| *byte == 0), "{}: new files are zeros", backend.name);
        for number in 0..16 {
            let byte = u8::try_from(number).unwrap() + 1;
            disk.submit(Ticket(number), write(file, number * 4 * 4096, filled(byte, 4)));
        }
        for (ticket, one) in finish(disk, 16) {
            assert_eq!(one.result.unwrap(), Done::Whole, "{}", backend.name);
            let back = one.buffer.unwrap();
            assert_eq!((back.len(), u64::from(back[0])), (4 * 4096, ticket + 1));
        }
        for number in 0..16 {
            let operation =
                Operation::Read { file, offset: number * 4 * 4096, buffer: filled(0, 4) };
            disk.submit(Ticket(number), operation);
        }
        for (ticket, one) in finish(disk, 16) {
            assert!(one.buffer.unwrap().iter().all(|byte| u64::from(*byte) == ticket + 1));
        }
        disk.write(file, 4096, &filled(77, 1)).unwrap();
        disk.read(file, 0, &mut buffer).unwrap();
        assert_eq!((buffer[4095], buffer[4096], buffer[8191], buffer[8192]), (1, 77, 77, 1));
        disk.sync(file).unwrap();
    }
}

#[test]
fn a_later_write_is_there_after_a_sync() {
    for mut backend in backends::all() {
        let disk = &mut *backend.disk;
        let file = disk.create("a", 8192).unwrap();
        let durability = Durability::Later;
        let operation = Operation::Write { file, offset: 4096, buffer: filled(5, 1), durability };
        disk.submit(Ticket(1), operation);
        assert!(finish(disk, 1)[&1].result.is_ok());
        disk.sync(file).unwrap();
        let mut buffer = Buffer::new(8192);
        disk.read(file, 0, &mut buffer).unwrap();
        assert_eq!((buffer[4095], buffer[4096]), (0, 5), "{}", backend.name);
    }
}

#[test]
fn files_are_made_listed_and_removed() {
    for mut backend in backends::all() {
        let disk = &mut *backend.disk;
        for (ticket, name) in ["c", "a", "b"].into_iter().enumerate() {
            let operation = Operation::Create { name: name.to_owned(), bytes: 8192 };
            disk.submit(Ticket(ticket as u64), operation);
        }
        let files = finish(disk, 3);
        let listed: Vec<_> = ["a", "b", "c"].map(|name| (name.to_owned(), 8192)).into();
        assert_eq!(disk.list().unwrap(), listed, "{}", backend.name);
        disk.submit(Ticket(7), write(created(&files[&0]), 4096, filled(3, 1)));
        assert!(finish(disk, 1)[&7].result.is_ok());
        disk.submit(Ticket(8), Operation::Remove { file: created(&files[&1]) });
        disk.submit(Ticket(9), Operation::Create { name: "c".to_owned(), bytes: 4096 });
        let files = finish(disk, 2);
        assert_eq!(files[&8].result.as_ref().unwrap(), &Done::Whole);
        let exists = files[&9].result.as_ref().unwrap_err();
        assert_eq!(exists.kind(), io::ErrorKind::AlreadyExists, "{}", backend.name);
        assert_eq!(disk.list().unwrap(), [listed[1].clone(), listed[2].clone()]);
        if let Some(path) = backend.path() {
            assert_eq!(std::fs::read_dir(path).unwrap().count(), 2);
        }
        if backend.name == "memory" {
            assert_eq!(*backend.removed.lock().unwrap(), ["a"]);
        }
    }
}

#[test]
fn a_file_is_opened_once_at_a_time_and_can_be_renamed() {
    for mut backend in backends::all() {
        let disk = &mut *backend.disk;
        let file = disk.create("a", 4096).unwrap();
        disk.write(file, 0, &filled(4, 1)).unwrap();
        disk.close(file);
        let file = disk.open("a").unwrap();
        let mut buffer = Buffer::new(4096);
        disk.read(file, 0, &mut buffer).unwrap();
        assert_eq!(buffer[17], 4);
        assert_eq!(disk.open("b").unwrap_err().kind(), io::ErrorKind::NotFound);
        match disk.rename("a", "b") {
            Err(error) => {
                assert_eq!((backend.name, error.kind()), ("memory", io::ErrorKind::Unsupported));
                assert!(disk.open("a").is_err(), "it is locked");
                continue;
            }
            Ok(()) => disk.sync_directory().unwrap(),
        }
        assert_eq!(disk.list().unwrap(), [("b".to_owned(), 4096)]);
        disk.submit(Ticket(1), Operation::Remove { file });
        assert!(finish(disk, 1)[&1].result.is_ok(), "{}", backend.name);
        assert_eq!(disk.list().unwrap(), []);
    }
}

#[test]
fn nonsense_is_refused_and_the_buffer_comes_back() {
    for mut backend in backends::all() {
        let disk = &mut *backend.disk;
        let file = disk.create("a", 8192).unwrap();
        let nowhere = FileId(99);
        let read = |file, offset| Operation::Read { file, offset, buffer: Buffer::new(8192) };
        let operations = [
            write(nowhere, 0, filled(1, 1)),
            write(file, 512, filled(1, 1)),
            write(file, 4096, filled(1, 2)),
            write(file, u64::MAX - 4095, filled(1, 1)),
            read(nowhere, 0),
            read(file, 1),
            read(file, 4096),
            read(file, 1 << 40),
            read(file, u64::MAX - 4095),
        ];
        let count = operations.len();
        for (ticket, operation) in operations.into_iter().enumerate() {
            disk.submit(Ticket(ticket as u64), operation);
        }
        for (ticket, one) in finish(disk, count) {
            let error = one.result.unwrap_err();
            let text = format!("{} {ticket}: {error}", backend.name);
            let expected = match ticket {
                6 | 7 => io::ErrorKind::UnexpectedEof,
                _ => io::ErrorKind::InvalidInput,
            };
            // What lies beyond any file a kernel may call either.
            assert!(error.kind() == expected || ticket == 8, "{text}");
            assert!(one.buffer.is_some(), "{text}");
        }
        disk.submit(Ticket(1), Operation::Remove { file: nowhere });
        assert!(finish(disk, 1)[&1].result.is_err());
        assert!(disk.create("b", 0).is_err() && disk.create("b", 4097).is_err());
        let mut buffer = filled(9, 2);
        disk.read(file, 0, &mut buffer).unwrap();
        assert!(buffer.iter().all(|byte| *byte == 0), "{}: nothing was written", backend.name);
    }
}

#[test]
fn more_operations_than_any_queue_has_places() {
    for mut backend in backends::all() {
        let disk = &mut *backend.disk;
        let file = disk.create("a", 300 * 4096).unwrap();
        for number in 0..300 {
            let byte = u8::try_from(number % 251).unwrap();
            disk.submit(Ticket(number), write(file, number * 4096, filled(byte, 1)));
        }
        assert!(finish(disk, 300).values().all(|one| one.result.is_ok()), "{}", backend.name);
        let mut buffer = Buffer::new(300 * 4096);
        disk.read(file, 0, &mut buffer).unwrap();
        for (number, block) in buffer.chunks(4096).enumerate() {
            assert!(block.iter().all(|byte| usize::from(*byte) == number % 251));
        }
    }
}

#[test]
fn a_busy_poll_sees_completions_without_waiting() {
    for mut backend in backends::all() {
        let disk = &mut *backend.disk;
        let file = disk.create("a", 4096).unwrap();
        disk.submit(Ticket(1), write(file, 0, filled(1, 1)));
        disk.flush();
        let (deadline, mut completed) = (Instant::now() + PATIENCE, Vec::new());
        while completed.is_empty() {
            assert!(Instant::now() < deadline, "{}: nothing came", backend.name);
            disk.reap(&mut completed);
            std::thread::yield_now();
        }
        assert!(completed[0].result.is_ok());
    }
}

#[test]
fn a_wait_ends_when_it_is_over_or_somebody_wakes() {
    for mut backend in backends::all() {
        let disk = &mut *backend.disk;
        disk.wait(Some(Duration::from_millis(1))).unwrap();
        let waker = disk.waker();
        // A wake before the wait counts.
        waker.wake();
        disk.wait(None).unwrap();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            waker.wake();
        });
        disk.wait(None).unwrap();
        thread.join().unwrap();
    }
}

/// Sleeps, not just returns: the time-out ends it.
fn sleeps(disk: &mut dyn Disk) -> bool {
    let begin = Instant::now();
    disk.wait(Some(Duration::from_millis(5))).unwrap();
    begin.elapsed() >= Duration::from_millis(5)
}

#[test]
fn every_write_to_a_watched_eventfd_counts_once() {
    for mut backend in backends::all() {
        if backend.name == "simulated" {
            continue; // it never sleeps
        }
        let disk = &mut *backend.disk;
        let (first, second) = (EventFd::new().unwrap(), EventFd::new().unwrap());
        disk.watch(first.as_fd()).unwrap();
        disk.watch(second.as_fd()).unwrap();
        assert!(sleeps(disk) || sleeps(disk));
        for _ in 0..3 {
            first.signal();
            disk.wait(None).unwrap();
            assert!(sleeps(disk), "{}: a counter that is not zero is no event", backend.name);
            second.signal();
            first.signal();
            disk.wait(None).unwrap();
            assert!(sleeps(disk), "{}", backend.name);
        }
        disk.unwatch(first.as_fd());
        first.signal();
        assert!(sleeps(disk), "{}", backend.name);
        second.signal();
        disk.wait(None).unwrap();
    }
}

/// The wait of a disk with operations in flight is another one: it must hear wakes as well.
#[test]
fn wakes_are_heard_while_something_is_in_flight() {
    for mut backend in backends::all() {
        let disk = &mut *backend.disk;
        let eventfd = EventFd::new().unwrap();
        disk.watch(eventfd.as_fd()).unwrap();
        let file = disk.create("a", 64 << 20).unwrap();
        let mut tickets = 0;
        for round in 0..20 {
            for number in 0..4 {
                let operation = write(file, number * (4 << 20), filled(1, 1024));
                disk.submit(Ticket(tickets), operation);
                tickets += 1;
            }
            disk.flush();
            if round % 2 == 0 {
                eventfd.signal();
            } else {
                disk.waker().wake();
            }
            disk.wait(Some(PATIENCE)).unwrap();
            let all = finish(disk, 4);
            assert!(all.values().all(|one| one.result.is_ok()), "{}", backend.name);
        }
    }
}

#[test]
fn a_disk_may_be_dropped_with_operations_in_flight() {
    for mut backend in backends::all() {
        let disk = &mut *backend.disk;
        let file = disk.create("a", 16 << 20).unwrap();
        for number in 0..4 {
            disk.submit(Ticket(number), write(file, number * (4 << 20), filled(7, 1024)));
        }
        disk.flush();
        // Never flushed.
        disk.submit(Ticket(9), Operation::Read { file, offset: 0, buffer: Buffer::new(1 << 20) });
        let backends::Backend { disk, folder, .. } = backend;
        drop(disk);
        if let Some(folder) = folder {
            let bytes = std::fs::read(folder.path().join("a")).unwrap();
            assert!(bytes.iter().all(|byte| *byte == 7));
        }
    }
}

#[test]
fn a_removed_file_may_have_writes_in_flight() {
    for mut backend in backends::all() {
        let disk = &mut *backend.disk;
        let file = disk.create("a", 4 << 20).unwrap();
        disk.submit(Ticket(1), write(file, 0, filled(7, 1024)));
        disk.submit(Ticket(2), Operation::Remove { file });
        let all = finish(disk, 2);
        assert!(all.values().all(|one| one.result.is_ok()), "{}: {all:?}", backend.name);
        assert_eq!(disk.list().unwrap(), []);
        assert!(disk.length(file).is_err());
    }
}
