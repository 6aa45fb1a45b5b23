//! Two processes that exchange messages in turn, in windows: over bare cache lines, over a futex, over rings.
//!
//! The same two processes run all windows, so that floor and ring are measured on the same two cores within
//! milliseconds. Both follow the same list; the one that measures ends each window with a last word.

use std::path::PathBuf;
use std::time::Duration;

use ringmain_client::raw::sys::clock::monotonic_ns;
use ringmain_client::raw::sys::{futex, membarrier};
use ringmain_client::{
    Client, Consumer, HandleOptions, Producer, ReceiveError, SendError, WaitPolicy, affinity,
};
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering;

use super::lines::{Direction, SharedLines};
use crate::cli::exit::{Failure, Outcome};
use crate::cli::helper::Parent;
use crate::cli::statistics::{Packed, Samples};

/// Round trips at the start of a window that are not recorded: the peer may still be in the window before. One of a
/// long message takes as long as many of a short one, and leaves as much time to the peer.
const fn warm_up(lines: usize) -> u64 {
    share(lines, 16, 1)
}

/// A window with fewer samples has no median: the processes hardly ran.
const fn window_samples_min(lines: usize) -> u64 {
    share(lines, 32, 4)
}

/// `most` up to 64 lines, then inversely proportional, never below `least`.
const fn share(lines: usize, most: u64, least: u64) -> u64 {
    let lines = if lines > 64 { lines as u64 } else { 64 };
    let count = most * 64 / lines;
    if count > least { count } else { least }
}

/// What is exchanged in a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Medium {
    /// Cache lines, watched by spinning.
    Floor,
    /// A word, slept on.
    Futex,
    /// The same with a membarrier in front of each sleep; the membarrier is what is recorded.
    Membarrier,
    /// The round trips of those windows. No window of its own.
    FutexAndMembarrier,
    /// Messages in two rings.
    Ring,
}

impl Medium {
    pub(crate) const ALL: [Medium; 5] = [
        Medium::Floor,
        Medium::Futex,
        Medium::Membarrier,
        Medium::FutexAndMembarrier,
        Medium::Ring,
    ];
}

/// What a medium is used for, and for how long.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Window {
    pub(crate) medium: Medium,
    pub(crate) duration_ns: u64,
}

/// The rings to use, if any window asks for them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Rings {
    pub(crate) socket: PathBuf,
    /// Queue from the one who measures.
    pub(crate) out: String,
    /// Queue to the one who measures.
    pub(crate) back: String,
    /// Bytes per message.
    pub(crate) size: usize,
    pub(crate) wait: String,
}

/// For one of the two processes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) windows: Vec<Window>,
    /// Descriptor of the [`SharedLines`].
    pub(crate) memory: i32,
    /// Lines per direction.
    pub(crate) lines: usize,
    pub(crate) rings: Option<Rings>,
    /// Processor to run on.
    pub(crate) cpu: Option<usize>,
    /// Monotonic time after which windows are cut short.
    pub(crate) until_ns: u64,
}

/// What was measured.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Median of each window, in the order of the windows; zero if too little was recorded.
    pub(crate) medians_ns: Vec<f64>,
    /// All samples of each medium that was used.
    pub(crate) samples: Vec<(Medium, Packed)>,
    /// Processor that the process was pinned to, read back.
    pub(crate) cpu: Option<usize>,
}

/// What both processes have.
struct Side {
    lines: SharedLines,
    rings: Option<(Producer, Consumer, usize)>,
    cpu: Option<usize>,
    /// Round trips that are not recorded.
    warm_up: u64,
    /// Last number sent; goes on over windows.
    number: u32,
    /// Last value that came over the lines.
    seen_line: u64,
    /// Last value that came over the futex word.
    seen_word: u32,
}

impl Side {
    fn new(task: &Task, measures: bool) -> Outcome<Self> {
        let lines = SharedLines::inherit(task.memory, task.lines)?;
        let rings = task.rings.as_ref().map(|rings| attach(rings, measures)).transpose()?;
        let cpu = task.cpu.map(affinity::pin_current_thread).transpose();
        let cpu = cpu.map_err(|error| Failure::system("pin the process", error))?;
        if task.windows.iter().any(|window| window.medium == Medium::Membarrier) {
            membarrier::register();
        }
        Ok(Self {
            lines,
            rings,
            cpu,
            warm_up: warm_up(task.lines),
            number: 0,
            seen_line: 0,
            seen_word: 0,
        })
    }
}

fn attach(rings: &Rings, measures: bool) -> Outcome<(Producer, Consumer, usize)> {
    let (to, from) = if measures { (&rings.out, &rings.back) } else { (&rings.back, &rings.out) };
    let client = Client::connect(&rings.socket)?;
    let wait: WaitPolicy = rings.wait.parse().map_err(|_| Failure::internal("wait policy"))?;
    let producer = client.producer_with(to, HandleOptions::with_wait(wait));
    let consumer = client.consumer_with(from, HandleOptions::with_wait(wait));
    Ok((
        producer.map_err(|error| Failure::queue(to, error))?,
        consumer.map_err(|error| Failure::queue(from, error))?,
        rings.size,
    ))
}

/// Measures.
pub(crate) fn ping(task: &Task, parent: &Parent) -> Outcome<Report> {
    let mut side = Side::new(task, true)?;
    let mut samples = Medium::ALL.map(|medium| (medium, Samples::new()));
    let mut window_samples = Samples::new();
    let mut medians_ns = Vec::with_capacity(task.windows.len());
    parent.wait_for_go()?;
    for window in &task.windows {
        window_samples.clear();
        let left_ns = task.until_ns.saturating_sub(monotonic_ns());
        let duration = Duration::from_nanos(window.duration_ns.min(left_ns));
        match window.medium {
            Medium::Floor => side.ping_floor(duration, &mut window_samples),
            Medium::Futex => side.ping_futex(duration, &mut window_samples, None),
            Medium::Membarrier => {
                let trips = &mut samples[Medium::FutexAndMembarrier as usize].1;
                side.ping_futex(duration, trips, Some(&mut window_samples));
            }
            Medium::FutexAndMembarrier => return Err(Failure::internal("no window")),
            Medium::Ring => side.ping_ring(duration, &mut window_samples)?,
        }
        let enough = window_samples.count() >= window_samples_min(task.lines);
        medians_ns.push(if enough { window_samples.grouped_median() } else { 0.0 });
        for (medium, all) in &mut samples {
            if *medium == window.medium {
                all.add(&window_samples);
            }
        }
        parent.progress(medians_ns.len() as u64);
    }
    let used = samples.iter().filter(|(_, samples)| samples.count() > 0);
    let samples = used.map(|(medium, samples)| (*medium, samples.pack())).collect();
    Ok(Report { medians_ns, samples, cpu: side.cpu })
}

/// Answers; returns the processor that it was pinned to.
pub(crate) fn pong(task: &Task, parent: &Parent) -> Outcome<Option<usize>> {
    let mut side = Side::new(task, false)?;
    parent.wait_for_go()?;
    for window in &task.windows {
        match window.medium {
            Medium::Floor => side.pong_floor(),
            Medium::Futex => side.pong_futex(false),
            Medium::Membarrier | Medium::FutexAndMembarrier => side.pong_futex(true),
            Medium::Ring => side.pong_ring()?,
        }
    }
    Ok(side.cpu)
}

/// Turns send times into round trips and says when the window is over. The clock is read right after each send, while
/// the message is under way, so that the reading costs the round trip nothing as long as it is shorter than the way.
struct Pace<'a> {
    end_ns: u64,
    last_ns: u64,
    warm_up: u64,
    count: u64,
    samples: &'a mut Samples,
}

impl<'a> Pace<'a> {
    fn new(duration: Duration, warm_up: u64, samples: &'a mut Samples) -> Self {
        let now_ns = monotonic_ns();
        let length = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self { end_ns: now_ns.saturating_add(length), last_ns: now_ns, warm_up, count: 0, samples }
    }

    /// After each send; `false` when this was the last one of the window.
    #[inline]
    fn sent(&mut self) -> bool {
        let now_ns = monotonic_ns();
        if self.count > self.warm_up {
            self.samples.record(now_ns.saturating_sub(self.last_ns));
        }
        self.count += 1;
        self.last_ns = now_ns;
        now_ns < self.end_ns
    }
}

/// Lowest bit of a value on the lines or in a futex word: this window is over. The number stands above it.
const OVER: u32 = 1;

impl Side {
    fn ping_floor(&mut self, duration: Duration, samples: &mut Samples) {
        let mut pace = Pace::new(duration, self.warm_up, samples);
        let mut go_on = true;
        loop {
            self.number = self.number.wrapping_add(2);
            let last_word = if go_on { 0 } else { OVER };
            self.lines.write(Direction::Out, u64::from(self.number | last_word));
            let in_time = pace.sent();
            self.seen_line = self.lines.wait(Direction::Back, self.seen_line);
            if !go_on {
                return;
            }
            go_on = in_time;
        }
    }

    fn pong_floor(&mut self) {
        loop {
            self.seen_line = self.lines.wait(Direction::Out, self.seen_line);
            self.lines.write(Direction::Back, self.seen_line);
            if self.seen_line & u64::from(OVER) != 0 {
                return;
            }
        }
    }

    /// With a place for them, a membarrier is issued and timed in front of each sleep.
    fn ping_futex(
        &mut self,
        duration: Duration,
        trips: &mut Samples,
        mut barriers: Option<&mut Samples>,
    ) {
        let mut pace = Pace::new(duration, self.warm_up, trips);
        let mut go_on = true;
        loop {
            self.number = self.number.wrapping_add(2);
            self.wake(Direction::Out, self.number | if go_on { 0 } else { OVER });
            let in_time = pace.sent();
            self.seen_word = self.sleep(Direction::Back, self.seen_word, barriers.as_deref_mut());
            if !go_on {
                return;
            }
            go_on = in_time;
        }
    }

    fn pong_futex(&mut self, barrier: bool) {
        let mut unused = Samples::new();
        loop {
            let barriers = barrier.then_some(&mut unused);
            self.seen_word = self.sleep(Direction::Out, self.seen_word, barriers);
            self.wake(Direction::Back, self.seen_word);
            if self.seen_word & OVER != 0 {
                return;
            }
        }
    }

    fn wake(&self, direction: Direction, value: u32) {
        let word = self.lines.futex(direction);
        // Release: partner of the Acquire in `sleep`.
        word.store(value, Ordering::Release);
        futex::wake(word, 1);
    }

    /// Sleeps until the word is not `old`; with a place for samples it issues a membarrier before each sleep.
    fn sleep(&self, direction: Direction, old: u32, mut barriers: Option<&mut Samples>) -> u32 {
        let word = self.lines.futex(direction);
        loop {
            // Acquire: partner of the Release in `wake`.
            let value = word.load(Ordering::Acquire);
            if value != old {
                return value;
            }
            if let Some(samples) = barriers.as_mut() {
                let start_ns = monotonic_ns();
                membarrier::issue();
                samples.record(monotonic_ns().saturating_sub(start_ns));
            }
            futex::wait(word, old, None);
        }
    }

    fn ping_ring(&mut self, duration: Duration, samples: &mut Samples) -> Outcome {
        let Some((producer, consumer, size)) = &mut self.rings else {
            return Err(Failure::internal("a window without rings"));
        };
        let mut message = vec![0xa5; *size];
        let mut answer = Vec::with_capacity(*size);
        let mut pace = Pace::new(duration, self.warm_up, samples);
        let mut number: u64 = 0;
        loop {
            number += 1;
            let mark = number.to_le_bytes();
            let marked = mark.len().min(message.len());
            message[..marked].copy_from_slice(&mark[..marked]);
            producer.send(&message).map_err(|error| sending(&error))?;
            let go_on = pace.sent();
            consumer.receive(&mut answer).map_err(|error| receiving(&error))?;
            if answer.len() != message.len() || answer[..marked] != message[..marked] {
                return Err(Failure::new(
                    crate::cli::exit::Exit::Data,
                    format_args!("message {number} came back altered"),
                ));
            }
            if !go_on {
                break;
            }
        }
        // A message of another length is the last word.
        producer.send(last_word(*size)).map_err(|error| sending(&error))?;
        Ok(())
    }

    fn pong_ring(&mut self) -> Outcome {
        let Some((producer, consumer, size)) = &mut self.rings else {
            return Err(Failure::internal("a window without rings"));
        };
        let mut message = Vec::with_capacity(*size);
        loop {
            consumer.receive(&mut message).map_err(|error| receiving(&error))?;
            if message.len() == last_word(*size).len() {
                return Ok(());
            }
            producer.send(&message).map_err(|error| sending(&error))?;
        }
    }
}

fn last_word(size: usize) -> &'static [u8] {
    if size == 0 { b"." } else { b"" }
}

fn sending(error: &SendError) -> Failure {
    Failure::send("of the measurement", error)
}

fn receiving(error: &ReceiveError) -> Failure {
    Failure::receive("of the measurement", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_need_fewer_round_trips() {
        assert!([1, 2, 64].iter().all(|lines| warm_up(*lines) == 16));
        assert!([1, 2, 64].iter().all(|lines| window_samples_min(*lines) == 32));
        assert_eq!((warm_up(256), window_samples_min(256)), (4, 8));
        assert_eq!((warm_up(16_385), window_samples_min(16_385)), (1, 4));
    }
}
