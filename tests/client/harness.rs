//! Daemons and helper processes that do not outlive their test.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringmain_client::{Client, Kind, QueueInfo, QueueSpec};

/// Names the helper that a copy of this test program runs.
const HELPER: &str = "RINGMAIN_TEST_HELPER";

/// No test waits longer than this for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A daemon at a socket of its own, stopped when it is dropped.
pub(crate) struct Daemon {
    keeper: Child,
    folder: tempfile::TempDir,
}

impl Daemon {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let keeper = serve(&folder.path().join("s"));
        Self { keeper, folder }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(self.socket()).expect("the daemon answers")
    }

    /// A client and an empty queue called `q`.
    pub(crate) fn with_queue(kind: Kind, slots: u32, slot_size: u32) -> (Self, Client) {
        let daemon = Self::start();
        let client = daemon.client();
        create(&client, "q", kind, slots, slot_size);
        (daemon, client)
    }

    pub(crate) fn broker(&self) -> Pid {
        process(self.client().status().expect("the daemon answers").broker_pid)
    }

    pub(crate) fn kill_broker(&self) {
        kill(self.broker(), Signal::SIGKILL).expect("the broker runs");
    }

    pub(crate) fn terminate(&self) {
        kill(process(self.keeper.id()), Signal::SIGTERM).expect("the keeper runs");
    }

    /// Kills keeper and broker, and starts others at the same socket.
    pub(crate) fn replace(&mut self) {
        let broker = self.broker();
        // Stopped first: a broker that sees its keeper die closes its queues in good order.
        kill(broker, Signal::SIGSTOP).expect("the broker runs");
        self.keeper.kill().expect("the keeper runs");
        self.keeper.wait().expect("it was ours");
        let _ = kill(broker, Signal::SIGKILL);
        self.keeper = serve(&self.socket());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = kill(process(self.keeper.id()), Signal::SIGTERM);
        let stopped = until(Duration::from_secs(10), || {
            matches!(self.keeper.try_wait(), Ok(Some(_)) | Err(_))
        });
        if !stopped {
            let _ = self.keeper.kill();
            let _ = self.keeper.wait();
        }
    }
}

fn serve(socket: &Path) -> Child {
    let mut keeper = Command::new(env!("CARGO_BIN_EXE_ringmain"))
        .arg("serve")
        .arg("--socket")
        .arg(socket)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the daemon starts");
    let mut stdout = BufReader::new(keeper.stdout.take().expect("it is piped"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("the daemon says that it is ready");
    assert!(line.starts_with("ready "), "{line:?}");
    // Whatever it says later must not block it.
    std::thread::spawn(move || stdout.read_to_end(&mut Vec::new()));
    keeper
}

pub(crate) fn process(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).expect("process ids are small"))
}

pub(crate) fn create(client: &Client, name: &str, kind: Kind, slots: u32, slot_size: u32) {
    let spec = QueueSpec {
        kind: Some(kind),
        slots: Some(slots),
        slot_size: Some(slot_size),
        ..QueueSpec::default()
    };
    client.create_queue(name, spec).expect("the queue is new");
}

/// Asks again and again until the answer is yes; `false` when the time is over.
pub(crate) fn until(time: Duration, mut done: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    while !done() {
        if started.elapsed() > time {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

/// Waits until `queue info` looks as wanted.
pub(crate) fn until_info(client: &Client, wanted: impl Fn(&QueueInfo) -> bool) -> QueueInfo {
    let mut last = client.queue_info("q").expect("the queue is there");
    let found = until(PATIENCE, || {
        last = client.queue_info("q").expect("the queue is there");
        wanted(&last)
    });
    assert!(found, "queue info stayed {last:#?}");
    last
}

/// A copy of this test program that runs one helper, killed when it is dropped.
pub(crate) struct Helper {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Helper {
    /// `test` is the full name of the test function that contains the helper's code.
    pub(crate) fn start(test: &str, daemon: &Daemon) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program has a path"))
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(HELPER, daemon.socket())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program starts");
        let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        Self { child, stdout }
    }

    pub(crate) fn pid(&self) -> Pid {
        process(self.child.id())
    }

    /// Reads its output up to a line that ends with `said: WHAT`; returns what comes after.
    pub(crate) fn wait_for(&mut self, what: &str) {
        let marker = format!("said: {what}");
        let mut line = String::new();
        loop {
            line.clear();
            let read = self.stdout.read_line(&mut line).expect("its output is text");
            assert!(read != 0, "the helper ended before it said {what:?}");
            if line.trim_end().ends_with(&marker) {
                return;
            }
        }
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("the helper is ours");
        self.child.wait().expect("the helper is ours");
    }

    /// Waits for a good end.
    pub(crate) fn finish(mut self) {
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).expect("its output is text");
        let status = self.child.wait().expect("the helper is ours");
        assert!(status.success(), "{status}: {rest}");
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In a helper process: a client; `None` in the ordinary run of the tests.
pub(crate) fn helper_client() -> Option<Client> {
    let socket = std::env::var_os(HELPER)?;
    Some(Client::connect(PathBuf::from(socket)).expect("the daemon answers"))
}

/// What [`Helper::wait_for`] waits for.
pub(crate) fn say(what: &str) {
    println!("said: {what}");
}

/// Payload that tells its length and position: no two lengths look alike.
pub(crate) fn payload(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| u8::try_from((at * 31 + length * 7 + at / 251) % 256).unwrap_or(0))
        .collect()
}
