//! `ringmain bench deaths --plane brokered|--durable`: from the death of a consumer until another one has its messages.

use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::thread;
use std::time::Instant;

use ringmain_client::raw::protocol::{Kind, Plane};
use ringmain_client::raw::sys::clock::monotonic_ns;
use ringmain_client::{BrokeredProducer, Client, ConsumerOptions, DeliverySpec, ProducerOptions};
use serde::{Deserialize, Serialize};

use super::{
    ASLEEP, BROKER_LIFE, Board, Field, LOOK, SIZE, STEP_LIMIT, Side, Times, bad, came_again,
    kill_all, number_in, until, wait_for_another, wait_for_the_end,
};
use crate::cli::args::DeathsArgs;
use crate::cli::bench::brokered::file_system;
use crate::cli::bench::queues::Shape;
use crate::cli::crew::Crew;
use crate::cli::exit::{Failure, Outcome};
use crate::cli::helper::{Order, Parent, Task};
use crate::cli::host::Host;
use crate::cli::output::{Facts, Progress, Style, bar, print, print_json};
use crate::cli::private::{PrivateBroker, Storage};
use crate::cli::statistics::{Samples, curve};
use crate::cli::units;

/// Of each ring: one message needs no more.
const SLOTS: u32 = 64;

/// The heir's words are those of the receiving side.
const HEIR: Side = Side::Receive;

/// For the process that gets the messages of the dead.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HeirTask {
    socket: PathBuf,
    queue: String,
    /// Descriptor of the [`Board`].
    board: i32,
}

/// For a process that is killed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HolderTask {
    socket: PathBuf,
    queue: String,
}

/// Attaches when it is told to, receives and acknowledges so many messages asleep in between, and detaches.
pub(crate) fn inherit(task: &HeirTask, parent: &Parent) -> Outcome {
    let board = Board::inherit(task.board)?;
    let client = Client::connect(&task.socket)?;
    let queue = &task.queue;
    parent.wait_for_go()?;
    let mut count = 0;
    loop {
        // While the others take their messages it is not there.
        while board.get(HEIR, Field::Pause) != 0 {
            thread::sleep(LOOK);
        }
        let mut consumer = client
            .brokered_consumer(queue, ConsumerOptions::default())
            .map_err(|error| Failure::queue(queue, error))?;
        board.set(HEIR, Field::Paused, 0);
        while board.get(HEIR, Field::Pause) == 0 {
            let delivery = consumer.receive().map_err(|error| Failure::receive(queue, &error))?;
            board.set(HEIR, Field::Success, monotonic_ns());
            count += 1;
            board.set(HEIR, Field::Count, count);
            if !delivery.redelivered() || delivery.attempt() != 2 {
                return Err(bad(format_args!(
                    "a message of a dead consumer came as attempt {}, redelivered: {}",
                    delivery.attempt(),
                    delivery.redelivered()
                )));
            }
            parent.progress(number_in(delivery.payload())?);
            let acked = consumer.ack_confirmed(&delivery, STEP_LIMIT);
            acked
                .map_err(|error| Failure::internal(format_args!("cannot acknowledge: {error}")))?;
            // The parent asks for a pause as soon as it has seen what it waited for.
            board.set(HEIR, Field::Acknowledged, count);
            while count == board.get(HEIR, Field::Expected) && board.get(HEIR, Field::Pause) == 0 {
                thread::sleep(LOOK);
            }
        }
        drop(consumer);
        board.set(HEIR, Field::Paused, 1);
    }
}

/// Takes a message, says which, and waits for its end.
pub(crate) fn hold(task: &HolderTask, parent: &Parent) -> Outcome {
    let client = Client::connect(&task.socket)?;
    let queue = &task.queue;
    let mut consumer = client
        .brokered_consumer(queue, ConsumerOptions::default().credit(1))
        .map_err(|error| Failure::queue(queue, error))?;
    parent.wait_for_go()?;
    let delivery = consumer.receive().map_err(|error| Failure::receive(queue, &error))?;
    parent.result_is(number_in(delivery.payload())?)?;
    wait_for_the_end();
}

/// What was measured, as it is printed.
#[derive(Debug, Serialize)]
struct Answer {
    bench: &'static str,
    plane: Plane,
    durable: bool,
    kind: Kind,
    kills: u32,
    at_once: u32,
    with_broker: bool,
    rounds: u32,
    /// Until the last of the messages that the dead held was with another consumer.
    kill_to_success_us: Times,
    redelivered: u64,
    verified: bool,
    wait: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_system: Option<String>,
    host: Host,
}

pub(super) fn run(args: &DeathsArgs) -> Outcome {
    let rounds = args.kills.div_ceil(args.at_once);
    let mut bench = Bench::start(args)?;
    let mut samples = Samples::new();
    let mut progress = Progress::new();
    for round in 0..rounds {
        samples.record(bench.round()?);
        progress.show(|| {
            let share = f64::from(round) / f64::from(rounds);
            format!("killing {} consumers {}", rounds * args.at_once, bar(share, 30))
        });
    }
    progress.clear();
    let answer = Answer {
        bench: "deaths",
        plane: Plane::Brokered,
        durable: args.durable,
        kind: Kind::Mpmc,
        kills: rounds * args.at_once,
        at_once: args.at_once,
        with_broker: args.with_broker,
        rounds,
        kill_to_success_us: Times::new(&samples),
        redelivered: u64::from(rounds) * u64::from(args.at_once),
        verified: true,
        wait: "adaptive",
        file_system: bench.broker.data().map(file_system),
        host: Host::look(),
    };
    drop(bench);
    if args.format.json { print_json(&answer) } else { print(&text(&answer, &samples)) }
}

/// A daemon, a queue, and a process that waits for the messages of others.
struct Bench {
    board: Board,
    at_once: u32,
    with_broker: bool,
    queue: String,
    /// Messages published so far; each has its number.
    published: u64,
    // Dropped in this order: nobody must meet a daemon that stops.
    heir: Crew,
    producer: BrokeredProducer,
    client: Client,
    broker: PrivateBroker,
}

impl Bench {
    fn start(args: &DeathsArgs) -> Outcome<Self> {
        let broker = match args.durable {
            true => PrivateBroker::durable(&Storage::default())?,
            false => PrivateBroker::start()?,
        };
        let client = broker.connect()?;
        let queue = "bench-deaths".to_string();
        let size = u32::try_from(SIZE).unwrap_or(u32::MAX);
        let mut spec = Shape::new(Kind::Mpmc, SLOTS, None, size)?.spec();
        (spec.plane, spec.durable) = (Some(Plane::Brokered), args.durable);
        // Nothing but a death brings a message back.
        spec.delivery = DeliverySpec { lease_ms: Some(0), ..DeliverySpec::default() };
        client.create_queue(&queue, spec)?;
        let producer = client
            .brokered_producer(&queue, ProducerOptions::default())
            .map_err(|error| Failure::queue(&queue, error))?;
        let memory = Board::create()?;
        let board = Board::map(&memory)?;
        board.set(HEIR, Field::Pause, 1);
        board.set(HEIR, Field::Paused, 1);
        let mut heir = Crew::new();
        let task = HeirTask {
            socket: broker.socket().to_path_buf(),
            queue: queue.clone(),
            board: memory.as_raw_fd(),
        };
        heir.start("inheriting", &Task::Inherit(task), &[memory.as_raw_fd()])?;
        heir.wait_ready()?;
        heir.order_all(Order::Go)?;
        let (at_once, with_broker) = (args.at_once, args.with_broker);
        Ok(Self {
            board,
            at_once,
            with_broker,
            queue,
            published: 0,
            heir,
            producer,
            client,
            broker,
        })
    }

    /// Lets processes hold a message each and kills them; returns the time until another consumer had all of them.
    fn round(&mut self) -> Outcome<u64> {
        let start = Instant::now();
        let mut holders = Crew::new();
        let mut members = Vec::new();
        for _ in 0..self.at_once {
            let task = HolderTask {
                socket: self.broker.socket().to_path_buf(),
                queue: self.queue.clone(),
            };
            members.push(holders.start("holding", &Task::HoldMessage(task), &[])?);
        }
        holders.wait_ready()?;
        holders.order_all(Order::Go)?;
        for _ in 0..self.at_once {
            self.published += 1;
            let sent = self.producer.send(&self.published.to_le_bytes());
            sent.map_err(|error| Failure::send(&self.queue, &error))?;
        }
        let confirmed = self.producer.wait_all_timeout(STEP_LIMIT);
        confirmed.map_err(|error| Failure::internal(format_args!("not confirmed: {error}")))?;
        let mut held: Vec<u64> = holders.results(&members, |_, _| {})?;
        let before = self.board.get(HEIR, Field::Count);
        let expected = before + u64::from(self.at_once);
        self.board.set(HEIR, Field::Expected, expected);
        self.board.set(HEIR, Field::Pause, 0);
        self.until("nobody attached", |board| board.get(HEIR, Field::Paused) == 0)?;
        let broker = self.with_broker.then(|| self.client.status()).transpose()?;
        let broker = broker.map(|status| status.broker_pid);
        if broker.is_some() {
            thread::sleep(BROKER_LIFE.saturating_sub(start.elapsed()));
        }
        thread::sleep(ASLEEP);
        if self.board.get(HEIR, Field::Count) != before {
            return Err(bad("a message came to another consumer while it was held"));
        }
        let ids: Vec<u32> = broker.into_iter().chain(holders.process_ids()).collect();
        let start_ns = kill_all(&ids)?;
        self.until("the messages did not come", |board| {
            board.get(HEIR, Field::Acknowledged) == expected
        })?;
        let nanos = self.board.get(HEIR, Field::Success).saturating_sub(start_ns);
        self.board.set(HEIR, Field::Pause, 1);
        self.until("nobody detached", |board| board.get(HEIR, Field::Paused) == 1)?;
        came_again(&mut self.heir, &mut held)?;
        if let Some(broker) = broker {
            wait_for_another(&self.client, broker)?;
        }
        Ok(nanos)
    }

    /// Waits for a step of a round.
    fn until(&mut self, otherwise: &str, done: impl Fn(&Board) -> bool) -> Outcome {
        until(&self.board, &mut self.heir, done, |_| otherwise.to_string())
    }
}

fn text(answer: &Answer, samples: &Samples) -> String {
    let style = Style::stdout();
    let mut facts = Facts::default();
    let what = if answer.durable { "durable" } else { "brokered, in memory" };
    facts.add("queue", format!("{what}, {} waiting", answer.wait));
    if let Some(file_system) = &answer.file_system {
        facts.add("file system", file_system);
    }
    facts.add("host", answer.host.line());
    facts.add(
        "killed",
        format!(
            "{} consumers, {} at once{}",
            answer.kills,
            answer.at_once,
            if answer.with_broker { ", the broker with them" } else { "" }
        ),
    );
    facts.add("kill to receipt", style.bold(&answer.kill_to_success_us.line()));
    facts.add(
        "verified",
        format!("{} messages came again once and marked", units::count(answer.redelivered)),
    );
    facts.render(style) + "\n" + &curve(&[('*', "kill to receipt", samples)])
}
