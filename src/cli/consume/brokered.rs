//! Consuming from a brokered queue: what is here is written with one system call, then acknowledged.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use ringmain::shard::logic::headers::{UNREADABLE, WITHHELD};
use ringmain_client::raw::protocol::QueueInfo;
use ringmain_client::{
    AckError, BrokeredConsumer, Client, ConsumerOptions, Delivery, ReceiveError, StartAt,
};

use super::rendering::{Format, Shown};
use super::{Absence, Config, DRAIN_SLICE, Gaps, NOTICE_AFTER, SLICE, write_as_far};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::group::called;
use crate::cli::output::notice;
use crate::cli::signals;

/// Messages that may be here without an acknowledgement.
const CREDIT: u32 = 256;

/// No more is gathered for one write.
const WRITE_BYTES: usize = 64 * 1024;

/// How long the daemon may take to answer the last acknowledgements.
const FLUSH_LIMIT: Duration = Duration::from_secs(10);

pub(super) fn run(client: &Client, info: &QueueInfo, config: &Config) -> Outcome {
    let credit = config.credit.unwrap_or(CREDIT).min(limit_u32(config.count.unwrap_or(u64::MAX)));
    let options = ConsumerOptions::default()
        .wait(config.wait)
        .group(group(config))
        .from(config.from.unwrap_or_default())
        // A credit of 0 would be the daemon's default.
        .credit(credit.max(1));
    if config.count == Some(0) {
        return Ok(());
    }
    check_start("--from", config.from.unwrap_or_default(), info)?;
    let consumer = client
        .brokered_consumer(&config.queue, options)
        .map_err(|error| Failure::queue(&config.queue, error))?;
    if consumer.created_group() {
        notice(&format!(
            "queue {} had no group {}: it was created; see 'ringmain group list {}'",
            config.queue,
            called(&group(config)),
            config.queue
        ));
    }
    signals::catch()?;
    let mut taker = Taker {
        client,
        consumer,
        config,
        credit,
        left: config.count.unwrap_or(u64::MAX),
        batch: Vec::new(),
        filled: 0,
        line: Vec::new(),
        ends: Vec::new(),
        again: 0,
        idle_since: None,
        noticed: false,
        absence: Absence::default(),
        gaps: Gaps::default(),
    };
    let result = taker.take_all();
    // What was written is acknowledged, however the command ends.
    let flushed = if result.is_ok() { taker.flush() } else { Ok(()) };
    if taker.again > 0 {
        notice(&format!(
            "{} messages had been delivered before and were not acknowledged",
            taker.again
        ));
    }
    taker.gaps.tell_sum(&config.queue);
    debug_assert_eq!(info.plane, ringmain_client::Plane::Brokered);
    result.and(flushed)
}

/// A sequence that nobody has published is a mistake.
pub(crate) fn check_start(flag: &str, start: StartAt, info: &QueueInfo) -> Outcome {
    let next = info.brokered.as_ref().map_or(u64::MAX, |info| info.next_sequence);
    match start {
        StartAt::Sequence(sequence) if sequence > next => Err(Failure::new(
            Exit::Data,
            format_args!(
                "{flag} {sequence}: the next sequence of queue {} is {next}; use {flag} new, or a sequence up to that",
                info.name
            ),
        )),
        _ => Ok(()),
    }
}

/// `default` is what the group without a name is called, here as on direct queues.
fn group(config: &Config) -> String {
    config.group.clone().filter(|group| group != "default").unwrap_or_default()
}

fn limit_u32(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// What came of a wait for messages.
enum Got {
    Messages,
    Nothing,
    Drained,
}

struct Taker<'a> {
    client: &'a Client,
    consumer: BrokeredConsumer,
    config: &'a Config,
    credit: u32,
    /// Messages still wanted.
    left: u64,
    /// Memory of deliveries; the first `filled` are here now.
    batch: Vec<Delivery>,
    filled: usize,
    line: Vec<u8>,
    /// Where each line ends.
    ends: Vec<usize>,
    /// Messages that came for another time.
    again: u64,
    idle_since: Option<Instant>,
    noticed: bool,
    absence: Absence,
    gaps: Gaps,
}

impl Taker<'_> {
    fn take_all(&mut self) -> Outcome {
        while self.left > 0 && signals::caught().is_none() {
            match self.gather()? {
                Got::Messages => {
                    self.idle_since = None;
                    self.absence.over();
                    self.write()?;
                }
                Got::Drained | Got::Nothing if self.config.drain && self.empty()? => return Ok(()),
                Got::Drained | Got::Nothing => self.check_idle()?,
            }
        }
        Ok(())
    }

    /// Waits for a message and takes those that are there as well.
    fn gather(&mut self) -> Outcome<Got> {
        self.line.clear();
        self.ends.clear();
        self.filled = 0;
        while (self.filled as u64) < self.left && self.line.len() < WRITE_BYTES {
            if self.filled == self.batch.len() {
                self.batch.push(Delivery::default());
            }
            let delivery = &mut self.batch[self.filled];
            let timeout = Some(if self.filled == 0 { SLICE } else { Duration::ZERO });
            let got = if self.config.drain && self.filled == 0 {
                self.consumer.receive_or_drained(delivery, timeout)
            } else {
                self.consumer.receive_into(delivery, timeout).map(|()| true)
            };
            match got {
                Ok(true) => {}
                Ok(false) => return Ok(Got::Drained),
                Err(ReceiveError::Empty | ReceiveError::Timeout) => break,
                // What is here is written first; the error comes again.
                Err(_) if self.filled > 0 => break,
                Err(error) => return Err(Failure::receive(&self.config.queue, &error)),
            }
            self.again += u64::from(delivery.redelivered());
            Shown::delivery(delivery, self.config.format)
                .render(self.config.format, &mut self.line);
            self.ends.push(self.line.len());
            self.filled += 1;
        }
        self.gaps.add(&self.config.queue, self.consumer.take_skipped());
        Ok(if self.filled > 0 { Got::Messages } else { Got::Nothing })
    }

    /// Writes the lines and acknowledges those that were written as a whole.
    fn write(&mut self) -> Outcome {
        let (written, error) = write_as_far(&self.line);
        let whole = self.ends.partition_point(|end| *end <= written);
        self.left -= whole as u64;
        // No more than are wanted: what came beyond would count as delivered.
        if u64::from(self.credit) > self.left {
            self.credit = limit_u32(self.left);
            let set = self.consumer.set_credit(self.credit);
            set.map_err(|error| self.failed(error))?;
        }
        for index in 0..whole {
            let acknowledged = self.consumer.ack(&self.batch[index]);
            acknowledged.map_err(|error| self.failed(error))?;
        }
        match error {
            None => Ok(()),
            // Asked to stop while a reader does not read: the rest goes to another consumer, and that is all.
            Some(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Some(error) => Err(Failure::stdout(&error)),
        }
    }

    fn flush(&mut self) -> Outcome {
        match self.consumer.flush(FLUSH_LIMIT) {
            Ok(()) => Ok(()),
            Err(AckError::LeaseLost) => {
                notice(
                    "a lease was over before its line was written: that message was given to another \
                     consumer as well; use a longer 'queue edit --lease' or a smaller --credit",
                );
                Ok(())
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    fn failed(&self, error: AckError) -> Failure {
        let exit = match error {
            AckError::JournalFailed { .. } => Exit::Io,
            AckError::Timeout => Exit::Temporary,
            AckError::Closed(_) | AckError::Lost => Exit::Unavailable,
            _ => Exit::Internal,
        };
        let queue = &self.config.queue;
        Failure::new(
            exit,
            format_args!(
                "queue {queue}: cannot acknowledge: {error}; the last messages may come again"
            ),
        )
    }

    /// The daemon says that there is nothing more for this group now. What others hold may come back: that is waited for.
    fn empty(&mut self) -> Outcome<bool> {
        self.flush()?;
        let queue = &self.config.queue;
        let info = self.client.group_info(queue, &group(self.config));
        let info = info.map_err(|error| Failure::queue(queue, error))?;
        if info.lag_messages <= info.delayed {
            if info.delayed > 0 {
                notice(&format!("{} messages stay until their delay is over", info.delayed));
            }
            return Ok(true);
        }
        let since = *self.idle_since.get_or_insert_with(Instant::now);
        if !self.noticed && info.unacknowledged > 0 && since.elapsed() >= NOTICE_AFTER {
            self.noticed = true;
            notice(&format!(
                "waiting for {} messages of queue {} that are with other consumers",
                info.unacknowledged, self.config.queue
            ));
        }
        thread::sleep(DRAIN_SLICE);
        Ok(false)
    }

    fn check_idle(&mut self) -> Outcome {
        self.absence.look(self.client, &self.config.queue);
        let since = *self.idle_since.get_or_insert_with(Instant::now);
        match self.config.timeout {
            Some(limit) if since.elapsed() >= limit => Err(Failure::new(
                Exit::Temporary,
                format_args!(
                    "no message came from queue {} for {}",
                    self.config.queue,
                    humantime::format_duration(limit)
                ),
            )),
            _ => Ok(()),
        }
    }
}

/// Shows messages without taking them, oldest first, up to the last one that is there or on and on; each is handed to `show`,
/// which says whether it wants more.
pub(crate) fn browse(
    client: &Client,
    queue: &str,
    from: StartAt,
    follow: bool,
    mut show: impl FnMut(&Delivery) -> Outcome<bool>,
) -> Outcome {
    let options = ConsumerOptions::default().browse(true).from(from);
    let mut consumer =
        client.brokered_consumer(queue, options).map_err(|error| Failure::queue(queue, error))?;
    let mut delivery = Delivery::default();
    loop {
        signals::check()?;
        let received = if follow {
            consumer.receive_into(&mut delivery, Some(SLICE)).map(|()| true)
        } else {
            consumer.receive_or_drained(&mut delivery, Some(SLICE))
        };
        match received {
            Ok(true) => {
                report_missing(queue, &delivery);
                if !show(&delivery)? {
                    return Ok(());
                }
            }
            Ok(false) => return Ok(()),
            Err(ReceiveError::Empty | ReceiveError::Timeout) => {}
            Err(error) => return Err(Failure::receive(queue, &error)),
        }
    }
}

/// A message that fits no ring of its queue, or cannot be read, comes without its payload.
fn report_missing(queue: &str, delivery: &Delivery) {
    let metadata = delivery.metadata().unwrap_or_default();
    let find = |header: &str| metadata.headers.iter().find(|(name, _)| name == header);
    if let Some((_, what)) = find(UNREADABLE) {
        notice(&format!(
            "message {} of queue {queue} cannot be read: {}",
            delivery.sequence(),
            String::from_utf8_lossy(what)
        ));
    }
    if let Some((_, bytes)) = find(WITHHELD) {
        notice(&format!(
            "message {} of queue {queue} has {} bytes and fits no ring of this queue: no consumer can take it; \
             move it with 'ringmain dead-letter redrive {queue}', or purge the queue",
            delivery.sequence(),
            String::from_utf8_lossy(bytes)
        ));
    }
}

/// The formats of `peek` are those of `consume`.
pub(crate) fn print_delivery(delivery: &Delivery, format: Format) -> Outcome {
    let mut line = Vec::new();
    Shown::delivery(delivery, format).render(format, &mut line);
    match write_as_far(&line) {
        (_, None) => Ok(()),
        (_, Some(error)) if error.kind() == io::ErrorKind::Interrupted => signals::check(),
        (_, Some(error)) => Err(Failure::stdout(&error)),
    }
}
