//! Managing queues and the daemon.

use super::*;

#[test]
fn queues_come_and_go() {
    let daemon = Daemon::start();
    let made = daemon.json(&["queue", "create", "orders", "--json"]);
    assert_eq!((&made["name"], &made["kind"]), (&"orders".into(), &"mpmc".into()));
    assert_eq!((&made["plane"], &made["durable"]), (&"direct".into(), &false.into()));
    daemon.create("ticks", &["--kind", "spsc", "--slots", "64", "--slot-size", "64"]);

    assert_fails(&daemon.run(&["queue", "create", "orders"]), 73, "exists");
    daemon.create("orders", &["--if-not-exists"]);
    let again = |arguments: &[&str]| {
        daemon.run(&[&["queue", "create", "orders", "--if-not-exists"], arguments].concat())
    };
    assert!(again(&["--plane", "direct"]).status.success());
    assert_fails(&again(&["--plane", "brokered"]), 78, "exists and is direct");
    assert_fails(&again(&["--kind", "spsc"]), 78, "exists and is mpmc");
    // A daemon without a journal says what is missing.
    let durable = daemon.run(&["queue", "create", "safe", "--durable"]);
    assert_fails(&durable, 78, "start the daemon with --data-dir");

    let list = daemon.json(&["queue", "list", "--json"]);
    let names: Vec<&str> =
        list.as_array().unwrap().iter().filter_map(|q| q["name"].as_str()).collect();
    assert_eq!(names, ["orders", "ticks"]);
    let table = daemon.ok(&["queue", "list"]);
    assert!(table.starts_with("NAME") && table.lines().count() == 3, "{table}");

    let info = daemon.json(&["queue", "info", "ticks", "--json"]);
    for key in [
        "id",
        "name",
        "kind",
        "plane",
        "durable",
        "slots",
        "slot_size",
        "max_message",
        "memory_bytes",
        "owner_uid",
        "group_gid",
        "mode",
        "wake_mode",
        "state",
        "tail",
        "head",
        "used_slots",
        "producers",
        "consumers",
        "repairs",
        "tombstones",
        "returned",
        "handles",
    ] {
        assert!(info.get(key).is_some(), "{key} in {info}");
    }
    assert_eq!((&info["slots"], &info["slot_size"]), (&64.into(), &64.into()));
    assert!(daemon.ok(&["queue", "info", "ticks"]).contains("spsc"));

    for command in ["info", "delete", "purge"] {
        assert_fails(&daemon.run(&["queue", command, "nothing"]), 65, "nothing does not exist");
    }
    assert_fails(&daemon.run(&["publish", "nothing"]), 65, "nothing does not exist");
    assert_fails(&daemon.run(&["consume", "nothing"]), 65, "nothing does not exist");

    assert_eq!(daemon.json(&["queue", "delete", "ticks", "--json"])["deleted"], true);
    let again = daemon.json(&["queue", "delete", "ticks", "--if-exists", "--json"]);
    assert_eq!(again["deleted"], false);
    assert_eq!(daemon.json(&["queue", "list", "--json"]).as_array().unwrap().len(), 1);
}

#[test]
fn purge_discards_and_counts() {
    let daemon = Daemon::start();
    daemon.create("q", &[]);
    daemon.feed(&["publish", "q"], b"a\nb\nc\n");
    assert_eq!(daemon.json(&["queue", "info", "q", "--json"])["used_slots"], 3);
    assert_eq!(daemon.json(&["queue", "purge", "q", "--json"])["messages"], 3);
    assert_eq!(daemon.ok(&["consume", "q", "--drain"]), "");
}

#[test]
fn status_names_the_processes() {
    let daemon = Daemon::start();
    daemon.create("q", &[]);
    let status = daemon.json(&["status", "--json"]);
    for key in ["version", "uptime", "keeper_pid", "broker_pid", "queues", "clients", "socket"] {
        assert!(status.get(key).is_some(), "{key} in {status}");
    }
    assert_eq!(status["keeper_pid"], daemon.keeper.id());
    assert!(status["uptime"].is_u64(), "{status}");
    assert_eq!(status["queues"], 1);
    assert!(daemon.ok(&["status"]).contains(path(&daemon.socket)));
}

#[test]
fn upgrade_keeps_queues_and_messages() {
    let daemon = Daemon::start();
    daemon.create("q", &[]);
    daemon.feed(&["publish", "q"], b"kept\n");
    let answer = daemon.json(&["upgrade", "--json"]);
    assert_ne!(answer["before"]["broker_pid"], answer["after"]["broker_pid"]);
    assert_eq!(answer["before"]["keeper_pid"], answer["after"]["keeper_pid"]);
    assert_eq!(daemon.ok(&["consume", "q", "--drain"]), "kept\n");
    let text = daemon.file("text", b"no program");
    for unusable in ["/nonexistent/ringmain", "/tmp", path(&text), "/bin/true"] {
        assert_fails(&daemon.run(&["upgrade", "--binary", unusable]), 74, "");
    }
    let missing = daemon.run(&["upgrade", "--binary", "/nonexistent/ringmain"]);
    assert_fails(&missing, 74, "/nonexistent/ringmain");
    assert_eq!(daemon.json(&["status", "--json"])["broker_pid"], answer["after"]["broker_pid"]);
}

#[test]
fn limits_come_from_flags_and_file() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("limits.json");
    std::fs::write(&config, "{\"limit_queues\": 1, \"limit_bytes\": \"64M\"}").unwrap();
    let daemon = Daemon::start_with(&["--config", path(&config)]);
    daemon.create("first", &[]);
    let (code, _) = failure(&daemon.run(&["queue", "create", "second"]));
    assert_eq!(code, 75);
    let daemon = Daemon::start_with(&["--config", path(&config), "--limit-queues", "2"]);
    daemon.create("first", &[]);
    daemon.create("second", &[]);
}

#[test]
fn a_second_daemon_is_refused() {
    let daemon = Daemon::start();
    let output = run(&["serve", "--socket", path(&daemon.socket)]);
    assert_fails(&output, 73, path(&daemon.socket));
    assert_eq!(daemon.json(&["status", "--json"])["queues"], 0);
}

#[test]
fn an_upgrade_takes_the_binary_that_was_installed_since() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::Builder::new().prefix("rm-cli-").tempdir_in("/tmp").unwrap();
    let (installed, next) = (folder.path().join("ringmain"), folder.path().join("next"));
    for copy in [&installed, &next] {
        std::fs::copy(env!("CARGO_BIN_EXE_ringmain"), copy).unwrap();
    }
    let inode = |path: &Path| std::fs::metadata(path).unwrap().ino();
    let daemon = Daemon::start_from(Command::new(&installed), &[]);
    let running = || {
        let broker = daemon.json(&["status", "--json"])["broker_pid"].clone();
        inode(Path::new(&format!("/proc/{broker}/exe")))
    };
    assert_eq!(running(), inode(&installed));
    let new = inode(&next);
    std::fs::rename(&next, &installed).unwrap();
    daemon.ok(&["upgrade"]);
    assert_eq!(running(), new);
    // With nothing there any more, the one that runs is as good.
    std::fs::remove_file(&installed).unwrap();
    daemon.ok(&["upgrade"]);
    assert_eq!(running(), new);
}
