//! Limits and streams through the commands.

use super::brokered::documents;
use super::*;

fn inside(daemon: &Daemon, queue: &str) -> serde_json::Value {
    daemon.json(&["queue", "info", queue, "--json"])["brokered"].clone()
}

#[test]
fn queues_show_what_they_keep() {
    let daemon = Daemon::durable();
    let arguments = ["--durable", "--max-messages", "1000", "--max-bytes", "1MiB"];
    let said = daemon
        .ok(&[&["queue", "create", "inbox", "--overflow", "reject"][..], &arguments].concat());
    let rule = "at most 1,000 messages, 1.0 MiB, then messages are refused";
    assert!(said.contains(rule), "{said}");
    assert!(daemon.ok(&["queue", "info", "inbox"]).contains(rule));
    let info = inside(&daemon, "inbox");
    let expected = serde_json::json!({
        "retention": "acknowledged", "max_messages": 1000, "max_bytes": 1_048_576, "max_age_ms": 0,
        "overflow": "reject", "first_sequence": 1, "trimmed": 0, "dropped": 0, "skipped": 0,
        "blocked_producers": 0, "blocked_by": "", "stalled_groups": 0, "stalled_by": "",
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&info[key], value, "{key} in {info}");
    }
    let said = daemon.ok(&["queue", "edit", "inbox", "--max-bytes", "0", "--overflow", "block"]);
    assert!(said.ends_with("; at most 1,000 messages, then producers wait\n"), "{said}");
    let said = daemon.ok(&[
        "queue",
        "edit",
        "inbox",
        "--retention",
        "stream",
        "--max-age",
        "1h",
        "--max-messages",
        "0",
    ]);
    assert!(said.ends_with("; a stream of at most 1h\n"), "{said}");
    assert_fails(
        &daemon.run(&["queue", "edit", "inbox", "--retention", "acknowledged"]),
        64,
        "--max-age 0s",
    );
    daemon.create(
        "prices",
        &["--plane", "brokered", "--max-messages", "3", "--overflow", "drop-oldest"],
    );
    daemon.feed(&["publish", "prices"], b"1\n2\n3\n4\n5\n");
    assert_eq!(daemon.ok(&["consume", "prices", "--drain"]), "3\n4\n5\n");
    let text = daemon.ok(&["queue", "info", "prices"]);
    assert!(
        text.contains("dropped for room") && text.contains("then the oldest are discarded"),
        "{text}"
    );
}

#[test]
fn a_publisher_says_why_it_waits() {
    let daemon = Daemon::durable();
    daemon.create("jobs", &["--durable", "--max-messages", "2"]);
    let file = daemon.file("lines", b"1\n2\n3\n4\n5\n");
    let mut command = daemon.command(&["publish", "jobs", "--file", path(&file), "--receipts"]);
    let mut publisher = Running::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    let said = lines(publisher.0.stderr.take().unwrap()).recv_timeout(LIMIT).unwrap();
    assert!(said.contains("queue jobs is full (max-messages: 2 messages)"), "{said}");
    assert_eq!(inside(&daemon, "jobs")["blocked_producers"], 1);
    assert!(daemon.ok(&["queue", "info", "jobs"]).contains("waiting producers"));
    assert_eq!(daemon.ok(&["consume", "jobs", "--count", "5"]), "1\n2\n3\n4\n5\n");
    let receipts = lines(publisher.0.stdout.take().unwrap());
    assert_eq!(publisher.end(), 0);
    assert_eq!(receipts.iter().collect::<Vec<_>>(), ["1", "2", "3", "4", "5"]);
    // What is refused ends the command.
    daemon.ok(&["queue", "edit", "jobs", "--overflow", "reject"]);
    let output = daemon.feed(&["publish", "jobs"], b"6\n7\n8\n9\n");
    assert_fails(&output, 75, "has reached its limit");
    assert_eq!(daemon.ok(&["consume", "jobs", "--drain"]), "6\n7\n");
}

#[test]
fn what_is_refused_is_never_taken_for_sent() {
    let daemon = Daemon::durable();
    for (queue, plane) in [("durable", "--durable"), ("memory", "--plane=brokered")] {
        daemon.create(queue, &[plane, "--max-messages", "2", "--overflow", "reject"]);
        // Whatever is waited for otherwise, and however soon the lane has taken it.
        let publish = ["publish", queue, "--confirm", "received"];
        let output = daemon.feed(&publish, b"1\n2\n");
        assert!(output.status.success(), "{output:?}");
        for _ in 0..20 {
            assert_fails(&daemon.feed(&publish, b"3\n"), 75, "the message was rejected");
        }
        assert_eq!(daemon.ok(&["consume", queue, "--drain"]), "1\n2\n");
        assert_eq!(inside(&daemon, queue)["rejected"], 20);
        let shown = daemon.ok(&["queue", "info", queue]);
        assert!(
            shown.lines().any(|line| line.starts_with("refused for room") && line.ends_with(" 20")),
            "{shown}"
        );
    }
}

#[test]
fn a_stream_is_read_again_and_again() {
    let daemon = Daemon::durable();
    daemon.create("events", &["--durable", "--retention", "stream", "--max-messages", "3"]);
    daemon.feed(&["publish", "events"], b"1\n2\n3\n4\n5\n");
    for group in ["a", "b", "default"] {
        let output = daemon.run(&["consume", "events", "--group", group, "--drain"]);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(stdout(&output), "3\n4\n5\n");
    }
    let shown = documents(&daemon.ok(&["peek", "events", "--json"]));
    let sequences: Vec<_> = shown.iter().map(|shown| shown["sequence"].as_u64().unwrap()).collect();
    assert_eq!(sequences, [3, 4, 5]);
    let info = inside(&daemon, "events");
    assert_eq!((&info["trimmed"], &info["messages"]), (&2.into(), &3.into()));
}

#[test]
fn a_consumer_says_what_it_missed() {
    let daemon = Daemon::durable();
    let rules = ["--plane", "brokered", "--max-messages", "10", "--overflow", "drop-oldest"];
    daemon.create("prices", &rules);
    let mut command = daemon.command(&["consume", "prices", "--timeout", "2s"]);
    let mut consumer = Running::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    eventually("the consumer is there", || {
        daemon.json(&["queue", "info", "prices", "--json"])["consumers"] == 1
    });
    signal(&consumer.0, libc::SIGSTOP);
    let text: String = (1..=20_000).map(|n| format!("{n}\n")).collect();
    assert!(daemon.feed(&["publish", "prices"], text.as_bytes()).status.success());
    signal(&consumer.0, libc::SIGCONT);
    let (seen, said) =
        (lines(consumer.0.stdout.take().unwrap()), lines(consumer.0.stderr.take().unwrap()));
    let first = said.recv_timeout(LIMIT).unwrap();
    assert!(first.contains("were discarded by queue prices"), "{first}");
    assert_eq!(consumer.end(), 75);
    let seen: Vec<u64> = seen.iter().map(|line| line.parse().unwrap()).collect();
    assert!(seen.is_sorted() && seen.ends_with(&[19_999, 20_000]), "{} lines", seen.len());
}

#[test]
fn a_full_direct_queue_refuses_or_drops() {
    let daemon = Daemon::start();
    let text: String = (1..=100).map(|number| format!("{number}\n")).collect();
    for kind in ["spsc", "mpmc"] {
        let ring = ["--kind", kind, "--slots", "64", "--overflow", "reject"];
        let said = daemon.ok(&[&["queue", "create", kind][..], &ring].concat());
        assert!(said.contains("; when it is full messages are refused"), "{said}");
        let output = daemon.feed(&["publish", kind], text.as_bytes());
        assert_fails(&output, 75, "is full: the message was rejected; 64 messages were published");
        // Room for one line, and none for a second one with it.
        assert_eq!(daemon.ok(&["consume", kind, "--count", "1"]), "1\n");
        let file = daemon.file("two", b"65\n66\n");
        let output = daemon.run(&["publish", kind, "--batch", "2", "--file", path(&file)]);
        assert_fails(&output, 75, "rejected; 0 messages were published");
        let all = daemon.ok(&["consume", kind, "--drain"]);
        assert_eq!(all, (2..=64).map(|number| format!("{number}\n")).collect::<String>());
        let info = daemon.json(&["queue", "info", kind, "--json"]);
        assert_eq!((&info["overflow"], &info["dropped"]), (&"reject".into(), &0.into()));
        assert!(!daemon.ok(&["queue", "info", kind]).contains("dropped for room"));
    }
    let said = daemon.ok(&["queue", "edit", "mpmc", "--overflow", "drop-oldest"]);
    assert_eq!(said, "mpmc: when it is full the oldest are discarded\n");
    assert!(daemon.feed(&["publish", "mpmc"], text.as_bytes()).status.success());
    let info = daemon.json(&["queue", "info", "mpmc", "--json"]);
    assert_eq!((&info["overflow"], &info["dropped"]), (&"drop-oldest".into(), &36.into()));
    let shown = daemon.ok(&["queue", "info", "mpmc"]);
    assert!(shown.lines().any(|line| line.starts_with("dropped for room") && line.ends_with("36")));
    assert!(shown.contains("when it is full the oldest are discarded"), "{shown}");
    // Whoever comes later has missed nothing.
    let all = daemon.ok(&["consume", "mpmc", "--drain"]);
    assert_eq!(all, (37..=100).map(|number| format!("{number}\n")).collect::<String>());
    let said = daemon.ok(&["queue", "edit", "mpmc", "--overflow", "block"]);
    assert_eq!(said, "mpmc: when it is full producers wait\n");
    let output = daemon.feed(&["publish", "mpmc", "--timeout", "10ms"], text.as_bytes());
    assert_fails(&output, 75, "queue mpmc stayed full");
}

#[test]
fn a_direct_queue_has_no_other_rules() {
    let daemon = Daemon::start();
    daemon.create("s", &["--kind", "spsc"]);
    daemon.create("m", &[]);
    let table: &[(&[&str], i32, &str)] = &[
        (&["s", "--overflow", "drop-oldest"], 78, "queue s is direct: overflow=drop-oldest: "),
        (&["s", "--max-messages", "5"], 78, "queue s is direct: a direct queue has no delivery"),
        (&["m", "--lease", "5s"], 78, "no delivery rules"),
        (&["m", "--overflow", "reject", "--max-bytes", "1M"], 78, "no limits"),
        (&["none", "--overflow", "reject"], 65, "queue none does not exist"),
    ];
    for (arguments, code, part) in table {
        let output = daemon.run(&[&["queue", "edit"][..], arguments].concat());
        assert_fails(&output, *code, part);
    }
    let info = daemon.json(&["queue", "info", "m", "--json"]);
    assert_eq!((&info["overflow"], &info["dropped"]), (&"block".into(), &0.into()));
}

#[test]
fn a_consumer_of_a_direct_queue_says_what_it_missed() {
    let daemon = Daemon::start();
    daemon.create("gauges", &["--slots", "64", "--overflow", "drop-oldest"]);
    let mut command = daemon.command(&["consume", "gauges", "--timeout", "2s"]);
    let mut consumer = Running::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    eventually("the consumer is there", || {
        daemon.json(&["queue", "info", "gauges", "--json"])["consumers"] == 1
    });
    // It waits, so it holds nothing.
    signal(&consumer.0, libc::SIGSTOP);
    let text: String = (1..=1000).map(|n| format!("{n}\n")).collect();
    assert!(daemon.feed(&["publish", "gauges"], text.as_bytes()).status.success());
    signal(&consumer.0, libc::SIGCONT);
    let (seen, said) =
        (lines(consumer.0.stdout.take().unwrap()), lines(consumer.0.stderr.take().unwrap()));
    let first = said.recv_timeout(LIMIT).unwrap();
    let told = "936 messages were discarded by queue gauges before they were delivered";
    assert!(first.ends_with(told), "{first}");
    assert_eq!(consumer.end(), 75);
    let seen: Vec<u64> = seen.iter().map(|line| line.parse().unwrap()).collect();
    assert_eq!(seen, (937..=1000).collect::<Vec<_>>());
}
