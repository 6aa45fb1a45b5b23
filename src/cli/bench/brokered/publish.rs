//! Producers on many queues in one thread: each keeps its window full, every confirmation is waited for.

use std::collections::VecDeque;
use std::time::Duration;

use ringmain_client::raw::sys::clock::monotonic_ns;
use ringmain_client::{
    BrokeredProducer, Client, ConfirmError, ProducerOptions, SendError, SettledRun,
};
use serde::{Deserialize, Serialize};

use super::super::load;
use super::{LIMIT, SLICE};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::signals;
use crate::cli::statistics::Samples;

/// Messages between two looks at signals while a backlog is made.
const FILL_STEP: u64 = 65_536;

/// What the messages of a measurement are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::cli::bench) enum Content {
    /// The time of sending in front; nobody verifies them.
    Timed,
    /// Every word depends on the number of the message in its queue, from 0: whoever receives it knows what must be in it.
    Numbered,
}

/// What passed through a window, or several: a confirmation each.
#[derive(Debug, Clone)]
pub(in crate::cli::bench) struct Flow {
    /// From just before a send to the moment at which its confirmation was seen, in nanoseconds.
    pub(in crate::cli::bench) samples: Samples,
    /// From the first send to the last confirmation of each window.
    pub(in crate::cli::bench) nanoseconds: u64,
    /// Times that the publishing thread slept meanwhile.
    pub(in crate::cli::bench) sleeps: u64,
}

impl Flow {
    pub(in crate::cli::bench) fn new() -> Self {
        Self { samples: Samples::new(), nanoseconds: 0, sleeps: 0 }
    }

    pub(in crate::cli::bench) fn add(&mut self, other: &Self) {
        self.samples.add(&other.samples);
        self.nanoseconds += other.nanoseconds;
        self.sleeps += other.sleeps;
    }

    pub(in crate::cli::bench) fn messages(&self) -> u64 {
        self.samples.count()
    }

    /// Messages per second.
    #[allow(clippy::cast_precision_loss)] // a rate
    pub(in crate::cli::bench) fn rate(&self) -> f64 {
        self.messages() as f64 / (self.nanoseconds.max(1) as f64 / 1e9)
    }

    /// In nanoseconds; `None` of nothing.
    pub(in crate::cli::bench) fn median(&self) -> Option<u64> {
        (self.messages() > 0).then(|| self.samples.at(0.5))
    }
}

struct Lane {
    producer: BrokeredProducer,
    /// When each message was sent that is not settled.
    sent_ns: VecDeque<u64>,
    sent: u64,
    settled: u64,
    /// Sequence of the first message that was confirmed; the others follow it.
    first_sequence: Option<u64>,
}

impl Lane {
    fn attach(client: &Client, queue: &str, name: Option<&str>, window: u32) -> Outcome<Self> {
        let options = ProducerOptions::default().window(window as usize);
        let producer = match name {
            Some(name) => client.named_producer(queue, name, options),
            None => client.brokered_producer(queue, options),
        };
        Ok(Self {
            producer: producer.map_err(|error| Failure::queue(queue, error))?,
            sent_ns: VecDeque::with_capacity(window as usize),
            sent: 0,
            settled: 0,
            first_sequence: None,
        })
    }
}

/// All producers.
pub(in crate::cli::bench) struct Load {
    lanes: Vec<Lane>,
    /// Lane and number of each message on the way, in the order of sending.
    order: VecDeque<(usize, u64)>,
    content: Content,
    payload: Vec<u8>,
    window: u32,
}

impl Load {
    /// One producer for each of these queues. With a name all of them have it.
    pub(in crate::cli::bench) fn attach(
        client: &Client,
        queues: &[String],
        name: Option<&str>,
        content: Content,
        size: u32,
        window: u32,
    ) -> Outcome<Self> {
        let lanes = queues.iter().map(|queue| Lane::attach(client, queue, name, window));
        Ok(Self {
            lanes: lanes.collect::<Outcome<_>>()?,
            order: VecDeque::new(),
            content,
            payload: (0..size).map(|byte| byte.to_le_bytes()[0]).collect(),
            window,
        })
    }

    /// One more.
    pub(in crate::cli::bench) fn add_queue(&mut self, client: &Client, queue: &str) -> Outcome {
        self.lanes.push(Lane::attach(client, queue, None, self.window)?);
        Ok(())
    }

    /// Messages that were sent to the queue of this number.
    pub(in crate::cli::bench) fn sent(&self, lane: usize) -> u64 {
        self.lanes[lane].sent
    }

    /// Publishes for this long and waits for the last confirmation.
    pub(in crate::cli::bench) fn run(&mut self, duration: Duration) -> Outcome<Flow> {
        self.run_watched(duration, |_| {})
    }

    /// The same; `watch` is called between messages, with the time.
    pub(in crate::cli::bench) fn run_watched(
        &mut self,
        duration: Duration,
        mut watch: impl FnMut(u64),
    ) -> Outcome<Flow> {
        let mut flow = Flow::new();
        let sleeps = own_sleeps();
        let start_ns = monotonic_ns();
        let end_ns = start_ns + nanoseconds(duration);
        for _ in 0..self.window {
            for lane in 0..self.lanes.len() {
                self.send_in_turn(lane)?;
            }
        }
        let mut last_ns = start_ns;
        while let Some((lane, number)) = self.order.front().copied() {
            if self.lanes[lane].settled > number {
                self.order.pop_front();
                if last_ns < end_ns {
                    self.send_in_turn(lane)?;
                }
                continue;
            }
            last_ns = self.settle(lane, &mut flow.samples)?;
            watch(last_ns);
        }
        flow.nanoseconds = last_ns - start_ns;
        flow.sleeps = own_sleeps() - sleeps;
        Ok(flow)
    }

    /// Publishes so many messages to the first queue and waits for the last confirmation.
    pub(in crate::cli::bench) fn fill(
        &mut self,
        messages: u64,
        mut progress: impl FnMut(u64),
    ) -> Outcome {
        let mut unused = Samples::new();
        for number in 0..messages {
            if number % FILL_STEP == 0 {
                signals::check()?;
                progress(number);
            }
            while self.on_the_way(0) >= u64::from(self.window) {
                self.settle(0, &mut unused)?;
            }
            self.send(0)?;
        }
        while self.on_the_way(0) > 0 {
            self.settle(0, &mut unused)?;
        }
        Ok(())
    }

    /// Publishes to the first queue at this rate, as far as the window allows, and waits for the last confirmation. With every
    /// `each`-th message one goes to the second queue; of those nothing is recorded. `scheduled` gets the times from the moment
    /// at which a message was due.
    pub(in crate::cli::bench) fn run_paced(
        &mut self,
        duration: Duration,
        per_second: f64,
        each: u64,
        scheduled: &mut Samples,
    ) -> Outcome<Flow> {
        let (mut flow, mut unused) = (Flow::new(), Samples::new());
        let sleeps = own_sleeps();
        let start_ns = monotonic_ns();
        let end_ns = start_ns + nanoseconds(duration);
        let mut pace = Pace::new(start_ns, per_second);
        let mut due_of_sent = VecDeque::new();
        let mut last_ns = start_ns;
        loop {
            let now_ns = monotonic_ns();
            while pace.due_ns() <= now_ns.min(end_ns) && self.on_the_way(0) < u64::from(self.window)
            {
                due_of_sent.push_back(pace.due_ns());
                pace.sent += 1;
                self.send(0)?;
                if self.sent(0).is_multiple_of(each) {
                    self.send(1)?;
                }
            }
            let left_ns = pace.due_ns().saturating_sub(now_ns);
            if self.on_the_way(0) == 0 {
                if pace.due_ns() > end_ns {
                    break;
                }
                signals::check()?;
                std::thread::sleep(Duration::from_nanos(left_ns).min(SLICE));
                continue;
            }
            // What is confirmed meanwhile wakes this thread, and is what the next messages are sent with.
            let has_room = pace.due_ns() <= end_ns && self.on_the_way(0) < u64::from(self.window);
            let patience =
                if has_room { Duration::from_nanos(left_ns).max(PACE_STEP) } else { SLICE };
            if let Some(run) = self.next(0, patience)? {
                last_ns = monotonic_ns();
                self.note(0, &run, last_ns, &mut flow.samples)?;
                for due_ns in due_of_sent.drain(..usize::try_from(run.count).unwrap_or(0)) {
                    scheduled.record(last_ns.saturating_sub(due_ns));
                }
            }
            while self.on_the_way(1) > 0
                && let Some(run) = self.next(1, Duration::ZERO)?
            {
                self.note(1, &run, monotonic_ns(), &mut unused)?;
            }
        }
        while self.on_the_way(1) > 0 {
            self.settle(1, &mut unused)?;
        }
        flow.nanoseconds = last_ns - start_ns;
        flow.sleeps = own_sleeps() - sleeps;
        Ok(flow)
    }

    fn on_the_way(&self, lane: usize) -> u64 {
        self.lanes[lane].sent - self.lanes[lane].settled
    }

    #[inline]
    fn send(&mut self, index: usize) -> Outcome {
        let lane = &mut self.lanes[index];
        let sent_ns = monotonic_ns();
        match self.content {
            Content::Numbered => load::fill(&mut self.payload, lane.sent),
            Content::Timed => {
                if let Some(time) = self.payload.first_chunk_mut() {
                    *time = sent_ns.to_le_bytes();
                }
            }
        }
        match lane.producer.try_send(&self.payload) {
            Ok(_) => {}
            // The lane gives its slots back a moment after the confirmation.
            Err(SendError::Full) => {
                let sent = lane.producer.send_timeout(&self.payload, LIMIT);
                sent.map_err(|error| Failure::send(lane.producer.queue_name(), &error))?;
            }
            Err(error) => return Err(Failure::send(lane.producer.queue_name(), &error)),
        }
        lane.sent_ns.push_back(sent_ns);
        lane.sent += 1;
        Ok(())
    }

    /// To be waited for after those of other lanes that were sent before.
    #[inline]
    fn send_in_turn(&mut self, lane: usize) -> Outcome {
        self.order.push_back((lane, self.sent(lane)));
        self.send(lane)
    }

    /// Waits for the next confirmations of this queue; returns when they were seen.
    fn settle(&mut self, lane: usize, samples: &mut Samples) -> Outcome<u64> {
        let run = self.next(lane, LIMIT)?;
        let now_ns = monotonic_ns();
        let run = run.ok_or_else(|| {
            Failure::new(
                Exit::Temporary,
                format_args!(
                    "queue {}: no confirmation for {} s",
                    self.lanes[lane].producer.queue_name(),
                    LIMIT.as_secs()
                ),
            )
        })?;
        self.note(lane, &run, now_ns, samples)?;
        Ok(now_ns)
    }

    /// The next confirmations of this queue, if there are any within this time.
    fn next(&mut self, lane: usize, patience: Duration) -> Outcome<Option<SettledRun>> {
        let producer = &mut self.lanes[lane].producer;
        let mut left = patience;
        loop {
            let slice = left.min(SLICE);
            match producer.next_settled(slice) {
                Ok(Some(run)) => return Ok(Some(run)),
                Ok(None) => return Err(Failure::internal("a message was settled without a word")),
                Err(ConfirmError::Timeout) => left -= slice,
                Err(error) => return Err(unconfirmed(producer.queue_name(), error)),
            }
            if left.is_zero() {
                return Ok(None);
            }
            signals::check()?;
        }
    }

    /// Each message was stored once, in its place.
    fn note(
        &mut self,
        lane: usize,
        run: &SettledRun,
        now_ns: u64,
        samples: &mut Samples,
    ) -> Outcome {
        let lane = &mut self.lanes[lane];
        let name = lane.producer.queue_name();
        let confirmed = run.result.map_err(|error| unconfirmed(name, error))?;
        let first = *lane.first_sequence.get_or_insert(confirmed.sequence);
        if confirmed.duplicate || confirmed.sequence != first + lane.settled {
            return Err(Failure::new(
                Exit::Data,
                format_args!("queue {name}: message {} is not in its place", lane.settled),
            ));
        }
        lane.settled += run.count;
        for _ in 0..run.count {
            let sent_ns = lane.sent_ns.pop_front().unwrap_or(now_ns);
            samples.record(now_ns - sent_ns);
        }
        Ok(())
    }
}

/// How long a paced producer waits at least before it looks what is due: less than a durable write takes.
const PACE_STEP: Duration = Duration::from_micros(50);

/// When the next message is due.
#[derive(Debug)]
struct Pace {
    start_ns: u64,
    interval_ns: f64,
    sent: u64,
}

impl Pace {
    fn new(start_ns: u64, per_second: f64) -> Self {
        Self { start_ns, interval_ns: 1e9 / per_second.max(1e-3), sent: 0 }
    }

    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)] // times
    fn due_ns(&self) -> u64 {
        self.start_ns + (self.sent as f64 * self.interval_ns) as u64
    }
}

pub(in crate::cli::bench) fn unconfirmed(queue: &str, error: ConfirmError) -> Failure {
    Failure::new(Exit::Io, format_args!("queue {queue}: {error}"))
}

pub(in crate::cli::bench) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// How often this thread gave up its processor to wait.
pub(in crate::cli::bench) fn own_sleeps() -> u64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_THREAD);
    usage.map_or(0, |usage| u64::try_from(usage.voluntary_context_switches()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_does_not_drift() {
        let mut pace = Pace::new(1000, 3.0);
        assert_eq!(pace.due_ns(), 1000);
        pace.sent = 3_000_000;
        assert!(pace.due_ns().abs_diff(1000 + 1_000_000_000_000_000) < 1000);
    }
}
