//! The commands that measure: what they promise to print, and that they leave nothing behind.

use std::collections::BTreeSet;

use super::*;

/// Runs it with a folder of its own for temporary files, which must be empty afterwards.
fn clean(arguments: &[&str]) -> Output {
    let folder = tempfile::Builder::new().prefix("rm-").tempdir_in("/tmp").unwrap();
    let output = ringmain().env("TMPDIR", folder.path()).args(arguments).output().unwrap();
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    output
}

fn has(document: &serde_json::Value, keys: &[&str]) {
    for key in keys {
        assert!(document.get(key).is_some(), "{key} in {document}");
    }
}

#[test]
fn demo_verifies_the_records_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("records");
    let records: String =
        (0..3000).map(|n| format!("{{\"n\":{n},\"x\":\"{}\"}}\n", "z".repeat(n % 200))).collect();
    std::fs::write(&file, records).unwrap();
    for slot_size in ["64", "4KiB"] {
        let answer =
            json(&clean(&["demo", "--json", "--file", path(&file), "--slot-size", slot_size]));
        assert_eq!(answer["verified"], true);
        let stages = answer["stages"].as_array().unwrap();
        let names: Vec<_> = stages.iter().filter_map(|stage| stage["name"].as_str()).collect();
        assert_eq!(names, ["direct spsc", "direct mpmc", "durable"]);
        for stage in stages {
            assert_eq!((&stage["messages"], &stage["lost"]), (&3000.into(), &0.into()));
            has(
                stage,
                &["messages_per_s", "bytes_per_s", "verified", "doubled", "altered", "latency"],
            );
        }
        for stage in &stages[..2] {
            has(&stage["latency"], &["rtt_ns", "floor_ns", "ratio_p50"]);
        }
        has(&stages[2]["latency"]["confirm_us"], &["p50", "p99", "p999", "max"]);
        has(&stages[2]["killed"], &["confirmed", "unconfirmed", "restart_ms"]);
        assert_eq!(
            (&stages[2]["plane"], &stages[2]["durable"]),
            (&"brokered".into(), &true.into())
        );
    }
}

#[test]
fn demo_ends_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("records");
    let records: String = (0..1001).map(|n| format!("{n} {}\n", "x".repeat(9000))).collect();
    std::fs::write(&file, records).unwrap();
    let start = Instant::now();
    let answer = json(&clean(&[
        "demo",
        "--json",
        "--file",
        path(&file),
        "--passes",
        "10000",
        "--budget",
        "10s",
    ]));
    assert!(start.elapsed() < LIMIT, "{:?}", start.elapsed());
    assert_eq!(answer["verified"], true);
    for stage in answer["stages"].as_array().unwrap() {
        let messages = stage["messages"].as_u64().unwrap();
        assert!((1001..10_010_000).contains(&messages), "{messages}");
        assert_eq!(stage["messages"], stage["sent"]);
    }
}

#[test]
fn demo_draws_for_people() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("records");
    std::fs::write(&file, "a\nbb\n\nccc\n").unwrap();
    let output = clean(&["demo", "--file", path(&file), "--passes", "100"]);
    assert!(output.status.success(), "{output:?}");
    let text = stdout(&output);
    assert!(text.contains("every record arrived once, unaltered"), "{text}");
    assert!(text.contains("99.999 %") && text.contains("VERIFIED"), "{text}");
    assert!(!text.contains('\x1b'), "colour without a terminal");
}

#[test]
fn round_trips_have_their_keys() {
    for kind in ["spsc", "mpmc"] {
        let answer = json(&clean(&[
            "bench",
            "rtt",
            "--kind",
            kind,
            "--size",
            "48",
            "--duration",
            "300ms",
            "--json",
        ]));
        has(&answer, &["rtt_ns", "floor_ns", "ratio_p50", "pairs_kept", "pairs_dropped", "host"]);
        has(&answer["rtt_ns"], &["p50", "p99", "p999", "max"]);
        let pairs =
            answer["pairs_kept"].as_u64().unwrap() + answer["pairs_dropped"].as_u64().unwrap();
        assert!(pairs >= 15, "{answer}");
        assert_eq!((&answer["lines"], &answer["slot_size"]), (&1.into(), &64.into()));
    }
    let park = json(&clean(&["bench", "rtt", "--wait", "park", "--duration", "500ms", "--json"]));
    has(&park, &["futex_rtt_ns", "membarrier_ns", "ratio_park"]);
    for size in ["0", "1", "64", "3000"] {
        let answer =
            json(&clean(&["bench", "rtt", "--size", size, "--duration", "100ms", "--json"]));
        assert_eq!(answer["size"].to_string(), size);
    }
    let long = json(&clean(&[
        "bench",
        "rtt",
        "--size",
        "1M",
        "--slots",
        "64",
        "--duration",
        "2s",
        "--json",
    ]));
    assert!(long["rtt_ns"]["samples"].as_u64().unwrap() > 0, "{long}");
}

#[test]
fn throughput_is_verified() {
    let table: &[&[&str]] = &[
        &["--kind", "spsc", "--batch", "16"],
        &["--kind", "mpmc", "--producers", "2", "--consumers", "2"],
        &["--kind", "mpmc", "--producers", "2", "--batch", "4", "--size", "1000"],
    ];
    for arguments in table {
        let common = ["bench", "throughput", "--duration", "200ms", "--json"];
        let answer = json(&clean(&[&common, *arguments].concat()));
        has(&answer, &["messages_per_s", "bytes_per_s", "oversubscribed", "host"]);
        assert_eq!(answer["verified"], true);
        assert_eq!((&answer["lost"], &answer["doubled"]), (&0.into(), &0.into()));
        assert!(answer["received"].as_u64().unwrap() > 0);
    }
}

#[test]
fn throughput_says_how_late_messages_are() {
    for kind in [&["--kind", "spsc"][..], &["--kind", "mpmc", "--producers", "2"]] {
        let common = ["bench", "throughput", "--latency", "--duration", "200ms", "--json"];
        let answer = json(&clean(&[&common, kind].concat()));
        assert_eq!(answer["verified"], true);
        for times in ["latency_us", "age_us"] {
            has(&answer[times], &["p50", "p99", "p999", "max"]);
            // Every message, not a sample.
            assert_eq!(answer[times]["samples"], answer["received"]);
        }
        assert!(answer["latency_us"]["max"].as_f64() >= answer["age_us"]["max"].as_f64());
    }
    let plain = json(&clean(&["bench", "throughput", "--duration", "100ms", "--json"]));
    assert!(plain.get("latency_us").is_none() && plain.get("age_us").is_none(), "{plain}");
}

#[test]
fn durable_publishes_have_their_keys() {
    let folder = tempfile::tempdir().unwrap();
    let table: &[&[&str]] = &[
        &[],
        &["--window", "64", "--size", "1KiB"],
        &["--queues", "10"],
        &["--receive"],
        &["--journal-backend", "blocking"],
    ];
    for arguments in table {
        let common = [
            "bench",
            "durable",
            "--duration",
            "300ms",
            "--json",
            "--data-dir",
            path(folder.path()),
        ];
        let answer = json(&clean(&[&common, *arguments].concat()));
        let keys = [
            "messages_per_s",
            "bytes_per_s",
            "wake_us",
            "ratio_p50",
            "probe_bytes",
            "sync_mode",
            "backend",
            "wakes",
            "host",
        ];
        has(&answer, &keys);
        has(&answer["confirm_us"], &["p50", "p99", "p999", "max"]);
        has(&answer["probe_us"], &["p50", "p99", "p999"]);
        let pairs =
            answer["pairs_kept"].as_u64().unwrap() + answer["pairs_dropped"].as_u64().unwrap();
        assert!(pairs >= 15 && answer["messages"].as_u64().unwrap() > 0, "{answer}");
        assert_eq!(answer.get("receive_us").is_some(), arguments.contains(&"--receive"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "{arguments:?}");
    }
}

#[test]
fn comparisons_have_their_keys() {
    let folder = tempfile::tempdir().unwrap();
    let table: &[(&[&str], &[&str])] = &[
        (&["fan-out"], &["groups", "backlog", "busy_processes", "oversubscribed"]),
        (&["fan-out", "--groups", "2", "--backlog", "64", "--size", "8"], &["groups"]),
        (&["transaction"], &["publishes", "acknowledgements"]),
        (&["transaction", "--size", "4KiB", "--journal-backend", "blocking"], &["size"]),
        (&["named"], &["window"]),
        (&["named", "--window", "1", "--size", "1KiB"], &["window"]),
    ];
    for (arguments, own_keys) in table {
        let common = ["--duration", "300ms", "--json", "--data-dir", path(folder.path())];
        let answer = json(&clean(&[&["bench"], *arguments, &common].concat()));
        let keys = [
            "bench",
            "base_is",
            "other_is",
            "ratio",
            "ratio_of",
            "ratio_rate",
            "ratio_p50",
            "probe_bytes",
            "sync_mode",
            "backend",
            "file_system",
            "host",
        ];
        has(&answer, &[&keys, *own_keys].concat());
        has(&answer["probe_us"], &["p50", "p99", "p999"]);
        for side in [&answer["base"], &answer["other"]] {
            has(side, &["messages", "messages_per_s", "sleeps_per_message"]);
            has(&side["confirm_us"], &["p50", "p99", "p999", "max"]);
            assert!(side["messages"].as_u64().unwrap() >= 15, "{answer}");
        }
        let pairs =
            answer["pairs_kept"].as_u64().unwrap() + answer["pairs_dropped"].as_u64().unwrap();
        assert_eq!((pairs, &answer["verified"]), (15, &true.into()), "{answer}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "{arguments:?}");
    }
}

#[test]
fn a_soak_has_its_keys_and_comes_to_its_end() {
    let common = ["bench", "soak", "--duration", "1s", "--stream", "1MiB", "--json"];
    let table: &[&[&str]] =
        &[&[], &["--consumers", "3", "--rate", "3000", "--replay-rate", "5000", "--size", "1KiB"]];
    for arguments in table {
        let output = clean(&[&common, *arguments].concat());
        let answer = json(&output);
        let keys = [
            "maximum_per_s",
            "rate_per_s",
            "messages_per_s",
            "ratio_p50",
            "ratio_p99",
            "ratio_p999",
            "scheduled_ratio_p999",
            "replays",
            "stuck_messages",
            "journal_bytes",
            "room_bytes",
            "sync_mode",
            "host",
        ];
        has(&answer, &keys);
        for times in ["confirm_us", "scheduled_us", "probe_us"] {
            has(&answer[times], &["p50", "p99", "p999", "max"]);
        }
        has(&answer["minutes"][0], &["messages", "confirm_us", "raw_us", "ratio_p999"]);
        has(&answer["journal"], &["segments_begun", "segments_freed", "segments_cleaned"]);
        assert_eq!(answer["verified"], true);
        let [consumed, messages] =
            ["consumed", "messages"].map(|key| answer[key].as_u64().unwrap());
        assert!(consumed > messages && messages > 0, "{answer}");
        assert!(stderr(&output).contains("minute 1: "), "{output:?}");
    }
}

#[test]
fn a_measurement_that_needs_more_room_says_so() {
    let output = run(&["bench", "soak", "--stream", "1000T"]);
    assert_fails(&output, 75, "name a folder with more room by --data-dir");
    let output = run(&["bench", "named", "--data-dir", "/nowhere/at/all"]);
    assert_fails(&output, 65, "/nowhere/at/all");
}

#[test]
fn deaths_are_survived_and_measured() {
    let table: &[(&[&str], u64)] = &[
        (&[], 4),
        (&["--at-once", "3"], 6),
        (&["--with-broker", "--at-once", "2"], 4),
        (&["--durable", "--at-once", "3"], 6),
        (&["--plane", "brokered", "--with-broker"], 4),
    ];
    for (arguments, kills) in table {
        let common = ["bench", "deaths", "--kills", "4", "--json"];
        let answer = json(&clean(&[&common, *arguments].concat()));
        has(&answer, &["at_once", "with_broker", "kind", "host"]);
        has(&answer["kill_to_success_us"], &["p50", "p99", "max"]);
        assert_eq!((&answer["kills"], &answer["verified"]), (&(*kills).into(), &true.into()));
    }
    assert_fails(&run(&["bench", "deaths", "--kind", "spsc"]), 64, "mpmc");
    assert_fails(&run(&["bench", "deaths", "--plane", "direct", "--durable"]), 64, "brokered");
}

#[test]
fn a_running_daemon_is_used_and_left_as_it_was() {
    let daemon = Daemon::start();
    let socket = path(&daemon.socket);
    for arguments in [["bench", "rtt"], ["bench", "throughput"]] {
        let mut command = ringmain();
        command.args(["--socket", socket]).args(arguments).args(["--duration", "100ms", "--json"]);
        json(&command.output().unwrap());
        assert_eq!(daemon.json(&["queue", "list", "--json"]), serde_json::json!([]));
    }
}

#[test]
fn doctor_has_its_keys() {
    let daemon = Daemon::start();
    let answer = daemon.json(&["doctor", "--json"]);
    has(&answer, &["host", "io_uring", "membarrier", "memory", "socket", "costs", "disk", "modes"]);
    has(&answer["disk"], &["folder", "file_system", "backend", "sync_mode", "write_4k", "reasons"]);
    assert_eq!(answer["daemon"]["keeper_pid"], daemon.keeper.id());
    let text = daemon.ok(&["doctor"]);
    for part in ["io_uring", "memlock", "membarrier", "clock", "modes", "durable write"] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

/// Processes whose environment has this marker.
fn marked(marker: &str) -> BTreeSet<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(|id: &u32| {
        let environment = std::fs::read(format!("/proc/{id}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|one| one == marker.as_bytes())
    })
    .collect()
}

#[test]
fn a_signal_leaves_nothing_behind() {
    for (number, by) in [(1, libc::SIGINT), (2, libc::SIGTERM), (3, libc::SIGKILL)] {
        let folder = tempfile::Builder::new().prefix("rm-").tempdir_in("/tmp").unwrap();
        let value = format!("{}-{number}", std::process::id());
        let marker = format!("RINGMAIN_TEST_MARK={value}");
        let mut command = ringmain();
        command.env("TMPDIR", folder.path()).env("RINGMAIN_TEST_MARK", &value);
        command.args(["bench", "rtt", "--duration", "60s"]).stderr(Stdio::null());
        let mut bench = Running::start(command.stdout(Stdio::null()));
        // Itself, keeper, broker and two helpers.
        eventually("all processes run", || marked(&marker).len() == 5);
        signal(&bench.0, by);
        assert_eq!(bench.end(), -by);
        eventually("all processes are gone", || marked(&marker).is_empty());
        if by != libc::SIGKILL {
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }
}
