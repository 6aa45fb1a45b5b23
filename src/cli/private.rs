//! A daemon of its own for `demo` and `bench`: it lives in a temporary folder and dies with the command.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ringmain_client::Client;
use tempfile::TempDir;

use super::args::BackendArg;
use super::exit::{Exit, Failure, Outcome};
use super::signals;

/// It starts in milliseconds; one that takes this long does not start.
const START_LIMIT: Duration = Duration::from_secs(10);

/// It stops at once when nobody is attached.
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// Longest socket path that the kernel takes, in bytes.
pub(crate) const SOCKET_PATH_MAX: usize = 107;

/// After SIGKILL a process is gone as soon as the kernel has time for it.
const DEATH_LIMIT: Duration = Duration::from_secs(10);

/// What a private daemon with durable queues is like.
#[derive(Debug, Clone, Default)]
pub(crate) struct Storage {
    /// Where its temporary folder is made; the folder of temporary files if nothing is said.
    pub(crate) parent: Option<PathBuf>,
    /// How its journal reaches the disk; the daemon's default if nothing is said.
    pub(crate) backend: Option<BackendArg>,
    /// Further arguments of `serve`.
    pub(crate) arguments: Vec<String>,
}

/// A running daemon that nobody else uses.
#[derive(Debug)]
pub(crate) struct PrivateBroker {
    keeper: Child,
    socket: PathBuf,
    /// Folder of its journal, if it has one.
    data: Option<PathBuf>,
    /// Of `serve`.
    arguments: Vec<OsString>,
    // Removed last, when nobody uses it any more.
    folder: TempDir,
    // The journal's, where it is not in the other one.
    _disk: Option<TempDir>,
}

impl PrivateBroker {
    /// Without a journal.
    pub(crate) fn start() -> Outcome<Self> {
        let folder = folder()?;
        Self::start_in(folder, None, None, Vec::new())
    }

    /// With a journal.
    pub(crate) fn durable(storage: &Storage) -> Outcome<Self> {
        let folder = folder()?;
        // The socket stays where its path is short.
        let disk = storage.parent.as_deref().map(temporary_in).transpose()?;
        let data = disk.as_ref().unwrap_or(&folder).path().join("data");
        fs::create_dir(&data).map_err(|error| Failure::file(&data, "make", &error))?;
        let mut arguments: Vec<OsString> = vec!["--data-dir".into(), data.clone().into()];
        if let Some(backend) = storage.backend {
            arguments.extend(["--journal-backend".into(), backend.name().into()]);
        }
        arguments.extend(storage.arguments.iter().map(OsString::from));
        Self::start_in(folder, disk, Some(data), arguments)
    }

    fn start_in(
        folder: TempDir,
        disk: Option<TempDir>,
        data: Option<PathBuf>,
        arguments: Vec<OsString>,
    ) -> Outcome<Self> {
        let socket = folder.path().join("ringmain.sock");
        let keeper = spawn(&socket, &arguments, folder.path())?;
        let mut broker = Self { keeper, socket, data, arguments, folder, _disk: disk };
        broker.wait_until_ready()?;
        Ok(broker)
    }

    /// Folder of the journal.
    pub(crate) fn data(&self) -> Option<&Path> {
        self.data.as_deref()
    }

    /// What it said so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("daemon.log")).unwrap_or_default()
    }

    /// Kills keeper and broker with SIGKILL, the broker so that it does nothing between the two.
    pub(crate) fn kill_all(&mut self) -> Outcome {
        let status = self.connect()?.status()?;
        send_signal(status.broker_pid, libc::SIGSTOP);
        let _ = self.keeper.kill();
        self.keeper.wait().map_err(|error| Failure::system("wait for the daemon", error))?;
        send_signal(status.broker_pid, libc::SIGKILL);
        let start = Instant::now();
        while lives(status.broker_pid) {
            if start.elapsed() > DEATH_LIMIT {
                return Err(Failure::internal("the broker does not die"));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Stops it as SIGTERM does, and waits for that; what it has said.
    pub(crate) fn stop(mut self) -> String {
        self.terminate();
        self.log()
    }

    fn terminate(&mut self) {
        let id = libc::pid_t::try_from(self.keeper.id()).unwrap_or(0);
        if id > 0 && matches!(self.keeper.try_wait(), Ok(None)) {
            // SAFETY: kill takes no pointer; the process was not waited for, so the id is still its own.
            unsafe { libc::kill(id, libc::SIGTERM) };
        }
        let start = Instant::now();
        while start.elapsed() < STOP_LIMIT {
            if !matches!(self.keeper.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(2));
        }
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }

    /// Starts it again at the same socket and on the same journal.
    pub(crate) fn restart(&mut self) -> Outcome {
        self.keeper = spawn(&self.socket, &self.arguments, self.folder.path())?;
        self.wait_until_ready()
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn connect(&self) -> Outcome<Client> {
        Ok(Client::connect(&self.socket)?)
    }

    fn wait_until_ready(&mut self) -> Outcome {
        let Some(stdout) = self.keeper.stdout.take() else {
            return Err(Failure::internal("the daemon has no stdout"));
        };
        let (sender, lines) = mpsc::channel();
        // Reads to the end, so that the daemon never meets a closed pipe.
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let start = Instant::now();
        while start.elapsed() < START_LIMIT {
            signals::check()?;
            match lines.recv_timeout(Duration::from_millis(50)) {
                Ok(line) if line.starts_with("ready") => return Ok(()),
                Ok(_) | Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
        }
        let log = self.log();
        let last = log.lines().last().unwrap_or("it said nothing");
        Err(Failure::new(
            Exit::Unavailable,
            format_args!("the private daemon did not start: {last}"),
        ))
    }
}

fn spawn(socket: &Path, arguments: &[OsString], folder: &Path) -> Outcome<Child> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.join("daemon.log"))
        .map_err(|error| Failure::file(folder, "write to", &error))?;
    let mut command = this_program();
    command.arg("serve").arg("--socket").arg(socket).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    die_with_parent(&mut command, libc::SIGTERM, &[]);
    command.spawn().map_err(|error| Failure::system("start the daemon", error))
}

fn send_signal(process: u32, signal: libc::c_int) {
    if let Some(id) = libc::pid_t::try_from(process).ok().filter(|id| *id > 0) {
        // SAFETY: kill takes no pointer. The id was read from the daemon just now; its process is a child of a keeper
        // of this command.
        unsafe { libc::kill(id, signal) };
    }
}

/// Whether a process runs: one that is dead and not yet waited for has closed all it had.
fn lives(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

impl Drop for PrivateBroker {
    fn drop(&mut self) {
        self.terminate();
    }
}

/// A folder whose socket path is short enough.
fn folder() -> Outcome<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("ringmain-");
    let default = std::env::temp_dir();
    // The random part and the name of the socket take less than 40 bytes.
    let short = default.as_os_str().len() + 40 <= SOCKET_PATH_MAX;
    let parent = if short { default } else { PathBuf::from("/tmp") };
    builder.tempdir_in(&parent).map_err(|error| {
        Failure::file(&parent, "make a temporary folder (of TMPDIR, else /tmp) in", &error)
    })
}

fn temporary_in(parent: &Path) -> Outcome<TempDir> {
    tempfile::Builder::new()
        .prefix("ringmain-")
        .tempdir_in(parent)
        .map_err(|error| Failure::file(parent, "make a temporary folder in", &error))
}

/// This very program, even if its file was replaced meanwhile.
pub(crate) fn this_program() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("ringmain");
    command
}

/// The child gets this signal when the calling thread ends, is out of reach of the terminal's Ctrl-C (the parent sees
/// to it), and keeps these descriptors open.
pub(crate) fn die_with_parent(command: &mut Command, signal: libc::c_int, keep: &[i32]) {
    let parent = std::process::id();
    let keep = keep.to_vec();
    command.process_group(0);
    // SAFETY: between fork and exec the closure only makes system calls; it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(move || {
            let signal = libc::c_ulong::from(signal.unsigned_abs());
            if libc::prctl(libc::PR_SET_PDEATHSIG, signal) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            // The parent may have died before the line above.
            if u32::try_from(libc::getppid()) != Ok(parent) {
                return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
            }
            for descriptor in &keep {
                if libc::fcntl(*descriptor, libc::F_SETFD, 0) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
}
