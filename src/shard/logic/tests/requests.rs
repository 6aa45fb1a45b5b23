//! Requests of the control thread.

use ringmain_client::layout::metadata::Metadata;
use ringmain_client::protocol::ErrorCode;
use ringmain_client::wire::{Outcome, Up};

use super::cases::{World, ack, answers, consumer, deliveries};
use super::memory::{Event, at_ms, definition};
use crate::shard::logic::{ControlResult, QueueEdit, Snapshot};

#[test]
fn control_requests_are_refused_with_a_reason() {
    let mut orders = definition(2, "orders");
    orders.dead_letter = "dead".to_owned();
    let mut world = World::new(&[definition(1, "dead"), orders]);
    let mut small = definition(3, "small");
    small.max_message = 64;
    type Case<'a> = (&'a dyn Fn(&mut World), ErrorCode);
    let cases: [Case<'_>; 6] = [
        (&|world| world.logic.delete_queue(&mut world.log, 1, 1), ErrorCode::Busy),
        (&|world| world.logic.purge(&mut world.log, 1, 9), ErrorCode::NotFound),
        (
            &|world| world.logic.create_queue(&mut world.log, 1, definition(2, "new")),
            ErrorCode::Internal,
        ),
        (
            &|world| world.logic.create_queue(&mut world.log, 1, definition(3, "orders")),
            ErrorCode::Exists,
        ),
        (
            &|world| {
                let edit = QueueEdit { dead_letter: Some("x".into()), ..QueueEdit::default() };
                world.logic.edit_queue(&mut world.log, 1, 1, edit);
            },
            ErrorCode::NotFound,
        ),
        (
            &|world| {
                let edit = QueueEdit { dead_letter: Some("dead".into()), ..QueueEdit::default() };
                world.logic.edit_queue(&mut world.log, 1, 1, edit);
            },
            ErrorCode::Invalid,
        ),
    ];
    for (number, (request, code)) in cases.into_iter().enumerate() {
        request(&mut world);
        let events = world.turn();
        assert!(
            matches!(&events[..], [Event::Control { request: 1, result: ControlResult::Refused(found, _) }]
                if *found == code),
            "case {number}: {events:?}"
        );
    }
    assert_eq!(world.log.records.len(), 2);
    world.logic.create_queue(&mut world.log, 1, small);
    world.turn();
    let edit = QueueEdit { dead_letter: Some("small".into()), ..QueueEdit::default() };
    world.logic.edit_queue(&mut world.log, 1, 2, edit);
    let events = world.turn();
    let Event::Control { result: ControlResult::Refused(ErrorCode::Invalid, text), .. } =
        &events[0]
    else {
        panic!("{events:?}");
    };
    assert!(text.contains("--max-message 65536"), "{text}");
}

#[test]
fn a_deleted_queue_refuses_and_is_gone_after_a_restart() {
    let mut world = World::new(&[definition(1, "orders")]);
    let producer = world.producer(1);
    let consumer = world.consumer(1, 2, &consumer(1));
    world.send(producer, b"stored");
    let lease = deliveries(&world.turn())[0].1;
    world.logic.delete_queue(&mut world.log, 5, 1);
    world.send(producer, b"too late");
    assert!(world.logic.is_needed(1, 1, 1), "the deletion is not durable");
    world.up(consumer, ack(lease, 6));
    let events = world.turn();
    assert_eq!(answers(&events), [(6, Outcome::QueueDeleted)]);
    assert!(events.contains(&Event::Control { request: 5, result: ControlResult::Done }));
    let refused = Event::Completed {
        handle: producer,
        position: 2,
        sequence: 0,
        outcome: Outcome::QueueDeleted,
    };
    assert!(events.contains(&refused));
    assert!(!world.logic.is_needed(1, 1, 1));
    world.send(producer, b"later still");
    assert_eq!(world.turn().len(), 1);
    world.logic.close_handle(&mut world.port, consumer, at_ms(0));
    world.logic.close_handle(&mut world.port, producer, at_ms(0));
    world.logic.create_queue(&mut world.log, 7, definition(2, "orders"));
    world.turn();
    let logic = world.log.replay(false, 0).expect("replay");
    assert_eq!(logic.queues().map(|queue| queue.id).collect::<Vec<_>>(), [2]);
    assert_eq!(logic.next_queue_id(), 3);
}

#[test]
fn what_is_taken_can_be_moved_as_well() {
    let mut orders = definition(2, "orders");
    orders.dead_letter = "dead".to_owned();
    let mut world = World::new(&[definition(1, "dead"), orders]);
    let producer = world.producer(2);
    let worker = world.consumer(2, 2, &consumer(4));
    world.turn();
    let is_refused = |events: &[Event]| {
        let mut outcomes = events.iter().filter_map(|event| match event {
            Event::Completed { outcome, .. } => Some(*outcome != Outcome::Done),
            _ => None,
        });
        outcomes.next().expect("completed")
    };
    let metadata = Metadata { headers: vec![("h".into(), vec![1; 10_000])], ..Metadata::default() };
    let mut encoded = Vec::new();
    metadata.encode(&mut encoded).expect("short");
    let mut length = 64 * 1024 - encoded.len();
    let delivered = loop {
        world.send_with(producer, &encoded, &vec![1; length]);
        let events = world.turn();
        if !is_refused(&events) {
            break deliveries(&events);
        }
        length -= 1;
    };
    world.up(worker, Up::Reject { lease: delivered[0].1, request: 7 });
    assert_eq!(answers(&world.turn()), [(7, Outcome::Done)]);
    assert_eq!(world.logic.info(1).expect("queue").messages, 1);
    world.send(producer, b"after");
    assert_eq!(deliveries(&world.turn()).len(), 1);
    assert!(world.logic.take_stalls().is_empty());
}
