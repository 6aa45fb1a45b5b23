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
use crate::protocol::{HandleKey, Reply, Request};

/// Shortest pause after a failed attempt; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(10);

/// Longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Doorbells that are remembered or waited for at the same time.
const DOORBELLS_MAX: usize = 1024;

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
    reports: Vec<Report>,
    known: HashMap<u32, Known>,
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
        let fetch = Fetch { queue, doorbell, bit };
        if !work.fetches.contains(&fetch) && work.fetches.len() < DOORBELLS_MAX {
            work.fetches.push(fetch);
        }
        work.start(inner);
        None
    }

    /// Rings what is still to be rung for this queue, before its last handle goes. One attempt each.
    pub(super) fn flush(&self, inner: &Inner, queue: u64) {
        let fetches = {
            let mut work = self.lock();
            if work.fetches.is_empty() {
                return;
            }
            let (now, later): (Vec<_>, Vec<_>) =
                work.fetches.drain(..).partition(|fetch| fetch.queue == queue);
            work.fetches = later;
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
        if work.known.len() >= DOORBELLS_MAX {
            work.known.clear();
        }
        work.known.insert(doorbell, known);
    }

    /// One round; whether everything was done.
    fn work(&self, inner: &Inner, todo: Todo) -> bool {
        let mut done = true;
        for Report { handle, what } in todo.reports {
            let request = Request::ReportFault { handle, what: what.clone() };
            if let Err(ClientError::Unavailable { .. }) = inner.request(&request) {
                self.lock().reports.push(Report { handle, what });
                done = false;
            }
        }
        if todo.reconnect && inner.ensure_connected().is_err() {
            self.lock().reconnect = true;
            done = false;
        }
        let mut reachable = true;
        for fetch in todo.fetches {
            let mut work = self.lock();
            let known = match work.known.get(&fetch.doorbell) {
                Some(Known::Here(here)) => Some(Arc::clone(here)),
                // It may be bound by now, but whoever writes numbers at random must not keep the daemon busy.
                Some(Known::Missing(since)) if since.elapsed() < MISSING => {
                    work.fetches.push(fetch);
                    done = false;
                    continue;
                }
                _ => None,
            };
            if known.is_none() && !reachable {
                // One time-out is enough: a handle that is dropped may wait for this.
                work.fetches.push(fetch);
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
                    self.lock().fetches.push(fetch);
                    done = false;
                    reachable = false;
                }
                Err(_) => self.remember(fetch.doorbell, Known::Missing(Instant::now())),
            }
        }
        done
    }
}

/// What one round has to do.
#[derive(Debug, Default)]
struct Todo {
    reconnect: bool,
    fetches: Vec<Fetch>,
    reports: Vec<Report>,
}

impl Work {
    /// Work for one round; `None` ends the thread.
    fn next(&mut self) -> Option<Todo> {
        let todo = Todo {
            reconnect: std::mem::take(&mut self.reconnect),
            fetches: std::mem::take(&mut self.fetches),
            reports: std::mem::take(&mut self.reports),
        };
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
        let done = inner.background.work(&inner, todo);
        drop(inner);
        if done {
            pause = PAUSE_MIN;
        } else {
            std::thread::sleep(pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

fn fetch_doorbell(inner: &Inner, fetch: Fetch) -> Result<Arc<PeerDoorbell>, ClientError> {
    let request = Request::FetchDoorbell { queue: fetch.queue, doorbell: fetch.doorbell };
    let answer = inner.request(&request)?;
    match (&answer.reply, <[_; 2]>::try_from(answer.descriptors)) {
        (Reply::Doorbell { doorbell }, Ok([memory, eventfd])) if *doorbell == fetch.doorbell => {
            let opened = PeerDoorbell::open(fetch.doorbell, memory, eventfd, inner.mark())?;
            Ok(Arc::new(opened))
        }
        (reply, _) => Err(unexpected(reply)),
    }
}
