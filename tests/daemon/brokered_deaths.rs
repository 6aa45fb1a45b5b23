//! Brokered queues while somebody dies.

use std::collections::BTreeMap;
use std::time::Duration;

use ringmain_client::{ConfirmError, ConsumerOptions, DeliverySpec, ProducerOptions, SendError};

use crate::brokered_support::*;
use crate::support::*;

#[test]
fn a_dead_consumers_messages_are_with_another() {
    let daemon = Durable::start();
    let client = daemon.client();
    let rules = DeliverySpec { lease_ms: Some(0), ..DeliverySpec::default() };
    client.create_queue("q", with_rules(durable(), rules)).unwrap();
    publish(&mut producer(&client, "q"), (1..=10).map(|n| format!("m{n}")));
    let dead = Actor::started(&daemon.daemon.socket, &["lease", "q", "10"]);
    let mut other = consumer(&client, "q");
    nothing_comes(&mut other);
    dead.kill();
    let mut seen = Vec::new();
    for _ in 0..10 {
        let delivery = receive(&mut other);
        assert!(delivery.redelivered() && delivery.attempt() == 2);
        seen.push(delivery.sequence());
        other.ack(&delivery).unwrap();
    }
    assert_eq!(seen, (1..=10).collect::<Vec<_>>());
    other.flush(PATIENCE).unwrap();
    eventually("the dead handle is gone", || {
        (client.queue_info("q").unwrap().consumers == 1).then_some(())
    });
}

#[test]
fn what_a_dead_producer_sent_arrives() {
    let daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("q", durable()).unwrap();
    let dead = Actor::started(&daemon.daemon.socket, &["send", "q", "500"]);
    dead.kill();
    let seen = consume(&mut consumer(&client, "q"), 500);
    let texts: Vec<String> = (0..500).map(|n| format!("m{n}")).collect();
    assert_eq!(seen.into_iter().map(|(_, text)| text).collect::<Vec<_>>(), texts);
    eventually("its handle is gone", || {
        (daemon.daemon.status().handles == 1 || client.queue_info("q").unwrap().producers == 0)
            .then_some(())
    });
}

fn a_killed_broker_redelivers_nothing(spec: ringmain_client::QueueSpec) {
    let daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("q", spec).unwrap();
    let mut sending = producer(&client, "q");
    publish(&mut sending, (1..=20).map(|n| format!("m{n}")));
    let mut holder = client.brokered_consumer("q", ConsumerOptions::default().credit(10)).unwrap();
    let held: Vec<_> = (0..10).map(|_| receive(&mut holder)).collect();
    for _ in 0..2 {
        daemon.daemon.kill_broker();
    }
    let client = daemon.client();
    let mut other = consumer(&client, "q");
    let seen = consume(&mut other, 10);
    assert_eq!(
        seen.iter().map(|(sequence, _)| *sequence).collect::<Vec<_>>(),
        (11..=20).collect::<Vec<_>>()
    );
    nothing_comes(&mut other);
    for delivery in &held {
        assert_eq!(delivery.attempt(), 1);
        holder.ack_confirmed(delivery, PATIENCE).unwrap();
    }
    eventually_inside(&client, "q", |info| info.messages == 0);
    publish(&mut sending, ["after".to_owned()]);
    assert_eq!(inside(&client, "q").next_sequence, 22);
}

#[test]
fn a_killed_broker_redelivers_nothing_that_is_held() {
    a_killed_broker_redelivers_nothing(durable());
}

#[test]
fn nor_in_memory() {
    a_killed_broker_redelivers_nothing(in_memory());
}

#[test]
fn who_looks_on_goes_on_where_it_was() {
    let daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("q", durable()).unwrap();
    let mut sending = producer(&client, "q");
    publish(&mut sending, (1..=5).map(|n| format!("m{n}")));
    let mut looker =
        client.brokered_consumer("q", ConsumerOptions::default().browse(true)).unwrap();
    let shown: Vec<u64> = (0..5).map(|_| receive(&mut looker).sequence()).collect();
    assert_eq!(shown, [1, 2, 3, 4, 5]);
    daemon.daemon.kill_broker();
    publish(&mut sending, ["m6".to_owned()]);
    assert_eq!(receive(&mut looker).sequence(), 6);
}

fn every_message_once_over_broker_deaths(spec: ringmain_client::QueueSpec) {
    const MESSAGES: usize = 3000;
    let daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("q", spec).unwrap();
    let socket = daemon.daemon.socket.clone();
    let sender = std::thread::spawn(move || {
        let client = ringmain_client::Client::connect(&socket).unwrap();
        let options = ProducerOptions::default().window(64);
        let mut producer = client.brokered_producer("q", options).unwrap();
        let mut receipts = Vec::new();
        for number in 0..MESSAGES {
            receipts
                .push(producer.send_timeout(format!("m{number}").as_bytes(), PATIENCE).unwrap());
            if number % 64 == 63 {
                producer.wait_all_timeout(PATIENCE).unwrap();
            }
            if number % 100 == 0 {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        producer.wait_all_timeout(PATIENCE).unwrap();
    });
    let socket = daemon.daemon.socket.clone();
    let taker = std::thread::spawn(move || {
        let client = ringmain_client::Client::connect(&socket).unwrap();
        consume(&mut consumer(&client, "q"), MESSAGES)
    });
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(50));
        daemon.daemon.kill_broker();
    }
    sender.join().unwrap();
    let seen = taker.join().unwrap();
    let expected: Vec<(u64, String)> =
        (0..MESSAGES).map(|number| (number as u64 + 1, format!("m{number}"))).collect();
    assert_eq!(seen, expected);
    eventually_inside(&daemon.client(), "q", |info| info.messages == 0);
}

#[test]
fn every_message_once_although_brokers_die() {
    every_message_once_over_broker_deaths(durable());
}

#[test]
fn every_message_in_memory_once_although_brokers_die() {
    every_message_once_over_broker_deaths(in_memory());
}

#[test]
fn what_was_confirmed_is_there_once_after_the_death_of_everybody() {
    let mut daemon = Durable::start_with(&["--segment-size", "256KiB"]);
    daemon.client().create_queue("q", durable()).unwrap();
    let mut confirmed: BTreeMap<u64, String> = BTreeMap::new();
    let mut sent = 0;
    for round in 0..4 {
        let client = daemon.client();
        let mut producer = producer(&client, "q");
        let mut receipts = Vec::new();
        for _ in 0..400 {
            let payload = format!("message {sent} of round {round} {}", "x".repeat(200));
            sent += 1;
            match producer.send_timeout(payload.as_bytes(), PATIENCE) {
                Ok(receipt) => receipts.push((receipt, payload)),
                Err(SendError::Timeout) => panic!("no room"),
                Err(_) => break,
            }
        }
        // Some of them are confirmed when everybody dies.
        let (last, _) = &receipts[200];
        producer.wait_timeout(last, PATIENCE).unwrap();
        for (receipt, payload) in receipts {
            match producer.try_receipt(&receipt) {
                Ok(Some(confirmation)) => {
                    assert!(confirmed.insert(confirmation.sequence, payload).is_none());
                }
                Ok(None) => break,
                Err(error) => assert!(!matches!(error, ConfirmError::TooLarge { .. }), "{error}"),
            }
        }
        daemon.kill_all();
    }
    let client = daemon.client();
    let left = usize::try_from(inside(&client, "q").messages).unwrap();
    assert!(left >= confirmed.len() && confirmed.len() >= 800);
    let seen = consume(&mut consumer(&client, "q"), left);
    let seen: BTreeMap<u64, String> = seen.into_iter().collect();
    assert_eq!(seen.len(), left, "no sequence twice");
    for (sequence, payload) in &confirmed {
        assert_eq!(seen.get(sequence), Some(payload), "{sequence}");
    }
    let distinct: std::collections::BTreeSet<&String> = seen.values().collect();
    assert_eq!(distinct.len(), left, "no message twice");
}

#[test]
fn acknowledgements_and_counts_survive_everybody() {
    let mut daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("q", durable()).unwrap();
    publish(&mut producer(&client, "q"), (1..=10).map(|n| format!("m{n}")));
    let mut taker = consumer(&client, "q");
    for _ in 0..10 {
        let delivery = receive(&mut taker);
        match delivery.sequence() {
            1..=5 => taker.ack(&delivery).unwrap(),
            6 => taker.nack(&delivery, Duration::from_secs(3600)).unwrap(),
            7 => taker.nack(&delivery, Duration::ZERO).unwrap(),
            _ => {}
        }
    }
    let again = receive(&mut taker);
    assert_eq!((again.sequence(), again.attempt()), (7, 2));
    taker.flush(PATIENCE).unwrap();
    drop(taker);
    daemon.kill_all();
    let client = daemon.client();
    let info = inside(&client, "q");
    assert_eq!((info.messages, info.next_sequence), (5, 11));
    let mut taker = consumer(&client, "q");
    let mut seen = BTreeMap::new();
    for _ in 0..4 {
        let delivery = receive(&mut taker);
        seen.insert(delivery.sequence(), delivery.attempt());
        taker.ack(&delivery).unwrap();
    }
    assert_eq!(seen.keys().copied().collect::<Vec<_>>(), [7, 8, 9, 10]);
    assert!(seen[&7] >= 2, "{seen:?}");
    nothing_comes(&mut taker);
}

#[test]
fn a_stop_keeps_everything() {
    let mut daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("q", durable()).unwrap();
    let mut sending = producer(&client, "q");
    for number in 0..500 {
        sending.send(format!("m{number}").as_bytes()).unwrap();
    }
    // Not waited for: what is in the lane is stored before the daemon leaves.
    daemon.restart();
    assert!(!daemon.daemon.log().contains("not closed cleanly"), "{}", daemon.daemon.log());
    sending.wait_all_timeout(PATIENCE).unwrap();
    assert!(sending.send(b"x").is_err());
    let client = daemon.client();
    assert_eq!(consume(&mut consumer(&client, "q"), 500).len(), 500);
}

#[test]
fn a_damaged_journal_is_not_served() {
    let mut daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("q", durable()).unwrap();
    let mut sending = producer(&client, "q");
    for number in 0..30 {
        publish(&mut sending, [format!("m{number}")]);
    }
    assert!(daemon.daemon.end(nix::sys::signal::Signal::SIGTERM).success());
    let folder = daemon.data.path().join("shard-0");
    let mut files: Vec<_> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut damaged = None;
    for path in files {
        let mut bytes = std::fs::read(&path).unwrap();
        let text = b"m15";
        if let Some(at) = bytes.windows(text.len()).position(|window| window == text) {
            bytes[at] ^= 0x55;
            std::fs::write(&path, bytes).unwrap();
            damaged = Some(path);
        }
    }
    assert!(damaged.is_some(), "the message lies in the journal as it is");
    let output = std::process::Command::new(BINARY)
        .args(["serve", "--socket"])
        .arg(daemon.data.path().join("s"))
        .arg("--data-dir")
        .arg(daemon.data.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(65), "{text}");
    assert!(text.contains("corrupt at LSN") && text.contains("repair"), "{text}");
}

#[test]
fn without_room_producers_wait_and_then_go_on() {
    let arguments = ["--segment-size", "256KiB", "--limit-bytes", "6MiB"];
    let daemon = Durable::start_with(&arguments);
    let client = daemon.client();
    client.create_queue("q", in_memory()).unwrap();
    let mut sending = producer(&client, "q");
    let payload = vec![7; 10_000];
    let mut sent = 0;
    let full = loop {
        match sending.send_timeout(&payload, QUIET * 4) {
            Ok(_) => sent += 1,
            Err(error) => break error,
        }
        assert!(sent < 2000, "6 MiB take no {sent} messages");
    };
    assert!(matches!(full, SendError::Timeout), "{full:?}");
    eventually("a line", || daemon.daemon.log().contains("no room").then_some(()));
    let mut receiving = consumer(&client, "q");
    for _ in 0..sent {
        let delivery = receive(&mut receiving);
        receiving.ack(&delivery).unwrap();
    }
    receiving.flush(PATIENCE).unwrap();
    sending.wait_all_timeout(PATIENCE).unwrap();
    for _ in 0..100 {
        sending.send_timeout(&payload, PATIENCE).unwrap();
    }
    consume_bytes(&mut receiving, 100);
}

fn consume_bytes(receiving: &mut ringmain_client::BrokeredConsumer, count: usize) {
    for _ in 0..count {
        let delivery = receive(receiving);
        assert_eq!(delivery.payload().len(), 10_000);
        receiving.ack(&delivery).unwrap();
    }
    receiving.flush(PATIENCE).unwrap();
}

#[test]
fn an_upgrade_is_not_noticed() {
    let daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("q", durable()).unwrap();
    client.create_queue("m", in_memory()).unwrap();
    let mut handles: Vec<_> =
        ["q", "m"].map(|name| (producer(&client, name), consumer(&client, name))).into();
    for round in 0..3 {
        for (sending, receiving) in &mut handles {
            publish(sending, (0..10).map(|n| format!("m{n}")));
            let seen = consume(receiving, 5);
            assert!(seen[0].0 > 0);
        }
        let before = daemon.daemon.status();
        client.upgrade(None).unwrap();
        daemon.daemon.next_broker(&before);
        let log = daemon.daemon.log();
        assert!(!log.contains("not closed cleanly"), "{round}: {log}");
        for (_, receiving) in &mut handles {
            consume(receiving, 5);
            nothing_comes(receiving);
        }
    }
}

fn an_spsc_hand_over_keeps_the_order(spec: ringmain_client::QueueSpec) {
    const MESSAGES: u64 = 3000;
    const ACKNOWLEDGED: u64 = 900;
    let daemon = Durable::start();
    let client = daemon.client();
    let spec = ringmain_client::QueueSpec { kind: Some(ringmain_client::Kind::Spsc), ..spec };
    client.create_queue("q", spec).unwrap();
    publish(&mut producer(&client, "q"), (1..=MESSAGES).map(|n| format!("m{n}")));
    let many = ConsumerOptions::default().credit(1000);
    let mut first = client.brokered_consumer("q", many.clone()).unwrap();
    let held: Vec<_> = (1..=1000).map(|_| receive(&mut first)).collect();
    // More than are taken in one turn of the shard: its successor comes while they are.
    for delivery in &held[..usize::try_from(ACKNOWLEDGED).unwrap()] {
        first.ack(delivery).unwrap();
    }
    drop(first);
    let mut second = client.brokered_consumer("q", many).unwrap();
    for expected in ACKNOWLEDGED + 1..=MESSAGES {
        let delivery = receive(&mut second);
        assert_eq!(delivery.sequence(), expected);
        second.ack(&delivery).unwrap();
    }
    second.flush(PATIENCE).unwrap();
}

#[test]
fn a_successor_gets_what_came_back_before_anything_newer() {
    an_spsc_hand_over_keeps_the_order(durable());
}

#[test]
fn and_so_it_does_in_memory() {
    an_spsc_hand_over_keeps_the_order(in_memory());
}

#[test]
fn rings_that_are_made_in_the_background_are_admitted_once() {
    let daemon = Durable::start();
    let client = daemon.client();
    let spec = ringmain_client::QueueSpec {
        kind: Some(ringmain_client::Kind::Spsc),
        slots: Some(16_384),
        slot_size: Some(4096),
        ..in_memory()
    };
    client.create_queue("q", spec).unwrap();
    let attach = || {
        let client = daemon.client();
        client.brokered_producer("q", ProducerOptions::default())
    };
    let results = std::thread::scope(|scope| {
        let others = [scope.spawn(attach), scope.spawn(attach)];
        others.map(|other| other.join().unwrap())
    });
    let [one, other] = results;
    let (mut producer, refused) = match (one, other) {
        (Ok(producer), Err(error)) | (Err(error), Ok(producer)) => (producer, error),
        other => panic!("one of them: {other:?}"),
    };
    assert_eq!(refused.code(), Some(ringmain_client::ErrorCode::Busy));
    publish(&mut producer, ["large".to_owned()]);
    assert_eq!(consume(&mut consumer(&client, "q"), 1)[0].1, "large");
    // A client that does not wait for its memory leaves nothing behind.
    drop(producer);
    eventually("the handles are gone", || (daemon.daemon.status().handles == 0).then_some(()));
}
