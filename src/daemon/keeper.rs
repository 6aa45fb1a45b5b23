//! The keeper: holds what must not be lost, and keeps one broker running.
//!
//! It sleeps in poll(2) without a time-out unless it waits for a broker to start or to leave.

use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use ringmain_client::protocol::FRAME_BYTES_MAX;
use ringmain_client::sys::clock::monotonic_ns;
use ringmain_client::sys::packet::Blocking;

use super::link::{self, BrokerConfig, BrokeredConfig, FromKeeper, Incoming, ToKeeper};
use super::lock::Lock;
use super::log::log;
use super::process::{Binary, BrokerProcess, has_exited};
use super::store::Store;
use super::{DaemonError, ServeOptions, socket};

/// How long a new broker may take to say that it runs, and then to adopt all rings.
const STANDBY: Duration = Duration::from_secs(5);
const ADOPTION: Duration = Duration::from_secs(30);
/// How long a broker may take to leave when told to.
const LEAVING: Duration = Duration::from_secs(2);
const STOPPING: Duration = Duration::from_secs(10);
/// Brokers that end before they are ready: so many in a row are started again at once, then with growing delays.
const FAILURES_FREE: u32 = 3;
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Brokers that had been ready: somebody whose peer died waits for the next one, so it is started at once, as long as
/// there is credit. One restart is credited each time this much has passed; without credit it is also the delay.
const RESTART_CREDIT: u32 = 256;
const RESTART_CREDITED_EVERY: Duration = Duration::from_millis(100);
/// Failures in a row before the daemon has ever been ready that make it give up.
const FAILURES_AT_START: u32 = 4;

/// Runs the daemon in the foreground until SIGTERM, SIGINT or SIGHUP.
///
/// Prints `ready SOCKET` on standard output when requests are served. The binary that calls this must run
/// [`broker_main`](super::broker_main) when its first argument is `broker`.
///
/// # Errors
/// See [`DaemonError`]. Nothing is left behind.
pub fn serve(options: &ServeOptions) -> Result<(), DaemonError> {
    // Before anything else, so that a signal during start-up is not lost and does not leave files behind.
    let signals = catch_signals()?;
    socket::check_path(&options.socket)?;
    let _data_lock = options.data_dir.as_deref().map(lock_data_dir).transpose()?;
    socket::prepare_directory(&options.socket)?;
    let mut lock_path = options.socket.clone().into_os_string();
    lock_path.push(".lock");
    let what = format!("socket {}", options.socket.display());
    let _socket_lock = Lock::take(Path::new(&lock_path), &what, false)?;
    raise_descriptor_limit();
    let binary = Binary::own().map_err(|error| DaemonError::io("/proc/self/exe", &error))?;
    let listener = socket::listen_at(&options.socket)?;
    let mut keeper = Keeper::new(options, signals, listener, binary);
    let result = keeper.run();
    // While the lock is still held: nobody else can have bound it.
    let _ = std::fs::remove_file(&options.socket);
    result
}

fn catch_signals() -> Result<SignalFd, DaemonError> {
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        mask.add(signal);
    }
    mask.thread_block()
        .and_then(|()| SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK))
        .map_err(|errno| DaemonError::io("signalfd", &errno.into()))
}

fn lock_data_dir(path: &Path) -> Result<Lock, DaemonError> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => {
            let text = format!("data folder {} is no folder: choose another one", path.display());
            return Err(DaemonError::Config(text));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => create_data_dir(path)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
            let text = format!(
                "data folder {} is no folder, it lies below a file: choose another one",
                path.display()
            );
            return Err(DaemonError::Config(text));
        }
        Err(error) => {
            return Err(DaemonError::io(format_args!("data folder {}", path.display()), &error));
        }
    }
    sync_parent(path)?;
    Lock::take(&path.join("ringmain.lock"), &format!("data folder {}", path.display()), true)
}

/// The folder's name must not be lost with everything in it, even if it was made a moment ago, by a daemon that was killed. Where the
/// folder above may not be read, it was somebody else who made this one.
fn sync_parent(path: &Path) -> Result<(), DaemonError> {
    let path = path
        .canonicalize()
        .map_err(|error| DaemonError::io(format_args!("data folder {}", path.display()), &error))?;
    let Some(parent) = path.parent() else { return Ok(()) };
    match File::open(parent).and_then(|parent| parent.sync_all()) {
        Err(error) if error.kind() != std::io::ErrorKind::PermissionDenied => {
            Err(DaemonError::io(format_args!("sync {}", parent.display()), &error))
        }
        _ => Ok(()),
    }
}

/// The folder alone: a path that leads nowhere is a mistake, or a disk that is not mounted.
fn create_data_dir(path: &Path) -> Result<(), DaemonError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {
            log!("created the data folder {}", path.display());
            Ok(())
        }
        // By somebody else, a moment ago: the lock decides.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let text = format!(
                "data folder {} does not exist, and neither does the folder above it: create that first",
                path.display()
            );
            Err(DaemonError::Config(text))
        }
        Err(error) => {
            let what = format_args!("create the data folder {}", path.display());
            Err(DaemonError::io(what, &error))
        }
    }
}

/// Every queue costs the keeper and the broker up to four descriptors each, every client one or two.
fn raise_descriptor_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// How far a broker has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Its first message is awaited.
    Starting,
    /// It stands by for the old one to leave (upgrade only).
    StandsBy,
    /// It adopts what the store holds.
    Adopting,
    Ready,
    /// It was told to leave, to stop, or was killed.
    Leaving,
}

#[derive(Debug)]
struct Broker {
    process: BrokerProcess,
    binary: Binary,
    phase: Phase,
    deadline: Option<Instant>,
    /// Its socket is of no use any more; it is not polled again.
    mute: bool,
}

#[derive(Debug)]
struct Keeper {
    signals: SignalFd,
    listener: OwnedFd,
    store: Store,
    config: BrokerConfig,
    brokered: BrokeredConfig,
    /// What a broker is started from; the last one that became ready.
    binary: Binary,
    broker: Option<Broker>,
    successor: Option<Broker>,
    restart_at: Option<Instant>,
    /// Brokers in a row that ended before they were ready.
    failures: u32,
    credit: u32,
    credited: Instant,
    announced: bool,
    stop_deadline: Option<Instant>,
    stopped: bool,
    /// Why there is no point in going on.
    failed: Option<DaemonError>,
    buffer: Vec<u8>,
}

impl Keeper {
    fn new(options: &ServeOptions, signals: SignalFd, listener: OwnedFd, binary: Binary) -> Self {
        let config = BrokerConfig {
            socket: options.socket.display().to_string(),
            limits: options.limits,
            force_no_membarrier: options.force_no_membarrier,
            force_no_peer_pidfd: options.force_no_peer_pidfd,
            keeper_pid: std::process::id(),
            keeper_started_ns: monotonic_ns(),
            broker_starts: 0,
        };
        let data_dir = options.data_dir.as_deref().map(|path| {
            // The folder exists, it was locked; a path that cannot be resolved is given on as it came.
            path.canonicalize().unwrap_or_else(|_| path.to_owned())
        });
        Self {
            signals,
            listener,
            store: Store::default(),
            config,
            brokered: BrokeredConfig { data_dir, shards: options.shards.clone() },
            binary,
            broker: None,
            successor: None,
            restart_at: Some(Instant::now()),
            failures: 0,
            credit: RESTART_CREDIT,
            credited: Instant::now(),
            announced: false,
            stop_deadline: None,
            stopped: false,
            failed: None,
            buffer: vec![0; FRAME_BYTES_MAX],
        }
    }

    fn run(&mut self) -> Result<(), DaemonError> {
        loop {
            self.on_time(Instant::now());
            if let Some(error) = self.failed.take() {
                return Err(error);
            }
            if self.stopped && self.broker.is_none() {
                return Ok(());
            }
            let (signal, broker, successor) = self.wait()?;
            if signal {
                self.on_signal();
            }
            if broker && let Some(current) = self.broker.take() {
                self.broker = self.on_event(current, false);
            }
            if successor && let Some(next) = self.successor.take() {
                self.successor = self.on_event(next, true);
            }
            self.take_over();
        }
    }

    /// Sleeps until something happens: a signal, the broker, its successor, or a deadline.
    fn wait(&self) -> Result<(bool, bool, bool), DaemonError> {
        let deadline = [
            self.restart_at,
            self.stop_deadline,
            self.broker.as_ref().and_then(|broker| broker.deadline),
            self.successor.as_ref().and_then(|broker| broker.deadline),
        ]
        .into_iter()
        .flatten()
        .min();
        let timeout = match deadline {
            None => PollTimeout::NONE,
            // Rounded up, so that the deadline has passed when poll returns.
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            }
        };
        let mut polled = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let mut owners = vec![0];
        for (owner, broker) in [(1, &self.broker), (2, &self.successor)] {
            if let Some(broker) = broker {
                polled.push(PollFd::new(broker.process.pidfd(), PollFlags::POLLIN));
                owners.push(owner);
                if !broker.mute {
                    polled.push(PollFd::new(broker.process.socket(), PollFlags::POLLIN));
                    owners.push(owner);
                }
            }
        }
        match poll(&mut polled, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(DaemonError::io("poll", &errno.into())),
        }
        let mut ready = [false; 3];
        for (fd, owner) in polled.iter().zip(owners) {
            ready[owner] |= fd.any().unwrap_or(false);
        }
        Ok((ready[0], ready[1], ready[2]))
    }

    /// Whatever is due.
    fn on_time(&mut self, now: Instant) {
        if self.restart_at.is_some_and(|at| at <= now) {
            self.restart_at = None;
            self.start_broker(now);
        }
        for broker in [&mut self.broker, &mut self.successor].into_iter().flatten() {
            if broker.deadline.is_some_and(|deadline| deadline <= now) {
                log!("broker (pid {}) does not answer: killed", broker.process.pid());
                broker.deadline = None;
                broker.process.kill();
            }
        }
        if self.stop_deadline.is_some_and(|deadline| deadline <= now) {
            self.stop_deadline = None;
            self.broker = None;
            self.successor = None;
            self.failed = Some(DaemonError::Unavailable(
                "stopped, but no broker was left to close the queues: their members go on alone"
                    .to_owned(),
            ));
        }
    }

    fn start_broker(&mut self, now: Instant) {
        let started = self.binary.try_clone().and_then(|binary| {
            let process = BrokerProcess::spawn(&binary)?;
            Ok(Broker {
                process,
                binary,
                phase: Phase::Starting,
                deadline: Some(now + STANDBY),
                mute: false,
            })
        });
        match started {
            Ok(broker) => self.broker = Some(broker),
            Err(error) => {
                log!("cannot start the broker from {}: {error}", self.binary.name);
                self.restart_after_failure(now);
            }
        }
    }

    /// After the end of a broker that never became ready.
    fn restart_after_failure(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        if !self.announced && self.failures >= FAILURES_AT_START {
            let text = "the broker does not start: see the lines above".to_owned();
            self.failed = Some(DaemonError::Unavailable(text));
            return;
        }
        let delay = match self.failures.checked_sub(FAILURES_FREE + 1) {
            None => Duration::ZERO,
            Some(doublings) => (BACKOFF_FIRST * 2_u32.pow(doublings.min(10))).min(BACKOFF_MAX),
        };
        self.restart_at = Some(now + delay);
    }

    /// After the end of a broker that had been ready.
    fn restart_after_death(&mut self, now: Instant) {
        let earned = (now - self.credited).as_millis() / RESTART_CREDITED_EVERY.as_millis();
        if earned > 0 {
            self.credited = now;
            let earned = u32::try_from(earned).unwrap_or(RESTART_CREDIT);
            self.credit = self.credit.saturating_add(earned).min(RESTART_CREDIT);
        }
        let delay = if self.credit > 0 { Duration::ZERO } else { RESTART_CREDITED_EVERY };
        self.credit = self.credit.saturating_sub(1);
        self.restart_at = Some(now + delay);
    }

    fn on_signal(&mut self) {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        if self.stop_deadline.is_some() || self.stopped {
            return;
        }
        self.stop_deadline = Some(Instant::now() + STOPPING);
        self.successor = None;
        match &mut self.broker {
            Some(broker) if broker.phase == Phase::Ready => tell_to_stop(broker),
            // It is told as soon as it has adopted the rings.
            Some(_) => {}
            None => self.restart_at = Some(Instant::now()),
        }
    }

    /// Everything a broker said, and its end. Gives it back while it lives.
    fn on_event(&mut self, mut broker: Broker, is_successor: bool) -> Option<Broker> {
        // Asked first: what a process sent before its exit is then in the socket already.
        let exited = has_exited(broker.process.pidfd());
        while !broker.mute {
            let socket = broker.process.socket();
            match link::receive::<ToKeeper>(socket, &mut self.buffer, Blocking::Return) {
                Ok(Incoming::Message(message, descriptors)) => {
                    self.on_message(&mut broker, message, descriptors, is_successor);
                }
                // Only Apply carries descriptors: its sender waits for the answer.
                Ok(Incoming::NoRoom(reason)) => {
                    log!("{reason}");
                    let answer = FromKeeper::NotApplied { reason };
                    if link::send(socket, &answer, &[]).is_err() {
                        broker.process.kill();
                    }
                }
                Ok(Incoming::Nothing) => break,
                Err(error) => {
                    broker.mute = true;
                    if !exited && broker.phase != Phase::Leaving {
                        log!("broker (pid {}): {error}: killed", broker.process.pid());
                        broker.process.kill();
                    }
                }
            }
        }
        if !exited {
            return Some(broker);
        }
        if is_successor {
            self.on_successor_exit(broker)
        } else {
            self.on_broker_exit(broker)
        }
        None
    }

    fn on_broker_exit(&mut self, broker: Broker) {
        let now = Instant::now();
        let (pid, phase) = (broker.process.pid(), broker.phase);
        let how = broker.process.reap();
        if self.stopped {
            return;
        }
        if phase == Phase::Leaving && self.successor.is_some() {
            return;
        }
        self.successor = None;
        log!(
            "broker (pid {pid}) ended ({how}): starting it again, {} entries kept",
            self.store.len()
        );
        if broker.binary.name != self.binary.name {
            log!("{} did not become ready: back to {}", broker.binary.name, self.binary.name);
        }
        if phase == Phase::Ready {
            self.restart_after_death(now);
        } else {
            self.restart_after_failure(now);
        }
    }

    fn on_successor_exit(&mut self, successor: Broker) {
        let name = successor.binary.name.clone();
        let how = successor.process.reap();
        let reason = format!("{name} does not run as a broker ({how}): the running one stays");
        self.refuse_upgrade(reason);
    }

    fn refuse_upgrade(&mut self, reason: String) {
        log!("upgrade refused: {reason}");
        let Some(broker) = &mut self.broker else {
            return;
        };
        let message = FromKeeper::UpgradeRefused { reason };
        if link::send(broker.process.socket(), &message, &[]).is_err() {
            broker.process.kill();
        }
    }

    /// When the old broker is gone and its successor stands by: the successor is the broker.
    fn take_over(&mut self) {
        let ready = |next: &Broker| next.phase == Phase::StandsBy;
        if self.broker.is_some() || !self.successor.as_ref().is_some_and(ready) {
            return;
        }
        if let Some(mut next) = self.successor.take() {
            self.let_adopt(&mut next);
            self.broker = Some(next);
        }
    }

    fn let_adopt(&mut self, broker: &mut Broker) {
        self.config.broker_starts += 1;
        let now = Instant::now();
        broker.phase = Phase::Adopting;
        broker.deadline = Some(now + ADOPTION);
        let message = FromKeeper::StartWith(self.config.clone(), self.brokered.clone());
        let sent = link::send(broker.process.socket(), &message, &[self.listener.as_fd()]);
        if sent.is_err() {
            broker.process.kill();
        }
    }

    fn on_message(
        &mut self,
        broker: &mut Broker,
        message: ToKeeper,
        descriptors: Vec<OwnedFd>,
        is_successor: bool,
    ) {
        let answered = match (message, broker.phase) {
            (ToKeeper::Standby { .. }, Phase::Starting) if is_successor => {
                broker.phase = Phase::StandsBy;
                broker.deadline = None;
                if let Some(old) = &mut self.broker {
                    old.phase = Phase::Leaving;
                    old.deadline = Some(Instant::now() + LEAVING);
                    if link::send(old.process.socket(), &FromKeeper::Leave, &[]).is_err() {
                        old.process.kill();
                    }
                }
                Ok(())
            }
            (ToKeeper::Standby { .. }, Phase::Starting) => {
                self.let_adopt(broker);
                Ok(())
            }
            (ToKeeper::Load { after }, _) => {
                let (items, descriptors) = self.store.page(&after);
                link::send(broker.process.socket(), &FromKeeper::Entries(items), &descriptors)
            }
            (ToKeeper::Apply { deletes, puts }, _) if !is_successor => {
                let answer = match self.store.apply(&deletes, puts, descriptors) {
                    Ok(()) => FromKeeper::Applied,
                    Err(reason) => FromKeeper::NotApplied { reason },
                };
                link::send(broker.process.socket(), &answer, &[])
            }
            (ToKeeper::Ready, Phase::Adopting) => {
                self.on_ready(broker);
                Ok(())
            }
            (ToKeeper::Upgrade { binary }, Phase::Ready) => {
                self.on_upgrade(broker, &binary);
                Ok(())
            }
            (ToKeeper::Stopped { text }, _) => {
                log!("{text}");
                self.stopped = true;
                Ok(())
            }
            (ToKeeper::Refused { exit_code, text }, Phase::Adopting) if !self.announced => {
                let error = match exit_code {
                    65 => DaemonError::Data(text),
                    74 => DaemonError::Io(text),
                    77 => DaemonError::Permission(text),
                    _ => DaemonError::Config(text),
                };
                self.failed = Some(error);
                Ok(())
            }
            (message, phase) => {
                log!("broker (pid {}): {message:?} while {phase:?}: killed", broker.process.pid());
                broker.process.kill();
                Ok(())
            }
        };
        if let Err(error) = answered {
            log!("broker (pid {}): {error}: killed", broker.process.pid());
            broker.process.kill();
        }
    }

    fn on_ready(&mut self, broker: &mut Broker) {
        broker.phase = Phase::Ready;
        broker.deadline = None;
        self.failures = 0;
        if broker.binary.name != self.binary.name {
            log!("the broker now runs from {}", broker.binary.name);
        }
        if let Ok(binary) = broker.binary.try_clone() {
            self.binary = binary;
        }
        if self.stop_deadline.is_some() {
            tell_to_stop(broker);
        } else if !self.announced {
            self.announced = true;
            let mut stdout = std::io::stdout().lock();
            let _ = writeln!(stdout, "ready {}", self.config.socket).and_then(|()| stdout.flush());
        }
    }

    fn on_upgrade(&mut self, broker: &Broker, path: &str) {
        let refuse = |reason: String| {
            log!("upgrade refused: {reason}");
            let message = FromKeeper::UpgradeRefused { reason };
            let _ = link::send(broker.process.socket(), &message, &[]);
        };
        if self.successor.is_some() || self.stop_deadline.is_some() {
            return refuse("an upgrade or a stop is under way: try again later".to_owned());
        }
        let binary = if path.is_empty() {
            self.binary.renewed().map_err(|error| error.to_string())
        } else {
            Binary::open(Path::new(path))
        };
        let started = binary.and_then(|binary| match BrokerProcess::spawn(&binary) {
            Ok(process) => Ok((process, binary)),
            Err(error) => Err(format!("{}: cannot be started: {error}", binary.name)),
        });
        match started {
            Ok((process, binary)) => {
                let now = Instant::now();
                self.successor = Some(Broker {
                    process,
                    binary,
                    phase: Phase::Starting,
                    deadline: Some(now + STANDBY),
                    mute: false,
                });
            }
            Err(reason) => refuse(reason),
        }
    }
}

fn tell_to_stop(broker: &mut Broker) {
    broker.phase = Phase::Leaving;
    if link::send(broker.process.socket(), &FromKeeper::Stop, &[]).is_err() {
        broker.process.kill();
    }
}
