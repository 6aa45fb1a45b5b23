//! A victim that has its side of an mpmc ring to itself stops in front of every step, and loses its bias there; a newcomer of its
//! role, which waits as it must, works while the victim stands at every later step.
//!
//! Processes that are stopped have executed all they had begun, so what the membarrier is there for cannot show here.

use std::sync::atomic::Ordering as Order;

use ringmain_client::protocol::{Kind, Role};
use ringmain_client::ring::{Consumer, Producer, TryReceiveError, TrySendError, bias};
use ringmain_client::sync::step;

use super::world::{
    self, CONSUMER, ONE, PRODUCER, SECOND, THREE, VICTIM, new_consumer, new_producer,
};
use super::{SLOTS, STEPS_MAX};
use crate::arena::{Arena, Outbox};
use crate::child::{self, End};
use crate::runner::{Runner, Size, Tally, guarded};
use crate::structure;

/// Messages of each side that works.
const EACH: u64 = 2;
/// First numbers of the victim's and the newcomer's messages.
const VICTIMS: u64 = 100;
const NEWCOMERS: u64 = 200;

/// What is swept.
#[derive(Debug, Clone, Copy)]
struct Case {
    role: Role,
    /// Payload bytes.
    length: usize,
    /// Slots that are free, or messages that are there, when the victim starts.
    amount: u64,
    /// The newcomer leaves again while the victim is stopped, which gets its bias back.
    back: bool,
}

/// Runs the cases.
pub(super) fn run(runner: &mut Runner, size: Size) {
    let arena = Arena::new(Kind::Mpmc, world::geometry());
    let outbox = Outbox::new();
    let offsets: &[u64] = size.choose(&[0, 62], &[0, 1, 30, 59, 60, 61, 62, 63]);
    for role in [Role::Produce, Role::Consume] {
        for (length, amount) in [(ONE, SLOTS), (ONE, 3), (THREE, SLOTS), (THREE, 10)] {
            for back in [false, true] {
                let case = Case { role, length, amount, back };
                let end = if back { "::back" } else { "" };
                let name = format!("biased::stopped::{role:?}::{length}::{amount}{end}");
                runner.case(&name, |tally| {
                    for offset in offsets {
                        sweep(tally, &arena, &outbox, *offset, case);
                    }
                });
            }
        }
    }
}

fn sweep(tally: &mut Tally, arena: &Arena, outbox: &Outbox, offset: u64, case: Case) {
    for first in 0..STEPS_MAX {
        let mut stops = 0;
        for second in 0..STEPS_MAX {
            if !tally.worth_going_on() {
                return;
            }
            stops = 0;
            let result = guarded(|| one(arena, outbox, offset, case, (first, second), &mut stops));
            let failed = result.is_err();
            tally.check(|| format!("slot {offset} steps {first}, {second}"), result);
            if stops < 2 || failed {
                break;
            }
        }
        if stops == 0 {
            return;
        }
    }
}

fn one(
    arena: &Arena,
    outbox: &Outbox,
    offset: u64,
    case: Case,
    steps: (u32, u32),
    stops: &mut u32,
) -> Result<(), String> {
    let mut expected = prepare(arena, outbox, offset, case)?;
    let memory = &arena.daemon;
    bias::grant(memory, case.role, VICTIM);
    let mut victim = child::spawn(|| {
        let mut worker = Worker::new(arena, case, VICTIM).expect("attach").with_bias();
        step::arm_stops(steps.0, steps.1);
        let numbers = worker.work(case, VICTIMS).expect("the victim's work");
        step::disarm();
        write_down(outbox, &numbers);
    });
    let mut admitted = false;
    let mut numbers: Option<Vec<u64>> = None;
    loop {
        let end = victim.wait_for_stop();
        if let Some(end) = end
            && end != End::Killed
        {
            end.killed()?;
        }
        *stops += u32::from(end.is_none());
        if *stops == 1 && end.is_none() {
            if !bias::revoke(memory, case.role) {
                return Err("the victim had no bias".into());
            }
        } else if *stops == 0 {
            // It ended before its first stop.
            let _ = bias::revoke(memory, case.role);
        }
        if !admitted {
            admitted = bias::holdout(memory, case.role).is_none();
        }
        if admitted && (*stops > 1 || end.is_some()) && numbers.is_none() {
            numbers = Some(Worker::new(arena, case, SECOND)?.work(case, NEWCOMERS)?);
            if case.back && end.is_none() {
                bias::forget_others(memory, case.role, &[VICTIM]);
                bias::grant(memory, case.role, VICTIM);
            }
        }
        if end.is_some() {
            break;
        }
        victim.signal(libc::SIGCONT);
    }
    let numbers = numbers.ok_or("the newcomer waits for a victim that has come to its end")?;
    check(arena, case, &mut expected, &read_down(outbox), &numbers)
}

/// A ring at this offset with some messages in it; their numbers.
fn prepare(arena: &Arena, outbox: &Outbox, offset: u64, case: Case) -> Result<Vec<u64>, String> {
    arena.clear();
    write_down(outbox, &[]);
    let mut producer = new_producer(arena, PRODUCER)?;
    let mut consumer = new_consumer(arena, CONSUMER)?;
    for _ in 0..offset {
        send(&mut producer, 0, ONE)?;
        receive(&mut consumer)?;
    }
    let length = if case.role == Role::Produce { ONE } else { case.length };
    let count = match case.role {
        Role::Produce => SLOTS - case.amount,
        Role::Consume => case.amount.min(2 * EACH),
    };
    (1..=count)
        .map(|number| send(&mut producer, number, length)?.ok_or_else(|| "there is room".into()))
        .collect()
}

/// One handle of either role.
enum Worker {
    Produces(Producer),
    Consumes(Consumer),
}

impl Worker {
    fn new(arena: &Arena, case: Case, handle: u8) -> Result<Self, String> {
        Ok(match case.role {
            Role::Produce => Self::Produces(new_producer(arena, handle)?),
            Role::Consume => Self::Consumes(new_consumer(arena, handle)?),
        })
    }

    fn with_bias(self) -> Self {
        match self {
            Self::Produces(producer) => Self::Produces(producer.with_bias()),
            Self::Consumes(consumer) => Self::Consumes(consumer.with_bias()),
        }
    }

    /// The numbers of what was sent or received.
    fn work(&mut self, case: Case, first: u64) -> Result<Vec<u64>, String> {
        let mut numbers = Vec::new();
        for number in first..first + EACH {
            numbers.extend(match self {
                Self::Produces(producer) => send(producer, number, case.length)?,
                Self::Consumes(consumer) => receive(consumer)?,
            });
        }
        Ok(numbers)
    }
}

fn send(producer: &mut Producer, number: u64, length: usize) -> Result<Option<u64>, String> {
    match producer.try_send(0, &[], &payload(number, length)) {
        Ok(_) => Ok(Some(number)),
        Err(TrySendError::Full) => Ok(None),
        Err(error) => Err(format!("send: {error:?}")),
    }
}

fn receive(consumer: &mut Consumer) -> Result<Option<u64>, String> {
    let taken = match consumer.try_take() {
        Ok(taken) => taken,
        Err(TryReceiveError::Empty) => return Ok(None),
        Err(error) => return Err(format!("take: {error:?}")),
    };
    let mut bytes = vec![0; taken.length()];
    consumer.read(&taken, 0, &mut bytes);
    let number = bytes.first_chunk().map(|first| u64::from_le_bytes(*first));
    let number = number.ok_or_else(|| format!("{taken:?} is none of ours"))?;
    if bytes != payload(number, bytes.len()) || taken.redelivered() {
        return Err(format!("{taken:?} was altered: {bytes:?}"));
    }
    consumer.release(taken);
    Ok(Some(number))
}

fn payload(number: u64, length: usize) -> Vec<u8> {
    let rest = (8..length).map(|at| (number * 31 + at as u64).to_le_bytes()[0]);
    number.to_le_bytes().into_iter().chain(rest).collect()
}

/// What was sent was received once, in the order of each producer.
fn check(
    arena: &Arena,
    case: Case,
    expected: &mut Vec<u64>,
    victims: &[u64],
    newcomers: &[u64],
) -> Result<(), String> {
    structure::check(arena, &[])?;
    let mut received: Vec<u64> = Vec::new();
    let worked = [victims, newcomers].concat();
    match case.role {
        Role::Produce => expected.extend(worked),
        Role::Consume => {
            if !victims.is_sorted() || !newcomers.is_sorted() {
                return Err(format!("received {victims:?} and {newcomers:?}"));
            }
            received = worked;
        }
    }
    let mut consumer = new_consumer(arena, CONSUMER)?;
    let mut rest = Vec::new();
    while let Some(number) = receive(&mut consumer)? {
        rest.push(number);
    }
    for first in [0, VICTIMS, NEWCOMERS] {
        let of: Vec<u64> = rest.iter().copied().filter(|it| it / 100 * 100 == first).collect();
        if !of.is_sorted() {
            return Err(format!("out of order: {of:?}"));
        }
    }
    received.extend(rest);
    received.sort_unstable();
    expected.sort_unstable();
    if received != *expected {
        return Err(format!("received {received:?} of {expected:?}"));
    }
    structure::check(arena, &[])
}

fn write_down(outbox: &Outbox, numbers: &[u64]) {
    outbox.word(0).store(numbers.len() as u64, Order::Relaxed);
    for (index, number) in numbers.iter().enumerate() {
        outbox.word(1 + index).store(*number, Order::Relaxed);
    }
}

fn read_down(outbox: &Outbox) -> Vec<u64> {
    let count = usize::try_from(outbox.word(0).load(Order::Relaxed)).expect("a few numbers");
    (0..count).map(|index| outbox.word(1 + index).load(Order::Relaxed)).collect()
}
