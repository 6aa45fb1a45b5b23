//! The publishing process of the durable part: it notes which record got which sequence.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use ringmain_client::raw::sys::clock::monotonic_ns;
use ringmain_client::{
    BrokeredProducer, Client, ConfirmError, ProducerOptions, SendError, SettledRun,
};
use serde::{Deserialize, Serialize};

use crate::cli::bench::load::policy;
use crate::cli::demo::records::{Records, Source};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::helper::Parent;
use crate::cli::statistics::{Packed, Samples};

/// Records on the way without a confirmation.
pub(super) const WINDOW: usize = 256;

/// How long a wait goes on before it is asked whether there still is a daemon.
const SLICE: Duration = Duration::from_millis(200);

/// Progress is reported after so many confirmations.
const REPORT_EVERY: u64 = 512;

/// For a publishing process: every `of`-th record, beginning with its `skip`-th.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ProduceTask {
    pub(super) socket: PathBuf,
    pub(super) queue: String,
    pub(super) wait: String,
    pub(super) source: Source,
    /// Records of the source that are used.
    pub(super) records: u64,
    pub(super) index: u64,
    pub(super) of: u64,
    /// Of its records, so many are confirmed already.
    pub(super) skip: u64,
}

/// Records that were confirmed one behind the other, with sequences one behind the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Run {
    /// The first one's number among the records of its publisher.
    pub(super) first: u64,
    pub(super) sequence: u64,
    pub(super) count: u64,
}

/// What became of the records of one process.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Produced {
    pub(super) confirmed: Vec<Run>,
    /// Sent, whether confirmed or not.
    pub(super) sent: u64,
    pub(super) bytes: u64,
    /// The daemon went away before all was confirmed: why.
    pub(super) cut_short: Option<String>,
    pub(super) start_ns: u64,
    /// Time of the last confirmation.
    pub(super) end_ns: u64,
    /// From just before a send to its confirmation.
    pub(super) latency: Packed,
}

impl Produced {
    pub(super) fn confirmed_count(&self) -> u64 {
        self.confirmed.iter().map(|run| run.count).sum()
    }
}

/// What ends a process early: the daemon's death, which it reports, or a failure.
enum Problem {
    Gone(String),
    Failed(Failure),
}

/// Publishes.
pub(crate) fn produce(task: &ProduceTask, parent: &Parent) -> Outcome<impl Serialize + use<>> {
    let records = Records::load(&task.source)?;
    let client = Client::connect(&task.socket)?;
    let options = ProducerOptions::default().wait(policy(&task.wait)?).window(WINDOW);
    let producer = client
        .brokered_producer(&task.queue, options)
        .map_err(|error| Failure::queue(&task.queue, error))?;
    let mut publisher = Publisher {
        client,
        producer,
        task,
        parent,
        produced: Produced::default(),
        latency: Samples::new(),
        sent_ns: VecDeque::with_capacity(WINDOW),
        settled: 0,
        reported: 0,
    };
    parent.wait_for_go()?;
    publisher.produced.start_ns = monotonic_ns();
    let result = publisher.publish(&records);
    let Publisher { mut produced, latency, .. } = publisher;
    produced.end_ns = produced.end_ns.max(produced.start_ns);
    produced.latency = latency.pack();
    match result {
        Ok(()) => {}
        Err(Problem::Gone(why)) => produced.cut_short = Some(why),
        Err(Problem::Failed(failure)) => return Err(failure),
    }
    Ok(produced)
}

struct Publisher<'a> {
    client: Client,
    producer: BrokeredProducer,
    task: &'a ProduceTask,
    parent: &'a Parent,
    produced: Produced,
    latency: Samples,
    sent_ns: VecDeque<u64>,
    settled: u64,
    reported: u64,
}

impl Publisher<'_> {
    fn publish(&mut self, records: &Records) -> Result<(), Problem> {
        let mut number = self.task.index + self.task.skip * self.task.of;
        while number < self.task.records {
            let record = records.get(number);
            let sent_ns = monotonic_ns();
            match self.producer.try_send(record) {
                Ok(_) => {}
                Err(SendError::Full | SendError::Timeout) => {
                    self.settle(SLICE)?;
                    continue;
                }
                Err(error @ (SendError::Closed(_) | SendError::Lost)) => {
                    return Err(Problem::Gone(error.to_string()));
                }
                Err(error) => {
                    return Err(Problem::Failed(Failure::send(&self.task.queue, &error)));
                }
            }
            self.produced.sent += 1;
            self.produced.bytes += record.len() as u64;
            self.sent_ns.push_back(sent_ns);
            number += self.task.of;
        }
        while self.settled < self.produced.sent {
            self.settle(SLICE)?;
        }
        Ok(())
    }

    fn settle(&mut self, timeout: Duration) -> Result<(), Problem> {
        match self.producer.next_settled(timeout) {
            Ok(Some(run)) => self.settled(&run),
            // Nothing for so long: is there still somebody to wait for?
            Ok(None) | Err(ConfirmError::Timeout) => match self.client.queue_info(&self.task.queue)
            {
                Ok(_) => Ok(()),
                Err(error) => Err(Problem::Gone(error.to_string())),
            },
            Err(error) => Err(self.unconfirmed(error)),
        }
    }

    fn settled(&mut self, run: &SettledRun) -> Result<(), Problem> {
        let confirmation = run.result.map_err(|error| self.unconfirmed(error))?;
        let now_ns = monotonic_ns();
        self.produced.end_ns = now_ns;
        for _ in 0..run.count {
            let sent_ns = self.sent_ns.pop_front().unwrap_or(now_ns);
            self.latency.record(now_ns - sent_ns);
        }
        let (first, sequence) = (self.task.skip + self.settled, confirmation.sequence);
        self.settled += run.count;
        match self.produced.confirmed.last_mut() {
            Some(last) if last.sequence + last.count == sequence => last.count += run.count,
            _ => self.produced.confirmed.push(Run { first, sequence, count: run.count }),
        }
        if self.settled >= self.reported + REPORT_EVERY {
            self.reported = self.settled;
            self.parent.progress(self.settled);
        }
        Ok(())
    }

    fn unconfirmed(&self, error: ConfirmError) -> Problem {
        match error {
            ConfirmError::Closed(_) | ConfirmError::Lost => Problem::Gone(error.to_string()),
            _ => Problem::Failed(Failure::new(
                Exit::Io,
                format_args!("queue {}: {error}", self.task.queue),
            )),
        }
    }
}
