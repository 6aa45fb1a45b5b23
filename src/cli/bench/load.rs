//! Generated messages that tell by themselves who sent them, when, and whether every word arrived.

use std::path::PathBuf;
use std::time::Duration;

use ringmain_client::raw::sys::clock::monotonic_ns;
use ringmain_client::{
    Client, Consumer, HandleOptions, Producer, ReceiveError, SendError, WaitPolicy, affinity,
};
use serde::{Deserialize, Serialize};

use super::lateness::{self, Lateness, PackedLateness};
use crate::cli::exit::{Failure, Outcome};
use crate::cli::helper::Parent;

/// Smallest message that carries its number.
pub(crate) const SIZE_MIN: u32 = 8;

/// Numbers take the lower 56 bits of the first word, the producer the upper eight.
const PRODUCER_SHIFT: u32 = 56;

/// Distance between the words of a message: odd, without a pattern.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// How often a producer or a consumer looks at the clock: once in so many messages.
const CLOCK_EVERY: u64 = 1024;

/// How long a wait goes on before the order to stop is looked at.
const SLICE: Duration = Duration::from_millis(20);

/// A consumer reports its progress this often.
const PROGRESS_NS: u64 = 100_000_000;

/// For a producer process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ProduceTask {
    pub(crate) socket: PathBuf,
    pub(crate) queue: String,
    pub(crate) wait: String,
    pub(crate) producer: u8,
    pub(crate) size: usize,
    pub(crate) batch: usize,
    pub(crate) duration_ns: u64,
    /// Each message carries its times; no batches then.
    pub(crate) timed: bool,
    pub(crate) cpu: Option<usize>,
}

/// What a producer did.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Produced {
    pub(crate) sent: u64,
    pub(crate) start_ns: u64,
}

/// For a consumer process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ConsumeTask {
    pub(crate) socket: PathBuf,
    pub(crate) queue: String,
    pub(crate) wait: String,
    pub(crate) producers: u8,
    /// Nobody else consumes: the numbers must follow each other without a gap.
    pub(crate) alone: bool,
    pub(crate) size: usize,
    pub(crate) batch: usize,
    pub(crate) timed: bool,
    pub(crate) cpu: Option<usize>,
}

/// What a consumer saw.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Consumed {
    /// One a producer.
    pub(crate) tallies: Vec<Tally>,
    /// Messages whose words do not belong together, or of another length.
    pub(crate) altered: u64,
    /// When the last message had been verified.
    pub(crate) end_ns: u64,
    /// If messages carry their times.
    pub(crate) lateness: Option<PackedLateness>,
}

/// What came from one producer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tally {
    pub(crate) received: u64,
    /// Sums over the numbers and over their mixtures, modulo 2^64: together they tell one set from another.
    pub(crate) sums: [u64; 2],
    /// Numbers left out, if this consumer is alone.
    pub(crate) lost: u64,
    /// Numbers not above the one before.
    pub(crate) backward: u64,
    /// Number behind the highest one seen.
    pub(crate) next: u64,
}

impl Tally {
    #[inline]
    pub(crate) fn add(&mut self, number: u64, alone: bool) {
        self.received += 1;
        self.sums[0] = self.sums[0].wrapping_add(number);
        self.sums[1] = self.sums[1].wrapping_add(mix(number));
        if number < self.next {
            self.backward += 1;
            return;
        }
        if alone {
            self.lost += number - self.next;
        }
        self.next = number + 1;
    }

    /// Of the numbers 0 to `sent`.
    pub(crate) fn expected_sums(sent: u64) -> [u64; 2] {
        (0..sent).fold([0u64; 2], |sums, number| {
            [sums[0].wrapping_add(number), sums[1].wrapping_add(mix(number))]
        })
    }
}

fn mix(number: u64) -> u64 {
    let folded = u128::from(number ^ STEP) * u128::from(STEP);
    #[allow(clippy::cast_possible_truncation)] // both halves are used
    let (low, high) = (folded as u64, (folded >> 64) as u64);
    low ^ high
}

/// Word of a message with this stamp.
pub(crate) fn word_of(stamp: u64, index: usize) -> u64 {
    stamp ^ STEP.wrapping_mul(index as u64)
}

/// Writes a message whose every word depends on its producer and number.
#[inline]
pub(crate) fn fill(message: &mut [u8], stamp: u64) {
    let mut step = 0u64;
    let mut words = message.chunks_exact_mut(8);
    for word in &mut words {
        word.copy_from_slice(&(stamp ^ step).to_le_bytes());
        step = step.wrapping_add(STEP);
    }
    let rest = words.into_remainder();
    let last = (stamp ^ step).to_le_bytes();
    for (byte, value) in rest.iter_mut().zip(last) {
        *byte = value;
    }
}

/// The stamp of a message, if every word belongs to it.
#[inline]
pub(crate) fn verify(message: &[u8]) -> Option<u64> {
    let stamp = u64::from_le_bytes(*message.first_chunk()?);
    let (mut step, mut difference) = (0u64, 0u64);
    let words = message.chunks_exact(8);
    let rest = words.remainder();
    for word in words {
        let word = u64::from_le_bytes(*word.first_chunk()?);
        difference |= word ^ stamp ^ step;
        step = step.wrapping_add(STEP);
    }
    let last = (stamp ^ step).to_le_bytes();
    let same = rest.iter().zip(&last).all(|(byte, value)| byte == value);
    (difference == 0 && same).then_some(stamp)
}

/// Sends until the time is over.
pub(crate) fn produce(task: &ProduceTask, parent: &Parent) -> Outcome<Produced> {
    let client = Client::connect(&task.socket)?;
    let mut producer = client
        .producer_with(&task.queue, HandleOptions::with_wait(policy(&task.wait)?))
        .map_err(|error| Failure::queue(&task.queue, error))?;
    let size = task.size;
    // Batches of what fits a slot are written where they lie.
    let in_place = task.batch > 1 && size <= producer.slot_capacity();
    let mut messages = vec![0; size * task.batch];
    let mut slices: Vec<&[u8]> = Vec::with_capacity(task.batch);
    let origin = u64::from(task.producer) << PRODUCER_SHIFT;
    let per_send = task.batch as u64;
    pin(task.cpu)?;
    parent.wait_for_go()?;
    let start_ns = monotonic_ns();
    let end_ns = start_ns.saturating_add(task.duration_ns);
    let (mut sent, mut next_look) = (0, 0);
    loop {
        if sent >= next_look {
            next_look = sent + CLOCK_EVERY;
            if monotonic_ns() >= end_ns {
                break;
            }
        }
        if in_place {
            let first = origin | sent;
            send(&mut producer, |producer| {
                producer.send_batch_in_place_timeout(task.batch, size, SLICE, |index, body| {
                    // SAFETY: the members of this queue are processes of this measurement, which keep to the protocol.
                    fill(unsafe { body.as_mut_slice() }, first + index as u64);
                })
            })?;
            sent += per_send;
            continue;
        }
        for (index, message) in (0..).zip(messages.chunks_exact_mut(size)) {
            fill(message, origin | (sent + index));
        }
        if task.timed {
            lateness::send(&mut producer, &mut messages, SLICE)?;
        } else if task.batch == 1 {
            send(&mut producer, |producer| producer.send_timeout(&messages, SLICE))?;
        } else {
            slices.extend(messages.chunks_exact(size));
            send(&mut producer, |producer| producer.send_batch_timeout(&slices, SLICE))?;
            slices = emptied(slices);
        }
        sent += per_send;
    }
    Ok(Produced { sent, start_ns })
}

/// Waits for room as long as it takes: the parent ends a process that waits in vain.
fn send(
    producer: &mut Producer,
    attempt: impl Fn(&mut Producer) -> Result<u64, SendError>,
) -> Outcome {
    loop {
        match attempt(producer) {
            Ok(_) => return Ok(()),
            Err(SendError::Full | SendError::Timeout) => {}
            Err(error) => return Err(Failure::send("of the measurement", &error)),
        }
    }
}

/// The same allocation for slices of another lifetime.
fn emptied<'a>(mut slices: Vec<&[u8]>) -> Vec<&'a [u8]> {
    slices.clear();
    slices.into_iter().map(|_| -> &'a [u8] { &[] }).collect()
}

/// Verifies until the order to stop came and nothing is left.
pub(crate) fn consume(task: &ConsumeTask, parent: &Parent) -> Outcome<Consumed> {
    let client = Client::connect(&task.socket)?;
    let mut consumer = client
        .consumer_with(&task.queue, HandleOptions::with_wait(policy(&task.wait)?))
        .map_err(|error| Failure::queue(&task.queue, error))?;
    let mut check = Check::new(task);
    let mut buffer = Vec::with_capacity(task.size);
    pin(task.cpu)?;
    parent.wait_for_go()?;
    let (mut received, mut next_look, mut next_report_ns) = (0, 0, 0);
    loop {
        // Looked at before the ring: what was sent before the order is seen below.
        let stopped = parent.stopped();
        match receive(&mut consumer, task.batch, &mut buffer, &mut check) {
            Ok(messages) => received += messages as u64,
            Err(ReceiveError::Empty | ReceiveError::Timeout) if stopped => break,
            Err(ReceiveError::Empty | ReceiveError::Timeout) => continue,
            Err(error) => return Err(Failure::receive("of the measurement", &error)),
        }
        if received >= next_look {
            next_look = received + CLOCK_EVERY;
            let now_ns = monotonic_ns();
            if now_ns >= next_report_ns {
                next_report_ns = now_ns + PROGRESS_NS;
                parent.progress(received);
            }
        }
        check.busy = true;
    }
    check.consumed.lateness = check.lateness.as_ref().map(Lateness::pack);
    Ok(check.consumed)
}

fn receive(
    consumer: &mut Consumer,
    batch: usize,
    buffer: &mut Vec<u8>,
    check: &mut Check,
) -> Result<usize, ReceiveError> {
    let result = if batch == 1 {
        consumer.try_receive(buffer).map(|_| {
            check.message(buffer);
            1
        })
    } else {
        consumer.try_receive_batch(batch, |message| {
            // SAFETY: the members of this queue are processes of this measurement, which keep to the protocol.
            if let Some(payload) = unsafe { message.as_slice() } {
                return check.untimed(payload);
            }
            // It fails in a forked child only; an empty message is counted as altered then.
            if message.copy_to(buffer).is_err() {
                buffer.clear();
            }
            check.message(buffer);
        })
    };
    let Err(ReceiveError::Empty) = result else {
        return result;
    };
    // The clock is read when the ring runs dry, so that the end is known without a reading per message.
    check.pause();
    consumer.receive_timeout(buffer, SLICE).map(|_| {
        check.message(buffer);
        1
    })
}

/// What arrived so far.
struct Check {
    consumed: Consumed,
    alone: bool,
    size: usize,
    /// A message came since the clock was last read.
    busy: bool,
    lateness: Option<Lateness>,
}

impl Check {
    fn new(task: &ConsumeTask) -> Self {
        let tallies = vec![Tally::default(); usize::from(task.producers)];
        let consumed = Consumed { tallies, ..Consumed::default() };
        let lateness = task.timed.then(Lateness::new);
        Self { consumed, alone: task.alone, size: task.size, busy: false, lateness }
    }

    #[inline]
    fn message(&mut self, message: &mut [u8]) {
        if let Some(lateness) = &mut self.lateness {
            lateness.take(message);
        }
        self.untimed(message);
    }

    #[inline]
    fn untimed(&mut self, message: &[u8]) {
        let stamp = verify(message).filter(|_| message.len() == self.size);
        let tally = stamp.and_then(|stamp| {
            let producer = usize::try_from(stamp >> PRODUCER_SHIFT).ok()?;
            let tally = self.consumed.tallies.get_mut(producer)?;
            Some((tally, stamp & ((1 << PRODUCER_SHIFT) - 1)))
        });
        match tally {
            Some((tally, number)) => tally.add(number, self.alone),
            None => self.consumed.altered += 1,
        }
    }

    fn pause(&mut self) {
        if self.busy {
            self.busy = false;
            self.consumed.end_ns = monotonic_ns();
        }
    }
}

/// Pins the process if it has a processor of its own.
pub(crate) fn pin(cpu: Option<usize>) -> Outcome {
    let Some(cpu) = cpu else { return Ok(()) };
    affinity::pin_current_thread(cpu)
        .map(|_| ())
        .map_err(|error| Failure::system("pin the process", error))
}

/// A wait policy that came from the parent.
pub(crate) fn policy(text: &str) -> Outcome<WaitPolicy> {
    text.parse().map_err(|_| Failure::internal(format_args!("wait policy {text}")))
}

/// A generated message.
#[cfg(test)]
pub(crate) fn sample(size: usize, number: u64) -> Vec<u8> {
    let mut message = vec![0; size];
    fill(&mut message, number);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_counts() {
        for size in 8..50 {
            let mut message = vec![0; size];
            fill(&mut message, 3 << PRODUCER_SHIFT | 77);
            assert_eq!(verify(&message), Some(3 << PRODUCER_SHIFT | 77));
            for byte in 8..size {
                message[byte] ^= 1;
                assert_eq!(verify(&message), None, "size {size} byte {byte}");
                message[byte] ^= 1;
            }
        }
        assert_eq!(verify(&[1, 2, 3]), None);
    }

    #[test]
    fn a_changed_number_is_an_altered_message() {
        let mut message = [0; 16];
        fill(&mut message, 5);
        message[0] = 6;
        assert_eq!(verify(&message), None);
    }

    #[test]
    fn tallies_see_gaps_and_repeats() {
        let mut tally = Tally::default();
        [0, 1, 4, 4, 5].iter().for_each(|number| tally.add(*number, true));
        assert_eq!((tally.received, tally.lost, tally.backward), (5, 2, 1));
        let mut first = Tally::default();
        let mut second = Tally::default();
        [0, 3, 4].iter().for_each(|number| first.add(*number, false));
        [1, 2].iter().for_each(|number| second.add(*number, false));
        assert_eq!((first.lost, second.lost), (0, 0));
        let sums = [0, 1].map(|i| first.sums[i].wrapping_add(second.sums[i]));
        assert_eq!(sums, Tally::expected_sums(5));
    }
}
