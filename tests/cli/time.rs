//! TTL and delay through the commands.

use super::*;

fn brokered(daemon: &Daemon, queue: &str, name: &str) -> u64 {
    let info = daemon.json(&["queue", "info", queue, "--json"]);
    info["brokered"][name].as_u64().unwrap_or_else(|| panic!("{name} in {info}"))
}

fn publish(daemon: &Daemon, queue: &str, arguments: &[&str], text: &str) {
    let output = daemon.feed(&[&["publish", queue], arguments].concat(), text.as_bytes());
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

/// Whoever drains does not wait for what is delayed, and says so.
fn nothing_is_due(daemon: &Daemon, queue: &str) {
    let output = daemon.run(&["consume", queue, "--drain"]);
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    assert!(stderr(&output).contains("1 messages stay until their delay is over"), "{output:?}");
}

#[test]
fn messages_expire_although_nobody_asks_for_them() {
    let daemon = Daemon::durable();
    for plane in [&["--durable"][..], &["--plane", "brokered"]] {
        let [dead, own, all] = ["dead", "own", "all"].map(|name| format!("{name}{}", plane.len()));
        daemon.create(&dead, plane);
        daemon.create(&own, &[plane, &["--dead-letter", &dead]].concat());
        daemon.create(&all, &[plane, &["--ttl", "50ms"]].concat());
        publish(&daemon, &own, &["--ttl", "40ms"], "one\ntwo\n");
        publish(&daemon, &own, &[], "stays\n");
        publish(&daemon, &all, &["--ttl", "1h"], "three\n");
        eventually("all expire", || {
            brokered(&daemon, &own, "expired") == 2 && brokered(&daemon, &all, "expired") == 1
        });
        assert_eq!(brokered(&daemon, &all, "messages"), 0);
        assert_eq!(daemon.ok(&["consume", &own, "--drain"]), "stays\n");
        let letters = daemon.json(&["dead-letter", "list", &own, "--json"]);
        let reasons: Vec<_> =
            letters.as_array().unwrap().iter().map(|letter| letter["reason"].clone()).collect();
        assert_eq!(reasons, ["expired", "expired"]);
        // Back where they came from, for good.
        daemon.ok(&["dead-letter", "redrive", &dead]);
        assert_eq!(daemon.ok(&["consume", &own, "--drain"]), "one\ntwo\n");
        let said = daemon.ok(&["queue", "edit", &all, "--ttl", "2h"]);
        assert!(said.contains("time to live 2h"), "{said}");
        let info = daemon.ok(&["queue", "info", &own]);
        assert!(
            info.lines().any(|line| line.starts_with("expired") && line.ends_with('2')),
            "{info}"
        );
    }
}

#[test]
fn delayed_messages_come_when_they_are_due() {
    let daemon = Daemon::durable();
    for (queue, plane) in [("durable", &["--durable"][..]), ("memory", &["--plane", "brokered"])] {
        daemon.create(queue, plane);
        let start = Instant::now();
        publish(&daemon, queue, &["--delay", "400ms"], "late\n");
        publish(&daemon, queue, &["--delay", "1h"], "never\n");
        publish(&daemon, queue, &[], "now\n");
        assert_eq!(daemon.ok(&["consume", queue, "--count", "2"]), "now\nlate\n");
        assert!(start.elapsed() >= Duration::from_millis(400));
        nothing_is_due(&daemon, queue);
        assert_eq!(brokered(&daemon, queue, "delayed"), 1);
    }
}

#[test]
fn times_go_on_over_a_restart() {
    let mut daemon = Daemon::durable();
    daemon.create("jobs", &["--durable"]);
    let start = Instant::now();
    publish(&daemon, "jobs", &["--delay", "1s"], "late\n");
    publish(&daemon, "jobs", &["--ttl", "200ms"], "short\n");
    publish(&daemon, "jobs", &["--delay", "1h"], "never\n");
    // So that it is set aside.
    assert_eq!(daemon.ok(&["consume", "jobs", "--count", "1"]), "short\n");
    publish(&daemon, "jobs", &["--ttl", "200ms"], "over\n");
    daemon.kill_all();
    daemon.restart();
    assert_eq!(daemon.ok(&["consume", "jobs", "--count", "1"]), "late\n");
    assert!(start.elapsed() >= Duration::from_secs(1));
    eventually("the other one expires", || brokered(&daemon, "jobs", "expired") == 1);
    nothing_is_due(&daemon, "jobs");
    daemon.stop();
    daemon.restart();
    nothing_is_due(&daemon, "jobs");
    assert_eq!(brokered(&daemon, "jobs", "messages"), 1);
}

#[test]
fn direct_queues_know_no_times() {
    let daemon = Daemon::start();
    daemon.create("direct", &[]);
    for option in ["--ttl", "--delay"] {
        let output = daemon.feed(&["publish", "direct", option, "1s"], b"x\n");
        assert_fails(&output, 78, "--plane brokered");
    }
    assert_fails(&daemon.run(&["queue", "edit", "direct", "--ttl", "1s"]), 78, "direct");
    let long = ["queue", "create", "long", "--plane", "brokered", "--ttl", "200years"];
    assert_fails(&daemon.run(&long), 64, "ttl=");
}

/// In a turn of the shard that only a timer began, behind the record that tells of what was dropped.
#[test]
fn what_becomes_due_comes_although_nothing_else_happens() {
    let daemon = Daemon::start();
    daemon.create("q", &["--plane=brokered", "--overflow=drop-oldest", "--max-messages=1"]);
    let mut command = daemon.command(&["consume", "q"]);
    let mut consume = Running::start(command.stdout(Stdio::piped()).stderr(Stdio::null()));
    let received = lines(consume.0.stdout.take().unwrap());
    let attached = || daemon.json(&["queue", "info", "q", "--json"])["consumers"] == 1;
    eventually("it consumes", attached);
    publish(&daemon, "q", &["--delay", "60s"], "one\n");
    publish(&daemon, "q", &["--delay", "500ms"], "two\n");
    assert_eq!(received.recv_timeout(LIMIT).as_deref(), Ok("two"));
}
