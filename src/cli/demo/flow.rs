//! Records from producer processes to consumer processes, and the proof that they are the same.

use std::path::PathBuf;
use std::time::Duration;

use ringmain_client::raw::protocol::Kind;
use ringmain_client::raw::sys::clock::monotonic_ns;
use ringmain_client::{Client, HandleOptions, ReceiveError, SendError};
use serde::{Deserialize, Serialize};

use super::records::{Multiset, Records, Source, fingerprint};
use crate::cli::bench::load::{pin, policy};
use crate::cli::bench::queues::Place;
use crate::cli::bench::queues::Shape;
use crate::cli::crew::{Crew, Member};
use crate::cli::exit::{Failure, Outcome};
use crate::cli::helper::{Order, Parent, Task};
use crate::cli::host;

/// How long a wait goes on before the order to stop is looked at.
const SLICE: Duration = Duration::from_millis(20);

/// How many messages pass between two looks at the clock for the progress.
const LOOK_EVERY: u64 = 256;

/// How many records a producer sends between two looks at the clock for the end.
const CLOCK_EVERY: u64 = 64;

/// A consumer reports its progress this often.
const PROGRESS_NS: u64 = 100_000_000;

/// For a producer process: every `of`-th record, beginning with record `index`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ProduceTask {
    socket: PathBuf,
    queue: String,
    wait: String,
    source: Source,
    passes: u64,
    /// Monotonic time after which nothing is sent beyond the first pass.
    until_ns: u64,
    index: u64,
    of: u64,
    cpu: Option<usize>,
}

/// For a consumer process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ConsumeTask {
    socket: PathBuf,
    queue: String,
    wait: String,
    /// Alone with one producer: every record is compared with the source, byte by byte.
    in_order: Option<Source>,
    cpu: Option<usize>,
}

/// What passed through one process.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Passed {
    records: u64,
    bytes: u64,
    start_ns: u64,
    end_ns: u64,
    /// The records.
    contents: Multiset,
    /// The records with the sequence that the queue gave them.
    placed: Multiset,
    /// Sequences that did not grow.
    backward: u64,
    /// Records that differ from the source at their place, and the first of them.
    different: u64,
    first_different: Option<u64>,
    /// Records that were marked as given out before.
    redelivered: u64,
}

impl Passed {
    #[inline]
    fn add(&mut self, sequence: u64, last: &mut Option<u64>, record: &[u8]) {
        self.records += 1;
        self.bytes += record.len() as u64;
        self.contents.add(fingerprint(0, record));
        self.placed.add(fingerprint(sequence.wrapping_add(1), record));
        self.backward += u64::from(last.is_some_and(|last| sequence <= last));
        *last = Some(sequence);
    }
}

/// Sends.
pub(crate) fn produce(task: &ProduceTask, parent: &Parent) -> Outcome<Passed> {
    let records = Records::load(&task.source)?;
    let client = Client::connect(&task.socket)?;
    let mut producer = client
        .producer_with(&task.queue, HandleOptions::with_wait(policy(&task.wait)?))
        .map_err(|error| Failure::queue(&task.queue, error))?;
    let total = records.len() as u64 * task.passes;
    let (mut passed, mut last) = (Passed::default(), None);
    pin(task.cpu)?;
    parent.wait_for_go()?;
    passed.start_ns = monotonic_ns();
    let mut number = task.index;
    while number < total {
        let looks = number >= records.len() as u64 && passed.records % CLOCK_EVERY == 0;
        if looks && monotonic_ns() >= task.until_ns {
            break;
        }
        let record = records.get(number);
        let sequence = loop {
            match producer.send_timeout(record, SLICE) {
                Ok(sequence) => break sequence,
                Err(SendError::Timeout | SendError::Full) => {}
                Err(error) => return Err(Failure::send(&task.queue, &error)),
            }
        };
        passed.add(sequence, &mut last, record);
        number += task.of;
    }
    passed.end_ns = monotonic_ns();
    Ok(passed)
}

/// Receives until the order to stop came and nothing is left.
pub(crate) fn consume(task: &ConsumeTask, parent: &Parent) -> Outcome<Passed> {
    let expected = task.in_order.as_ref().map(Records::load).transpose()?;
    let client = Client::connect(&task.socket)?;
    let mut consumer = client
        .consumer_with(&task.queue, HandleOptions::with_wait(policy(&task.wait)?))
        .map_err(|error| Failure::queue(&task.queue, error))?;
    let (mut passed, mut last, mut record) = (Passed::default(), None, Vec::new());
    let mut next_report_ns = 0;
    pin(task.cpu)?;
    parent.wait_for_go()?;
    passed.start_ns = monotonic_ns();
    loop {
        // Looked at before the ring: what was sent before the order is seen below.
        let stopped = parent.stopped();
        let received = match consumer.receive_timeout(&mut record, SLICE) {
            Ok(received) => received,
            Err(ReceiveError::Empty | ReceiveError::Timeout) if stopped => return Ok(passed),
            Err(ReceiveError::Empty | ReceiveError::Timeout) => continue,
            Err(error) => return Err(Failure::receive(&task.queue, &error)),
        };
        if expected.as_ref().is_some_and(|expected| expected.get(passed.records) != record) {
            passed.different += 1;
            passed.first_different.get_or_insert(passed.records);
        }
        passed.redelivered += u64::from(received.redelivered);
        passed.add(received.sequence, &mut last, &record);
        // The last message's time is what counts; a reading for each costs less than its hash.
        passed.end_ns = monotonic_ns();
        if passed.records % LOOK_EVERY == 0 && passed.end_ns >= next_report_ns {
            next_report_ns = passed.end_ns + PROGRESS_NS;
            parent.progress(passed.records);
        }
    }
}

/// One way through a queue.
#[derive(Debug, Clone)]
pub(crate) struct Flow {
    pub(crate) kind: Kind,
    pub(crate) producers: u64,
    pub(crate) consumers: u64,
    pub(crate) source: Source,
    pub(crate) passes: u64,
    /// Monotonic time after which no pass but the first goes on.
    pub(crate) until_ns: u64,
    pub(crate) slots: u32,
    pub(crate) slot_size: u32,
    pub(crate) max_message: u32,
    pub(crate) wait: String,
}

/// What came out.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct FlowAnswer {
    pub(crate) kind: Kind,
    pub(crate) plane: &'static str,
    pub(crate) producers: u64,
    pub(crate) consumers: u64,
    pub(crate) slots: u32,
    pub(crate) slot_size: u32,
    /// Sent.
    pub(crate) sent: u64,
    /// Received.
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
    pub(crate) messages_per_s: f64,
    pub(crate) bytes_per_s: f64,
    pub(crate) oversubscribed: bool,
    #[serde(flatten)]
    pub(crate) check: Check,
}

/// Whether what came out is what went in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    pub(crate) verified: bool,
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) altered: u64,
    pub(crate) out_of_order: u64,
    /// How it was compared.
    pub(crate) method: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) first_difference: Option<u64>,
}

impl Flow {
    fn in_order(&self) -> bool {
        self.producers == 1 && self.consumers == 1
    }

    /// Starts the processes, lets the records through, compares. `progress` gets the records received so far.
    pub(crate) fn run(
        &self,
        place: &mut Place,
        records: &Records,
        mut progress: impl FnMut(u64),
    ) -> Outcome<FlowAnswer> {
        let shape = Shape {
            kind: self.kind,
            slots: self.slots,
            slot_size: self.slot_size,
            max_message: self.max_message,
        };
        let queue = place.make("demo", &shape)?;
        let processes = usize::try_from(self.producers + self.consumers).unwrap_or(usize::MAX);
        let mut cores = host::cores(processes);
        let oversubscribed = cores.len() < processes;
        cores.truncate(if oversubscribed { 0 } else { processes });
        let mut crew = Crew::new();
        let (producers, consumers) =
            self.start(&mut crew, place.socket(), &queue, &mut cores.into_iter())?;
        let mut received: Vec<u64> = vec![0; processes];
        let mut show = |member: Member, messages: u64| {
            if let Some(slot) = received.get_mut(member.index()) {
                *slot = messages;
            }
            progress(received.iter().sum());
        };
        crew.wait_ready()?;
        crew.order_all(Order::Go)?;
        let sent = crew.results(&producers, &mut show)?;
        crew.order(&consumers, Order::Stop)?;
        let received = crew.results(&consumers, &mut show)?;
        drop(crew);
        Ok(self.answer(records, &sent, &received, oversubscribed))
    }

    fn start(
        &self,
        crew: &mut Crew,
        socket: &std::path::Path,
        queue: &str,
        cpus: &mut impl Iterator<Item = usize>,
    ) -> Outcome<(Vec<Member>, Vec<Member>)> {
        let (mut producers, mut consumers) = (Vec::new(), Vec::new());
        for _ in 0..self.consumers {
            let task = ConsumeTask {
                socket: socket.to_path_buf(),
                queue: queue.to_string(),
                wait: self.wait.clone(),
                in_order: self.in_order().then(|| self.source.clone()),
                cpu: cpus.next(),
            };
            consumers.push(crew.start("consumer", &Task::RecordsConsume(task), &[])?);
        }
        for index in 0..self.producers {
            let task = ProduceTask {
                socket: socket.to_path_buf(),
                queue: queue.to_string(),
                wait: self.wait.clone(),
                source: self.source.clone(),
                passes: self.passes,
                until_ns: self.until_ns,
                index,
                of: self.producers,
                cpu: cpus.next(),
            };
            producers.push(crew.start("producer", &Task::RecordsProduce(task), &[])?);
        }
        Ok((producers, consumers))
    }

    /// What must have come out: all passes, or as far as each producer got in time, at least the first pass.
    fn expected(&self, records: &Records, sent: &[Passed]) -> (u64, Multiset) {
        let of = self.producers;
        let share = |index: u64, total: u64| (total + of - 1 - index) / of;
        let (once, all) = (records.len() as u64, records.len() as u64 * self.passes);
        let counts: Vec<u64> = (0..of)
            .zip(sent)
            .map(|(index, one)| one.records.clamp(share(index, once), share(index, all)))
            .collect();
        let mut source = Multiset::default();
        let prints: Vec<_> = records.iter().map(|record| fingerprint(0, record)).collect();
        if counts.iter().sum::<u64>() == all {
            prints.iter().for_each(|print| source.add_times(*print, self.passes));
            return (all, source);
        }
        for (index, count) in (0..of).zip(&counts) {
            for number in (index..).step_by(usize::try_from(of).unwrap_or(1)).zip(0..*count) {
                let at = usize::try_from(number.0 % once).unwrap_or(0);
                source.add(prints[at]);
            }
        }
        (counts.iter().sum(), source)
    }

    #[allow(clippy::cast_precision_loss)] // rates
    fn answer(
        &self,
        records: &Records,
        sent: &[Passed],
        received: &[Passed],
        oversubscribed: bool,
    ) -> FlowAnswer {
        let (expected, source) = self.expected(records, sent);
        let total = |side: &[Passed], field: fn(&Passed) -> u64| side.iter().map(field).sum();
        let messages: u64 = total(received, |one| one.records);
        let bytes: u64 = total(received, |one| one.bytes);
        let start = sent.iter().map(|one| one.start_ns).min().unwrap_or(0);
        let end = received.iter().map(|one| one.end_ns).max().unwrap_or(0);
        let seconds = end.saturating_sub(start).max(1) as f64 / 1e9;
        FlowAnswer {
            kind: self.kind,
            plane: "direct",
            producers: self.producers,
            consumers: self.consumers,
            slots: self.slots,
            slot_size: self.slot_size,
            sent: total(sent, |one| one.records),
            messages,
            bytes,
            seconds,
            messages_per_s: messages as f64 / seconds,
            bytes_per_s: bytes as f64 / seconds,
            oversubscribed,
            check: check(expected, source, sent, received, self.in_order()),
        }
    }
}

/// Compares what went in with what came out, and both with the source.
fn check(
    expected: u64,
    source: Multiset,
    sent: &[Passed],
    received: &[Passed],
    in_order: bool,
) -> Check {
    let union = |side: &[Passed], field: fn(&Passed) -> Multiset| {
        side.iter().map(field).fold(Multiset::default(), Multiset::union)
    };
    let messages: u64 = received.iter().map(|one| one.records).sum();
    let different: u64 = received.iter().map(|one| one.different).sum();
    let same = union(received, |one| one.contents) == source
        && union(sent, |one| one.contents) == source
        && union(received, |one| one.placed) == union(sent, |one| one.placed);
    let lost = expected.saturating_sub(messages);
    let doubled = messages.saturating_sub(expected);
    // Equal counts of unequal sets: at least one record is not what it was.
    let altered = different.max(u64::from(!same && lost + doubled == 0));
    let out_of_order = sent.iter().chain(received).map(|one| one.backward).sum();
    Check {
        verified: same && lost + doubled + altered + out_of_order == 0,
        lost,
        doubled,
        altered,
        out_of_order,
        method: if in_order {
            "every record compared with the source, byte by byte and in order"
        } else {
            "the multiset of all records, and of all records with their sequences, by 128-bit sums; \
             the sequences of every producer and consumer grow"
        },
        first_difference: received.iter().find_map(|one| one.first_different),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(records: &[(u64, &str)]) -> Passed {
        let (mut passed, mut last) = (Passed::default(), None);
        for (sequence, record) in records {
            passed.add(*sequence, &mut last, record.as_bytes());
        }
        passed
    }

    fn source(records: &[&str]) -> Multiset {
        let mut set = Multiset::default();
        records.iter().for_each(|record| set.add(fingerprint(0, record.as_bytes())));
        set
    }

    #[test]
    fn the_same_records_are_verified() {
        let sent = [passed(&[(0, "a"), (2, "a")]), passed(&[(1, "b")])];
        let received = [passed(&[(1, "b"), (2, "a")]), passed(&[(0, "a")])];
        assert!(check(3, source(&["a", "b", "a"]), &sent, &received, false).verified);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let sent = [passed(&[(0, "a"), (1, "b"), (2, "c")])];
        let source = source(&["a", "b", "c"]);
        let judge = |received: &[(u64, &str)]| check(3, source, &sent, &[passed(received)], false);
        assert!(judge(&[(0, "a"), (1, "b"), (2, "c")]).verified);
        assert_eq!(judge(&[(0, "a"), (2, "c")]).lost, 1);
        assert_eq!(judge(&[(0, "a"), (1, "b"), (2, "c"), (2, "c")]).doubled, 1);
        assert_eq!(judge(&[(0, "a"), (1, "B"), (2, "c")]).altered, 1);
        // One lost and another doubled: the counts agree, the sets do not.
        assert_eq!(judge(&[(0, "a"), (0, "a"), (2, "c")]).altered, 1);
        assert_eq!(judge(&[(1, "b"), (0, "a"), (2, "c")]).out_of_order, 1);
        // Two records changed places: each is whole, yet not where it was sent.
        assert!(!judge(&[(0, "b"), (1, "a"), (2, "c")]).verified);
        assert!([&[][..], &[(0, "a")]].iter().all(|received| !judge(received).verified));
    }
}
