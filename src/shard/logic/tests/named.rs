//! Named producers, one thing at a time.

use ringmain_client::layout::metadata::{Metadata, OwnSequence};
use ringmain_client::wire::{Outcome, Up};

use super::cases::{World, consumer, deliveries};
use super::memory::{Event, definition, handle};
use crate::shard::logic::{
    ControlResult, FORGOTTEN_AFTER_NS, HandleId, NAMES_MAX, Now, Refusal, Snapshot, headers,
};

fn at(ms: u64) -> Now {
    super::memory::at_ms(ms)
}

/// Attaches, and takes the answer: id, epoch, last own sequence.
fn attach(world: &mut World, number: u8, name: &str) -> (HandleId, u64, u32, u64) {
    let producer = handle(1, number);
    let (lane, now) = (u64::from(number), at(world.ms));
    world
        .logic
        .open_named_producer(&mut world.log, producer, lane, name, 9, now)
        .expect("attached");
    let events = world.turn();
    let [Event::Control { request: 9, result: ControlResult::Named { id, epoch, last } }] =
        events[..]
    else {
        panic!("{events:?}");
    };
    (producer, id, epoch, last)
}

fn entry(producer: u64, epoch: u32, sequence: u64) -> Vec<u8> {
    OwnSequence { producer, epoch, sequence }.encode().to_vec()
}

fn outcomes(events: &[Event]) -> Vec<(Outcome, u64)> {
    events
        .iter()
        .filter_map(|event| match event {
            Event::Completed { outcome, sequence, .. } => Some((*outcome, *sequence)),
            _ => None,
        })
        .collect()
}

/// Sends these own sequences; what became of each, with the sequence in the queue.
fn send(
    world: &mut World,
    producer: HandleId,
    (id, epoch): (u64, u32),
    own: &[u64],
) -> Vec<(Outcome, u64)> {
    for sequence in own {
        world.send_with(producer, &entry(id, epoch, *sequence), b"m");
    }
    outcomes(&world.turn())
}

const DUPLICATE: (Outcome, u64) = (Outcome::Duplicate, 0);
const FENCED: (Outcome, u64) = (Outcome::Fenced, 0);
const INVALID: (Outcome, u64) = (Outcome::Invalid, 0);

#[test]
fn what_is_stored_is_stored_once() {
    let mut world = World::new(&[definition(1, "orders")]);
    let (producer, id, epoch, last) = attach(&mut world, 2, "import");
    assert_eq!((epoch, last), (1, 0));
    let me = (id, epoch);
    let done = |sequence| (Outcome::Done, sequence);
    assert_eq!(send(&mut world, producer, me, &[1, 2, 2]), [done(1), done(2), DUPLICATE]);
    // Gaps are allowed, the way back is not.
    assert_eq!(send(&mut world, producer, me, &[7, 6, 8]), [done(3), DUPLICATE, done(4)]);
    let (_, same, epoch, last) = attach(&mut world, 3, "import");
    assert_eq!((same, epoch, last), (id, 2, 8));
    let (_, other, epoch, last) = attach(&mut world, 4, "other");
    assert!(other != id);
    assert_eq!((epoch, last), (1, 0));
}

#[test]
fn a_duplicate_is_told_when_what_was_before_it_is_durable() {
    let mut world = World::new(&[definition(1, "orders")]);
    let (producer, id, epoch, _) = attach(&mut world, 2, "import");
    let durable = world.log.last();
    world.send_with(producer, &entry(id, epoch, 1), b"m");
    world.send_with(producer, &entry(id, epoch, 1), b"m");
    world.logic.on_durable(durable, &mut world.port, &mut world.log, at(0));
    assert_eq!(world.port.events, []);
    let mut failed = world.log.clone();
    failed.failed = true;
    assert_eq!(outcomes(&world.turn()), [(Outcome::Done, 1), DUPLICATE]);
    // Nor is it told when the journal fails before.
    world.send_with(producer, &entry(id, epoch, 2), b"m");
    world.send_with(producer, &entry(id, epoch, 2), b"m");
    world.logic.on_failed(5, &mut world.port);
    let events = std::mem::take(&mut world.port.events);
    assert_eq!(outcomes(&events), [(Outcome::JournalFailed, 0); 2]);
    let again = world.logic.open_named_producer(&mut failed, handle(1, 3), 3, "import", 9, at(0));
    assert_eq!(again, Err(Refusal::JournalFailed(5)));
}

#[test]
fn the_next_attachment_fences() {
    let mut world = World::new(&[definition(1, "orders")]);
    let (first, id, _, _) = attach(&mut world, 2, "import");
    send(&mut world, first, (id, 1), &[1]);
    let (second, _, epoch, _) = attach(&mut world, 3, "import");
    assert_eq!(epoch, 2);
    assert_eq!(send(&mut world, first, (id, 1), &[2, 1]), [FENCED, FENCED]);
    // The handle is the older one's, whatever it says; and nobody is ahead of the epoch.
    assert_eq!(send(&mut world, first, (id, 3), &[2]), [INVALID]);
    assert_eq!(send(&mut world, second, (id, 2), &[2]), [(Outcome::Done, 2)]);
    // After a restart as well.
    for with_checkpoint in [false, true] {
        world.log.write_checkpoint(&world.logic);
        let mut logic = world.log.replay(with_checkpoint, 0).expect("replay");
        for (number, lane) in [(2, 2), (3, 3)] {
            logic.adopt_named_producer(handle(1, number), lane, "import").expect("queue");
        }
        logic.start(at(0));
        world.logic = logic;
        assert_eq!(send(&mut world, first, (id, 1), &[9]), [FENCED]);
        assert_eq!(send(&mut world, second, (id, 2), &[2]), [DUPLICATE]);
    }
}

#[test]
fn only_whoever_has_the_name_may_use_it() {
    let mut world = World::new(&[definition(1, "orders")]);
    let (named, id, epoch, _) = attach(&mut world, 2, "import");
    let (other, _, _, _) = attach(&mut world, 3, "other");
    let unnamed = world.producer(1);
    assert_eq!(send(&mut world, unnamed, (id, epoch), &[1]), [INVALID]);
    assert_eq!(send(&mut world, other, (id, epoch), &[1]), [INVALID]);
    assert_eq!(send(&mut world, named, (id, epoch), &[0]), [INVALID]);
    for metadata in [&b""[..], &[3, 0, 20, 0, 1], &[1, 0, 1, 0, b'k']] {
        world.send_with(named, metadata, b"m");
        assert_eq!(outcomes(&world.turn()), [INVALID], "{metadata:?}");
    }
    // Behind another entry it means nothing.
    let behind = [&[1, 0, 1, 0, b'k'][..], &entry(id, epoch, 5)].concat();
    world.send_with(unnamed, &behind, b"m");
    assert_eq!(outcomes(&world.turn()), [(Outcome::Done, 1)]);
    assert_eq!(send(&mut world, named, (id, epoch), &[1]), [(Outcome::Done, 2)]);
}

#[test]
fn a_name_of_an_attachment_that_was_lost_stores_nothing() {
    let mut world = World::new(&[definition(1, "orders")]);
    let logic = world.log.replay(false, 0).expect("replay");
    world.logic = logic;
    world.logic.adopt_named_producer(handle(1, 2), 2, "import").expect("queue");
    world.logic.start(at(0));
    assert_eq!(send(&mut world, handle(1, 2), (1, 1), &[1]), [INVALID]);
    assert_eq!(send(&mut world, handle(1, 2), (0, 1), &[1]), [FENCED]);
}

#[test]
fn unused_names_are_forgotten_when_the_next_one_comes() {
    let week_ms = FORGOTTEN_AFTER_NS / 1_000_000;
    let mut world = World::new(&[definition(1, "orders")]);
    let (kept, kept_id, _, _) = attach(&mut world, 2, "kept");
    let (gone, gone_id, _, _) = attach(&mut world, 3, "gone");
    send(&mut world, kept, (kept_id, 1), &[1]);
    send(&mut world, gone, (gone_id, 1), &[5]);
    world.logic.close_handle(&mut world.port, gone, at(0));
    world.ms = week_ms - 1;
    let (gone, same, epoch, last) = attach(&mut world, 3, "gone");
    assert_eq!((same, epoch, last), (gone_id, 2, 5));
    world.logic.close_handle(&mut world.port, gone, at(world.ms));
    world.ms += week_ms;
    // Whoever is attached stays known; a checkpoint knows that it was.
    let (_, other, _, _) = attach(&mut world, 4, "other");
    assert!(other > gone_id);
    world.log.write_checkpoint(&world.logic);
    let checkpoint = world.log.last();
    for with_checkpoint in [false, true] {
        let mut logic = world.log.replay(with_checkpoint, 2).expect("replay");
        logic.start(at(world.ms));
        let takes = |name, ms| logic.why_not_named(1, name, at(ms)).is_none();
        assert!(takes("gone", world.ms) && takes("kept", world.ms));
        world.logic = logic;
        let (_, id, epoch, last) = attach(&mut world, 6, "gone");
        assert_eq!((epoch, last), (1, 0));
        assert!(id > other);
        let (_, id, _, last) = attach(&mut world, 7, "kept");
        // Without the checkpoint nobody knows that it was attached all the time.
        let expected = if with_checkpoint { (kept_id, 1) } else { (id, 0) };
        assert_eq!((id, last), expected);
        world.log.cut(checkpoint);
    }
}

#[test]
fn a_queue_remembers_so_many_names_and_no_more() {
    let mut world = World::new(&[definition(1, "orders")]);
    for number in 0..NAMES_MAX {
        let producer = handle(1, 2);
        let name = format!("n{number}");
        assert!(world.logic.why_not_named(1, &name, at(0)).is_none());
        let (lane, logic) = (number as u64 + 1, &mut world.logic);
        logic
            .open_named_producer(&mut world.log, producer, lane, &name, 9, at(0))
            .expect("attached");
        logic.close_handle(&mut world.port, producer, at(0));
    }
    assert!(world.logic.why_not_named(1, "one more", at(0)).is_some());
    assert!(world.logic.why_not_named(1, "n7", at(0)).is_none());
    world.log.write_checkpoint(&world.logic);
    let logic = world.log.replay(true, 0).expect("replay");
    assert!(logic.why_not_named(1, "one more", at(0)).is_some());
    assert!(logic.why_not_named(1, "one more", at(FORGOTTEN_AFTER_NS / 1_000_000)).is_none());
    let mut written = 0;
    logic.write(&mut |record| {
        written += 1;
        assert!(record.parts.concat().len() < 16 * 1024);
    });
    assert!(written > NAMES_MAX / 100);
}

#[test]
fn dead_letters_are_new_messages() {
    let mut orders = definition(2, "orders");
    orders.dead_letter = "dead".to_owned();
    let mut world = World::new(&[definition(1, "dead"), orders]);
    let producer = handle(2, 2);
    let logic = &mut world.logic;
    logic.open_named_producer(&mut world.log, producer, 2, "import", 9, at(0)).expect("attached");
    let reader = world.consumer(2, 3, &consumer(4));
    world.turn();
    let mut metadata = entry(1, 1, 1);
    Metadata { key: Some(b"k".to_vec()), ..Metadata::default() }
        .encode(&mut metadata)
        .expect("short");
    world.send_with(producer, &metadata, b"m");
    let lease = deliveries(&world.turn())[0].1;
    world.up(reader, Up::Reject { lease, request: 0 });
    let dead = world.consumer(1, 4, &consumer(4));
    let events = world.turn();
    let Some(Event::Delivered { metadata, .. }) = events
        .iter()
        .find(|event| matches!(event, Event::Delivered { handle, .. } if *handle == dead))
    else {
        panic!("{events:?}");
    };
    assert_eq!(OwnSequence::first_of(metadata), Ok(None));
    assert_eq!(headers::find(metadata, headers::REASON), Some("rejected"));
    assert_eq!(Metadata::decode(metadata).expect("ours").key, Some(b"k".to_vec()));
    world.log.replay(false, 0).expect("replay");
}

#[test]
fn no_room_for_the_attachment_changes_nothing() {
    let mut world = World::new(&[definition(1, "orders")]);
    world.log.full = true;
    let logic = &mut world.logic;
    let refused = logic.open_named_producer(&mut world.log, handle(1, 2), 2, "import", 9, at(0));
    assert_eq!(refused, Err(Refusal::Full));
    world.log.full = false;
    assert_eq!(world.turn(), []);
    let (_, _, epoch, last) = attach(&mut world, 2, "import");
    assert_eq!((epoch, last), (1, 0));
}

#[test]
fn queues_that_reject_have_no_names() {
    use ringmain_client::protocol::{ErrorCode, Overflow};

    use crate::shard::logic::{Limits, QueueEdit};

    let mut rejects = definition(2, "rejects");
    let limits = Limits { max_messages: 1, overflow: Overflow::Reject, ..Limits::default() };
    rejects.limits = limits;
    let mut world = World::new(&[definition(1, "orders"), rejects]);
    let why = world.logic.why_not_named(2, "import", at(0)).expect("refused");
    assert_eq!(why.0, ErrorCode::Invalid);
    let reject = |world: &mut World| {
        let mut edit = QueueEdit::default();
        edit.limits.max_messages = Some(1);
        edit.limits.overflow = Some(Overflow::Reject);
        world.logic.edit_queue(&mut world.log, 7, 1, edit);
        match &world.turn()[..] {
            [Event::Control { request: 7, result }] => result.clone(),
            events => panic!("{events:?}"),
        }
    };
    attach(&mut world, 2, "import");
    assert!(matches!(reject(&mut world), ControlResult::Refused(ErrorCode::Busy, _)));
}
