//! What queues keep: limits that hold producers up, refuse, or discard, and streams.

use std::time::Duration;

use ringmain_client::protocol::ErrorCode;
use ringmain_client::{
    BrokeredProducer, ClientError, ConfirmError, ConsumerOptions, DeliverySpec, Overflow,
    QueueSpec, Receipt, Retention,
};

use crate::brokered_idle::switches;
use crate::brokered_support::*;
use crate::support::*;

fn at_most(max_messages: u64) -> DeliverySpec {
    DeliverySpec { max_messages: Some(max_messages), ..DeliverySpec::default() }
}

fn stream() -> DeliverySpec {
    DeliverySpec { retention: Some(Retention::Stream), ..DeliverySpec::default() }
}

fn send(producer: &mut BrokeredProducer, range: std::ops::RangeInclusive<u64>) -> Vec<Receipt> {
    range.map(|n| producer.send_timeout(format!("m{n}").as_bytes(), PATIENCE).unwrap()).collect()
}

fn numbers(range: std::ops::RangeInclusive<u64>) -> Vec<(u64, String)> {
    range.map(|number| (number, format!("m{number}"))).collect()
}

#[test]
fn a_full_queue_holds_its_producers_up_and_nobody_else() {
    for spec in [durable(), in_memory()] {
        let daemon = Durable::start();
        let client = daemon.client();
        client.create_queue("q", with_rules(spec.clone(), at_most(10))).unwrap();
        client.create_queue("other", spec).unwrap();
        let mut sender = producer(&client, "q");
        let receipts = send(&mut sender, 1..=30);
        sender.wait_timeout(&receipts[9], PATIENCE).unwrap();
        eventually_inside(&client, "q", |info| info.blocked_producers == 1);
        let info = inside(&client, "q");
        assert_eq!((info.messages, info.blocked_by.as_str()), (10, "max-messages"));
        assert_eq!(sender.wait_timeout(&receipts[10], QUIET), Err(ConfirmError::Timeout));
        publish(&mut producer(&client, "other"), ["m".to_owned()]);
        // The next broker finds the same, and lets nothing in that the last one held up.
        daemon.daemon.kill_broker();
        eventually_inside(&client, "q", |info| info.blocked_producers == 1);
        assert_eq!(inside(&client, "q").messages, 10);
        assert_eq!(consume(&mut consumer(&client, "q"), 30), numbers(1..=30));
        for (nth, receipt) in receipts.iter().enumerate() {
            let confirmation = sender.wait_timeout(receipt, PATIENCE).unwrap();
            assert_eq!(confirmation.sequence, nth as u64 + 1);
        }
        eventually_inside(&client, "q", |info| info.blocked_producers == 0 && info.messages == 0);
    }
}

#[test]
fn producers_that_wait_take_turns_and_what_a_gone_one_sent_arrives() {
    let daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("q", with_rules(durable(), at_most(5))).unwrap();
    let mut senders: Vec<_> = (0..3).map(|_| producer(&client, "q")).collect();
    for sender in &mut senders {
        send(sender, 1..=20);
    }
    eventually_inside(&client, "q", |info| info.blocked_producers == 3);
    // What is in its lane is taken when there is room, though nobody waits for it.
    drop(senders.pop());
    let mut receiver = consumer(&client, "q");
    let seen = consume(&mut receiver, 60);
    let sequences: Vec<u64> = seen.iter().map(|(sequence, _)| *sequence).collect();
    assert_eq!(sequences, (1..=60).collect::<Vec<_>>());
    for sender in &mut senders {
        sender.wait_all_timeout(PATIENCE).unwrap();
    }
    let producers = || client.queue_info("q").unwrap().producers;
    eventually("the end of the handle", || (producers() == 2).then_some(()));
}

#[test]
fn a_higher_limit_a_purge_and_a_deletion_end_the_waiting() {
    let daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("q", with_rules(in_memory(), at_most(2))).unwrap();
    let mut sender = producer(&client, "q");
    let receipts = send(&mut sender, 1..=9);
    eventually_inside(&client, "q", |info| info.blocked_producers == 1);
    client.edit_queue("q", at_most(4)).unwrap();
    sender.wait_timeout(&receipts[3], PATIENCE).unwrap();
    eventually_inside(&client, "q", |info| info.blocked_producers == 1);
    assert_eq!(client.purge_queue("q").unwrap(), 4);
    sender.wait_timeout(&receipts[7], PATIENCE).unwrap();
    eventually_inside(&client, "q", |info| info.blocked_producers == 1);
    client.delete_queue("q").unwrap();
    let last = sender.wait_timeout(&receipts[8], PATIENCE).unwrap_err();
    assert!(matches!(last, ConfirmError::Closed(_) | ConfirmError::QueueDeleted), "{last:?}");
}

#[test]
fn a_producer_that_waits_for_room_costs_nothing() {
    let daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("q", with_rules(durable(), at_most(1))).unwrap();
    let mut sender = producer(&client, "q");
    send(&mut sender, 1..=20);
    eventually_inside(&client, "q", |info| info.blocked_producers == 1);
    let broker = daemon.daemon.status().broker_pid;
    let quiet = eventually("a quiet second", || {
        let before = switches(broker);
        std::thread::sleep(Duration::from_secs(1));
        (switches(broker) == before).then_some(before)
    });
    std::thread::sleep(Duration::from_secs(1));
    assert!(switches(broker) <= quiet + 2, "{} wake-ups", switches(broker) - quiet);
}

#[test]
fn a_queue_that_rejects_says_so_in_order() {
    let daemon = Durable::start();
    let client = daemon.client();
    let rules = DeliverySpec { overflow: Some(Overflow::Reject), ..at_most(2) };
    client.create_queue("q", with_rules(durable(), rules)).unwrap();
    let mut sender = producer(&client, "q");
    let receipts = send(&mut sender, 1..=4);
    let outcomes: Vec<_> = receipts
        .iter()
        .map(|receipt| sender.wait_timeout(receipt, PATIENCE).map(|done| done.sequence))
        .collect();
    let full = Err(ConfirmError::QueueFull);
    assert_eq!(outcomes, [Ok(1), Ok(2), full, full]);
    assert_eq!(consume(&mut consumer(&client, "q"), 2), numbers(1..=2));
    let receipt = sender.send(b"m3").unwrap();
    assert_eq!(sender.wait_timeout(&receipt, PATIENCE).unwrap().sequence, 3);
    assert_eq!(inside(&client, "q").messages, 1);
}

#[test]
fn a_stream_keeps_its_last_messages_whoever_has_read_them() {
    let mut daemon = Durable::start();
    let client = daemon.client();
    let rules = DeliverySpec { max_messages: Some(20), ..stream() };
    client.create_queue("s", with_rules(durable(), rules)).unwrap();
    publish(&mut producer(&client, "s"), (1..=50).map(|n| format!("m{n}")));
    let as_it_is = |info: &ringmain_client::BrokeredInfo| {
        (info.messages, info.first_sequence, info.trimmed, info.skipped) == (20, 31, 30, 30)
    };
    eventually_inside(&client, "s", as_it_is);
    assert_eq!(consume(&mut consumer(&client, "s"), 20), numbers(31..=50));
    assert!(as_it_is(&inside(&client, "s")));
    let late = |client: &ringmain_client::Client, group: &str| {
        let mut late =
            client.brokered_consumer("s", ConsumerOptions::default().group(group)).unwrap();
        assert_eq!(consume(&mut late, 20), numbers(31..=50));
        nothing_comes(&mut late);
        assert_eq!(late.take_skipped(), 0);
    };
    late(&client, "late");
    daemon.daemon.kill_broker();
    late(&client, "later");
    drop(client);
    daemon.kill_all();
    let client = daemon.client();
    assert!(as_it_is(&inside(&client, "s")));
    nothing_comes(&mut consumer(&client, "s"));
    late(&client, "latest");
}

#[test]
fn a_stream_uses_its_space_again() {
    const LIMIT: u64 = 2 << 20;
    let daemon = Durable::start_with(&["--segment-size", "256KiB"]);
    let client = daemon.client();
    let rules = DeliverySpec { max_bytes: Some(LIMIT), ..stream() };
    client.create_queue("s", with_rules(durable(), rules)).unwrap();
    let mut sender = producer(&client, "s");
    for n in 0..1000u64 {
        let mut payload = vec![b'x'; 16 << 10];
        payload[..8].copy_from_slice(&n.to_le_bytes());
        sender.send_timeout(&payload, PATIENCE).unwrap();
    }
    sender.wait_all_timeout(PATIENCE).unwrap();
    let info = inside(&client, "s");
    assert!(info.message_bytes <= LIMIT && info.message_bytes > LIMIT / 16 * 15, "{info:?}");
    assert_eq!(info.trimmed + info.messages, 1000);
    let used = || -> u64 {
        let folders = std::fs::read_dir(daemon.data.path()).unwrap();
        let files = folders
            .flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).into_iter().flatten());
        files.map(|file| file.unwrap().metadata().map_or(0, |found| found.len())).sum()
    };
    // 16 MiB were written.
    assert!(used() > LIMIT && used() < 4 * LIMIT, "{} bytes", used());
    let mut receiver = consumer(&client, "s");
    let first = receive(&mut receiver);
    assert_eq!(first.sequence(), info.first_sequence);
    assert_eq!(first.payload()[..8], (info.first_sequence - 1).to_le_bytes());
}

#[test]
fn messages_leave_a_stream_when_their_time_is_over() {
    let daemon = Durable::start();
    let client = daemon.client();
    let rules = DeliverySpec { max_age_ms: Some(400), ..stream() };
    client.create_queue("s", with_rules(durable(), rules)).unwrap();
    let mut sender = producer(&client, "s");
    publish(&mut sender, (1..=3).map(|n| format!("m{n}")));
    // Nothing happens but time.
    eventually_inside(&client, "s", |info| info.messages == 0 && info.trimmed == 3);
    publish(&mut sender, ["m4".to_owned()]);
    assert_eq!(consume(&mut consumer(&client, "s"), 1), numbers(4..=4));
}

#[test]
fn the_oldest_make_room_and_a_slow_consumer_is_told() {
    let daemon = Durable::start();
    let client = daemon.client();
    let rules = DeliverySpec { overflow: Some(Overflow::DropOldest), ..at_most(5) };
    client.create_queue("q", with_rules(in_memory(), rules)).unwrap();
    let mut slow = client.brokered_consumer("q", ConsumerOptions::default().credit(1)).unwrap();
    let mut sender = producer(&client, "q");
    for n in 1..=40 {
        publish(&mut sender, [format!("m{n}")]);
    }
    let info = inside(&client, "q");
    assert_eq!((info.messages, info.dropped, info.skipped), (5, 35, 35));
    let (mut seen, mut skipped) = (Vec::new(), 0);
    while seen.last() != Some(&40) {
        let delivery = receive(&mut slow);
        seen.push(delivery.sequence());
        skipped += slow.take_skipped();
        slow.ack(&delivery).unwrap();
    }
    // Each message was delivered, or was told of.
    assert_eq!(seen.len() as u64 + skipped, 40);
    assert_eq!(seen, [1, 36, 37, 38, 39, 40]);
}

#[test]
fn rules_are_edited_and_what_makes_no_sense_is_refused() {
    let daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("q", durable()).unwrap();
    client.create_queue("m", in_memory()).unwrap();
    let drop_oldest = DeliverySpec { overflow: Some(Overflow::DropOldest), ..at_most(5) };
    let reject = DeliverySpec { overflow: Some(Overflow::Reject), ..DeliverySpec::default() };
    let cases = [
        ("q", drop_oldest.clone(), "durable"),
        ("q", reject, "needs a limit"),
        ("q", DeliverySpec { max_age_ms: Some(5), ..DeliverySpec::default() }, "for streams"),
        ("q", DeliverySpec { max_age_ms: Some(u64::MAX), ..stream() }, "at most"),
        (
            "m",
            DeliverySpec { retention: Some(Retention::Stream), ..drop_oldest.clone() },
            "overflow",
        ),
    ];
    for (name, rules, word) in cases {
        let edited = client.edit_queue(name, rules.clone()).map(|_| ());
        let spec = with_rules(if name == "q" { durable() } else { in_memory() }, rules);
        let created = client.create_queue("new", spec).map(|_| ());
        for result in [edited, created] {
            let Err(ClientError::Refused { code: ErrorCode::Invalid, message }) = result else {
                panic!("{result:?}");
            };
            assert!(message.contains(word), "{message}");
        }
    }
    let direct = QueueSpec { delivery: at_most(5), ..QueueSpec::default() };
    assert!(client.create_queue("direct", direct).is_err());
    let info = client.edit_queue("m", drop_oldest).unwrap().brokered.unwrap();
    assert_eq!((info.max_messages, info.overflow), (5, Overflow::DropOldest));
    let info = client.edit_queue("q", stream()).unwrap().brokered.unwrap();
    assert_eq!((info.retention, info.first_sequence), (Retention::Stream, 1));
}
