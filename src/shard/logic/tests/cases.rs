//! One thing at a time.

use ringmain_client::layout::metadata::Metadata;
use ringmain_client::protocol::ErrorCode;
use ringmain_client::wire::{LeaseToken, Outcome, Up};

use super::memory::{Event, MemoryLog, MemoryPort, at_ms, definition, handle};
use crate::shard::logic::{
    ConsumerSpec, ControlResult, HandleId, Logic, QueueDefinition, QueueEdit, Refusal, Snapshot,
    StartAt,
};

pub(super) struct World {
    pub(super) logic: Logic,
    pub(super) log: MemoryLog,
    pub(super) port: MemoryPort,
    pub(super) ms: u64,
    position: u64,
}

pub(super) fn consumer(credit: u32) -> ConsumerSpec {
    ConsumerSpec { group: String::new(), from: StartAt::First, credit, leases: 64, browse: false }
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

    fn producer(&mut self, queue: u64) -> HandleId {
        let producer = handle(queue, 1);
        self.logic.open_producer(producer, 77).expect("queue");
        producer
    }

    fn consumer(&mut self, queue: u64, number: u8, spec: &ConsumerSpec) -> HandleId {
        let consumer = handle(queue, number);
        self.logic.open_consumer(&mut self.log, consumer, spec).expect("queue");
        consumer
    }

    fn send(&mut self, producer: HandleId, payload: &[u8]) {
        self.send_with(producer, &[], payload);
    }

    fn send_with(&mut self, producer: HandleId, metadata: &[u8], payload: &[u8]) {
        let position = self.position;
        self.position += 2;
        let now = at_ms(self.ms);
        self.logic
            .publish(&mut self.log, producer, position, position + 2, 0, metadata, payload, now)
            .expect("room");
    }

    fn up(&mut self, consumer: HandleId, up: Up) {
        let now = at_ms(self.ms);
        self.logic.submission(&mut self.port, consumer, up, false, now).expect("room");
    }
}

/// Consumer, token and payload of each delivery.
fn deliveries(events: &[Event]) -> Vec<(HandleId, LeaseToken, Vec<u8>)> {
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

fn sequences(events: &[Event]) -> Vec<u64> {
    deliveries(events).iter().map(|(_, lease, _)| lease.sequence).collect()
}

fn answers(events: &[Event]) -> Vec<(u64, Outcome)> {
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

fn ack(lease: LeaseToken, request: u64) -> Up {
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
