//! Publishing to a brokered queue: messages go out as long as the window has room, confirmations come back in their
//! order.

use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ringmain_client::raw::protocol::{ErrorCode, Overflow};
use ringmain_client::{
    BrokeredProducer, Client, ClientError, Closed, ConfirmError, Level, ProducerOptions, QueueInfo,
    SendError, SettledRun,
};
use serde_json::json;

use super::lines::Lines;
use super::{Config, NOTICE_AFTER, Source, bad_input, send_failure};
use crate::cli::args::Confirm;
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::output::{notice, print_json};
use crate::cli::units;

/// How long a wait for confirmations goes on before the input is looked at again.
const SLICE: Duration = Duration::from_millis(5);

/// The client gives a daemon that is there this long for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Lines that are taken off the input at once.
const LINES_AT_ONCE: usize = 256;

pub(super) fn run(client: Client, info: &QueueInfo, config: Config, input: Source) -> Outcome {
    let default = if info.durable { Confirm::Durable } else { Confirm::Received };
    let confirm = config.confirm.unwrap_or(default);
    // A lane takes what its queue refuses later, or has already: only the confirmation tells.
    let refuses = config.producer.is_some()
        || info.brokered.as_ref().is_some_and(|info| info.overflow == Overflow::Reject);
    let options = ProducerOptions::default()
        .wait(config.wait)
        .window(config.window.map_or(0, |window| window as usize));
    let attached = match &config.producer {
        None => client.brokered_producer(&config.queue, options),
        Some((name, _)) => client.named_producer(&config.queue, name, options),
    };
    let mut producer = attached.map_err(|error| match error {
        // The arguments were checked: this queue has no names.
        ClientError::Refused { code: ErrorCode::Invalid, message } => {
            Failure::new(Exit::Config, format_args!("queue {}: {message}", config.queue))
        }
        error => Failure::queue(&config.queue, error),
    })?;
    if let Some((_, first)) = config.producer
        && !producer.set_next_own_sequence(first)
    {
        return Err(Failure::internal("a producer without the name that was asked for"));
    }
    let mut publisher = Publisher {
        client,
        producer,
        wants_confirmations: confirm == Confirm::Durable || config.receipts || refuses,
        receipts: BufWriter::new(io::stdout()),
        config,
        sent: 0,
        bytes: 0,
        settled: 0,
        duplicates: 0,
        first: None,
        last: None,
        noticed: false,
        quiet_since: None,
        asked: None,
    };
    publisher.publish_all(input)?;
    publisher.summary()
}

struct Publisher {
    client: Client,
    producer: BrokeredProducer,
    config: Config,
    /// Whether the end of the command waits for every confirmation.
    wants_confirmations: bool,
    receipts: BufWriter<io::Stdout>,
    sent: u64,
    bytes: u64,
    /// Messages that are confirmed and, if asked for, printed.
    settled: u64,
    /// Of these, stored before.
    duplicates: u64,
    first: Option<u64>,
    last: Option<u64>,
    noticed: bool,
    /// Since when nothing was confirmed although something is due.
    quiet_since: Option<Instant>,
    /// When the daemon was asked since then.
    asked: Option<Instant>,
}

impl Publisher {
    fn publish_all(&mut self, input: Source) -> Outcome {
        let Source { reader, descriptor } = input;
        let mut lines = Lines::new(reader, self.producer.max_message());
        loop {
            // A confirmation does not wait for the next line.
            while !lines.ready() && self.unsettled() > 0 && !readable(&descriptor)? {
                self.collect(SLICE)?;
            }
            match lines.next(LINES_AT_ONCE) {
                Ok(available) if available.is_empty() => break,
                Ok(available) => available.iter().try_for_each(|payload| self.publish(payload))?,
                Err(error) => {
                    self.finish()?;
                    return Err(bad_input(&self.config.queue, self.sent, &error));
                }
            }
            while self.collect(Duration::ZERO)? {}
        }
        self.finish()
    }

    /// What was sent is in the lane: it arrives, whatever becomes of this process. Whoever wants to know more waits.
    fn finish(&mut self) -> Outcome {
        if !self.wants_confirmations {
            return Ok(());
        }
        while self.unsettled() > 0 {
            self.collect(self.patience())?;
        }
        if let Some((name, _)) = self.config.producer.as_ref().filter(|_| self.duplicates > 0) {
            notice(&format!(
                "{} of {} lines were stored before under the name {name}, and not again",
                self.duplicates, self.settled
            ));
        }
        Ok(())
    }

    /// How long one wait for a confirmation may take: until it is time to look after the daemon, or to give up.
    fn patience(&self) -> Duration {
        let waited = self.quiet_since.map_or(Duration::ZERO, |since| since.elapsed());
        let left = self.config.timeout.map_or(NOTICE_AFTER, |limit| limit.saturating_sub(waited));
        left.clamp(SLICE, NOTICE_AFTER)
    }

    fn unsettled(&self) -> u64 {
        self.sent - self.settled
    }

    /// Sends one message, waiting for room.
    fn publish(&mut self, payload: &[u8]) -> Outcome {
        let start = Instant::now();
        loop {
            // While something is on the way, room comes with its confirmation, which is waited for below.
            let patience = if self.unsettled() == 0 { SLICE } else { Duration::ZERO };
            let sent = match &self.config.metadata {
                Some(metadata) => self.producer.send_message_timeout(metadata, payload, patience),
                None => self.producer.send_timeout(payload, patience),
            };
            match sent {
                Ok(_) => break,
                Err(SendError::Full | SendError::Timeout) => self.wait_for_room(start)?,
                Err(error) => {
                    let metadata = self.config.metadata.as_ref();
                    return Err(self.failed(send_failure(&self.config.queue, metadata, &error)));
                }
            }
        }
        self.sent += 1;
        self.bytes += payload.len() as u64;
        Ok(())
    }

    fn wait_for_room(&mut self, since: Instant) -> Outcome {
        if self.unsettled() > 0 {
            self.collect(SLICE)?;
        }
        match self.config.timeout {
            Some(limit) if since.elapsed() >= limit => Err(self.failed(Failure::new(
                Exit::Temporary,
                format_args!(
                    "queue {} took no message for {}; wait longer with --timeout, or see the daemon's \
                     log",
                    self.config.queue,
                    humantime::format_duration(limit)
                ),
            ))),
            _ => Ok(()),
        }
    }

    /// Takes in what is settled, waiting at most this long for the first; whether there was something.
    fn collect(&mut self, timeout: Duration) -> Outcome<bool> {
        let next = if timeout.is_zero() {
            self.producer.try_next_settled()
        } else {
            self.producer.next_settled(timeout)
        };
        match next {
            Ok(Some(run)) => {
                (self.quiet_since, self.asked) = (None, None);
                self.confirmed(&run)?;
                Ok(true)
            }
            Ok(None) | Err(ConfirmError::Timeout) => {
                self.look_after_daemon(timeout)?;
                Ok(false)
            }
            Err(error) => Err(self.unconfirmed(error)),
        }
    }

    fn confirmed(&mut self, run: &SettledRun) -> Outcome {
        let confirmation = run.result.map_err(|error| self.unconfirmed(error))?;
        let sequences = confirmation.sequence..confirmation.sequence + run.count;
        self.settled += run.count;
        if confirmation.duplicate {
            self.duplicates += run.count;
            return self.print_duplicates(run.count, level_name(confirmation.level));
        }
        self.first.get_or_insert(sequences.start);
        self.last = Some(sequences.end - 1);
        if !self.config.receipts {
            return Ok(());
        }
        let level = level_name(confirmation.level);
        let json = self.config.json;
        let write = || -> io::Result<()> {
            for sequence in sequences {
                if json {
                    let line = format!("{{\"sequence\":{sequence},\"confirmed\":\"{level}\"}}");
                    writeln!(self.receipts, "{line}")?;
                } else {
                    writeln!(self.receipts, "{sequence}")?;
                }
            }
            self.receipts.flush()
        };
        write().map_err(|error| self.receipts_failed(&error))
    }

    fn print_duplicates(&mut self, count: u64, level: &str) -> Outcome {
        if !self.config.receipts {
            return Ok(());
        }
        let json = self.config.json;
        let mut write = || -> io::Result<()> {
            for _ in 0..count {
                if json {
                    let line = format!("{{\"duplicate\":true,\"confirmed\":\"{level}\"}}");
                    writeln!(self.receipts, "{line}")?;
                } else {
                    writeln!(self.receipts, "duplicate")?;
                }
            }
            self.receipts.flush()
        };
        write().map_err(|error| self.receipts_failed(&error))
    }

    /// Whoever wanted the receipts is gone. Unlike with output that nobody wants any more, there is more to publish.
    fn receipts_failed(&self, error: &io::Error) -> Failure {
        let doing = format_args!("cannot write the receipts to stdout: {error}");
        self.failed(Failure::new(Exit::Io, doing))
    }

    /// When confirmations stay away: is there still somebody who could give them, and are they still waited for?
    fn look_after_daemon(&mut self, waited: Duration) -> Outcome {
        if waited.is_zero() || self.unsettled() == 0 {
            return Ok(());
        }
        let now = Instant::now();
        // The wait that has just ended belongs to it.
        let begun = || now.checked_sub(waited).unwrap_or(now);
        let since = *self.quiet_since.get_or_insert_with(begun);
        if let Some(limit) = self.config.timeout
            && self.wants_confirmations
            && now - since >= limit
        {
            return Err(self.unconfirmed_for(limit));
        }
        if now - self.asked.unwrap_or(since) < NOTICE_AFTER || !self.may_ask(now - since) {
            return Ok(());
        }
        self.asked = Some(now);
        let asked = self.client.queue_info(&self.config.queue);
        let info = asked.map_err(|error| self.failed(Failure::queue(&self.config.queue, error)))?;
        if !self.noticed {
            self.noticed = true;
            notice(&why_nothing_is_confirmed(&info));
        }
        Ok(())
    }

    /// Whether the time that is left allows for a question to a daemon that is there and may not answer.
    fn may_ask(&self, waited: Duration) -> bool {
        let left = self.config.timeout.map(|limit| limit.saturating_sub(waited));
        left.is_none_or(|left| left >= ANSWER_LIMIT) || !self.client.is_connected()
    }

    fn unconfirmed_for(&self, limit: Duration) -> Failure {
        Failure::new(
            Exit::Temporary,
            format_args!(
                "queue {} confirmed nothing for {}; {} messages were confirmed, {} more were sent and may still be \
                 stored; wait longer with --timeout, or see the daemon's log",
                self.config.queue,
                humantime::format_duration(limit),
                self.settled,
                self.unsettled()
            ),
        )
    }

    fn unconfirmed(&self, error: ConfirmError) -> Failure {
        let exit = match error {
            ConfirmError::JournalFailed { .. } => Exit::Io,
            ConfirmError::TooLarge { .. }
            | ConfirmError::QueueDeleted
            | ConfirmError::Closed(Closed::Deleted | Closed::Fault) => Exit::Data,
            ConfirmError::Closed(_) | ConfirmError::Lost => Exit::Unavailable,
            ConfirmError::QueueFull | ConfirmError::Fenced => Exit::Temporary,
            _ => Exit::Internal,
        };
        self.failed(Failure::new(exit, format_args!("queue {}: {error}", self.config.queue)))
    }

    /// How far it came.
    fn failed(&self, failure: Failure) -> Failure {
        match failure {
            Failure::Message { exit, message } => Failure::new(
                exit,
                format_args!(
                    "{message}; {} messages were confirmed, {} more were sent",
                    self.settled,
                    self.unsettled()
                ),
            ),
            other => other,
        }
    }

    fn summary(&self) -> Outcome {
        if !self.config.json || self.config.receipts {
            return Ok(());
        }
        let all = self.unsettled() == 0 && self.producer.is_durable();
        let mut summary = json!({
            "queue": self.config.queue,
            "published": self.sent,
            "bytes": self.bytes,
            "confirmed": if all { "durable" } else { "received" },
            "first_sequence": self.first,
            "last_sequence": self.last,
        });
        if self.config.producer.is_some() {
            summary["duplicates"] = self.duplicates.into();
        }
        print_json(&summary)
    }
}

fn why_nothing_is_confirmed(info: &QueueInfo) -> String {
    let queue = &info.name;
    match &info.brokered {
        Some(brokered) if brokered.blocked_producers > 0 => {
            let limit = match brokered.blocked_by.as_str() {
                "max-bytes" => units::bytes(brokered.max_bytes),
                _ => units::messages(brokered.max_messages),
            };
            format!(
                "queue {queue} is full ({}: {limit}): waiting until messages are acknowledged, or 'ringmain queue \
                 edit {queue}' raises the limit",
                brokered.blocked_by
            )
        }
        _ => format!(
            "queue {queue} confirms nothing for now; if its disk is full it goes on as soon as there is \
             room, see the daemon's log"
        ),
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::Durable => "durable",
        _ => "received",
    }
}

/// Whether a read would not wait: there is something, or the end.
fn readable(descriptor: &OwnedFd) -> Outcome<bool> {
    let mut entry = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
    match poll(&mut entry, PollTimeout::ZERO) {
        Ok(ready) => Ok(ready > 0),
        Err(nix::errno::Errno::EINTR) => Ok(false),
        Err(error) => Err(Failure::system("look at the input", error)),
    }
}
