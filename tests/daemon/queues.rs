//! What requests do when they are right, and the limits.

use std::os::fd::AsFd;

use ringmain_client::protocol::frame::CONTROL;
use ringmain_client::protocol::{
    ErrorCode, Kind, Plane, QueueSpec, Reply, Request, Role, WakeMode,
};
use ringmain_client::ring::{Closed, TryReceiveError, TrySendError};
use ringmain_client::sync::atomic::Ordering;
use ringmain_client::sys::datagram::signal_pair;
use ringmain_client::sys::memory::create_sealed;

use crate::support::*;

#[test]
fn defaults_are_filled_in() {
    let daemon = Daemon::start();
    let mut raw = Raw::hello(&daemon.socket, 1);
    let info = raw.create("q", QueueSpec::default());
    assert_eq!((info.kind, info.slots, info.slot_size), (Kind::Mpmc, 4096, 256));
    assert_eq!((info.max_message, info.mode), (64 * 1024, 0o700));
    assert_eq!(info.owner_uid, nix::unistd::getuid().as_raw());
    assert_eq!((info.plane, info.durable, info.state.as_str()), (Plane::Direct, false, "open"));
    assert_eq!(info.memory_bytes, 4096 + 0x9000 + 4096 * 256);
    let status = raw.status();
    assert_eq!((status.queues, status.memory_bytes), (1, info.memory_bytes));
}

#[test]
fn messages_pass_through_what_is_handed_out() {
    let daemon = Daemon::start();
    for (name, spec) in [("s", spsc()), ("m", mpmc())] {
        let mut raw = Raw::hello(&daemon.socket, 1);
        raw.create(name, spec);
        let producing = raw.attach(name, Role::Produce);
        let consuming = raw.attach(name, Role::Consume);
        let (mut producer, mut consumer) = (producing.producer(), consuming.consumer());
        for round in 0..200_u64 {
            producer.try_send(0, &[], &round.to_le_bytes()).unwrap();
            let taken = consumer.try_take().unwrap();
            let mut bytes = [0; 8];
            assert_eq!(consumer.read(&taken, 0, &mut bytes), 8);
            assert_eq!(u64::from_le_bytes(bytes), round);
            consumer.release(taken);
        }
        let info = raw.info(name);
        assert_eq!((info.producers, info.consumers, info.used_slots, info.tail), (1, 1, 0, 200));
        assert_eq!(info.handles.len(), 2);
        for handle in &info.handles {
            assert_eq!((handle.messages, handle.bytes), (200, 1600), "{handle:?}");
            assert_eq!((handle.pid, handle.state.as_str()), (std::process::id(), "attached"));
        }
        // Filled by `queue info` only.
        let Reply::Queues(queues) = raw.ask(&Request::ListQueues { after: String::new() }) else {
            panic!();
        };
        assert!(queues.iter().all(|queue| queue.handles.is_empty()));
    }
}

#[test]
fn lists_come_in_pages_in_the_order_of_names() {
    let daemon = Daemon::start();
    let mut raw = Raw::hello(&daemon.socket, 1);
    // The longest names there are: a page must fit a frame all the same.
    let mut names: Vec<String> = (0..150).map(|number| format!("{number:0>200}")).collect();
    for name in names.iter().rev() {
        raw.create(name, spsc());
    }
    let mut seen = Vec::new();
    let mut pages = 0;
    loop {
        let after = seen.last().cloned().unwrap_or_default();
        match raw.ask(&Request::ListQueues { after }) {
            Reply::Queues(page) if page.is_empty() => break,
            Reply::Queues(page) => seen.extend(page.into_iter().map(|queue| queue.name)),
            other => panic!("{other:?}"),
        }
        pages += 1;
    }
    names.sort();
    assert_eq!(seen, names);
    assert!(pages > 1);
}

#[test]
fn deleting_closes_for_everybody() {
    let daemon = Daemon::start();
    let mut raw = Raw::hello(&daemon.socket, 1);
    let first = raw.create("q", mpmc());
    let producing = raw.attach("q", Role::Produce);
    let consuming = raw.attach("q", Role::Consume);
    let (mut producer, mut consumer) = (producing.producer(), consuming.consumer());
    producer.try_send(0, &[], b"x").unwrap();
    assert_eq!(raw.ask(&Request::DeleteQueue { name: "q".into() }), Reply::Done);
    let refused = producer.try_send(0, &[], b"x");
    assert_eq!(refused, Err(TrySendError::Closed(Closed::Deleted)));
    assert_eq!(consumer.try_take().unwrap_err(), TryReceiveError::Closed(Closed::Deleted));
    let (code, _) = raw.refused(&Request::attach("q", Role::Consume));
    assert_eq!(code, ErrorCode::NotFound);
    let (code, _) = raw.refused(&Request::Detach { handle: producing.key() });
    assert_eq!(code, ErrorCode::NotFound);
    // The name is free again, the id is not.
    assert!(raw.create("q", mpmc()).id > first.id);
    assert_eq!(raw.status().handles, 0);
}

#[test]
fn purge_takes_what_is_there() {
    let daemon = Daemon::start();
    let mut raw = Raw::hello(&daemon.socket, 1);
    for (name, spec) in [("s", spsc()), ("m", mpmc())] {
        raw.create(name, spec);
        let producing = raw.attach(name, Role::Produce);
        let mut producer = producing.producer();
        for _ in 0..10 {
            producer.try_send(0, &[], b"x").unwrap();
        }
        let purge = Request::PurgeQueue { name: name.into() };
        assert_eq!(raw.ask(&purge), Reply::Purged { messages: 10 });
        assert_eq!(raw.ask(&purge), Reply::Purged { messages: 0 });
        producer.try_send(0, &[], b"y").unwrap();
        let consuming = raw.attach(name, Role::Consume);
        let mut consumer = consuming.consumer();
        let taken = consumer.try_take().unwrap();
        assert!(!taken.redelivered());
        consumer.release(taken);
    }
    let (code, text) = raw.refused(&Request::PurgeQueue { name: "s".into() });
    assert_eq!(code, ErrorCode::Busy, "{text}");
    assert!(text.contains(&std::process::id().to_string()), "{text}");
}

#[test]
fn an_spsc_queue_has_one_of_each() {
    let daemon = Daemon::start();
    let mut raw = Raw::hello(&daemon.socket, 1);
    raw.create("s", spsc());
    let producing = raw.attach("s", Role::Produce);
    let _consuming = raw.attach("s", Role::Consume);
    let again = Request::attach("s", Role::Produce);
    let (code, text) = raw.refused(&again);
    assert_eq!(code, ErrorCode::Busy);
    assert!(text.contains(&std::process::id().to_string()), "{text}");
    assert_eq!(raw.ask(&Request::Detach { handle: producing.key() }), Reply::Done);
    let next = raw.attach("s", Role::Produce);
    assert_ne!(next.key(), producing.key());
}

#[test]
fn what_a_handle_still_held_when_it_was_given_back_is_given_out_again() {
    for spec in [mpmc(), spsc()] {
        let daemon = Daemon::start();
        let mut raw = Raw::hello(&daemon.socket, 1);
        raw.create("q", spec);
        let producing = raw.attach("q", Role::Produce);
        let consuming = raw.attach("q", Role::Consume);
        let (mut producer, mut consumer) = (producing.producer(), consuming.consumer());
        producer.try_send(0, &[], b"x").unwrap();
        let held = consumer.try_take().unwrap();
        assert_eq!(raw.ask(&Request::Detach { handle: consuming.key() }), Reply::Done);
        let (code, _) = raw.refused(&Request::Detach { handle: consuming.key() });
        assert_eq!(code, ErrorCode::NotFound);
        let info = raw.info("q");
        assert_eq!((info.returned, info.handles.len()), (1, 1), "{info:?}");
        let _ = held;
        let next = raw.attach("q", Role::Consume);
        assert_eq!(next.key().handle, consuming.key().handle);
        let mut successor = next.consumer();
        let taken = successor.try_take().unwrap();
        assert!(taken.redelivered());
        successor.release(taken);
        // Every slot can be used.
        for _ in 0..64 {
            producer.try_send(0, &[], b"y").unwrap();
        }
    }
}

#[test]
fn reconnecting_resumes_what_is_named_and_gives_back_the_rest() {
    let daemon = Daemon::start();
    let mut raw = Raw::hello(&daemon.socket, 9);
    raw.create("m", mpmc());
    let kept = raw.attach("m", Role::Produce);
    let dropped = raw.attach("m", Role::Consume);
    drop(raw);
    let mut other = Raw::hello(&daemon.socket, 10);
    let info = eventually("the daemon sees the connection closed", || {
        let info = other.info("m");
        (info.handles.len() == 2 && info.handles[0].state == "detached").then_some(info)
    });
    assert!(info.handles.iter().all(|handle| handle.state == "detached"), "{info:?}");
    let mut foreign = kept.key();
    foreign.epoch += 77;
    let (mut raw, lost) = Raw::resume(&daemon.socket, 9, &[kept.key(), foreign]);
    assert_eq!(lost, [foreign]);
    let info = raw.info("m");
    assert_eq!(info.handles.len(), 1, "{:?} was given back", dropped.key());
    assert_eq!(
        (info.handles[0].handle, info.handles[0].state.as_str()),
        (kept.key().handle, "attached")
    );
    // Another session of the same process has no claim on the handle.
    let (code, _) = other.refused(&Request::Detach { handle: kept.key() });
    assert_eq!(code, ErrorCode::NotFound);
    // The newer connection of a session replaces the older one.
    let (mut newer, _) = Raw::resume(&daemon.socket, 9, &[kept.key()]);
    assert_eq!(newer.info("m").handles.len(), 1);
    eventually("the older connection is closed", || raw.is_closed().then_some(()));
}

#[test]
fn limits_name_the_number_and_the_way_out() {
    let limits = ["--limit-queues", "2", "--limit-bytes", "200000", "--limit-handles", "3"];
    let daemon = Daemon::start_with(&limits);
    let mut raw = Raw::hello(&daemon.socket, 1);
    let create = |name: &str, spec| Request::CreateQueue { name: name.into(), spec };
    let large = QueueSpec { slots: Some(4096), ..mpmc() };
    let (code, text) = raw.refused(&create("large", large));
    assert_eq!(code, ErrorCode::Limit);
    assert!(text.contains("200000"), "{text}");
    raw.create("a", mpmc());
    raw.create("b", mpmc());
    let (code, text) = raw.refused(&create("c", mpmc()));
    assert_eq!(code, ErrorCode::Limit);
    assert!(text.contains("2 queues"), "{text}");
    let attach = Request::attach("a", Role::Consume);
    let handles: Vec<_> = (0..3).map(|_| raw.attach("a", Role::Consume)).collect();
    let (code, text) = raw.refused(&attach);
    assert_eq!(code, ErrorCode::Limit);
    assert!(text.contains("limit is 3"), "{text}");
    // What is given back counts no more.
    assert_eq!(raw.ask(&Request::Detach { handle: handles[0].key() }), Reply::Done);
    raw.attach("a", Role::Consume);
    assert_eq!(raw.ask(&Request::DeleteQueue { name: "b".into() }), Reply::Done);
    raw.create("c", mpmc());
}

#[test]
fn more_than_the_host_has_is_refused() {
    let daemon = Daemon::start_with(&["--limit-bytes", "999999999999999"]);
    // Four thousand million bytes fit some hosts: a file-size limit makes the refusal certain.
    let status = daemon.status();
    let mut raw = Raw::hello(&daemon.socket, 1);
    for (number, limit, lifted) in
        [(1, "--fsize=65536:", "--fsize=unlimited:"), (2, "--as=100000000:", "--as=unlimited:")]
    {
        let set = |limit: &str| {
            std::process::Command::new("prlimit")
                .args([limit, "--pid", &status.broker_pid.to_string()])
                .status()
                .is_ok_and(|status| status.success())
        };
        if !set(limit) {
            eprintln!("skipped: no prlimit here");
            return;
        }
        let spec = QueueSpec { slots: Some(1 << 19), slot_size: Some(256), ..mpmc() };
        let request = Request::CreateQueue { name: "q".into(), spec };
        let (code, text) = raw.refused(&request);
        assert_eq!(code, ErrorCode::Limit, "{text}");
        assert!(text.contains("fewer or smaller slots"), "{text}");
        raw.create(&format!("small-{number}"), spsc());
        assert!(set(lifted));
    }
    assert_eq!(raw.status().broker_pid, status.broker_pid);
}

#[test]
fn large_queues_are_allocated_while_others_are_served() {
    let daemon = Daemon::start();
    let large = QueueSpec { slots: Some(1 << 15), slot_size: Some(4096), ..spsc() };
    let create =
        CONTROL.encode(&Request::CreateQueue { name: "large".into(), spec: large.clone() });
    let create = create.unwrap();
    let mut slow = Raw::hello(&daemon.socket, 1);
    let mut quick = Raw::hello(&daemon.socket, 2);
    slow.send_bytes(&create, &[]);
    quick.create("small", spsc());
    let again = Request::CreateQueue { name: "large".into(), spec: large.clone() };
    let (code, _) = quick.refused(&again);
    assert!(matches!(code, ErrorCode::Busy | ErrorCode::Exists));
    let Ok((Reply::Queue(info), _)) = slow.receive() else { panic!() };
    assert_eq!(info.memory_bytes, (128 << 20) + 3 * 4096);
    assert_eq!(slow.refused(&again).0, ErrorCode::Exists);
    // Its creator goes away before it is there: nothing remains, and its bytes count no more.
    assert_eq!(slow.ask(&Request::DeleteQueue { name: "large".into() }), Reply::Done);
    slow.send_bytes(&create, &[]);
    drop(slow);
    eventually("the limit has room again", || {
        let name = "full".to_owned();
        let spec = QueueSpec { slot_size: Some(28 << 10), ..large.clone() };
        let done = matches!(quick.ask(&Request::CreateQueue { name, spec }), Reply::Queue(_));
        done.then_some(())
    });
}

#[test]
fn a_daemon_without_descriptors_says_so_and_goes_on() {
    let daemon = Daemon::start();
    let status = daemon.status();
    let limit = |pid: u32, files: u32| {
        std::process::Command::new("prlimit")
            .args([&format!("--nofile={files}:20000"), "--pid", &pid.to_string()])
            .status()
            .is_ok_and(|status| status.success())
    };
    for (pid, files) in [(status.keeper_pid, 40), (status.broker_pid, 60)] {
        if !limit(pid, files) {
            eprintln!("skipped: no prlimit here");
            return;
        }
        let mut raw = Raw::hello(&daemon.socket, 1);
        let mut created = Vec::new();
        let (code, text) = (0..60)
            .find_map(|number| {
                let name = format!("{pid}-{number}");
                let request = Request::CreateQueue { name: name.clone(), spec: spsc() };
                match raw.ask(&request) {
                    Reply::Queue(_) => {
                        created.push(name);
                        None
                    }
                    Reply::Error { code, message } => Some((code, message)),
                    other => panic!("{other:?}"),
                }
            })
            .expect("the descriptors run out");
        assert!(matches!(code, ErrorCode::Limit | ErrorCode::Io), "{text}");
        assert!(!created.is_empty());
        // Whoever connects now is told so or served, but not left alone.
        let held: Vec<_> = (0..40).map(|_| Raw::connect(&daemon.socket)).collect();
        for mut other in held {
            // Its words come before the end, even if our request came too late.
            let reply = other.try_ask(&hello(2)).or_else(|_| other.receive());
            assert!(reply.is_ok(), "{reply:?}");
        }
        for name in created {
            assert_eq!(raw.ask(&Request::DeleteQueue { name }), Reply::Done);
        }
        assert!(limit(pid, 20000));
        assert_eq!(raw.status().broker_pid, status.broker_pid);
    }
}

#[test]
fn a_queue_has_254_handles() {
    let daemon = Daemon::start();
    let mut raw = Raw::hello(&daemon.socket, 1);
    raw.create("m", mpmc());
    let request = Request::attach("m", Role::Consume);
    for _ in 0..254 {
        assert!(matches!(raw.ask(&request), Reply::Attached(_)));
    }
    let (code, text) = raw.refused(&request);
    assert_eq!(code, ErrorCode::Limit);
    assert!(text.contains("254"), "{text}");
    // All of them fit one answer.
    assert_eq!(raw.info("m").handles.len(), 254);
}

#[test]
fn wake_modes_follow_the_option() {
    let fence = Daemon::start_with(&["--force-no-membarrier"]);
    let mut raw = Raw::hello(&fence.socket, 1);
    assert_eq!(raw.create("q", spsc()).wake_mode, WakeMode::Fence);
    let normal = Daemon::start();
    let mut raw = Raw::hello(&normal.socket, 1);
    let expected = if ringmain_client::sys::membarrier::supported() {
        WakeMode::Membarrier
    } else {
        WakeMode::Fence
    };
    assert_eq!(raw.create("q", spsc()).wake_mode, expected);
}

#[test]
fn doorbells_that_are_given_back_make_room() {
    let daemon = Daemon::start();
    let mut raw = Raw::hello(&daemon.socket, 1);
    raw.create("m", mpmc());
    let consuming = raw.attach("m", Role::Consume);
    let memory = create_sealed("doorbell", 4096).unwrap();
    let (_signals, bell) = signal_pair().unwrap();
    let register = CONTROL.encode(&Request::RegisterDoorbell).unwrap();
    let mut numbers = Vec::new();
    loop {
        raw.send_bytes(&register, &[memory.as_fd(), bell.as_fd()]);
        match raw.receive() {
            Ok((Reply::Doorbell { doorbell }, _)) => numbers.push(doorbell),
            Ok((Reply::Error { code: ErrorCode::Limit, .. }, _)) => break,
            other => panic!("{other:?}"),
        }
    }
    let release = Request::ReleaseDoorbell { doorbell: numbers[0] };
    let bind = Request::BindDoorbell { handle: consuming.key(), doorbell: numbers[0] };
    assert_eq!(raw.ask(&bind), Reply::Done);
    let mut other = Raw::hello(&daemon.socket, 2);
    assert_eq!(other.refused(&release).0, ErrorCode::NotFound);
    assert_eq!(raw.ask(&release), Reply::Done);
    assert_eq!(raw.refused(&release).0, ErrorCode::NotFound);
    let fetch = Request::FetchDoorbell { queue: consuming.key().queue, doorbell: numbers[0] };
    assert_eq!(raw.refused(&fetch).0, ErrorCode::NotFound);
    raw.send_bytes(&register, &[memory.as_fd(), bell.as_fd()]);
    let Ok((Reply::Doorbell { doorbell }, _)) = raw.receive() else { panic!() };
    assert!(!numbers.contains(&doorbell), "a number is used once");
    // The next broker does not know it either, and takes over what was bound to it.
    daemon.kill_broker();
    let (mut raw, lost) = Raw::resume(&daemon.socket, 1, &[consuming.key()]);
    assert!(lost.is_empty());
    assert_eq!(raw.refused(&fetch).0, ErrorCode::NotFound);
    assert_eq!(raw.refused(&release).0, ErrorCode::NotFound);
    assert_eq!(raw.ask(&Request::ReleaseDoorbell { doorbell }), Reply::Done);
    assert!(matches!(raw.ask(&Request::DeleteQueue { name: "m".into() }), Reply::Done));
}

#[test]
fn doorbells_are_handed_to_members_only_and_rung_on_delete() {
    let daemon = Daemon::start();
    let mut owner = Raw::hello(&daemon.socket, 1);
    owner.create("m", mpmc());
    let consuming = owner.attach("m", Role::Consume);
    let memory = create_sealed("doorbell", 4096).unwrap();
    let (signals, bell) = signal_pair().unwrap();
    let register = CONTROL.encode(&Request::RegisterDoorbell).unwrap();
    owner.send_bytes(&register, &[memory.as_fd(), bell.as_fd()]);
    let Ok((Reply::Doorbell { doorbell }, _)) = owner.receive() else { panic!() };
    let queue = consuming.key().queue;
    let fetch = Request::FetchDoorbell { queue, doorbell };
    // Not bound yet, and the other one no member yet.
    assert_eq!(owner.refused(&fetch).0, ErrorCode::NotFound);
    let bind = Request::BindDoorbell { handle: consuming.key(), doorbell };
    assert_eq!(owner.ask(&bind), Reply::Done);
    let mut publisher = Raw::hello(&daemon.socket, 2);
    assert_eq!(publisher.refused(&fetch).0, ErrorCode::NotFound);
    assert_eq!(publisher.refused(&bind).0, ErrorCode::NotFound);
    let _producing = publisher.attach("m", Role::Produce);
    let (reply, descriptors) = publisher.try_ask(&fetch).unwrap();
    assert_eq!((reply, descriptors.len()), (Reply::Doorbell { doorbell }, 2));

    // The owner waits on its socket; deleting the queue rings.
    let consumer = consuming.consumer();
    let mapping = ringmain_client::sys::map::Mapping::map(
        memory.as_fd(),
        4096,
        ringmain_client::sys::map::Access::ReadWrite,
        ringmain_client::sys::map::Populate::Now,
    )
    .unwrap();
    // SAFETY: page-aligned, mapped for 4096 bytes until the end of the test.
    let bell = unsafe { ringmain_client::ring::Region::new(mapping.base(), 4096) };
    use ringmain_client::layout::doorbell as layout;
    bell.u32_at(layout::MODE).store(layout::MODE_SOCKET, Ordering::SeqCst);
    consumer.line().set_doorbell(doorbell, 70);
    consumer.own_park().announce(consumer.handle());
    assert!(!signals.drain());
    assert_eq!(publisher.ask(&Request::DeleteQueue { name: "m".into() }), Reply::Done);
    assert!(signals.drain());
    assert_eq!(bell.u64_at(layout::PENDING + 8).load(Ordering::SeqCst), 1 << 6);
}

#[test]
fn a_blocking_socket_does_not_hold_up_the_daemon() {
    let daemon = Daemon::start();
    let mut owner = Raw::hello(&daemon.socket, 1);
    owner.create("m", mpmc());
    let consuming = owner.attach("m", Role::Consume);
    let memory = create_sealed("doorbell", 4096).unwrap();
    let (_signals, bell) = signal_pair().unwrap();
    let register = CONTROL.encode(&Request::RegisterDoorbell).unwrap();
    owner.send_bytes(&register, &[memory.as_fd(), bell.as_fd()]);
    let Ok((Reply::Doorbell { doorbell }, _)) = owner.receive() else { panic!() };
    let bind = Request::BindDoorbell { handle: consuming.key(), doorbell };
    assert_eq!(owner.ask(&bind), Reply::Done);
    // Full, and made blocking again behind the daemon's back.
    while nix::unistd::write(bell.as_fd(), &[1]).is_ok() {}
    nix::fcntl::fcntl(bell.as_fd(), nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty()))
        .unwrap();
    let mode = ringmain_client::layout::doorbell::MODE_SOCKET.to_ne_bytes();
    nix::sys::uio::pwrite(&memory, &mode, 0x80).unwrap();
    let consumer = consuming.consumer();
    consumer.line().set_doorbell(doorbell, 0);
    consumer.own_park().announce(consumer.handle());
    assert_eq!(owner.ask(&Request::DeleteQueue { name: "m".into() }), Reply::Done);
}

#[test]
fn a_reported_fault_closes_an_mpmc_ring_and_no_spsc_ring() {
    let daemon = Daemon::start();
    let mut raw = Raw::hello(&daemon.socket, 1);
    raw.create("m", mpmc());
    raw.create("s", spsc());
    for (name, state) in [("m", "fault"), ("s", "open")] {
        let consuming = raw.attach(name, Role::Consume);
        let report = Request::ReportFault { handle: consuming.key(), what: "a\nb \u{7}".into() };
        assert_eq!(raw.ask(&report), Reply::Done);
        assert_eq!(raw.ask(&report), Reply::Done);
        assert_eq!(raw.info(name).state, state);
    }
    let (code, text) = raw.refused(&Request::attach("m", Role::Consume));
    assert_eq!(code, ErrorCode::Closed, "{text}");
    assert!(daemon.log().contains("queue m closed: a b"), "{}", daemon.log());
}
