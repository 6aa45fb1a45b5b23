//! A shard for producers: takes, numbers, completes, releases, sleeps. No journal.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ringmain_client::raw::ring::{Kernel, Taken, TryReceiveError};
use ringmain_client::raw::sys::kernel::HostKernel;
use ringmain_client::raw::wire::{Down, Outcome};

use crate::ends::{Doorway, End, wake_mode};

/// How the shard works.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    /// Most messages of one completion.
    pub(crate) run: usize,
    /// How long "writing" takes.
    pub(crate) writing: Duration,
    /// Whether it sleeps as soon as nothing is ready.
    pub(crate) sleeps: bool,
}

impl Default for Manner {
    fn default() -> Self {
        Self { run: usize::MAX, writing: Duration::ZERO, sleeps: true }
    }
}

struct Lane {
    end: End,
    taken: VecDeque<Taken>,
    /// Completions that found no room: first and last position, first sequence, messages.
    waiting: VecDeque<(u64, u64, u64, u32)>,
    announced: bool,
}

/// Serves producers in a thread until it is stopped.
pub(crate) struct Shard {
    stop: Arc<AtomicBool>,
    bell: Doorway,
    thread: std::thread::JoinHandle<(Vec<End>, u64)>,
}

impl Shard {
    /// Takes these ends over; numbers go on behind `last_sequence`.
    pub(crate) fn start(
        ends: Vec<End>,
        doorway: Doorway,
        bell: Doorway,
        manner: Manner,
        last_sequence: u64,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let lanes = ends.into_iter().map(Lane::new).collect();
            let kernel = HostKernel::new(wake_mode());
            let mut worker = Worker { lanes, manner, sequence: last_sequence, kernel };
            worker.run(&doorway, &stopped);
            (worker.lanes.into_iter().map(|lane| lane.end).collect(), worker.sequence)
        });
        Self { stop, bell, thread }
    }

    /// Stops between two turns; the ends, and the last sequence.
    pub(crate) fn stop(self) -> (Vec<End>, u64) {
        self.stop.store(true, Ordering::SeqCst);
        self.bell.ring();
        self.thread.join().expect("the shard ends well")
    }
}

struct Worker {
    lanes: Vec<Lane>,
    manner: Manner,
    sequence: u64,
    kernel: HostKernel,
}

impl Worker {
    fn run(&mut self, doorway: &Doorway, stop: &AtomicBool) {
        while !stop.load(Ordering::SeqCst) {
            if self.turn(doorway, false) {
                continue;
            }
            if self.manner.sleeps {
                doorway.sleep(stop, || self.turn(doorway, true));
            } else {
                std::hint::spin_loop();
            }
        }
    }

    /// Looks at all that is ready; whether there was anything.
    fn turn(&mut self, doorway: &Doorway, barrier_passed: bool) -> bool {
        let mut busy = false;
        for lane in &mut self.lanes {
            let ready = doorway.link.take_ready(lane.end.ready_index);
            let room = lane.announced && (ready || barrier_passed);
            if ready || room {
                busy |= lane.turn(self.manner, &mut self.sequence, &self.kernel);
            }
        }
        busy
    }
}

impl Lane {
    fn new(end: End) -> Self {
        Self { end, taken: VecDeque::new(), waiting: VecDeque::new(), announced: false }
    }

    fn turn(&mut self, manner: Manner, sequence: &mut u64, kernel: &HostKernel) -> bool {
        let mut busy = self.complete(kernel);
        while self.waiting.is_empty() {
            let mut positions = Vec::new();
            while positions.len() < manner.run {
                match self.end.up.try_take() {
                    Ok(taken) => {
                        positions.push(taken.sequence());
                        self.taken.push_back(taken);
                    }
                    Err(TryReceiveError::Empty) => break,
                    Err(error) => panic!("{error:?}"),
                }
            }
            let (Some(first), Some(last)) = (positions.first(), positions.last()) else { break };
            if !manner.writing.is_zero() {
                std::thread::sleep(manner.writing);
            }
            let count = u32::try_from(positions.len()).expect("few");
            self.waiting.push_back((*first, *last, *sequence + 1, count));
            *sequence += u64::from(count);
            busy = true;
            self.complete(kernel);
        }
        busy
    }

    /// Completions first, then the slots of their messages, then the wakes.
    fn complete(&mut self, kernel: &HostKernel) -> bool {
        let mut any = false;
        while let Some((first_position, last_position, first_sequence, count)) =
            self.waiting.front().copied()
        {
            let record = Down::Completed {
                first_position,
                last_position,
                first_sequence,
                count,
                outcome: Outcome::Done,
                detail: 0,
            };
            if !self.end.try_send(&[], record.encode().as_ref()) {
                if !self.announced {
                    self.announced = true;
                    self.end.down.own_park().announce(self.end.key.handle);
                    kernel.heavy_barrier();
                    continue;
                }
                break;
            }
            any = true;
            self.waiting.pop_front();
            for _ in 0..count {
                let taken = self.taken.pop_front().expect("one for each");
                self.end.up.release(taken);
            }
        }
        if self.announced && self.waiting.is_empty() {
            self.announced = false;
            self.end.down.own_park().retract(self.end.key.handle);
        }
        if any {
            self.end.wake();
        }
        any
    }
}
