//! Rings against a model: whatever one thread does with several handles, a queue of vectors does the same.
#![cfg(not(loom))]

mod support;

use std::collections::VecDeque;

use proptest::prelude::*;
use ringmain_client::layout::{Geometry, spsc_page};
use ringmain_client::protocol::{Kind, Role};
use ringmain_client::ring::{
    Closed, Consumer, Producer, Region, RingMemory, Taken, TryReceiveError, TrySendError, bias,
    repair,
};
use ringmain_client::sync::atomic::Ordering;
use support::ring_memory;

/// One step of a program. Numbers are reduced to what exists.
#[derive(Debug, Clone)]
enum Step {
    Send {
        producer: usize,
        metadata: usize,
        payload: usize,
    },
    /// As `Send`; the oldest messages may be dropped for it.
    SendDropping {
        producer: usize,
        payload: usize,
    },
    Batch {
        producer: usize,
        payloads: Vec<usize>,
        dropping: bool,
    },
    Reserve {
        producer: usize,
        payload: usize,
        commit: bool,
    },
    Take {
        consumer: usize,
    },
    /// Releases what the consumer has held longest.
    Release {
        consumer: usize,
    },
    KillProducer {
        producer: usize,
    },
    KillConsumer {
        consumer: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let handle = 0..3usize;
    let length = prop_oneof![0..50usize, 0..900usize];
    prop_oneof![
        4 => (handle.clone(), prop_oneof![Just(0), 0..40usize], length.clone())
            .prop_map(|(producer, metadata, payload)| Step::Send { producer, metadata, payload }),
        4 => (handle.clone(), length.clone())
            .prop_map(|(producer, payload)| Step::SendDropping { producer, payload }),
        2 => (handle.clone(), prop::collection::vec(length, 0..6), any::<bool>())
            .prop_map(|(producer, payloads, dropping)| Step::Batch { producer, payloads, dropping }),
        2 => (handle.clone(), 0..60usize, any::<bool>())
            .prop_map(|(producer, payload, commit)| Step::Reserve { producer, payload, commit }),
        5 => handle.clone().prop_map(|consumer| Step::Take { consumer }),
        4 => handle.clone().prop_map(|consumer| Step::Release { consumer }),
        1 => handle.clone().prop_map(|producer| Step::KillProducer { producer }),
        1 => handle.prop_map(|consumer| Step::KillConsumer { consumer }),
    ]
}

#[derive(Debug, Clone, PartialEq)]
struct Message {
    sequence: u64,
    metadata: Vec<u8>,
    payload: Vec<u8>,
}

/// The rings under test beside the model.
struct World {
    kind: Kind,
    geometry: Geometry,
    memory: RingMemory,
    producers: Vec<Producer>,
    consumers: Vec<Consumer>,
    held: Vec<VecDeque<(Taken, Message)>>,
    /// Sent and not taken, in order.
    waiting: VecDeque<Message>,
    /// Left by dead consumers.
    returned: Vec<Message>,
    /// Where the next claim starts and where the oldest slot in use is, per slot: in use or not.
    used: VecDeque<(u64, u64, bool)>,
    tail: u64,
    dropped: u64,
    filler: u8,
}

fn new_producer(memory: &RingMemory, geometry: Geometry, handle: u8) -> Producer {
    Producer::new(memory.clone(), geometry, handle).expect("producer").with_bias()
}

fn new_consumer(memory: &RingMemory, geometry: Geometry, handle: u8) -> Consumer {
    Consumer::new(memory.clone(), geometry, handle).expect("consumer").with_bias()
}

impl World {
    fn new(kind: Kind, geometry: Geometry, offset: u64) -> Self {
        Self::with_handles(kind, geometry, offset, if kind == Kind::Spsc { 1 } else { 3 })
    }

    /// One of each role has its side to itself.
    fn with_handles(kind: Kind, geometry: Geometry, offset: u64, handles: u8) -> Self {
        let memory = ring_memory(kind, &geometry);
        if handles == 1 {
            bias::grant(&memory, Role::Produce, 1);
            bias::grant(&memory, Role::Consume, 11);
        }
        let producers =
            (0..handles).map(|index| new_producer(&memory, geometry, 1 + index)).collect();
        let consumers =
            (0..handles).map(|index| new_consumer(&memory, geometry, 11 + index)).collect();
        let held = (0..handles).map(|_| VecDeque::new()).collect();
        let mut world = Self {
            kind,
            geometry,
            memory,
            producers,
            consumers,
            held,
            waiting: VecDeque::new(),
            returned: Vec::new(),
            used: VecDeque::new(),
            tail: 0,
            dropped: 0,
            filler: 0,
        };
        for _ in 0..offset {
            world.send(0, 0, 8);
            world.take(0);
            world.release(0);
        }
        world
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        self.filler = self.filler.wrapping_add(41);
        (0..length)
            .map(|at| self.filler.wrapping_add(u8::try_from(at % 251).unwrap_or(0)))
            .collect()
    }

    fn slots_for(&self, metadata: usize, payload: usize) -> u64 {
        self.geometry.slots_for(metadata.next_multiple_of(8) + payload)
    }

    /// Whether `n` slots are free behind the tail: the oldest slot in use decides.
    fn room(&mut self, n: u64) -> bool {
        while self.used.front().is_some_and(|(_, _, in_use)| !in_use) {
            self.used.pop_front();
        }
        let oldest = self.used.front().map_or(self.tail, |(start, _, _)| *start);
        self.tail + n - oldest <= self.geometry.slots()
    }

    fn claim(&mut self, n: u64) -> u64 {
        let position = self.tail;
        self.used.push_back((position, n, true));
        self.tail += n;
        position
    }

    fn unclaim(&mut self, sequence: u64) {
        let entry = self.used.iter_mut().find(|(start, _, _)| *start == sequence);
        entry.expect("a released message was claimed").2 = false;
    }

    /// What a producer does that may drop: if nobody owns one of the `n` slots that come next, everything that the lap before
    /// has left there goes. Whether slots are freed.
    fn make_room(&mut self, n: u64) -> bool {
        if self.room(n) || self.kind == Kind::Spsc {
            return false;
        }
        let end = self.tail + n - self.geometry.slots();
        let in_the_way: Vec<u64> = self
            .used
            .iter()
            .filter(|(start, _, in_use)| *in_use && *start < end)
            .map(|(start, _, _)| *start)
            .collect();
        let owned = in_the_way.iter().any(|sequence| {
            let mut left = self.waiting.iter().chain(&self.returned);
            !left.any(|message| message.sequence == *sequence)
        });
        if owned {
            return false;
        }
        for sequence in in_the_way {
            if self.waiting.front().is_some_and(|message| message.sequence == sequence) {
                let message = self.waiting.pop_front().expect("just looked at");
                self.dropped += u64::from(!Self::is_tombstone(&message));
            } else {
                let at = self.returned.iter().position(|m| m.sequence == sequence);
                self.returned.remove(at.expect("the head has passed it"));
                self.dropped += 1;
            }
            self.unclaim(sequence);
        }
        true
    }

    fn check_dropped(&self) {
        assert_eq!(self.memory.dropped(), self.dropped);
        assert!(self.consumers.iter().all(|consumer| consumer.dropped() == self.dropped));
    }

    fn send_dropping(&mut self, producer: usize, payload: usize) {
        let producer = producer % self.producers.len();
        let payload = self.bytes(payload.min(self.geometry.max_message()));
        let n = self.slots_for(0, payload.len());
        let frees = self.make_room(n);
        let (result, freed) =
            self.producers[producer].dropping(|end| end.try_send(0, &[], &payload));
        assert_eq!(freed, frees);
        if self.room(n) {
            let sequence = self.claim(n);
            assert_eq!(result, Ok(sequence));
            self.waiting.push_back(Message { sequence, metadata: vec![], payload });
        } else {
            assert_eq!(result, Err(TrySendError::Full));
        }
        self.check_dropped();
    }

    fn send(&mut self, producer: usize, metadata: usize, payload: usize) {
        let producer = producer % self.producers.len();
        let (metadata, payload) = (self.bytes(metadata), self.bytes(payload));
        let n = self.slots_for(metadata.len(), payload.len());
        let result = self.producers[producer].try_send(0, &metadata, &payload);
        let fits = n <= u64::from(self.geometry.claim_slots_max())
            && payload.len() <= self.geometry.max_message();
        if !fits {
            assert!(matches!(result, Err(TrySendError::TooLarge { .. })), "{result:?}");
        } else if self.room(n) {
            let sequence = self.claim(n);
            assert_eq!(result, Ok(sequence));
            self.waiting.push_back(Message { sequence, metadata, payload });
        } else {
            assert_eq!(result, Err(TrySendError::Full));
        }
    }

    fn batch(&mut self, producer: usize, lengths: &[usize], dropping: bool) {
        let producer = producer % self.producers.len();
        let payloads: Vec<Vec<u8>> = lengths.iter().map(|length| self.bytes(*length)).collect();
        let views: Vec<&[u8]> = payloads.iter().map(Vec::as_slice).collect();
        let needs: Vec<u64> = lengths.iter().map(|length| self.slots_for(0, *length)).collect();
        let total: u64 = needs.iter().sum();
        let fits = total <= u64::from(self.geometry.claim_slots_max())
            && lengths.iter().all(|length| *length <= self.geometry.max_message());
        let result = if dropping {
            let frees = fits && total > 0 && self.make_room(total);
            let (result, freed) =
                self.producers[producer].dropping(|end| end.try_send_batch(&views));
            assert_eq!(freed, frees);
            self.check_dropped();
            result
        } else {
            self.producers[producer].try_send_batch(&views)
        };
        if !fits {
            assert!(matches!(result, Err(TrySendError::TooLarge { .. })), "{result:?}");
        } else if self.room(total) {
            assert_eq!(result, Ok(self.tail));
            for (payload, n) in payloads.into_iter().zip(needs) {
                let sequence = self.claim(n);
                self.waiting.push_back(Message { sequence, metadata: vec![], payload });
            }
        } else {
            assert_eq!(result, Err(TrySendError::Full));
        }
    }

    fn reserve(&mut self, producer: usize, length: usize, commit: bool) {
        let producer = producer % self.producers.len();
        let payload = self.bytes(length);
        let room = self.room(1);
        let capacity = self.geometry.first_body_bytes().min(self.geometry.max_message());
        let end = &mut self.producers[producer];
        match end.try_reserve(length) {
            Ok(reserved) => {
                assert!(room && length <= capacity && reserved.capacity() == capacity);
                assert!(end.write(&reserved, capacity, &[1]).is_err());
                end.write(&reserved, 0, &payload).expect("within the capacity");
                if commit {
                    let sequence = end.commit(reserved, length);
                    assert_eq!(sequence, self.claim(1));
                    self.waiting.push_back(Message { sequence, metadata: vec![], payload });
                } else {
                    end.abort(reserved);
                    if self.kind == Kind::Mpmc {
                        // A tombstone: in use until a consumer comes by; see `take`.
                        let sequence = self.claim(1);
                        self.waiting.push_back(Message {
                            sequence,
                            metadata: vec![0xdd],
                            payload: vec![0xdd],
                        });
                    }
                }
            }
            Err(TrySendError::Full) => assert!(!room),
            Err(TrySendError::TooLarge { .. }) => assert!(length > capacity),
            Err(other) => panic!("{other:?}"),
        }
    }

    fn is_tombstone(message: &Message) -> bool {
        message.metadata == [0xdd] && message.payload == [0xdd]
    }

    fn take(&mut self, consumer: usize) {
        let consumer = consumer % self.consumers.len();
        let result = self.consumers[consumer].try_take();
        let (taken, expected) = match result {
            Ok(taken) if taken.redelivered() => {
                let at = self.returned.iter().position(|m| m.sequence == taken.sequence());
                let expected = self.returned.remove(at.expect("a message that was returned"));
                (taken, expected)
            }
            Ok(taken) => {
                assert!(self.returned.is_empty(), "returned messages come first");
                self.skip_tombstones();
                (taken, self.waiting.pop_front().expect("a message that was sent"))
            }
            Err(TryReceiveError::Empty) => {
                self.skip_tombstones();
                assert!(self.returned.is_empty() && self.waiting.is_empty());
                return;
            }
            Err(other) => panic!("{other:?}"),
        };
        let mut payload = vec![0; taken.length()];
        let mut metadata = vec![0; taken.metadata_length()];
        assert_eq!(self.consumers[consumer].read(&taken, 0, &mut payload), payload.len());
        self.consumers[consumer].read_metadata(&taken, &mut metadata);
        let got = Message { sequence: taken.sequence(), metadata, payload };
        assert_eq!(got, expected);
        self.held[consumer].push_back((taken, expected));
    }

    fn skip_tombstones(&mut self) {
        while self.waiting.front().is_some_and(Self::is_tombstone) {
            let tombstone = self.waiting.pop_front().expect("just looked at");
            self.unclaim(tombstone.sequence);
        }
    }

    fn release(&mut self, consumer: usize) {
        let consumer = consumer % self.consumers.len();
        if let Some((taken, message)) = self.held[consumer].pop_front() {
            self.consumers[consumer].release(taken);
            self.unclaim(message.sequence);
        }
    }

    /// The handle is gone without a word; the daemon repairs, a successor comes.
    fn kill_producer(&mut self, producer: usize) {
        let producer = producer % self.producers.len();
        let handle = self.producers[producer].handle();
        // Half of the time it dies with a reservation.
        self.filler = self.filler.wrapping_add(1);
        if self.filler.is_multiple_of(2) && self.room(1) {
            let reserved = self.producers[producer].try_reserve(4).expect("there is room");
            drop(reserved);
            if self.kind == Kind::Mpmc {
                let sequence = self.claim(1);
                let (metadata, payload) = (vec![0xdd], vec![0xdd]);
                self.waiting.push_back(Message { sequence, metadata, payload });
            }
        }
        self.repair(handle, Role::Produce);
        self.producers[producer] = new_producer(&self.memory, self.geometry, handle);
    }

    fn kill_consumer(&mut self, consumer: usize) {
        let consumer = consumer % self.consumers.len();
        let handle = self.consumers[consumer].handle();
        let left: Vec<Message> =
            std::mem::take(&mut self.held[consumer]).into_iter().map(|(_, m)| m).collect();
        let report = self.repair(handle, Role::Consume);
        self.consumers[consumer] = new_consumer(&self.memory, self.geometry, handle);
        if self.kind == Kind::Mpmc {
            assert_eq!(report.returned as usize, left.len());
            self.returned.extend(left);
        } else {
            // The successor starts where the dead one had released; checked message by message here.
            for message in left {
                let taken = self.consumers[consumer].try_take().expect("given again");
                assert!(taken.redelivered());
                assert_eq!(taken.sequence(), message.sequence);
                self.held[consumer].push_back((taken, message));
            }
        }
    }

    fn repair(&self, handle: u8, role: Role) -> repair::Report {
        let report = repair::dead_handle(&self.memory, &self.geometry, handle, role);
        let report = report.expect("honest memory");
        let again = repair::dead_handle(&self.memory, &self.geometry, handle, role);
        let again = again.expect("honest memory");
        if self.kind == Kind::Mpmc {
            assert_eq!(again, repair::Report::default(), "a second repair finds nothing");
        }
        assert_eq!(repair::owned_by(&self.memory, &self.geometry, handle, Role::Produce).slots, 0);
        report
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Send { producer, metadata, payload } => self.send(producer, metadata, payload),
            Step::SendDropping { producer, payload } => self.send_dropping(producer, payload),
            Step::Batch { producer, payloads, dropping } => {
                self.batch(producer, &payloads, dropping);
            }
            Step::Reserve { producer, payload, commit } => self.reserve(producer, payload, commit),
            Step::Take { consumer } => self.take(consumer),
            Step::Release { consumer } => self.release(consumer),
            Step::KillProducer { producer } => self.kill_producer(producer),
            Step::KillConsumer { consumer } => self.kill_consumer(consumer),
        }
    }

    /// Everything comes out, and the ring takes a full lap again.
    fn drain(&mut self) {
        for consumer in 0..self.consumers.len() {
            while !self.held[consumer].is_empty() {
                self.release(consumer);
            }
        }
        while !(self.returned.is_empty() && self.waiting.is_empty()) {
            self.take(0);
            self.release(0);
        }
        for _ in 0..self.geometry.slots() {
            self.send(0, 0, 8);
        }
        assert_eq!(self.waiting.len() as u64, self.geometry.slots());
        while !self.waiting.is_empty() {
            self.take(0);
            self.release(0);
        }
    }
}

fn check(kind: Kind, handles: u8, slot_size: u32, offset: u64, steps: Vec<Step>) {
    let geometry = Geometry::new(Some(64), Some(slot_size), None).expect("valid");
    let mut world = World::with_handles(kind, geometry, offset, handles);
    for step in steps {
        world.run(step);
    }
    world.drain();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn spsc_is_a_queue(
        slot_size in prop::sample::select(vec![64, 80, 128, 256]),
        offset in 0..130u64,
        steps in prop::collection::vec(step(), 0..300),
    ) {
        check(Kind::Spsc, 1, slot_size, offset, steps);
    }

    #[test]
    fn mpmc_is_a_queue(
        handles in prop::sample::select(vec![1, 3]),
        slot_size in prop::sample::select(vec![64, 80, 128, 256]),
        offset in 0..130u64,
        steps in prop::collection::vec(step(), 0..300),
    ) {
        check(Kind::Mpmc, handles, slot_size, offset, steps);
    }
}

#[test]
fn what_somebody_owns_is_never_dropped() {
    let geometry = Geometry::new(Some(64), Some(64), None).expect("valid");
    let memory = ring_memory(Kind::Mpmc, &geometry);
    let mut slow = Producer::new(memory.clone(), geometry, 1).expect("attached");
    let mut producer = Producer::new(memory.clone(), geometry, 2).expect("attached");
    let mut consumer = Consumer::new(memory.clone(), geometry, 11).expect("attached");
    let long = [7; 150];
    producer.try_send(0, &[], b"held").expect("room");
    let held = consumer.try_take().expect("a message");
    producer.try_send(0, &[], b"next").expect("room");
    let reserved = slow.try_reserve(8).expect("room");
    while producer.try_send(0, &[], b"more").is_ok() {}
    // Slots of a consumer, of nobody, of a producer that writes, and then of nobody.
    let mut attempt = |payload: &[u8]| producer.dropping(|end| end.try_send(0, &[], payload));
    assert_eq!(attempt(b"x"), (Err(TrySendError::Full), false));
    consumer.release(held);
    assert_eq!(attempt(b"x"), (Ok(64), false));
    assert_eq!(attempt(&long), (Err(TrySendError::Full), false));
    assert_eq!(attempt(b"y"), (Ok(65), true));
    assert_eq!((attempt(b"z"), memory.dropped()), ((Err(TrySendError::Full), false), 1));
    slow.commit(reserved, 8);
    // The message that was written, and two more.
    assert_eq!((attempt(&long), memory.dropped()), ((Ok(66), true), 4));
    let taken = consumer.try_take().expect("a message");
    assert_eq!(taken.sequence(), 5);
    consumer.release(taken);
}

#[test]
fn drops_and_takes_exclude_each_other() {
    const SENDS: u64 = 20_000;
    let geometry = Geometry::new(Some(64), Some(64), None).expect("valid");
    let memory = ring_memory(Kind::Mpmc, &geometry);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let received = std::thread::scope(|scope| {
        let receivers: Vec<_> = [11, 12]
            .map(|handle| {
                let stop = &stop;
                let mut consumer = Consumer::new(memory.clone(), geometry, handle).expect("so");
                scope.spawn(move || {
                    let mut received = Vec::new();
                    loop {
                        // Looked at first: whatever was sent before is still found.
                        let last = stop.load(std::sync::atomic::Ordering::Acquire);
                        match consumer.try_take() {
                            Ok(taken) => {
                                let mut bytes = vec![0; taken.length()];
                                consumer.read(&taken, 0, &mut bytes);
                                consumer.release(taken);
                                let number = u64::from_le_bytes(bytes[..8].try_into().expect("8"));
                                assert!(bytes[8..].iter().all(|byte| *byte == bytes[0]));
                                received.push(number);
                                std::thread::yield_now();
                            }
                            Err(TryReceiveError::Empty) if last => break received,
                            Err(TryReceiveError::Empty) => {}
                            Err(error) => panic!("{error:?}"),
                        }
                    }
                })
            })
            .into_iter()
            .collect();
        let senders: Vec<_> = [1, 2]
            .map(|handle| {
                let mut producer =
                    Producer::new(memory.clone(), geometry, handle).expect("attached");
                scope.spawn(move || {
                    for number in 0..SENDS {
                        let number = number * 2 + u64::from(handle % 2);
                        let mut bytes = number.to_le_bytes().to_vec();
                        bytes.resize(8 + (number % 200) as usize, bytes[0]);
                        let attempt = |end: &mut Producer| end.try_send(0, &[], &bytes);
                        while producer.dropping(attempt).0 == Err(TrySendError::Full) {
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .into_iter()
            .collect();
        senders.into_iter().for_each(|sender| sender.join().expect("sender"));
        stop.store(true, std::sync::atomic::Ordering::Release);
        let lists = receivers.into_iter().map(|receiver| receiver.join().expect("receiver"));
        let lists: Vec<Vec<u64>> = lists.collect();
        for parity in [0, 1] {
            for list in &lists {
                let own: Vec<_> = list.iter().filter(|number| *number % 2 == parity).collect();
                assert!(own.is_sorted_by(|a, b| a < b), "out of order");
            }
        }
        lists.concat()
    });
    let distinct: std::collections::BTreeSet<_> = received.iter().collect();
    assert_eq!(distinct.len(), received.len(), "received twice");
    assert_eq!(received.len() as u64 + memory.dropped(), 2 * SENDS);
}

#[test]
fn every_length_up_to_the_maximum() {
    for kind in [Kind::Spsc, Kind::Mpmc] {
        for slot_size in [64, 80, 256, 1024, 4096] {
            let geometry = Geometry::new(Some(64), Some(slot_size), None).expect("valid");
            let mut world = World::new(kind, geometry, 3);
            let stride = if geometry.max_message() > 5000 { 37 } else { 1 };
            for length in
                (0..=geometry.max_message()).step_by(stride).chain([geometry.max_message()])
            {
                world.send(0, 0, length);
                world.take(0);
                world.release(0);
            }
            world.send(0, 0, geometry.max_message() + 1);
        }
    }
}

#[test]
fn closed_queues_say_so() {
    for kind in [Kind::Spsc, Kind::Mpmc] {
        let geometry = Geometry::new(Some(64), Some(64), None).expect("valid");
        let mut world = World::new(kind, geometry, 0);
        world.send(0, 0, 10);
        repair::close(world.memory.control(), ringmain_client::layout::control::CLOSED_DRAINING);
        let refused = world.producers[0].try_send(0, &[], b"x");
        assert_eq!(refused, Err(TrySendError::Closed(Closed::Draining)));
        world.take(0);
        world.release(0);
        let end = world.consumers[0].try_take().expect_err("drained");
        assert_eq!(end, TryReceiveError::Closed(Closed::Draining));
        repair::close(world.memory.control(), ringmain_client::layout::control::CLOSED_DELETED);
        let end = world.consumers[0].try_take().expect_err("deleted");
        assert_eq!(end, TryReceiveError::Closed(Closed::Deleted));
    }
}

#[test]
fn purge_discards_at_most_what_was_there() {
    for kind in [Kind::Spsc, Kind::Mpmc] {
        let geometry = Geometry::new(Some(64), Some(64), None).expect("valid");
        let mut world = World::new(kind, geometry, 5);
        for _ in 0..20 {
            world.send(0, 0, 100);
        }
        let messages = repair::purge(&world.memory, &geometry, || true).expect("honest memory");
        assert_eq!(messages, 20);
        let (head, tail) = repair::positions(&world.memory, &geometry);
        assert_eq!(head, tail);
    }
}

fn spsc_pages(memory: &RingMemory) -> (&Region, &Region) {
    let RingMemory::Spsc { producer, consumer, .. } = memory else { unreachable!("an spsc ring") };
    (producer, consumer)
}

/// A producer that is stopped or dead between the word of its last message and its own position: the consumer does not
/// wait for the position.
fn spsc_consumed_beyond_the_producers_position() -> (RingMemory, Geometry, Consumer) {
    let geometry = Geometry::new(Some(64), Some(64), None).expect("valid");
    let memory = ring_memory(Kind::Spsc, &geometry);
    let mut producer = Producer::new(memory.clone(), geometry, 1).expect("attached");
    let mut consumer = Consumer::new(memory.clone(), geometry, 2).expect("attached");
    producer.try_send(0, &[], b"before").expect("room");
    let before = producer.position();
    producer.try_send_batch(&[b"one", b"two", b"three"]).expect("room");
    for _ in 0..3 {
        let taken = consumer.try_take().expect("a message");
        consumer.release(taken);
    }
    spsc_pages(&memory).0.u64_at(spsc_page::POSITION).store(before, Ordering::Release);
    (memory, geometry, consumer)
}

#[test]
fn spsc_producer_may_die_behind_its_consumer() {
    let (memory, geometry, mut consumer) = spsc_consumed_beyond_the_producers_position();
    repair::dead_handle(&memory, &geometry, 1, Role::Produce).expect("nobody broke a rule");
    assert_eq!(repair::positions(&memory, &geometry), (3, 4));
    let mut successor = Producer::new(memory.clone(), geometry, 1).expect("attached");
    successor.try_send(0, &[], b"four").expect("room");
    for expected in [&b"three"[..], b"four"] {
        let taken = consumer.try_take().expect("a message");
        let mut bytes = [0; 8];
        let length = consumer.read(&taken, 0, &mut bytes);
        assert_eq!(&bytes[..length], expected);
        consumer.release(taken);
    }
    assert_eq!(consumer.try_take().expect_err("all taken"), TryReceiveError::Empty);
}

#[test]
fn spsc_consumer_may_come_and_die_ahead_of_a_stopped_producer() {
    let (memory, geometry, mut consumer) = spsc_consumed_beyond_the_producers_position();
    let last = consumer.try_take().expect("a message");
    assert!(!last.redelivered());
    repair::dead_handle(&memory, &geometry, 2, Role::Consume).expect("nobody broke a rule");
    let mut successor = Consumer::new(memory.clone(), geometry, 2).expect("attached");
    let again = successor.try_take().expect("the message that the dead one held");
    assert!(again.redelivered(), "the dead one may have seen it");
    successor.release(again);
    Consumer::new(memory, geometry, 2).expect("attached");
}

#[test]
fn spsc_positions_that_no_claim_explains_are_a_fault() {
    let (memory, geometry, ..) = spsc_consumed_beyond_the_producers_position();
    let (_, consumer) = spsc_pages(&memory);
    consumer.u64_at(spsc_page::POSITION).store(64, Ordering::Relaxed);
    for (handle, role) in [(1, Role::Produce), (2, Role::Consume)] {
        assert!(repair::dead_handle(&memory, &geometry, handle, role).is_err());
    }
    assert!(Consumer::new(memory, geometry, 2).is_err());
}

#[test]
fn spsc_successor_owns_nothing_that_it_has_not_looked_at() {
    let geometry = Geometry::new(Some(64), Some(64), None).expect("valid");
    let memory = ring_memory(Kind::Spsc, &geometry);
    let mut producer = Producer::new(memory.clone(), geometry, 1).expect("attached");
    producer.try_send_batch(&[b"one", b"two"]).expect("room");
    let mut dying = Consumer::new(memory.clone(), geometry, 2).expect("attached");
    let _held = dying.try_take().expect("a message");
    repair::dead_handle(&memory, &geometry, 2, Role::Consume).expect("honest memory");
    let mut successor = Consumer::new(memory.clone(), geometry, 3).expect("attached");
    assert_eq!(repair::owned_by(&memory, &geometry, 3, Role::Consume).slots, 0);
    for redelivered in [true, false] {
        let taken = successor.try_take().expect("a message");
        assert_eq!(taken.redelivered(), redelivered);
        successor.release(taken);
    }
}

#[test]
fn producers_that_only_give_up_are_no_fault() {
    let geometry = Geometry::new(Some(1 << 16), Some(64), None).expect("valid");
    let memory = ring_memory(Kind::Mpmc, &geometry);
    let mut consumer = Consumer::new(memory.clone(), geometry, 1).expect("attached");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for handle in 2..5 {
            let stop = &stop;
            let mut producer = Producer::new(memory.clone(), geometry, handle).expect("attached");
            scope.spawn(move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    match producer.try_reserve(8) {
                        Ok(reserved) => producer.abort(reserved),
                        Err(TrySendError::Full) => std::thread::yield_now(),
                        Err(error) => panic!("{error:?}"),
                    }
                }
            });
        }
        let begin = std::time::Instant::now();
        let mut result = Err(TryReceiveError::Empty);
        while begin.elapsed() < std::time::Duration::from_secs(1)
            && matches!(result, Err(TryReceiveError::Empty))
        {
            result = consumer.try_take().map(|taken| taken.sequence());
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(result, Err(TryReceiveError::Empty));
    });
}

#[test]
fn reading_behind_the_end_reads_nothing() {
    for kind in [Kind::Spsc, Kind::Mpmc] {
        let geometry = Geometry::new(Some(64), Some(64), None).expect("valid");
        let memory = ring_memory(kind, &geometry);
        let mut producer = Producer::new(memory.clone(), geometry, 1).expect("attached");
        let mut consumer = Consumer::new(memory, geometry, 2).expect("attached");
        producer.try_send(0, &[1, 0, 0, 0], b"payload").expect("room");
        let taken = consumer.try_take().expect("a message");
        for offset in [7, 8, usize::MAX - 3, usize::MAX] {
            assert_eq!(consumer.read(&taken, offset, &mut [0; 4]), 0);
        }
        consumer.release(taken);
    }
}
