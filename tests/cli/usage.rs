//! Wrong command lines: one line that says what to do, and the right exit code.

use super::*;

#[test]
fn wrong_arguments_are_usage_errors() {
    let table: &[(&[&str], &str)] = &[
        (&[], "a command is missing"),
        (&["frobnicate"], "unrecognized subcommand 'frobnicate'"),
        (&["--frobnicate"], "unexpected argument '--frobnicate'"),
        (&["queue"], "a command is missing; see 'ringmain queue --help'"),
        (&["--socket", "status"], "a command is missing"),
        (&["queue", "create"], "not provided: <NAME>; see 'ringmain queue create --help'"),
        (&["queue", "create", "a/b"], "a queue name has 1 to 200 characters"),
        (&["queue", "create", ""], "value"),
        (&["queue", "create", ".hidden"], "starts with no dot or dash"),
        (&["queue", "create", "ok", "--kind", "broadcast"], "possible values: spsc, mpmc"),
        (&["queue", "create", "ok", "--slots", "many"], "invalid value 'many'"),
        (&["queue", "create", "ok", "--slots", "100"], "must be a power of two"),
        (&["queue", "create", "ok", "--slots", "32"], "must be a power of two from 64"),
        (&["queue", "create", "ok", "--slots", "4294967296"], "4294967296"),
        (&["queue", "create", "ok", "--slot-size", "100"], "must be a multiple of 16"),
        (&["queue", "create", "ok", "--slot-size", "32"], "must be a multiple of 16 from 64"),
        (&["queue", "create", "ok", "--slot-size", "64Q"], "expected a size such as"),
        (&["queue", "create", "ok", "--slot-size", "8G"], "at most 4294967295 bytes"),
        (&["queue", "create", "ok", "--slots", "64", "--max-message", "1M"], "max-message"),
        (
            &["queue", "create", "ok", "--slots", "524288", "--slot-size", "1M"],
            "a ring has at most",
        ),
        (&["queue", "create", "ok", "--mode", "999"], "octal"),
        (&["queue", "create", "ok", "--max-messages", "5"], "no limits"),
        (&["queue", "create", "ok", "--durable", "--max-messages", "-5"], "'-5'"),
        (&["queue", "create", "ok", "--durable", "--max-bytes", "5X"], "a size such as"),
        (&["queue", "create", "ok", "--durable", "--max-age", "5"], "with its unit"),
        (&["queue", "create", "ok", "--durable", "--max-age", "5s"], "max-age is for streams"),
        (&["queue", "create", "ok", "--durable", "--retention", "never"], "acknowledged, stream"),
        (
            &["queue", "create", "ok", "--durable", "--overflow", "drop"],
            "block, reject, drop-oldest",
        ),
        (&["queue", "create", "ok", "--durable", "--overflow", "reject"], "needs a limit"),
        (
            &[
                "queue",
                "create",
                "ok",
                "--durable",
                "--overflow",
                "drop-oldest",
                "--max-messages",
                "1",
            ],
            "a durable queue loses nothing",
        ),
        (
            &[
                "queue",
                "create",
                "ok",
                "--durable",
                "--retention",
                "stream",
                "--overflow",
                "reject",
                "--max-bytes",
                "1M",
            ],
            "a stream has no overflow",
        ),
        (&["queue", "create", "ok", "--overflow", "wait"], "block, reject, drop-oldest"),
        (
            &["queue", "create", "ok", "--kind", "spsc", "--overflow", "drop-oldest"],
            "on a direct spsc queue only the consumer can take a message away; use --kind mpmc",
        ),
        (&["queue", "create", "ok", "--overflow", "reject", "--max-messages", "5"], "no limits"),
        (
            &["queue", "create", "ok", "--plane", "brokered", "--overflow", "reject"],
            "needs a limit",
        ),
        (&["queue", "edit", "ok", "--overflow", "drop"], "block, reject, drop-oldest"),
        (&["queue", "create", "ok", "--mode", "7777"], "octal"),
        (&["queue", "create", "ok", "--lease", "30"], "with its unit"),
        (&["queue", "create", "ok", "--durable", "--lease", "never"], "with its unit"),
        (&["queue", "create", "ok", "--durable", "--lease", "9999d"], "at most"),
        (&["queue", "create", "ok", "--durable", "--ttl", "999999d"], "at most"),
        (&["queue", "create", "ok", "--max-deliveries", "3"], "add --durable or --plane brokered"),
        (&["queue", "create", "ok", "--dead-letter", "d"], "add --durable or --plane brokered"),
        (&["queue", "create", "ok", "--plane", "direct", "--lease", "1s"], "--plane brokered"),
        (&["queue", "create", "ok", "--plane", "both"], "possible values: direct, brokered"),
        (
            &["queue", "create", "ok", "--durable", "--plane", "direct"],
            "a durable queue is brokered",
        ),
        (&["queue", "create", "ok", "--durable", "--max-deliveries", "-1"], "'-1'"),
        (&["queue", "create", "ok", "--durable", "--dead-letter", "a/b"], "a queue name has"),
        (&["queue", "create", "ok", "--durable", "--max-message", "1M"], "max-message"),
        (&["queue", "edit", "ok"], "nothing to change"),
        (&["queue", "edit", "ok", "--dead-letter", "d", "--no-dead-letter"], "cannot be used with"),
        (&["queue", "edit"], "<NAME>"),
        (&["queue", "info"], "<NAME>"),
        (&["queue", "delete", "two", "names"], "unexpected argument 'names'"),
        (&["queue", "purge", "a b"], "a queue name has"),
        (&["publish"], "<QUEUE>"),
        (&["publish", "q", "--batch", "0"], "0 is not in 1..=1024"),
        (&["publish", "q", "--confirm", "maybe"], "possible values: received, durable"),
        (&["publish", "q", "--timeout", "10"], "with its unit"),
        (&["publish", "q", "--header", "novalue"], "NAME=VALUE"),
        (&["publish", "q", "--header", "a=b", "--batch", "2"], "--batch sends bare payloads"),
        (&["publish", "q", "--ttl", "1s", "--batch", "2"], "--batch sends bare payloads"),
        (&["publish", "q", "--ttl", "0s"], "more than nothing"),
        (&["publish", "q", "--delay", "5"], "with its unit"),
        (&["publish", "q", "--ttl", "1s", "--delay", "1s"], "nobody gets a message"),
        (&["queue", "create", "ok", "--ttl", "1s"], "add --durable or --plane brokered"),
        (&["queue", "create", "ok", "--durable", "--ttl", "soon"], "with its unit"),
        (&["publish", "q", "--wait", "sometimes"], "must be spin, adaptive or park"),
        (&["publish", "q", "--window", "0"], "0 is not in 1"),
        (&["consume"], "<QUEUE>"),
        (&["consume", "q", "--credit", "0"], "0 is not in 1"),
        (&["request"], "<QUEUE>"),
        (&["request", "q", "--timeout", "5"], "with its unit"),
        (&["reply", "q"], "--exec"),
        (&["reply", "q", "--echo", "--exec", "cat"], "cannot be used with"),
        (&["reply", "q", "--echo", "--count", "x"], "invalid value 'x'"),
        (&["peek"], "<QUEUE>"),
        (&["peek", "q", "--from", "last"], "first, new or a sequence, or a time"),
        (&["tail"], "<QUEUE>"),
        (&["tail", "q", "-n", "-1"], "'-1'"),
        (&["tail", "q", "-n", "some"], "invalid value 'some'"),
        (&["group"], "a command is missing; see 'ringmain group --help'"),
        (&["group", "list"], "<QUEUE>"),
        (&["group", "info", "q"], "<GROUP>"),
        (&["group", "create", "q", "a b"], "a group name has"),
        (&["group", "create", "q", ""], "value"),
        (&["group", "create", "q", "g", "--from", "-10"], "a time such as -10m"),
        (&["group", "create", "q", "g", "--from", "2026-01-31"], "a time such as -10m"),
        (&["group", "reset", "q", "g"], "--to"),
        (&["group", "reset", "q", "g", "--to", "back"], "first, new or a sequence, or a time"),
        (&["group", "delete", "q", "a/b"], "a group name has"),
        (&["peek", "q", "--count", "few"], "invalid value 'few'"),
        (&["dead-letter"], "a command is missing; see 'ringmain dead-letter --help'"),
        (&["dead-letter", "list"], "<QUEUE>"),
        (&["dead-letter", "redrive", "q", "--count", "-1"], "'-1'"),
        (&["journal"], "a command is missing; see 'ringmain journal --help'"),
        (&["journal", "verify"], "<DIR>"),
        (&["journal", "repair", "--accept-loss"], "<DIR>"),
        (&["serve", "--journal-backend", "magic"], "possible values: auto, uring, blocking"),
        (&["serve", "--segment-size", "1000"], "must be a multiple of 4 KiB"),
        (&["serve", "--segment-size", "4097KiB"], "must be a multiple of 4 KiB"),
        (
            &["serve", "--segment-size", "1T"],
            "must be a multiple of 4 KiB from 64.0 KiB to 4.0 GiB",
        ),
        (&["serve", "--shard-cpu", "first"], "invalid value 'first'"),
        (&["bench", "durable", "--window", "0"], "0 is not in 1"),
        (&["bench", "durable", "--queues", "0"], "0 is not in 1"),
        (&["bench", "durable", "--size", "x"], "; see 'ringmain bench durable --help'"),
        (&["bench", "durable", "--receive", "--queues", "2"], "one queue"),
        (&["bench", "durable", "--receive", "--size", "7"], "at least 8 bytes"),
        (&["bench", "durable", "--size", "10M"], "at most 4193712 bytes"),
        (&["bench", "durable", "--size", "4193713"], "at most 4193712 bytes"),
        (&["bench", "fan-out", "--groups", "1"], "1 is not in 2"),
        (&["bench", "fan-out", "--backlog", "0"], "0 is not in 1"),
        (&["bench", "fan-out", "--size", "7"], "at least 8 bytes"),
        (&["bench", "fan-out", "--socket", "/tmp/s"], "leave out --socket"),
        (&["bench", "transaction", "--window", "2"], "--window"),
        (&["bench", "transaction", "--size", "7"], "at least 8 bytes"),
        (&["bench", "transaction", "--size", "4M"], "at most 4193712 bytes"),
        (&["bench", "named", "--window", "0"], "0 is not in 1"),
        (&["bench", "named", "--size", "10M"], "at most 4193712 bytes"),
        (&["bench", "soak", "--rate", "0"], "0 is not in 1"),
        (&["bench", "soak", "--replay-rate", "0"], "0 is not in 1"),
        (&["bench", "soak", "--consumers", "0"], "0 is not in 1"),
        (&["bench", "soak", "--duration", "2h"], "from 100ms to 1h"),
        (&["bench", "soak", "--stream", "100"], "smaller than one message"),
        (&["bench", "soak", "--size", "x"], "; see 'ringmain bench soak --help'"),
        (&["consume", "q", "--from", "yesterday"], "first, new or a sequence"),
        (&["consume", "q", "--count", "-1"], "'-1'"),
        (&["bench"], "a command is missing"),
        (&["bench", "rtt", "--size", "1x"], "; see 'ringmain bench rtt --help'"),
        (&["bench", "rtt", "--duration", "1ms"], "from 100ms to 1h"),
        (&["bench", "rtt", "--cpus", "0"], "two different processors"),
        (&["bench", "rtt", "--cpus", "0,4095"], "4095"),
        (&["bench", "rtt", "--slots", "63"], "must be a power of two"),
        (&["bench", "throughput", "--producers", "0"], "'0'"),
        (&["bench", "throughput", "--producers", "2"], "use --kind mpmc"),
        (&["bench", "throughput", "--size", "7"], "at least 8"),
        (&["bench", "throughput", "--slots", "64", "--batch", "17"], "at most a quarter"),
        (&["bench", "throughput", "--latency", "--size", "31"], "at least 32"),
        (&["bench", "throughput", "--latency", "--batch", "2"], "leave --batch out"),
        (&["bench", "throughput", "--latency", "--slot-size", "64"], "must fit one slot"),
        (&["demo", "--socket", "/tmp/s"], "leave --socket out"),
        (&["--socket", "/tmp/s", "demo"], "leave --socket out"),
        (&["demo", "--slots", "1000"], "must be a power of two"),
        (&["demo", "--slot-size", "65"], "must be a multiple of 16"),
        (&["demo", "--passes", "0"], "'0'"),
        (&["helper"], "started by other commands only"),
    ];
    for (arguments, part) in table {
        let output = run(arguments);
        assert!(output.stdout.is_empty(), "{arguments:?}");
        let (code, line) = failure(&output);
        assert!(code == 64 && line.contains(part), "{arguments:?}: {code} {line}");
    }
}

#[test]
fn without_a_daemon_the_exit_code_is_69() {
    let table: &[&[&str]] = &[
        &["status"],
        &["upgrade"],
        &["queue", "create", "q"],
        &["queue", "list"],
        &["queue", "info", "q"],
        &["queue", "delete", "q"],
        &["queue", "purge", "q"],
        &["publish", "q"],
        &["consume", "q"],
        &["bench", "rtt"],
        &["bench", "throughput"],
        &["bench", "durable", "--data-dir", "/tmp"],
        &["queue", "edit", "q", "--lease", "1s"],
        &["peek", "q"],
        &["tail", "q"],
        &["group", "list", "q"],
        &["group", "info", "q", "g"],
        &["group", "create", "q", "g"],
        &["group", "reset", "q", "g", "--to", "new"],
        &["group", "delete", "q", "g"],
        &["dead-letter", "list", "q"],
        &["dead-letter", "redrive", "q"],
    ];
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("nobody");
    for arguments in table {
        let output =
            ringmain().args(["--socket", path(&socket)]).args(*arguments).output().unwrap();
        assert_fails(&output, 69, path(&socket));
    }
    // The environment names the socket as well, and the flag wins.
    let output = ringmain().env("RINGMAIN_SOCKET", &socket).arg("status").output().unwrap();
    assert_fails(&output, 69, path(&socket));
    let output = ringmain().env("XDG_RUNTIME_DIR", folder.path()).arg("status").output().unwrap();
    assert_fails(&output, 69, path(&folder.path().join("ringmain/ringmain.sock")));
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    assert_fails(&run(&["demo", "--file", path(&missing)]), 65, "missing");
    let empty = folder.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    assert_fails(&run(&["demo", "--file", path(&empty)]), 65, "has no lines");
    let broken = folder.path().join("broken.gz");
    std::fs::write(&broken, b"\x1f\x8b\x08 nonsense").unwrap();
    let (code, line) = failure(&run(&["demo", "--file", path(&broken)]));
    assert!([65, 74].contains(&code) && line.contains("broken.gz"), "{code} {line}");
    let long = folder.path().join("long");
    std::fs::write(&long, "x".repeat(5000)).unwrap();
    let output = run(&["demo", "--file", path(&long), "--slots", "64", "--slot-size", "64"]);
    assert_fails(&output, 65, "5000 bytes");
    let socket = folder.path().join("s");
    let serve =
        |config: &Path| run(&["serve", "--socket", path(&socket), "--config", path(config)]);
    assert_fails(&serve(&missing), 78, "missing");
    assert_fails(&serve(&long), 78, "long");
    std::fs::write(&empty, "{\"unknown\": 1}").unwrap();
    assert_fails(&serve(&empty), 78, "unknown");
    let far = format!("/{}", "x".repeat(200));
    let (code, _) = failure(&run(&["serve", "--socket", &far]));
    assert_eq!(code, 78);
}

#[test]
fn help_is_complete_and_goes_to_stdout() {
    let table: &[&[&str]] = &[
        &[],
        &["demo"],
        &["serve"],
        &["status"],
        &["upgrade"],
        &["queue"],
        &["queue", "create"],
        &["queue", "list"],
        &["queue", "info"],
        &["queue", "delete"],
        &["queue", "purge"],
        &["queue", "edit"],
        &["publish"],
        &["consume"],
        &["peek"],
        &["tail"],
        &["group"],
        &["group", "list"],
        &["group", "info"],
        &["group", "create"],
        &["group", "reset"],
        &["group", "delete"],
        &["dead-letter"],
        &["dead-letter", "list"],
        &["dead-letter", "redrive"],
        &["journal"],
        &["journal", "verify"],
        &["journal", "inspect"],
        &["journal", "repair"],
        &["bench", "durable"],
        &["bench"],
        &["bench", "rtt"],
        &["bench", "throughput"],
        &["doctor"],
    ];
    for arguments in table {
        let output = run(&[*arguments, &["--help"]].concat());
        assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}");
        let text = stdout(&output);
        assert!(text.contains("Usage: ringmain"), "{text}");
        // Each command but the one that has a daemon of its own.
        assert_eq!(text.contains("--socket"), *arguments != ["demo"], "{text}");
        if !matches!(arguments, ["queue" | "bench" | "dead-letter" | "group" | "journal"]) {
            assert!(text.contains("Examples:\n  ringmain "), "{text}");
        }
        assert!(!text.contains("helper") && !text.contains("broker   "), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 120), "{text}");
    }
    assert!(stdout(&run(&["--version"])).starts_with("ringmain "));
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let mut command = ringmain();
    command.args(["doctor", "--json"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}

#[test]
fn an_argument_that_is_no_text_is_a_usage_error() {
    use std::os::unix::ffi::OsStrExt;
    let bytes = std::ffi::OsStr::from_bytes(b"\xff");
    for arguments in [&[][..], &["queue", "create"], &["consume"]] {
        let output = ringmain().args(arguments).arg(bytes).output().expect("the command starts");
        assert_eq!(failure(&output).0, 64, "{arguments:?}");
    }
}

#[test]
fn a_socket_path_that_is_too_long_is_named() {
    let long = format!("/tmp/{}", "x".repeat(120));
    for arguments in [&["status"][..], &["queue", "list"], &["serve"]] {
        let output = ringmain().args(arguments).env("RINGMAIN_SOCKET", &long).output().unwrap();
        assert_fails(&output, 78, "at most 107");
    }
}

#[test]
fn keys_and_headers_that_are_too_long_are_named_with_their_limit() {
    let long = "k".repeat(70_000);
    let output = run(&["publish", "q", "--key", &long]);
    assert_fails(&output, 64, "--key has 70000 bytes, the longest possible has 65531");
    let header = format!("name={long}");
    assert_fails(&run(&["publish", "q", "--header", &header]), 64, "at most 65535");
    assert_fails(&run(&["publish", "q", "--header", &format!("{}=", "n".repeat(300))]), 64, "300");
}

#[test]
fn an_edit_has_no_defaults() {
    let help = stdout(&run(&["queue", "edit", "--help"]));
    assert!(help.contains("--lease") && help.contains("What is not given stays"), "{help}");
    assert!(!help.contains("default: 0") && !help.contains("default: 30s"), "{help}");
    let help = stdout(&run(&["queue", "create", "--help"]));
    assert!(help.contains("a new queue: 30s"), "{help}");
}

#[test]
fn folders_that_cannot_hold_a_journal_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let serve = |data: &str| run(&["serve", "--socket", path(&socket), "--data-dir", data]);
    std::fs::write(folder.path().join("file"), "no folder").unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    std::fs::write(folder.path().join("data/shard-0"), "no folder").unwrap();
    let table = [
        (folder.path().join("missing/folder"), "create that first"),
        (folder.path().join("file"), "is no folder"),
        (folder.path().join("file/below"), "is no folder"),
        (folder.path().join("data"), "move that file away"),
        (PathBuf::from("/proc"), "no file can be made there"),
    ];
    for (data, part) in table {
        assert_fails(&serve(path(&data)), 78, part);
    }
    // Read-only where it is not forbidden.
    let (code, line) = failure(&serve("/sys"));
    assert!(code == 77 || code == 78, "{code} {line}");
    assert!(line.contains("/sys") && line.contains("choose a"), "{line}");
    assert!(!socket.exists());
}
