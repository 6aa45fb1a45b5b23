//! Groups of brokered queues: where they start, resets, deletions, and what a death in between leaves.

use std::time::SystemTime;

use ringmain_client::protocol::ErrorCode;
use ringmain_client::{
    AckError, BrokeredConsumer, Client, Closed, ConsumerOptions, Delivery, GroupInfo, GroupPlace,
    QueueSpec, ReceiveError, ResetOptions, StartAt,
};

use crate::brokered_flow::refused;
use crate::brokered_support::*;
use crate::support::*;

fn member(client: &Client, group: &str) -> BrokeredConsumer {
    client.brokered_consumer("q", ConsumerOptions::default().group(group)).unwrap()
}

fn now() -> StartAt {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    StartAt::Time(u64::try_from(since.as_nanos()).unwrap())
}

fn place(sequence: u64, messages: u64) -> GroupPlace {
    GroupPlace { sequence, messages }
}

fn names(client: &Client) -> Vec<String> {
    client.groups("q").unwrap().into_iter().map(|info| info.group).collect()
}

fn sequences(seen: &[(u64, String)]) -> Vec<u64> {
    seen.iter().map(|(sequence, _)| *sequence).collect()
}

fn forced() -> ResetOptions {
    ResetOptions::default().force(true)
}

fn groups_start_where_they_are_asked_to(spec: QueueSpec) {
    let mut daemon = Durable::start();
    let is_durable = spec.durable;
    let client = daemon.client();
    client.create_queue("q", spec).unwrap();
    let mut sending = producer(&client, "q");
    publish(&mut sending, (1..=500).map(|n| format!("m{n}")));
    let between = now();
    publish(&mut sending, (501..=800).map(|n| format!("m{n}")));
    assert_eq!(client.create_group("q", "first", StartAt::First).unwrap(), place(1, 800));
    assert_eq!(client.create_group("q", "new", StartAt::New).unwrap(), place(801, 0));
    assert_eq!(client.create_group("q", "at", StartAt::Sequence(700)).unwrap(), place(700, 101));
    assert_eq!(client.create_group("q", "last", StartAt::Last(9)).unwrap(), place(792, 9));
    assert_eq!(client.create_group("q", "time", between).unwrap(), place(501, 300));
    assert_eq!(client.create_group("q", "future", now()).unwrap(), place(801, 0));
    assert_eq!(refused(client.create_group("q", "time", between)).0, ErrorCode::Exists);
    if is_durable {
        // The messages are on the disk alone.
        drop(sending);
        daemon.restart();
    }
    let client = daemon.client();
    assert_eq!(client.create_group("q", "later", between).unwrap(), place(501, 300));
    assert_eq!(names(&client), ["", "at", "first", "future", "last", "later", "new", "time"]);
    let mut late = member(&client, "later");
    assert!(!late.created_group());
    assert_eq!(sequences(&consume(&mut late, 300)), (501..=800).collect::<Vec<_>>());
    nothing_comes(&mut late);
    let options = ConsumerOptions::default().group("own").from(between);
    let mut own = client.brokered_consumer("q", options).unwrap();
    assert!(own.created_group());
    assert_eq!(receive(&mut own).sequence(), 501);
    let options = ConsumerOptions::default().browse(true).from(StartAt::Last(2));
    let mut looker = client.brokered_consumer("q", options).unwrap();
    assert!(!looker.created_group());
    assert_eq!([receive(&mut looker).sequence(), receive(&mut looker).sequence()], [799, 800]);
}

#[test]
fn groups_start_where_they_are_asked_to_on_the_disk() {
    groups_start_where_they_are_asked_to(durable());
}

#[test]
fn groups_start_where_they_are_asked_to_in_memory() {
    groups_start_where_they_are_asked_to(in_memory());
}

#[test]
fn a_group_says_how_far_behind_it_is() {
    let daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("q", durable()).unwrap();
    let before = SystemTime::now();
    publish(&mut producer(&client, "q"), (1..=10).map(|_| "12345".to_owned()));
    let mut worker = member(&client, "");
    let taken: Vec<Delivery> = (0..10).map(|_| receive(&mut worker)).collect();
    for delivery in &taken[..4] {
        worker.ack_confirmed(delivery, PATIENCE).unwrap();
    }
    worker.nack_confirmed(&taken[4], PATIENCE * 10, PATIENCE).unwrap();
    let info = client.group_info("q", "").unwrap();
    let age = u64::try_from(before.elapsed().unwrap().as_nanos()).unwrap();
    assert!((1..=age).contains(&info.lag_ns), "{info:?} {age}");
    let expected = GroupInfo {
        group: String::new(),
        lag_messages: 6,
        lag_bytes: 30,
        lag_ns: info.lag_ns,
        consumers: 1,
        unacknowledged: 5,
        delayed: 1,
        next_sequence: 11,
        skipped: 0,
        unused: false,
        stalled: false,
    };
    assert_eq!(info, expected);
    for delivery in &taken[5..] {
        worker.ack_confirmed(delivery, PATIENCE).unwrap();
    }
    client.purge_queue("q").unwrap();
    let info = client.group_info("q", "").unwrap();
    assert_eq!((info.lag_messages, info.lag_bytes, info.lag_ns), (0, 0, 0));
}

#[test]
fn a_reset_takes_leases_and_says_where_it_landed() {
    let mut daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("q", durable()).unwrap();
    client.create_group("q", "audit", StartAt::First).unwrap();
    publish(&mut producer(&client, "q"), (1..=10).map(|n| format!("m{n}")));
    let mut audit = member(&client, "audit");
    consume(&mut audit, 6);
    let held = receive(&mut audit);
    let reset = |to, options| client.reset_group("q", "audit", to, options);
    let (code, text) = refused(reset(StartAt::First, ResetOptions::default()));
    assert!(code == ErrorCode::Busy && text.contains("--force"), "{text}");
    let dry = ResetOptions::default().dry_run(true);
    assert_eq!(reset(StartAt::First, dry).unwrap(), place(1, 10));
    assert_eq!(client.group_info("q", "audit").unwrap().lag_messages, 4);
    // The default group still has all of them.
    assert_eq!(reset(StartAt::Sequence(3), forced()).unwrap(), place(3, 8));
    assert_eq!(audit.ack_confirmed(&held, PATIENCE), Err(AckError::LeaseLost));
    let mut seen = Vec::new();
    while seen.len() < 8 {
        let delivery = receive(&mut audit);
        // What was on its way when the leases were lost.
        if audit.ack_confirmed(&delivery, PATIENCE) == Err(AckError::LeaseLost) {
            continue;
        }
        assert_eq!(delivery.attempt(), 1);
        seen.push(delivery.sequence());
    }
    assert_eq!(seen, (3..=10).collect::<Vec<_>>());
    assert_eq!(reset(StartAt::Sequence(9), forced()).unwrap(), place(9, 2));
    drop(audit);
    // What every group has acknowledged is gone.
    consume(&mut member(&client, ""), 9);
    daemon.kill_all();
    let client = daemon.client();
    let reset = |to| client.reset_group("q", "audit", to, ResetOptions::default());
    assert_eq!(reset(StartAt::First).unwrap(), place(9, 2));
    assert_eq!(reset(StartAt::New).unwrap(), place(11, 0));
    assert_eq!(reset(StartAt::First).unwrap(), place(10, 1));
    assert_eq!(sequences(&consume(&mut member(&client, "audit"), 1)), [10]);
}

fn a_deleted_group_ends_its_consumers(spec: QueueSpec) {
    let daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("q", spec).unwrap();
    publish(&mut producer(&client, "q"), (1..=5).map(|n| format!("m{n}")));
    let mut gone = member(&client, "gone");
    assert!(gone.created_group());
    let mut stays = member(&client, "stays");
    let held = receive(&mut gone);
    let (code, text) = refused(client.delete_group("q", "gone", false));
    assert!(code == ErrorCode::Busy && text.contains("1 consumers"), "{text}");
    client.delete_group("q", "gone", true).unwrap();
    let end = loop {
        match gone.receive_timeout(PATIENCE) {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(end, ReceiveError::Closed(Closed::GroupDeleted));
    let late = gone.ack_confirmed(&held, PATIENCE);
    assert_eq!(late, Err(AckError::Closed(Closed::GroupDeleted)));
    assert_eq!(names(&client), ["", "stays"]);
    // Another broker makes neither the group nor its consumer again.
    daemon.daemon.kill_broker();
    let client = daemon.client();
    assert_eq!(names(&client), ["", "stays"]);
    assert_eq!(
        gone.receive_timeout(QUIET).unwrap_err(),
        ReceiveError::Closed(Closed::GroupDeleted)
    );
    assert_eq!(consume(&mut stays, 5).len(), 5);
    drop(gone);
    // Those behind it in the list went on, and a new one of the name starts afresh.
    let mut again = member(&client, "gone");
    assert!(again.created_group());
    assert_eq!(sequences(&consume(&mut again, 5)), [1, 2, 3, 4, 5]);
    assert_eq!(consume(&mut member(&client, ""), 5).len(), 5);
    eventually_inside(&client, "q", |info| info.messages == 0);
}

#[test]
fn a_deleted_group_ends_its_consumers_on_the_disk() {
    a_deleted_group_ends_its_consumers(durable());
}

#[test]
fn a_deleted_group_ends_its_consumers_in_memory() {
    a_deleted_group_ends_its_consumers(in_memory());
}

#[test]
fn many_groups_are_listed_in_pages_up_to_a_limit() {
    let daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("q", in_memory()).unwrap();
    let many: Vec<String> = (1..256).map(|n| format!("g{n:03}")).collect();
    for group in &many {
        client.create_group("q", group, StartAt::New).unwrap();
    }
    assert_eq!(names(&client)[1..], many);
    let (code, text) = refused(client.create_group("q", "one-more", StartAt::New));
    assert!(code == ErrorCode::Limit && text.contains("256"), "{text}");
    let options = ConsumerOptions::default().group("one-more");
    assert_eq!(refused(client.brokered_consumer("q", options)).0, ErrorCode::Limit);
    client.delete_group("q", "g100", false).unwrap();
    client.create_group("q", "one-more", StartAt::New).unwrap();
}

#[test]
fn what_cannot_be_done_to_a_group_is_refused() {
    let daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("q", durable()).unwrap();
    client.create_queue("d", QueueSpec::default()).unwrap();
    let reset =
        |queue, group| client.reset_group(queue, group, StartAt::New, ResetOptions::default());
    let create = |queue, group| client.create_group(queue, group, StartAt::New);
    let long = "g".repeat(201);
    type Refusal = (ErrorCode, String);
    let cases: [(Refusal, ErrorCode, &str); 13] = [
        (refused(client.groups("nobody")), ErrorCode::NotFound, "nobody"),
        (refused(client.groups("d")), ErrorCode::Invalid, "direct"),
        (refused(client.group_info("q", "x")), ErrorCode::NotFound, "no group x"),
        (refused(client.group_info("d", "")), ErrorCode::Invalid, "direct"),
        (refused(create("nobody", "x")), ErrorCode::NotFound, "nobody"),
        (refused(create("q", "")), ErrorCode::Exists, "default"),
        (refused(create("q", "no spaces")), ErrorCode::Invalid, "group name"),
        (refused(create("q", &long)), ErrorCode::Invalid, "group name"),
        (refused(reset("q", "x")), ErrorCode::NotFound, "no group x"),
        (refused(reset("d", "")), ErrorCode::Invalid, "direct"),
        (refused(client.delete_group("q", "", true)), ErrorCode::Invalid, "default group"),
        (refused(client.delete_group("q", "x", true)), ErrorCode::NotFound, "no group x"),
        (refused(client.delete_group("nobody", "x", true)), ErrorCode::NotFound, "nobody"),
    ];
    for (number, ((code, text), expected, word)) in cases.into_iter().enumerate() {
        assert!(code == expected && text.contains(word), "case {number}: {code:?} {text}");
    }
    assert_eq!(names(&client), [""]);
}
