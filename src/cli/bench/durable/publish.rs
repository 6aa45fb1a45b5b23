//! Producers on many queues in one thread: each keeps its window full, every confirmation is waited for.

use std::collections::VecDeque;
use std::time::Duration;

use ringmain_client::raw::sys::clock::monotonic_ns;
use ringmain_client::{
    BrokeredProducer, Client, ConfirmError, ProducerOptions, SendError, SettledRun,
};

use super::placement::Placement;
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::signals;
use crate::cli::statistics::Samples;

/// How long a wait goes on before signals are looked at.
const SLICE: Duration = Duration::from_millis(100);

/// Without a confirmation for this long something is wrong.
const LIMIT: Duration = Duration::from_secs(30);

/// What passed through all windows.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::cli::bench) struct Totals {
    pub(in crate::cli::bench) messages: u64,
    /// From the first send to the last confirmation of each window.
    pub(in crate::cli::bench) nanoseconds: u64,
    /// Times that this thread slept meanwhile.
    pub(in crate::cli::bench) sleeps: u64,
}

struct Lane {
    producer: BrokeredProducer,
    /// When each message was sent that is not settled.
    sent_ns: VecDeque<u64>,
    sent: u64,
    settled: u64,
}

/// All producers.
pub(in crate::cli::bench) struct Load {
    lanes: Vec<Lane>,
    /// Lane and number of each message on the way, in the order of sending.
    order: VecDeque<(usize, u64)>,
    payload: Vec<u8>,
    window: u32,
    totals: Totals,
}

impl Load {
    pub(in crate::cli::bench) fn attach(
        client: &Client,
        queues: &[String],
        size: u32,
        window: u32,
    ) -> Outcome<Self> {
        let options = ProducerOptions::default().window(window as usize);
        let lanes = queues.iter().map(|queue| {
            let producer = client.brokered_producer(queue, options);
            Ok(Lane {
                producer: producer.map_err(|error| Failure::queue(queue, error))?,
                sent_ns: VecDeque::with_capacity(window as usize),
                sent: 0,
                settled: 0,
            })
        });
        Ok(Self {
            lanes: lanes.collect::<Outcome<_>>()?,
            order: VecDeque::new(),
            payload: (0..size).map(|byte| byte.to_le_bytes()[0]).collect(),
            window,
            totals: Totals::default(),
        })
    }

    /// Publishes for this long and waits for the last confirmation; the median of this window, if it has one.
    pub(in crate::cli::bench) fn run(
        &mut self,
        duration: Duration,
        placement: &mut Placement,
        all: &mut Samples,
    ) -> Outcome<Option<u64>> {
        let mut samples = Samples::new();
        let sleeps = own_sleeps();
        let start_ns = monotonic_ns();
        let end_ns = start_ns + u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        for _ in 0..self.window {
            for lane in 0..self.lanes.len() {
                self.send(lane)?;
            }
        }
        let mut last_ns = start_ns;
        while let Some((lane, number)) = self.order.front().copied() {
            if self.lanes[lane].settled > number {
                self.order.pop_front();
                if last_ns < end_ns {
                    self.send(lane)?;
                }
                continue;
            }
            let run = self.settle(lane)?;
            last_ns = monotonic_ns();
            let lane = &mut self.lanes[lane];
            lane.settled += run.count;
            for _ in 0..run.count {
                let sent_ns = lane.sent_ns.pop_front().unwrap_or(last_ns);
                samples.record(last_ns - sent_ns);
            }
            placement.look(last_ns);
        }
        self.totals.messages += samples.count();
        self.totals.nanoseconds += last_ns - start_ns;
        self.totals.sleeps += own_sleeps() - sleeps;
        all.add(&samples);
        Ok((samples.count() > 0).then(|| samples.at(0.5)))
    }

    #[inline]
    fn send(&mut self, index: usize) -> Outcome {
        let lane = &mut self.lanes[index];
        let sent_ns = monotonic_ns();
        if let Some(time) = self.payload.first_chunk_mut() {
            *time = sent_ns.to_le_bytes();
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
        self.order.push_back((index, lane.sent));
        lane.sent += 1;
        Ok(())
    }

    fn settle(&mut self, lane: usize) -> Outcome<SettledRun> {
        let producer = &mut self.lanes[lane].producer;
        let mut waited = Duration::ZERO;
        loop {
            let run = match producer.next_settled(SLICE) {
                Ok(Some(run)) => run,
                Ok(None) => return Err(Failure::internal("a message was settled without a word")),
                Err(ConfirmError::Timeout) if waited < LIMIT => {
                    waited += SLICE;
                    signals::check()?;
                    continue;
                }
                Err(error) => return Err(unconfirmed(producer.queue_name(), error)),
            };
            return match run.result {
                Ok(_) => Ok(run),
                Err(error) => Err(unconfirmed(producer.queue_name(), error)),
            };
        }
    }

    pub(in crate::cli::bench) fn reset_totals(&mut self) {
        self.totals = Totals::default();
    }

    pub(in crate::cli::bench) fn totals(&self) -> Totals {
        self.totals
    }
}

fn unconfirmed(queue: &str, error: ConfirmError) -> Failure {
    Failure::new(Exit::Io, format_args!("queue {queue}: {error}"))
}

/// How often this thread gave up its processor to wait.
fn own_sleeps() -> u64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_THREAD);
    usage.map_or(0, |usage| u64::try_from(usage.voluntary_context_switches()).unwrap_or(0))
}
