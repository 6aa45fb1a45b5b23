//! TTL and delay.

use std::time::Duration;

use ringmain_client::layout::metadata::{Metadata, Times, times};
use ringmain_client::protocol::Retention;
use ringmain_client::wire::{Outcome, Up};

use super::cases::{World, answers, consumer, deliveries};
use super::memory::{Event, at_ms, definition, handle};
use crate::shard::logic::record::kind;
use crate::shard::logic::{
    GroupCommand, Limits, Logic, QueueDefinition, QueueEdit, StartAt, headers,
};

fn metadata(ttl_ms: Option<u64>, delay_ms: Option<u64>) -> Vec<u8> {
    let metadata = Metadata {
        ttl: ttl_ms.map(Duration::from_millis),
        delay: delay_ms.map(Duration::from_millis),
        ..Metadata::default()
    };
    let mut bytes = Vec::new();
    metadata.encode(&mut bytes).expect("short");
    bytes
}

fn with_ttl(id: u64, name: &str, ttl_ms: u64) -> QueueDefinition {
    QueueDefinition { ttl_ms, ..definition(id, name) }
}

fn payloads(events: &[Event]) -> Vec<String> {
    let text = |(_, _, payload): &(_, _, Vec<u8>)| String::from_utf8_lossy(payload).into_owned();
    deliveries(events).iter().map(text).collect()
}

fn count(world: &World, kind: u8) -> usize {
    world.log.records.iter().filter(|record| record.kind == kind).count()
}

/// The same journal in another life, at this time.
fn restarted(world: &World, with_checkpoint: bool, ms: u64) -> World {
    let mut logic = world.log.replay(with_checkpoint, 0).expect("ours");
    logic.start(at_ms(ms));
    let mut other = World::new(&[]);
    (other.logic, other.log, other.ms) = (logic, world.log.clone(), ms);
    other
}

#[test]
fn what_nobody_fetches_is_taken_out_by_a_timer() {
    let mut world = World::new(&[definition(1, "own"), with_ttl(2, "all", 1_000)]);
    let own = world.producer(1);
    let all = world.producer(2);
    world.send(own, b"stays");
    assert_eq!((world.turn().len(), world.logic.next_deadline()), (1, None), "unused");
    for _ in 0..100 {
        world.send_with(own, &metadata(Some(1_000), None), b"own");
        world.send(all, b"all");
    }
    world.turn();
    // Less than 1/128 of the TTL behind it.
    let due_ns = world.logic.next_deadline().expect("armed");
    assert!((1_000_000_000..1_008_000_000).contains(&due_ns), "{due_ns}");
    world.ms = 999;
    world.turn();
    assert_eq!(world.logic.info(2).expect("queue").messages, 100);
    world.ms = 1_009;
    world.turn();
    for (queue, left) in [(1, 1), (2, 0)] {
        let info = world.logic.info(queue).expect("queue");
        let found = (info.messages, info.expired, info.discarded, info.dead_lettered);
        assert_eq!(found, (left, 100, 0, 0), "{queue}");
    }
    assert_eq!(count(&world, kind::EXPIRED), 2, "neighbours share a record");
    assert_eq!(world.logic.next_deadline(), None);
    let again = restarted(&world, false, 2_000);
    assert_eq!(again.logic.info(1).expect("queue").expired, 100);
}

#[test]
fn the_shorter_time_counts() {
    let mut world = World::new(&[with_ttl(1, "q", 500)]);
    let producer = world.producer(1);
    for (ttl_ms, payload) in [(None, "queue"), (Some(100), "short"), (Some(10_000), "long")] {
        world.send_with(producer, &metadata(ttl_ms, None), payload.as_bytes());
    }
    world.turn();
    let left = |world: &World| world.logic.info(1).expect("queue").messages;
    for (ms, messages) in [(99, 3), (110, 2), (499, 2), (510, 0)] {
        world.ms = ms;
        world.turn();
        assert_eq!(left(&world), messages, "after {ms} ms");
    }
    // No longer and no shorter than what is there when it is edited.
    world.send(producer, b"edited");
    world.turn();
    let edit = QueueEdit { ttl_ms: Some(2_000), ..QueueEdit::default() };
    world.logic.edit_queue(&mut world.log, 1, 1, edit);
    for (ms, messages) in [(2_000, 1), (2_550, 0)] {
        world.ms = ms;
        world.turn();
        assert_eq!(left(&world), messages, "after {ms} ms");
    }
}

#[test]
fn a_leased_message_expires_when_it_comes_back() {
    let mut origin = with_ttl(2, "q", 100);
    origin.dead_letter = "dead".to_owned();
    let mut world = World::new(&[definition(1, "dead"), origin]);
    let producer = world.producer(2);
    let worker = world.consumer(2, 2, &consumer(8));
    for payload in [b"acked", b"nackd", b"later"] {
        world.send_with(producer, &metadata(Some(60), Some(0)), payload);
    }
    let leases: Vec<_> = deliveries(&world.turn()).into_iter().map(|(_, lease, _)| lease).collect();
    world.ms = 1_000;
    world.turn();
    assert_eq!(world.logic.info(2).expect("queue").unacknowledged, 3);
    world.up(worker, Up::Ack { lease: leases[0], request: 1 });
    world.up(worker, Up::Nack { lease: leases[1], request: 2, delay_ms: 0 });
    let events = world.turn();
    assert_eq!(answers(&events), [(1, Outcome::Done), (2, Outcome::Done)]);
    assert_eq!(payloads(&events), [""; 0]);
    world.logic.close_handle(&mut world.port, worker, at_ms(1_000));
    world.turn();
    let info = world.logic.info(2).expect("queue");
    assert_eq!((info.messages, info.expired, info.dead_lettered), (0, 2, 2));
    let reader = world.consumer(1, 3, &consumer(8));
    world.ms = 10_000;
    let events = world.turn();
    let letters: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Delivered { metadata, .. } => Some(metadata),
            _ => None,
        })
        .collect();
    assert_eq!(letters.len(), 2, "its times do not count there");
    for letter in letters {
        assert_eq!(headers::find(letter, headers::REASON), Some("expired"));
        assert_eq!(headers::find(letter, headers::DELIVERIES), Some("1"));
        assert_eq!(times(letter), Some(Times::default()));
    }
    world.logic.close_handle(&mut world.port, reader, at_ms(10_000));
    let info = restarted(&world, false, 10_000).logic.info(2).expect("queue");
    assert_eq!((info.expired, info.dead_lettered), (2, 2));
}

#[test]
fn a_delayed_message_takes_its_place_when_it_is_due() {
    let mut world = World::new(&[definition(1, "q")]);
    let producer = world.producer(1);
    world.send_with(producer, &metadata(None, Some(500)), b"late");
    world.send(producer, b"next");
    world.send(producer, b"last");
    assert_eq!(world.logic.info(1).expect("queue").delayed, 0);
    let one = world.consumer(1, 2, &consumer(1));
    let events = world.turn();
    assert_eq!(payloads(&events), ["next"]);
    assert_eq!(world.logic.info(1).expect("queue").delayed, 1);
    assert_eq!(world.logic.next_deadline(), Some(500_000_000));
    let lease = deliveries(&events)[0].1;
    world.ms = 500;
    world.up(one, Up::Ack { lease, request: 0 });
    let events = world.turn();
    assert_eq!(payloads(&events), ["late"], "before what was sent after it");
    assert_eq!(deliveries(&events)[0].1.attempt, 1);
}

#[test]
fn a_restart_neither_prolongs_nor_shortens() {
    for with_checkpoint in [false, true] {
        let mut world = World::new(&[definition(1, "q")]);
        let producer = world.producer(1);
        world.send_with(producer, &metadata(Some(900), Some(500)), b"late");
        world.send_with(producer, &metadata(Some(600), None), b"short");
        let worker = world.consumer(1, 2, &consumer(1));
        assert_eq!(payloads(&world.turn()), ["short"]);
        world.log.write_checkpoint(&world.logic);
        world.logic.close_handle(&mut world.port, worker, at_ms(0));
        let mut other = restarted(&world, with_checkpoint, 499);
        other.consumer(1, 2, &consumer(4));
        assert_eq!(payloads(&other.turn()), ["short"]);
        other.ms = 500;
        assert_eq!(payloads(&other.turn()), ["late"]);
        // Too late for both, and nobody asks.
        let mut other = restarted(&world, with_checkpoint, 950);
        other.turn();
        let info = other.logic.info(1).expect("queue");
        assert_eq!((info.messages, info.expired), (0, 2), "checkpoint: {with_checkpoint}");
    }
}

#[test]
fn looks_do_not_grow_with_the_messages() {
    let mut world = World::new(&[with_ttl(1, "q", 10_000)]);
    let producer = world.producer(1);
    for ms in 0..20_000 {
        world.ms = ms;
        world.send_with(producer, &metadata(Some(7_000), None), b"x");
        if ms % 64 == 0 {
            world.turn();
        }
    }
    world.turn();
    world.log.write_checkpoint(&world.logic);
    let (_, records) = world.log.checkpoint.as_ref().expect("written");
    let bytes: usize = records
        .iter()
        .filter(|record| record.kind == kind::LOOKS_STATE)
        .map(|record| record.body.len())
        .sum();
    assert!((1..256 * 20).contains(&bytes), "{bytes}");
    assert!(world.logic.info(1).expect("queue").messages <= 7_100);
}

#[test]
fn what_is_far_behind_stays_until_it_comes_near() {
    let mut world = World::new(&[definition(1, "q")]);
    let producer = world.producer(1);
    world.send_with(producer, &metadata(Some(5_000), None), b"first");
    for _ in 0..70_000 {
        world.send(producer, b"x");
    }
    world.send_with(producer, &metadata(Some(100), None), b"far");
    world.turn();
    world.ms = 1_000;
    world.turn();
    assert_eq!(world.logic.info(1).expect("queue").expired, 0);
    assert!(
        count(&world, kind::EXPIRED) == 0 && world.logic.info(1).expect("queue").ready > 70_000
    );
    let mut other = restarted(&world, false, 1_000);
    let worker = other.consumer(1, 2, &consumer(4_096));
    for _ in 0..2_000 {
        for (_, lease, _) in deliveries(&other.turn()) {
            other.up(worker, Up::Ack { lease, request: 0 });
        }
    }
    let info = other.logic.info(1).expect("queue");
    assert_eq!((info.messages, info.expired), (0, 1));
    // Two groups, and nobody who fetches what has come near.
    let mut audit = consumer(4_096);
    audit.group = "audit".to_owned();
    let one = world.consumer(1, 2, &audit);
    let two = world.consumer(1, 3, &consumer(4_096));
    for _ in 0..80 {
        for (to, lease, _) in deliveries(&world.turn()) {
            world.up(to, Up::Ack { lease, request: 0 });
        }
    }
    for handle in [one, two] {
        world.logic.close_handle(&mut world.port, handle, at_ms(1_000));
    }
    world.turn();
    assert_eq!(count(&world, kind::EXPIRED), 2, "both groups: it has come near");
}

#[test]
fn a_full_disk_holds_expiry_up_and_a_failed_one_ends_it() {
    let mut world = World::new(&[with_ttl(1, "q", 100)]);
    let producer = world.producer(1);
    for _ in 0..5_000 {
        world.send(producer, b"x");
    }
    world.turn();
    world.log.full = true;
    world.ms = 200;
    for _ in 0..20 {
        world.turn();
    }
    let info = world.logic.info(1).expect("queue");
    assert_eq!((info.messages, info.expired), (5_000, 0));
    world.log.full = false;
    let mut failing = restarted(&world, false, 200);
    for _ in 0..20 {
        world.turn();
    }
    let info = world.logic.info(1).expect("queue");
    assert_eq!((info.messages, info.expired), (0, 5_000));

    failing.log.failed = true;
    failing.logic.on_failed(5, &mut failing.port);
    failing.consumer(1, 2, &consumer(8));
    for _ in 0..10 {
        assert_eq!(payloads(&failing.turn()), [""; 0]);
    }
    assert_eq!(failing.logic.next_deadline(), None, "nobody wakes up for it");
}

#[test]
fn a_new_group_gets_nothing_that_is_over() {
    let mut world = World::new(&[with_ttl(1, "q", 100)]);
    let producer = world.producer(1);
    world.send(producer, b"x");
    let worker = world.consumer(1, 2, &consumer(1));
    assert_eq!(payloads(&world.turn()), ["x"]);
    world.ms = 500;
    world.turn();
    let mut audit = consumer(0);
    audit.group = "audit".to_owned();
    world.consumer(1, 3, &audit);
    world.turn();
    let info = world.logic.info(1).expect("queue");
    assert_eq!((info.messages, info.expired, info.unacknowledged), (1, 1, 1));
    world.logic.close_handle(&mut world.port, worker, at_ms(500));
    world.turn();
    assert_eq!(world.logic.info(1).expect("queue").messages, 0);
}

/// A stream keeps what is over and acknowledged; a group without consumers gets it and loses it.
#[test]
fn a_new_group_of_a_stream_loses_what_is_over() {
    let limits = Limits { retention: Retention::Stream, stream_from: 1, ..Limits::default() };
    let mut world = World::new(&[QueueDefinition { limits, ..with_ttl(1, "q", 100) }]);
    let producer = world.producer(1);
    world.send(producer, b"x");
    let worker = world.consumer(1, 2, &consumer(1));
    let (_, lease, _) = deliveries(&world.turn())[0].clone();
    world.up(worker, Up::Ack { lease, request: 0 });
    world.turn();
    world.ms = 500;
    world.turn();
    let create = GroupCommand::Create { from: StartAt::First };
    world.logic.group_command(&mut world.log, 1, 1, "audit", create);
    world.turn();
    assert_eq!(world.logic.info(1).expect("queue").expired, 1);
}

#[test]
fn an_adopted_lease_expires_when_it_comes_back() {
    let mut world = World::new(&[with_ttl(1, "q", 100)]);
    let producer = world.producer(1);
    world.send(producer, b"x");
    let worker = world.consumer(1, 2, &consumer(1));
    let (_, lease, _) = deliveries(&world.turn())[0].clone();
    world.ms = 200;
    world.turn();
    world.log.write_checkpoint(&world.logic);
    let mut logic: Logic = world.log.replay(true, 0).expect("ours");
    logic.open_consumer(&mut world.log, worker, &consumer(1)).expect("queue");
    assert!(logic.adopt_lease(worker, lease.slot, lease.sequence, lease.attempt, at_ms(200)));
    logic.start(at_ms(200));
    world.logic = logic;
    world.turn();
    assert_eq!(world.logic.info(1).expect("queue").unacknowledged, 1);
    world.logic.close_handle(&mut world.port, worker, at_ms(200));
    world.turn();
    let info = world.logic.info(1).expect("queue");
    assert_eq!((info.messages, info.expired), (0, 1));
}

#[test]
fn an_edit_counts_for_what_is_with_consumers() {
    for (before, after, expired) in [(100, 1_000, 0), (100, 0, 0), (1_000, 100, 1), (0, 100, 1)] {
        let mut world = World::new(&[with_ttl(1, "q", before)]);
        let producer = world.producer(1);
        world.send(producer, b"x");
        let worker = world.consumer(1, 2, &consumer(1));
        let (_, lease, _) = deliveries(&world.turn())[0].clone();
        let edit = QueueEdit { ttl_ms: Some(after), ..QueueEdit::default() };
        world.logic.edit_queue(&mut world.log, 1, 1, edit);
        world.turn();
        // Nobody asks for it until then.
        world.ms = 50;
        world.up(worker, Up::Nack { lease, request: 0, delay_ms: 900 });
        world.turn();
        world.ms = 200;
        world.turn();
        let info = world.logic.info(1).expect("queue");
        assert_eq!((info.messages, info.expired), (1 - expired, expired), "{before} to {after}");
    }
}

#[test]
fn what_is_given_out_before_it_was_looked_at_is_looked_at_later() {
    let mut world = World::new(&[with_ttl(1, "q", 100)]);
    let producer = world.producer(1);
    world.send(producer, b"x");
    world.turn();
    world.log.write_checkpoint(&world.logic);
    let mut other = restarted(&world, false, 10);
    let edit = QueueEdit { ttl_ms: Some(120), ..QueueEdit::default() };
    other.logic.edit_queue(&mut other.log, 1, 1, edit);
    let worker = other.consumer(1, 2, &consumer(1));
    // It has to be read for that look, and when it is there the consumer gets it.
    other.log.far.insert((1, 1));
    let (_, lease, _) = deliveries(&other.turn())[0].clone();
    other.up(worker, Up::Nack { lease, request: 0, delay_ms: 500 });
    other.turn();
    other.ms = 200;
    other.turn();
    let info = other.logic.info(1).expect("queue");
    assert_eq!((info.messages, info.expired), (0, 1));
}

#[test]
fn malformed_times_are_refused() {
    let mut world = World::new(&[definition(1, "q")]);
    let producer = world.producer(1);
    let good = metadata(Some(5), Some(7));
    assert_eq!(times(&good), Some(Times { ttl_ms: Some(5), delay_ms: Some(7) }));
    let bad: [&[u8]; 4] =
        [&[6, 0, 1, 0, 9], &[7, 0, 0, 0], &[6, 0, 255, 0], &good[..good.len() - 1]];
    for metadata in bad {
        world.send_with(producer, metadata, b"x");
        let events = world.turn();
        let refused =
            |event: &Event| matches!(event, Event::Completed { outcome: Outcome::Invalid, .. });
        assert!(events.len() == 1 && refused(&events[0]), "{metadata:?}: {events:?}");
    }
    // So far away that it never comes.
    world.send_with(producer, &metadata(Some(u64::MAX / 1_000_000), Some(3)), b"x");
    world.ms = 4;
    world.consumer(1, 2, &consumer(1));
    assert_eq!(payloads(&world.turn()), ["x"]);
    assert_eq!(handle(1, 1), producer);
}
