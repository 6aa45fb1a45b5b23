//! Messages through `publish` and `consume`.

use super::*;

#[test]
fn lines_come_back_as_they_were() {
    let daemon = Daemon::start();
    for kind in ["spsc", "mpmc"] {
        daemon.create(kind, &["--kind", kind]);
        let text = b"first\n\n\ttabs and \xff bytes\r\nlast without a line break";
        let input = daemon.file("input", text);
        daemon.ok(&["publish", kind, "--file", path(&input)]);
        let output = daemon.run(&["consume", kind, "--drain"]);
        assert_eq!(output.stdout, [&text[..], b"\n"].concat(), "{kind}");
    }
}

#[test]
fn many_lines_go_through_while_they_are_consumed() {
    let daemon = Daemon::start();
    let text: String = (0..20_000).map(|n| format!("line {n} {}\n", "x".repeat(n % 300))).collect();
    let input = daemon.file("input", text.as_bytes());
    for (kind, batch) in [("spsc", "1"), ("spsc", "16"), ("mpmc", "1"), ("mpmc", "16")] {
        let name = format!("{kind}-{batch}");
        daemon.create(&name, &["--kind", kind, "--slots", "128", "--slot-size", "64"]);
        let output = daemon.file("output", b"");
        let mut consume = daemon.command(&["consume", &name, "--count", "20000"]);
        consume.stdout(std::fs::File::create(&output).unwrap());
        let mut consumer = Running::start(&mut consume);
        daemon.ok(&["publish", &name, "--file", path(&input), "--batch", batch]);
        assert_eq!(consumer.end(), 0);
        let output = std::fs::read(&output).unwrap();
        assert!(output == text.as_bytes(), "{name}: {} bytes", output.len());
    }
}

#[test]
fn receipts_are_the_sequences_that_consumers_see() {
    let daemon = Daemon::start();
    for (kind, batch) in [("spsc", "1"), ("spsc", "8"), ("mpmc", "1"), ("mpmc", "8")] {
        let name = format!("{kind}-{batch}");
        daemon.create(&name, &["--kind", kind, "--slot-size", "64"]);
        let text: String = (0..100).map(|n| format!("{}\n", "y".repeat(n))).collect();
        let receipts =
            daemon.feed(&["publish", &name, "--receipts", "--batch", batch], text.as_bytes());
        let receipts = stdout(&receipts);
        let seen = daemon.ok(&["consume", &name, "--drain", "--with-sequence"]);
        let (sequences, payloads): (Vec<&str>, Vec<&str>) =
            seen.lines().map(|line| line.split_once('\t').unwrap()).unzip();
        assert_eq!(receipts.lines().collect::<Vec<_>>(), sequences, "{name}");
        assert_eq!(payloads.join("\n") + "\n", text, "{name}");
        let numbers: Vec<u64> = sequences.iter().map(|s| s.parse().unwrap()).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "{name}");
    }
}

#[test]
fn receipts_are_flushed_one_by_one() {
    let daemon = Daemon::start();
    daemon.create("q", &[]);
    let mut command = daemon.command(&["publish", "q", "--receipts", "--batch", "64"]);
    let mut publish = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    let mut stdin = publish.0.stdin.take().unwrap();
    let receipts = lines(publish.0.stdout.take().unwrap());
    for expected in ["0", "1", "2"] {
        stdin.write_all(b"message\n").unwrap();
        assert_eq!(receipts.recv_timeout(LIMIT).unwrap(), expected);
    }
    drop(stdin);
    assert_eq!(publish.end(), 0);
}

#[test]
fn receipts_survive_the_broker_and_end_with_the_daemon() {
    let mut daemon = Daemon::start();
    daemon.create("q", &[]);
    let mut command = daemon.command(&["publish", "q", "--receipts"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut publish = Running::start(&mut command);
    let mut stdin = publish.0.stdin.take().unwrap();
    let receipts = lines(publish.0.stdout.take().unwrap());
    let complaints = lines(publish.0.stderr.take().unwrap());
    let mut confirmed = |expected: &str| {
        stdin.write_all(b"message\n").unwrap();
        assert_eq!(receipts.recv_timeout(LIMIT).unwrap(), expected);
    };
    confirmed("0");
    kill(daemon.broker(), libc::SIGKILL);
    confirmed("1");
    confirmed("2");
    daemon.kill_all();
    daemon.restart();
    daemon.create("q", &[]);
    stdin.write_all(b"lost\n").unwrap();
    assert_eq!(publish.end(), 65);
    assert!(receipts.recv_timeout(LIMIT).is_err(), "a receipt for a message that nobody can reach");
    assert!(complaints.recv_timeout(LIMIT).unwrap().contains("queue q is gone with its daemon"));
}

#[test]
fn publishing_ends_when_its_daemon_is_gone() {
    let mut daemon = Daemon::start();
    daemon.create("q", &[]);
    let mut command = daemon.command(&["publish", "q"]);
    let mut publish = Running::start(command.stdin(Stdio::piped()).stderr(Stdio::null()));
    let mut stdin = publish.0.stdin.take().unwrap();
    stdin.write_all(b"message\n").unwrap();
    eventually("the message is there", || {
        daemon.json(&["queue", "info", "q", "--json"])["used_slots"] == 1
    });
    daemon.kill_all();
    stdin.write_all(b"lost\n").unwrap();
    drop(stdin);
    assert_eq!(publish.end(), 69);
}

#[test]
fn json_shows_everything() {
    let daemon = Daemon::start();
    daemon.create("q", &[]);
    let arguments = ["publish", "q", "--json", "--key", "k1", "--header", "a=1", "--header", "b=2"];
    let summary = json(&daemon.feed(&arguments, b"one\n\xff\n"));
    assert_eq!((&summary["published"], &summary["bytes"]), (&2.into(), &4.into()));
    let output = daemon.ok(&["consume", "q", "--drain", "--json"]);
    let documents: Vec<serde_json::Value> =
        output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&documents[0]["payload"], &documents[0]["key"]), (&"one".into(), &"k1".into()));
    assert_eq!(documents[0]["headers"], serde_json::json!([["a", "1"], ["b", "2"]]));
    assert_eq!(documents[0]["redelivered"], false);
    assert_eq!(documents[1]["payload_hex"], "ff");
}

#[test]
fn a_line_that_is_too_long_is_named() {
    let daemon = Daemon::start();
    daemon.create("q", &["--max-message", "100"]);
    let text = format!("short\n{}\nnever\n", "x".repeat(101));
    let output = daemon.feed(&["publish", "q"], text.as_bytes());
    assert_fails(&output, 65, "line 2 is longer than the 100 bytes");
    assert_eq!(daemon.ok(&["consume", "q", "--drain"]), "short\n");
    let endless = "x".repeat(1 << 20);
    assert_fails(&daemon.feed(&["publish", "q"], endless.as_bytes()), 65, "line 1");
}

#[test]
fn a_full_queue_is_waited_for_and_explained() {
    let daemon = Daemon::start();
    daemon.create("q", &["--slots", "64", "--slot-size", "64"]);
    let text = "m\n".repeat(65);
    let output = daemon.feed(&["publish", "q", "--timeout", "100ms"], text.as_bytes());
    assert_fails(&output, 75, "stayed full");
    let mut command = daemon.command(&["publish", "q"]);
    let mut publish = Running::start(command.stdin(Stdio::piped()).stderr(Stdio::piped()));
    publish.0.stdin.take().unwrap().write_all(b"one more\n").unwrap();
    let notices = lines(publish.0.stderr.take().unwrap());
    let notice = notices.recv_timeout(LIMIT).unwrap();
    assert!(notice.contains("q is full and nobody consumes it"), "{notice}");
    assert_eq!(daemon.ok(&["consume", "q", "--count", "65"]).lines().last(), Some("one more"));
    assert_eq!(publish.end(), 0);
}

#[test]
fn a_stopped_consumer_of_a_full_queue_is_named() {
    let daemon = Daemon::start();
    for kind in ["spsc", "mpmc"] {
        daemon.create(kind, &["--kind", kind, "--slots", "64", "--slot-size", "64"]);
        let info = || daemon.json(&["queue", "info", kind, "--json"]);
        let mut consume = Running::start(daemon.command(&["consume", kind]).stdout(Stdio::null()));
        eventually("the consumer attaches", || info()["consumers"] == 1);
        signal(&consume.0, libc::SIGSTOP);
        eventually("the stop shows", || info()["handles"][0]["state"] == "stopped");
        let mut command = daemon.command(&["publish", kind]);
        let mut publish = Running::start(command.stdin(Stdio::piped()).stderr(Stdio::piped()));
        publish.0.stdin.take().unwrap().write_all("m\n".repeat(200).as_bytes()).unwrap();
        let notices = lines(publish.0.stderr.take().unwrap());
        let notice = notices.recv_timeout(LIMIT).unwrap();
        assert!(notice.contains(&format!("(pid {}) is stopped", consume.0.id())), "{notice}");
        eventually("the delay shows", || {
            let info = info();
            let handles = info["handles"].as_array().unwrap().clone();
            let of = |pid: u32| handles.iter().find(|handle| handle["pid"] == pid).unwrap();
            let (stopped, waiting) = (of(consume.0.id()), of(publish.0.id()));
            waiting["delayed_by"] == stopped["handle"] && stopped["delays_others_ns"].is_u64()
        });
        signal(&consume.0, libc::SIGCONT);
        assert_eq!(publish.end(), 0);
        signal(&consume.0, libc::SIGTERM);
        assert_eq!(consume.end(), 0);
    }
}

#[test]
fn a_consumer_whose_reader_reads_no_more_ends_by_a_signal() {
    let daemon = Daemon::start();
    daemon.create("q", &[]);
    let text: String = (0..2000).map(|n| format!("{n:0100}\n")).collect();
    let input = daemon.file("input", text.as_bytes());
    daemon.ok(&["publish", "q", "--file", path(&input)]);
    let mut command = daemon.command(&["consume", "q"]);
    let mut consume = Running::start(command.stdout(Stdio::piped()));
    let mut last = 0;
    eventually("the pipe is full", || {
        let used = daemon.json(&["queue", "info", "q", "--json"])["used_slots"].as_u64().unwrap();
        let same = used == last && used < 2000;
        last = used;
        thread::sleep(Duration::from_millis(100));
        same
    });
    signal(&consume.0, libc::SIGTERM);
    assert_eq!(consume.end(), 0);
    let mut seen = String::new();
    consume.0.stdout.take().unwrap().read_to_string(&mut seen).unwrap();
    let rest = stdout(&daemon.run(&["consume", "q", "--drain"]));
    // The line that was under way when the signal came may be there in part; it comes again as a whole.
    let whole = seen.rfind('\n').map_or(0, |at| at + 1);
    assert_eq!(format!("{}{rest}", &seen[..whole]), text);
}

#[test]
fn what_a_direct_queue_does_not_have_is_refused() {
    let daemon = Daemon::start();
    daemon.create("q", &[]);
    let table: &[(&[&str], &str)] = &[
        (&["publish", "q", "--confirm", "durable"], "queue q is not durable"),
        (&["consume", "q", "--group", "g"], "leave out --group"),
        (&["consume", "q", "--from", "new"], "leave out --from"),
        (&["consume", "q", "--from", "17"], "leave out --from"),
    ];
    for (arguments, part) in table {
        assert_fails(&daemon.run(arguments), 78, part);
    }
    daemon.ok(&["consume", "q", "--group", "default", "--from", "first", "--drain"]);
}

#[test]
fn a_second_member_of_an_spsc_queue_is_refused() {
    let daemon = Daemon::start();
    daemon.create("q", &["--kind", "spsc"]);
    let mut first = Running::start(&mut daemon.command(&["consume", "q"]));
    eventually("the consumer attaches", || {
        daemon.json(&["queue", "info", "q", "--json"])["consumers"] == 1
    });
    let (code, _) = failure(&daemon.run(&["consume", "q", "--drain"]));
    assert_eq!(code, 75);
    signal(&first.0, libc::SIGINT);
    assert_eq!(first.end(), 0);
    daemon.ok(&["consume", "q", "--drain"]);
}

#[test]
fn consume_ends_when_it_is_told_to() {
    let daemon = Daemon::start();
    daemon.create("q", &[]);
    assert_fails(&daemon.run(&["consume", "q", "--timeout", "50ms"]), 75, "no message came");
    assert_eq!(daemon.ok(&["consume", "q", "--count", "0"]), "");
    for by in [libc::SIGINT, libc::SIGTERM] {
        let mut command = daemon.command(&["consume", "q"]);
        let mut consume = Running::start(command.stdout(Stdio::piped()));
        let received = lines(consume.0.stdout.take().unwrap());
        daemon.feed(&["publish", "q"], b"hello\n");
        assert_eq!(received.recv_timeout(LIMIT).unwrap(), "hello");
        signal(&consume.0, by);
        assert_eq!(consume.end(), 0);
    }
    let info = daemon.json(&["queue", "info", "q", "--json"]);
    assert_eq!(info["consumers"], 0);
}

#[test]
fn a_message_that_nobody_read_is_given_out_again() {
    let daemon = Daemon::start();
    for kind in ["spsc", "mpmc"] {
        daemon.create(kind, &["--kind", kind]);
        let mut command = daemon.command(&["consume", kind]);
        let mut consume = Running::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
        // The reader leaves: what is written from now on reaches nobody.
        drop(consume.0.stdout.take());
        daemon.feed(&["publish", kind], b"one\ntwo\n");
        assert_eq!(consume.end(), 0, "{kind}");
        let output = daemon.run(&["consume", kind, "--drain"]);
        assert_eq!(stdout(&output), "one\ntwo\n", "{kind}");
        assert!(stderr(&output).contains("1 messages had been given"), "{kind}: {output:?}");
    }
}

#[test]
fn a_reader_that_does_not_read_keeps_nobody() {
    let daemon = Daemon::start();
    daemon.create("q", &[]);
    let text = format!("{}\n", "z".repeat(1000)).repeat(500);
    daemon.feed(&["publish", "q"], text.as_bytes());
    let used = || daemon.json(&["queue", "info", "q", "--json"])["used_slots"].as_u64().unwrap();
    let all = used();
    let mut command = daemon.command(&["consume", "q"]);
    let mut consume = Running::start(command.stdout(Stdio::piped()));
    // The pipe holds 64 KiB: after that the consumer is stuck with a message in its hands.
    let mut last = u64::MAX;
    eventually("the pipe fills up", || {
        thread::sleep(Duration::from_millis(100));
        let now = used();
        let stuck = now == last && now < all;
        last = now;
        stuck
    });
    signal(&consume.0, libc::SIGTERM);
    assert_eq!(consume.end(), 0);
    let mut written = Vec::new();
    consume.0.stdout.take().unwrap().read_to_end(&mut written).unwrap();
    let whole = written.split_inclusive(|byte| *byte == b'\n').filter(|line| line.len() == 1001);
    let rest = stdout(&daemon.run(&["consume", "q", "--drain"]));
    assert_eq!(whole.count() + rest.lines().count(), 500);
}

#[test]
fn a_deleted_queue_ends_its_consumers() {
    let daemon = Daemon::start();
    daemon.create("q", &[]);
    let mut command = daemon.command(&["consume", "q"]);
    let mut consume = Running::start(command.stderr(Stdio::piped()));
    let notices = lines(consume.0.stderr.take().unwrap());
    eventually("the consumer attaches", || {
        daemon.json(&["queue", "info", "q", "--json"])["consumers"] == 1
    });
    daemon.ok(&["queue", "delete", "q"]);
    assert!(notices.recv_timeout(LIMIT).unwrap().contains("queue q was deleted"));
    assert_eq!(consume.end(), 65);
}

/// A command that has an end of `queue` and says something on stderr after its daemon was killed.
fn alone(daemon: &mut Daemon, queue: &str, arguments: &[&str], role: &str) -> (i32, String) {
    let mut command = daemon.command(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut running = Running::start(&mut command);
    // Enough to fill the ring, and nobody takes any of it.
    let mut stdin = running.0.stdin.take().unwrap();
    let feed = thread::spawn(move || drop(stdin.write_all(&b"message\n".repeat(200))));
    let said = lines(running.0.stderr.take().unwrap());
    eventually("it is attached, and what it can do is done", || {
        let info = daemon.json(&["queue", "info", queue, "--json"]);
        info[role] == 1 && (role == "consumers" || info["used_slots"] == 64)
    });
    daemon.kill_all();
    let mut line = String::new();
    while !line.contains("daemon is away") {
        line = said.recv_timeout(LIMIT).expect("it says that the daemon is away");
    }
    signal(&running.0, libc::SIGTERM);
    let code = running.end();
    feed.join().unwrap();
    assert!(said.recv_timeout(LIMIT).is_err(), "once is enough");
    (code, line)
}

#[test]
fn who_waits_for_a_dead_daemon_says_so() {
    for (plane, queue) in [("--plane=direct", "q"), ("--durable", "q")] {
        let mut daemon = Daemon::durable();
        daemon.create(queue, &[plane]);
        let (code, line) = alone(&mut daemon, queue, &["consume", queue], "consumers");
        assert!(code == 0 && line.contains("queue q: its daemon is away"), "{code} {line}");
    }
    let mut daemon = Daemon::start();
    daemon.create("q", &["--slots", "64", "--slot-size", "64"]);
    let (_, line) = alone(&mut daemon, "q", &["publish", "q"], "producers");
    assert!(line.contains("queue q is full and its daemon is away"), "{line}");
}
