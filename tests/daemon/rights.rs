//! Other users. Needs root to become them; without it these tests say so and pass.

use ringmain_client::DeliverySpec;
use ringmain_client::protocol::{QueueSpec, Request, Role};

use crate::brokered_support::*;
use crate::support::*;

const NOBODY: &str = "65534";

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: only root can become another user");
    }
    root
}

#[test]
fn the_mode_decides_what_others_may_do() {
    if !is_root() {
        return;
    }
    let daemon = Daemon::start();
    let mut raw = Raw::hello(&daemon.socket, 1);
    raw.create("private", mpmc());
    raw.create("shared", QueueSpec { mode: Some(0o706), ..mpmc() });
    raw.create("inbox", QueueSpec { mode: Some(0o702), ..spsc() });
    raw.create("outbox", QueueSpec { mode: Some(0o704), ..spsc() });
    raw.create("managed", QueueSpec { mode: Some(0o701), ..spsc() });
    for (words, expected) in [
        (["produce", "private"], "NotPermitted"),
        (["info", "private"], "NotPermitted"),
        (["delete", "private"], "NotPermitted"),
        (["purge", "private"], "NotPermitted"),
        (["produce", "shared"], "ok"),
        (["consume", "shared"], "ok"),
        (["delete", "shared"], "NotPermitted"),
        (["produce", "inbox"], "ok"),
        (["consume", "inbox"], "NotPermitted"),
        (["consume", "outbox"], "ok"),
        (["produce", "outbox"], "NotPermitted"),
        (["purge", "outbox"], "NotPermitted"),
        (["info", "outbox"], "ok"),
        (["purge", "managed"], "ok"),
        (["consume", "managed"], "NotPermitted"),
        (["delete", "managed"], "ok"),
        (["list", ""], "ok 3"),
        (["create", "mine"], "ok"),
        (["create-root-group", "other"], "NotPermitted"),
        (["upgrade", ""], "NotPermitted"),
    ] {
        let child = Actor::start(&daemon.socket, &["as", NOBODY, words[0], words[1]]);
        let said = child.says();
        let fits = if expected == "ok" { said == "ok" } else { said.starts_with(expected) };
        assert!(fits, "{words:?}: {said}");
    }
    // Root passes, whoever owns the queue.
    let info = raw.info("mine");
    assert_eq!((info.owner_uid, info.group_gid, info.mode), (65534, 65534, 0o700));
    raw.attach("mine", Role::Consume);
}

#[test]
fn limits_count_for_each_user_alone() {
    if !is_root() {
        return;
    }
    let daemon = Daemon::start_with(&["--limit-queues", "1"]);
    let mut raw = Raw::hello(&daemon.socket, 1);
    raw.create("roots", mpmc());
    let child = Actor::start(&daemon.socket, &["as", NOBODY, "create", "nobodys"]);
    assert_eq!(child.says(), "ok");
    let child = Actor::start(&daemon.socket, &["as", NOBODY, "create", "more"]);
    assert!(child.says().starts_with("Limit "));
    let request = Request::CreateQueue { name: "too".into(), spec: mpmc() };
    assert!(raw.refused(&request).1.contains("user 0"));
}

#[test]
fn nobody_has_messages_moved_to_where_he_may_not_publish() {
    if !is_root() {
        return;
    }
    let daemon = Daemon::start();
    let client = ringmain_client::Client::connect(&daemon.socket).unwrap();
    let with_mode = |mode| QueueSpec { mode: Some(mode), ..in_memory() };
    client.create_queue("dead", with_mode(0o701)).unwrap();
    for (queue, mode) in [("private", 0o700), ("open", 0o702)] {
        let rules =
            DeliverySpec { dead_letter: Some("dead".to_owned()), ..DeliverySpec::default() };
        client.create_queue(queue, with_rules(with_mode(mode), rules)).unwrap();
        publish(&mut producer(&client, queue), ["m".to_owned()]);
        let mut worker = consumer(&client, queue);
        let delivery = receive(&mut worker);
        worker.reject_confirmed(&delivery, PATIENCE).unwrap();
    }
    let child = Actor::start(&daemon.socket, &["as", NOBODY, "redrive", "dead"]);
    assert_eq!(child.says(), "ok 1");
    assert_eq!(inside(&client, "open").messages, 1);
    assert_eq!(client.redrive("dead", 0).unwrap(), 1);
    assert_eq!(inside(&client, "private").messages, 1);
}

#[test]
fn kernels_without_peer_pidfd_are_served_as_well() {
    let daemon = Daemon::start_with(&["--force-no-peer-pidfd"]);
    let mut raw = Raw::hello(&daemon.socket, 1);
    raw.create("m", mpmc());
    let child = Actor::started(&daemon.socket, &["hold", "m", "idle"]);
    assert_eq!(raw.info("m").handles[0].pid, child.pid());
    child.kill();
    eventually("repair", || raw.info("m").handles.is_empty().then_some(()));
}

#[test]
fn a_peer_outside_the_pid_namespace_is_served_or_told_why_not() {
    if !is_root() {
        return;
    }
    let unshare = ["unshare", "--pid", "--fork", "--kill-child=SIGTERM"];
    let works = std::process::Command::new(unshare[0])
        .args(&unshare[1..])
        .arg("true")
        .status()
        .is_ok_and(|status| status.success());
    if !works {
        eprintln!("skipped: no pid namespaces here");
        return;
    }
    // The daemon cannot see our pid. With a pidfd of the peer it need not.
    let daemon = Daemon::start_under(&unshare, tempfile::tempdir().unwrap(), &[]);
    let mut raw = Raw::connect(&daemon.socket);
    let has_peer_pidfd =
        nix::sys::socket::getsockopt(&raw.socket, nix::sys::socket::sockopt::PeerPidfd).is_ok();
    if has_peer_pidfd {
        assert!(matches!(raw.ask(&hello(1)), ringmain_client::protocol::Reply::Welcome { .. }));
        raw.create("m", mpmc());
        let held = raw.attach("m", Role::Consume);
        let child = Actor::started(&daemon.socket, &["hold", "m", "idle"]);
        assert_eq!(raw.info("m").handles.len(), 2);
        child.kill();
        eventually("repair", || (raw.info("m").handles.len() == 1).then_some(()));
        // The same process is known again after a restart of the broker, another session is not it.
        let (_raw, lost) = Raw::resume(&daemon.socket, 1, &[held.key()]);
        assert!(lost.is_empty());
        let (_raw, lost) = Raw::resume(&daemon.socket, 2, &[held.key()]);
        assert_eq!(lost, [held.key()]);
    }
    let arguments = ["--force-no-peer-pidfd"];
    let daemon = Daemon::start_under(&unshare, tempfile::tempdir().unwrap(), &arguments);
    let mut raw = Raw::connect(&daemon.socket);
    let (code, text) = match raw.try_ask(&hello(1)).or_else(|_| raw.receive()) {
        Ok((ringmain_client::protocol::Reply::Error { code, message }, _)) => (code, message),
        other => panic!("{other:?}"),
    };
    assert_eq!(code, ringmain_client::protocol::ErrorCode::NotPermitted);
    assert!(text.contains("pid namespace"), "{text}");
}
