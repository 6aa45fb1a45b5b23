//! The program under test as processes: the daemon, publishers, consumers. All of them are killed when dropped.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::LIMIT;
use super::check::output;
use super::records::Records;

/// Lines of one publisher between two pauses of a millisecond: the check holds them all in memory.
const LINES_AT_ONCE: usize = 2;

/// The program under test.
#[derive(Debug)]
pub(super) struct Binary(PathBuf);

impl Binary {
    /// `RINGMAIN_BINARY`, or what cargo builds into the folder of this very program.
    pub(super) fn build() -> Result<Self, String> {
        if let Some(path) = std::env::var_os("RINGMAIN_BINARY") {
            return Ok(Self(path.into()));
        }
        let here = std::env::current_exe().map_err(|error| format!("no path: {error}"))?;
        let folder = here.ancestors().skip(1).find(|folder| !folder.ends_with("deps"));
        let folder = folder.ok_or("this program lies in no folder")?;
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.args(["build", "--quiet", "--package", "ringmain", "--bin", "ringmain"]);
        if folder.ends_with("release") {
            command.arg("--release");
        }
        command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
        if let Some(target) = folder.parent() {
            command.arg("--target-dir").arg(target);
        }
        let status = command.status().map_err(|error| format!("cannot run cargo: {error}"))?;
        if !status.success() {
            return Err(format!("cargo build: {status}"));
        }
        Ok(Self(folder.join("ringmain")))
    }

    /// It dies with this process.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.0);
        command.env_remove("RINGMAIN_SOCKET").env_remove("XDG_RUNTIME_DIR").stdin(Stdio::null());
        // SAFETY: between fork and exec the closure makes one system call; it allocates nothing and takes no lock.
        unsafe {
            command.pre_exec(|| {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong) == 0 {
                    Ok(())
                } else {
                    Err(std::io::Error::last_os_error())
                }
            });
        }
        command
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Code(i32),
    Signal(i32),
}

impl From<ExitStatus> for End {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Code(code),
            (None, signal) => Self::Signal(signal.unwrap_or(0)),
        }
    }
}

fn wait(child: &mut Child, limit: Duration) -> Result<End, String> {
    let start = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status.into()),
            Ok(None) if start.elapsed() > limit => {
                return Err(format!("process {} hangs", child.id()));
            }
            Ok(None) => thread::sleep(Duration::from_millis(1)),
            Err(error) => return Err(format!("cannot wait: {error}")),
        }
    }
}

/// Sends a signal to a process of this suite.
pub(super) fn send(process: u32, signal: libc::c_int) {
    if let Some(id) = libc::pid_t::try_from(process).ok().filter(|id| *id > 0) {
        // SAFETY: kill takes no pointer; the process is a child of this one, or its daemon named it just now.
        unsafe { libc::kill(id, signal) };
    }
}

/// Whether it runs; one that is dead and not waited for has closed everything.
fn lives(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) -> Result<(), String> {
    let start = Instant::now();
    while !holds() {
        if start.elapsed() > LIMIT {
            return Err(format!("{what} did not happen"));
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// The daemon of a case.
#[derive(Debug)]
pub(super) struct Daemon {
    binary: PathBuf,
    keeper: Child,
    socket: PathBuf,
    data: PathBuf,
    pub(super) folder: PathBuf,
    _folder: TempDir,
}

impl Daemon {
    pub(super) fn start(binary: &Binary) -> Result<Self, String> {
        let folder =
            tempfile::Builder::new().prefix("rm-kill-").tempdir().map_err(|e| e.to_string())?;
        let path = folder.path().to_path_buf();
        let (socket, data) = (path.join("s"), path.join("data"));
        fs::create_dir(&data).map_err(|error| error.to_string())?;
        let keeper = serve(binary, &path)?
            .ok_or_else(|| format!("the daemon does not start: {}", end_of(&path.join("log"))))?;
        let binary = binary.0.clone();
        Ok(Self { binary, keeper, socket, data, folder: path, _folder: folder })
    }

    /// After the death of the keeper. The new one may have to wait for the last of the old one's files.
    pub(super) fn restart(&mut self, binary: &Binary) -> Result<(), String> {
        let start = Instant::now();
        loop {
            if let Some(keeper) = serve(binary, &self.folder)? {
                self.keeper = keeper;
                return Ok(());
            }
            if start.elapsed() > LIMIT {
                return Err("the daemon does not start again".into());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Runs a command; what it prints.
    pub(super) fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Binary(self.binary.clone()).command();
        command.env("RINGMAIN_SOCKET", &self.socket).args(arguments);
        let output = command.output().map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(format!("{arguments:?}: {}: {said}", output.status))
    }

    /// Runs a command on the data folder.
    pub(super) fn run_offline(&self, arguments: &[&str]) -> Result<String, String> {
        self.run(&[arguments, &[&self.data.to_string_lossy()]].concat())
    }

    /// A number about a brokered queue.
    pub(super) fn number(&self, queue: &str, name: &str) -> Result<u64, String> {
        let text = self.run(&["queue", "info", queue, "--json"])?;
        let info: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        info["brokered"][name].as_u64().ok_or_else(|| format!("no {name} in {text}"))
    }

    pub(super) fn broker(&self) -> Result<u32, String> {
        let text = self.run(&["status", "--json"])?;
        let status: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let process = status["broker_pid"].as_u64().and_then(|process| u32::try_from(process).ok());
        process.ok_or_else(|| format!("no broker in {text}"))
    }

    pub(super) fn wait_until_answers(&self) -> Result<(), String> {
        eventually("an answer of the daemon", || self.run(&["status"]).is_ok())
    }

    /// With the broker at the same instant, or before it can notice; waits until both are gone.
    pub(super) fn kill_keeper(&mut self, with_broker: bool) -> Result<(), String> {
        let broker = self.broker()?;
        if with_broker {
            send(broker, libc::SIGSTOP);
        }
        let _ = self.keeper.kill();
        wait(&mut self.keeper, LIMIT)?;
        if with_broker {
            send(broker, libc::SIGKILL);
        }
        eventually("the end of the broker", || !lives(broker))
    }

    /// SIGTERM, and it must end well.
    pub(super) fn stop(&mut self) -> Result<(), String> {
        send(self.keeper.id(), libc::SIGTERM);
        match wait(&mut self.keeper, LIMIT)? {
            End::Code(0) => Ok(()),
            end => Err(format!("the daemon ended with {end:?}")),
        }
    }

    /// The last lines of its log.
    pub(super) fn log_end(&self) -> String {
        end_of(&self.folder.join("log"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.keeper.try_wait(), Ok(None)) {
            send(self.keeper.id(), libc::SIGTERM);
            if wait(&mut self.keeper, Duration::from_secs(10)).is_err() {
                let _ = self.keeper.kill();
                let _ = self.keeper.wait();
            }
        }
    }
}

/// Starts the daemon; nothing if it ended instead.
fn serve(binary: &Binary, folder: &Path) -> Result<Option<Child>, String> {
    let log = OpenOptions::new().create(true).append(true).open(folder.join("log"));
    let log = log.map_err(|error| error.to_string())?;
    let mut command = binary.command();
    command.arg("serve").arg("--socket").arg(folder.join("s"));
    command.arg("--data-dir").arg(folder.join("data")).args(["--segment-size", "1MiB"]);
    command.stdout(Stdio::piped()).stderr(log);
    let mut keeper = command.spawn().map_err(|error| error.to_string())?;
    let stdout = keeper.stdout.take().ok_or("no stdout")?;
    let mut first = String::new();
    let mut lines = BufReader::new(stdout);
    let _ = lines.read_line(&mut first);
    if first.starts_with("ready") {
        // Reads on, so that the daemon never meets a closed pipe.
        thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        return Ok(Some(keeper));
    }
    wait(&mut keeper, LIMIT)?;
    Ok(None)
}

fn end_of(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}

/// A publisher or a consumer.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) life: usize,
    child: Child,
    said: PathBuf,
    output: PathBuf,
    feeder: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
}

impl Client {
    /// With records of this author on its stdin, if it gets some.
    pub(super) fn start(
        daemon: &Daemon,
        life: usize,
        arguments: &[&str],
        records: Option<(&Records, usize)>,
    ) -> Result<Self, String> {
        let fail = |error: std::io::Error| error.to_string();
        let said = daemon.folder.join(format!("err-{life}"));
        let output = output(&daemon.folder, life);
        let mut command = Binary(daemon.binary.clone()).command();
        command.env("RINGMAIN_SOCKET", &daemon.socket).args(arguments);
        command.stdout(File::create(&output).map_err(fail)?);
        command.stderr(File::create(&said).map_err(fail)?);
        if records.is_some() {
            command.stdin(Stdio::piped());
        }
        let mut child = command.spawn().map_err(fail)?;
        let feeder = records.zip(child.stdin.take()).map(|((records, author), mut stdin)| {
            let stop = Arc::new(AtomicBool::new(false));
            let told = Arc::clone(&stop);
            let records = records.clone();
            let feed = move || {
                let mut number = 0;
                // Relaxed: nothing else is passed on with it.
                while !told.load(Ordering::Relaxed) {
                    let text: String = (number..number + LINES_AT_ONCE)
                        .map(|number| records.line(author, number) + "\n")
                        .collect();
                    if stdin.write_all(text.as_bytes()).is_err() {
                        return;
                    }
                    number += LINES_AT_ONCE;
                    thread::sleep(Duration::from_millis(1));
                }
            };
            (stop, thread::spawn(feed))
        });
        Ok(Self { life, child, said, output, feeder })
    }

    /// Ends the input of a publisher.
    pub(super) fn close_input(&mut self) {
        if let Some((stop, feeder)) = self.feeder.take() {
            // Relaxed: see `start`.
            stop.store(true, Ordering::Relaxed);
            // A feeder that is stuck in a full pipe gets out when the process ends.
            drop(feeder);
        }
    }

    /// Sends a signal and waits for the end.
    pub(super) fn kill(&mut self, signal: libc::c_int) -> Result<End, String> {
        send(self.child.id(), signal);
        let end = self.wait(LIMIT);
        self.close_input();
        end
    }

    pub(super) fn wait(&mut self, limit: Duration) -> Result<End, String> {
        wait(&mut self.child, limit)
    }

    /// The broker died while it connected: that is not promised to go well, and it has done nothing.
    pub(super) fn stillborn(&mut self) -> bool {
        let ended = matches!(self.child.try_wait(), Ok(Some(status)) if status.code() == Some(69));
        let printed = fs::metadata(&self.output).map_or(0, |file| file.len());
        ended && printed == 0 && self.complaint().contains("no daemon answers")
    }

    /// What it said on stderr.
    pub(super) fn complaint(&self) -> String {
        end_of(&self.said)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.close_input();
    }
}
