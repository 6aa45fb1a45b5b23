//! `ringmain consume`: one line per message, each acknowledged after it was written.

pub(crate) mod brokered;
pub(crate) mod rendering;

use std::io;
use std::mem;
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use ringmain_client::raw::protocol::{Plane, QueueInfo};
use ringmain_client::{Client, Consumer, Guard, HandleOptions, ReceiveError, StartAt, WaitPolicy};

use super::Socket;
use super::args::ConsumeArgs;
use super::exit::{Exit, Failure, Outcome};
use super::output::notice;
use super::signals;
use rendering::{Format, Shown};

/// How often a waiting consumer looks whether a signal asked it to stop.
const SLICE: Duration = Duration::from_millis(100);

/// How often a draining consumer looks again while a message is claimed and not yet published.
const DRAIN_SLICE: Duration = Duration::from_millis(5);

/// After this long it is worth saying who is waited for.
const NOTICE_AFTER: Duration = Duration::from_secs(1);

/// What a consume command does.
#[derive(Debug)]
pub(crate) struct Config {
    queue: String,
    group: Option<String>,
    from: Option<StartAt>,
    count: Option<u64>,
    drain: bool,
    format: Format,
    timeout: Option<Duration>,
    credit: Option<u32>,
    wait: WaitPolicy,
}

impl Config {
    pub(crate) fn new(args: ConsumeArgs) -> Self {
        let format = Format::new(args.format.json, args.with_sequence);
        Self {
            queue: args.queue,
            group: args.group,
            from: args.from,
            count: args.count,
            drain: args.drain,
            format,
            timeout: args.timeout,
            credit: args.credit,
            wait: args.wait,
        }
    }

    /// Groups and start positions belong to queues that keep their messages.
    fn fits(&self, info: &QueueInfo) -> Outcome {
        let refuse = |flag: &str, why: &str| {
            Err(Failure::new(
                Exit::Config,
                format_args!("queue {} is {}, {why}; leave out {flag}", info.name, info.plane),
            ))
        };
        if info.plane != Plane::Direct {
            return Ok(());
        }
        if self.credit.is_some() {
            return refuse("--credit", "its consumers take one message at a time");
        }
        if self.group.as_deref().is_some_and(|group| group != "default") {
            return refuse("--group", "all of its consumers share one group");
        }
        match self.from {
            None | Some(StartAt::First) => Ok(()),
            Some(_) => refuse("--from", "a consumer gets what is there and what comes"),
        }
    }
}

pub(crate) fn run(socket: &Socket, config: Config) -> Outcome {
    let client = socket.connect()?;
    let info =
        client.queue_info(&config.queue).map_err(|error| Failure::queue(&config.queue, error))?;
    config.fits(&info)?;
    if info.plane == Plane::Brokered {
        return brokered::run(&client, &info, &config);
    }
    let mut consumer = client
        .consumer_with(&config.queue, HandleOptions::with_wait(config.wait))
        .map_err(|error| Failure::queue(&config.queue, error))?;
    signals::catch()?;
    let mut printer =
        Printer { format: config.format, redelivered: 0, payload: Vec::new(), line: Vec::new() };
    let mut gaps = Gaps::default();
    let result = consume(&client, &mut consumer, &config, &mut printer, &mut gaps);
    gaps.add(&config.queue, consumer.take_skipped());
    gaps.tell_sum(&config.queue);
    if printer.redelivered > 0 {
        notice(&format!(
            "{} messages had been given to a consumer that died before it acknowledged them",
            printer.redelivered
        ));
    }
    result
}

fn consume(
    client: &Client,
    consumer: &mut Consumer,
    config: &Config,
    printer: &mut Printer,
    gaps: &mut Gaps,
) -> Outcome {
    let mut idle = Idle { since: None, noticed: false, absence: Absence::default() };
    let mut left = config.count.unwrap_or(u64::MAX);
    while left > 0 && signals::caught().is_none() {
        let taken = if config.drain { consumer.try_take() } else { consumer.take_timeout(SLICE) };
        let printed = taken.map(|guard| printer.print(guard));
        gaps.add(&config.queue, consumer.take_skipped());
        let problem = match printed {
            Ok(printed) => {
                printed?;
                left -= 1;
                idle.since = None;
                idle.absence.over();
                continue;
            }
            Err(error) => error,
        };
        match problem {
            ReceiveError::Empty | ReceiveError::Timeout => {
                if config.drain && idle.drained(client, &config.queue) {
                    return Ok(());
                }
                idle.absence.look(client, &config.queue);
                idle.check(config)?;
            }
            error => return Err(Failure::receive(&config.queue, &error)),
        }
    }
    Ok(())
}

/// Messages that were discarded for room before this consumer's group, or a direct queue's consumers, had them. A gap is told
/// when it is seen first; at the end comes the sum.
#[derive(Default)]
struct Gaps {
    messages: u64,
    told: u64,
}

impl Gaps {
    fn add(&mut self, queue: &str, messages: u64) {
        self.messages += messages;
        if self.messages > 0 && self.told == 0 {
            self.told = self.messages;
            notice(&format!(
                "{} messages were discarded by queue {queue} before they were delivered",
                self.messages
            ));
        }
    }

    fn tell_sum(&self, queue: &str) {
        if self.messages > self.told {
            notice(&format!(
                "{} messages in all were discarded by queue {queue} before they were delivered",
                self.messages
            ));
        }
    }
}

/// How long nothing came.
struct Idle {
    since: Option<Instant>,
    noticed: bool,
    absence: Absence,
}

/// A daemon that is away while nothing comes.
#[derive(Default)]
struct Absence {
    since: Option<Instant>,
    noticed: bool,
}

impl Absence {
    /// Says once when it has been away for a while. Asks nobody: idle costs nothing.
    fn look(&mut self, client: &Client, queue: &str) {
        if client.is_connected() {
            return self.over();
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        if !self.noticed && since.elapsed() >= NOTICE_AFTER {
            self.noticed = true;
            notice(&format!(
                "queue {queue}: its daemon is away; waiting for it to come back, start it with 'ringmain serve' \
                 if it does not"
            ));
        }
    }

    fn over(&mut self) {
        self.since = None;
    }
}

impl Idle {
    fn check(&mut self, config: &Config) -> Outcome {
        let since = *self.since.get_or_insert_with(Instant::now);
        match config.timeout {
            Some(limit) if since.elapsed() >= limit => Err(Failure::new(
                Exit::Temporary,
                format_args!(
                    "no message came from queue {} for {}",
                    config.queue,
                    humantime::format_duration(limit)
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Whether an empty-looking queue is empty: a message that is claimed and not yet published hides those behind it.
    fn drained(&mut self, client: &Client, queue: &str) -> bool {
        // Without the daemon's view, what the ring says must do.
        let Ok(info) = client.queue_info(queue) else {
            return true;
        };
        if info.used_slots == 0 {
            return true;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        if !self.noticed && since.elapsed() >= NOTICE_AFTER {
            self.noticed = true;
            let owner = info.handles.iter().find(|handle| handle.owned_slots > 0);
            let who = owner.map_or_else(String::new, |handle| format!(" (pid {})", handle.pid));
            notice(&format!(
                "waiting for a message of queue {queue} that its producer{who} has begun and not \
                 finished"
            ));
        }
        thread::sleep(DRAIN_SLICE);
        false
    }
}

/// Writes lines.
struct Printer {
    format: Format,
    redelivered: u64,
    payload: Vec<u8>,
    line: Vec<u8>,
}

impl Printer {
    /// Writes the message as one line with one system call, and acknowledges it after that.
    fn print(&mut self, guard: Guard<'_>) -> Outcome {
        self.redelivered += u64::from(guard.redelivered());
        self.render(&guard)?;
        if let Err(error) = write_stdout(&self.line) {
            // Not acknowledged: the process ends while it holds the message, so another consumer gets it.
            mem::forget(guard);
            finish_holding(&error);
        }
        guard.release();
        Ok(())
    }

    fn render(&mut self, guard: &Guard<'_>) -> Outcome {
        guard
            .copy_to(&mut self.payload)
            .map_err(|error| Failure::internal(format_args!("cannot copy a message: {error}")))?;
        let json = self.format == Format::Json;
        let shown = Shown {
            payload: &self.payload,
            sequence: guard.sequence(),
            redelivered: guard.redelivered(),
            metadata: json.then(|| guard.metadata().ok()).flatten(),
            brokered: None,
        };
        self.line.clear();
        shown.render(self.format, &mut self.line);
        Ok(())
    }
}

/// Writes past the buffer of the standard library: what returned from here has left the process. A signal that asks the
/// command to stop ends it also while a reader does not read.
fn write_stdout(line: &[u8]) -> io::Result<()> {
    match write_as_far(line) {
        (_, Some(error)) => Err(error),
        (_, None) => Ok(()),
    }
}

/// As [`write_stdout`]; the bytes that were written before the error.
fn write_as_far(bytes: &[u8]) -> (usize, Option<io::Error>) {
    let stdout = io::stdout();
    let mut done = 0;
    while done < bytes.len() {
        match nix::unistd::write(&stdout, &bytes[done..]) {
            Ok(0) => return (done, Some(io::ErrorKind::WriteZero.into())),
            Ok(written) => done += written,
            Err(Errno::EINTR) if signals::caught().is_none() => {}
            Err(errno) => return (done, Some(errno.into())),
        }
    }
    (done, None)
}

/// Ends the process without giving its handle back, so that the daemon sees a death and gives the message out again.
fn finish_holding(error: &io::Error) -> ! {
    let code = match Failure::stdout(error) {
        // Asked to stop: the message goes to another consumer, and that is all.
        _ if error.kind() == io::ErrorKind::Interrupted => 0,
        Failure::Message { exit, message } => {
            notice(&message);
            exit as i32
        }
        Failure::BrokenPipe | Failure::Signal(_) => 0,
    };
    process::exit(code)
}
