//! Requests and replies through the commands.

use super::*;

const PLANES: [&[&str]; 3] = [&[], &["--plane", "brokered"], &["--durable"]];

/// A server that ends with the test.
fn serve(daemon: &Daemon, arguments: &[&str]) -> Running {
    let mut command = daemon.command(&[&["reply"], arguments].concat());
    Running::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()))
}

#[test]
fn each_line_gets_its_reply() {
    let daemon = Daemon::durable();
    for (number, plane) in PLANES.into_iter().enumerate() {
        let queue = format!("q{number}");
        daemon.create(&queue, plane);
        let echo = serve(&daemon, &[&queue, "--echo"]);
        let lines = "one\n\ntabs\tand \u{e9}\nlast";
        let output = daemon.feed(&["request", &queue, "--timeout", "50s"], lines.as_bytes());
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        assert_eq!(stdout(&output), format!("{lines}\n"), "{plane:?}");
        let output = daemon.feed(&["request", &queue, "--timeout", "50s", "--json"], b"x\n\xff\n");
        let documents: Vec<serde_json::Value> =
            stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(
            (&documents[0]["payload"], &documents[1]["payload_hex"]),
            (&"x".into(), &"ff".into())
        );
        assert!(documents[0]["took_ns"].as_u64().is_some_and(|took_ns| took_ns > 0));
        drop(echo);
        // Reply queues end with the commands that had them.
        eventually("the reply queues are gone", || {
            !daemon.ok(&["queue", "list"]).contains("reply.")
        });
    }
}

#[test]
fn a_command_makes_the_replies() {
    let daemon = Daemon::durable();
    daemon.create("dead", &["--durable"]);
    for (number, plane) in PLANES.into_iter().enumerate() {
        let queue = format!("q{number}");
        let is_durable = plane.contains(&"--durable");
        let letters: &[&str] = if is_durable { &["--dead-letter", "dead"] } else { &[] };
        daemon.create(&queue, &[plane, letters].concat());
        let command = "read line; test \"$line\" != bad && echo \"<$line>\" | tr a-z A-Z";
        let arguments = [queue.as_str(), "--exec", command, "--count", "3", "--json"];
        let mut server = serve(&daemon, &arguments);
        let ask = |text: &str, timeout: &str| {
            daemon.feed(&["request", &queue, "--timeout", timeout], text.as_bytes())
        };
        assert_eq!(stdout(&ask("a\nb\n", "50s")), "<A>\n<B>\n");
        assert_fails(&ask("bad\n", "300ms"), 75, "no reply within 300ms");
        assert_eq!(server.end(), 0);
        let mut said = String::new();
        server.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!((&said["replied"], &said["failed"]), (&2.into(), &1.into()), "{said}");
        if is_durable {
            let letters = daemon.json(&["dead-letter", "list", "dead", "--json"]);
            assert_eq!(letters[0]["reason"], "rejected", "{letters}");
        }
    }
}

#[test]
fn a_request_that_nobody_takes_expires() {
    let daemon = Daemon::durable();
    daemon.create("lonely", &["--durable"]);
    let output = daemon.feed(&["request", "lonely", "--timeout", "100ms"], b"x\n");
    assert_fails(&output, 75, "ringmain reply lonely");
    eventually("it expires", || {
        let info = daemon.json(&["queue", "info", "lonely", "--json"]);
        info["brokered"]["expired"] == 1 && info["brokered"]["messages"] == 0
    });
    assert_fails(&daemon.feed(&["request", "nothing"], b"x\n"), 65, "does not exist");
    assert_fails(&daemon.run(&["reply", "nothing", "--echo"]), 65, "does not exist");
}

#[test]
fn a_server_ends_cleanly_and_counts_what_asked_for_nothing() {
    let daemon = Daemon::durable();
    daemon.create("jobs", &["--durable"]);
    let mut server = serve(&daemon, &["jobs", "--exec", "cat"]);
    let output = daemon.feed(&["publish", "jobs"], b"plain\n");
    assert!(output.status.success(), "{output:?}");
    let output = daemon.feed(&["request", "jobs", "--timeout", "50s"], b"asked\n");
    assert_eq!(stdout(&output), "asked\n");
    signal(&server.0, libc::SIGTERM);
    assert_eq!(server.end(), 0);
    let mut said = String::new();
    server.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "ringmain: 1 messages asked for no reply\n");
    let info = daemon.json(&["queue", "info", "jobs", "--json"]);
    assert_eq!(info["brokered"]["messages"], 0);
}
