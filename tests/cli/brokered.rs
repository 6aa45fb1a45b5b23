//! Brokered queues, durable and in memory, through the commands.

use super::*;

/// Creates a durable queue and one in memory; what holds for one holds for the other.
pub(super) fn both(daemon: &Daemon, arguments: &[&str]) -> [&'static str; 2] {
    daemon.create("durable", &[&["--durable"], arguments].concat());
    daemon.create("memory", &[&["--plane", "brokered"], arguments].concat());
    ["durable", "memory"]
}

fn brokered(daemon: &Daemon, queue: &str, name: &str) -> u64 {
    let info = daemon.json(&["queue", "info", queue, "--json"]);
    info["brokered"][name].as_u64().unwrap_or_else(|| panic!("{name} in {info}"))
}

/// Documents of `--json`, one a line.
pub(super) fn documents(text: &str) -> Vec<serde_json::Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn queues_show_their_rules() {
    let daemon = Daemon::durable();
    daemon.create("dead", &["--durable"]);
    let arguments =
        ["--durable", "--max-deliveries", "3", "--dead-letter", "dead", "--lease", "1m"];
    let made = daemon.json(&[&["queue", "create", "jobs", "--json"][..], &arguments].concat());
    assert_eq!((&made["plane"], &made["durable"]), (&"brokered".into(), &true.into()));
    assert_eq!((&made["slots"], &made["slot_size"]), (&1024.into(), &256.into()));
    let info = daemon.json(&["queue", "info", "jobs", "--json"]);
    for key in [
        "next_sequence",
        "messages",
        "message_bytes",
        "ready",
        "unacknowledged",
        "delayed",
        "redelivered",
        "dead_lettered",
        "discarded",
        "max_deliveries",
        "dead_letter",
        "lease_ms",
        "shard",
        "expired",
        "ttl_ms",
    ] {
        assert!(info["brokered"].get(key).is_some(), "{key} in {info}");
    }
    let rules = |info: &serde_json::Value| {
        let info = &info["brokered"];
        (info["max_deliveries"].clone(), info["dead_letter"].clone(), info["lease_ms"].clone())
    };
    assert_eq!(rules(&info), (3.into(), "dead".into(), 60_000.into()));
    let text = daemon.ok(&["queue", "info", "jobs"]);
    assert!(text.contains("at most 3 deliveries, then to dead; lease 1m"), "{text}");

    let edited = daemon.json(&["queue", "edit", "jobs", "--max-deliveries", "5", "--json"]);
    assert_eq!(rules(&edited), (5.into(), "dead".into(), 60_000.into()));
    let said = daemon.ok(&["queue", "edit", "jobs", "--no-dead-letter", "--lease", "0s"]);
    assert_eq!(
        said,
        "jobs: at most 5 deliveries, then discarded; lease as long as the consumer lives\n"
    );
    let list = daemon.ok(&["queue", "list"]);
    assert!(list.contains("DURABLE") && list.lines().count() == 3, "{list}");

    assert_fails(&daemon.run(&["queue", "edit", "nothing", "--lease", "1s"]), 65, "does not exist");
    let missing = ["queue", "create", "x", "--durable", "--dead-letter", "nothing"];
    let (code, line) = failure(&daemon.run(&missing));
    assert!(code != 0 && line.contains("nothing"), "{line}");
    daemon.create("direct", &[]);
    for arguments in [
        &["queue", "edit", "direct", "--lease", "1s"][..],
        &["peek", "direct"],
        &["dead-letter", "list", "direct"],
        &["dead-letter", "redrive", "direct"],
        &["publish", "direct", "--window", "2"],
        &["consume", "direct", "--credit", "2"],
    ] {
        assert_fails(&daemon.run(arguments), 78, "direct");
    }
}

#[test]
fn lines_come_back_as_they_were() {
    let daemon = Daemon::durable();
    for queue in both(&daemon, &[]) {
        let text = b"first\n\n\ttabs and \xff bytes\r\nlast without a line break";
        let input = daemon.file("input", text);
        daemon.ok(&["publish", queue, "--file", path(&input)]);
        let output = daemon.run(&["consume", queue, "--drain"]);
        assert_eq!(output.stdout, [&text[..], b"\n"].concat(), "{queue}");
        assert_eq!(daemon.ok(&["consume", queue, "--drain"]), "");
        assert_eq!(brokered(&daemon, queue, "messages"), 0);
    }
}

#[test]
fn many_lines_go_through_while_they_are_consumed() {
    let daemon = Daemon::durable();
    let text: String = (0..20_000).map(|n| format!("line {n} {}\n", "x".repeat(n % 300))).collect();
    let input = daemon.file("input", text.as_bytes());
    for queue in both(&daemon, &["--slots", "128", "--slot-size", "64"]) {
        let output = daemon.file("output", b"");
        let mut consume = daemon.command(&["consume", queue, "--count", "20000"]);
        consume.stdout(std::fs::File::create(&output).unwrap());
        let mut consumer = Running::start(&mut consume);
        daemon.ok(&["publish", queue, "--file", path(&input)]);
        assert_eq!(consumer.end(), 0);
        let output = std::fs::read(&output).unwrap();
        assert!(output == text.as_bytes(), "{queue}: {} bytes", output.len());
    }
}

#[test]
fn receipts_are_the_sequences_that_consumers_see() {
    let daemon = Daemon::durable();
    for queue in both(&daemon, &[]) {
        for window in ["1", "8", "1000"] {
            let text: String = (0..100).map(|n| format!("{}\n", "y".repeat(n))).collect();
            let arguments = ["publish", queue, "--receipts", "--window", window];
            let receipts = stdout(&daemon.feed(&arguments, text.as_bytes()));
            let seen = daemon.ok(&["consume", queue, "--drain", "--with-sequence"]);
            let (sequences, payloads): (Vec<&str>, Vec<&str>) =
                seen.lines().map(|line| line.split_once('\t').unwrap()).unzip();
            assert_eq!(receipts.lines().collect::<Vec<_>>(), sequences, "{queue}");
            assert_eq!(payloads.join("\n") + "\n", text, "{queue}");
        }
        // Dense, from 1.
        assert_eq!(brokered(&daemon, queue, "next_sequence"), 301);
    }
}

/// There is more to publish than there are readers of receipts.
#[test]
fn a_publish_whose_receipts_nobody_reads_has_not_succeeded() {
    let daemon = Daemon::durable();
    daemon.create("q", &["--durable"]);
    daemon.create("m", &["--plane", "brokered"]);
    let again = daemon.run(&["queue", "create", "m", "--if-not-exists", "--durable"]);
    assert_fails(&again, 78, "exists and is not durable");
    let input = daemon.folder.path().join("input");
    std::fs::write(&input, "line\n".repeat(200_000)).unwrap();
    let mut command = daemon.command(&["publish", "q", "--receipts", "--file", path(&input)]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut publish = command.spawn().unwrap();
    let mut first = String::new();
    BufReader::new(publish.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert_eq!(first, "1\n");
    let (code, line) = failure(&publish.wait_with_output().unwrap());
    assert!(code == 74 && line.contains("receipts") && line.contains("were confirmed"), "{line}");
}

#[test]
fn receipts_are_flushed_one_by_one() {
    let daemon = Daemon::durable();
    for queue in both(&daemon, &[]) {
        let mut command = daemon.command(&["publish", queue, "--receipts"]);
        let mut publish = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let mut stdin = publish.0.stdin.take().unwrap();
        let receipts = lines(publish.0.stdout.take().unwrap());
        for expected in ["1", "2", "3"] {
            stdin.write_all(b"message\n").unwrap();
            assert_eq!(receipts.recv_timeout(LIMIT).unwrap(), expected);
        }
        drop(stdin);
        assert_eq!(publish.end(), 0);
    }
}

#[test]
fn json_shows_everything() {
    let daemon = Daemon::durable();
    for (queue, level) in both(&daemon, &[]).into_iter().zip(["durable", "received"]) {
        let arguments =
            ["publish", queue, "--json", "--key", "k1", "--header", "a=1", "--header", "b=2"];
        let summary = json(&daemon.feed(&arguments, b"one\n\xff\n"));
        assert_eq!((&summary["published"], &summary["bytes"]), (&2.into(), &4.into()));
        assert_eq!(summary["confirmed"], level);
        let receipts = daemon.feed(&["publish", queue, "--receipts", "--json"], b"three\n");
        let receipt = serde_json::json!({ "sequence": 3, "confirmed": level });
        assert_eq!(documents(&stdout(&receipts)), [receipt]);
        let seen = documents(&daemon.ok(&["consume", queue, "--drain", "--json"]));
        assert_eq!((&seen[0]["payload"], &seen[0]["key"]), (&"one".into(), &"k1".into()));
        assert_eq!(seen[0]["headers"], serde_json::json!([["a", "1"], ["b", "2"]]));
        assert_eq!((&seen[0]["redelivered"], &seen[0]["attempt"]), (&false.into(), &1.into()));
        assert!(seen[0]["published_ns"].as_u64().unwrap() > 0);
        assert_eq!((&seen[1]["payload_hex"], &seen[2]["payload"]), (&"ff".into(), &"three".into()));
    }
}

#[test]
fn the_level_of_confirmation_is_chosen() {
    let daemon = Daemon::durable();
    let [durable, memory] = both(&daemon, &[]);
    let refused = daemon.feed(&["publish", memory, "--confirm", "durable"], b"x\n");
    assert_fails(&refused, 78, "queue memory is not durable");
    for (queue, level) in [(durable, "durable"), (durable, "received"), (memory, "received")] {
        let output = daemon.feed(&["publish", queue, "--confirm", level], b"x\n");
        assert!(output.status.success(), "{output:?}");
        eventually("the message is there", || brokered(&daemon, queue, "messages") > 0);
        assert_eq!(daemon.ok(&["consume", queue, "--drain"]), "x\n");
    }
}

#[test]
fn a_count_takes_no_more_than_that() {
    let daemon = Daemon::durable();
    for queue in both(&daemon, &[]) {
        let text: String = (0..20).map(|n| format!("{n}\n")).collect();
        daemon.feed(&["publish", queue], text.as_bytes());
        assert_eq!(daemon.ok(&["consume", queue, "--count", "0"]), "");
        assert_eq!(daemon.ok(&["consume", queue, "--count", "3"]), "0\n1\n2\n");
        assert_eq!(daemon.ok(&["consume", queue, "--count", "2", "--credit", "1"]), "3\n4\n");
        assert_eq!(brokered(&daemon, queue, "messages"), 15);
        // Nothing was delivered beyond what was asked for.
        let rest = documents(&daemon.ok(&["consume", queue, "--drain", "--json"]));
        assert_eq!(rest.len(), 15);
        assert!(rest.iter().all(|one| one["redelivered"] == false), "{rest:?}");
    }
}

/// What the first consumer of a group prints.
pub(super) fn first(daemon: &Daemon, arguments: &[&str]) -> String {
    let output = daemon.run(arguments);
    let told = stderr(&output);
    assert!(output.status.success() && told.contains("it was created"), "{told}");
    stdout(&output)
}

#[test]
fn groups_see_every_message() {
    let daemon = Daemon::durable();
    for queue in both(&daemon, &[]) {
        assert_eq!(first(&daemon, &["consume", queue, "--group", "audit", "--drain"]), "");
        daemon.feed(&["publish", queue], b"a\nb\nc\n");
        assert_eq!(daemon.ok(&["consume", queue, "--group", "default", "--drain"]), "a\nb\nc\n");
        assert_eq!(brokered(&daemon, queue, "messages"), 3, "the other group has not seen them");
        assert_eq!(
            first(&daemon, &["consume", queue, "--group", "late", "--from", "3", "--drain"]),
            "c\n"
        );
        assert_eq!(
            first(&daemon, &["consume", queue, "--group", "new", "--from", "new", "--drain"]),
            ""
        );
        assert_eq!(daemon.ok(&["consume", queue, "--group", "audit", "--drain"]), "a\nb\nc\n");
        daemon.feed(&["publish", queue], b"d\n");
        assert_eq!(daemon.ok(&["consume", queue, "--group", "new", "--drain"]), "d\n");
    }
}

#[test]
fn peek_takes_nothing() {
    let daemon = Daemon::durable();
    for queue in both(&daemon, &[]) {
        let text: String = (1..=20).map(|n| format!("m{n}\n")).collect();
        daemon.feed(&["publish", queue, "--key", "k"], text.as_bytes());
        assert_eq!(daemon.ok(&["peek", queue]).lines().count(), 10);
        assert_eq!(daemon.ok(&["peek", queue, "--count", "0"]), text);
        let from = ["peek", queue, "--from", "19", "--with-sequence", "--count", "5"];
        assert_eq!(daemon.ok(&from), "19\tm19\n20\tm20\n");
        let documents = documents(&daemon.ok(&["peek", queue, "--count", "1", "--json"]));
        assert_eq!((&documents[0]["sequence"], &documents[0]["key"]), (&1.into(), &"k".into()));
        assert_eq!(brokered(&daemon, queue, "unacknowledged"), 0);
        assert_eq!(daemon.ok(&["consume", queue, "--drain"]), text);
        assert_eq!(daemon.ok(&["peek", queue]), "");
        assert_fails(&daemon.run(&["peek", "nothing"]), 65, "nothing does not exist");
    }
}

/// Lets consumers die with this queue's messages in their hands.
fn deliver_in_vain(daemon: &Daemon, queue: &str, times: usize) {
    for _ in 0..times {
        let mut command = daemon.command(&["consume", queue]);
        let mut consume = Running::start(command.stdout(Stdio::piped()).stderr(Stdio::null()));
        // The reader leaves: what is written from now on reaches nobody.
        drop(consume.0.stdout.take());
        assert_eq!(consume.end(), 0);
    }
}

#[test]
fn dead_letters_are_listed_and_sent_back() {
    let daemon = Daemon::durable();
    for (queue, dead, plane) in
        [("durable", "durable-dead", "--durable"), ("memory", "memory-dead", "--plane=brokered")]
    {
        daemon.create(dead, &[plane]);
        daemon.create(queue, &[plane, "--max-deliveries", "2", "--dead-letter", dead]);
        daemon.feed(&["publish", queue, "--header", "a=1"], b"poison\n");
        // Messages that wait are no dead letters.
        daemon.feed(&["publish", dead], b"other\n");
        assert_eq!(daemon.json(&["dead-letter", "list", dead, "--json"]), serde_json::json!([]));
        deliver_in_vain(&daemon, queue, 2);
        eventually("the message is dead", || brokered(&daemon, dead, "messages") == 2);
        assert_eq!(brokered(&daemon, queue, "dead_lettered"), 1);
        for named in [queue, dead] {
            let letters = daemon.json(&["dead-letter", "list", named, "--json"]);
            let letter = &letters[0];
            assert_eq!(
                (&letter["payload"], &letter["origin_queue"]),
                (&"poison".into(), &queue.into())
            );
            assert_eq!((&letter["origin_sequence"], &letter["deliveries"]), (&1.into(), &2.into()));
            assert!(letter["reason"].is_string(), "{letter}");
            let headers = letter["headers"].as_array().unwrap();
            assert!(headers.contains(&serde_json::json!(["a", "1"])), "{letter}");
        }
        let table = daemon.ok(&["dead-letter", "list", dead]);
        assert!(table.starts_with("SEQUENCE") && table.contains("poison"), "{table}");
        assert_fails(&daemon.run(&["dead-letter", "redrive", queue]), 78, dead);
        let back = daemon.json(&["dead-letter", "redrive", dead, "--json"]);
        assert_eq!(back["messages"], 1);
        let seen = documents(&daemon.ok(&["consume", queue, "--drain", "--json"]));
        assert_eq!((&seen[0]["payload"], &seen[0]["attempt"]), (&"poison".into(), &1.into()));
        assert_eq!(daemon.json(&["dead-letter", "list", dead, "--json"]), serde_json::json!([]));
    }
}

#[test]
fn a_message_that_nobody_read_comes_again() {
    let daemon = Daemon::durable();
    for queue in both(&daemon, &[]) {
        daemon.feed(&["publish", queue], b"one\ntwo\n");
        deliver_in_vain(&daemon, queue, 1);
        let output = daemon.run(&["consume", queue, "--drain"]);
        assert_eq!(stdout(&output), "one\ntwo\n", "{queue}");
        assert!(stderr(&output).contains("had been delivered before"), "{queue}: {output:?}");
    }
}

#[test]
fn a_killed_consumers_messages_are_drained_by_another() {
    let daemon = Daemon::durable();
    for queue in both(&daemon, &[]) {
        let text = format!("{}\n", "z".repeat(1000)).repeat(500);
        daemon.feed(&["publish", queue], text.as_bytes());
        let mut command = daemon.command(&["consume", queue]);
        let mut consume = Running::start(command.stdout(Stdio::piped()));
        // The pipe holds 64 KiB: after that the consumer is stuck with messages in its hands.
        eventually("the consumer holds messages", || {
            brokered(&daemon, queue, "unacknowledged") > 0
        });
        signal(&consume.0, libc::SIGKILL);
        consume.end();
        let mut seen = String::new();
        consume.0.stdout.take().unwrap().read_to_string(&mut seen).unwrap();
        let rest = daemon.run(&["consume", queue, "--drain"]);
        // What was written and not acknowledged comes again; nothing is missing.
        let whole = seen.lines().filter(|line| line.len() == 1000).count();
        let rest = stdout(&rest).lines().count();
        assert!(rest <= 500 && whole + rest >= 500, "{queue}: {whole} + {rest}");
        assert_eq!(brokered(&daemon, queue, "messages"), 0);
    }
}

#[test]
fn consume_ends_when_it_is_told_to() {
    let daemon = Daemon::durable();
    for queue in both(&daemon, &[]) {
        assert_fails(&daemon.run(&["consume", queue, "--timeout", "50ms"]), 75, "no message came");
        for by in [libc::SIGINT, libc::SIGTERM] {
            let mut command = daemon.command(&["consume", queue]);
            let mut consume = Running::start(command.stdout(Stdio::piped()));
            let received = lines(consume.0.stdout.take().unwrap());
            daemon.feed(&["publish", queue], b"hello\n");
            assert_eq!(received.recv_timeout(LIMIT).unwrap(), "hello");
            signal(&consume.0, by);
            assert_eq!(consume.end(), 0);
        }
        // Acknowledged, although it was told to stop.
        assert_eq!(brokered(&daemon, queue, "messages"), 0);
        assert_eq!(daemon.json(&["queue", "info", queue, "--json"])["consumers"], 0);
    }
}

#[test]
fn a_deleted_queue_ends_its_members() {
    let daemon = Daemon::durable();
    for queue in both(&daemon, &[]) {
        let mut command = daemon.command(&["consume", queue]);
        let mut consume = Running::start(command.stderr(Stdio::piped()));
        let notices = lines(consume.0.stderr.take().unwrap());
        let info = || daemon.json(&["queue", "info", queue, "--json"]);
        eventually("the consumer attaches", || info()["consumers"] == 1);
        daemon.ok(&["queue", "delete", queue]);
        let said = notices.recv_timeout(LIMIT).unwrap();
        assert!(said.contains(&format!("queue {queue} was deleted")), "{said}");
        assert_eq!(consume.end(), 65);

        let full = &format!("{queue}-full");
        let plane = if queue == "memory" { "--plane=brokered" } else { "--durable" };
        daemon.create(full, &[plane, "--max-messages", "1"]);
        let file = daemon.file("lines", b"1\n2\n3\n");
        let mut command = daemon.command(&["publish", full, "--file", path(&file), "--receipts"]);
        let mut publish = Running::start(command.stdout(Stdio::null()).stderr(Stdio::piped()));
        let notices = lines(publish.0.stderr.take().unwrap());
        assert!(notices.recv_timeout(LIMIT).unwrap().contains("is full"));
        daemon.ok(&["queue", "delete", full]);
        let said = notices.recv_timeout(LIMIT).unwrap();
        assert!(said.contains("the queue was deleted") && said.contains("1 messages"), "{said}");
        assert_eq!(publish.end(), 65);
    }
}

#[test]
fn purge_discards_and_counts() {
    let daemon = Daemon::durable();
    for queue in both(&daemon, &[]) {
        daemon.feed(&["publish", queue], b"a\nb\nc\n");
        assert_eq!(daemon.json(&["queue", "purge", queue, "--json"])["messages"], 3);
        assert_eq!(daemon.ok(&["consume", queue, "--drain"]), "");
        let receipts = stdout(&daemon.feed(&["publish", queue, "--receipts"], b"d\n"));
        assert_eq!(receipts, "4\n", "a sequence is not used again");
    }
}

#[test]
fn a_line_that_is_too_long_is_named() {
    let daemon = Daemon::durable();
    for queue in both(&daemon, &["--max-message", "100"]) {
        let text = format!("short\n{}\nnever\n", "x".repeat(101));
        let output = daemon.feed(&["publish", queue], text.as_bytes());
        assert_fails(&output, 65, "line 2 is longer than the 100 bytes");
        assert_eq!(daemon.ok(&["consume", queue, "--drain"]), "short\n");
    }
}

#[test]
fn a_killed_broker_is_not_noticed() {
    let daemon = Daemon::durable();
    for queue in both(&daemon, &[]) {
        let mut command = daemon.command(&["publish", queue, "--receipts"]);
        let mut publish = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let mut stdin = publish.0.stdin.take().unwrap();
        let receipts = lines(publish.0.stdout.take().unwrap());
        let mut command = daemon.command(&["consume", queue, "--json"]);
        let mut consume = Running::start(command.stdout(Stdio::piped()));
        let received = lines(consume.0.stdout.take().unwrap());
        for expected in 1..=5 {
            stdin.write_all(format!("{expected}\n").as_bytes()).unwrap();
            assert_eq!(receipts.recv_timeout(LIMIT).unwrap(), expected.to_string());
            let line = received.recv_timeout(LIMIT).unwrap();
            let seen: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!(
                (&seen["sequence"], &seen["redelivered"]),
                (&expected.into(), &false.into())
            );
            kill(daemon.broker(), libc::SIGKILL);
        }
        drop(stdin);
        assert_eq!(publish.end(), 0);
        signal(&consume.0, libc::SIGTERM);
        assert_eq!(consume.end(), 0);
        assert_eq!(brokered(&daemon, queue, "messages"), 0);
    }
}

#[test]
fn confirmed_messages_outlive_keeper_and_broker() {
    let mut daemon = Daemon::durable();
    daemon.create("dead", &["--durable"]);
    daemon.create("q", &["--durable", "--max-deliveries", "7", "--dead-letter", "dead"]);
    let text: String = (1..=1000).map(|n| format!("record {n}\n")).collect();
    let receipts = stdout(&daemon.feed(&["publish", "q", "--receipts"], text.as_bytes()));
    assert_eq!(receipts.lines().count(), 1000);
    assert_eq!(daemon.ok(&["consume", "q", "--count", "300"]).lines().count(), 300);
    daemon.kill_all();
    daemon.restart();
    let info = daemon.json(&["queue", "info", "q", "--json"]);
    assert_eq!(info["brokered"]["messages"], 700, "{info}");
    assert_eq!(info["brokered"]["max_deliveries"], 7);
    let seen = daemon.ok(&["consume", "q", "--drain", "--with-sequence"]);
    let expected: String = (301..=1000).map(|n| format!("{n}\trecord {n}\n")).collect();
    assert!(seen == expected, "{} lines", seen.lines().count());
    let receipts = stdout(&daemon.feed(&["publish", "q", "--receipts"], b"more\n"));
    assert_eq!(receipts, "1001\n");
}

#[test]
fn members_end_when_their_daemon_was_replaced() {
    let mut daemon = Daemon::durable();
    daemon.create("q", &["--durable"]);
    let mut command = daemon.command(&["publish", "q", "--receipts"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut publish = Running::start(&mut command);
    let mut stdin = publish.0.stdin.take().unwrap();
    let receipts = lines(publish.0.stdout.take().unwrap());
    stdin.write_all(b"one\n").unwrap();
    assert_eq!(receipts.recv_timeout(LIMIT).unwrap(), "1");
    let mut command = daemon.command(&["consume", "q"]);
    let mut consume = Running::start(command.stdout(Stdio::piped()).stderr(Stdio::null()));
    let received = lines(consume.0.stdout.take().unwrap());
    assert_eq!(received.recv_timeout(LIMIT).unwrap(), "one");
    daemon.kill_all();
    daemon.restart();
    let _ = stdin.write_all(b"lost\n");
    assert_eq!(publish.end(), 69);
    assert!(receipts.recv_timeout(LIMIT).is_err(), "a receipt from nobody");
    assert_eq!(consume.end(), 69);
}

#[test]
fn a_clean_stop_keeps_everything() {
    let mut daemon = Daemon::durable();
    daemon.create("q", &["--durable"]);
    daemon.feed(&["publish", "q"], b"a\nb\n");
    assert_eq!(daemon.ok(&["consume", "q", "--count", "1"]), "a\n");
    daemon.stop();
    daemon.restart();
    assert_eq!(daemon.ok(&["consume", "q", "--drain"]), "b\n");
}

/// Lines of these numbers.
fn numbered(lines: std::ops::RangeInclusive<u64>) -> Vec<u8> {
    lines.map(|line| format!("line {line}\n")).collect::<String>().into_bytes()
}

#[test]
fn under_a_name_each_line_is_stored_once() {
    let mut daemon = Daemon::durable();
    for queue in both(&daemon, &[]) {
        let named = ["publish", queue, "--producer", "import"];
        let first = daemon.feed(&named, &numbered(1..=40));
        assert!(first.status.success() && first.stderr.is_empty(), "{first:?}");
        // Again from the start, with more of it.
        let again = daemon.feed(&[&named[..], &["--json"]].concat(), &numbered(1..=100));
        let said = "40 of 100 lines were stored before under the name import";
        assert!(stderr(&again).contains(said), "{again:?}");
        let summary = json(&again);
        assert_eq!((&summary["published"], &summary["duplicates"]), (&100.into(), &40.into()));
        assert_eq!(
            (&summary["first_sequence"], &summary["last_sequence"]),
            (&41.into(), &100.into())
        );
        let rest = [&named[..], &["--first-sequence", "100", "--receipts"]].concat();
        assert_eq!(stdout(&daemon.feed(&rest, &numbered(100..=102))), "duplicate\n101\n102\n");
        let other = ["publish", queue, "--producer", "other", "--receipts", "--json"];
        let other = documents(&stdout(&daemon.feed(&other, &numbered(1..=1))));
        assert_eq!(other[0]["sequence"], 103);
        let mut expected = numbered(1..=102);
        expected.extend(numbered(1..=1));
        assert_eq!(daemon.ok(&["consume", queue, "--drain"]).into_bytes(), expected);
    }
    daemon.stop();
    daemon.restart();
    let again = ["publish", "durable", "--producer", "import", "--json"];
    assert_eq!(json(&daemon.feed(&again, &numbered(1..=103)))["duplicates"], 102);
}

#[test]
fn the_later_one_has_the_name() {
    let daemon = Daemon::durable();
    daemon.create("q", &["--durable"]);
    let named = ["publish", "q", "--producer", "import", "--receipts"];
    let mut command = daemon.command(&named);
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut earlier = Running::start(piped);
    let mut stdin = earlier.0.stdin.take().unwrap();
    let receipts = lines(earlier.0.stdout.take().unwrap());
    stdin.write_all(b"one\n").unwrap();
    assert_eq!(receipts.recv_timeout(LIMIT).unwrap(), "1");
    assert_eq!(stdout(&daemon.feed(&named, b"one\ntwo\n")), "duplicate\n2\n");
    stdin.write_all(b"two, otherwise\n").unwrap();
    drop(stdin);
    let mut said = String::new();
    earlier.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("another producer has attached under this name"), "{said}");
    assert_eq!(earlier.end(), 75);
    assert_eq!(daemon.ok(&["consume", "q", "--drain"]), "one\ntwo\n");
}

#[test]
fn names_that_cannot_be() {
    let daemon = Daemon::durable();
    daemon.create("q", &["--durable"]);
    daemon.create("direct", &[]);
    assert_fails(&daemon.run(&["publish", "direct", "--producer", "a"]), 78, "direct");
    for bad in [
        &["--producer", ""][..],
        &["--producer", "a b"],
        &["--producer", &"x".repeat(201)],
        &["--producer", "a", "--first-sequence", "0"],
        &["--producer", "a", "--first-sequence", "x"],
        &["--first-sequence", "1"],
    ] {
        let output = daemon.run(&[&["publish", "q"], bad].concat());
        assert_eq!(output.status.code(), Some(64), "{bad:?}: {output:?}");
    }
    assert_eq!(brokered(&daemon, "q", "next_sequence"), 1);
}

#[test]
fn a_time_out_covers_confirmations() {
    let daemon = Daemon::durable();
    daemon.create("q", &["--durable"]);
    let mut command = daemon.command(&["publish", "q", "--receipts", "--timeout", "500ms"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut publish = Running::start(&mut command);
    let mut stdin = publish.0.stdin.take().unwrap();
    let receipts = lines(publish.0.stdout.take().unwrap());
    let complaints = lines(publish.0.stderr.take().unwrap());
    stdin.write_all(b"one\n").unwrap();
    assert_eq!(receipts.recv_timeout(LIMIT).unwrap(), "1");
    let broker = daemon.broker();
    kill(broker, libc::SIGSTOP);
    stdin.write_all(b"two\nthree\n").unwrap();
    drop(stdin);
    let code = publish.end();
    kill(broker, libc::SIGCONT);
    assert_eq!(code, 75);
    let line = complaints.recv_timeout(LIMIT).unwrap();
    assert!(line.contains("1 messages were confirmed, 2 more were sent and may still"), "{line}");
    // And so they are.
    let seen = daemon.run(&["consume", "q", "--count", "3"]);
    assert_eq!(stdout(&seen), "one\ntwo\nthree\n");
}

#[test]
fn a_start_beyond_the_end_is_refused() {
    let daemon = Daemon::durable();
    for queue in both(&daemon, &[]) {
        daemon.feed(&["publish", queue], b"a\nb\nc\n");
        for group in ["default", "new"] {
            let from = ["consume", queue, "--group", group, "--from", "5", "--drain"];
            let said = format!("--from 5: the next sequence of queue {queue} is 4");
            assert_fails(&daemon.run(&from), 65, &said);
        }
        let next = ["consume", queue, "--group", "next", "--from", "4", "--drain"];
        assert_eq!(first(&daemon, &next), "");
    }
}

#[test]
fn a_key_that_does_not_fit_the_rings_is_named() {
    let daemon = Daemon::durable();
    let key = "k".repeat(65_531);
    for queue in both(&daemon, &[]) {
        let output = daemon.feed(&["publish", queue, "--key", &key], b"hello\n");
        assert_fails(&output, 65, "take 65535 bytes");
    }
}

#[test]
fn a_dead_letter_queue_may_have_another_one() {
    let daemon = Daemon::durable();
    daemon.create("last", &["--durable"]);
    daemon.create("dead", &["--durable", "--dead-letter", "last"]);
    daemon.create("jobs", &["--durable", "--max-deliveries", "1", "--dead-letter", "dead"]);
    daemon.feed(&["publish", "jobs"], b"poison\n");
    deliver_in_vain(&daemon, "jobs", 1);
    eventually("the message is dead", || brokered(&daemon, "dead", "messages") == 1);
    let letters = daemon.json(&["dead-letter", "list", "dead", "--json"]);
    assert_eq!(letters[0]["origin_queue"], "jobs");
    assert_eq!(daemon.json(&["dead-letter", "list", "jobs", "--json"]), letters);
    assert_fails(&daemon.run(&["dead-letter", "redrive", "jobs"]), 78, "redrive dead");
    let back = daemon.json(&["dead-letter", "redrive", "dead", "--json"]);
    assert_eq!(back["messages"], 1);
    assert_eq!(daemon.ok(&["consume", "jobs", "--drain"]), "poison\n");
}

#[test]
fn a_dead_letter_queue_must_carry_every_letter() {
    let daemon = Daemon::durable();
    for (plane, code) in [("--durable", 78), ("--plane=brokered", 64)] {
        let dead = format!("dead{plane}").replace('=', "-");
        let queue = format!("q{plane}").replace('=', "-");
        let small = ["--max-message", "100", "--slots", "64", "--slot-size", "64"];
        daemon.create(&dead, &[&[plane], &small[..]].concat());
        let rules = [plane, "--max-message", "100", "--dead-letter", &dead];
        let create = [&["queue", "create", &queue][..], &rules].concat();
        assert_fails(&daemon.run(&create), code, "--slots 1024 --slot-size 256");
        daemon.create(&queue, &[plane, "--max-message", "100"]);
        let edit = ["queue", "edit", &queue, "--dead-letter", &dead];
        assert_fails(&daemon.run(&edit), 64, "--slots 1024 --slot-size 256");
    }
}

#[test]
fn the_longest_message_is_one_that_the_journal_takes() {
    let daemon = Daemon::durable();
    let shape = ["--slots", "1024", "--slot-size", "32K", "--max-message"];
    for (plane, code) in [("--durable", 78), ("--plane=brokered", 64)] {
        let name = format!("q{plane}").replace('=', "-");
        let create = [&["queue", "create", &name, plane][..], &shape, &["4193713"]].concat();
        assert_fails(&daemon.run(&create), code, "at most 4193712 bytes");
        daemon.create(&name, &[&[plane][..], &shape, &["4193712"]].concat());
        let longest = daemon.feed(&["publish", &name], &vec![b'x'; 4_193_712]);
        assert!(longest.status.success(), "{longest:?}");
        assert_eq!(brokered(&daemon, &name, "message_bytes"), 4_193_712);
        assert_eq!(daemon.ok(&["consume", &name, "--drain"]).len(), 4_193_713);
    }
    // A default is never more than that.
    let folder = folder();
    let arguments = ["--data-dir", path(folder.path()), "--segment-size", "64KiB"];
    let small = Daemon::start_with(&arguments);
    small.create("q", &["--durable"]);
    let info = small.json(&["queue", "info", "q", "--json"]);
    let longest = usize::try_from(info["max_message"].as_u64().unwrap()).unwrap();
    let output = small.feed(&["publish", "q"], &vec![b'x'; longest]);
    assert!(output.status.success(), "{longest}: {output:?}");
}

#[test]
fn what_a_queue_uses_is_shown() {
    let daemon = Daemon::durable();
    for queue in both(&daemon, &[]) {
        daemon.feed(&["publish", queue], b"12345\n");
        let facts = daemon.ok(&["queue", "info", queue]);
        assert!(facts.contains("none while nobody is attached"), "{facts}");
        let place = if queue == "memory" { "memory" } else { "the journal" };
        assert!(facts.contains(&format!("1 (5 B of {place})")), "{facts}");
        let list = daemon.ok(&["queue", "list"]);
        let row = list.lines().find(|line| line.starts_with(queue)).unwrap();
        assert!(list.contains("STORED") && row.contains("5 B"), "{list}");
        let mut command = daemon.command(&["consume", queue]);
        let _consumer = Running::start(command.stdout(Stdio::null()));
        eventually("the consumer is attached", || {
            daemon.ok(&["queue", "info", queue]).contains("in the rings of 1 handles")
        });
        let info = daemon.json(&["queue", "info", queue, "--json"]);
        assert!(info["memory_bytes"].as_u64().unwrap() > 0, "{info}");
    }
}
