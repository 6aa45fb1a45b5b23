//! The broker: one thread that sleeps in poll(2) until somebody asks, dies, or the keeper has something to say.
//!
//! It never waits for a client: a reply that does not fit the client's socket ends the connection. It has no timer and
//! does no disk I/O. Whatever it tells a client is stored by the keeper before, so that its own death loses nothing.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::socket::sockopt::SockType as SockTypeOption;
use nix::sys::socket::{
    AddressFamily, SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt,
};
use ringmain_client::layout::control;
use ringmain_client::protocol::{ErrorCode, FRAME_BYTES_MAX, Reply, WakeMode};
use ringmain_client::sys::membarrier;
use ringmain_client::sys::memory::MemoryError;

use super::DaemonError;
use super::background::Results;
use super::brokered::{Brokered, NewPair};
use super::connections::{Answer, Connection};
use super::counters::Counters;
use super::doorbells::Doorbell;
use super::link::{BrokerConfig, FromKeeper, KeeperLink, LinkLost, ToKeeper};
use super::log::log;
use super::process::has_exited;
use super::queues::{Pending, Queue};
use super::rings::QueueMemory;
use super::sessions::Session;
use crate::shard::control::StartError;

/// Seconds that a broker whose keeper died has to leave by itself.
const ORPHAN_S: libc::c_uint = 5;
/// How long the shards may take to store what they have: the keeper waits longer than each of these.
const STOPPING: Duration = Duration::from_secs(8);
const LEAVING: Duration = Duration::from_millis(1500);
const ORPHANED: Duration = Duration::from_secs(3);

/// Everything the broker knows. Requests are methods on this, in a file for each subject.
#[derive(Debug)]
pub(super) struct Broker {
    pub(super) config: BrokerConfig,
    pub(super) keeper: KeeperLink,
    pub(super) listener: OwnedFd,
    /// Given up for a moment when descriptors run out, so that a connection can be taken and refused.
    pub(super) spare: Option<OwnedFd>,
    /// Whether that was logged.
    pub(super) is_starved: bool,
    pub(super) connections: BTreeMap<u64, Connection>,
    pub(super) next_connection: u64,
    pub(super) sessions: BTreeMap<u64, Session>,
    pub(super) queues: BTreeMap<u64, Queue>,
    pub(super) names: BTreeMap<String, u64>,
    /// Queues that are deleted with a session: the session of each.
    pub(super) session_queues: BTreeMap<u64, u64>,
    /// Since these were looked at.
    pub(super) session_ended: bool,
    pub(super) doorbells: BTreeMap<u32, Doorbell>,
    /// Queues whose memory is not there yet, by name.
    pub(super) allocating: BTreeMap<String, Pending>,
    pub(super) allocated: Results<Allocated>,
    pub(super) counters: Counters,
    pub(super) brokered: Brokered,
    /// For new queues.
    pub(super) wake_mode: WakeMode,
    /// Handles that an older broker had taken back and left unrepaired; empty after the adoption.
    pub(super) abandoned: Vec<(u64, u8)>,
    /// The connection that waits for the end of an upgrade's beginning.
    pub(super) upgrade_by: Option<u64>,
    pub(super) buffer: Vec<u8>,
}

/// Runs the broker: the process that [`serve`](super::serve) starts with the single argument `broker`.
///
/// # Errors
/// [`DaemonError::Config`] if it was not started by a keeper, [`DaemonError::Unavailable`] if the keeper is gone or
/// what it holds cannot be adopted.
pub fn broker_main() -> Result<(), DaemonError> {
    set_signals().map_err(|errno| DaemonError::io("signals", &errno.into()))?;
    let mut keeper = KeeperLink::new(keeper_socket()?);
    let lost = |error: LinkLost| DaemonError::Unavailable(format!("the keeper is gone ({error})"));
    let version = env!("CARGO_PKG_VERSION").to_owned();
    keeper.send(&ToKeeper::Standby { version }).map_err(lost)?;
    let (config, brokered_config, listener) = keeper.start().map_err(lost)?;
    let membarrier = !config.force_no_membarrier && membarrier::register();
    let mut broker = Broker {
        config,
        keeper,
        listener,
        spare: std::fs::File::open("/dev/null").ok().map(OwnedFd::from),
        is_starved: false,
        connections: BTreeMap::new(),
        next_connection: 0,
        sessions: BTreeMap::new(),
        queues: BTreeMap::new(),
        names: BTreeMap::new(),
        session_queues: BTreeMap::new(),
        session_ended: false,
        doorbells: BTreeMap::new(),
        allocating: BTreeMap::new(),
        allocated: Results::new().map_err(|error| DaemonError::io("eventfd", &error))?,
        counters: Counters::after(None),
        brokered: Brokered::new(brokered_config)
            .map_err(|error| DaemonError::io("eventfd", &error))?,
        wake_mode: if membarrier { WakeMode::Membarrier } else { WakeMode::Fence },
        abandoned: Vec::new(),
        upgrade_by: None,
        buffer: vec![0; FRAME_BYTES_MAX],
    };
    broker.adopt().map_err(DaemonError::Unavailable)?;
    if let Some(error) = broker.await_shards().map_err(lost)? {
        return Err(broker.refuse_to_start(&error));
    }
    let result = broker.keeper.send(&ToKeeper::Ready).and_then(|()| broker.run());
    result.map_err(|error| {
        broker.orphaned();
        DaemonError::Unavailable(format!(
            "the keeper is gone ({error}): all queues are closed for producers, start `ringmain serve` again"
        ))
    })
}

/// The keeper decides when to stop, so what a terminal or a service manager sends to the whole group is ignored here.
fn set_signals() -> nix::Result<()> {
    prctl::set_name(c"ringmain")?;
    let action = |handler| SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    let ignore = action(SigHandler::SigIgn);
    // SIGXFSZ: a limit on file sizes becomes an error of the call.
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGXFSZ] {
        // SAFETY: ignoring a signal runs no code.
        unsafe { sigaction(signal, &ignore) }?;
    }
    // SAFETY: the handler only calls alarm(2), which is async-signal-safe.
    unsafe { sigaction(Signal::SIGUSR1, &action(SigHandler::Handler(on_keeper_death))) }?;
    // The keeper had some signals blocked when it started us.
    SigSet::empty().thread_set_mask()?;
    prctl::set_pdeathsig(Signal::SIGUSR1)
}

/// Usually the closed socket is noticed at once and the rings are closed; this is for a broker that cannot notice.
extern "C" fn on_keeper_death(_: libc::c_int) {
    // SAFETY: takes no pointer; SIGALRM then ends the process.
    unsafe { libc::alarm(ORPHAN_S) };
}

/// Our end of the keeper's socket pair is standard input.
fn keeper_socket() -> Result<OwnedFd, DaemonError> {
    let stdin = std::io::stdin();
    let is_packet = getsockopt(&stdin, SockTypeOption) == Ok(SockType::SeqPacket);
    let is_unix = getsockname::<SockaddrStorage>(std::os::fd::AsRawFd::as_raw_fd(&stdin))
        .is_ok_and(|address| address.family() == Some(AddressFamily::Unix));
    if !is_packet || !is_unix {
        let text = "the broker is started by the daemon itself: run `ringmain serve`";
        return Err(DaemonError::Config(text.to_owned()));
    }
    stdin.as_fd().try_clone_to_owned().map_err(|error| DaemonError::io("dup", &error))
}

/// What poll(2) has to say about whom.
#[derive(Debug, Clone, Copy)]
enum Source {
    Keeper,
    Listener,
    Allocated,
    Shards,
    Connection(u64),
    Session(u64),
}

impl Broker {
    /// Serves until the keeper says to leave.
    fn run(&mut self) -> Result<(), LinkLost> {
        // Of sessions that ended while there was no broker.
        self.end_session_queues()?;
        loop {
            let ready = self.wait()?;
            // Deaths first: somebody may wait for a repair, and no request may see what a dead process left.
            let dead: Vec<u64> = ready
                .iter()
                .filter_map(|source| match source {
                    Source::Session(number) => Some(*number),
                    _ => None,
                })
                .collect();
            self.on_exits(&dead)?;
            self.end_session_queues()?;
            for source in ready {
                match source {
                    Source::Keeper => {
                        if self.on_keeper()? {
                            return Ok(());
                        }
                    }
                    Source::Connection(number) => self.on_packet(number)?,
                    Source::Listener => self.on_listener(),
                    Source::Allocated => self.on_allocated()?,
                    Source::Shards => self.on_shards()?,
                    Source::Session(_) => {}
                }
            }
            self.end_session_queues()?;
        }
    }

    fn wait(&self) -> Result<Vec<Source>, LinkLost> {
        let count = 4 + self.connections.len() + self.sessions.len();
        let mut polled = Vec::with_capacity(count);
        let mut sources = Vec::with_capacity(count);
        let mut add = |fd, source| {
            polled.push(PollFd::new(fd, PollFlags::POLLIN));
            sources.push(source);
        };
        add(self.keeper.socket(), Source::Keeper);
        add(self.allocated.descriptor(), Source::Allocated);
        add(self.brokered.descriptor(), Source::Shards);
        for (number, session) in &self.sessions {
            add(session.pidfd.as_fd(), Source::Session(*number));
        }
        for (number, connection) in &self.connections {
            add(connection.socket.as_fd(), Source::Connection(*number));
        }
        add(self.listener.as_fd(), Source::Listener);
        let timeout = if self.keeper.has_event() { PollTimeout::ZERO } else { PollTimeout::NONE };
        match poll(&mut polled, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(LinkLost(format!("poll: {errno}"))),
        }
        let pending = self.keeper.has_event();
        Ok(polled
            .iter()
            .zip(sources)
            .filter(|(fd, source)| {
                fd.any().unwrap_or(false) || (pending && matches!(source, Source::Keeper))
            })
            .map(|(_, source)| source)
            .collect())
    }

    /// Whether it is time to go.
    fn on_keeper(&mut self) -> Result<bool, LinkLost> {
        while let Some(event) = self.keeper.event()? {
            match event {
                FromKeeper::Stop => {
                    self.stop()?;
                    return Ok(true);
                }
                FromKeeper::Leave => {
                    self.stop_shards(false, LEAVING);
                    self.answer_upgrade(Answer::of(Reply::Done));
                    return Ok(true);
                }
                FromKeeper::UpgradeRefused { reason } => {
                    self.answer_upgrade(Answer::error(ErrorCode::Io, reason));
                }
                other => return Err(LinkLost(format!("unexpected message: {other:?}"))),
            }
        }
        Ok(false)
    }

    fn answer_upgrade(&mut self, answer: Answer) {
        if let Some(number) = self.upgrade_by.take() {
            self.send(number, answer);
        }
    }

    /// Producers are refused from now on; consumers receive what is left.
    fn stop(&mut self) -> Result<(), LinkLost> {
        let mut left = Vec::new();
        for queue in self.queues.values() {
            queue.memory.close(control::CLOSED_DRAINING);
            self.wake(queue);
            let messages = queue.memory.messages_left();
            if messages > 0 {
                left.push((queue.entry.name.as_str(), messages));
            }
        }
        let mut text = left_text(self.queues.len(), &left);
        let stored = self.stop_shards(true, STOPPING);
        if stored > 0 {
            text = format!("{text}; {stored} messages wait in brokered queues");
        }
        self.keeper.send(&ToKeeper::Stopped { text })
    }

    /// The keeper is dead, and with it the only other holder of the rings: nobody will repair them any more.
    fn orphaned(&mut self) {
        for queue in self.queues.values() {
            queue.memory.close(control::CLOSED_DRAINING);
            self.wake(queue);
        }
        self.stop_shards(true, ORPHANED);
    }

    /// The journal cannot be served, and never was: that is the end of the daemon, with the reason.
    fn refuse_to_start(&mut self, error: &StartError) -> DaemonError {
        let error = match error {
            StartError::Damaged(text) => DaemonError::Data(text.clone()),
            StartError::Permission(text) => DaemonError::Permission(text.clone()),
            StartError::Config(text) => DaemonError::Config(text.clone()),
            StartError::Io(text) => DaemonError::Io(text.clone()),
        };
        let (exit_code, text) = (error.exit_code(), error.to_string());
        let _ = self.keeper.send(&ToKeeper::Refused { exit_code, text });
        // The keeper ends this process, and says why itself.
        let _ = self.keeper.wait_for_end();
        error
    }

    /// Wakes everybody on a queue, whatever they wait for.
    pub(super) fn wake(&self, queue: &Queue) {
        for ring in queue.memory.wake_everybody() {
            if let Some(doorbell) = queue.doorbell_of(&ring)
                && let Some(doorbell) = self.doorbells.get(&doorbell)
            {
                doorbell.ring(ring.bit);
            }
        }
    }

    /// Looks at one process at once, rather than when poll(2) comes to it.
    pub(super) fn look_at(&mut self, session: u64) -> Result<(), LinkLost> {
        let exited = |session: &Session| has_exited(session.pidfd.as_fd());
        if self.sessions.get(&session).is_some_and(exited) {
            self.on_exits(&[session])?;
        }
        Ok(())
    }
}

fn left_text(queues: usize, left: &[(&str, u64)]) -> String {
    const NAMED: usize = 10;
    let total: u64 = left.iter().map(|(_, messages)| messages).sum();
    if total == 0 {
        return format!("stopped; no message was left in {queues} direct queues");
    }
    let mut named: Vec<String> =
        left.iter().take(NAMED).map(|(name, messages)| format!("{name}: {messages}")).collect();
    if left.len() > NAMED {
        named.push(format!("{} more", left.len() - NAMED));
    }
    format!(
        "stopped; {total} messages were left ({}): only consumers that are still attached can receive them",
        named.join(", ")
    )
}

/// Memory that was allocated in the background.
#[derive(Debug)]
pub(super) enum Allocated {
    /// Of a direct queue.
    Queue { name: String, memory: Result<QueueMemory, MemoryError> },
    /// Of a handle on a brokered queue.
    Pair { ticket: u64, pair: Result<NewPair, MemoryError> },
}

/// For requests that found the daemon's own state contradicting itself.
pub(super) fn bug(what: &str) -> (ErrorCode, String) {
    log!("internal error: {what}");
    (ErrorCode::Internal, format!("internal error of the daemon ({what}): please report it"))
}
