//! `ringmain bench deaths`: how long a queue stands still after a process died that held a slot; on brokered queues, how long the
//! messages of a dead consumer are on their way to another.

pub(crate) mod brokered;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use ringmain_client::raw::layout::PAGE_BYTES;
use ringmain_client::raw::protocol::{Kind, Plane};
use ringmain_client::raw::ring::Region;
use ringmain_client::raw::sync::atomic::{AtomicU64, Ordering};
use ringmain_client::raw::sys::clock::monotonic_ns;
use ringmain_client::raw::sys::map::{Access, Mapping, Populate};
use ringmain_client::raw::sys::memory;
use ringmain_client::{Client, Consumer};
use serde::{Deserialize, Serialize};

use super::queues::Shape;
use crate::cli::Socket;
use crate::cli::args::DeathsArgs;
use crate::cli::crew::{Crew, Member};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::helper::{Order, Parent, Task};
use crate::cli::host::Host;
use crate::cli::output::{Facts, Progress, Style, bar, print, print_json};
use crate::cli::private::PrivateBroker;
use crate::cli::queue::plane_of;
use crate::cli::signals;
use crate::cli::statistics::{Samples, curve};
use crate::cli::units;

/// As few as a ring may have, so that it is full soon after a slot in it is held.
const SLOTS: u32 = 64;

/// Bytes per message: its number.
const SIZE: usize = 8;

/// Added to the numbers of messages that no consumer may ever see.
const NEVER: u64 = 1 << 63;

/// A step of a round that takes this long does not happen any more.
const STEP_LIMIT: Duration = Duration::from_secs(30);

/// How often a step is looked at. Nothing of that is in the figures.
const LOOK: Duration = Duration::from_micros(200);

/// The stopped processes are left alone for this long, so that they are asleep when the kill comes.
const ASLEEP: Duration = Duration::from_millis(2);

/// The keeper starts brokers without a delay as long as no more than this die in the long run; the delay would be measured.
const BROKER_LIFE: Duration = Duration::from_millis(100);

/// On which side of the queue a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Side {
    Send,
    Receive,
}

impl Side {
    const ALL: [Side; 2] = [Side::Send, Side::Receive];
}

/// For a process that goes on.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SurvivorTask {
    side: Side,
    socket: PathBuf,
    queue: String,
    /// Descriptor of the [`Board`].
    board: i32,
}

/// For a process that is killed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct VictimTask {
    side: Side,
    socket: PathBuf,
    queue: String,
    /// What is written into the slot that is never committed.
    number: u64,
}

/// Memory that the survivors share with the parent: a cache line for each.
#[derive(Debug)]
struct Board {
    region: Region,
    // Keeps the region's memory mapped.
    _mapping: Mapping,
}

/// Words of a survivor's line.
#[derive(Debug, Clone, Copy)]
enum Field {
    /// Operations that succeeded.
    Count,
    /// Not zero: the parent asks the process to pause.
    Pause,
    /// Not zero: it pauses.
    Paused,
    /// Zero: the time of the next success is asked for and goes here. Brokered: the time of the last one.
    Success,
    /// Brokered only: the count after which the process looks for a pause.
    Expected,
    /// Brokered only: messages of which the acknowledgement is stored.
    Acknowledged,
}

impl Board {
    fn create() -> Outcome<OwnedFd> {
        memory::create_sealed("ringmain-deaths", PAGE_BYTES)
            .map_err(|error| Failure::system("make shared memory", error))
    }

    fn map(memory: &impl AsFd) -> Outcome<Self> {
        let fail = |error: &dyn std::fmt::Display| Failure::system("map shared memory", error);
        let memory = memory.as_fd();
        memory::verify_sealed(memory, PAGE_BYTES).map_err(|error| fail(&error))?;
        let mapping = Mapping::map(memory, PAGE_BYTES, Access::ReadWrite, Populate::Now)
            .map_err(|error| fail(&error))?;
        // SAFETY: the mapping has this base and length, is page-aligned, writable, sealed against shrinking, and lives
        // as long as the region, which is not cloned out of this struct.
        let region = unsafe { Region::new(mapping.base(), mapping.len()) };
        Ok(Self { region, _mapping: mapping })
    }

    fn inherit(descriptor: i32) -> Outcome<Self> {
        let path = format!("/proc/self/fd/{descriptor}");
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|error| Failure::file(path.as_ref(), "open", &error))?;
        Self::map(&file)
    }

    fn word(&self, side: Side, field: Field) -> &AtomicU64 {
        self.region.u64_at(side as usize * 128 + field as usize * 8)
    }

    // Acquire and Release throughout: what a process did before it wrote a word is done for whoever reads it.
    fn get(&self, side: Side, field: Field) -> u64 {
        self.word(side, field).load(Ordering::Acquire)
    }

    fn set(&self, side: Side, field: Field, value: u64) {
        self.word(side, field).store(value, Ordering::Release);
    }

    /// After each success of a survivor.
    fn succeeded(&self, side: Side, count: u64) {
        if self.get(side, Field::Success) == 0 {
            self.set(side, Field::Success, monotonic_ns());
        }
        self.set(side, Field::Count, count);
        if self.get(side, Field::Pause) != 0 {
            self.set(side, Field::Paused, 1);
            while self.get(side, Field::Pause) != 0 {
                thread::sleep(LOOK);
            }
            self.set(side, Field::Paused, 0);
        }
    }
}

/// Sends or receives until it is killed. The receiver verifies and says the numbers that came again.
pub(crate) fn survive(task: &SurvivorTask, parent: &Parent) -> Outcome {
    let board = Board::inherit(task.board)?;
    let client = Client::connect(&task.socket)?;
    let queue = &task.queue;
    let fail = |error| Failure::queue(queue, error);
    match task.side {
        Side::Send => {
            let mut producer = client.producer(queue).map_err(fail)?;
            parent.wait_for_go()?;
            for number in 1_u64.. {
                let sent = producer.send(&number.to_le_bytes());
                sent.map_err(|error| Failure::send(queue, &error))?;
                board.succeeded(task.side, number);
            }
        }
        Side::Receive => {
            let mut consumer = client.consumer(queue).map_err(fail)?;
            parent.wait_for_go()?;
            let (mut seen, mut buffer) = (Seen::default(), Vec::with_capacity(SIZE));
            for count in 1_u64.. {
                let received = consumer.receive(&mut buffer);
                let received = received.map_err(|error| Failure::receive(queue, &error))?;
                board.succeeded(task.side, count);
                let number = number_in(&buffer)?;
                seen.add(number, received.redelivered)?;
                if received.redelivered {
                    parent.progress(number);
                }
            }
        }
    }
    Ok(())
}

/// What the receiver knows of the numbers.
#[derive(Debug, Default)]
struct Seen {
    last: u64,
    /// Numbers before the last that somebody else must hold.
    missing: Vec<u64>,
}

impl Seen {
    fn add(&mut self, number: u64, redelivered: bool) -> Outcome {
        if number & NEVER != 0 {
            return Err(bad("a message came that was never committed"));
        }
        // Marks are on messages that were held, and those are behind what this process took meanwhile.
        if number > self.last && !redelivered {
            self.missing.extend(self.last + 1..number);
            self.last = number;
            return Ok(());
        }
        let Some(place) = self.missing.iter().position(|missing| *missing == number) else {
            return Err(bad(format_args!("message {number} came twice")));
        };
        self.missing.swap_remove(place);
        if redelivered {
            Ok(())
        } else {
            Err(bad(format_args!("message {number} came again and is not marked as redelivered")))
        }
    }
}

/// Takes or reserves a slot, says which, and waits for its end.
pub(crate) fn hold(task: &VictimTask, parent: &Parent) -> Outcome {
    let client = Client::connect(&task.socket)?;
    let queue = &task.queue;
    let fail = |error| Failure::queue(queue, error);
    match task.side {
        Side::Send => {
            let mut producer = client.producer(queue).map_err(fail)?;
            parent.wait_for_go()?;
            let sending = |error| Failure::send(queue, &error);
            let mut reservation = producer.reserve(SIZE).map_err(sending)?;
            reservation.write(0, &task.number.to_le_bytes()).map_err(sending)?;
            parent.result_is(task.number)?;
            wait_for_the_end();
        }
        Side::Receive => {
            let mut consumer: Consumer = client.consumer(queue).map_err(fail)?;
            parent.wait_for_go()?;
            let receiving = |error| Failure::receive(queue, &error);
            let guard = consumer.take().map_err(receiving)?;
            let mut bytes = Vec::with_capacity(SIZE);
            guard.copy_to(&mut bytes).map_err(receiving)?;
            parent.result_is(number_in(&bytes)?)?;
            wait_for_the_end();
        }
    }
}

fn wait_for_the_end() -> ! {
    loop {
        thread::park();
    }
}

fn number_in(bytes: &[u8]) -> Outcome<u64> {
    let bytes = bytes.try_into().map_err(|_| bad("a message has another length than was sent"))?;
    Ok(u64::from_le_bytes(bytes))
}

fn bad(message: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Data, message)
}

/// What was measured, as it is printed.
#[derive(Debug, Serialize)]
struct Answer {
    bench: &'static str,
    kind: Kind,
    slots: u32,
    kills: u32,
    at_once: u32,
    with_broker: bool,
    rounds: u32,
    kill_to_success_us: Times,
    /// By what the killed processes held.
    consumers_killed_us: Option<Times>,
    producers_killed_us: Option<Times>,
    /// Messages that came again, each once.
    redelivered: u64,
    /// Slots that were reserved and never became messages.
    discarded: u64,
    verified: bool,
    wait: &'static str,
    host: Host,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Times {
    p50: f64,
    p99: f64,
    max: f64,
    samples: u64,
}

impl Times {
    fn new(samples: &Samples) -> Self {
        #[allow(clippy::cast_precision_loss)] // at most an hour, with three digits
        let micros = |nanos: u64| nanos as f64 / 1e3;
        let all = samples.percentiles();
        Self {
            p50: micros(all.p50),
            p99: micros(all.p99),
            max: micros(all.max),
            samples: all.samples,
        }
    }

    fn some(samples: &Samples) -> Option<Self> {
        (samples.count() > 0).then(|| Self::new(samples))
    }

    fn line(&self) -> String {
        format!(
            "p50 {:.0} us, p99 {:.0} us, max {:.0} us ({} rounds)",
            self.p50, self.p99, self.max, self.samples
        )
    }
}

pub(crate) fn run(socket: &Socket, args: &DeathsArgs) -> Outcome {
    let plane = plane_of(args.plane, args.durable)?;
    if Kind::from(args.kind) != Kind::Mpmc {
        return Err(Failure::usage(
            "--kind spsc: nobody goes on next to a member that died; only mpmc is supported",
        ));
    }
    if socket.given().is_some() {
        return Err(Failure::usage(
            "bench deaths kills members and broker, so it only uses a daemon of its own: leave --socket out",
        ));
    }
    signals::catch()?;
    if plane == Plane::Brokered {
        return brokered::run(args);
    }
    let rounds = args.kills.div_ceil(args.at_once);
    let mut bench = Bench::start(args)?;
    let mut samples = Side::ALL.map(|_| Samples::new());
    let mut progress = Progress::new();
    for round in 0..rounds {
        let side = if round % 2 == 0 { Side::Receive } else { Side::Send };
        let nanos = bench.round(side)?;
        samples[side as usize].record(nanos);
        progress.show(|| {
            let share = f64::from(round) / f64::from(rounds);
            format!("killing {} processes {}", rounds * args.at_once, bar(share, 30))
        });
    }
    bench.verify_end()?;
    progress.clear();
    let mut all = samples[0].clone();
    all.add(&samples[1]);
    let [producers, consumers] = &samples;
    let answer = Answer {
        bench: "deaths",
        kind: Kind::Mpmc,
        slots: SLOTS,
        kills: rounds * args.at_once,
        at_once: args.at_once,
        with_broker: args.with_broker,
        rounds,
        kill_to_success_us: Times::new(&all),
        consumers_killed_us: Times::some(consumers),
        producers_killed_us: Times::some(producers),
        redelivered: consumers.count() * u64::from(args.at_once),
        discarded: producers.count() * u64::from(args.at_once),
        verified: true,
        wait: "adaptive",
        host: Host::look(),
    };
    drop(bench);
    if args.format.json { print_json(&answer) } else { print(&text(&answer, &all)) }
}

/// A daemon, a queue, and two processes that use it.
struct Bench {
    board: Board,
    at_once: u32,
    with_broker: bool,
    queue: String,
    never: u64,
    // Dropped in this order: the survivors must not meet a daemon that stops.
    survivors: Crew,
    client: Client,
    broker: PrivateBroker,
}

impl Bench {
    fn start(args: &DeathsArgs) -> Outcome<Self> {
        let broker = PrivateBroker::start()?;
        let client = broker.connect()?;
        let queue = "bench-deaths".to_string();
        let size = u32::try_from(SIZE).unwrap_or(u32::MAX);
        let shape = Shape::new(Kind::Mpmc, SLOTS, None, size)?;
        client.create_queue(&queue, shape.spec())?;
        let memory = Board::create()?;
        let board = Board::map(&memory)?;
        let mut survivors = Crew::new();
        for (side, role) in Side::ALL.into_iter().zip(["sending", "receiving"]) {
            // Nobody has asked for a time yet.
            board.set(side, Field::Success, 1);
            let task = SurvivorTask {
                side,
                socket: broker.socket().to_path_buf(),
                queue: queue.clone(),
                board: memory.as_raw_fd(),
            };
            survivors.start(role, &Task::Survive(task), &[memory.as_raw_fd()])?;
        }
        survivors.wait_ready()?;
        survivors.order_all(Order::Go)?;
        let (at_once, with_broker) = (args.at_once, args.with_broker);
        Ok(Self { board, at_once, with_broker, queue, never: NEVER, survivors, client, broker })
    }

    /// Lets processes hold slots on this side and kills them; returns the time until a survivor went on.
    fn round(&mut self, side: Side) -> Outcome<u64> {
        let start = Instant::now();
        let mut victims = Crew::new();
        let mut members = Vec::new();
        for _ in 0..self.at_once {
            self.never += 1;
            let task = VictimTask {
                side,
                socket: self.broker.socket().to_path_buf(),
                queue: self.queue.clone(),
                number: self.never,
            };
            members.push(victims.start("holding", &Task::Hold(task), &[])?);
        }
        victims.wait_ready()?;
        // While the survivor of their side pauses, the other one fills or empties the ring: there is a slot for each.
        self.board.set(side, Field::Pause, 1);
        self.until("nobody paused", |board| board.get(side, Field::Paused) == 1)?;
        let used = if side == Side::Receive { u64::from(SLOTS) } else { 0 };
        self.until("the ring did not settle", |board| {
            let [sent, received] = counts(board);
            sent.wrapping_sub(received) == used
        })?;
        victims.order_all(Order::Go)?;
        let mut held: Vec<u64> = victims.results(&members, |_, _| {})?;
        // A message is one slot, so what is left to do for the two is known.
        let rest = u64::from(SLOTS - self.at_once);
        let [sent, received] = counts(&self.board);
        let stopped = match side {
            Side::Receive => [sent, received + rest],
            Side::Send => [sent + rest, received],
        };
        self.board.set(side, Field::Pause, 0);
        self.until("nobody was stopped", |board| counts(board) == stopped)?;
        let broker = self.with_broker.then(|| self.client.status()).transpose()?;
        let broker = broker.map(|status| status.broker_pid);
        if broker.is_some() {
            thread::sleep(BROKER_LIFE.saturating_sub(start.elapsed()));
        }
        thread::sleep(ASLEEP);
        let ids: Vec<u32> = broker.into_iter().chain(victims.process_ids()).collect();
        let nanos = self.kill(&ids, stopped)?;
        self.verify(side, &mut held, stopped[0])?;
        if let Some(broker) = broker {
            wait_for_another(&self.client, broker)?;
        }
        Ok(nanos)
    }

    /// Waits for a step of a round.
    fn until(&mut self, otherwise: &str, done: impl Fn(&Board) -> bool) -> Outcome {
        until(&self.board, &mut self.survivors, done, |board| {
            format!("{otherwise}: {:?} messages were sent and received", counts(board))
        })
    }

    /// Kills these processes; returns the time until a survivor, stopped with these counts, went on.
    fn kill(&mut self, ids: &[u32], stopped: [u64; 2]) -> Outcome<u64> {
        for side in Side::ALL {
            self.board.set(side, Field::Success, 0);
        }
        if counts(&self.board) != stopped {
            return Err(bad("a process went on although the slot was still held"));
        }
        let start_ns = kill_all(ids)?;
        let success = |board: &Board| Side::ALL.map(|side| board.get(side, Field::Success));
        self.until("nobody went on after the kill", |board| success(board) != [0, 0])?;
        // The other one may have been first and not have said so yet.
        thread::sleep(LOOK);
        let times = success(&self.board).into_iter().filter(|time| *time != 0);
        let first = times.min().unwrap_or(0);
        first
            .checked_sub(start_ns)
            .ok_or_else(|| bad("a process went on although the slot was still held"))
    }

    /// What was held came again, each message once; what was not committed was passed over.
    fn verify(&mut self, side: Side, held: &mut [u64], sent: u64) -> Outcome {
        // Then every slot that was in use at the kill was passed.
        self.until("not all messages came", |board| counts(board)[1] >= sent)?;
        if side == Side::Send {
            return Ok(());
        }
        came_again(&mut self.survivors, held)
    }

    /// Nothing came again, or at all, that should not have.
    fn verify_end(&mut self) -> Outcome {
        let mut again = 0;
        self.survivors.listen(&mut |_, _| again += 1)?;
        if again == 0 { Ok(()) } else { Err(bad("a message came again that nobody held")) }
    }
}

/// Waits for a step of a round; `otherwise` says what did not happen.
fn until(
    board: &Board,
    others: &mut Crew,
    done: impl Fn(&Board) -> bool,
    otherwise: impl Fn(&Board) -> String,
) -> Outcome {
    let start = Instant::now();
    while !done(board) {
        signals::check()?;
        if start.elapsed() > STEP_LIMIT {
            // If another process failed it says why.
            others.listen(&mut |_, _| {})?;
            let (limit, what) = (STEP_LIMIT.as_secs(), otherwise(board));
            return Err(bad(format_args!("within {limit} s {what}")));
        }
        thread::sleep(LOOK);
    }
    Ok(())
}

/// Each message that was held came again, once, and nothing else.
fn came_again(receiver: &mut Crew, held: &mut [u64]) -> Outcome {
    let mut again = Vec::new();
    let start = Instant::now();
    while again.len() < held.len() && start.elapsed() < STEP_LIMIT {
        receiver.listen(&mut |_: Member, number| again.push(number))?;
    }
    again.sort_unstable();
    held.sort_unstable();
    if again == held {
        Ok(())
    } else {
        Err(bad(format_args!("messages {held:?} were held, {again:?} came again")))
    }
}

/// Waits for the broker that comes after this one.
fn wait_for_another(client: &Client, broker: u32) -> Outcome {
    let start = Instant::now();
    loop {
        signals::check()?;
        match client.status() {
            Ok(status) if status.broker_pid != broker => return Ok(()),
            Err(error) if start.elapsed() > STEP_LIMIT => return Err(error.into()),
            _ if start.elapsed() > STEP_LIMIT => {
                return Err(Failure::internal("the broker was killed and is still there"));
            }
            _ => thread::sleep(LOOK),
        }
    }
}

/// Kills processes that nobody has waited for; returns the time just before.
fn kill_all(ids: &[u32]) -> Outcome<u64> {
    let start_ns = monotonic_ns();
    for id in ids {
        let id = libc::pid_t::try_from(*id).map_err(Failure::internal)?;
        // SAFETY: kill takes no pointer. The holders were not waited for, so their ids are their own; the broker's
        // was read while it ran.
        if unsafe { libc::kill(id, libc::SIGKILL) } != 0 {
            return Err(Failure::system("kill", std::io::Error::last_os_error()));
        }
    }
    Ok(start_ns)
}

/// Messages that were sent and received.
fn counts(board: &Board) -> [u64; 2] {
    Side::ALL.map(|side| board.get(side, Field::Count))
}

fn text(answer: &Answer, all: &Samples) -> String {
    let style = Style::stdout();
    let mut facts = Facts::default();
    facts.add("queue", format!("mpmc, {} slots, {} waiting", answer.slots, answer.wait));
    facts.add("host", answer.host.line());
    facts.add(
        "killed",
        format!(
            "{} processes, {} at once{}",
            answer.kills,
            answer.at_once,
            if answer.with_broker { ", the broker with them" } else { "" }
        ),
    );
    facts.add("kill to success", style.bold(&answer.kill_to_success_us.line()));
    let sides = [
        ("a consumer held", &answer.consumers_killed_us),
        ("a producer held", &answer.producers_killed_us),
    ];
    for (name, times) in sides {
        if let Some(times) = times {
            facts.add(name, times.line());
        }
    }
    facts.add(
        "verified",
        format!(
            "{} messages came again once and marked, {} slots were discarded",
            units::count(answer.redelivered),
            units::count(answer.discarded)
        ),
    );
    facts.render(style) + "\n" + &curve(&[('*', "kill to success", all)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_receiver_notices_what_must_not_be() {
        let mut seen = Seen::default();
        for (number, redelivered) in [(1, false), (4, false), (2, true), (3, true), (5, false)] {
            assert!(seen.add(number, redelivered).is_ok(), "{number}");
        }
        assert!(seen.add(2, true).is_err());
        assert!(seen.add(5, false).is_err());
        assert!(seen.add(NEVER + 1, false).is_err());
        assert!(seen.add(7, false).is_ok());
        assert!(seen.add(6, false).is_err());
    }
}
