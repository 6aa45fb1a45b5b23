//! Groups: one thing at a time.

use ringmain_client::protocol::{ErrorCode, GroupPlace, Retention, StartAt};
use ringmain_client::wire::{Outcome, Up};

use super::cases::{World, ack, answers, consumer, deliveries};
use super::memory::{Event, at_ms, definition};
use crate::shard::logic::record::kind;
use crate::shard::logic::{ControlResult, GroupCommand, Refusal, Snapshot};

fn ask(world: &mut World, group: &str, command: GroupCommand) -> Vec<Event> {
    world.logic.group_command(&mut world.log, 9, 1, group, command);
    world.turn()
}

fn answer(events: &[Event]) -> ControlResult {
    let of = |event: &Event| match event {
        Event::Control { request: 9, result } => Some(result.clone()),
        _ => None,
    };
    events.iter().find_map(of).expect("an answer")
}

fn place(sequence: u64, messages: u64) -> ControlResult {
    ControlResult::Group(GroupPlace { sequence, messages })
}

fn reset(to: StartAt, force: bool) -> GroupCommand {
    GroupCommand::Reset { to, dry_run: false, force }
}

/// One message a millisecond, from 1 ms on.
fn publish(world: &mut World, messages: u64) {
    let producer = world.producer(1);
    for _ in 0..messages {
        world.ms += 1;
        world.send(producer, b"payload");
    }
    world.turn();
}

fn time(ms: u64) -> StartAt {
    StartAt::Time(at_ms(ms).realtime_ns)
}

/// Far messages are read for a start at a time: requests about other queues are answered meanwhile, those about this one in order.
#[test]
fn a_search_holds_up_requests_of_its_queue_only() {
    let mut world = World::new(&[definition(1, "q"), definition(2, "other")]);
    publish(&mut world, 9000);
    world.log.far = (1..=9000).map(|sequence| (1, sequence)).collect();
    let create = GroupCommand::Create { from: time(101) };
    world.logic.group_command(&mut world.log, 9, 1, "late", create);
    world.logic.purge(&mut world.log, 10, 1);
    world.logic.purge(&mut world.log, 11, 2);
    let mut order = Vec::new();
    for _ in 0..40 {
        let controls = world.turn().into_iter().filter_map(|event| match event {
            Event::Control { request, .. } => Some(request),
            _ => None,
        });
        order.extend(controls);
    }
    assert_eq!(order, [11, 9, 10]);
}

#[test]
fn a_start_is_searched_for_where_marks_are_far_apart() {
    let mut world = World::new(&[definition(1, "q")]);
    publish(&mut world, 9000);
    let all = 1..=9000u64;
    world.log.far = all.clone().map(|sequence| (1, sequence)).collect();
    let far = world.log.far.len();
    // Only some are read, and what was found is kept from turn to turn.
    world.logic.group_command(
        &mut world.log,
        9,
        1,
        "late",
        GroupCommand::Create { from: time(101) },
    );
    let mut turns = 0;
    let place_found = loop {
        let events = world.turn();
        turns += 1;
        assert!(turns < 40, "it does not come to an end");
        if !events.is_empty() {
            break answer(&events);
        }
    };
    assert_eq!(place_found, place(101, 8900));
    assert!((1..30).contains(&(far - world.log.far.len())), "{turns} turns");
    for (from, at) in [(0, 1), (1, 1), (2500, 2500), (9000, 9000), (9001, 9001)] {
        let name = format!("at-{from}");
        let mut events = ask(&mut world, &name, GroupCommand::Create { from: time(from) });
        while events.is_empty() {
            events = world.turn();
        }
        assert_eq!(answer(&events), place(at, 9001 - at), "from {from}");
    }
}

#[test]
fn an_attachment_waits_for_its_start() {
    let mut world = World::new(&[definition(1, "q")]);
    publish(&mut world, 5000);
    world.log.far = (1..=5000).map(|sequence| (1, sequence)).collect();
    let mut spec = consumer(4);
    (spec.group, spec.from) = ("late".to_owned(), time(203));
    let handle = super::memory::handle(1, 7);
    let mut refused = 0;
    while world.logic.open_consumer(&mut world.log, handle, &spec) == Err(Refusal::Full) {
        refused += 1;
        assert!(refused < 40);
        assert_eq!(world.turn(), []);
    }
    assert!(refused > 0, "nothing had to be read");
    let mut seen = Vec::new();
    while seen.is_empty() {
        seen = deliveries(&world.turn());
    }
    assert_eq!(seen[0].1.sequence, 203);
}

/// Whoever is adopted waits for nothing: what follows would wait as well.
#[test]
fn an_adopted_browser_starts_at_a_mark() {
    let mut world = World::new(&[definition(1, "q")]);
    publish(&mut world, 5000);
    let mut logic = world.log.replay(false, 0).expect("ours");
    world.log.far = (1..=5000).map(|sequence| (1, sequence)).collect();
    let mut spec = consumer(4);
    (spec.browse, spec.adopted, spec.from) = (true, true, time(203));
    let handle = super::memory::handle(1, 7);
    assert_eq!(logic.open_consumer(&mut world.log, handle, &spec), Ok(false));
    logic.start(at_ms(world.ms));
    world.logic = logic;
    let mut seen = Vec::new();
    while seen.is_empty() {
        seen = deliveries(&world.turn());
    }
    assert!((100..=203).contains(&seen[0].1.sequence), "{seen:?}");
}

/// A message that cannot be read is rather given than left out.
#[test]
fn a_start_that_cannot_be_read_is_early() {
    let mut world = World::new(&[definition(1, "q")]);
    publish(&mut world, 5000);
    world.log.lost = (1..=5000).map(|sequence| (1, sequence)).collect();
    let events = ask(&mut world, "late", GroupCommand::Create { from: time(203) });
    let ControlResult::Group(found) = answer(&events) else { panic!("{events:?}") };
    assert!(found.sequence <= 203 && found.sequence > 100, "{found:?}");
}

#[test]
fn the_last_messages_are_those_that_are_there() {
    let mut world = World::new(&[definition(1, "q")]);
    publish(&mut world, 10);
    let worker = world.consumer(1, 2, &consumer(10));
    let given = deliveries(&world.turn());
    for (_, lease, _) in &given[3..9] {
        world.up(worker, ack(*lease, 0));
    }
    world.turn();
    // 1, 2, 3 and 10 are there.
    for (messages, at, there) in [(0, 11, 0), (1, 10, 1), (2, 3, 2), (4, 1, 4), (99, 1, 4)] {
        let name = format!("last-{messages}");
        let from = StartAt::Last(messages);
        let events = ask(&mut world, &name, GroupCommand::Create { from });
        assert_eq!(answer(&events), place(at, there), "last {messages}");
    }
}

#[test]
fn a_reset_takes_leases_and_rejections() {
    let mut world = World::new(&[definition(1, "q")]);
    publish(&mut world, 4);
    let worker = world.consumer(1, 2, &consumer(2));
    let given = deliveries(&world.turn());
    world.up(worker, Up::Reject { lease: given[0].1, request: 5 });
    let refused = ask(&mut world, "", reset(StartAt::New, false));
    assert!(matches!(answer(&refused), ControlResult::Refused(ErrorCode::Busy, _)));
    world.logic.group_command(&mut world.log, 9, 1, "", reset(StartAt::Sequence(3), true));
    assert!(world.logic.is_needed(1, 1, 2), "the reset is not durable");
    let events = world.turn();
    assert_eq!(answer(&events), place(3, 2));
    assert!(!world.logic.is_needed(1, 1, 2));
    world.up(worker, ack(given[1].1, 6));
    let events = [events, world.turn()].concat();
    assert!(answers(&events).contains(&(6, Outcome::LeaseLost)), "{events:?}");
    let again: Vec<u64> = deliveries(&events).iter().map(|(_, lease, _)| lease.sequence).collect();
    assert_eq!(again, [3, 4]);
    let logic = world.log.replay(false, 0).expect("ours");
    assert_eq!(logic.groups(1, Some(""), 0).expect("queue")[0].lag_messages, 0, "not started");
}

#[test]
fn a_deletion_ends_consumers_when_it_is_durable_and_the_group_stays_away() {
    let mut world = World::new(&[definition(1, "q")]);
    let mut spec = consumer(4);
    spec.group = "gone".to_owned();
    let gone = world.consumer(1, 2, &spec);
    spec.group = "stays".to_owned();
    let stays = world.consumer(1, 3, &spec);
    publish(&mut world, 1);
    let given = deliveries(&std::mem::take(&mut world.port.events));
    assert_eq!(given, [], "taken by the turn before");
    world.logic.group_command(&mut world.log, 9, 1, "gone", GroupCommand::Delete { force: true });
    assert!(world.port.events.is_empty(), "not durable");
    let events = world.turn();
    assert!(events.contains(&Event::Ended { handle: gone }));
    assert_eq!(answer(&events), ControlResult::Done);
    assert!(world.port.leases.keys().all(|(handle, _)| *handle == stays));
    world.logic.close_handle(&mut world.port, gone, at_ms(9));
    // Its successor in the list of groups is served, and its timers are its own.
    let lease = world.port.leases.iter().next().map(|((_, slot), (attempt, sequence))| {
        ringmain_client::wire::LeaseToken { slot: *slot, attempt: *attempt, sequence: *sequence }
    });
    let lease = lease.expect("with the other group");
    world.up(stays, Up::Nack { lease, request: 7, delay_ms: 20 });
    world.turn();
    world.ms += 30;
    assert_eq!(deliveries(&world.turn())[0].0, stays);
    assert_eq!(world.log.records.iter().filter(|one| one.kind == kind::GROUP_DELETED).count(), 1);
    for with_checkpoint in [false, true] {
        world.log.write_checkpoint(&world.logic);
        let mut logic = world.log.replay(with_checkpoint, 3).expect("ours");
        (spec.group, spec.adopted) = ("gone".to_owned(), true);
        let opened = logic.open_consumer(&mut world.log, gone, &spec);
        assert_eq!(opened, Err(Refusal::NoGroup));
        let names = logic.groups(1, None, 0).expect("queue");
        let names: Vec<&str> = names.iter().map(|info| info.group.as_str()).collect();
        assert_eq!(names, ["", "stays"]);
    }
}

/// After a failure a group whose deletion was lost goes on.
#[test]
fn a_deletion_that_failed_leaves_the_group() {
    let mut world = World::new(&[definition(1, "q")]);
    let mut spec = consumer(4);
    spec.group = "audit".to_owned();
    let audit = world.consumer(1, 2, &spec);
    world.turn();
    world.logic.group_command(&mut world.log, 9, 1, "audit", GroupCommand::Delete { force: true });
    world.logic.on_failed(5, &mut world.port);
    let failed = Event::Control { request: 9, result: ControlResult::JournalFailed(5) };
    assert_eq!(world.port.events, [failed]);
    let groups = world.logic.groups(1, Some("audit"), 0).expect("queue");
    assert_eq!(groups[0].consumers, 1);
    world.logic.close_handle(&mut world.port, audit, at_ms(0));
}

/// What a deleted group had not acknowledged stands in nobody's way.
#[test]
fn a_deletion_makes_room_below_a_limit() {
    let mut limited = definition(1, "q");
    limited.limits.max_messages = 2;
    let mut world = World::new(&[limited]);
    let create = GroupCommand::Create { from: StartAt::First };
    assert_eq!(answer(&ask(&mut world, "slow", create)), place(1, 0));
    publish(&mut world, 2);
    let worker = world.consumer(1, 2, &consumer(4));
    for (_, lease, _) in deliveries(&world.turn()) {
        world.up(worker, ack(lease, 0));
    }
    world.turn();
    let producer = super::memory::handle(1, 1);
    let now = at_ms(world.ms);
    let full = world.logic.publish(&mut world.log, producer, 90, 91, 0, &[], b"x", now);
    assert_eq!(full, Err(Refusal::Limit));
    world.turn();
    assert_eq!(world.logic.take_unblocked(), []);
    ask(&mut world, "slow", GroupCommand::Delete { force: false });
    assert_eq!(world.logic.take_unblocked(), [producer]);
    let now = at_ms(world.ms);
    assert_eq!(world.logic.publish(&mut world.log, producer, 90, 91, 0, &[], b"x", now), Ok(()));
}

/// A broker that died now would leave a journal without the group, and its consumers would be ended.
#[test]
fn whoever_joins_a_new_group_waits_for_its_record_too() {
    let mut world = World::new(&[definition(1, "q")]);
    let mut spec = consumer(8);
    let default = world.consumer(1, 2, &spec);
    spec.group = "late".to_owned();
    let first = world.consumer(1, 3, &spec);
    let created = world.log.last();
    world.producer(1);
    let second = world.consumer(1, 4, &spec);
    let lsns = [default, first, second].map(|consumer| world.logic.group_lsn(consumer));
    assert_eq!(lsns, [0, created, created]);
    // By request as well.
    let create = GroupCommand::Create { from: StartAt::New };
    world.logic.group_command(&mut world.log, 9, 1, "asked", create);
    spec.group = "asked".to_owned();
    let third = world.consumer(1, 5, &spec);
    assert_eq!(world.logic.group_lsn(third), world.log.last());
    assert!(world.log.last() > created);
}

/// Whatever the lengths of the messages are that other groups have: producers are not held up by what is not there.
#[test]
fn a_group_that_begins_far_behind_has_the_bytes_of_its_messages() {
    for (retention, default) in [(Retention::Acknowledged, 3100), (Retention::Stream, 0)] {
        let mut queue = definition(1, "q");
        queue.limits.retention = retention;
        let mut world = World::new(&[queue]);
        let producer = world.producer(1);
        let send = |world: &mut World, payload: &[u8], messages| {
            for _ in 0..messages {
                world.ms += 2;
                world.send(producer, payload);
                world.turn();
            }
        };
        let bytes = |world: &World| {
            let bytes = |name| world.logic.groups(1, Some(name), 0).expect("queue")[0].lag_bytes;
            ["", "far", "near", "later"].map(bytes)
        };
        let create = |from| GroupCommand::Create { from };
        send(&mut world, b"x", 100);
        ask(&mut world, "near", create(StartAt::New));
        send(&mut world, &[0; 1000], 3);
        ask(&mut world, "far", create(StartAt::First));
        ask(&mut world, "later", create(StartAt::Sequence(51)));
        // Nobody has used the default group of a stream.
        assert_eq!(bytes(&world), [default, 3100, 3000, 3050]);
        ask(&mut world, "far", reset(StartAt::Sequence(101), false));
        assert_eq!(bytes(&world), [default, 3000, 3000, 3050]);
        let info = world.logic.info(1).expect("queue");
        assert_eq!((info.messages, info.message_bytes), (103, 3100));
        let replayed = world.log.replay(false, 0).expect("ours");
        assert_eq!(replayed.info(1).expect("queue").message_bytes, 3100);
    }
}
