//! `ringmain consume`: one line per message, each acknowledged after it was written.

use std::fmt::Write as _;
use std::io;
use std::mem;
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use ringmain_client::raw::protocol::QueueInfo;
use ringmain_client::{Client, Consumer, Guard, HandleOptions, ReceiveError, WaitPolicy};
use serde_json::json;

use super::Socket;
use super::args::{ConsumeArgs, Start};
use super::exit::{Exit, Failure, Outcome};
use super::output::notice;
use super::signals;

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
    from: Option<Start>,
    count: Option<u64>,
    drain: bool,
    format: Format,
    timeout: Option<Duration>,
    wait: WaitPolicy,
}

/// How a message becomes a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Payload,
    WithSequence,
    Json,
}

impl Config {
    pub(crate) fn new(args: ConsumeArgs) -> Self {
        let format = match (args.format.json, args.with_sequence) {
            (true, _) => Format::Json,
            (false, true) => Format::WithSequence,
            (false, false) => Format::Payload,
        };
        Self {
            queue: args.queue,
            group: args.group,
            from: args.from,
            count: args.count,
            drain: args.drain,
            format,
            timeout: args.timeout,
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
        if info.plane != ringmain_client::Plane::Direct {
            return Ok(());
        }
        if self.group.as_deref().is_some_and(|group| group != "default") {
            return refuse("--group", "all of its consumers share one group");
        }
        match self.from {
            None | Some(Start::First) => Ok(()),
            Some(Start::New | Start::Sequence(_)) => {
                refuse("--from", "a consumer gets what is there and what comes")
            }
        }
    }
}

pub(crate) fn run(socket: &Socket, config: Config) -> Outcome {
    let client = socket.connect()?;
    let info =
        client.queue_info(&config.queue).map_err(|error| Failure::queue(&config.queue, error))?;
    config.fits(&info)?;
    let mut consumer = client
        .consumer_with(&config.queue, HandleOptions::with_wait(config.wait))
        .map_err(|error| Failure::queue(&config.queue, error))?;
    signals::catch()?;
    let mut printer = Printer { format: config.format, redelivered: 0, line: Vec::new() };
    let result = consume(&client, &mut consumer, &config, &mut printer);
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
) -> Outcome {
    let mut idle = Idle { since: None, noticed: false };
    let mut left = config.count.unwrap_or(u64::MAX);
    while left > 0 && signals::caught().is_none() {
        let taken = if config.drain { consumer.try_take() } else { consumer.take_timeout(SLICE) };
        let problem = match taken {
            Ok(guard) => {
                printer.print(guard)?;
                left -= 1;
                idle.since = None;
                continue;
            }
            Err(error) => error,
        };
        match problem {
            ReceiveError::Empty | ReceiveError::Timeout => {
                if config.drain && idle.drained(client, &config.queue) {
                    return Ok(());
                }
                idle.check(config)?;
            }
            error => return Err(Failure::receive(&config.queue, &error)),
        }
    }
    Ok(())
}

/// How long nothing came.
struct Idle {
    since: Option<Instant>,
    noticed: bool,
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
    line: Vec<u8>,
}

impl Printer {
    /// Writes the message as one line with one system call, and acknowledges it after that.
    fn print(&mut self, guard: Guard<'_>) -> Outcome {
        self.redelivered += u64::from(guard.redelivered());
        self.render(&guard)?;
        self.line.push(b'\n');
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
            .copy_to(&mut self.line)
            .map_err(|error| Failure::internal(format_args!("cannot copy a message: {error}")))?;
        match self.format {
            Format::Payload => {}
            Format::WithSequence => {
                let prefix = format!("{}\t", guard.sequence());
                self.line.splice(0..0, prefix.into_bytes());
            }
            Format::Json => {
                let document = document(&self.line, guard);
                self.line = document.to_string().into_bytes();
            }
        }
        Ok(())
    }
}

fn document(payload: &[u8], guard: &Guard<'_>) -> serde_json::Value {
    let mut document = json!({
        "sequence": guard.sequence(),
        "redelivered": guard.redelivered(),
    });
    let mut put = |name: &str, bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => document[name] = text.into(),
        Err(_) => document[format!("{name}_hex")] = hex(bytes).into(),
    };
    put("payload", payload);
    if let Ok(metadata) = guard.metadata() {
        if let Some(key) = &metadata.key {
            put("key", key);
        }
        if !metadata.headers.is_empty() {
            let headers = metadata.headers.iter();
            document["headers"] = headers
                .map(|(name, value)| json!([name, String::from_utf8_lossy(value)]))
                .collect();
        }
    }
    document
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Writes past the buffer of the standard library: what returned from here has left the process. A signal that asks the
/// command to stop ends it also while a reader does not read.
fn write_stdout(mut line: &[u8]) -> io::Result<()> {
    let stdout = io::stdout();
    while !line.is_empty() {
        match nix::unistd::write(&stdout, line) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => line = &line[written..],
            Err(Errno::EINTR) if signals::caught().is_none() => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
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
