//! Wrong messages of every kind: an error reply or a closed connection, and the same broker afterwards.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ringmain_client::protocol::frame::CONTROL;
use ringmain_client::protocol::{
    ErrorCode, FRAME_BYTES_MAX, HandleKey, Kind, QueueSpec, Reply, Request, Role,
};
use ringmain_client::sys::datagram::signal_pair;
use ringmain_client::sys::memory::create_sealed;
use ringmain_client::sys::packet::{Blocking, send_packet};

use crate::support::*;

fn no_handle() -> HandleKey {
    HandleKey { queue: 999, handle: 1, epoch: 1 }
}

/// One of each, all of which would be carried out or refused for a reason of their own.
fn requests() -> Vec<Request> {
    let name = || "q".to_owned();
    vec![
        hello(5),
        Request::CreateQueue { name: "other".into(), spec: mpmc() },
        Request::DeleteQueue { name: "other".into() },
        Request::PurgeQueue { name: name() },
        Request::ListQueues { after: name() },
        Request::QueueInfo { name: name() },
        Request::attach(name(), Role::Produce),
        Request::Detach { handle: no_handle() },
        Request::RegisterDoorbell,
        Request::BindDoorbell { handle: no_handle(), doorbell: 1 },
        Request::FetchDoorbell { queue: 1, doorbell: 1 },
        Request::ReportFault { handle: no_handle(), what: "nothing".into() },
        Request::Status,
        Request::Upgrade { binary: "/no/such/binary".into() },
    ]
}

/// Sends bytes and expects an error reply.
fn expect_error(
    raw: &mut Raw,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> (ErrorCode, String) {
    raw.send_bytes(bytes, descriptors);
    match raw.receive() {
        Ok((Reply::Error { code, message }, _)) => {
            assert!(!message.contains('\n') && !message.is_empty(), "{message:?}");
            (code, message)
        }
        other => panic!("{bytes:x?}: {other:?}"),
    }
}

#[test]
fn wrong_frames_of_every_request() {
    let daemon = Daemon::start();
    let before = daemon.status();
    let mut raw = Raw::hello(&daemon.socket, 1);
    raw.create("q", mpmc());
    let null: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    for request in requests() {
        let good = CONTROL.encode(&request).unwrap();
        for length in 1..good.len() {
            let (code, _) = expect_error(&mut raw, &good[..length], &[]);
            assert_eq!(code, ErrorCode::Invalid, "{request:?} cut to {length}");
        }
        // Cut and with a header that agrees: the body is too short.
        for length in 12..good.len() {
            let mut cut = good[..length].to_vec();
            cut[8..12].copy_from_slice(&u32::try_from(length - 12).unwrap().to_le_bytes());
            let (code, _) = expect_error(&mut raw, &cut, &[]);
            assert_eq!(code, ErrorCode::Invalid, "{request:?} cut to {length}");
        }
        let with = |index: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[index] = value;
            bytes
        };
        for (bytes, expected) in [
            ([good.as_slice(), &[0]].concat(), ErrorCode::Invalid),
            (with(0, b'X'), ErrorCode::Invalid),
            (with(4, 99), ErrorCode::Version),
            (with(6, 1), ErrorCode::Invalid),
            (with(11, 0xff), ErrorCode::Invalid),
            (with(12, 200), ErrorCode::Invalid),
        ] {
            let (code, text) = expect_error(&mut raw, &bytes, &[]);
            assert_eq!(code, expected, "{request:?}: {text}");
        }
        // Descriptors where none (or others) belong; those of a doorbell have a test of their own.
        let some = [null.as_fd()];
        let (code, text) = expect_error(&mut raw, &good, &some);
        assert_eq!(code, ErrorCode::Invalid, "{request:?}: {text}");
        assert!(text.contains("1 descriptors"), "{text}");
        // Before Hello.
        if !matches!(request, Request::Hello { .. }) {
            let mut fresh = Raw::connect(&daemon.socket);
            let text = match &request {
                Request::RegisterDoorbell => "0 descriptors",
                _ => "Hello",
            };
            assert!(fresh.refused(&request).1.contains(text));
        }
    }
    let after = raw.status();
    assert_eq!(after.broker_pid, before.broker_pid);
    assert_eq!((after.queues, after.handles), (1, 0));
}

#[test]
fn packets_that_are_too_long_or_carry_too_much() {
    let daemon = Daemon::start();
    let before = daemon.status();
    let mut raw = Raw::hello(&daemon.socket, 1);
    let (code, text) = expect_error(&mut raw, &vec![0; FRAME_BYTES_MAX + 1], &[]);
    assert_eq!(code, ErrorCode::Invalid);
    assert!(text.contains("at most"), "{text}");
    // More descriptors than any message has, sent without our own check.
    let raw_fds = [0; 40];
    let rights = [nix::sys::socket::ControlMessage::ScmRights(&raw_fds)];
    let frame = CONTROL.encode(&Request::Status).unwrap();
    let part = [std::io::IoSlice::new(&frame)];
    use std::os::fd::AsRawFd;
    for _ in 0..50 {
        nix::sys::socket::sendmsg::<()>(
            raw.socket.as_raw_fd(),
            &part,
            &rights,
            nix::sys::socket::MsgFlags::empty(),
            None,
        )
        .unwrap();
        let (reply, _) = raw.receive().unwrap();
        assert!(matches!(reply, Reply::Error { code: ErrorCode::Invalid, .. }), "{reply:?}");
    }
    let open = std::fs::read_dir(format!("/proc/{}/fd", before.broker_pid)).unwrap().count();
    assert!(open < 30, "{open} descriptors are open: some leaked");
    // An empty packet reads like the end of the connection.
    send_packet(raw.socket.as_fd(), &[], &[], Blocking::Wait).unwrap();
    eventually("the connection is closed", || raw.is_closed().then_some(()));
    assert_eq!(daemon.status().broker_pid, before.broker_pid);
}

#[test]
fn foreign_descriptors_for_a_doorbell() {
    let daemon = Daemon::start();
    let before = daemon.status();
    let mut raw = Raw::hello(&daemon.socket, 1);
    let frame = CONTROL.encode(&Request::RegisterDoorbell).unwrap();
    let good = create_sealed("doorbell", 4096).unwrap();
    let wrong_size = create_sealed("doorbell", 8192).unwrap();
    let (_signals, shared) = signal_pair().unwrap();
    let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let null: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    let file = tempfile::tempfile().unwrap();
    file.set_len(4096).unwrap();
    let read_only = ringmain_client::sys::memory::reopen_read_only(good.as_fd()).unwrap();
    let flags = nix::sys::memfd::MFdFlags::MFD_ALLOW_SEALING;
    let unsealed = nix::sys::memfd::memfd_create(c"doorbell", flags).unwrap();
    nix::unistd::ftruncate(&unsealed, 4096).unwrap();
    let (bell, other) = (shared.as_fd(), good.as_fd());
    for (descriptors, word) in [
        (vec![], "0 descriptors"),
        (vec![other], "1 descriptors"),
        (vec![other, bell, bell], "3 descriptors"),
        (vec![bell, other], "first descriptor"),
        (vec![null.as_fd(), bell], "first descriptor"),
        (vec![file.as_fd(), bell], "first descriptor"),
        (vec![wrong_size.as_fd(), bell], "8192 bytes"),
        (vec![unsealed.as_fd(), bell], "not sealed"),
        (vec![read_only.as_fd(), bell], "cannot be mapped"),
        (vec![other, null.as_fd()], "second descriptor"),
        (vec![other, other], "second descriptor"),
        (vec![other, stream.as_fd()], "second descriptor"),
        (vec![other, raw.socket.try_clone().unwrap().as_fd()], "second descriptor"),
    ] {
        let (code, text) = expect_error(&mut raw, &frame, &descriptors);
        assert_eq!(code, ErrorCode::Invalid, "{text}");
        assert!(text.contains(word), "{word}: {text}");
    }
    for _ in 0..16 {
        raw.send_bytes(&frame, &[other, bell]);
        assert!(matches!(raw.receive(), Ok((Reply::Doorbell { .. }, _))));
    }
    let (code, _) = expect_error(&mut raw, &frame, &[other, bell]);
    assert_eq!(code, ErrorCode::Limit);
    assert_eq!(raw.status().broker_pid, before.broker_pid);
}

#[test]
fn wrong_values() {
    let daemon = Daemon::start();
    let before = daemon.status();
    let mut raw = Raw::hello(&daemon.socket, 1);
    raw.create("q", spsc());
    let attached = raw.attach("q", Role::Produce);
    let create = |spec| Request::CreateQueue { name: "new".into(), spec };
    let with_slots = |slots| create(QueueSpec { slots: Some(slots), ..spsc() });
    let with_size = |size| create(QueueSpec { slot_size: Some(size), ..spsc() });
    let named = |name: &str| Request::CreateQueue { name: name.into(), spec: spsc() };
    let epoch = HandleKey { epoch: attached.key().epoch + 1, ..attached.key() };
    let index = HandleKey { handle: 200, ..attached.key() };
    use ErrorCode::{Exists, Invalid, Limit, NotFound};
    for (request, code, word) in [
        (hello(0), Invalid, "zero"),
        (hello(1), Invalid, "already"),
        (named(""), Invalid, "name"),
        (named(".hidden"), Invalid, "name"),
        (named("-flag"), Invalid, "name"),
        (named("a/b"), Invalid, "name"),
        (named("a b"), Invalid, "name"),
        (named("ü"), Invalid, "name"),
        (named("new\nline"), Invalid, "name"),
        (named(&"x".repeat(201)), Invalid, "name"),
        (named(&"x".repeat(60_000)), Invalid, "name"),
        (named("q"), Exists, "exists"),
        (with_slots(0), Invalid, "power of two"),
        (with_slots(63), Invalid, "power of two"),
        (with_slots(32), Invalid, "power of two"),
        (with_slots(1 << 20), Invalid, "power of two"),
        (with_slots(u32::MAX), Invalid, "power of two"),
        (with_size(0), Invalid, "multiple of 16"),
        (with_size(72), Invalid, "multiple of 16"),
        (with_size(1 << 21), Invalid, "multiple of 16"),
        (create(QueueSpec { max_message: Some(1 << 20), ..spsc() }), Invalid, "quarter"),
        (
            create(QueueSpec { slots: Some(1 << 19), slot_size: Some(1 << 20), ..spsc() }),
            Invalid,
            "at most",
        ),
        (
            create(QueueSpec { slots: Some(1 << 16), slot_size: Some(1 << 16), ..spsc() }),
            Limit,
            "limit",
        ),
        (create(QueueSpec { mode: Some(0o1777), ..spsc() }), Invalid, "mode"),
        (create(QueueSpec { group: Some("no such group".into()), ..spsc() }), Invalid, "group"),
        (create(QueueSpec { group: Some("\0".into()), ..spsc() }), Invalid, "group"),
        (Request::DeleteQueue { name: "none".into() }, NotFound, "none"),
        (Request::DeleteQueue { name: "\n\0".into() }, NotFound, "does not exist"),
        (Request::PurgeQueue { name: "none".into() }, NotFound, "none"),
        (Request::QueueInfo { name: "none".into() }, NotFound, "none"),
        (Request::QueueInfo { name: "x".repeat(60_000) }, NotFound, "does not exist"),
        (Request::attach("none", Role::Consume), NotFound, "none"),
        (Request::Detach { handle: no_handle() }, NotFound, "handle"),
        (Request::Detach { handle: epoch }, NotFound, "handle"),
        (Request::Detach { handle: index }, NotFound, "handle"),
        (Request::BindDoorbell { handle: attached.key(), doorbell: 1 }, NotFound, "doorbell"),
        (Request::BindDoorbell { handle: attached.key(), doorbell: 0 }, NotFound, "doorbell"),
        (Request::FetchDoorbell { queue: 12345, doorbell: 1 }, NotFound, "queue"),
        (Request::FetchDoorbell { queue: attached.key().queue, doorbell: 1 }, NotFound, "doorbell"),
        (Request::ReportFault { handle: epoch, what: "x".into() }, NotFound, "handle"),
    ] {
        let (found, text) = raw.refused(&request);
        assert_eq!(found, code, "{request:?}: {text}");
        assert!(text.contains(word), "{word}: {text}");
    }
    let status = raw.status();
    assert_eq!(status.broker_pid, before.broker_pid);
    assert_eq!((status.queues, status.handles), (1, 1));
    assert_eq!(raw.info("q").kind, Kind::Spsc);
}

/// A small generator, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }
}

#[test]
fn ten_thousand_random_packets() {
    let daemon = Daemon::start_with(&["--limit-queues", "50", "--limit-bytes", "50000000"]);
    let before = daemon.status();
    let good: Vec<Vec<u8>> = requests()
        .iter()
        // The broker would do as it is told.
        .filter(|request| !matches!(request, Request::Upgrade { .. }))
        .map(|request| CONTROL.encode(request).unwrap())
        .collect();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut raw = Raw::hello(&daemon.socket, 1);
    for round in 0..10_000 {
        let mut bytes = if round % 2 == 0 {
            // A right header around a random body.
            let length = 1 + random.below(64);
            let mut bytes = Vec::from(*b"RMCP");
            bytes.extend_from_slice(&[1, 0, 0, 0]);
            bytes.extend_from_slice(&u32::try_from(length).unwrap().to_le_bytes());
            bytes.extend((0..length).map(|_| random.byte()));
            // Variant 13 is Upgrade, which would be carried out.
            bytes[12] %= 13;
            bytes
        } else {
            good[random.below(good.len())].clone()
        };
        if round % 2 == 1 {
            for _ in 0..=random.below(3) {
                let index = random.below(bytes.len());
                bytes[index] = random.byte();
            }
            if bytes.get(12) == Some(&13) {
                continue;
            }
        }
        raw.send_bytes(&bytes, &[]);
        raw.receive().unwrap_or_else(|error| panic!("round {round}, {bytes:x?}: {error}"));
    }
    let mut fresh = Raw::hello(&daemon.socket, 2);
    assert_eq!(fresh.status().broker_pid, before.broker_pid);
    fresh.create("afterwards", spsc());
}

#[test]
fn a_client_that_never_reads_is_disconnected() {
    let daemon = Daemon::start();
    let before = daemon.status();
    let mut lazy = Raw::hello(&daemon.socket, 1);
    for number in 0..40 {
        lazy.create(&format!("{number:0>200}"), spsc());
    }
    let list = CONTROL.encode(&Request::ListQueues { after: String::new() }).unwrap();
    let sent = (0..100_000)
        .find(|_| send_packet(lazy.socket.as_fd(), &list, &[], Blocking::Wait).is_err());
    assert!(sent.is_some(), "it was never disconnected");
    assert_eq!(daemon.status().broker_pid, before.broker_pid);
}

#[test]
fn many_connections_of_one_user_are_bounded() {
    let daemon = Daemon::start();
    let before = daemon.status();
    let mut held = Vec::new();
    let refused = (0..4000).find_map(|_| {
        let mut raw = Raw::try_connect(&daemon.socket)?;
        match raw.try_ask(&hello(1)) {
            Ok((Reply::Error { code, .. }, _)) => Some(code),
            // The answer may be on its way while the connection is closed already.
            Err(_) => raw.receive().ok().map(|_| ErrorCode::Limit).or(Some(ErrorCode::Limit)),
            Ok(_) => {
                // Of another session each, else the newer replaces the older.
                held.push(raw);
                None
            }
        }
    });
    drop(held);
    // All said Hello for the same session: each replaced the one before, so there was room for all of them.
    assert_eq!(refused, None);
    let silent: Vec<_> = (0..2100).map_while(|_| Raw::try_connect(&daemon.socket)).collect();
    assert_eq!(silent.len(), 2100);
    let refused = silent.into_iter().rev().find_map(|mut raw| {
        matches!(raw.receive(), Ok((Reply::Error { code: ErrorCode::Limit, .. }, _))).then_some(())
    });
    assert!(refused.is_some());
    eventually("there is room again", || {
        let mut raw = Raw::try_connect(&daemon.socket)?;
        let reply = raw.try_ask(&hello(2)).ok()?.0;
        matches!(reply, Reply::Welcome { .. }).then_some(())
    });
    assert_eq!(daemon.status().broker_pid, before.broker_pid);
}
