//! The command line from outside: what it prints, how it ends, what it leaves behind.

mod brokered;
mod demo;
mod groups;
mod journal;
mod limits;
mod messages;
mod queues;
mod request;
mod time;
mod usage;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Longest that anything here may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// The command, independent of the environment of the tests.
fn ringmain() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringmain"));
    command.env_remove("RINGMAIN_SOCKET").env_remove("XDG_RUNTIME_DIR").env("NO_COLOR", "1");
    command.stdin(Stdio::null());
    command
}

/// Runs it to its end.
fn run(arguments: &[&str]) -> Output {
    ringmain().args(arguments).output().expect("the command starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("stdout is text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("stderr is text")
}

/// The exit code and the only line on stderr.
fn failure(output: &Output) -> (i32, String) {
    let text = stderr(output);
    assert_eq!(text.lines().count(), 1, "stderr is one line: {text:?}");
    assert!(text.starts_with("ringmain: "), "{text:?}");
    (output.status.code().expect("it ended by itself"), text.trim_end().to_string())
}

fn assert_fails(output: &Output, code: i32, part: &str) {
    let (found, line) = failure(output);
    assert!(found == code && line.contains(part), "{found} instead of {code} ({part}): {line}");
}

fn json(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("stdout is JSON")
}

/// A daemon of its own for one test.
struct Daemon {
    keeper: Child,
    socket: PathBuf,
    arguments: Vec<String>,
    folder: TempDir,
}

impl Daemon {
    fn start() -> Self {
        Self::start_with(&[])
    }

    fn start_with(arguments: &[&str]) -> Self {
        Self::start_from(ringmain(), arguments)
    }

    /// With a journal.
    fn durable() -> Self {
        Self::durable_with(&[])
    }

    fn durable_with(arguments: &[&str]) -> Self {
        let folder = folder();
        let data = folder.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let all = [&["--data-dir", path(&data)], arguments].concat();
        Self::start_in(folder, ringmain(), &all)
    }

    /// With this command as `ringmain`.
    fn start_from(command: Command, arguments: &[&str]) -> Self {
        Self::start_in(folder(), command, arguments)
    }

    fn start_in(folder: TempDir, mut command: Command, arguments: &[&str]) -> Self {
        let socket = folder.path().join("s");
        command.arg("serve").arg("--socket").arg(&socket).args(arguments);
        let mut keeper = command.stdout(Stdio::piped()).spawn().expect("the daemon starts");
        let lines = lines(keeper.stdout.take().expect("piped"));
        let ready = lines.recv_timeout(LIMIT).expect("the daemon gets ready");
        assert!(ready.starts_with("ready") && ready.contains(socket.to_str().unwrap()), "{ready}");
        let arguments = arguments.iter().map(ToString::to_string).collect();
        Self { keeper, socket, arguments, folder }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = ringmain();
        command.env("RINGMAIN_SOCKET", &self.socket).args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the command starts")
    }

    /// Runs it with this text on stdin.
    fn feed(&self, arguments: &[&str], text: &[u8]) -> Output {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the command starts");
        let mut stdin = child.stdin.take().expect("piped");
        let text = text.to_vec();
        let writer = thread::spawn(move || {
            let _ = stdin.write_all(&text);
        });
        let output = child.wait_with_output().expect("the command ends");
        writer.join().unwrap();
        output
    }

    /// Runs it and expects success without a word on stderr.
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {output:?}");
        stdout(&output)
    }

    fn json(&self, arguments: &[&str]) -> serde_json::Value {
        json(&self.run(arguments))
    }

    fn create(&self, name: &str, arguments: &[&str]) {
        self.ok(&[&["queue", "create", name], arguments].concat());
    }

    fn broker(&self) -> u32 {
        let status = self.json(&["status", "--json"]);
        u32::try_from(status["broker_pid"].as_u64().unwrap()).unwrap()
    }

    /// Both processes, and neither of them gets to close the rings.
    fn kill_all(&mut self) {
        let broker = self.broker();
        kill(broker, libc::SIGSTOP);
        self.keeper.kill().unwrap();
        self.keeper.wait().unwrap();
        kill(broker, libc::SIGKILL);
        // Until its descriptors are closed, clients have a connection to a daemon.
        eventually("the broker is gone", || {
            let stat = std::fs::read_to_string(format!("/proc/{broker}/stat"));
            stat.map_or(true, |stat| stat.contains(") Z") || stat.contains(") X"))
        });
    }

    /// Another daemon at the same socket, after the end of the one before.
    fn restart(&mut self) {
        let mut command = ringmain();
        command.arg("serve").arg("--socket").arg(&self.socket).args(&self.arguments);
        eventually("another daemon serves", || {
            let mut keeper = command.stdout(Stdio::piped()).spawn().expect("the daemon starts");
            let first = lines(keeper.stdout.take().expect("piped")).recv_timeout(LIMIT);
            let ready = first.is_ok_and(|line| line.starts_with("ready"));
            if ready {
                self.keeper = keeper;
            } else {
                keeper.wait().unwrap();
            }
            ready
        });
    }

    /// SIGTERM, and it ends well.
    fn stop(&mut self) {
        signal(&self.keeper, libc::SIGTERM);
        let status = wait(&mut self.keeper, LIMIT).expect("the daemon ends in time");
        assert!(status.success(), "{status:?}");
    }

    /// Folder of the journals.
    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn file(&self, name: &str, contents: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, contents).unwrap();
        path
    }
}

fn folder() -> TempDir {
    tempfile::Builder::new().prefix("rm-cli-").tempdir_in("/tmp").unwrap()
}

impl Drop for Daemon {
    fn drop(&mut self) {
        signal(&self.keeper, libc::SIGTERM);
        if wait(&mut self.keeper, Duration::from_secs(10)).is_none() {
            let _ = self.keeper.kill();
            let _ = self.keeper.wait();
        }
    }
}

/// A child that is killed when the test ends before it does.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(command.spawn().expect("the command starts"))
    }

    /// Waits for its end; the exit code, or the signal as a negative number.
    fn end(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        let status = wait(&mut self.0, LIMIT).expect("the command ends in time");
        status.code().unwrap_or_else(|| -status.signal().unwrap_or(0))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn signal(child: &Child, signal: libc::c_int) {
    let id = libc::pid_t::try_from(child.id()).unwrap();
    // SAFETY: kill takes no pointer; the child was not waited for, so that the id is still its own.
    unsafe { libc::kill(id, signal) };
}

/// Sends a signal to a process of a daemon of this test, whose id was read just now.
fn kill(id: u32, signal: libc::c_int) {
    let id = libc::pid_t::try_from(id).unwrap();
    // SAFETY: kill takes no pointer.
    unsafe { libc::kill(id, signal) };
}

fn wait(child: &mut Child, limit: Duration) -> Option<std::process::ExitStatus> {
    let start = Instant::now();
    while start.elapsed() < limit {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        thread::sleep(Duration::from_millis(5));
    }
    None
}

/// Lines of a stream as they come.
fn lines(stream: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

/// Waits until something holds.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < LIMIT, "{what} did not happen");
        thread::sleep(Duration::from_millis(10));
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path of this test")
}
