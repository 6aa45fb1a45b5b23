//! `ringmain publish`: one message per line of input.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use ringmain_client::raw::layout::Geometry;
use ringmain_client::raw::layout::metadata::BROKERED_BYTES_MAX;
use ringmain_client::raw::protocol::{Plane, QueueInfo, Role};
use ringmain_client::{
    Client, ClientError, HandleOptions, Metadata, Producer, SendError, WaitPolicy,
};
use serde_json::json;

use super::Socket;
use super::args::{Confirm, PublishArgs};
use super::exit::{Exit, Failure, Outcome};
use super::output::{notice, print_json};
use lines::Lines;

mod brokered;
pub(super) mod lines;

/// Longest key: as long as metadata, less the bytes in front of its only entry.
const KEY_BYTES_MAX: usize = 65_535 - 4;

/// A broker that died is replaced within this time; nobody who answers after it belongs to the rings in use.
const DAEMON_LIMIT: Duration = Duration::from_secs(2);

/// Pause between two attempts to find the daemon.
const DAEMON_PAUSE: Duration = Duration::from_millis(20);

/// After this long without room it is worth a look whether anybody consumes.
const NOTICE_AFTER: Duration = Duration::from_secs(1);

/// A publish command whose arguments fit together.
#[derive(Debug)]
pub(crate) struct Config {
    queue: String,
    input: Input,
    confirm: Option<Confirm>,
    receipts: bool,
    batch: usize,
    window: Option<u32>,
    wait: WaitPolicy,
    timeout: Option<Duration>,
    metadata: Option<Metadata>,
    /// Name, and own sequence of the first line.
    producer: Option<(String, u64)>,
    json: bool,
}

#[derive(Debug)]
enum Input {
    Stdin,
    File(std::path::PathBuf),
}

impl Input {
    fn of(file: &Path) -> Self {
        if file == Path::new("-") { Self::Stdin } else { Self::File(file.to_path_buf()) }
    }
}

impl Config {
    pub(crate) fn new(args: PublishArgs) -> Outcome<Self> {
        let metadata = metadata(&args)?;
        if metadata.is_some() && args.batch > 1 {
            return Err(Failure::usage(
                "--batch sends bare payloads; leave it out when --header, --key, --ttl or --delay is given",
            ));
        }
        if let (Some(ttl), Some(delay)) = (args.ttl, args.delay)
            && ttl <= delay
        {
            return Err(Failure::usage(
                "with a --ttl that is no longer than --delay nobody gets a message",
            ));
        }
        let input = Input::of(&args.file);
        Ok(Self {
            queue: args.queue,
            input,
            confirm: args.confirm,
            receipts: args.receipts,
            batch: args.batch as usize,
            window: args.window,
            wait: args.wait,
            timeout: args.timeout,
            metadata,
            producer: args.producer.map(|name| (name, args.first_sequence.unwrap_or(1))),
            json: args.format.json,
        })
    }
}

fn metadata(args: &PublishArgs) -> Outcome<Option<Metadata>> {
    let times = args.ttl.is_some() || args.delay.is_some();
    if args.header.is_empty() && args.key.is_none() && !times {
        return Ok(None);
    }
    if let Some(key) = args.key.as_ref().filter(|key| key.len() > KEY_BYTES_MAX) {
        return Err(Failure::usage(format_args!(
            "--key has {} bytes, the longest possible has {KEY_BYTES_MAX}",
            key.len()
        )));
    }
    let headers = args.header.iter();
    let metadata = Metadata {
        key: args.key.as_ref().map(|key| key.clone().into_bytes()),
        headers: headers.map(|(name, value)| (name.clone(), value.clone().into_bytes())).collect(),
        ttl: args.ttl,
        delay: args.delay,
        ..Metadata::default()
    };
    match metadata.encode(&mut Vec::new()) {
        Ok(()) => Ok(Some(metadata)),
        Err(error) => Err(Failure::usage(format_args!("--key and --header: {error}"))),
    }
}

/// What a send reports. A message that is too long may be so because of what it has beside its payload.
fn send_failure(queue: &str, metadata: Option<&Metadata>, error: &SendError) -> Failure {
    let (SendError::TooLarge { length, max }, Some(metadata)) = (error, metadata) else {
        return Failure::send(queue, error);
    };
    let mut encoded = Vec::new();
    // It was encoded before.
    let _ = metadata.encode(&mut encoded);
    if encoded.len() > BROKERED_BYTES_MAX && *max == BROKERED_BYTES_MAX {
        let text = format_args!(
            "--key and --header take {length} bytes: a message of a brokered queue carries at most {max} of them; use shorter ones"
        );
        return Failure::new(Exit::Data, text);
    }
    Failure::new(
        Exit::Data,
        format_args!(
            "a message of {length} bytes, {} of them --key and --header: queue {queue} carries at most {max} in \
             all; use a shorter key, or a queue with more or larger slots",
            encoded.len()
        ),
    )
}

pub(crate) fn run(socket: &Socket, config: Config) -> Outcome {
    let input = open(&config.input)?;
    let client = socket.connect()?;
    let info =
        client.queue_info(&config.queue).map_err(|error| Failure::queue(&config.queue, error))?;
    if config.confirm == Some(Confirm::Durable) && !info.durable {
        return Err(Failure::new(
            Exit::Config,
            format_args!(
                "queue {} is not durable; use --confirm received, or make a queue with 'ringmain queue \
                 create --durable'",
                config.queue
            ),
        ));
    }
    if info.plane == Plane::Brokered {
        return brokered::run(client, &info, config, input);
    }
    if config.metadata.as_ref().is_some_and(|one| one.ttl.is_some() || one.delay.is_some()) {
        return Err(Failure::new(
            Exit::Config,
            format_args!(
                "queue {} is direct: it has neither --ttl nor --delay; make one with 'ringmain queue create \
                 --plane brokered'",
                config.queue
            ),
        ));
    }
    if config.window.is_some() {
        return Err(Failure::new(
            Exit::Config,
            format_args!(
                "queue {} is direct: a message is confirmed when it is sent; leave out --window",
                config.queue
            ),
        ));
    }
    if config.producer.is_some() {
        return Err(Failure::new(
            Exit::Config,
            format_args!(
                "queue {} is direct: it remembers no producers; leave out --producer, or make a queue with \
                 'ringmain queue create --plane brokered'",
                config.queue
            ),
        ));
    }
    let producer = client
        .producer_with(&config.queue, HandleOptions::with_wait(config.wait))
        .map_err(|error| Failure::queue(&config.queue, error))?;
    let mut publisher = Publisher::new(client, producer, &info, config)?;
    let result = publisher.publish_all(input.reader);
    publisher.summary(result.is_ok())?;
    result
}

/// What is read, and the descriptor that says whether there is something to read.
pub(super) struct Source {
    pub(super) reader: Box<dyn io::Read>,
    descriptor: OwnedFd,
}

/// The file that `--file` names.
pub(super) fn open_input(file: &Path) -> Outcome<Source> {
    open(&Input::of(file))
}

fn open(input: &Input) -> Outcome<Source> {
    let own = |descriptor: &dyn AsFd| {
        let owned = descriptor.as_fd().try_clone_to_owned();
        owned.map_err(|error| Failure::system("use the input", error))
    };
    Ok(match input {
        Input::Stdin => {
            let stdin = io::stdin().lock();
            Source { descriptor: own(&stdin)?, reader: Box::new(stdin) }
        }
        Input::File(path) => {
            let file = File::open(path).map_err(|error| Failure::file(path, "open", &error))?;
            Source { descriptor: own(&file)?, reader: Box::new(file) }
        }
    })
}

pub(super) fn bad_input(queue: &str, published: u64, error: &lines::Error) -> Failure {
    let before = format!("{published} lines before it were published");
    match error {
        lines::Error::Read(error) => Failure::new(
            Exit::Io,
            format_args!("cannot read line {}: {error}; {before}", published + 1),
        ),
        lines::Error::TooLong { line, max } => Failure::new(
            Exit::Data,
            format_args!(
                "line {line} is longer than the {max} bytes that queue {} takes (see \
                 'queue create --max-message'); the {before}",
                queue
            ),
        ),
    }
}

struct Publisher {
    client: Client,
    producer: Producer,
    geometry: Geometry,
    config: Config,
    receipts: BufWriter<io::Stdout>,
    published: u64,
    bytes: u64,
    first: Option<u64>,
    last: Option<u64>,
    noticed: bool,
    absence_noticed: bool,
}

impl Publisher {
    fn new(client: Client, producer: Producer, info: &QueueInfo, config: Config) -> Outcome<Self> {
        let geometry =
            Geometry::new(Some(info.slots), Some(info.slot_size), Some(info.max_message))
                .map_err(Failure::internal)?;
        Ok(Self {
            client,
            producer,
            geometry,
            config,
            receipts: BufWriter::new(io::stdout()),
            published: 0,
            bytes: 0,
            first: None,
            last: None,
            noticed: false,
            absence_noticed: false,
        })
    }

    fn publish_all(&mut self, input: Box<dyn io::Read>) -> Outcome {
        let mut lines = Lines::new(input, self.producer.max_message());
        loop {
            let available = match lines.next(self.config.batch) {
                Ok(available) => available,
                Err(error) => return Err(self.bad_input(&error)),
            };
            if available.is_empty() {
                return self.confirm_daemon();
            }
            self.publish(&available)?;
        }
    }

    fn bad_input(&self, error: &lines::Error) -> Failure {
        bad_input(&self.config.queue, self.published, error)
    }

    /// Publishes these payloads with one claim if it can, one by one if they are too long for one claim.
    fn publish(&mut self, payloads: &[&[u8]]) -> Outcome {
        if let [payload] = payloads {
            let sequence = self.send(|producer, metadata, timeout| match metadata {
                Some(metadata) => producer.send_message_timeout(metadata, payload, timeout),
                None => producer.send_timeout(payload, timeout),
            })?;
            self.check_daemon()?;
            return self.confirmed(sequence, payload.len());
        }
        let slots: u64 =
            payloads.iter().map(|payload| self.geometry.slots_for(payload.len())).sum();
        if slots > u64::from(self.geometry.claim_slots_max()) {
            return payloads.iter().try_for_each(|payload| self.publish(&[payload]));
        }
        let mut sequence =
            self.send(|producer, _, timeout| producer.send_batch_timeout(payloads, timeout))?;
        self.check_daemon()?;
        for payload in payloads {
            self.confirmed(sequence, payload.len())?;
            // A batch is one claim: the next message begins behind the slots of this one.
            sequence += self.geometry.slots_for(payload.len());
        }
        Ok(())
    }

    /// Waits for room; says so when nobody makes any.
    fn send(
        &mut self,
        send: impl Fn(&mut Producer, Option<&Metadata>, Duration) -> Result<u64, SendError>,
    ) -> Outcome<u64> {
        let mut start: Option<Instant> = None;
        loop {
            let waited = start.map_or(Duration::ZERO, |start| start.elapsed());
            let left = self.config.timeout.map_or(NOTICE_AFTER, |limit| limit - waited.min(limit));
            match send(&mut self.producer, self.config.metadata.as_ref(), left.min(NOTICE_AFTER)) {
                Ok(sequence) => return Ok(sequence),
                Err(SendError::Timeout | SendError::Full) => {}
                Err(error) => return Err(self.failed(&error)),
            }
            let start = start.get_or_insert_with(|| {
                let now = Instant::now();
                now.checked_sub(left.min(NOTICE_AFTER)).unwrap_or(now)
            });
            let waited = start.elapsed();
            if self.config.timeout.is_some_and(|limit| waited >= limit) {
                return Err(Failure::new(
                    Exit::Temporary,
                    format_args!(
                        "queue {} stayed full for {}; {} messages were published; let somebody \
                         consume it, or wait longer with --timeout",
                        self.config.queue,
                        humantime::format_duration(Duration::from_millis(
                            u64::try_from(waited.as_millis()).unwrap_or(u64::MAX)
                        )),
                        self.published
                    ),
                ));
            }
            self.explain_wait();
        }
    }

    /// After each claim. A receipt is a promise that consumers can reach the message: it is not given while nobody knows
    /// whether the queue is still there. Without receipts an absent broker holds up nothing.
    fn check_daemon(&mut self) -> Outcome {
        if self.config.receipts {
            return self.confirm_daemon();
        }
        match self.producer.check_connection() {
            Err(SendError::Closed(_)) => Err(self.daemon_gone()),
            Err(error) => Err(self.failed(&error)),
            Ok(()) => Ok(()),
        }
    }

    /// Waits until a daemon answers that knows the queue, or none does.
    fn confirm_daemon(&self) -> Outcome {
        let start = Instant::now();
        loop {
            match self.producer.confirm_connection() {
                Ok(true) => return Ok(()),
                Ok(false) => return Err(self.daemon_gone()),
                Err(ClientError::Unavailable { .. }) if start.elapsed() < DAEMON_LIMIT => {
                    thread::sleep(DAEMON_PAUSE);
                }
                Err(error @ ClientError::Unavailable { .. }) => {
                    return Err(Failure::new(
                        Exit::Unavailable,
                        format_args!(
                            "the daemon of queue {} is gone: {error}; {} messages were confirmed \
                             before",
                            self.config.queue, self.published
                        ),
                    ));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn daemon_gone(&self) -> Failure {
        Failure::new(
            Exit::Data,
            format_args!(
                "queue {} is gone with its daemon, and its messages with it: another daemon answers \
                 now; {} messages were published before; create the queue again",
                self.config.queue, self.published
            ),
        )
    }

    fn failed(&self, error: &SendError) -> Failure {
        match send_failure(&self.config.queue, self.config.metadata.as_ref(), error) {
            Failure::Message { exit, message } => Failure::new(
                exit,
                format_args!("{message}; {} messages were published", self.published),
            ),
            other => other,
        }
    }

    /// Says once that the queue is full, if nobody consumes it or whoever does is stopped, and once that the daemon is away.
    fn explain_wait(&mut self) {
        let name = &self.config.queue;
        if !self.absence_noticed && !self.client.is_connected() {
            self.absence_noticed = true;
            notice(&format!(
                "queue {name} is full and its daemon is away; waiting for a consumer that is attached to make \
                 room, or for the daemon to come back"
            ));
        }
        if self.noticed {
            return;
        }
        match self.client.queue_info(name) {
            Ok(info) if info.consumers == 0 => {
                self.noticed = true;
                notice(&format!(
                    "queue {name} is full and nobody consumes it; waiting for 'ringmain consume \
                     {name}'"
                ));
            }
            Ok(info) => {
                let mut consumers =
                    info.handles.iter().filter(|handle| handle.role == Role::Consume);
                let first = consumers.clone().next().map(|handle| handle.pid);
                if let Some(pid) = first
                    && consumers.all(|handle| handle.state == "stopped")
                {
                    self.noticed = true;
                    notice(&format!(
                        "queue {name} is full and its consumer (pid {pid}) is stopped; see \
                         'ringmain queue info {name}'"
                    ));
                }
            }
            // The daemon is away, which does not concern the ring.
            Err(_) => {}
        }
    }

    fn confirmed(&mut self, sequence: u64, bytes: usize) -> Outcome {
        self.published += 1;
        self.bytes += bytes as u64;
        self.first.get_or_insert(sequence);
        self.last = Some(sequence);
        if !self.config.receipts {
            return Ok(());
        }
        let line = if self.config.json {
            format!("{{\"sequence\":{sequence},\"confirmed\":\"received\"}}\n")
        } else {
            format!("{sequence}\n")
        };
        self.receipts
            .write_all(line.as_bytes())
            .and_then(|()| self.receipts.flush())
            // Unlike with output that nobody wants any more, there is more to publish.
            .map_err(|error| {
                Failure::new(
                    Exit::Io,
                    format_args!(
                        "cannot write the receipts to stdout: {error}; {} messages were published",
                        self.published
                    ),
                )
            })
    }

    fn summary(&self, complete: bool) -> Outcome {
        if !self.config.json || self.config.receipts || !complete {
            return Ok(());
        }
        print_json(&json!({
            "queue": self.config.queue,
            "published": self.published,
            "bytes": self.bytes,
            "confirmed": "received",
            "first_sequence": self.first,
            "last_sequence": self.last,
        }))
    }
}
