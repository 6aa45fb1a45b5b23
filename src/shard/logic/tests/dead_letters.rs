//! Dead letters: one thing at a time.

use ringmain_client::layout::metadata::Metadata;
use ringmain_client::wire::{Outcome, Up};

use super::cases::{World, answers, consumer, deliveries};
use super::memory::{Event, definition};
use crate::shard::logic::{ControlResult, QueueDefinition, QueueEdit, headers};
use crate::shard::memory::METADATA_BYTES_MAX;

#[test]
fn dead_letters_say_why_and_go_back() {
    let mut orders = definition(2, "orders");
    (orders.max_deliveries, orders.dead_letter) = (2, "dead".to_owned());
    let mut world = World::new(&[definition(1, "dead"), orders]);
    let producer = world.producer(2);
    let worker = world.consumer(2, 2, &consumer(4));
    let metadata = Metadata { headers: vec![("a".into(), b"b".to_vec())], ..Metadata::default() };
    let mut encoded = Vec::new();
    metadata.encode(&mut encoded).expect("short");
    world.send_with(producer, &encoded, b"poison");
    world.send(producer, b"rejected");
    let delivered = deliveries(&world.turn());
    world.up(worker, Up::Reject { lease: delivered[1].1, request: 7 });
    world.up(worker, Up::Nack { lease: delivered[0].1, request: 0, delay_ms: 0 });
    let events = world.turn();
    assert_eq!(answers(&events), [(7, Outcome::Done)]);
    let again = deliveries(&events);
    assert_eq!((again[0].1.sequence, again[0].1.attempt), (1, 2));
    world.up(worker, Up::Nack { lease: again[0].1, request: 0, delay_ms: 0 });
    world.turn();
    let info = world.logic.info(2).expect("queue");
    assert_eq!((info.messages, info.dead_lettered, info.message_bytes), (0, 2, 0));

    let mut spec = consumer(0);
    spec.browse = true;
    let viewer = world.consumer(1, 9, &spec);
    let events = world.turn();
    assert_eq!(events.last(), Some(&Event::Drained { handle: viewer }));
    let letters: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Delivered { metadata, payload, header, .. } => {
                assert_eq!(header.lease.attempt, 0);
                let metadata = Metadata::decode(metadata).expect("ours");
                let headers = metadata.headers.into_iter();
                let text = |value: Vec<u8>| String::from_utf8(value).expect("text");
                Some((headers.map(|(name, value)| (name, text(value))).collect(), payload.clone()))
            }
            _ => None,
        })
        .collect();
    let expect = |headers: &[(&str, &str)], payload: &[u8]| {
        let headers: Vec<_> =
            headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        (headers, payload.to_vec())
    };
    let rejected = expect(
        &[
            ("ringmain-reason", "rejected"),
            ("ringmain-origin-queue", "orders"),
            ("ringmain-origin-sequence", "2"),
            ("ringmain-deliveries", "1"),
        ],
        b"rejected",
    );
    let poison = expect(
        &[
            ("a", "b"),
            ("ringmain-reason", "max-deliveries"),
            ("ringmain-origin-queue", "orders"),
            ("ringmain-origin-sequence", "1"),
            ("ringmain-deliveries", "2"),
        ],
        b"poison",
    );
    assert_eq!(letters, [rejected, poison]);

    // Back again, without our headers, as new messages.
    world.logic.redrive(&mut world.log, 50, 1, 0, vec![2]);
    let events = world.turn();
    assert!(events.contains(&Event::Control { request: 50, result: ControlResult::Redriven(2) }));
    let back: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Delivered { metadata, payload, header, .. } if header.lease.attempt > 0 => {
                Some((header.lease.sequence, metadata.clone(), payload.clone()))
            }
            _ => None,
        })
        .collect();
    assert_eq!(back, [(3, vec![], b"rejected".to_vec()), (4, encoded, b"poison".to_vec())]);
    assert_eq!(world.logic.info(1).expect("queue").messages, 0);
}

#[test]
fn a_dead_letter_queue_carries_every_letter() {
    let mut dead = definition(1, "dead");
    (dead.slots, dead.slot_size, dead.max_message) = (64, 64, 100);
    let mut orders = definition(2, "orders");
    (orders.max_message, orders.dead_letter) = (100, "dead".to_owned());
    let mut world = World::new(&[dead.clone()]);
    let refused = |events: &[Event]| match events {
        [Event::Control { result: ControlResult::Refused(_, text), .. }] => text.clone(),
        other => panic!("{other:?}"),
    };
    world.logic.create_queue(&mut world.log, 1, orders.clone());
    let text = refused(&world.turn());
    assert!(text.contains("--slots 1024 --slot-size 256"), "{text}");
    // Nor by an edit.
    orders.dead_letter = String::new();
    world.logic.create_queue(&mut world.log, 2, orders);
    world.turn();
    let edit = QueueEdit { dead_letter: Some("dead".to_owned()), ..QueueEdit::default() };
    world.logic.edit_queue(&mut world.log, 3, 2, edit);
    assert!(refused(&world.turn()).contains("carry letters"));
    // One of the same shape does.
    let mut small = definition(3, "small");
    (small.slots, small.slot_size, small.max_message) = (64, 64, 100);
    small.dead_letter = "dead".to_owned();
    world.logic.create_queue(&mut world.log, 4, small);
    let done = Event::Control { request: 4, result: ControlResult::Done };
    assert_eq!(world.turn(), [done]);
}

#[test]
fn nothing_goes_back_to_where_it_fits_no_ring() {
    let mut orders = definition(2, "orders");
    (orders.slots, orders.slot_size, orders.dead_letter) = (64, 64, "dead".to_owned());
    let mut world = World::new(&[definition(1, "dead"), orders]);
    let producer = world.producer(1);
    let origin = (headers::ORIGIN_QUEUE.to_owned(), b"orders".to_vec());
    let metadata = Metadata { headers: vec![origin], ..Metadata::default() };
    let mut encoded = Vec::new();
    metadata.encode(&mut encoded).expect("short");
    world.send_with(producer, &encoded, &[0; 2000]);
    world.send_with(producer, &encoded, b"fits");
    world.turn();
    world.logic.redrive(&mut world.log, 5, 1, 0, vec![1, 2]);
    let done = Event::Control { request: 5, result: ControlResult::Redriven(1) };
    assert!(world.turn().contains(&done));
    assert_eq!(world.logic.info(1).expect("queue").messages, 1);
}

#[test]
fn a_redrive_goes_only_where_it_may() {
    let mut sends_here = definition(2, "sends-here");
    sends_here.dead_letter = "dead".to_owned();
    let closed = QueueDefinition { id: 3, name: "closed".to_owned(), ..sends_here.clone() };
    let foreign = definition(4, "foreign");
    let mut world = World::new(&[definition(1, "dead"), sends_here, closed, foreign]);
    let producer = world.producer(1);
    for origin in ["foreign", "closed", "dead", "nobody", "sends-here"] {
        let header = (headers::ORIGIN_QUEUE.to_owned(), origin.into());
        let metadata = Metadata { headers: vec![header], ..Metadata::default() };
        let mut encoded = Vec::new();
        metadata.encode(&mut encoded).expect("short");
        world.send_with(producer, &encoded, b"");
    }
    world.turn();
    world.logic.redrive(&mut world.log, 5, 1, 0, vec![1, 2, 4]);
    let done = Event::Control { request: 5, result: ControlResult::Redriven(1) };
    assert!(world.turn().contains(&done));
    let messages = |queue| world.logic.info(queue).expect("queue").messages;
    assert_eq!([1, 2, 3, 4].map(messages), [4, 1, 0, 0]);
}

#[test]
fn the_longest_metadata_has_room_for_what_a_dead_letter_gets() {
    let name = "o".repeat(255);
    let mut orders = definition(2, &name);
    (orders.slots, orders.dead_letter) = (2048, "dead".to_owned());
    let dead = QueueDefinition { slots: 2048, ..definition(1, "dead") };
    let mut world = World::new(&[dead, orders]);
    let producer = world.producer(2);
    let worker = world.consumer(2, 2, &consumer(4));
    let key = |bytes: usize| {
        let metadata = Metadata { key: Some(vec![7; bytes - 4]), ..Metadata::default() };
        let mut encoded = Vec::new();
        metadata.encode(&mut encoded).expect("fits");
        assert_eq!(encoded.len(), bytes);
        encoded
    };
    world.send_with(producer, &key(METADATA_BYTES_MAX), b"");
    let delivered = deliveries(&world.turn());
    world.up(worker, Up::Reject { lease: delivered[0].1, request: 7 });
    world.turn();
    world.logic.redrive(&mut world.log, 5, 1, 0, vec![2]);
    let done = Event::Control { request: 5, result: ControlResult::Redriven(1) };
    assert!(world.turn().contains(&done), "it knows where it came from");
    world.send_with(producer, &key(METADATA_BYTES_MAX + 1), b"");
    let refused =
        |event: &Event| matches!(event, Event::Completed { outcome: Outcome::Invalid, .. });
    assert!(world.turn().iter().any(refused));
}
