//! Start, stop, and what a killed daemon leaves.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use nix::sys::signal::Signal;
use ringmain_client::protocol::Role;
use ringmain_client::ring::{Closed, TryReceiveError, TrySendError};

use crate::support::*;

fn serve(arguments: &[&str]) -> Output {
    Command::new(BINARY).arg("serve").args(arguments).output().unwrap()
}

/// One line on stderr that contains these words, and this exit code.
fn assert_refused(output: &Output, code: i32, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} in {text:?}");
    }
    assert!(output.stdout.is_empty());
}

#[test]
fn status_names_both_processes() {
    let daemon = Daemon::start();
    let status = daemon.status();
    assert_eq!(status.keeper_pid, daemon.keeper_pid());
    assert_ne!(status.broker_pid, status.keeper_pid);
    assert!(is_alive(status.broker_pid));
    assert_eq!(status.broker_starts, 1);
    assert_eq!(status.socket, daemon.socket.to_str().unwrap());
    assert_eq!((status.queues, status.clients, status.handles, status.memory_bytes), (0, 1, 0, 0));
}

#[test]
fn sigterm_closes_the_rings_and_leaves_nothing() {
    for with in [Signal::SIGTERM, Signal::SIGINT] {
        let mut daemon = Daemon::start();
        let mut raw = Raw::hello(&daemon.socket, 1);
        raw.create("left-over", mpmc());
        let producing = raw.attach("left-over", Role::Produce);
        let consuming = raw.attach("left-over", Role::Consume);
        let (mut producer, mut consumer) = (producing.producer(), consuming.consumer());
        for _ in 0..3 {
            producer.try_send(0, &[], b"hello").unwrap();
        }
        let broker = daemon.status().broker_pid;
        assert_eq!(daemon.end(with).code(), Some(0));
        assert!(!is_alive(broker));
        let log = daemon.log();
        assert!(log.contains("3 messages were left (left-over: 3)"), "{log}");
        let names: Vec<_> = std::fs::read_dir(daemon.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(names, ["stderr"]);
        // Producers are refused, consumers get what is left.
        let refused = producer.try_send(0, &[], b"hello");
        assert_eq!(refused, Err(TrySendError::Closed(Closed::Draining)));
        for _ in 0..3 {
            let taken = consumer.try_take().unwrap();
            consumer.release(taken);
        }
        let end = consumer.try_take().unwrap_err();
        assert_eq!(end, TryReceiveError::Closed(Closed::Draining));
    }
}

#[test]
fn a_second_daemon_is_refused_and_told_the_pid() {
    let data = tempfile::tempdir().unwrap();
    let data_dir = data.path().to_str().unwrap();
    let daemon = Daemon::start_with(&["--data-dir", data_dir]);
    let socket = daemon.socket.to_str().unwrap();
    let pid = format!("pid {}", daemon.keeper_pid());
    assert_refused(&serve(&["--socket", socket]), 73, &[socket, &pid]);
    let other = daemon.folder.path().join("other.sock");
    let same_data = serve(&["--socket", other.to_str().unwrap(), "--data-dir", data_dir]);
    assert_refused(&same_data, 73, &[data_dir, &pid]);
    assert!(!other.exists());
    assert_eq!(daemon.status().keeper_pid, daemon.keeper_pid());
}

#[test]
fn leftovers_of_a_killed_daemon_are_taken_over() {
    let mut daemon = Daemon::start();
    let broker = daemon.status().broker_pid;
    let mut raw = Raw::hello(&daemon.socket, 1);
    raw.create("orphan", spsc());
    let producing = raw.attach("orphan", Role::Produce);
    let mut producer = producing.producer();
    producer.try_send(0, &[], b"hello").unwrap();
    daemon.end(Signal::SIGKILL);
    assert!(daemon.socket.exists());
    // At once: the old broker may still be there.
    let folder = std::mem::replace(&mut daemon.folder, tempfile::tempdir().unwrap());
    let next = Daemon::start_in(folder, &[]);
    assert_eq!(next.status().queues, 0);
    eventually("the end of the old broker", || (!is_alive(broker)).then_some(()));
    eventually("the orphan is closed", || {
        let result = producer.try_send(0, &[], b"hello");
        (result == Err(TrySendError::Closed(Closed::Draining))).then_some(())
    });
    // The client finds its handle gone.
    let (_raw, lost) = Raw::resume(&next.socket, 1, &[producing.key()]);
    assert_eq!(lost, [producing.key()]);
}

#[test]
fn a_stopped_broker_leaves_when_its_keeper_is_killed() {
    let mut daemon = Daemon::start();
    let broker = daemon.status().broker_pid;
    signal(broker, Signal::SIGSTOP);
    daemon.end(Signal::SIGKILL);
    assert!(is_alive(broker));
    signal(broker, Signal::SIGCONT);
    eventually("the end of the broker", || (!is_alive(broker)).then_some(()));
}

#[test]
fn wrong_paths_are_one_clear_line() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let long = at(&"x".repeat(120));
    assert_refused(&serve(&["--socket", &long]), 78, &["at most 107", "shorter"]);
    assert_refused(&serve(&["--socket", ""]), 64, &["--socket"]);
    std::fs::write(at("file"), "x").unwrap();
    assert_refused(&serve(&["--socket", &at("file")]), 78, &["no socket", "remove it"]);
    assert_eq!(std::fs::read_to_string(at("file")).unwrap(), "x");
    assert_refused(&serve(&["--socket", &at("no/such/folder")]), 78, &["missing", "--socket"]);
    let socket = at("s");
    let missing = serve(&["--socket", &socket, "--data-dir", &at("missing/folder")]);
    assert_refused(&missing, 78, &["does not exist", "create that first"]);
    let no_folder = serve(&["--socket", &socket, "--data-dir", &at("file")]);
    assert_refused(&no_folder, 78, &["is no folder"]);
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(names.len(), 1, "only the file: {names:?}");
}

#[test]
fn a_foreign_listener_on_the_path_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let output = serve(&["--socket", path.to_str().unwrap()]);
    assert_refused(&output, 73, &["in use"]);
    std::os::unix::net::UnixStream::connect(&path).unwrap();
}

#[test]
fn the_broker_is_not_for_the_command_line() {
    let output = Command::new(BINARY).arg("broker").output().unwrap();
    assert_refused(&output, 78, &["ringmain serve"]);
}

#[test]
fn an_idle_daemon_does_not_wake_up() {
    let daemon = Daemon::start();
    let status = daemon.status();
    let mut raw = Raw::hello(&daemon.socket, 1);
    raw.create("quiet", mpmc());
    let _attached = raw.attach("quiet", Role::Consume);
    let switches = |pid: u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = text.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap();
        line.split_whitespace().last().unwrap().parse::<u64>().unwrap()
    };
    let settled = |pid| {
        eventually("two looks without a wake-up between them", || {
            let before = switches(pid);
            std::thread::sleep(std::time::Duration::from_millis(300));
            (switches(pid) == before).then_some(())
        });
    };
    settled(status.keeper_pid);
    settled(status.broker_pid);
}

#[test]
fn a_data_folder_is_created_for_its_owner_alone() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let daemon = Daemon::start_with(&["--data-dir", data.to_str().unwrap()]);
    let mode = std::fs::metadata(&data).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    drop(daemon);
    // The next one finds it there.
    drop(Daemon::start_with(&["--data-dir", data.to_str().unwrap()]));
}
