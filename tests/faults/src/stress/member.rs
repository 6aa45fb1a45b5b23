//! One process of a stress case, and the ledger in which all of them write what they did.

use std::cell::Cell;
use std::sync::atomic::Ordering as Order;
use std::time::Duration;

use ringmain_client::protocol::{Kind, Role};
use ringmain_client::ring::{
    Closed, Consumer, Kernel, Producer, Taken, TryReceiveError, TrySendError, bias, sleep_once,
    wake_sleepers,
};
use ringmain_client::sync::atomic::AtomicU32;
use ringmain_client::sys::clock::monotonic_ns;
use ringmain_client::sys::futex;
use ringmain_client::sys::kernel::HostKernel;
use ringmain_client::wait::{Step, Tuner};

use super::Plan;
use crate::arena::{Arena, Outbox};
use crate::random::Random;
use crate::runner::Tally;

/// Longest sleep. Who sleeps so long and then finds something was not woken: others never pause so long.
const SLEEP_MAX: Duration = Duration::from_secs(3);

/// Longest wait for another handle to end its claim: none is stopped so long.
const HOLDOUT_MAX: Duration = Duration::from_secs(10);

/// What a process is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) role: Role,
    pub(super) handle: u8,
    /// Number of this process among all that were started.
    pub(super) life: u64,
    pub(super) messages: u64,
}

/// Payload bytes in front of the random ones: number of the message in the ledger, checksum.
const PREFIX: usize = 16;
/// Most messages of a case.
const MESSAGES_MAX: usize = 1 << 22;

const NEXT: usize = 0;
const STOP: usize = 1;
const LEAVE: usize = 2;
const COMPLAINT: usize = 8;
const COMPLAINT_BYTES: usize = 400;
const FIRST: usize = 64;

/// Shared record of all messages: one word each.
///
/// Bit 0: its send was begun; bit 1: its send returned; bits 8 to 15: times it was received without a mark; bits 16 to 23:
/// times it was received marked as redelivered.
#[derive(Debug)]
pub(super) struct Ledger(Outbox);

const BEGUN: u64 = 1;
const RETURNED: u64 = 2;
const RECEIVED: u64 = 1 << 8;
const AGAIN: u64 = 1 << 16;

impl Ledger {
    pub(super) fn new() -> Self {
        Self(Outbox::with_words(FIRST + MESSAGES_MAX))
    }

    pub(super) fn stop(&self) {
        self.0.word(STOP).store(1, Order::SeqCst);
    }

    /// Whether the handle with this index is to leave; indexes are below 64.
    pub(super) fn set_leaving(&self, handle: u8, leaving: bool) {
        let bit = 1 << handle;
        if leaving {
            self.0.word(LEAVE).fetch_or(bit, Order::SeqCst);
        } else {
            self.0.word(LEAVE).fetch_and(!bit, Order::SeqCst);
        }
    }

    fn is_leaving(&self, handle: u8) -> bool {
        self.0.word(LEAVE).load(Order::Relaxed) >> handle & 1 == 1
    }

    /// Whether there is no room for the number of another message.
    pub(super) fn is_full(&self) -> bool {
        self.0.word(NEXT).load(Order::Relaxed) >= MESSAGES_MAX as u64
    }

    fn stopped(&self) -> bool {
        self.0.word(STOP).load(Order::Relaxed) != 0
    }

    /// The number of a new message, or none when the ledger is full.
    fn begin(&self) -> Option<u64> {
        let number = self.0.word(NEXT).fetch_add(1, Order::Relaxed);
        let index = usize::try_from(number).ok().filter(|index| *index < MESSAGES_MAX)?;
        self.0.word(FIRST + index).fetch_or(BEGUN, Order::SeqCst);
        Some(number)
    }

    fn returned(&self, number: u64) {
        let index = usize::try_from(number).expect("a number that was begun");
        self.0.word(FIRST + index).fetch_or(RETURNED, Order::SeqCst);
    }

    fn received(&self, number: u64, redelivered: bool) -> Result<(), String> {
        let index = usize::try_from(number).ok().filter(|index| *index < MESSAGES_MAX);
        let index = index.ok_or_else(|| format!("message {number} was never sent"))?;
        let add = if redelivered { AGAIN } else { RECEIVED };
        let before = self.0.word(FIRST + index).fetch_add(add, Order::SeqCst);
        if before & BEGUN == 0 {
            return Err(format!("message {number} was never sent"));
        }
        if !redelivered && before >> 8 != 0 {
            return Err(format!("message {number} came twice without a mark"));
        }
        Ok(())
    }

    /// Keeps the first complaint.
    pub(super) fn complain(&self, text: &str) {
        let words = COMPLAINT_BYTES / 8;
        if self.0.word(COMPLAINT).compare_exchange(0, 1, Order::SeqCst, Order::SeqCst).is_err() {
            return;
        }
        for (index, bytes) in text.as_bytes().chunks(8).take(words).enumerate() {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            let value = u64::from_ne_bytes(word);
            self.0.word(COMPLAINT + 1 + index).store(value, Order::SeqCst);
        }
    }

    pub(super) fn complaint(&self) -> String {
        let words = COMPLAINT_BYTES / 8;
        let bytes: Vec<u8> = (0..words)
            .flat_map(|index| self.0.word(COMPLAINT + 1 + index).load(Order::SeqCst).to_ne_bytes())
            .take_while(|byte| *byte != 0)
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Looks for messages that were lost; returns how many arrived.
    pub(super) fn check(&self, tally: &mut Tally) -> u64 {
        let begun = self.0.word(NEXT).load(Order::SeqCst);
        let begun = usize::try_from(begun).map_or(MESSAGES_MAX, |begun| begun.min(MESSAGES_MAX));
        let mut arrived = 0;
        for index in 0..begun {
            let word = self.0.word(FIRST + index).load(Order::SeqCst);
            if word >> 8 != 0 {
                arrived += 1;
            } else if word & RETURNED != 0 {
                tally.check(|| format!("message {index}"), Err("was sent and never came".into()));
            }
        }
        if arrived == 0 {
            tally.check(|| "the case".into(), Err("no message came through".into()));
        }
        arrived
    }
}

/// A kernel that remembers whether the last sleep ended by its time.
pub(super) struct Watching<'a> {
    host: &'a HostKernel,
    timed_out: Cell<bool>,
}

impl<'a> Watching<'a> {
    pub(super) fn new(host: &'a HostKernel) -> Self {
        Self { host, timed_out: Cell::new(false) }
    }

    fn may_be_biased(&self) -> bool {
        self.host.is_membarrier() && self.host.may_park()
    }
}

impl Kernel for Watching<'_> {
    fn heavy_barrier(&self) {
        self.host.heavy_barrier();
    }
    fn light_barrier(&self) {
        self.host.light_barrier();
    }
    fn wait(&self, word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
        let outcome = futex::wait(word, expected, timeout);
        self.timed_out.set(outcome == futex::Outcome::TimedOut);
    }
    fn wake(&self, word: &AtomicU32, count: u32) {
        self.host.wake(word, count);
    }
}

/// Does the job. An error is a violation of what the rings promise.
pub(super) fn run(
    arena: &Arena,
    ledger: &Ledger,
    host: &HostKernel,
    job: Job,
    plan: Plan,
) -> Result<(), String> {
    let kernel = Watching::new(host);
    let mut pace = Pace::new(plan);
    let random =
        Random::new(plan.seed ^ (job.life << 8 | u64::from(job.handle)).wrapping_mul(0x9e37));
    match job.role {
        Role::Produce => produce(arena, ledger, &kernel, job, random, &mut pace),
        Role::Consume => consume(arena, ledger, &kernel, job, random, &mut pace),
    }
}

/// A hash of a message's bytes.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

fn fill(payload: &mut Vec<u8>, number: u64, length: usize, random: &mut Random) {
    payload.clear();
    payload.extend_from_slice(&number.to_ne_bytes());
    payload.extend_from_slice(&[0; 8]);
    let mut value = random.any();
    payload.resize_with(PREFIX + length, || {
        value = value.rotate_left(7).wrapping_mul(5);
        value.to_ne_bytes()[0]
    });
    let sum = checksum(&payload[PREFIX..]) ^ number;
    payload[8..PREFIX].copy_from_slice(&sum.to_ne_bytes());
}

fn number_of(payload: &[u8]) -> Result<u64, String> {
    let word = |at: usize| {
        payload.get(at..at + 8).map(|bytes| u64::from_ne_bytes(bytes.try_into().expect("eight")))
    };
    let (Some(number), Some(sum)) = (word(0), word(8)) else {
        return Err(format!("a message of {} bytes that nobody sent", payload.len()));
    };
    if checksum(&payload[PREFIX..]) ^ number != sum {
        return Err(format!("message {number} was altered ({} bytes)", payload.len()));
    }
    Ok(number)
}

/// How a process waits and works.
#[derive(Debug)]
struct Pace {
    /// Of a process that waits as a handle of the client does. Without, it sleeps at once and dawdles over its work.
    tuner: Option<Tuner>,
}

impl Pace {
    fn new(plan: Plan) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Self { tuner: plan.wait.map(|policy| Tuner::new(policy, cpus)) }
    }

    /// Looks until `attempt` finds something or the policy says to sleep.
    fn spin<T>(&mut self, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
        let tuner = self.tuner.as_mut()?;
        let mut wait = tuner.begin();
        loop {
            let step = wait.next(tuner);
            match step {
                Step::Look => {}
                Step::Pause => std::hint::spin_loop(),
                Step::Clock => wait.clock(monotonic_ns(), step, tuner),
                Step::Yield => {
                    wait.clock(monotonic_ns(), Step::Clock, tuner);
                    std::thread::yield_now();
                    wait.clock(monotonic_ns(), step, tuner);
                }
                Step::Sleep => return None,
            }
            if let Some(found) = attempt() {
                tuner.ended(&wait, monotonic_ns);
                return Some(found);
            }
        }
    }

    /// Now and then a pause, so that the other side catches up and sleeps.
    fn dawdle(&self, random: &mut Random) {
        if self.tuner.is_some() {
            return;
        }
        match random.below(64) {
            0 => std::thread::sleep(Duration::from_micros(random.any() % 200)),
            1 => std::thread::yield_now(),
            2..8 => (0..random.below(500)).for_each(|_| std::hint::spin_loop()),
            _ => {}
        }
    }
}

/// As a new handle of the client does: the handle that had the side to itself may be in the middle of a claim.
fn wait_for_holdout(arena: &Arena, role: Role) -> Result<(), String> {
    let begun = std::time::Instant::now();
    while let Some(handle) = bias::holdout(&arena.daemon, role) {
        if begun.elapsed() > HOLDOUT_MAX {
            return Err(format!("handle {handle} does not end its claim"));
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    Ok(())
}

fn produce(
    arena: &Arena,
    ledger: &Ledger,
    kernel: &Watching,
    job: Job,
    mut random: Random,
    pace: &mut Pace,
) -> Result<(), String> {
    wait_for_holdout(arena, job.role)?;
    let mut producer = Producer::new(arena.producer.clone(), arena.geometry, job.handle)
        .map_err(|fault| format!("attach: {fault}"))?;
    if kernel.may_be_biased() {
        producer = producer.with_bias();
    }
    let leaves = || ledger.stopped() || ledger.is_leaving(job.handle);
    let most = arena.geometry.max_message() - PREFIX;
    let mut payload = Vec::new();
    let mut sent = 0;
    while sent < job.messages && !leaves() {
        let Some(number) = ledger.begin() else {
            return Ok(());
        };
        let length = random.pick(&[0, 20, 40, 90, 150, most]).min(most);
        let length = random.below(length + 1);
        fill(&mut payload, number, length, &mut random);
        let way = random.below(4);
        loop {
            match send(&mut producer, &payload, way) {
                Ok(_) => break,
                Err(TrySendError::Full) if leaves() => return Ok(()),
                Err(TrySendError::Full) => {}
                Err(error) => return Err(format!("send: {error:?}")),
            }
            match pace.spin(|| not_full(send(&mut producer, &payload, way))) {
                Some(Ok(_)) => break,
                Some(Err(error)) => return Err(format!("send: {error:?}")),
                None => {}
            }
            if sleep_for_room(&mut producer, kernel, &payload, way)? {
                break;
            }
        }
        ledger.returned(number);
        kernel.light_barrier();
        if producer.peer_park().any_sleeper() {
            wake_sleepers(producer.peer_park(), kernel, 1);
        }
        sent += 1;
        pace.dawdle(&mut random);
    }
    Ok(())
}

fn not_full(sent: Result<u64, TrySendError>) -> Option<Result<u64, TrySendError>> {
    match sent {
        Err(TrySendError::Full) => None,
        other => Some(other),
    }
}

/// Sleeps once for want of room; whether the message was sent on the way.
fn sleep_for_room(
    producer: &mut Producer,
    kernel: &Watching,
    payload: &[u8],
    way: usize,
) -> Result<bool, String> {
    let park = producer.own_park().clone();
    let handle = producer.handle();
    kernel.timed_out.set(false);
    let found = sleep_once(&park, handle, kernel, Some(SLEEP_MAX), || {
        not_full(send(producer, payload, way))
    });
    match found {
        Some(Ok(_)) if kernel.timed_out.get() => Err("slept although there was room".into()),
        Some(Ok(_)) => Ok(true),
        Some(Err(error)) => Err(format!("send: {error:?}")),
        None => Ok(false),
    }
}

/// Copying, in place, or as a batch of one.
fn send(producer: &mut Producer, payload: &[u8], way: usize) -> Result<u64, TrySendError> {
    match way {
        0 => producer.try_send_batch(&[payload]),
        1 => match producer.try_reserve(payload.len()) {
            Ok(reserved) => {
                producer.write(&reserved, 0, payload).expect("within the reservation");
                Ok(producer.commit(reserved, payload.len()))
            }
            Err(TrySendError::TooLarge { .. }) => producer.try_send(0, &[], payload),
            Err(error) => Err(error),
        },
        _ => producer.try_send(0, &[], payload),
    }
}

fn consume(
    arena: &Arena,
    ledger: &Ledger,
    kernel: &Watching,
    job: Job,
    mut random: Random,
    pace: &mut Pace,
) -> Result<(), String> {
    wait_for_holdout(arena, job.role)?;
    let mut consumer = Consumer::new(arena.consumer.clone(), arena.geometry, job.handle)
        .map_err(|fault| format!("attach: {fault}"))?;
    if kernel.may_be_biased() {
        consumer = consumer.with_bias();
    }
    let mut next = 0;
    let mut payload = Vec::new();
    while !ledger.is_leaving(job.handle) {
        let taken = match consumer.try_take() {
            Err(TryReceiveError::Empty) => match pace.spin(|| not_empty(consumer.try_take())) {
                Some(taken) => taken,
                None => match sleep_for_message(&mut consumer, kernel)? {
                    Some(taken) => taken,
                    None => continue,
                },
            },
            other => other,
        };
        let taken = match taken {
            Ok(taken) => taken,
            Err(TryReceiveError::Closed(Closed::Draining)) => return Ok(()),
            Err(error) => return Err(format!("take: {error:?}")),
        };
        pace.dawdle(&mut random);
        account(arena, ledger, &consumer, &taken, &mut payload, &mut next)?;
        pace.dawdle(&mut random);
        consumer.release(taken);
        kernel.light_barrier();
        if consumer.peer_park().any_sleeper() {
            wake_sleepers(consumer.peer_park(), kernel, u32::MAX);
        }
    }
    Ok(())
}

pub(super) type Answer = Result<Taken, TryReceiveError>;

fn not_empty(taken: Answer) -> Option<Answer> {
    match taken {
        Err(TryReceiveError::Empty) => None,
        other => Some(other),
    }
}

/// Sleeps once for want of a message.
pub(super) fn sleep_for_message(
    consumer: &mut Consumer,
    kernel: &Watching,
) -> Result<Option<Answer>, String> {
    let park = consumer.own_park().clone();
    let handle = consumer.handle();
    kernel.timed_out.set(false);
    let found =
        sleep_once(&park, handle, kernel, Some(SLEEP_MAX), || not_empty(consumer.try_take()));
    if let (Some(Ok(_)), true) = (&found, kernel.timed_out.get()) {
        return Err("slept although there was a message".into());
    }
    Ok(found)
}

fn account(
    arena: &Arena,
    ledger: &Ledger,
    consumer: &Consumer,
    taken: &Taken,
    payload: &mut Vec<u8>,
    next: &mut u64,
) -> Result<(), String> {
    payload.resize(taken.length(), 0);
    consumer.read(taken, 0, payload);
    let number = number_of(payload)?;
    ledger.received(number, taken.redelivered())?;
    let ordered = arena.kind == Kind::Spsc || !taken.redelivered();
    if ordered {
        // The sequence is the order of claims; what one consumer gets from the head only grows.
        if taken.sequence() < *next {
            return Err(format!("position {} after {}", taken.sequence(), *next - 1));
        }
        *next = taken.sequence() + 1;
    }
    Ok(())
}
