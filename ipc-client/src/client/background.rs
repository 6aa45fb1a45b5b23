//! What must not hold up a handle: connecting again, fetching the doorbells of peers, reporting damage.
//!
//! A thread does it. It exists only while there is something to do, and it ends when the client is gone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow};

use super::connection::{Inner, unexpected};
use super::doorbell::PeerDoorbell;
use super::error::ClientError;
use crate::layout::HANDLES;
use crate::protocol::{HandleKey, Reply, Request};

/// Shortest pause after a failed attempt; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(10);

/// Longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Pause before the next look at doorbells that have to wait for their turn.
const THROTTLED: Duration = Duration::from_millis(50);

/// Doorbells that are waited for at the same time, on all queues.
const FETCHES_MAX: usize = 1024;

/// Doorbells that are waited for at the same time on one queue: as many as it has handles.
const FETCHES_PER_QUEUE: usize = HANDLES;

/// Doorbells that are remembered. Each keeps a descriptor open.
const KNOWN_MAX: usize = 256;

/// Doorbells named in one queue that the daemon may be asked for at once although it does not know them. Whoever writes
/// handle lines can make up numbers; honest ones are unknown only when their process has just died.
const MISSES_AT_ONCE: u32 = 16;

/// After so many, one more is asked for in this time.
const MISS_EVERY: Duration = Duration::from_millis(250);

/// Reports that wait for the daemon at the same time.
const REPORTS_MAX: usize = 64;

/// A doorbell that the daemon does not know is asked for again after this time at the earliest.
const MISSING: Duration = Duration::from_secs(1);

/// Work for the thread, and the doorbells that it has fetched.
#[derive(Debug, Default)]
pub(crate) struct Background {
    work: Mutex<Work>,
}

#[derive(Debug, Default)]
struct Work {
    running: bool,
    reconnect: bool,
    fetches: Vec<Fetch>,
    /// Those that the thread is busy with.
    in_hand: Vec<Fetch>,
    reports: Vec<Report>,
    known: HashMap<u32, Known>,
    /// By queue.
    misses: HashMap<u64, Misses>,
}

/// How many more doorbells of a queue may turn out to be unknown.
#[derive(Debug, Clone, Copy)]
struct Misses {
    left: u32,
    counted: Instant,
}

impl Misses {
    fn new(now: Instant) -> Self {
        Self { left: MISSES_AT_ONCE, counted: now }
    }

    /// Adds what the time that has passed allows.
    fn refill(&mut self, now: Instant) {
        while self.left < MISSES_AT_ONCE && now.duration_since(self.counted) >= MISS_EVERY {
            self.left += 1;
            self.counted += MISS_EVERY;
        }
        if self.left == MISSES_AT_ONCE {
            self.counted = now;
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fetch {
    queue: u64,
    doorbell: u32,
    bit: u32,
}

#[derive(Debug)]
struct Report {
    handle: HandleKey,
    what: String,
}

#[derive(Debug)]
enum Known {
    Here(Arc<PeerDoorbell>),
    Missing(Instant),
}

impl Background {
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects again, soon.
    pub(super) fn reconnect(&self, inner: &Arc<Inner>) {
        let mut work = self.lock();
        work.reconnect = true;
        work.start(inner);
    }

    /// Tells the daemon what a handle saw in its ring.
    pub(super) fn report(&self, inner: &Arc<Inner>, handle: HandleKey, what: String) {
        let mut work = self.lock();
        if work.reports.len() < REPORTS_MAX {
            work.reports.push(Report { handle, what });
        }
        work.start(inner);
    }

    /// See [`Inner::doorbell`].
    pub(super) fn doorbell(
        &self,
        inner: &Arc<Inner>,
        queue: u64,
        doorbell: u32,
        bit: u32,
    ) -> Option<Arc<PeerDoorbell>> {
        let mut work = self.lock();
        if let Some(Known::Here(here)) = work.known.get(&doorbell) {
            return Some(Arc::clone(here));
        }
        work.want(Fetch { queue, doorbell, bit });
        work.start(inner);
        None
    }

    /// Rings what is still to be rung for this queue, before its last handle goes: afterwards the daemon would refuse. One
    /// attempt each, also of those that the thread has in hand and may come too late with.
    pub(super) fn flush(&self, inner: &Inner, queue: u64) {
        let fetches = {
            let mut work = self.lock();
            if work.fetches.is_empty() && work.in_hand.is_empty() {
                return;
            }
            let (mut now, later): (Vec<_>, Vec<_>) =
                work.fetches.drain(..).partition(|fetch| fetch.queue == queue);
            work.fetches = later;
            now.extend(work.in_hand.iter().filter(|fetch| fetch.queue == queue));
            now
        };
        self.work(inner, Todo { fetches, ..Todo::default() });
    }

    /// Nothing that was fetched is valid any more.
    pub(super) fn forget_doorbells(&self) {
        self.lock().known.clear();
    }

    fn remember(&self, doorbell: u32, known: Known) {
        let mut work = self.lock();
        if work.known.len() >= KNOWN_MAX {
            work.known.clear();
        }
        work.known.insert(doorbell, known);
    }

    /// The daemon does not know this one.
    fn remember_missing(&self, fetch: Fetch) {
        let now = Instant::now();
        self.remember(fetch.doorbell, Known::Missing(now));
        let mut work = self.lock();
        let misses = work.misses.entry(fetch.queue).or_insert_with(|| Misses::new(now));
        misses.left = misses.left.saturating_sub(1);
    }

    /// One round.
    fn work(&self, inner: &Inner, todo: Todo) -> End {
        let mut end = End::Done;
        for Report { handle, what } in todo.reports {
            let request = Request::ReportFault { handle, what: what.clone() };
            if let Err(ClientError::Unavailable { .. }) = inner.request(&request) {
                self.lock().reports.push(Report { handle, what });
                end = End::Unreachable;
            }
        }
        if todo.reconnect && inner.ensure_connected().is_err() {
            self.lock().reconnect = true;
            end = End::Unreachable;
        }
        let mut reachable = true;
        for fetch in todo.fetches {
            let mut work = self.lock();
            let (known, fresh) = match work.known.get(&fetch.doorbell) {
                Some(Known::Here(here)) => (Some(Arc::clone(here)), false),
                Some(Known::Missing(since)) => (None, since.elapsed() < MISSING),
                None => (None, false),
            };
            // It may be bound by now, but whoever writes numbers at random must not keep the daemon busy.
            if known.is_none() && (fresh || !work.may_miss(fetch.queue)) {
                work.want(fetch);
                end = end.max(End::Throttled);
                continue;
            }
            if known.is_none() && !reachable {
                // One time-out is enough: a handle that is dropped may wait for this.
                work.want(fetch);
                continue;
            }
            drop(work);
            match known.map_or_else(|| fetch_doorbell(inner, fetch), Ok) {
                Ok(doorbell) => {
                    doorbell.ring(fetch.bit);
                    self.remember(fetch.doorbell, Known::Here(doorbell));
                }
                Err(ClientError::Unavailable { .. }) => {
                    // Whoever waits for this ring must get it, however long the daemon is away.
                    self.lock().want(fetch);
                    end = End::Unreachable;
                    reachable = false;
                }
                Err(_) => self.remember_missing(fetch),
            }
        }
        end
    }
}

/// How a round ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// Everything was done.
    Done,
    /// Some of it has to wait for its turn.
    Throttled,
    /// The daemon did not answer.
    Unreachable,
}

/// What one round has to do.
#[derive(Debug, Default)]
struct Todo {
    reconnect: bool,
    fetches: Vec<Fetch>,
    reports: Vec<Report>,
}

impl Work {
    /// Fetches this one soon, unless so many are waited for that their queue can only be out of order.
    fn want(&mut self, fetch: Fetch) {
        let of_queue = self.fetches.iter().filter(|other| other.queue == fetch.queue).count();
        let room = of_queue < FETCHES_PER_QUEUE && self.fetches.len() < FETCHES_MAX;
        if room && !self.fetches.contains(&fetch) {
            self.fetches.push(fetch);
        }
    }

    /// Whether the daemon may be asked for a doorbell of this queue that it may not know.
    fn may_miss(&mut self, queue: u64) -> bool {
        let now = Instant::now();
        self.misses.retain(|_, misses| {
            misses.refill(now);
            misses.left < MISSES_AT_ONCE
        });
        self.misses.get(&queue).is_none_or(|misses| misses.left > 0)
    }

    /// Work for one round; `None` ends the thread.
    fn next(&mut self) -> Option<Todo> {
        let todo = Todo {
            reconnect: std::mem::take(&mut self.reconnect),
            fetches: std::mem::take(&mut self.fetches),
            reports: std::mem::take(&mut self.reports),
        };
        self.in_hand.clone_from(&todo.fetches);
        let nothing = !todo.reconnect && todo.fetches.is_empty() && todo.reports.is_empty();
        self.running = !nothing;
        self.running.then_some(todo)
    }

    fn start(&mut self, inner: &Arc<Inner>) {
        if self.running {
            return;
        }
        let weak = Arc::downgrade(inner);
        // The thread must not take signals that the program expects elsewhere.
        let all = SigSet::all();
        let before = all.thread_swap_mask(SigmaskHow::SIG_SETMASK);
        let spawned = std::thread::Builder::new()
            .name("ringmain-control".to_owned())
            .spawn(move || run(&weak));
        if let Ok(before) = before {
            let _ = before.thread_set_mask();
        }
        // Without a thread (a limit was reached) the next occasion tries again.
        self.running = spawned.is_ok();
    }
}

fn run(client: &Weak<Inner>) {
    let mut pause = PAUSE_MIN;
    loop {
        let Some(inner) = client.upgrade() else {
            return;
        };
        let Some(todo) = inner.background.lock().next() else {
            return;
        };
        let end = inner.background.work(&inner, todo);
        inner.background.lock().in_hand.clear();
        drop(inner);
        match end {
            End::Done => pause = PAUSE_MIN,
            End::Throttled => {
                // Others may want something that need not wait.
                std::thread::sleep(THROTTLED);
                pause = PAUSE_MIN;
            }
            End::Unreachable => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

fn fetch_doorbell(inner: &Inner, fetch: Fetch) -> Result<Arc<PeerDoorbell>, ClientError> {
    let request = Request::FetchDoorbell { queue: fetch.queue, doorbell: fetch.doorbell };
    let answer = inner.request(&request)?;
    match (&answer.reply, <[_; 2]>::try_from(answer.descriptors)) {
        (Reply::Doorbell { doorbell }, Ok([memory, socket])) if *doorbell == fetch.doorbell => {
            let opened = PeerDoorbell::open(fetch.doorbell, memory, socket, inner.mark())?;
            Ok(Arc::new(opened))
        }
        (reply, _) => Err(unexpected(reply)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

    use nix::sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept, bind, listen, socket,
    };

    use super::*;
    use crate::protocol::frame::CONTROL;
    use crate::protocol::{ErrorCode, FRAME_BYTES_MAX};
    use crate::sys::packet::{Blocking, receive_packet, send_packet};

    /// A daemon that knows no doorbell and counts how often it is asked for one.
    fn serve(listener: &OwnedFd, asked: &Mutex<u32>) {
        let raw = accept(listener.as_raw_fd()).expect("the client connects");
        // SAFETY: the descriptor was just created and belongs to nobody else.
        let connection = unsafe { OwnedFd::from_raw_fd(raw) };
        let mut buffer = vec![0; FRAME_BYTES_MAX];
        while let Ok(packet) = receive_packet(connection.as_fd(), &mut buffer, Blocking::Wait) {
            let request = CONTROL.decode::<Request>(&buffer[..packet.length]).expect("a request");
            let reply = match request {
                Request::Hello { .. } => {
                    let (version, lost) = ("test".to_owned(), Vec::new());
                    Reply::Welcome { version, broker_generation: 1, lost }
                }
                _ => {
                    *asked.lock().expect("nobody panics") += 1;
                    Reply::Error { code: ErrorCode::NotFound, message: "unknown".to_owned() }
                }
            };
            let frame = CONTROL.encode(&reply).expect("a reply fits");
            send_packet(connection.as_fd(), &frame, &[], Blocking::Wait).expect("the client waits");
        }
    }

    /// A client of such a daemon; what was asked; the daemon's thread.
    fn connected() -> (Arc<Inner>, Arc<Mutex<u32>>, std::thread::JoinHandle<()>) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("s");
        let flags = SockFlag::SOCK_CLOEXEC;
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).expect("one");
        let address = UnixAddr::new(&path).expect("a short path");
        bind(listener.as_raw_fd(), &address).expect("the folder is ours");
        listen(&listener, Backlog::new(1).expect("small")).expect("it is bound");
        let asked = Arc::new(Mutex::new(0));
        let count = Arc::clone(&asked);
        let daemon = std::thread::spawn(move || serve(&listener, &count));
        let client = Inner::connect(path).expect("the daemon answers");
        (client, asked, daemon)
    }

    #[test]
    fn what_the_thread_has_in_hand_is_rung_before_the_last_handle_goes() {
        let (client, asked, daemon) = connected();
        // As by the thread that is held up right after it took its work.
        client.background.lock().running = true;
        assert!(client.doorbell(1, 7, 0).is_none());
        assert!(client.background.lock().next().is_some());
        client.background.flush(&client, 2);
        assert_eq!(*asked.lock().expect("nobody panics"), 0);
        client.background.flush(&client, 1);
        assert_eq!(*asked.lock().expect("nobody panics"), 1);
        drop(client);
        daemon.join().expect("the daemon ends well");
    }

    #[test]
    fn numbers_that_a_peer_makes_up_do_not_keep_the_daemon_busy() {
        let (client, asked, daemon) = connected();
        let started = Instant::now();
        for doorbell in 1..=4000 {
            assert!(client.doorbell(1, doorbell, doorbell).is_none());
            if doorbell % 40 == 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        client.background.flush(&client, 1);
        let allowed = started.elapsed().as_millis() / MISS_EVERY.as_millis() + 1;
        let allowed = MISSES_AT_ONCE + u32::try_from(allowed).expect("a short test");
        let asked = *asked.lock().expect("nobody panics");
        assert!((1..=allowed).contains(&asked), "asked {asked} times, {allowed} at most");
        // Another queue is not held up by that.
        assert!(client.background.lock().may_miss(2));
        drop(client);
        daemon.join().expect("the daemon ends well");
    }
}
