//! `group` and `tail`, through the commands.

use super::brokered::{both, documents, first};
use super::*;

fn lag(daemon: &Daemon, queue: &str, group: &str) -> serde_json::Value {
    daemon.json(&["group", "info", queue, group, "--json"])["lag_messages"].clone()
}

#[test]
fn groups_are_created_shown_reset_and_deleted() {
    let daemon = Daemon::durable();
    for queue in both(&daemon, &[]) {
        let text: String = (1..=20).map(|n| format!("m{n}\n")).collect();
        daemon.feed(&["publish", queue], text.as_bytes());
        let said = daemon.ok(&["group", "create", queue, "audit", "--from", "18"]);
        assert_eq!(said, format!("{queue}: group audit starts at message 18, 3 messages wait\n"));
        let made = daemon.json(&["group", "create", queue, "old", "--from", "-1h", "--json"]);
        assert_eq!((&made["sequence"], &made["messages"]), (&1.into(), &20.into()));
        assert_eq!(made["created"], true);
        let far = ["group", "create", queue, "far", "--from", "2999-01-01T00:00:00+02:00"];
        assert!(daemon.ok(&far).ends_with("starts at message 21, no messages wait\n"));
        assert_fails(&daemon.run(&["group", "create", queue, "audit"]), 73, "has a group audit");
        let again = ["group", "create", queue, "audit", "--if-not-exists", "--json"];
        assert_eq!(daemon.json(&again)["created"], false);

        let list = daemon.json(&["group", "list", queue, "--json"]);
        let names: Vec<&str> =
            list.as_array().unwrap().iter().map(|one| one["group"].as_str().unwrap()).collect();
        assert_eq!(names, ["default", "audit", "far", "old"]);
        for key in [
            "lag_messages",
            "lag_bytes",
            "lag_seconds",
            "consumers",
            "unacknowledged",
            "delayed",
            "next_sequence",
            "skipped",
        ] {
            assert!(list[0][key].is_number(), "{key} in {list}");
        }
        assert!(list[0]["lag_seconds"].as_f64().unwrap() > 0.0 && list[2]["lag_seconds"] == 0.0);
        let table = daemon.ok(&["group", "list", queue]);
        assert!(table.starts_with("GROUP") && table.lines().count() == 5, "{table}");
        assert!(daemon.ok(&["group", "info", queue, "default"]).contains("20 messages"));

        let dry = ["group", "reset", queue, "audit", "--to", "first", "--dry-run"];
        assert_eq!(
            daemon.ok(&dry),
            format!("{queue}: group audit would start at message 1, 20 messages wait\n")
        );
        assert_eq!(lag(&daemon, queue, "audit"), 3);
        let reset = daemon.json(&["group", "reset", queue, "audit", "--to", "5", "--json"]);
        assert_eq!((&reset["sequence"], &reset["dry_run"]), (&5.into(), &false.into()));
        assert_eq!(lag(&daemon, queue, "audit"), 16);
        let seen = daemon.ok(&["consume", queue, "--group", "audit", "--drain"]);
        assert_eq!(seen.lines().next(), Some("m5"));

        for beyond in [
            &["group", "create", queue, "x", "--from", "22"][..],
            &["group", "reset", queue, "audit", "--to", "22"],
        ] {
            assert_fails(&daemon.run(beyond), 65, "the next sequence of queue");
        }
        daemon.ok(&["group", "delete", queue, "old"]);
        assert_fails(&daemon.run(&["group", "info", queue, "old"]), 65, "no group old");
        assert_fails(&daemon.run(&["group", "delete", queue, "old"]), 65, "group list");
        let none = ["group", "delete", queue, "old", "--if-exists"];
        assert_eq!(daemon.ok(&none), format!("{queue}: group old does not exist\n"));
        assert_fails(&daemon.run(&["group", "delete", queue, "default"]), 64, "default group");
    }
    daemon.create("direct", &[]);
    assert_fails(&daemon.run(&["group", "list", "direct"]), 78, "direct");
    assert_fails(&daemon.run(&["tail", "direct"]), 78, "direct");
    assert_fails(&daemon.run(&["group", "list", "nothing"]), 65, "does not exist");
    assert_fails(&daemon.run(&["tail", "nothing"]), 65, "does not exist");
}

#[test]
fn groups_say_what_a_limit_took_from_them_and_a_default_group_that_nobody_uses_counts_nothing() {
    let mut daemon = Daemon::durable();
    let rules = ["--durable", "--retention", "stream", "--max-messages", "3"];
    daemon.create("events", &rules);
    let group = |daemon: &Daemon, name: &str| {
        let info = daemon.json(&["group", "info", "events", name, "--json"]);
        let figures =
            ["lag_messages", "lag_bytes", "skipped"].map(|key| info[key].as_u64().unwrap());
        (figures, info["unused"].as_bool().unwrap(), info["lag_seconds"].as_f64().unwrap() > 0.0)
    };
    daemon.ok(&["group", "create", "events", "audit"]);
    daemon.feed(&["publish", "events"], b"1\n2\n");
    assert_eq!(daemon.ok(&["consume", "events", "--group", "audit", "--count", "1"]), "1\n");
    daemon.feed(&["publish", "events"], b"3\n4\n5\n6\n");
    let unused = ([0, 0, 0], true, false);
    assert_eq!(group(&daemon, "audit"), ([3, 3, 2], false, true));
    assert_eq!(group(&daemon, "default"), unused);
    let table = daemon.ok(&["group", "list", "events"]);
    assert!(table.contains("SKIPPED"), "{table}");
    let row = table.lines().find(|line| line.starts_with("default")).unwrap();
    assert!(row.contains("unused"), "{table}");
    assert!(daemon.ok(&["group", "info", "events", "default"]).contains("unused"));
    // The journal knows all that.
    daemon.stop();
    daemon.restart();
    assert_eq!(group(&daemon, "audit"), ([3, 3, 2], false, true));
    assert_eq!(group(&daemon, "default"), unused);
    // Whoever uses it has what is there, and from then on it counts.
    assert_eq!(daemon.ok(&["consume", "events", "--count", "1"]), "4\n");
    assert_eq!(group(&daemon, "default"), ([2, 2, 3], false, true));
    daemon.feed(&["publish", "events"], b"7\n8\n9\n");
    daemon.stop();
    daemon.restart();
    assert_eq!(group(&daemon, "default"), ([3, 3, 5], false, true));
    assert_eq!(group(&daemon, "audit"), ([3, 3, 5], false, true));
    // The default group of a work queue keeps its messages from the beginning on.
    daemon.create("jobs", &["--durable"]);
    daemon.feed(&["publish", "jobs"], b"1\n");
    assert_eq!(lag(&daemon, "jobs", "default"), 1);
}

#[test]
fn attached_consumers_are_in_the_way() {
    let daemon = Daemon::durable();
    daemon.create("jobs", &["--durable"]);
    let mut command = daemon.command(&["consume", "jobs", "--group", "audit"]);
    let mut consume = Running::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    let told = lines(consume.0.stderr.take().unwrap());
    let line = told.recv_timeout(LIMIT).unwrap();
    assert!(line.contains("had no group audit: it was created"), "{line}");
    for arguments in [
        &["group", "reset", "jobs", "audit", "--to", "new"][..],
        &["group", "delete", "jobs", "audit"],
    ] {
        assert_fails(&daemon.run(arguments), 75, "--force");
        daemon.ok(&[arguments, &["--force"]].concat());
    }
    assert_eq!(consume.end(), 65);
    let line = told.recv_timeout(LIMIT).unwrap();
    assert!(line.contains("the group was deleted"), "{line}");
}

#[test]
fn a_known_group_is_not_announced() {
    let daemon = Daemon::durable();
    for queue in both(&daemon, &[]) {
        daemon.ok(&["group", "create", queue, "audit"]);
        daemon.feed(&["publish", queue], b"one\n");
        let output = daemon.run(&["consume", queue, "--group", "audit", "--drain"]);
        assert_eq!((stdout(&output).as_str(), stderr(&output).as_str()), ("one\n", ""));
    }
}

#[test]
fn tail_shows_the_end_and_what_comes() {
    let daemon = Daemon::durable();
    for queue in both(&daemon, &[]) {
        let text: String = (1..=30).map(|n| format!("m{n}\n")).collect();
        daemon.feed(&["publish", queue], text.as_bytes());
        assert_eq!(daemon.ok(&["tail", queue]).lines().next(), Some("m21"));
        let two = daemon.ok(&["tail", queue, "-n", "2", "--with-sequence"]);
        assert_eq!(two, "29\tm29\n30\tm30\n");
        assert_eq!(daemon.ok(&["tail", queue, "-n", "0"]), "");
        assert_eq!(documents(&daemon.ok(&["tail", queue, "--json"])).len(), 10);
        let mut command = daemon.command(&["tail", queue, "-n", "1", "--follow"]);
        let mut tail = Running::start(command.stdout(Stdio::piped()));
        let shown = lines(tail.0.stdout.take().unwrap());
        assert_eq!(shown.recv_timeout(LIMIT).unwrap(), "m30");
        // Consumed at once, and seen nevertheless.
        let mut command = daemon.command(&["consume", queue, "--count", "33"]);
        let mut consume = Running::start(command.stdout(Stdio::null()));
        for line in ["a", "b", "c"] {
            daemon.feed(&["publish", queue], format!("{line}\n").as_bytes());
            assert_eq!(shown.recv_timeout(LIMIT).unwrap(), line);
        }
        assert_eq!(consume.end(), 0);
        assert_eq!(lag(&daemon, queue, "default"), 0);
        drop(tail);
    }
}

#[test]
fn consumers_and_peek_start_at_a_time() {
    let daemon = Daemon::durable();
    for queue in both(&daemon, &[]) {
        daemon.feed(&["publish", queue], b"one\ntwo\n");
        let shown = documents(&daemon.ok(&["peek", queue, "--json", "--count", "1"]));
        let published = shown[0]["published_ns"].as_u64().unwrap();
        let at = std::time::UNIX_EPOCH + Duration::from_nanos(published);
        let at = humantime::format_rfc3339_nanos(at).to_string();
        assert_eq!(daemon.ok(&["peek", queue, "--from", &at]), "one\ntwo\n");
        assert_eq!(daemon.ok(&["peek", queue, "--from", "first"]), "one\ntwo\n");
        let new = first(&daemon, &["consume", queue, "--group", "n", "--from", "new", "--drain"]);
        assert_eq!(new, "");
        let past = first(&daemon, &["consume", queue, "--group", "p", "--from", "-5m", "--drain"]);
        assert_eq!(past, "one\ntwo\n");
    }
}
