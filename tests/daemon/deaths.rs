//! Processes that die, and brokers that die with them.

use nix::sys::signal::Signal;
use ringmain_client::protocol::{ErrorCode, HandleKey, Reply, Request, Role};
use ringmain_client::ring::TryReceiveError;

use crate::support::*;

#[test]
fn what_a_dead_process_held_is_given_out_again() {
    for with_broker in [false, true] {
        let daemon = Daemon::start();
        let mut raw = Raw::hello(&daemon.socket, 3);
        raw.create("m", mpmc());
        let producing = raw.attach("m", Role::Produce);
        let mut producer = producing.producer();
        producer.try_send(0, &[], b"first").unwrap();
        let consumer_child = Actor::started(&daemon.socket, &["hold", "m", "consume"]);
        let producer_child = Actor::started(&daemon.socket, &["hold", "m", "produce"]);
        producer.try_send(0, &[], b"second").unwrap();
        let info = raw.info("m");
        assert_eq!((info.producers, info.consumers), (2, 1));
        if with_broker {
            signal(daemon.status().broker_pid, Signal::SIGKILL);
        }
        producer_child.kill();
        consumer_child.kill();
        let mut keys = vec![producing.key()];
        let mut raw = eventually("repair", || {
            let mut raw = Raw::try_connect(&daemon.socket)?;
            let hello =
                Request::Hello { client_version: "test".into(), session: 3, handles: keys.clone() };
            let Ok((Reply::Welcome { lost, .. }, _)) = raw.try_ask(&hello) else {
                return None;
            };
            assert!(lost.is_empty());
            let info = raw.info("m");
            (info.repairs == 2).then_some(raw)
        });
        let info = raw.info("m");
        assert_eq!((info.tombstones, info.returned, info.handles.len()), (1, 1, 1), "{info:?}");
        let consuming = raw.attach("m", Role::Consume);
        keys.push(consuming.key());
        let mut consumer = consuming.consumer();
        for (expected, again) in [(b"first".as_slice(), true), (b"second", false)] {
            let taken = consumer.try_take().unwrap();
            let mut bytes = vec![0; taken.length()];
            consumer.read(&taken, 0, &mut bytes);
            assert_eq!((bytes.as_slice(), taken.redelivered()), (expected, again));
            consumer.release(taken);
        }
        assert_eq!(consumer.try_take().unwrap_err(), TryReceiveError::Empty);
    }
}

#[test]
fn an_spsc_place_is_free_as_soon_as_its_holder_is_dead() {
    let daemon = Daemon::start();
    let mut raw = Raw::hello(&daemon.socket, 3);
    raw.create("s", spsc());
    let producing = raw.attach("s", Role::Produce);
    producing.producer().try_send(0, &[], b"x").unwrap();
    let child = Actor::started(&daemon.socket, &["hold", "s", "consume"]);
    let attach = Request::attach("s", Role::Consume);
    let (code, text) = raw.refused(&attach);
    assert_eq!(code, ErrorCode::Busy);
    assert!(text.contains(&child.pid().to_string()), "{text}");
    child.kill();
    // No waiting: the daemon looks at the holder when it is asked.
    let consuming = raw.attach("s", Role::Consume);
    let mut consumer = consuming.consumer();
    let taken = consumer.try_take().unwrap();
    assert!(taken.redelivered());
    consumer.release(taken);
}

#[test]
fn a_stopped_process_keeps_everything_and_is_named() {
    let daemon = Daemon::start();
    let mut raw = Raw::hello(&daemon.socket, 3);
    raw.create("m", mpmc());
    let producing = raw.attach("m", Role::Produce);
    let mut producer = producing.producer();
    producer.try_send(0, &[], b"x").unwrap();
    let child = Actor::started(&daemon.socket, &["hold", "m", "consume"]);
    signal(child.pid(), Signal::SIGSTOP);
    // Fill the ring up to the slot that the stopped process holds, and wait there.
    while producer.try_send(0, &[], b"y").is_ok() {}
    producer.line().set_waiting(producer.position(), 1);
    let info = eventually("the stop shows", || {
        let info = raw.info("m");
        info.handles.iter().any(|handle| handle.state == "stopped").then_some(info)
    });
    let of = |index: u8| info.handles.iter().find(|handle| handle.handle == index).unwrap();
    let waiting = of(producing.key().handle);
    let stopped = info.handles.iter().find(|handle| handle.pid == child.pid()).unwrap();
    assert_eq!(waiting.delayed_by, Some(stopped.handle), "{info:?}");
    assert!(waiting.waiting_ns.unwrap() > 0);
    assert_eq!(stopped.delays_others_ns, waiting.waiting_ns);
    assert_eq!((stopped.owned_slots, stopped.owns_position), (1, Some(0)));
    assert_eq!(info.repairs, 0);
    // The broker does not take a stopped process for a dead one either when it starts anew.
    daemon.kill_broker();
    let (mut raw, lost) = Raw::resume(&daemon.socket, 3, &[producing.key()]);
    assert!(lost.is_empty());
    let info = raw.info("m");
    assert_eq!((info.repairs, info.handles.len()), (0, 2));
    child.kill();
    eventually("repair", || (raw.info("m").returned == 1).then_some(()));
}

#[test]
fn a_killed_broker_is_replaced_and_everything_goes_on() {
    let daemon = Daemon::start();
    let mut raw = Raw::hello(&daemon.socket, 3);
    let before = raw.create("m", mpmc());
    raw.create("s", spsc());
    let producing = raw.attach("m", Role::Produce);
    let consuming = raw.attach("m", Role::Consume);
    let (mut producer, mut consumer) = (producing.producer(), consuming.consumer());
    let mut sent = 0_u64;
    let mut exchange = || {
        producer.try_send(0, &[], &sent.to_le_bytes()).unwrap();
        let taken = consumer.try_take().unwrap();
        let mut bytes = [0; 8];
        consumer.read(&taken, 0, &mut bytes);
        assert_eq!(u64::from_le_bytes(bytes), sent);
        consumer.release(taken);
        sent += 1;
    };
    for round in 2..=5 {
        exchange();
        let status = daemon.kill_broker();
        exchange();
        assert_eq!((status.broker_starts, status.queues, status.handles), (round, 2, 2));
        assert_eq!(status.keeper_pid, daemon.keeper_pid());
        let keys = [producing.key(), consuming.key()];
        let (mut raw, lost) = Raw::resume(&daemon.socket, 3, &keys);
        assert!(lost.is_empty());
        let info = raw.info("m");
        assert_eq!((info.id, info.handles.len(), info.repairs), (before.id, 2, 0));
    }
    // Numbers are not used again.
    let (mut raw, _) = Raw::resume(&daemon.socket, 3, &[producing.key(), consuming.key()]);
    assert!(raw.create("next", mpmc()).id > before.id + 1);
    let third = raw.attach("m", Role::Consume);
    assert!(third.key().epoch > consuming.key().epoch);
}

#[test]
fn doorbells_survive_the_broker() {
    use std::os::fd::AsFd;
    let daemon = Daemon::start();
    let mut raw = Raw::hello(&daemon.socket, 3);
    raw.create("m", mpmc());
    let consuming = raw.attach("m", Role::Consume);
    let memory = ringmain_client::sys::memory::create_sealed("doorbell", 4096).unwrap();
    let (_signals, bell) = ringmain_client::sys::datagram::signal_pair().unwrap();
    let frame = ringmain_client::protocol::frame::CONTROL.encode(&Request::RegisterDoorbell);
    raw.send_bytes(&frame.unwrap(), &[memory.as_fd(), bell.as_fd()]);
    let Ok((Reply::Doorbell { doorbell }, _)) = raw.receive() else { panic!() };
    let bind = Request::BindDoorbell { handle: consuming.key(), doorbell };
    assert_eq!(raw.ask(&bind), Reply::Done);
    daemon.kill_broker();
    let (mut raw, lost) = Raw::resume(&daemon.socket, 3, &[consuming.key()]);
    assert!(lost.is_empty());
    let fetch = Request::FetchDoorbell { queue: consuming.key().queue, doorbell };
    let (reply, descriptors) = raw.try_ask(&fetch).unwrap();
    assert_eq!((reply, descriptors.len()), (Reply::Doorbell { doorbell }, 2));
}

#[test]
fn the_same_create_again_after_a_broker_death_is_no_mistake() {
    // Killed at random moments around a request: afterwards the queue is there once, and the repeated request is
    // answered by success or, if its first answer was sent, by Exists.
    let daemon = Daemon::start();
    for round in 0..12 {
        let name = format!("q{round}");
        let status = daemon.status();
        let create = Request::CreateQueue { name: name.clone(), spec: mpmc() };
        let mut raw = Raw::hello(&daemon.socket, 3);
        let frame = ringmain_client::protocol::frame::CONTROL.encode(&create).unwrap();
        raw.send_bytes(&frame, &[]);
        std::thread::sleep(std::time::Duration::from_micros(60 * round));
        signal(status.broker_pid, Signal::SIGKILL);
        let first = raw.receive();
        daemon.next_broker(&status);
        let mut raw = Raw::hello(&daemon.socket, 3);
        match (first, raw.ask(&create)) {
            (Ok((Reply::Queue(_), _)), Reply::Error { code: ErrorCode::Exists, .. })
            | (_, Reply::Queue(_)) => {}
            (first, again) => panic!("{first:?}, then {again:?}"),
        }
        assert_eq!(raw.refused(&create).0, ErrorCode::Exists);
        assert_eq!(raw.info(&name).name, name);
    }
}

#[test]
fn brokers_killed_while_processes_come_and_go_lose_no_index() {
    let daemon = Daemon::start();
    let mut raw = Raw::hello(&daemon.socket, 3);
    raw.create("m", mpmc());
    for _ in 0..4 {
        let children: Vec<_> =
            (0..3).map(|_| Actor::started(&daemon.socket, &["hold", "m", "idle"])).collect();
        let status = daemon.status();
        assert_eq!(status.handles, 3);
        signal(status.broker_pid, Signal::SIGKILL);
        for child in children {
            child.kill();
        }
        daemon.next_broker(&status);
        eventually("all handles are free", || (daemon.status().handles == 0).then_some(()));
    }
    let mut raw = Raw::hello(&daemon.socket, 3);
    assert_eq!(raw.info("m").state, "open");
    assert_eq!(raw.attach("m", Role::Consume).key().handle, 1);
}

#[test]
fn requests_cut_off_by_a_broker_death_leave_nothing_half_done() {
    let daemon = Daemon::start();
    let mut raw = Raw::hello(&daemon.socket, 3);
    raw.create("m", mpmc());
    raw.create("s", spsc());
    let mut held: Vec<HandleKey> = Vec::new();
    let mut random: u64 = 0x2545_f491_4f6c_dd1d;
    let mut purges = 0;
    for round in 0..60 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let request = match (random % 6, held.first()) {
            (0 | 1, _) => Request::attach("m", Role::Consume),
            (2, _) => Request::attach("s", Role::Produce),
            (3, Some(key)) => Request::Detach { handle: *key },
            (4, _) => Request::PurgeQueue { name: "m".into() },
            _ => Request::DeleteQueue { name: "s".into() },
        };
        purges += u64::from(matches!(request, Request::PurgeQueue { .. }));
        let status = daemon.status();
        let frame = ringmain_client::protocol::frame::CONTROL.encode(&request).unwrap();
        raw.send_bytes(&frame, &[]);
        std::thread::sleep(std::time::Duration::from_micros(random / 64 % 250));
        signal(status.broker_pid, Signal::SIGKILL);
        if let Ok((Reply::Attached(attached), _)) = raw.receive() {
            held.push(attached.key);
        }
        daemon.next_broker(&status);
        let lost;
        (raw, lost) = Raw::resume(&daemon.socket, 3, &held);
        for key in lost {
            let expected = match &request {
                Request::Detach { handle } => *handle == key,
                Request::DeleteQueue { .. } => true,
                _ => false,
            };
            assert!(expected, "round {round}: {request:?} lost {key:?}");
            held.retain(|other| *other != key);
        }
        // The daemon has exactly what its client has.
        let mut known = Vec::new();
        for name in ["m", "s"] {
            match raw.ask(&Request::QueueInfo { name: name.into() }) {
                Reply::Queue(info) => {
                    // Only a broker that was killed over a purge leaves something to repair.
                    assert!(info.repairs <= purges, "round {round}: {info:?}");
                    assert_eq!(info.state, "open", "round {round}");
                    known.extend(info.handles.iter().map(|handle| (info.id, handle.handle)));
                }
                Reply::Error { code: ErrorCode::NotFound, .. } => {
                    assert_eq!(name, "s");
                    raw.create("s", spsc());
                }
                other => panic!("{other:?}"),
            }
        }
        let mut expected: Vec<_> = held.iter().map(|key| (key.queue, key.handle)).collect();
        expected.sort_unstable();
        known.sort_unstable();
        assert_eq!(known, expected, "round {round}: {request:?}");
    }
}
