//! Limits, one thing at a time.

use ringmain_client::protocol::{ErrorCode, Overflow, Retention};
use ringmain_client::wire::{Outcome, Up};

use super::cases::{World, ack, answers, consumer, deliveries, sequences};
use super::memory::{Event, at_ms, definition, handle};
use crate::shard::logic::record::kind;
use crate::shard::logic::{
    ControlResult, HandleId, Limits, LimitsEdit, QueueDefinition, QueueEdit, Refusal, Snapshot,
    StartAt,
};

fn limited(limits: Limits) -> QueueDefinition {
    QueueDefinition { limits, durable: false, ..definition(1, "q") }
}

fn stream(limits: Limits) -> QueueDefinition {
    limited(Limits { retention: Retention::Stream, ..limits })
}

fn offer(
    world: &mut World,
    producer: HandleId,
    position: u64,
    length: usize,
) -> Result<(), Refusal> {
    let now = at_ms(world.ms);
    let (log, payload) = (&mut world.log, vec![b'x'; length]);
    world.logic.publish(log, producer, position, position + 1, 0, &[], &payload, now)
}

fn skipped(events: &[Event]) -> Vec<u64> {
    let skipped = |event: &Event| match event {
        Event::Skipped { messages, .. } => Some(*messages),
        _ => None,
    };
    events.iter().filter_map(skipped).collect()
}

fn edit(world: &mut World, limits: LimitsEdit) -> ControlResult {
    let edit = QueueEdit { limits, ..QueueEdit::default() };
    world.logic.edit_queue(&mut world.log, 99, 1, edit);
    let events = world.turn();
    let mut results = events.into_iter().filter_map(|event| match event {
        Event::Control { result, .. } => Some(result),
        _ => None,
    });
    results.next().expect("an answer")
}

#[test]
fn a_full_queue_leaves_its_lanes_alone_until_there_is_room() {
    let mut world = World::new(&[limited(Limits { max_messages: 2, ..Limits::default() })]);
    let producers = [handle(1, 1), handle(1, 5), handle(1, 6)];
    for (lane, producer) in (1..).zip(producers) {
        world.logic.open_producer(producer, lane).expect("queue");
    }
    let worker = world.consumer(1, 2, &consumer(8));
    for position in 0..2 {
        assert_eq!(offer(&mut world, producers[0], position, 1), Ok(()));
    }
    let delivered = deliveries(&world.turn());
    for producer in [producers[1], producers[0], producers[2], producers[1]] {
        assert_eq!(offer(&mut world, producer, 7, 1), Err(Refusal::Limit));
    }
    world.turn();
    assert_eq!(world.logic.take_unblocked(), []);
    let info = world.logic.info(1).expect("queue");
    assert_eq!((info.blocked_producers, info.blocked_by.as_str()), (3, "max-messages"));
    // One has room: the one that has waited longest.
    world.up(worker, ack(delivered[0].1, 0));
    world.turn();
    assert_eq!(world.logic.take_unblocked(), [producers[1]]);
    assert_eq!(offer(&mut world, producers[1], 7, 1), Ok(()));
    world.turn();
    assert_eq!(world.logic.take_unblocked(), []);
    // The next one is gone: the one behind it has its place, though nothing else happens.
    world.up(worker, ack(delivered[1].1, 0));
    world.logic.close_handle(&mut world.port, producers[0], at_ms(0));
    world.turn();
    assert_eq!(world.logic.take_unblocked(), [producers[2]]);
    world.logic.close_handle(&mut world.port, producers[2], at_ms(0));
    let unlimited = LimitsEdit { max_messages: Some(0), ..LimitsEdit::default() };
    assert_eq!(offer(&mut world, producers[1], 8, 1), Ok(()));
    assert_eq!(offer(&mut world, producers[1], 9, 1), Err(Refusal::Limit));
    assert_eq!(edit(&mut world, unlimited), ControlResult::Done);
    assert_eq!(world.logic.take_unblocked(), [producers[1]]);
}

#[test]
fn a_long_message_is_not_passed_by_short_ones() {
    let mut world = World::new(&[limited(Limits { max_bytes: 100, ..Limits::default() })]);
    let (long, short, other) = (handle(1, 1), handle(1, 5), handle(1, 6));
    for (lane, producer) in (1..).zip([long, short, other]) {
        world.logic.open_producer(producer, lane).expect("queue");
    }
    let worker = world.consumer(1, 2, &consumer(64));
    for position in 0..10 {
        assert_eq!(offer(&mut world, short, position, 10), Ok(()));
    }
    let delivered = deliveries(&world.turn());
    assert_eq!(offer(&mut world, long, 0, 50), Err(Refusal::Limit));
    // There is room for a short one, again and again: it is kept for the long one.
    for lease in &delivered[..4] {
        world.up(worker, ack(lease.1, 0));
        world.turn();
        assert_eq!(offer(&mut world, short, 10, 10), Err(Refusal::Limit));
        assert_eq!(world.logic.take_unblocked(), []);
    }
    world.up(worker, ack(delivered[4].1, 0));
    world.turn();
    assert_eq!(world.logic.take_unblocked(), [long]);
    // Before it is taken, nobody takes its room.
    assert_eq!(offer(&mut world, other, 0, 10), Err(Refusal::Limit));
    assert_eq!(offer(&mut world, short, 10, 10), Err(Refusal::Limit));
    assert_eq!(offer(&mut world, long, 0, 50), Ok(()));
    world.turn();
    world.up(worker, ack(delivered[5].1, 0));
    world.up(worker, ack(delivered[6].1, 0));
    world.up(worker, ack(delivered[7].1, 0));
    world.turn();
    assert_eq!(world.logic.take_unblocked(), [short, other]);
    // Beside what is granted there is room for one more.
    assert_eq!(offer(&mut world, long, 1, 11), Err(Refusal::Limit));
    assert_eq!(offer(&mut world, short, 10, 10), Ok(()));
    assert_eq!(offer(&mut world, other, 0, 10), Ok(()));
    // A lane that cannot be looked at keeps nobody waiting.
    world.up(worker, ack(delivered[8].1, 0));
    world.turn();
    assert_eq!(world.logic.take_unblocked(), [long]);
    assert_eq!(offer(&mut world, short, 11, 15), Err(Refusal::Limit));
    world.logic.pass_over(long);
    world.turn();
    assert_eq!(world.logic.take_unblocked(), [short]);
    assert_eq!(offer(&mut world, short, 11, 15), Ok(()));
}

#[test]
fn a_failed_journal_leaves_nobody_waiting() {
    let mut world = World::new(&[limited(Limits { max_messages: 1, ..Limits::default() })]);
    let producer = world.producer(1);
    assert_eq!(offer(&mut world, producer, 0, 1), Ok(()));
    assert_eq!(offer(&mut world, producer, 1, 1), Err(Refusal::Limit));
    world.logic.on_failed(5, &mut world.port);
    assert_eq!(world.logic.take_unblocked(), [producer]);
    assert_eq!(offer(&mut world, producer, 1, 1), Ok(()));
    let outcomes: Vec<_> = world
        .turn()
        .into_iter()
        .filter_map(|event| match event {
            Event::Completed { outcome, .. } => Some(outcome),
            _ => None,
        })
        .collect();
    assert_eq!(outcomes, [Outcome::JournalFailed; 2]);
}

#[test]
fn what_is_rejected_is_told_in_the_order_of_the_lane() {
    let overflow = Overflow::Reject;
    let limits = Limits { max_messages: 2, overflow, ..Limits::default() };
    let mut world = World::new(&[limited(limits)]);
    let producer = world.producer(1);
    let worker = world.consumer(1, 2, &consumer(8));
    for position in 0..3 {
        assert_eq!(offer(&mut world, producer, position, 1), Ok(()));
    }
    let events = world.turn();
    let completed = |position, sequence, outcome| Event::Completed {
        handle: producer,
        position,
        sequence,
        outcome,
    };
    let expected = [
        completed(0, 1, Outcome::Done),
        completed(1, 2, Outcome::Done),
        completed(2, 0, Outcome::QueueFull),
    ];
    assert_eq!(events[..3], expected);
    world.up(worker, ack(deliveries(&events)[0].1, 0));
    assert_eq!(offer(&mut world, producer, 3, 1), Ok(()));
    assert!(world.turn().contains(&completed(3, 3, Outcome::Done)));
    // Nothing of it is in the log.
    assert_eq!(world.log.records.len(), 1 + 2 + 1 + 1);
}

#[test]
fn bytes_are_counted_and_a_message_too_long_is_taken_alone() {
    let mut world = World::new(&[limited(Limits { max_bytes: 10, ..Limits::default() })]);
    let producer = world.producer(1);
    let worker = world.consumer(1, 2, &consumer(8));
    assert_eq!(offer(&mut world, producer, 0, 6), Ok(()));
    assert_eq!(offer(&mut world, producer, 1, 5), Err(Refusal::Limit));
    assert_eq!(world.logic.info(1).expect("queue").blocked_by, "max-bytes");
    assert_eq!(offer(&mut world, producer, 1, 4), Ok(()));
    assert_eq!(offer(&mut world, producer, 2, 11), Err(Refusal::Limit));
    for (_, lease, _) in deliveries(&world.turn()) {
        world.up(worker, ack(lease, 0));
    }
    world.turn();
    assert_eq!(world.logic.take_unblocked(), [producer]);
    assert_eq!(offer(&mut world, producer, 2, 11), Ok(()));
    assert_eq!(offer(&mut world, producer, 3, 0), Err(Refusal::Limit));
}

#[test]
fn the_oldest_make_room_and_their_consumers_are_told() {
    let overflow = Overflow::DropOldest;
    let limits = Limits { max_messages: 3, overflow, ..Limits::default() };
    let mut world = World::new(&[limited(limits)]);
    let producer = world.producer(1);
    let worker = world.consumer(1, 2, &consumer(2));
    let records = world.log.records.len();
    for position in 0..10 {
        assert_eq!(offer(&mut world, producer, position, 1), Ok(()));
    }
    let events = world.turn();
    assert_eq!(skipped(&events), [7]);
    let delivered = deliveries(&events);
    assert_eq!(sequences(&events), [8, 9]);
    // One record for all of them.
    let trims = world.log.records.iter().filter(|record| record.kind == kind::TRIMMED).count();
    assert_eq!((trims, world.log.records.len() - records), (1, 11));
    // What is with a consumer goes as well. It stays busy with that, and its word for it comes too late.
    for position in 10..13 {
        assert_eq!(offer(&mut world, producer, position, 1), Ok(()));
    }
    assert!(sequences(&world.turn()).is_empty());
    world.up(worker, ack(delivered[0].1, 4));
    world.up(worker, Up::Nack { lease: delivered[1].1, request: 5, delay_ms: 0 });
    let (events, lost) = (world.turn(), Outcome::LeaseLost);
    assert_eq!(answers(&events), [(4, lost), (5, lost)]);
    assert_eq!((skipped(&events), sequences(&events)), (vec![1], vec![11, 12]));
    let info = world.logic.info(1).expect("queue");
    assert_eq!((info.messages, info.dropped, info.skipped, info.trimmed), (3, 10, 10, 0));
    assert_eq!((info.first_sequence, info.unacknowledged), (11, 2));
    assert_eq!(world.port.leases.len(), 2);
    // Or its time is over.
    for position in 13..16 {
        assert_eq!(offer(&mut world, producer, position, 1), Ok(()));
    }
    assert!(sequences(&world.turn()).is_empty());
    assert_eq!(world.logic.next_deadline(), Some(30_000_000_000));
    world.ms = 30_000;
    assert_eq!(sequences(&world.turn()), [14, 15]);
}

/// What goes is not as long as what stays: a mean would say that there is room.
#[test]
fn bytes_are_exact_after_the_oldest_were_discarded() {
    let overflow = Overflow::DropOldest;
    let mut world =
        World::new(&[limited(Limits { max_bytes: 1000, overflow, ..Limits::default() })]);
    let producer = world.producer(1);
    for (position, length) in (0..).zip([1; 100].into_iter().chain([950, 500])) {
        assert_eq!(offer(&mut world, producer, position, length), Ok(()));
        world.turn();
    }
    let info = world.logic.info(1).expect("queue");
    assert_eq!((info.messages, info.message_bytes, info.dropped), (1, 500, 101));
}

#[test]
fn what_a_limit_cancels_is_needed_until_that_is_durable() {
    let overflow = Overflow::DropOldest;
    for limits in [
        Limits { max_messages: 2, retention: Retention::Stream, ..Limits::default() },
        Limits { max_messages: 2, overflow, ..Limits::default() },
    ] {
        let mut world = World::new(&[limited(limits)]);
        let producer = world.producer(1);
        for position in 0..4 {
            assert_eq!(offer(&mut world, producer, position, 1), Ok(()));
        }
        assert!(world.logic.flush(&mut world.log));
        let last = world.log.records.last().expect("record");
        assert_eq!(last.kind, kind::TRIMMED);
        assert!(world.logic.is_needed(1, 1, 1) && world.logic.is_needed(1, 2, 2));
        world.turn();
        assert!(!world.logic.is_needed(1, 1, 2) && world.logic.is_needed(1, 2, 3));
    }
}

#[test]
fn a_stream_keeps_what_is_acknowledged() {
    let mut world = World::new(&[stream(Limits { max_messages: 4, ..Limits::default() })]);
    let producer = world.producer(1);
    let worker = world.consumer(1, 2, &consumer(8));
    for position in 0..3 {
        assert_eq!(offer(&mut world, producer, position, 1), Ok(()));
    }
    for (_, lease, _) in deliveries(&world.turn()) {
        world.up(worker, ack(lease, 0));
    }
    world.turn();
    let info = world.logic.info(1).expect("queue");
    assert_eq!((info.messages, info.ready, info.first_sequence), (3, 0, 1));
    assert!(world.logic.is_needed(1, 1, 1));
    // A later group sees all of it, and so does one who looks on.
    let mut spec = consumer(8);
    spec.group = "late".to_owned();
    world.consumer(1, 3, &spec);
    assert_eq!(sequences(&world.turn()), [1, 2, 3]);
    spec = consumer(0);
    (spec.browse, spec.from) = (true, StartAt::Sequence(2));
    world.consumer(1, 4, &spec);
    assert_eq!(sequences(&world.turn()), [2, 3]);
    // The fifth and sixth push the first two out; only the late group had not acknowledged them.
    for position in 3..6 {
        assert_eq!(offer(&mut world, producer, position, 1), Ok(()));
    }
    world.turn();
    let info = world.logic.info(1).expect("queue");
    assert_eq!((info.messages, info.trimmed, info.skipped), (4, 2, 0));
    assert_eq!(info.first_sequence, 3);
    let replayed = world.log.replay(false, 0).expect("replay");
    assert_eq!(replayed.info(1).expect("queue").trimmed, 2);
}

#[test]
fn a_queue_that_becomes_a_stream_keeps_what_comes_from_then_on() {
    let mut world = World::new(&[limited(Limits::default())]);
    let producer = world.producer(1);
    let worker = world.consumer(1, 2, &consumer(8));
    for position in 0..2 {
        assert_eq!(offer(&mut world, producer, position, 1), Ok(()));
    }
    let delivered = deliveries(&world.turn());
    let to_stream = LimitsEdit {
        retention: Some(Retention::Stream),
        max_messages: Some(2),
        ..LimitsEdit::default()
    };
    assert_eq!(edit(&mut world, to_stream), ControlResult::Done);
    assert_eq!(offer(&mut world, producer, 2, 1), Ok(()));
    let later = deliveries(&world.turn());
    let info = world.logic.info(1).expect("queue");
    assert_eq!((info.messages, info.first_sequence), (3, 1));
    for (_, lease, _) in delivered.iter().chain(&later) {
        world.up(worker, ack(*lease, 0));
    }
    world.turn();
    let info = world.logic.info(1).expect("queue");
    assert_eq!((info.messages, info.first_sequence), (1, 3));
    assert!(world.logic.is_needed(1, 3, 3) && !world.logic.is_needed(1, 1, 2));
    // And back: what every group has acknowledged goes, once that is durable.
    let back = LimitsEdit { retention: Some(Retention::Acknowledged), ..LimitsEdit::default() };
    let edit_back = QueueEdit { limits: back, ..QueueEdit::default() };
    world.logic.edit_queue(&mut world.log, 98, 1, edit_back);
    assert!(world.logic.is_needed(1, 3, 3));
    world.turn();
    assert!(!world.logic.is_needed(1, 3, 3));
    assert_eq!(world.logic.info(1).expect("queue").messages, 0);
}

#[test]
fn rules_that_make_no_sense_are_refused() {
    let overflow = Overflow::DropOldest;
    let stream = Retention::Stream;
    let cases = [
        (true, Limits { overflow, max_messages: 1, ..Limits::default() }, "durable"),
        (false, Limits { overflow, ..Limits::default() }, "needs a limit"),
        (false, Limits { max_age_ms: 5, ..Limits::default() }, "for streams"),
        (
            false,
            Limits { overflow, max_messages: 1, retention: stream, ..Limits::default() },
            "no overflow",
        ),
    ];
    for (durable, limits, why) in cases {
        let mut world = World::new(&[]);
        let definition = QueueDefinition { durable, ..limited(limits) };
        world.logic.create_queue(&mut world.log, 5, definition);
        let events = world.turn();
        let [Event::Control { result: ControlResult::Refused(ErrorCode::Invalid, text), .. }] =
            &events[..]
        else {
            panic!("{events:?}");
        };
        assert!(text.contains(why), "{text}");
        assert_eq!(world.log.records.len(), 0);
    }
    let mut world = World::new(&[definition(1, "q")]);
    let dropping =
        LimitsEdit { max_messages: Some(1), overflow: Some(overflow), ..LimitsEdit::default() };
    let refused = edit(&mut world, dropping);
    assert!(matches!(refused, ControlResult::Refused(ErrorCode::Invalid, _)), "{refused:?}");
    assert_eq!(world.logic.info(1).expect("queue").max_messages, 0);
}

#[test]
fn a_stream_of_bytes_is_cut_where_they_are_too_many() {
    let mut world = World::new(&[stream(Limits { max_bytes: 1000, ..Limits::default() })]);
    let producer = world.producer(1);
    for position in 0..100 {
        assert_eq!(offer(&mut world, producer, position, 30), Ok(()));
    }
    world.turn();
    let info = world.logic.info(1).expect("queue");
    assert_eq!((info.messages, info.message_bytes, info.trimmed), (33, 990, 67));
    // What alone is too long stays alone.
    assert_eq!(offer(&mut world, producer, 100, 5000), Ok(()));
    world.turn();
    let info = world.logic.info(1).expect("queue");
    assert_eq!((info.messages, info.message_bytes), (1, 5000));
}

#[test]
fn a_message_of_a_stream_goes_when_its_time_is_over() {
    let mut world = World::new(&[stream(Limits { max_age_ms: 64, ..Limits::default() })]);
    let producer = world.producer(1);
    world.turn();
    assert_eq!(world.logic.next_deadline(), None);
    for position in 0..3 {
        assert_eq!(offer(&mut world, producer, position, 1), Ok(()));
        world.turn();
        world.ms += 10;
    }
    let left = |world: &World| world.logic.info(1).expect("queue").messages;
    assert_eq!(world.logic.next_deadline(), Some(65_000_000));
    world.ms = 63;
    world.turn();
    assert_eq!(left(&world), 3);
    world.ms = 65;
    world.turn();
    assert_eq!((left(&world), world.logic.next_deadline()), (2, Some(75_000_000)));
    // A restart does not make them younger.
    world.logic = world.log.replay(false, 0).expect("replay");
    world.logic.start(at_ms(70));
    (world.ms, world.port) = (85, Default::default());
    world.turn();
    assert_eq!((left(&world), world.logic.next_deadline()), (0, None));
    assert_eq!(world.logic.info(1).expect("queue").trimmed, 3);
}
