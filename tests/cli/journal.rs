//! Looking into the journal of a daemon that does not run.

use nix::fcntl::{Flock, FlockArg};

use super::*;

/// A journal with some messages; the daemon has stopped.
fn journal() -> Daemon {
    let mut daemon = Daemon::durable();
    daemon.create("q", &["--durable"]);
    let text: String = (0..2000).map(|n| format!("record {n} {}\n", "x".repeat(n % 100))).collect();
    daemon.feed(&["publish", "q", "--window", "16"], text.as_bytes());
    daemon.ok(&["consume", "q", "--count", "700"]);
    daemon.stop();
    daemon
}

/// The files of its journal, largest first.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder.join("shard-0"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"segment-"))
        })
        .collect();
    files.sort();
    files
}

/// Offset of something that only a message has.
fn find(file: &Path, needle: &[u8]) -> Option<usize> {
    let bytes = std::fs::read(file).unwrap();
    bytes.windows(needle.len()).position(|window| window == needle)
}

fn flip(file: &Path, offset: usize) {
    let mut bytes = std::fs::read(file).unwrap();
    bytes[offset] ^= 0x40;
    std::fs::write(file, bytes).unwrap();
}

#[test]
fn a_whole_journal_verifies() {
    let daemon = journal();
    let data = daemon.data();
    let shard = data.join("shard-0");
    for folder in [&data, &shard] {
        let report = json(&run(&["journal", "verify", path(folder), "--json"]));
        assert_eq!(report[0]["verified"], true, "{report}");
        assert!(report[0]["last_lsn"].as_u64().unwrap() > 2000, "{report}");
        let text = run(&["journal", "verify", path(folder)]);
        assert!(text.status.success() && stdout(&text).contains("LSN"), "{text:?}");
    }
    let report = json(&run(&["journal", "inspect", path(&data), "--json"]));
    assert!(!report[0]["segments"].as_array().unwrap().is_empty(), "{report}");
    // It was stopped: nothing is torn, and both commands count alike.
    let verified = json(&run(&["journal", "verify", path(&data), "--json"]));
    assert_eq!((&report[0]["clean"], &report[0]["cut_batches"]), (&true.into(), &0.into()));
    for key in ["batches", "records", "messages", "bytes"] {
        assert!(report[0][key].as_u64().unwrap() > 0, "{key} in {report}");
        assert_eq!(report[0][key], verified[0][key], "{key}");
    }
    let text = run(&["journal", "inspect", path(&data)]);
    assert!(text.status.success() && stdout(&text).lines().count() > 3, "{text:?}");
    // Nothing is wrong, so there is nothing to give up.
    assert!(run(&["journal", "repair", path(&data)]).status.success());
}

#[test]
fn damage_is_named_and_given_up_on_demand_only() {
    let mut daemon = journal();
    let data = daemon.data();
    let file = files(&data).into_iter().find(|file| find(file, b"record 1000 ").is_some());
    let file = file.expect("a file with messages");
    flip(&file, find(&file, b"record 1000 ").unwrap());
    let name = file.file_name().unwrap().to_str().unwrap();

    let output = run(&["journal", "verify", path(&data)]);
    let (code, line) = failure(&output);
    assert_eq!(code, 65, "{line}");
    assert!(line.contains("LSN") && line.contains(name) && line.contains("byte"), "{line}");
    let output = run(&["journal", "verify", path(&data), "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &report[0]["verified"]), (Some(65), &false.into()));
    for key in ["lsn", "file", "offset", "what"] {
        assert!(report[0]["damage"].get(key).is_some(), "{key} in {report}");
    }
    // The daemon refuses to serve it and keeps everything.
    let socket = daemon.folder.path().join("other");
    let arguments = ["serve", "--socket", path(&socket), "--data-dir", path(&data)];
    let (code, line) = failure_line(&run(&arguments));
    assert!(code == 65 && line.contains("LSN"), "{code} {line}");
    assert_fails(&run(&["journal", "repair", path(&data)]), 65, "--accept-loss");
    assert_eq!(run(&["journal", "verify", path(&data)]).status.code(), Some(65));

    let before = files(&data).len();
    let output = run(&["journal", "repair", path(&data), "--accept-loss"]);
    assert!(output.status.success(), "{output:?}");
    assert!(run(&["journal", "verify", path(&data)]).status.success());
    let kept = walk(&data);
    assert!(kept >= before, "files were deleted: {kept} of {before} are left");
    daemon.restart();
    daemon.ok(&["queue", "list"]);
}

/// What is damaged behind a whole footer shows when it is read.
#[test]
fn nobody_waits_for_what_cannot_be_read() {
    const MESSAGES: usize = 20_000;
    let mut daemon = Daemon::durable_with(&["--segment-size", "256KiB"]);
    daemon.create("q", &["--durable"]);
    let text: String = (0..MESSAGES).map(|n| format!("record {n}\n")).collect();
    daemon.feed(&["publish", "q"], text.as_bytes());
    daemon.stop();
    let data = daemon.data();
    let file = files(&data).into_iter().find(|file| find(file, b"record 9999").is_some()).unwrap();
    flip(&file, find(&file, b"record 9999").unwrap());
    daemon.restart();
    for arguments in [&["--drain"][..], &[]] {
        let output = daemon.run(&[&["consume", "q"], arguments].concat());
        let said = stderr(&output);
        assert!(output.status.code() == Some(65) && said.contains("cannot be read"), "{said}");
        assert!(!stdout(&output).contains("record 9999\n"));
    }
    // Whoever only looks is shown that it is there.
    let output = daemon.run(&["tail", "q", "-n", "100000", "--json"]);
    assert!(output.status.success() && stderr(&output).contains("cannot be read"));
    let left = daemon.json(&["queue", "info", "q", "--json"])["brokered"]["messages"].as_u64();
    assert_eq!(stdout(&output).lines().count() as u64, left.unwrap());
    assert_eq!(daemon.json(&["status", "--json"])["journals"][0]["stalled_groups"], 1);
    assert!(daemon.ok(&["status"]).contains("cannot be read"));
    let info = daemon.json(&["queue", "info", "q", "--json"]);
    assert_eq!((&info["state"], &info["brokered"]["stalled_groups"]), (&"fault".into(), &1.into()));
    let name = file.file_name().unwrap().to_str().unwrap();
    assert!(info["brokered"]["stalled_by"].as_str().unwrap().contains(name), "{info}");
    assert!(daemon.ok(&["queue", "info", "q"]).contains(name));
    assert_eq!(daemon.json(&["group", "info", "q", "default", "--json"])["stalled"], true);
    daemon.ok(&["queue", "purge", "q"]);
    daemon.feed(&["publish", "q"], b"fresh\n");
    assert_eq!(daemon.ok(&["consume", "q", "--drain"]), "fresh\n");
    assert_eq!(daemon.json(&["queue", "info", "q", "--json"])["state"], "open");
}

/// Whoever gives up a file gets everything else, and is told how much is gone.
#[test]
fn what_is_left_after_a_repair_is_delivered() {
    const MESSAGES: usize = 30_000;
    let mut daemon = Daemon::durable_with(&["--segment-size", "256KiB"]);
    daemon.create("work", &["--durable"]);
    daemon.create("stream", &["--durable", "--retention", "stream"]);
    let text: String = (0..MESSAGES).map(|n| format!("record {n}\n")).collect();
    for queue in ["work", "stream"] {
        daemon.feed(&["publish", queue], text.as_bytes());
    }
    daemon.stop();
    let data = daemon.data();
    for needle in [b"record 12345", b"record 12346"] {
        // The first one is of `work`, the last one of `stream`.
        let files = files(&data);
        let mut holding = files.iter().filter(|file| find(file, needle).is_some());
        for file in [holding.next(), holding.next_back()].into_iter().flatten() {
            std::fs::remove_file(file).unwrap();
        }
    }
    assert_eq!(run(&["journal", "verify", path(&data)]).status.code(), Some(65));
    let report = json(&run(&["journal", "repair", path(&data), "--accept-loss", "--json"]));
    assert!(!report[0]["lost"].as_array().unwrap().is_empty(), "{report}");
    daemon.restart();
    for (queue, arguments) in [("work", &[][..]), ("stream", &["--group", "g", "--from", "first"])]
    {
        let mut command = vec!["consume", queue, "--drain"];
        command.extend(arguments);
        let had = stdout(&daemon.run(&command));
        let numbers: Vec<usize> =
            had.lines().map(|line| line["record ".len()..].parse().unwrap()).collect();
        assert!(numbers.is_sorted_by(|one, other| one < other));
        assert!(!numbers.contains(&12345) && numbers.len() > MESSAGES / 2, "{}", numbers.len());
        let info = daemon.json(&["queue", "info", queue, "--json"]);
        assert_eq!(info["brokered"]["discarded"], MESSAGES - numbers.len(), "{info}");
    }
}

#[test]
fn a_damaged_beginning_is_no_new_journal() {
    let daemon = journal();
    let data = daemon.data();
    for (index, offset) in [0, 10, 16, 40, 60].into_iter().enumerate() {
        let folder = daemon.folder.path().join(format!("copy-{index}"));
        std::fs::create_dir_all(folder.join("shard-0")).unwrap();
        for file in files(&data) {
            let to = folder.join("shard-0").join(file.file_name().unwrap());
            std::fs::copy(&file, to).unwrap();
        }
        flip(&files(&folder)[0], offset);
        assert_fails(&run(&["journal", "verify", path(&folder)]), 65, "corrupt");
        let socket = daemon.folder.path().join("other");
        let arguments = ["serve", "--socket", path(&socket), "--data-dir", path(&folder)];
        let (code, line) = failure_line(&run(&arguments));
        assert!(code == 65 && line.contains("corrupt"), "{code} {line}");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

/// All files below a folder.
fn walk(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { walk(&path) } else { 1 }).sum()
}

/// The exit code and the last line on stderr: the daemon logs before it gives up.
fn failure_line(output: &Output) -> (i32, String) {
    let text = stderr(output);
    let last = text.lines().last().unwrap_or_default().to_string();
    (output.status.code().expect("it ended by itself"), last)
}

#[test]
fn a_running_daemons_journal_is_left_alone() {
    let daemon = Daemon::durable();
    daemon.create("q", &["--durable"]);
    for command in ["verify", "inspect", "repair"] {
        let (code, line) = failure(&run(&["journal", command, path(&daemon.data())]));
        assert_eq!(code, 75, "{command}: {line}");
        let who = format!("running daemon (pid {})", daemon.keeper.id());
        assert!(line.contains(&who) && line.contains("stop it first"), "{command}: {line}");
    }
}

#[test]
fn folders_without_a_journal_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    std::fs::write(folder.path().join("file"), "no journal").unwrap();
    for command in ["verify", "inspect", "repair"] {
        assert_fails(&run(&["journal", command, path(&missing)]), 65, "missing");
        assert_fails(&run(&["journal", command, path(folder.path())]), 65, "no journal");
        assert_fails(
            &run(&["journal", command, path(&folder.path().join("file"))]),
            65,
            "no journal",
        );
    }
    // Nothing can be said of a journal whose files are gone, least of all that it is whole.
    std::fs::create_dir(folder.path().join("shard-0")).unwrap();
    std::fs::write(folder.path().join("shard-0/segment-x"), "not a segment").unwrap();
    assert_fails(&run(&["journal", "verify", path(folder.path())]), 65, "no journal");
}

#[test]
fn a_wait_for_a_lock_is_announced() {
    let daemon = journal();
    let lock = || {
        let file = std::fs::File::open(&files(&daemon.data())[0]).unwrap();
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno).unwrap()
    };
    for command in ["verify", "inspect", "repair"] {
        let lock = lock();
        let mut command = daemon.command(&["journal", command, path(&daemon.data())]);
        let mut waits = Running::start(command.stdout(Stdio::null()).stderr(Stdio::piped()));
        let said = lines(waits.0.stderr.take().unwrap());
        let line = said.recv_timeout(LIMIT).unwrap();
        assert!(line.contains("waiting for another process to let go of segment-"), "{line}");
        drop(lock);
        assert_eq!(waits.end(), 0);
    }
}

#[test]
fn status_shows_what_the_cleaner_does() {
    let folder = folder();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let arguments = ["--data-dir", path(&data), "--segment-size", "64KiB"];
    let daemon = Daemon::start_in(folder, ringmain(), &arguments);
    let journal = |daemon: &Daemon| daemon.json(&["status", "--json"])["journals"].clone();
    let opened = journal(&daemon);
    assert_eq!((&opened[0]["shard"], opened.as_array().unwrap().len()), (&0.into(), 1));
    assert!(opened[0]["folder"].as_str().unwrap().ends_with("data/shard-0"), "{opened}");
    // One message in many of a queue that nobody reads keeps segments that are otherwise empty.
    daemon.create("stuck", &["--durable"]);
    daemon.create("flow", &["--durable"]);
    let many: String = (0..100).map(|n| format!("{n} {}\n", "x".repeat(500))).collect();
    let mut cleaned = serde_json::Value::Null;
    eventually("a cleaned segment", || {
        daemon.feed(&["publish", "stuck"], format!("{}\n", "s".repeat(500)).as_bytes());
        daemon.feed(&["publish", "flow"], many.as_bytes());
        daemon.ok(&["consume", "flow", "--drain"]);
        cleaned = journal(&daemon)[0].clone();
        cleaned["copied_bytes"].as_u64().unwrap() > 0
    });
    let figure = |key: &str| cleaned[key].as_u64().unwrap();
    assert!(figure("copied_bytes") > 500 && figure("freed_segments") > 0, "{cleaned}");
    assert!(figure("segments") > 0 && figure("spare_segments") > 0, "{cleaned}");
    assert!(figure("live_bytes") <= figure("file_bytes"), "{cleaned}");
    assert!(figure("written_bytes") > 500 * 100, "{cleaned}");
    daemon.create("memory", &["--plane", "brokered"]);
    let both = journal(&daemon);
    assert_eq!((&both[1]["shard"], &both[1]["folder"]), (&1.into(), &serde_json::Value::Null));
    let shown = daemon.ok(&["status"]);
    assert!(shown.contains("journal 0") && shown.contains("in memory: 1 segment"), "{shown}");
}
