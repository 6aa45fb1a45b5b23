//! Consumers of brokered queues: what they check, and the process that receives and acknowledges while another one publishes.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use ringmain_client::raw::sys::clock::monotonic_ns;
use ringmain_client::{
    AckError, BrokeredConsumer, Client, ConsumerOptions, Delivery, ReceiveError,
};
use serde::{Deserialize, Serialize};

use super::super::load::{self, Tally};
use super::LIMIT;
use super::publish::Content;
use crate::cli::crew::{Crew, Member};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::helper::{Order, Parent, Task as HelperTask};
use crate::cli::signals;
use crate::cli::statistics::{Packed, Samples};

/// The time of sending, or the number, is in front of each message.
pub(in crate::cli::bench) const SIZE_MIN: u32 = 8;

/// How long a wait goes on before the order to stop is looked at.
const SLICE: Duration = Duration::from_millis(20);

/// How often a parent looks whether everything was read.
const LOOK: Duration = Duration::from_millis(1);

/// For the receiving process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(in crate::cli::bench) socket: PathBuf,
    pub(in crate::cli::bench) queue: String,
    /// Its group; empty for the default one.
    pub(in crate::cli::bench) group: String,
    pub(in crate::cli::bench) content: Content,
    pub(in crate::cli::bench) size: u32,
    /// Nobody else is in the group.
    pub(in crate::cli::bench) alone: bool,
}

/// What it received.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Consumed {
    /// Of numbered messages.
    pub(in crate::cli::bench) tally: Tally,
    /// Of timed ones: from just before the send until they were there.
    pub(in crate::cli::bench) age: Packed,
}

/// Receives and acknowledges until the order to stop came and nothing is left.
pub(crate) fn run(task: &Task, parent: &Parent) -> Outcome<Consumed> {
    let client = Client::connect(&task.socket)?;
    let options = ConsumerOptions::default().group(task.group.as_str());
    let mut consumer = client
        .brokered_consumer(&task.queue, options)
        .map_err(|error| Failure::queue(&task.queue, error))?;
    let (mut tally, mut age) = (Tally::default(), Samples::new());
    let mut delivery = Delivery::default();
    parent.wait_for_go()?;
    loop {
        let stopped = parent.stopped();
        match consumer.receive_into(&mut delivery, Some(SLICE)) {
            Ok(()) => {}
            Err(ReceiveError::Empty | ReceiveError::Timeout) if stopped => break,
            Err(ReceiveError::Empty | ReceiveError::Timeout) => continue,
            Err(error) => return Err(Failure::receive(&task.queue, &error)),
        }
        match task.content {
            Content::Timed => {
                let sent = delivery.payload().first_chunk().map_or(0, |t| u64::from_le_bytes(*t));
                age.record(monotonic_ns().saturating_sub(sent));
            }
            Content::Numbered => tally.add(check(&task.queue, &delivery, task.size)?, task.alone),
        }
        consumer.ack(&delivery).map_err(unacknowledged)?;
    }
    consumer.flush(LIMIT).map_err(unacknowledged)?;
    Ok(Consumed { tally, age: age.pack() })
}

/// The number of a message, from 0, if it is what was published under its sequence, and comes for the first time.
pub(in crate::cli::bench) fn check(queue: &str, delivery: &Delivery, size: u32) -> Outcome<u64> {
    let number = delivery.sequence().wrapping_sub(1);
    let payload = delivery.payload();
    let is_whole = payload.len() == size as usize && load::verify(payload) == Some(number);
    if !is_whole || delivery.redelivered() {
        let what = if is_whole { "came twice" } else { "is not what was published" };
        return Err(Failure::new(
            Exit::Data,
            format_args!("queue {queue}: message {} {what}", delivery.sequence()),
        ));
    }
    Ok(number)
}

/// Receives, checks and acknowledges the next so many messages of a queue, of which the first has this number.
pub(in crate::cli::bench) fn drain(
    client: &Client,
    queue: &str,
    size: u32,
    numbers: std::ops::Range<u64>,
) -> Outcome {
    let mut consumer = client
        .brokered_consumer(queue, ConsumerOptions::default())
        .map_err(|error| Failure::queue(queue, error))?;
    let mut delivery = Delivery::default();
    for number in numbers {
        next(&mut consumer, &mut delivery)?;
        if check(queue, &delivery, size)? != number {
            return Err(Failure::new(
                Exit::Data,
                format_args!("queue {queue}: message {} did not come in its turn", number + 1),
            ));
        }
        consumer.ack(&delivery).map_err(unacknowledged)?;
    }
    consumer.flush(LIMIT).map_err(unacknowledged)
}

/// The next message of a queue that has one.
pub(in crate::cli::bench) fn next(
    consumer: &mut BrokeredConsumer,
    delivery: &mut Delivery,
) -> Outcome {
    match consumer.receive_into(delivery, Some(LIMIT)) {
        Ok(()) => Ok(()),
        Err(ReceiveError::Timeout | ReceiveError::Empty) => Err(Failure::new(
            Exit::Io,
            format_args!(
                "queue {}: no message came for {} s",
                consumer.queue_name(),
                LIMIT.as_secs()
            ),
        )),
        Err(error) => Err(Failure::receive(consumer.queue_name(), &error)),
    }
}

pub(in crate::cli::bench) fn unacknowledged(error: AckError) -> Failure {
    Failure::internal(format_args!("cannot acknowledge: {error}"))
}

/// Consuming processes, each started with a task.
pub(in crate::cli::bench) struct Consumers {
    crew: Crew,
    members: Vec<Member>,
}

impl Consumers {
    pub(in crate::cli::bench) fn start(tasks: impl IntoIterator<Item = Task>) -> Outcome<Self> {
        let mut crew = Crew::new();
        let mut members = Vec::new();
        for task in tasks {
            members.push(crew.start("consuming", &HelperTask::Consume(task), &[])?);
        }
        crew.wait_ready()?;
        crew.order_all(Order::Go)?;
        Ok(Self { crew, members })
    }

    /// What publishing to them came to: if it failed because one of them has, that one says why.
    pub(in crate::cli::bench) fn explain<T>(&mut self, published: Outcome<T>) -> Outcome<T> {
        if matches!(published, Err(Failure::Message { .. })) {
            self.crew.listen(&mut |_, _| {})?;
        }
        published
    }

    /// Waits until all groups of this queue have acknowledged everything.
    pub(in crate::cli::bench) fn wait_until_read(
        &mut self,
        client: &Client,
        queue: &str,
    ) -> Outcome {
        let mut last = (u64::MAX, Instant::now());
        loop {
            signals::check()?;
            let groups = client.groups(queue).map_err(|error| Failure::queue(queue, error))?;
            let lag = groups.iter().map(|group| group.lag_messages).max().unwrap_or(0);
            if lag == 0 {
                return Ok(());
            }
            if lag != last.0 {
                last = (lag, Instant::now());
            }
            if last.1.elapsed() > LIMIT {
                self.crew.listen(&mut |_, _| {})?;
                return Err(Failure::new(
                    Exit::Io,
                    format_args!("queue {queue}: {lag} messages are not read"),
                ));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Tells them that what is there now is all, and waits for what they received.
    pub(in crate::cli::bench) fn finish(&mut self) -> Outcome<Vec<Consumed>> {
        self.crew.order(&self.members, Order::Stop)?;
        self.crew.results(&self.members, |_, _| {})
    }
}

/// All of these together have received the numbers from 0 to `sent`, each once.
pub(in crate::cli::bench) fn verify<'a>(
    queue: &str,
    consumed: impl IntoIterator<Item = &'a Consumed>,
    sent: u64,
) -> Outcome {
    let mut all = Tally::default();
    for Consumed { tally, .. } in consumed {
        all.received += tally.received;
        for (sum, more) in all.sums.iter_mut().zip(tally.sums) {
            *sum = sum.wrapping_add(more);
        }
        all.lost += tally.lost;
        all.backward += tally.backward;
    }
    let is_right = all.received == sent
        && all.sums == Tally::expected_sums(sent)
        && (all.lost, all.backward) == (0, 0);
    if is_right {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Data,
        format_args!(
            "queue {queue}: {sent} messages were confirmed, {} came, {} of them left out, {} out of order",
            all.received, all.lost, all.backward
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_twice_is_noticed() {
        let of = |numbers: &[u64]| {
            let mut tally = Tally::default();
            numbers.iter().for_each(|number| tally.add(*number, false));
            Consumed { tally, age: Packed::default() }
        };
        assert!(verify("q", &[of(&[0, 2]), of(&[1, 3])], 4).is_ok());
        assert!(verify("q", &[of(&[0, 2]), of(&[1])], 4).is_err());
        assert!(verify("q", &[of(&[0, 2]), of(&[1, 2])], 4).is_err());
        assert!(verify("q", &[of(&[2, 0]), of(&[1, 3])], 4).is_err());
    }
}
