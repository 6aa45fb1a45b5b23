//! Transactions, one thing at a time.

use ringmain_client::layout::metadata::OwnSequence;
use ringmain_client::wire::{LeaseToken, Outcome, Up};

use super::cases::{World, ack, answers, consumer, deliveries};
use super::memory::{Event, at_ms, definition, handle};
use crate::shard::logic::record::kind;
use crate::shard::logic::{HandleId, Refusal, Snapshot, TransactionAck, TransactionMessage};

/// Two queues with a producer each; the first has a consumer that holds two messages.
fn world() -> (World, [HandleId; 2], HandleId, Vec<LeaseToken>) {
    let mut world = World::new(&[definition(1, "in"), definition(2, "out")]);
    let producers = [handle(1, 1), handle(2, 1)];
    for (producer, lane) in producers.into_iter().zip(77..) {
        world.logic.open_producer(producer, lane).expect("queue");
    }
    let worker = world.consumer(1, 2, &consumer(4));
    world.send(producers[0], b"a");
    world.send(producers[0], b"b");
    let leases = deliveries(&world.turn()).iter().map(|(_, lease, _)| *lease).collect();
    (world, producers, worker, leases)
}

fn message(handle: HandleId, payload: &[u8]) -> TransactionMessage<'_> {
    TransactionMessage { handle, metadata: &[], payload }
}

fn transact(
    world: &mut World,
    (lane, position): (HandleId, u64),
    messages: &[TransactionMessage<'_>],
    acks: &[TransactionAck],
) -> Vec<Event> {
    let now = at_ms(world.ms);
    world
        .logic
        .transact(&mut world.log, lane, position, position + 3, messages, acks, now)
        .expect("room");
    world.turn()
}

fn completed(events: &[Event]) -> Vec<(u64, Outcome, u64)> {
    events
        .iter()
        .filter_map(|event| match event {
            Event::Completed { position, outcome, sequence, .. } => {
                Some((*position, *outcome, *sequence))
            }
            _ => None,
        })
        .collect()
}

#[test]
fn messages_and_acknowledgements_in_one_step() {
    let (mut world, [input, output], worker, leases) = world();
    let reader = world.consumer(2, 3, &consumer(4));
    world.turn();
    let acks = [TransactionAck { handle: worker, lease: leases[0] }];
    let messages = [message(output, b"x"), message(input, b"c"), message(output, b"y")];
    let before = world.log.last();
    let now = at_ms(0);
    let logic = &mut world.logic;
    logic.transact(&mut world.log, output, 0, 3, &messages, &acks, now).expect("room");
    let kinds: Vec<u8> = world.log.records[before as usize..].iter().map(|one| one.kind).collect();
    let expected =
        [kind::TRANSACTION, kind::MESSAGE, kind::MESSAGE, kind::MESSAGE, kind::ACKNOWLEDGED];
    assert_eq!(kinds, expected);
    // Nobody hears of it before it is durable, and its input is needed until then.
    world.logic.on_durable(before, &mut world.port, &mut world.log, now);
    world.logic.dispatch(&mut world.log, &mut world.port, now);
    assert_eq!(world.port.events, []);
    assert!(world.logic.is_needed(1, 1, 1));
    assert_eq!(world.port.leases.len(), 2);
    let events = world.turn();
    assert_eq!(completed(&events), [(0, Outcome::Done, 1)]);
    let given: Vec<_> =
        deliveries(&events).into_iter().map(|(to, _, payload)| (to, payload)).collect();
    let expected = [(reader, b"x".to_vec()), (reader, b"y".to_vec()), (worker, b"c".to_vec())];
    assert!(expected.iter().all(|one| given.contains(one)) && given.len() == 3, "{given:?}");
    assert!(!world.logic.is_needed(1, 1, 1));
    // The lease is gone for whoever acknowledges it once more.
    world.up(worker, ack(leases[0], 5));
    assert_eq!(answers(&world.turn()), [(5, Outcome::LeaseLost)]);
}

#[test]
fn one_stale_lease_and_nothing_is_done() {
    let (mut world, [_, output], worker, leases) = world();
    world.up(worker, Up::Nack { lease: leases[1], request: 0, delay_ms: 1000 });
    world.turn();
    let good = TransactionAck { handle: worker, lease: leases[0] };
    let mut older = leases[0];
    older.attempt += 1;
    let nobody = handle(1, 99);
    let bad = [
        vec![good, TransactionAck { handle: worker, lease: leases[1] }],
        vec![good, good],
        vec![TransactionAck { handle: worker, lease: older }],
        vec![TransactionAck { handle: nobody, lease: leases[0] }],
        vec![TransactionAck { handle: output, lease: leases[0] }],
    ];
    let before = world.log.last();
    for (position, acks) in (0..).map(|number| number * 3).zip(bad) {
        let events = transact(&mut world, (output, position), &[message(output, b"x")], &acks);
        assert_eq!(completed(&events), [(position, Outcome::LeaseLost, 0)], "{acks:?}");
    }
    assert_eq!(world.log.last(), before);
    assert_eq!(world.logic.info(2).expect("queue").next_sequence, 1);
    let events = transact(&mut world, (output, 30), &[message(output, b"x")], &[good]);
    assert_eq!(completed(&events), [(30, Outcome::Done, 1)]);
}

#[test]
fn what_cannot_be_stored_stops_the_whole() {
    let (mut world, [input, output], worker, leases) = world();
    let acks = [TransactionAck { handle: worker, lease: leases[0] }];
    let long = vec![1; 140_000];
    let cases: [(&[TransactionMessage<'_>], Outcome); 3] = [
        (&[message(output, b"x"), message(output, &long)], Outcome::TooLarge),
        (&[message(output, b"x"), message(worker, b"x")], Outcome::Invalid),
        (&[message(output, b"x"), message(handle(1, 99), b"x")], Outcome::Invalid),
    ];
    let before = world.log.last();
    for (messages, outcome) in cases {
        let events = transact(&mut world, (output, 0), messages, &acks);
        assert_eq!(completed(&events)[0].1, outcome);
    }
    world.logic.delete_queue(&mut world.log, 9, 1);
    let messages = [message(output, b"x"), message(input, b"x")];
    let events = transact(&mut world, (output, 0), &messages, &[]);
    assert_eq!(completed(&events)[0].1, Outcome::QueueDeleted);
    assert_eq!(world.log.last(), before + 1);
    assert_eq!(world.logic.info(2).expect("queue").next_sequence, 1);
}

#[test]
fn no_room_changes_nothing_and_a_failed_journal_is_told() {
    let (mut world, [_, output], worker, leases) = world();
    let acks = [TransactionAck { handle: worker, lease: leases[0] }];
    let messages = [message(output, b"x")];
    let before = world.log.last();
    world.log.full = true;
    let now = at_ms(0);
    let logic = &mut world.logic;
    let refused = logic.transact(&mut world.log, output, 0, 3, &messages, &acks, now);
    assert_eq!(refused, Err(Refusal::Full));
    world.log.full = false;
    assert_eq!((world.turn(), world.log.last()), (Vec::new(), before));
    let logic = &mut world.logic;
    logic.transact(&mut world.log, output, 0, 3, &messages, &acks, now).expect("room");
    world.logic.on_failed(5, &mut world.port);
    let events = std::mem::take(&mut world.port.events);
    assert_eq!(completed(&events), [(0, Outcome::JournalFailed, 0)]);
    let events = transact(&mut world, (output, 3), &messages, &acks[..0]);
    assert_eq!(completed(&events), [(3, Outcome::JournalFailed, 0)]);
}

#[test]
fn after_a_restart_the_lane_knows_it() {
    let (mut world, [input, output], worker, leases) = world();
    let acks = [TransactionAck { handle: worker, lease: leases[0] }];
    let messages = [message(output, b"x"), message(input, b"c")];
    transact(&mut world, (output, 0), &messages, &acks);
    transact(&mut world, (output, 3), &[], &[TransactionAck { handle: worker, lease: leases[1] }]);
    world.log.write_checkpoint(&world.logic);
    transact(&mut world, (output, 6), &messages[..1], &[]);
    for (with_checkpoint, overlap) in [(false, 0), (true, 0), (true, 4), (true, 9)] {
        let mut logic = world.log.replay(with_checkpoint, overlap).expect("replay");
        logic.open_producer(output, 78).expect("queue");
        let runs = logic.lane_runs(output, 0);
        let positions: Vec<_> = runs
            .iter()
            .flat_map(|run| {
                (0..u64::from(run.count))
                    .map(|at| (run.first_position + at * run.stride, run.first_sequence + at))
            })
            .collect();
        assert_eq!(positions, [(0, 1), (3, 0), (6, 2)], "{with_checkpoint} {overlap}");
        logic.start(at_ms(0));
        assert_eq!(logic.info(1).expect("queue").messages, 1);
        assert_eq!(logic.info(2).expect("queue").messages, 2);
    }
}

#[test]
fn a_transaction_with_a_duplicate_was_carried_out_before() {
    let (mut world, [input, _], worker, leases) = world();
    let named = handle(2, 5);
    let logic = &mut world.logic;
    logic.open_named_producer(&mut world.log, named, 5, "worker", 9, at_ms(0)).expect("attached");
    world.turn();
    let entry = |sequence| OwnSequence { producer: 1, epoch: 1, sequence }.encode();
    let (first, second) = (entry(1), entry(2));
    let own = |metadata| TransactionMessage { handle: named, metadata, payload: b"own" };
    let acks = |lease| [TransactionAck { handle: worker, lease }];
    let both = [own(&first), message(input, b"c"), own(&second)];
    let events = transact(&mut world, (named, 0), &both, &acks(leases[0]));
    assert_eq!(completed(&events), [(0, Outcome::Done, 1)]);
    let again = [message(input, b"c"), own(&second)];
    let events = transact(&mut world, (named, 3), &again, &acks(leases[1]));
    assert_eq!(completed(&events), [(3, Outcome::Duplicate, 0)]);
    assert_eq!(world.logic.info(1).expect("queue").next_sequence, 4);
    let (third, fourth) = (entry(3), entry(4));
    // Neither the same as before nor new.
    let events = transact(&mut world, (named, 6), &[own(&second), own(&third)], &[]);
    assert_eq!(completed(&events), [(6, Outcome::Invalid, 0)]);
    let events = transact(&mut world, (named, 6), &[own(&fourth), own(&third)], &[]);
    assert_eq!(completed(&events), [(6, Outcome::Invalid, 0)]);
    let logic = &mut world.logic;
    logic.open_named_producer(&mut world.log, handle(2, 6), 6, "worker", 9, at_ms(0)).expect("it");
    let events = transact(&mut world, (named, 9), &[own(&third)], &acks(leases[1]));
    assert_eq!(completed(&events), [(9, Outcome::Fenced, 0)]);
}

#[test]
fn a_queue_without_room_for_all_refuses_the_whole() {
    use ringmain_client::protocol::Overflow;

    use crate::shard::logic::Limits;

    for overflow in [Overflow::Block, Overflow::Reject, Overflow::DropOldest] {
        let mut full = definition(2, "full");
        (full.durable, full.limits) =
            (false, Limits { max_messages: 2, overflow, ..Limits::default() });
        let mut world = World::new(&[definition(1, "free"), full]);
        let (free, full) = (handle(1, 1), handle(2, 1));
        world.logic.open_producer(free, 77).expect("queue");
        world.logic.open_producer(full, 78).expect("queue");
        let both = [message(free, b"x"), message(full, b"y"), message(full, b"z")];
        let events = transact(&mut world, (free, 0), &both, &[]);
        assert_eq!(completed(&events), [(0, Outcome::Done, 1)], "{overflow:?}");
        let events = transact(&mut world, (free, 3), &both[..2], &[]);
        let (outcome, sequence, messages) = match overflow {
            Overflow::DropOldest => (Outcome::Done, 2, 2),
            _ => (Outcome::QueueFull, 0, 1),
        };
        assert_eq!(completed(&events), [(3, outcome, sequence)], "{overflow:?}");
        assert_eq!(world.logic.info(1).expect("queue").messages, messages);
        let info = world.logic.info(2).expect("queue");
        let rejected = u64::from(overflow == Overflow::Reject);
        assert_eq!((info.messages, info.rejected), (2, rejected), "{overflow:?}");
    }
}
