//! Durable queues while their disk fails, is full, or is somebody else's.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use ringmain_client::protocol::{ErrorCode, Reply, Request};
use ringmain_client::{
    AckError, Client, ClientError, ConfirmError, ConsumerOptions, QueueSpec, SendError,
};

use crate::brokered_support::*;
use crate::mounted::{Mounted, Thin};
use crate::support::*;

fn serve(data: &Path, arguments: &[&str]) -> Daemon {
    Daemon::start_with(&[&["--data-dir", data.to_str().unwrap()], arguments].concat())
}

fn connect(daemon: &Daemon) -> Client {
    Client::connect(&daemon.socket).unwrap()
}

/// Segments of the journal that lie there now.
fn segments(data: &Path) -> usize {
    let entries = std::fs::read_dir(data.join("shard-0")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.starts_with('.')).count()
}

fn a_disk_that_fails(backend: &str) {
    let Some(mut thin) = Thin::new(40 << 20, 32 << 20) else { return };
    let data = thin.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let arguments = ["--segment-size", "1MiB", "--journal-backend", backend];
    let mut daemon = serve(&data, &arguments);
    let client = connect(&daemon);
    client.create_queue("q", durable()).unwrap();
    client.create_queue("memory", in_memory()).unwrap();
    client.create_queue("direct", QueueSpec::default()).unwrap();
    let mut sending = producer(&client, "q");
    publish(&mut sending, (0..20).map(|n| format!("m{n}")));
    let other = connect(&daemon);
    let mut other_sending = producer(&other, "q");
    let mut receiving = consumer(&client, "q");
    let first = receive(&mut receiving);
    // The last witness is written and the spare files are there: the disk has nothing to do any more.
    eventually("spare files", || (segments(&data) == 4).then_some(()));
    std::thread::sleep(QUIET);
    if thin.fail().is_none() {
        return;
    }

    // Everybody who waits is told.
    let waiting = std::thread::spawn(move || {
        let receipt = other_sending.send_timeout(b"other", PATIENCE).unwrap();
        other_sending.wait_timeout(&receipt, PATIENCE)
    });
    let mut errors = BTreeSet::new();
    for number in 0..10 {
        match sending.send_timeout(format!("lost{number}").as_bytes(), PATIENCE) {
            Ok(receipt) => match sending.wait_timeout(&receipt, PATIENCE) {
                Err(ConfirmError::JournalFailed { errno }) => errors.insert(errno),
                other => panic!("{other:?}"),
            },
            Err(SendError::JournalFailed { errno }) => errors.insert(errno),
            Err(other) => panic!("{other}"),
        };
    }
    assert_eq!(errors.len(), 1, "{errors:?}");
    let errno = errors.pop_first().unwrap();
    assert!([libc::EIO, libc::ENOSPC].contains(&errno), "{errno}");
    match waiting.join().unwrap() {
        Err(ConfirmError::JournalFailed { errno: other }) => assert_eq!(other, errno),
        other => panic!("{other:?}"),
    }

    // What is durable is given out; acknowledgements say what they are worth.
    assert_eq!(text(&first), "m0");
    for number in 1..20 {
        assert_eq!(text(&receive(&mut receiving)), format!("m{number}"));
    }
    let acked = receiving.ack_confirmed(&first, PATIENCE);
    assert_eq!(acked, Err(AckError::JournalFailed { errno }));
    let error = client.create_queue("another", durable()).unwrap_err().to_string();
    assert!(error.contains("journal failed") && !error.contains('\n'), "{error}");

    // Nobody else notices.
    publish(&mut producer(&client, "memory"), ["m".to_owned()]);
    assert_eq!(consume(&mut consumer(&client, "memory"), 1)[0].1, "m");
    client.producer("direct").unwrap().send(b"d").unwrap();
    let mut payload = Vec::new();
    client.consumer("direct").unwrap().receive_timeout(&mut payload, PATIENCE).unwrap();
    assert_eq!(payload, b"d");

    // Whoever asks is told, the log in one line.
    assert_eq!(client.queue_info("q").unwrap().state, "fault");
    assert_eq!(client.queue_info("memory").unwrap().state, "open");
    let troubles = client.status().unwrap().troubles;
    assert!(troubles.len() == 1 && troubles[0].contains("journal failed"), "{troubles:?}");
    let log = daemon.log();
    assert_eq!(log.lines().filter(|line| line.contains("journal failed")).count(), 1, "{log}");
    assert!(log.contains("segment-") && log.contains("start the daemon again"), "{log}");

    // It ends, and begins where it was.
    daemon.end(Signal::SIGTERM);
    drop((client, other));
    thin.mend();
    let daemon = serve(&thin.path().join("data"), &arguments);
    let client = connect(&daemon);
    assert_eq!(client.status().unwrap().troubles, Vec::<String>::new());
    let mut receiving = consumer(&client, "q");
    let seen = consume(&mut receiving, 20);
    let texts: Vec<_> = (0..20).map(|n| format!("m{n}")).collect();
    assert_eq!(seen.into_iter().map(|(_, text)| text).collect::<Vec<_>>(), texts);
    // What was not confirmed may be there or not.
    publish(&mut producer(&client, "q"), ["after".to_owned()]);
    loop {
        let delivery = receive(&mut receiving);
        receiving.ack(&delivery).unwrap();
        match text(&delivery) {
            "after" => break,
            other => assert!(other.starts_with("lost") || other == "other", "{other}"),
        }
    }
}

#[test]
fn a_disk_that_fails_is_everybodys_error_and_loses_nothing() {
    a_disk_that_fails("auto");
}

#[test]
fn a_disk_that_fails_is_everybodys_error_with_threads() {
    a_disk_that_fails("blocking");
}

/// Sends until the disk is full; how many went into the lane or further.
fn fill(sending: &mut ringmain_client::BrokeredProducer, from: usize) -> usize {
    let mut next = from;
    loop {
        let payload = format!("{next} {}", "x".repeat(1000));
        match sending.send_timeout(payload.as_bytes(), Duration::from_millis(1500)) {
            Ok(_) => next += 1,
            Err(SendError::Timeout) => return next,
            Err(other) => panic!("{other}"),
        }
        assert!(next < from + 4000, "1 MiB takes no 4 MB");
    }
}

fn drain(client: &Client, from: usize, to: usize) {
    let mut receiving =
        client.brokered_consumer("q", ConsumerOptions::default().credit(16)).unwrap();
    for number in from..to {
        let delivery = receive(&mut receiving);
        let said = text(&delivery).split(' ').next().unwrap();
        assert_eq!(said, number.to_string(), "attempt {}", delivery.attempt());
        receiving.ack(&delivery).unwrap();
    }
    receiving.flush(PATIENCE).unwrap();
}

#[test]
fn a_full_disk_does_not_lock_up() {
    let Some(mounted) = Mounted::tmpfs(1 << 20) else { return };
    let arguments = ["--segment-size", "64KiB"];
    let daemon = serve(mounted.path(), &arguments);
    let client = connect(&daemon);
    client.create_queue("q", durable()).unwrap();
    let mut sending = producer(&client, "q");
    let mut next = 0;
    for round in 0..3 {
        let end = fill(&mut sending, next);
        assert!(end > next + 100, "round {round}: {next} to {end}");
        let troubles = client.status().unwrap().troubles;
        assert!(troubles.len() == 1 && troubles[0].contains("no room"), "{troubles:?}");
        drain(&client, next, end);
        sending.wait_all_timeout(PATIENCE).unwrap();
        next = end;
        eventually("room", || client.status().unwrap().troubles.is_empty().then_some(()));
    }
}

/// Acknowledgements go into the files that are there, and make room for longer ones.
#[test]
fn segments_of_another_length_on_a_full_disk_do_not_lock_up() {
    let Some(mounted) = Mounted::tmpfs(1 << 20) else { return };
    let (mut next, mut stored) = (0, 0);
    for (length, ending) in
        [("64KiB", Signal::SIGTERM), ("192KiB", Signal::SIGKILL), ("64KiB", Signal::SIGTERM)]
    {
        let mut daemon = serve(mounted.path(), &["--segment-size", length]);
        let client = connect(&daemon);
        if next == 0 {
            client.create_queue("q", durable()).unwrap();
        }
        assert_eq!(inside(&client, "q").messages, stored as u64);
        drain(&client, next - stored, next);
        eventually("room", || client.status().unwrap().troubles.is_empty().then_some(()));
        let mut sending = producer(&client, "q");
        let end = fill(&mut sending, next);
        assert!(end > next + 100, "{length}: {next} to {end}");
        let troubles = client.status().unwrap().troubles;
        assert!(troubles.len() == 1 && troubles[0].contains("no room"), "{troubles:?}");
        // What is still in the lane goes with the daemon.
        stored = usize::try_from(inside(&client, "q").messages).unwrap();
        next += stored;
        drop((sending, client));
        let broker = daemon.status().broker_pid;
        if ending == Signal::SIGKILL {
            signal(broker, Signal::SIGSTOP);
            daemon.end(ending);
            signal(broker, ending);
            eventually("the end of the broker", || (!is_alive(broker)).then_some(()));
        } else {
            daemon.end(ending);
        }
    }
}

#[test]
fn a_broker_that_crashes_on_a_full_disk_leaves_room_for_acknowledgements() {
    let Some(mounted) = Mounted::tmpfs(1 << 20) else { return };
    let arguments = ["--segment-size", "64KiB"];
    let mut daemon = serve(mounted.path(), &arguments);
    let client = connect(&daemon);
    client.create_queue("q", durable()).unwrap();
    let mut sending = producer(&client, "q");
    let end = fill(&mut sending, 0);
    // The broker alone: its successors take up the lane.
    for _ in 0..10 {
        daemon.kill_broker();
        eventually("the journal", || client.queue_info("q").ok()?.brokered.map(|_| ()));
    }
    drain(&client, 0, end);
    sending.wait_all_timeout(PATIENCE).unwrap();
    // Keeper and broker: what was confirmed is there, the rest is gone with the lane.
    fill(&mut sending, end);
    let stored = inside(&client, "q").messages;
    drop((sending, client));
    for _ in 0..10 {
        let broker = daemon.status().broker_pid;
        signal(broker, Signal::SIGSTOP);
        daemon.end(Signal::SIGKILL);
        signal(broker, Signal::SIGKILL);
        eventually("the end of the broker", || (!is_alive(broker)).then_some(()));
        daemon = serve(mounted.path(), &arguments);
    }
    let client = connect(&daemon);
    assert_eq!(inside(&client, "q").messages, stored);
    drain(&client, end, end + usize::try_from(stored).unwrap());
    publish(&mut producer(&client, "q"), ["again".to_owned()]);
}

/// Refused at once, in words, and nothing stays behind; with room it is created.
fn no_room_for_a_queue(
    daemon: &Daemon,
    spec: &QueueSpec,
    needs: &[&str],
    make_room: impl FnOnce(),
) {
    let client = connect(daemon);
    for _ in 0..2 {
        let error = client.create_queue("q", spec.clone()).unwrap_err();
        let ClientError::Refused { code: ErrorCode::Limit, message } = error else {
            panic!("{error}")
        };
        assert!(!message.contains('\n'), "{message}");
        for words in [&["no room", "--segment-size"], needs].concat() {
            assert!(message.contains(words), "{message}");
        }
        assert_eq!(client.list_queues().unwrap(), []);
    }
    make_room();
    client.create_queue("q", spec.clone()).unwrap();
    publish(&mut producer(&client, "q"), ["m".to_owned()]);
    assert_eq!(consume(&mut consumer(&client, "q"), 1)[0].1, "m");
}

#[test]
fn a_queue_for_which_the_disk_has_no_room_is_refused_and_created_later() {
    // Not one file of the default length; three of four.
    for (bytes, arguments, needs) in
        [(4 << 20, &[][..], "268435456"), (3 << 20, &["--segment-size", "1MiB"], "1048576")]
    {
        let Some(mounted) = Mounted::tmpfs(bytes) else { return };
        let daemon = serve(mounted.path(), arguments);
        let needs = [needs, mounted.path().to_str().unwrap()];
        no_room_for_a_queue(&daemon, &durable(), &needs, || {
            mounted.resize(400 << 20);
        });
    }
}

#[test]
fn a_queue_for_which_there_is_no_memory_is_refused() {
    let daemon = Daemon::start_with(&["--limit-bytes", "20MiB"]);
    let client = connect(&daemon);
    let error = client.create_queue("q", in_memory()).unwrap_err().to_string();
    // Three or four of them, by how far it had come.
    for words in ["no room", "files of 16777216", "--limit-bytes"] {
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(client.list_queues().unwrap(), []);
}

/// While a journal cannot be opened, requests that need it are answered with that, and all others as ever.
#[test]
fn a_journal_that_somebody_else_holds_is_only_its_own_queues_error() {
    let daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("durable", durable()).unwrap();
    client.create_queue("memory", in_memory()).unwrap();
    let path = daemon.data.path().join("shard-0/segment-00000001.journal");
    let before = daemon.daemon.status();
    // Waits for the broker's end.
    let taken = std::thread::spawn(move || {
        let file = std::fs::File::open(path).unwrap();
        Flock::lock(file, FlockArg::LockExclusive).unwrap()
    });
    eventually("a waiting lock", || {
        let locks = std::fs::read_to_string("/proc/locks").unwrap();
        let waits = format!(" {} ", std::process::id());
        locks.lines().any(|line| line.contains("->") && line.contains(&waits)).then_some(())
    });
    // Meanwhile nobody starts the next one.
    signal(before.keeper_pid, Signal::SIGSTOP);
    signal(before.broker_pid, Signal::SIGKILL);
    let held = taken.join().unwrap();
    signal(before.keeper_pid, Signal::SIGCONT);
    daemon.daemon.next_broker(&before);
    // Asked before the shard gives up: the answer waits for it, and tells of both queues.
    let mut raw = Raw::hello(&daemon.daemon.socket, 79);
    let Reply::Queues(queues) = raw.ask(&Request::ListQueues { after: String::new() }) else {
        panic!("no queues");
    };
    let states: Vec<_> =
        queues.iter().map(|queue| (queue.name.as_str(), queue.state.as_str())).collect();
    assert_eq!(states, [("durable", "fault"), ("memory", "open")]);
    assert!(queues[1].brokered.is_some());
    let error = client.purge_queue("durable").unwrap_err().to_string();
    assert!(error.contains("lock"), "{error}");
    publish(&mut producer(&client, "memory"), ["m".to_owned()]);
    let troubles = client.status().unwrap().troubles;
    assert!(troubles.len() == 1 && troubles[0].contains("lock"), "{troubles:?}");
    drop(held);
    daemon.daemon.kill_broker();
    publish(&mut producer(&client, "durable"), ["d".to_owned()]);
}
