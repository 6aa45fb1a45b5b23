//! One thing at a time.

use ringmain_client::layout::metadata::Metadata;
use ringmain_client::protocol::Kind;
use ringmain_client::wire::{LeaseToken, Outcome, Up};

use super::memory::{Event, MemoryLog, MemoryPort, at_ms, definition, handle};
use crate::shard::logic::{
    ConsumerSpec, ControlResult, HandleId, Logic, QueueDefinition, Refusal, Snapshot, StartAt,
    headers,
};

pub(super) struct World {
    pub(super) logic: Logic,
    pub(super) log: MemoryLog,
    pub(super) port: MemoryPort,
    pub(super) ms: u64,
    position: u64,
}

pub(super) fn consumer(credit: u32) -> ConsumerSpec {
    ConsumerSpec {
        group: String::new(),
        from: StartAt::First,
        credit,
        leases: 64,
        browse: false,
        adopted: false,
    }
}

impl World {
    pub(super) fn new(definitions: &[QueueDefinition]) -> Self {
        let mut logic = Logic::new(7);
        logic.start(at_ms(0));
        let (log, port) = (MemoryLog::default(), MemoryPort::default());
        let mut world = Self { logic, log, port, ms: 0, position: 0 };
        for definition in definitions {
            world.logic.create_queue(&mut world.log, definition.id, definition.clone());
        }
        let events = world.turn();
        assert_eq!(events.len(), definitions.len());
        for event in events {
            assert!(
                matches!(event, Event::Control { result: ControlResult::Done, .. }),
                "{event:?}"
            );
        }
        world
    }

    /// One turn with a disk that is done at once.
    pub(super) fn turn(&mut self) -> Vec<Event> {
        let now = at_ms(self.ms);
        self.logic.on_time(&mut self.port, now);
        loop {
            self.logic.flush(&mut self.log);
            self.logic.on_durable(self.log.last(), &mut self.port, &mut self.log, now);
            let last = self.log.last();
            let more = self.logic.dispatch(&mut self.log, &mut self.port, now);
            if !more && last == self.log.last() {
                break;
            }
        }
        std::mem::take(&mut self.port.events)
    }

    pub(super) fn producer(&mut self, queue: u64) -> HandleId {
        let producer = handle(queue, 1);
        self.logic.open_producer(producer, 77).expect("queue");
        producer
    }

    pub(super) fn consumer(&mut self, queue: u64, number: u8, spec: &ConsumerSpec) -> HandleId {
        let consumer = handle(queue, number);
        self.logic.open_consumer(&mut self.log, consumer, spec).expect("queue");
        consumer
    }

    pub(super) fn send(&mut self, producer: HandleId, payload: &[u8]) {
        self.send_with(producer, &[], payload);
    }

    pub(super) fn send_with(&mut self, producer: HandleId, metadata: &[u8], payload: &[u8]) {
        let position = self.position;
        self.position += 2;
        let now = at_ms(self.ms);
        self.logic
            .publish(&mut self.log, producer, position, position + 2, 0, metadata, payload, now)
            .expect("room");
    }

    pub(super) fn up(&mut self, consumer: HandleId, up: Up) {
        let now = at_ms(self.ms);
        self.logic.submission(&mut self.port, consumer, up, false, now).expect("room");
    }
}

/// Consumer, token and payload of each delivery.
pub(super) fn deliveries(events: &[Event]) -> Vec<(HandleId, LeaseToken, Vec<u8>)> {
    events
        .iter()
        .filter_map(|event| match event {
            Event::Delivered { handle, header, payload, .. } => {
                Some((*handle, header.lease, payload.clone()))
            }
            _ => None,
        })
        .collect()
}

pub(super) fn sequences(events: &[Event]) -> Vec<u64> {
    deliveries(events).iter().map(|(_, lease, _)| lease.sequence).collect()
}

pub(super) fn answers(events: &[Event]) -> Vec<(u64, Outcome)> {
    events
        .iter()
        .filter_map(|event| match event {
            Event::Answer { request, outcome, .. } => Some((*request, *outcome)),
            _ => None,
        })
        .collect()
}

fn drained(events: &[Event]) -> usize {
    events.iter().filter(|event| matches!(event, Event::Drained { .. })).count()
}

pub(super) fn ack(lease: LeaseToken, request: u64) -> Up {
    Up::Ack { lease, request }
}

#[test]
fn a_message_is_confirmed_delivered_and_acknowledged() {
    let mut world = World::new(&[definition(1, "orders")]);
    let producer = world.producer(1);
    let consumer = world.consumer(1, 2, &consumer(8));
    assert_eq!(drained(&world.turn()), 1);
    for payload in [b"one", b"two"] {
        world.send(producer, payload);
    }
    // Nothing before it is durable.
    assert!(!world.logic.dispatch(&mut world.log, &mut world.port, at_ms(0)));
    assert_eq!(world.port.events, []);
    let events = world.turn();
    let completed = |position, sequence| Event::Completed {
        handle: producer,
        position,
        sequence,
        outcome: Outcome::Done,
    };
    assert_eq!(events[..2], [completed(0, 1), completed(2, 2)]);
    let delivered = deliveries(&events);
    assert_eq!(delivered.len(), 2);
    assert_eq!((delivered[0].0, &delivered[0].2[..]), (consumer, &b"one"[..]));
    assert_eq!(delivered[0].1.attempt, 1);
    let info = world.logic.info(1).expect("queue");
    assert_eq!((info.messages, info.unacknowledged, info.message_bytes), (2, 2, 6));
    world.up(consumer, ack(delivered[0].1, 9));
    world.up(consumer, ack(delivered[1].1, 0));
    assert_eq!(answers(&world.port.events), []);
    assert!(world.logic.is_needed(1, 1, 2), "the acknowledgements are not durable");
    assert_eq!(answers(&world.turn()), [(9, Outcome::Done)]);
    assert!(!world.logic.is_needed(1, 1, 2));
    assert!(world.logic.is_needed(1, 1, 3));
    assert!(world.port.leases.is_empty());
    let info = world.logic.info(1).expect("queue");
    assert_eq!((info.messages, info.unacknowledged, info.message_bytes), (0, 0, 0));
    // Both acknowledgements share a record.
    assert_eq!(world.log.records.len(), 1 + 2 + 1);
    world.up(consumer, ack(delivered[0].1, 10));
    assert_eq!(answers(&world.turn()), [(10, Outcome::LeaseLost)]);
}

#[test]
fn consumers_take_turns_and_never_have_more_than_their_credit() {
    let mut world = World::new(&[definition(1, "orders")]);
    let producer = world.producer(1);
    let fast = world.consumer(1, 2, &consumer(8));
    let slow = world.consumer(1, 3, &consumer(2));
    for _ in 0..12 {
        world.send(producer, b"m");
    }
    let events = world.turn();
    let of = |handle| deliveries(&events).iter().filter(|(to, _, _)| *to == handle).count();
    assert_eq!((of(fast), of(slow)), (8, 2));
    assert_eq!(sequences(&events), (1..=10).collect::<Vec<_>>());
    let info = world.logic.info(1).expect("queue");
    assert_eq!((info.ready, info.unacknowledged), (2, 10));
    // A full ring is not asked again before there is room.
    world.port.room.insert(fast, 0);
    for (handle, lease, _) in deliveries(&events) {
        if handle == fast {
            world.up(fast, ack(lease, 0));
        }
    }
    assert!(sequences(&world.turn()).is_empty());
    world.port.room.remove(&fast);
    assert!(sequences(&world.turn()).is_empty());
    world.logic.room(fast);
    assert_eq!(sequences(&world.turn()), [11, 12]);
}

#[test]
fn leases_end_and_unseen_messages_are_not_counted() {
    let mut world = World::new(&[definition(1, "orders")]);
    let producer = world.producer(1);
    let first = world.consumer(1, 2, &consumer(1));
    world.send(producer, b"m");
    assert_eq!(world.logic.next_deadline(), None);
    let lease = deliveries(&world.turn())[0].1;
    assert_eq!(world.logic.next_deadline(), Some(30_000_000_000));
    world.up(first, Up::Extend { lease, request: 3, lease_ms: 40_000 });
    world.ms = 30_000;
    assert_eq!(answers(&world.turn()), [(3, Outcome::Done)]);
    world.ms = 40_000;
    let again = deliveries(&world.turn());
    assert_eq!((again[0].0, again[0].1.attempt), (first, 2));
    world.up(first, ack(lease, 4));
    assert_eq!(answers(&world.turn()), [(4, Outcome::LeaseLost)]);
    // Its process dies without having looked at it.
    world.port.unseen.insert((first, again[0].1.slot));
    world.logic.close_handle(&mut world.port, first, at_ms(world.ms));
    let second = world.consumer(1, 3, &consumer(1));
    let third = deliveries(&world.turn());
    assert_eq!((third[0].0, third[0].1.attempt), (second, 2));
    world.logic.close_handle(&mut world.port, second, at_ms(world.ms));
    world.consumer(1, 4, &consumer(1));
    assert_eq!(deliveries(&world.turn())[0].1.attempt, 3);
    // Nobody wakes up for leases that are acknowledged.
    assert!(world.logic.next_deadline().is_some());
    assert_eq!(world.logic.info(1).expect("queue").redelivered, 3);
}

#[test]
fn delayed_messages_come_when_they_are_due() {
    let mut world = World::new(&[definition(1, "orders")]);
    let producer = world.producer(1);
    let consumer = world.consumer(1, 2, &consumer(4));
    world.send(producer, b"one");
    world.send(producer, b"two");
    let delivered = deliveries(&world.turn());
    world.up(consumer, Up::Nack { lease: delivered[0].1, request: 1, delay_ms: 500 });
    world.up(consumer, ack(delivered[1].1, 0));
    assert_eq!(answers(&world.turn()), [(1, Outcome::Done)]);
    assert_eq!(world.logic.info(1).expect("queue").delayed, 1);
    assert_eq!(world.logic.next_deadline(), Some(500_000_000));
    world.ms = 499;
    assert!(sequences(&world.turn()).is_empty());
    world.ms = 500;
    let again = deliveries(&world.turn());
    assert_eq!((again[0].1.sequence, again[0].1.attempt), (1, 2));
}

#[test]
fn without_room_everything_waits_and_nothing_is_lost() {
    let mut world = World::new(&[definition(1, "orders")]);
    let producer = world.producer(1);
    let consumer = world.consumer(1, 2, &consumer(4));
    world.send(producer, b"m");
    let lease = deliveries(&world.turn())[0].1;
    world.log.full = true;
    let now = at_ms(0);
    let refused = world.logic.publish(&mut world.log, producer, 9, 10, 0, &[], b"m", now);
    assert_eq!(refused, Err(Refusal::Full));
    world.up(consumer, ack(lease, 1));
    world.logic.create_queue(&mut world.log, 2, definition(2, "new"));
    assert_eq!(world.turn(), []);
    world.log.full = false;
    let events = world.turn();
    assert_eq!(answers(&events), [(1, Outcome::Done)]);
    assert!(events.contains(&Event::Control { request: 2, result: ControlResult::Done }));
}

#[test]
fn after_a_failure_everybody_is_told_and_reading_goes_on() {
    let mut world = World::new(&[definition(1, "orders")]);
    let producer = world.producer(1);
    let consumer = world.consumer(1, 2, &consumer(1));
    for payload in [b"one", b"two"] {
        world.send(producer, payload);
    }
    let lease = deliveries(&world.turn())[0].1;
    world.send(producer, b"lost");
    world.up(consumer, ack(lease, 4));
    world.logic.flush(&mut world.log);
    world.log.failed = true;
    world.logic.create_queue(&mut world.log, 8, definition(2, "new"));
    world.logic.on_failed(5, &mut world.port);
    world.send(producer, b"never");
    world.log.cut(3);
    let events = world.turn();
    assert_eq!(answers(&events), [(4, Outcome::JournalFailed)]);
    assert!(
        events.contains(&Event::Control { request: 8, result: ControlResult::JournalFailed(5) })
    );
    for position in [4, 6] {
        let outcome = Outcome::JournalFailed;
        let failed = Event::Completed { handle: producer, position, sequence: 0, outcome };
        assert!(events.contains(&failed), "{position}");
    }
    // The next durable message, not the one that is not.
    assert_eq!(sequences(&events), [2]);
    let lease = deliveries(&events)[0].1;
    world.up(consumer, ack(lease, 5));
    let events = world.turn();
    assert_eq!(answers(&events), [(5, Outcome::JournalFailed)]);
    assert!(sequences(&events).is_empty());
    assert!(world.logic.is_needed(1, 1, 2), "nothing is freed any more");
}

#[test]
fn every_group_sees_every_message_that_is_there() {
    let mut world = World::new(&[definition(1, "orders")]);
    let producer = world.producer(1);
    let worker = world.consumer(1, 2, &consumer(4));
    for _ in 0..3 {
        world.send(producer, b"m");
    }
    let delivered = deliveries(&world.turn());
    world.up(worker, ack(delivered[1].1, 0));
    world.turn();
    let mut spec = consumer(8);
    spec.group = "audit".to_owned();
    world.consumer(1, 3, &spec);
    let audit = deliveries(&world.turn());
    assert_eq!(audit.iter().map(|(_, lease, _)| lease.sequence).collect::<Vec<_>>(), [1, 3]);
    (spec.group, spec.from) = ("late".to_owned(), StartAt::New);
    world.consumer(1, 4, &spec);
    world.send(producer, b"m");
    assert_eq!(sequences(&world.turn()), [4, 4, 4]);
    world.up(worker, ack(delivered[0].1, 0));
    world.up(worker, ack(delivered[2].1, 0));
    world.turn();
    assert!(world.logic.is_needed(1, 1, 1) && !world.logic.is_needed(1, 2, 2));
    assert_eq!(world.logic.info(1).expect("queue").messages, 3);
}

#[test]
fn what_fits_no_ring_is_set_aside_and_what_cannot_be_read_stalls() {
    let mut world = World::new(&[definition(1, "orders")]);
    let producer = world.producer(1);
    let first = world.consumer(1, 2, &consumer(8));
    world.send(producer, &[0; 61_000]);
    world.send(producer, b"fits");
    assert_eq!(sequences(&world.turn()), [2]);
    assert_eq!(world.logic.info(1).expect("queue").delayed, 1);
    assert_eq!(world.logic.next_deadline(), Some(30_000_000_000));
    world.log.lost.insert((1, 3));
    world.send(producer, b"rotten");
    world.send(producer, b"behind");
    let told = |world: &mut World| -> Vec<_> {
        let events = world.turn();
        assert!(sequences(&events).is_empty(), "{events:?}");
        let told = |event| match event {
            Event::Unreadable { handle, sequence } => Some((handle, sequence)),
            _ => None,
        };
        events.into_iter().filter_map(told).collect()
    };
    assert_eq!(told(&mut world), [(first, 3)]);
    let stalls: Vec<_> = world.logic.stalls().collect();
    assert_eq!(stalls, [(1, "", "message 3 of queue orders: rotten")]);
    let info = world.logic.info(1).expect("queue");
    assert_eq!((info.stalled_groups, info.stalled_by.as_str()), (1, stalls[0].2));
    // Once, and whoever comes later as well.
    world.send(producer, b"behind");
    assert_eq!(told(&mut world), []);
    let later = world.consumer(1, 3, &consumer(8));
    assert_eq!(told(&mut world), [(later, 3)]);
    world.logic.purge(&mut world.log, 9, 1);
    assert_eq!(told(&mut world), [(first, 0), (later, 0)]);
    world.send(producer, b"fresh");
    assert_eq!(sequences(&world.turn()), [6]);
    assert_eq!(world.logic.info(1).expect("queue").stalled_groups, 0);
}

/// Each is done with, counted and told once; what lies around it is given out.
#[test]
fn what_a_repair_gave_up_is_discarded() {
    let mut orders = definition(2, "orders");
    (orders.dead_letter, orders.max_deliveries) = ("dead".to_owned(), 2);
    let mut world = World::new(&[definition(1, "dead"), orders]);
    let producer = world.producer(2);
    for number in 0..3000_u32 {
        world.send(producer, &number.to_le_bytes());
    }
    world.turn();
    let worker = world.consumer(2, 2, &consumer(8));
    for (_, lease, _) in deliveries(&world.turn()) {
        let delay_ms = 0;
        world.up(worker, Up::Nack { lease, request: 0, delay_ms });
    }
    world.turn();
    world.logic = world.log.replay(false, 0).expect("ours");
    // Some that came back, some that nobody had.
    let lost = [(3, 5), (20, 2900)];
    let gone = lost.iter().flat_map(|(first, last)| *first..=*last);
    world.log.gone = gone.map(|sequence| (2, sequence)).collect();
    let count = world.log.gone.len() as u64;
    world.logic.start(at_ms(0));
    world.port = MemoryPort::default();
    let mut spec = consumer(64);
    spec.leases = 256;
    let worker = world.consumer(2, 3, &spec);
    let mut had = Vec::new();
    loop {
        let delivered = deliveries(&world.turn());
        if delivered.is_empty() {
            break;
        }
        for (_, lease, _) in delivered {
            had.push(lease.sequence);
            world.up(worker, ack(lease, 0));
        }
    }
    let kept = (1..=3000).filter(|sequence| !world.log.gone.contains(&(2, *sequence)));
    assert_eq!(had, kept.collect::<Vec<_>>());
    let info = world.logic.info(2).expect("queue");
    assert_eq!((info.messages, info.discarded, info.dead_lettered), (0, count, 0));
    assert_eq!(world.logic.take_losses().len(), 1);
    assert_eq!(world.logic.stalls().count(), 0);
    // Of what was stored since then nothing can have been given up.
    let producer = world.producer(2);
    world.log.gone.insert((2, 3001));
    world.send(producer, b"now");
    assert!(deliveries(&world.turn()).is_empty());
    assert_eq!(world.logic.stalls().count(), 1);
}

#[test]
fn many_messages_need_no_entries() {
    let mut world = World::new(&[definition(1, "orders")]);
    let producer = world.producer(1);
    for _ in 0..100_000 {
        world.send(producer, b"m");
    }
    world.turn();
    world.logic.released(producer, u64::MAX);
    world.log.write_checkpoint(&world.logic);
    let (_, records) = world.log.checkpoint.take().expect("written");
    let bytes: usize = records.iter().map(|record| record.body.len()).sum();
    assert!(bytes < 256, "{bytes} bytes");
}

/// An idle queue, beside its name: itself, its default group, and its places in the tables.
#[test]
fn an_idle_queue_is_small() {
    use crate::shard::logic::{group::Group, queue::Queue};
    let bytes = size_of::<Queue>() + size_of::<Group>() + 256;
    assert!(bytes < 1536, "{bytes} bytes");
}

#[test]
fn no_group_waits_for_another_one() {
    let mut world = World::new(&[definition(1, "orders")]);
    let producer = world.producer(1);
    let mut spec = consumer(4096);
    spec.leases = 4096;
    world.consumer(1, 2, &spec);
    spec.group = "audit".to_owned();
    let audit = world.consumer(1, 3, &spec);
    for _ in 0..2000 {
        world.send(producer, b"m");
    }
    let now = at_ms(0);
    world.logic.on_durable(world.log.last(), &mut world.port, &mut world.log, now);
    assert!(world.logic.dispatch(&mut world.log, &mut world.port, now));
    let events = std::mem::take(&mut world.port.events);
    assert!(deliveries(&events).iter().any(|(to, _, _)| *to == audit));
    assert_eq!(deliveries(&events).len() + deliveries(&world.turn()).len(), 4000);
}

#[test]
fn on_an_spsc_queue_nothing_overtakes_what_comes_back() {
    let mut orders = definition(1, "orders");
    orders.kind = Kind::Spsc;
    let mut world = World::new(&[orders]);
    let producer = world.producer(1);
    let first = world.consumer(1, 2, &consumer(4));
    for _ in 0..8 {
        world.send(producer, b"m");
    }
    assert_eq!(sequences(&world.turn()), [1, 2, 3, 4]);
    // Its successor is there before everything that the first one sent has been taken.
    let second = world.consumer(1, 3, &consumer(16));
    assert!(sequences(&world.turn()).is_empty());
    let now = at_ms(world.ms);
    world.logic.close_handle(&mut world.port, first, now);
    let events = world.turn();
    assert!(deliveries(&events).iter().all(|(to, _, _)| *to == second));
    assert_eq!(sequences(&events), (1..=8).collect::<Vec<_>>());
}

#[test]
fn who_looks_is_told_of_what_fits_no_ring() {
    let mut world = World::new(&[definition(1, "orders")]);
    let producer = world.producer(1);
    world.send(producer, &[0; 61_000]);
    world.send(producer, b"fits");
    let mut spec = consumer(0);
    spec.browse = true;
    world.consumer(1, 9, &spec);
    let shown: Vec<_> = world
        .turn()
        .into_iter()
        .filter_map(|event| match event {
            Event::Delivered { header, metadata, payload, .. } => {
                let metadata = Metadata::decode(&metadata).expect("ours");
                Some((header.lease.sequence, metadata.headers, payload))
            }
            _ => None,
        })
        .collect();
    let withheld = vec![(headers::WITHHELD.to_owned(), b"61000".to_vec())];
    assert_eq!(shown, [(1, withheld, vec![]), (2, vec![], b"fits".to_vec())]);
}

#[test]
fn who_is_far_behind_has_his_turn_whoever_else_is() {
    let mut world = World::new(&[definition(1, "q")]);
    let producer = world.producer(1);
    for number in 0..60_u8 {
        world.send(producer, &[number]);
    }
    let readers = [("", false), ("a", false), ("b", false), ("", true), ("", true)];
    world.log.readers_may_have = Some(0);
    let readers: Vec<_> = readers
        .iter()
        .zip(2..)
        .map(|((group, browse), number)| {
            let mut spec = consumer(64);
            (spec.group, spec.browse) = ((*group).to_owned(), *browse);
            world.consumer(1, number, &spec)
        })
        .collect();
    world.turn();
    let mut had = vec![0; readers.len()];
    for round in 1..=3 {
        // Each group and, as one, those who only look: these by turns.
        for _ in 0..2 * 4 {
            world.log.readers_may_have = Some(8);
            for (handle, _, _) in deliveries(&world.turn()) {
                let reader = readers.iter().position(|reader| *reader == handle);
                had[reader.expect("one of them")] += 1;
            }
        }
        assert_eq!(had, [16, 16, 16, 8, 8].map(|messages| messages * round));
    }
}
