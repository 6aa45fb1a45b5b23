//! What a victim does, and what its corpse says about how far it came.

use std::sync::atomic::Ordering as Order;

use ringmain_client::layout::{State, Word};
use ringmain_client::protocol::{Kind, Role};
use ringmain_client::ring::{
    Body, Consumer, Fill, Kernel, Park, Producer, Progress, RingMemory, TryReceiveError,
    TrySendError, View, Visit, bias, progress, repair, sleep_once, wake_sleepers,
};
use ringmain_client::sync::atomic::{AtomicU32, Ordering};
use ringmain_client::sync::step;

use super::world::{ONE, THREE, TWO, World, compare_view, new_consumer, new_producer};
use crate::arena::Outbox;
use crate::child;
use crate::message::Message;
use crate::structure;

/// One operation of one role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A message of this many payload and metadata bytes.
    Send(usize, usize),
    /// The same, and the oldest messages may be dropped for it.
    SendDropping(usize, usize),
    /// Five messages under one claim.
    Batch,
    /// The same, and the oldest messages may be dropped for it.
    BatchDropping,
    /// Five messages under one claim, each in one slot.
    BatchOfSingles,
    /// Five messages of the same length under one claim, written in place.
    BatchInPlace,
    /// A reservation that is written and committed.
    Commit,
    /// A reservation that is given up.
    Abort,
    /// One message: take, read, release.
    Receive,
    /// Up to three messages: take all, read all, release all (mpmc: the last first).
    ReceiveBatch,
    /// Up to three messages that are shown to a visitor: take, read, release each.
    Visit,
    /// One message is taken and read, and never released.
    Hold,
    /// A handle comes into being.
    Attach(Role),
    /// A handle goes: bit and line are cleared.
    Detach(Role),
    /// Sleeps once in the middle of everything.
    Park(Role),
    /// Sends and wakes a consumer that sleeps.
    SendAndWake,
    /// Receives and wakes a producer that sleeps.
    ReceiveAndWake,
    /// The daemon discards everything.
    Purge,
}

/// Payload lengths of a batch.
const BATCH: [usize; 5] = [0, TWO, ONE, THREE, 7];

/// Payload lengths of a batch of messages that take one slot each.
const SINGLES: [usize; 5] = [3, ONE, 0, ONE, 8];

const DONE: usize = 0;
const ENTRIES: usize = 1;
const FIRST_ENTRY: usize = 2;

/// What a victim writes down; what is written is certain, what is not may have happened all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    /// The call returned this position.
    Sent(u64),
    /// The call said that there is no room.
    Full,
    /// The bytes of the message at this position were read and are right.
    Copied(u64),
}

fn note(outbox: &Outbox, entry: Entry) {
    let value = match entry {
        Entry::Sent(position) => position << 2,
        Entry::Full => 1,
        Entry::Copied(position) => position << 2 | 2,
    };
    let count = outbox.word(ENTRIES).load(Order::Relaxed);
    let index = usize::try_from(count).expect("a few entries");
    outbox.word(FIRST_ENTRY + index).store(value, Order::Relaxed);
    outbox.word(ENTRIES).store(count + 1, Order::Relaxed);
}

fn entries(outbox: &Outbox) -> Vec<Entry> {
    let count = usize::try_from(outbox.word(ENTRIES).load(Order::Relaxed)).expect("a few entries");
    (0..count)
        .map(|index| {
            let value = outbox.word(FIRST_ENTRY + index).load(Order::Relaxed);
            match value & 3 {
                0 => Entry::Sent(value >> 2),
                1 => Entry::Full,
                _ => Entry::Copied(value >> 2),
            }
        })
        .collect()
}

/// A kernel for processes that never run at the same time: nothing to order, and nobody wakes a sleeper.
struct Still {
    /// There is a message (or room): whoever sleeps now has missed it.
    must_not_sleep: bool,
}

impl Kernel for Still {
    fn heavy_barrier(&self) {}
    fn light_barrier(&self) {}
    fn wait(&self, word: &AtomicU32, expected: u32, _timeout: Option<std::time::Duration>) {
        let asleep = word.load(Ordering::Relaxed) == expected;
        assert!(!(asleep && self.must_not_sleep), "sleeps though there is something to do");
    }
    fn wake(&self, word: &AtomicU32, _count: u32) {
        // The system call is a step of its own: its caller may die before it.
        word.load(Ordering::Relaxed);
    }
}

/// Compares what it is shown with what was sent, and writes it down.
struct Reader<'a> {
    outbox: &'a Outbox,
    queue: &'a [Message],
}

impl Visit for Reader<'_> {
    fn message(&mut self, message: View<'_>) {
        let position = message.taken().sequence();
        let expected = self.queue.iter().find(|message| message.position == position);
        let expected = expected.expect("the victim gets only what was sent");
        compare_view(message, expected).expect("the victim gets what was sent");
        note(self.outbox, Entry::Copied(position));
    }

    fn may_go_on(&self) -> bool {
        true
    }

    fn given_back(&mut self, _producers: &Park) {}
}

/// Writes what is to be sent in place.
struct Writer<'a>(&'a [Message]);

impl Fill for Writer<'_> {
    fn fill(&mut self, index: usize, body: &mut Body<'_>) {
        body.write(0, &self.0[index].payload()).expect("the length that was asked for");
    }

    fn may_go_on(&self) -> bool {
        true
    }
}

impl Operation {
    /// On which side it works.
    pub fn role(self) -> Role {
        match self {
            Self::Send(..)
            | Self::SendDropping(..)
            | Self::Batch
            | Self::BatchDropping
            | Self::BatchOfSingles
            | Self::BatchInPlace
            | Self::Commit
            | Self::Abort
            | Self::SendAndWake => Role::Produce,
            Self::Attach(role) | Self::Detach(role) | Self::Park(role) => role,
            Self::Receive
            | Self::ReceiveBatch
            | Self::Visit
            | Self::Hold
            | Self::ReceiveAndWake
            | Self::Purge => Role::Consume,
        }
    }

    /// Whether it may drop messages.
    pub fn drops(self) -> bool {
        matches!(self, Self::SendDropping(..) | Self::BatchDropping)
    }

    /// What it would send.
    fn candidates(self, world: &mut World) -> Vec<Message> {
        let lengths: &[(usize, usize)] = match self {
            Self::Send(length, metadata) | Self::SendDropping(length, metadata) => {
                &[(length, metadata)]
            }
            Self::Batch | Self::BatchDropping => &BATCH.map(|length| (length, 0)),
            Self::BatchOfSingles => &SINGLES.map(|length| (length, 0)),
            Self::BatchInPlace => &[(ONE, 0); BATCH.len()],
            Self::Commit | Self::SendAndWake => &[(ONE, 0)],
            _ => &[],
        };
        let mut position = structure::next_claim(world.arena);
        lengths
            .iter()
            .map(|(length, metadata)| {
                let mut message = world.message(*length, *metadata);
                message.position = position;
                let body = metadata.next_multiple_of(8) + length;
                position += world.arena.geometry.slots_for(body);
                message
            })
            .collect()
    }

    /// Runs it in a child that dies at its `steps`-th step, and reads the corpse. Returns whether it came to its end.
    pub fn die(self, world: &mut World, handle: u8, steps: u32) -> Result<bool, String> {
        let candidates = self.candidates(world);
        world.outbox.word(DONE).store(0, Order::Relaxed);
        world.outbox.word(ENTRIES).store(0, Order::Relaxed);
        let dropped = world.arena.daemon.dropped();
        if world.biased {
            bias::grant(&world.arena.daemon, self.role(), handle);
        }
        child::run(|| {
            self.run(world, handle, &candidates, steps);
            step::disarm();
            world.outbox.word(DONE).store(1, Order::Relaxed);
        })
        .killed()?;
        let done = world.outbox.word(DONE).load(Order::Relaxed) == 1;
        self.autopsy(world, candidates, done, dropped)?;
        Ok(done)
    }

    fn run(self, world: &mut World, handle: u8, candidates: &[Message], steps: u32) {
        let spsc = world.arena.kind == Kind::Spsc;
        match (self, self.role()) {
            (Self::Purge, _) => {
                step::arm(steps);
                repair::purge(&world.arena.daemon, &world.arena.geometry, || true).expect("purge");
            }
            (Self::Attach(Role::Produce), _) => {
                step::arm(steps);
                new_producer(world.arena, handle).expect("attach");
            }
            (Self::Attach(Role::Consume), _) => {
                step::arm(steps);
                new_consumer(world.arena, handle).expect("attach");
            }
            (_, Role::Produce) => {
                let mut other = (!spsc).then(|| {
                    let producer = new_producer(world.arena, handle).expect("attach");
                    if world.biased { producer.with_bias() } else { producer }
                });
                let outbox = world.outbox;
                let producer = other.as_mut().unwrap_or(&mut world.producer);
                step::arm(steps);
                self.produce(producer, outbox, candidates);
            }
            (_, Role::Consume) => {
                let mut other = (!spsc).then(|| {
                    let consumer = new_consumer(world.arena, handle).expect("attach");
                    if world.biased { consumer.with_bias() } else { consumer }
                });
                let (outbox, queue) = (world.outbox, &world.queue);
                let consumer = other.as_mut().unwrap_or(&mut world.consumer);
                step::arm(steps);
                self.consume(consumer, outbox, queue, spsc);
            }
        }
    }

    fn produce(self, producer: &mut Producer, outbox: &Outbox, candidates: &[Message]) {
        let kernel = Still { must_not_sleep: false };
        let one = |producer: &mut Producer| {
            let message = &candidates[0];
            producer.try_send(0, &message.metadata_bytes(), &message.payload())
        };
        let batch = |producer: &mut Producer| {
            let payloads: Vec<Vec<u8>> = candidates.iter().map(Message::payload).collect();
            let slices: Vec<&[u8]> = payloads.iter().map(Vec::as_slice).collect();
            producer.try_send_batch(&slices)
        };
        let sent = match self {
            Self::Send(..) | Self::SendAndWake => one(producer),
            Self::SendDropping(..) => producer.dropping(one).0,
            Self::Batch | Self::BatchOfSingles => batch(producer),
            Self::BatchInPlace => producer
                .try_claim_batch(candidates.len(), ONE)
                .map(|batch| producer.fill_batch(batch, &mut Writer(candidates))),
            Self::BatchDropping => producer.dropping(batch).0,
            Self::Commit => producer.try_reserve(ONE).map(|reserved| {
                let payload = candidates[0].payload();
                producer.write(&reserved, 0, &payload).expect("within the reservation");
                producer.commit(reserved, payload.len())
            }),
            Self::Abort => {
                if let Ok(reserved) = producer.try_reserve(ONE) {
                    producer.write(&reserved, 0, b"never seen").expect("within the reservation");
                    producer.abort(reserved);
                }
                return;
            }
            Self::Park(_) => {
                producer.line().set_waiting(producer.position(), 1);
                let park = producer.own_park().clone();
                sleep_once(&park, producer.handle(), &kernel, None, || None::<()>);
                producer.line().clear_waiting();
                return;
            }
            _ => {
                producer.own_park().retract(producer.handle());
                producer.line().clear();
                return;
            }
        };
        match sent {
            Ok(position) => note(outbox, Entry::Sent(position)),
            Err(TrySendError::Full) => note(outbox, Entry::Full),
            Err(error) => panic!("the victim's send: {error:?}"),
        }
        if self == Self::SendAndWake {
            kernel.light_barrier();
            if producer.peer_park().any_sleeper() {
                wake_sleepers(producer.peer_park(), &kernel, 1);
            }
        }
    }

    fn consume(self, consumer: &mut Consumer, outbox: &Outbox, queue: &[Message], spsc: bool) {
        let kernel = Still { must_not_sleep: !queue.is_empty() };
        let mut all = Vec::with_capacity(3);
        let taken = match self {
            Self::Visit => consumer.try_visit(3, &mut Reader { outbox, queue }).map(|_| ()),
            Self::ReceiveBatch => consumer.try_take_batch(&mut all, 3),
            Self::Park(_) => {
                consumer.line().set_waiting(consumer.position(), 1);
                let park = consumer.own_park().clone();
                let handle = consumer.handle();
                let taken = sleep_once(&park, handle, &kernel, None, || consumer.try_take().ok());
                consumer.line().clear_waiting();
                all.extend(taken);
                Ok(())
            }
            Self::Detach(_) => {
                consumer.own_park().retract(consumer.handle());
                consumer.line().clear();
                return;
            }
            _ => consumer.try_take().map(|taken| all.push(taken)),
        };
        match taken {
            Ok(()) => {}
            Err(TryReceiveError::Empty) => return,
            Err(error) => panic!("the victim's take: {error:?}"),
        }
        let mut reader = Reader { outbox, queue };
        for taken in &all {
            reader.message(consumer.view(taken));
        }
        if self == Self::Hold {
            return;
        }
        // An spsc ring is released in the order of taking.
        if !spsc {
            all.reverse();
        }
        for taken in all {
            consumer.release(taken);
        }
        if self == Self::ReceiveAndWake {
            kernel.light_barrier();
            if consumer.peer_park().any_sleeper() {
                wake_sleepers(consumer.peer_park(), &kernel, u32::MAX);
            }
        }
    }

    /// Brings the model up to date with what the memory says right after the death.
    fn autopsy(
        self,
        world: &mut World,
        candidates: Vec<Message>,
        done: bool,
        dropped_before: u64,
    ) -> Result<(), String> {
        let entries = entries(world.outbox);
        let copied = |position| entries.contains(&Entry::Copied(position));
        let drops = self.drops();
        let unread = drops || self == Self::Purge;
        let (mut released, mut taken) = (0, 0);
        let mut left = Vec::new();
        for mut message in std::mem::take(&mut world.queue) {
            let position = message.position;
            match fate(world, position)? {
                Fate::Released => {
                    if !copied(position) && !unread {
                        return Err(format!("position {position} was released before it was read"));
                    }
                    released += 1;
                    continue;
                }
                Fate::Taken => {
                    message.redelivered = true;
                    taken += 1;
                }
                Fate::Waiting if copied(position) => {
                    return Err(format!("position {position} was read without a trace"));
                }
                Fate::Waiting => {}
            }
            left.push(message);
        }
        world.queue = left;
        let counted = world.arena.daemon.dropped() - dropped_before;
        if drops {
            // A message in the hands of the dead may be counted and come all the same.
            let most = released + u64::from(!done && taken > 0);
            if counted < released || counted > most {
                return Err(format!("{released} messages were dropped, {counted} counted"));
            }
            if world.holds() && released > 0 {
                return Err("messages were dropped behind one that a live consumer holds".into());
            }
        } else if counted > 0 {
            return Err(format!("{counted} messages were counted as dropped"));
        }
        let Some(first) = candidates.first() else {
            return Ok(());
        };
        let committed = structure::published(world.arena, first.position);
        let sent = entries.contains(&Entry::Sent(first.position));
        if sent && !committed {
            return Err("a send returned and the message is not there".into());
        }
        if done && !sent && !entries.contains(&Entry::Full) {
            return Err(format!("the send went to another position: {entries:?}"));
        }
        if committed {
            world.queue.extend(candidates);
        }
        Ok(())
    }
}

enum Fate {
    Waiting,
    Taken,
    Released,
}

fn fate(world: &World, position: u64) -> Result<Fate, String> {
    if let RingMemory::Spsc { consumer, .. } = &world.arena.daemon {
        let Progress { released, taken } = progress(consumer);
        if released > position {
            return Ok(Fate::Released);
        }
        return Ok(if taken > position { Fate::Taken } else { Fate::Waiting });
    }
    let word = structure::word(world.arena, position);
    let lap = structure::lap(world.arena, position);
    if word.lap() == (lap + 1) & Word::LAP_MASK {
        return Ok(Fate::Released);
    }
    match word.state() {
        Some(State::Published | State::Returned) if word.lap() == lap => Ok(Fate::Waiting),
        Some(State::Held) if word.lap() == lap => Ok(Fate::Taken),
        _ => Err(format!("the message at position {position} became {word:?}")),
    }
}
