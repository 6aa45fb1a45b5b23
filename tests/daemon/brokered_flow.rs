//! Brokered queues while nobody dies: confirmed, delivered, acknowledged, given out again, moved aside.

use std::time::Duration;

use ringmain_client::async_io::{AsyncBrokeredConsumer, AsyncBrokeredProducer};
use ringmain_client::layout::metadata::BROKERED_BYTES_MAX;
use ringmain_client::protocol::{ErrorCode, Role};
use ringmain_client::{
    ClientError, ConfirmError, ConsumerOptions, Delivery, DeliverySpec, Kind, Metadata, QueueSpec,
    ReceiveError, SendError, StartAt,
};

use crate::brokered_support::*;
use crate::support::*;

pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T, ClientError>) -> (ErrorCode, String) {
    match result {
        Err(ClientError::Refused { code, message }) => (code, message),
        other => panic!("not refused: {other:?}"),
    }
}

fn numbers(range: std::ops::RangeInclusive<u64>) -> Vec<(u64, String)> {
    range.map(|number| (number, format!("m{number}"))).collect()
}

fn go_through(daemon: &Durable, spec: QueueSpec) {
    let client = daemon.client();
    client.create_queue("q", spec).unwrap();
    let mut producer = producer(&client, "q");
    let receipts: Vec<_> =
        (1..=1000).map(|n| producer.send(format!("m{n}").as_bytes()).unwrap()).collect();
    for (nth, receipt) in receipts.iter().enumerate() {
        let confirmation = producer.wait_timeout(receipt, PATIENCE).unwrap();
        assert_eq!(confirmation.sequence, nth as u64 + 1);
    }
    assert_eq!(inside(&client, "q").messages, 1000);
    let mut consumer = consumer(&client, "q");
    assert_eq!(consume(&mut consumer, 1000), numbers(1..=1000));
    nothing_comes(&mut consumer);
    let info = inside(&client, "q");
    assert_eq!((info.messages, info.unacknowledged, info.next_sequence), (0, 0, 1001));
}

#[test]
fn messages_are_confirmed_and_acknowledged() {
    let daemon = Durable::start();
    go_through(&daemon, durable());
}

#[test]
fn the_same_in_memory() {
    let daemon = Durable::start();
    go_through(&daemon, in_memory());
}

#[test]
fn the_same_with_threads_for_the_disk_and_without_membarrier() {
    let daemon = Durable::start_with(&["--journal-backend", "blocking", "--force-no-membarrier"]);
    go_through(&daemon, durable());
}

#[test]
fn long_messages_and_metadata_arrive_as_they_were() {
    let daemon = Durable::start();
    let client = daemon.client();
    let info = client.create_queue("q", durable()).unwrap();
    let mut producer = producer(&client, "q");
    let mut consumer = consumer(&client, "q");
    let metadata = Metadata {
        key: Some(b"key".to_vec()),
        headers: vec![("name".to_owned(), b"value".to_vec())],
        ..Metadata::default()
    };
    for length in [0, 1, 39, 255, 256, 4096, 60_000] {
        let payload: Vec<u8> = (0..length).map(|n: u32| (n % 251) as u8).collect();
        let receipt = producer.send_message(&metadata, &payload).unwrap();
        producer.wait_timeout(&receipt, PATIENCE).unwrap();
        let delivery = receive(&mut consumer);
        assert_eq!(delivery.payload(), payload);
        assert_eq!(delivery.metadata().unwrap(), metadata);
        consumer.ack_confirmed(&delivery, PATIENCE).unwrap();
    }
    let longest = vec![7; info.max_message as usize];
    let receipt = producer.send(&longest).unwrap();
    producer.wait_timeout(&receipt, PATIENCE).unwrap();
    assert_eq!(receive(&mut consumer).payload(), longest);
    let too_long = vec![7; info.max_message as usize + 1];
    assert!(matches!(producer.send(&too_long), Err(SendError::TooLarge { .. })));
    // With metadata the longest does not fit the ring of a consumer: that is told, and the lane goes on.
    let wide = Metadata { headers: vec![("h".to_owned(), vec![1; 300])], ..Metadata::default() };
    match producer.send_message(&wide, &longest) {
        Ok(receipt) => {
            let refused = producer.wait_timeout(&receipt, PATIENCE).unwrap_err();
            assert!(matches!(refused, ConfirmError::TooLarge { .. }), "{refused:?}");
            assert_eq!(producer.wait_all_timeout(PATIENCE), Err(refused));
        }
        Err(error) => assert!(matches!(error, SendError::TooLarge { .. }), "{error:?}"),
    }
    publish(&mut producer, ["after".to_owned()]);
    assert_eq!(text(&receive(&mut consumer)), "after");
}

#[test]
fn beside_the_longest_metadata_is_room_for_what_a_dead_letter_gets() {
    let daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("q", QueueSpec { slots: Some(2048), ..durable() }).unwrap();
    let mut producer = producer(&client, "q");
    let mut consumer = consumer(&client, "q");
    let key = |bytes| Metadata { key: Some(vec![1; bytes - 4]), ..Metadata::default() };
    let error = producer.send_message(&key(BROKERED_BYTES_MAX + 1), b"").unwrap_err();
    let (length, max) = (BROKERED_BYTES_MAX + 1, BROKERED_BYTES_MAX);
    assert_eq!(error, SendError::TooLarge { length, max });
    let receipt = producer.send_message(&key(BROKERED_BYTES_MAX), b"").unwrap();
    producer.wait_timeout(&receipt, PATIENCE).unwrap();
    assert_eq!(receive(&mut consumer).metadata().unwrap(), key(BROKERED_BYTES_MAX));
}

#[test]
fn what_is_handed_back_comes_again() {
    let daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("q", durable()).unwrap();
    publish(&mut producer(&client, "q"), (1..=3).map(|n| format!("m{n}")));
    let mut consumer = consumer(&client, "q");
    let first = receive(&mut consumer);
    assert_eq!((first.sequence(), first.attempt(), first.redelivered()), (1, 1, false));
    consumer.nack_confirmed(&first, Duration::ZERO, PATIENCE).unwrap();
    // Acknowledged by its token of the first delivery, it is not this one's any more.
    assert!(is_lost(consumer.ack_confirmed(&first, PATIENCE)));
    let mut attempts = Vec::new();
    for _ in 0..3 {
        let delivery = receive(&mut consumer);
        attempts.push((delivery.sequence(), delivery.attempt()));
        consumer.ack(&delivery).unwrap();
    }
    attempts.sort_unstable();
    assert_eq!(attempts, [(1, 2), (2, 1), (3, 1)]);
    consumer.flush(PATIENCE).unwrap();
    publish(&mut producer(&client, "q"), ["late".to_owned()]);
    let delivery = receive(&mut consumer);
    consumer.nack_confirmed(&delivery, Duration::from_secs(3600), PATIENCE).unwrap();
    nothing_comes(&mut consumer);
    assert_eq!(inside(&client, "q").delayed, 1);
}

#[test]
fn a_lease_that_is_over_is_lost() {
    let daemon = Durable::start();
    let client = daemon.client();
    let rules = DeliverySpec { lease_ms: Some(100), ..DeliverySpec::default() };
    client.create_queue("q", with_rules(durable(), rules)).unwrap();
    publish(&mut producer(&client, "q"), ["m".to_owned()]);
    let mut slow = consumer(&client, "q");
    let late = receive(&mut slow);
    let mut other = consumer(&client, "q");
    slow.set_credit(0).unwrap();
    let again = receive(&mut other);
    assert_eq!((again.sequence(), again.attempt(), again.redelivered()), (1, 2, true));
    assert!(is_lost(slow.ack_confirmed(&late, PATIENCE)));
    other.ack_confirmed(&again, PATIENCE).unwrap();
    assert_eq!(inside(&client, "q").messages, 0);
}

#[test]
fn a_lease_that_is_extended_is_not_over() {
    let daemon = Durable::start();
    let client = daemon.client();
    let rules = DeliverySpec { lease_ms: Some(200), ..DeliverySpec::default() };
    client.create_queue("q", with_rules(durable(), rules)).unwrap();
    publish(&mut producer(&client, "q"), ["m".to_owned()]);
    let mut slow = consumer(&client, "q");
    let delivery = receive(&mut slow);
    slow.extend_confirmed(&delivery, Duration::from_secs(3600), PATIENCE).unwrap();
    let mut other = consumer(&client, "q");
    nothing_comes(&mut other);
    slow.ack_confirmed(&delivery, PATIENCE).unwrap();
}

#[test]
fn what_fails_again_and_again_is_moved_aside_and_back() {
    let daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("dead", durable()).unwrap();
    let rules = DeliverySpec {
        max_deliveries: Some(2),
        dead_letter: Some("dead".to_owned()),
        ..DeliverySpec::default()
    };
    client.create_queue("q", with_rules(durable(), rules)).unwrap();
    publish(&mut producer(&client, "q"), ["bad".to_owned()]);
    let mut work = consumer(&client, "q");
    for attempt in 1..=2 {
        let delivery = receive(&mut work);
        assert_eq!(delivery.attempt(), attempt);
        work.nack_confirmed(&delivery, Duration::ZERO, PATIENCE).unwrap();
    }
    nothing_comes(&mut work);
    let info = inside(&client, "q");
    assert_eq!((info.messages, info.dead_lettered), (0, 1));
    let mut dead =
        client.brokered_consumer("dead", ConsumerOptions::default().browse(true)).unwrap();
    let delivery = receive(&mut dead);
    assert_eq!(text(&delivery), "bad");
    let headers: Vec<String> =
        delivery.metadata().unwrap().headers.into_iter().map(|(name, _)| name).collect();
    for name in ["ringmain-reason", "ringmain-origin-queue", "ringmain-deliveries"] {
        assert!(headers.iter().any(|header| header == name), "{name} in {headers:?}");
    }
    assert_eq!(client.redrive("dead", 0).unwrap(), 1);
    let delivery = receive(&mut work);
    assert_eq!((text(&delivery), delivery.sequence()), ("bad", 2));
    work.reject_confirmed(&delivery, PATIENCE).unwrap();
    eventually_inside(&client, "dead", |info| info.messages == 1);
}

#[test]
fn the_longest_dead_letter_can_be_received() {
    let daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("dead", durable()).unwrap();
    let rules = DeliverySpec { dead_letter: Some("dead".to_owned()), ..DeliverySpec::default() };
    let info = client.create_queue("q", with_rules(durable(), rules)).unwrap();
    let longest = vec![7; info.max_message as usize];
    let mut sending = producer(&client, "q");
    let receipt = sending.send(&longest).unwrap();
    sending.wait_timeout(&receipt, PATIENCE).unwrap();
    let mut work = consumer(&client, "q");
    let delivery = receive(&mut work);
    work.reject_confirmed(&delivery, PATIENCE).unwrap();
    let delivery = receive(&mut consumer(&client, "dead"));
    assert_eq!(delivery.payload(), longest);
    assert_eq!(delivery.metadata().unwrap().headers.len(), 4);
}

#[test]
fn groups_see_everything_and_lookers_take_nothing() {
    let daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("q", durable()).unwrap();
    let mut first = client.brokered_consumer("q", ConsumerOptions::default().group("a")).unwrap();
    let mut second = client.brokered_consumer("q", ConsumerOptions::default().group("b")).unwrap();
    publish(&mut producer(&client, "q"), (1..=10).map(|n| format!("m{n}")));
    let options = ConsumerOptions::default().browse(true).from(StartAt::Sequence(4));
    let mut looker = client.brokered_consumer("q", options).unwrap();
    let mut shown = Vec::new();
    let mut delivery = Delivery::default();
    while looker.receive_or_drained(&mut delivery, Some(PATIENCE)).unwrap() {
        assert_eq!(delivery.attempt(), 0);
        shown.push(delivery.sequence());
    }
    assert_eq!(shown, (4..=10).collect::<Vec<_>>());
    assert_eq!(consume(&mut first, 10), numbers(1..=10));
    assert_eq!(inside(&client, "q").messages, 10);
    assert_eq!(consume(&mut second, 10), numbers(1..=10));
    let group = ConsumerOptions::default().group("new").from(StartAt::New);
    let mut third = client.brokered_consumer("q", group).unwrap();
    nothing_comes(&mut third);
}

#[test]
fn consumers_compete_by_credit() {
    let daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("q", durable()).unwrap();
    let few = ConsumerOptions::default().credit(2);
    let mut slow = client.brokered_consumer("q", few).unwrap();
    publish(&mut producer(&client, "q"), (1..=100).map(|n| format!("m{n}")));
    eventually_inside(&client, "q", |info| info.unacknowledged == 2);
    let mut quick = consumer(&client, "q");
    consume(&mut quick, 98);
    nothing_comes(&mut quick);
    consume(&mut slow, 2);
    assert_eq!(inside(&client, "q").messages, 0);
}

#[test]
fn deleting_and_purging_are_told() {
    let daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("q", durable()).unwrap();
    let mut sending = producer(&client, "q");
    let mut receiving = consumer(&client, "q");
    publish(&mut sending, (1..=5).map(|n| format!("m{n}")));
    receive(&mut receiving);
    assert_eq!(client.purge_queue("q").unwrap(), 5);
    assert_eq!(inside(&client, "q").messages, 0);
    client.delete_queue("q").unwrap();
    let gone = loop {
        match receiving.receive_timeout(PATIENCE) {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(gone, ReceiveError::Closed(_)), "{gone:?}");
    assert!(matches!(sending.send(b"x"), Err(SendError::Closed(_))));
    assert_eq!(refused(client.queue_info("q")).0, ErrorCode::NotFound);
    let id = client.create_queue("q", durable()).unwrap().id;
    assert!(id > 1, "ids are not used again");
    publish(&mut producer(&client, "q"), ["new".to_owned()]);
    assert_eq!(consume(&mut consumer(&client, "q"), 1), [(1, "new".to_owned())]);
}

#[test]
fn one_producer_and_one_consumer_at_a_time() {
    let daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("q", QueueSpec { kind: Some(Kind::Spsc), ..durable() }).unwrap();
    let sending = producer(&client, "q");
    let receiving = consumer(&client, "q");
    let options = Default::default();
    assert_eq!(refused(client.brokered_producer("q", options)).0, ErrorCode::Busy);
    let options = ConsumerOptions::default();
    assert_eq!(refused(client.brokered_consumer("q", options)).0, ErrorCode::Busy);
    drop((sending, receiving));
    let (_sending, _receiving) = (producer(&client, "q"), consumer(&client, "q"));
}

#[test]
fn what_cannot_be_is_refused() {
    let direct = Daemon::start();
    let client = ringmain_client::Client::connect(&direct.socket).unwrap();
    let (code, text) = refused(client.create_queue("q", durable()));
    assert!(code == ErrorCode::Invalid && text.contains("--data-dir"), "{text}");
    drop(direct);
    let daemon = Durable::start();
    let client = daemon.client();
    let rules = |delivery| with_rules(durable(), delivery);
    let lease = DeliverySpec { lease_ms: Some(1 << 60), ..DeliverySpec::default() };
    let nobody = DeliverySpec { dead_letter: Some("nobody".into()), ..DeliverySpec::default() };
    let memory = DeliverySpec { dead_letter: Some("m".into()), ..DeliverySpec::default() };
    let own = DeliverySpec { dead_letter: Some("q".into()), ..DeliverySpec::default() };
    client.create_queue("m", in_memory()).unwrap();
    client.create_queue("d", QueueSpec::default()).unwrap();
    let cases = [
        ("q", rules(lease), ErrorCode::Invalid, "lease"),
        ("q", rules(nobody), ErrorCode::NotFound, "nobody"),
        ("q", rules(memory), ErrorCode::Invalid, "durability"),
        ("q", rules(own.clone()), ErrorCode::NotFound, "q"),
        ("q", QueueSpec { slots: Some(100), ..durable() }, ErrorCode::Invalid, "slots"),
        ("q", QueueSpec { max_message: Some(1 << 20), ..durable() }, ErrorCode::Invalid, "max-"),
        ("q", QueueSpec { mode: Some(0o7777), ..durable() }, ErrorCode::Invalid, "mode"),
        ("-q", durable(), ErrorCode::Invalid, "name"),
        ("m", durable(), ErrorCode::Exists, "exists"),
        ("d", durable(), ErrorCode::Exists, "exists"),
        ("q", QueueSpec { delivery: own, ..QueueSpec::default() }, ErrorCode::Invalid, "brokered"),
    ];
    for (name, spec, code, word) in cases {
        let found = refused(client.create_queue(name, spec.clone()));
        assert!(found.0 == code && found.1.contains(word), "{name} {spec:?}: {found:?}");
    }
    assert_eq!(refused(client.create_queue("m", QueueSpec::default())).0, ErrorCode::Exists);
    assert!(client.producer("m").is_err() && client.consumer("m").is_err());
    let options = ConsumerOptions::default().group("no spaces");
    assert_eq!(refused(client.brokered_consumer("m", options)).0, ErrorCode::Invalid);
    let edit = DeliverySpec { max_deliveries: Some(7), ..DeliverySpec::default() };
    let info = client.edit_queue("m", edit.clone()).unwrap().brokered.unwrap();
    assert_eq!((info.max_deliveries, info.lease_ms), (7, 30_000));
    assert_eq!(refused(client.edit_queue("d", edit.clone())).0, ErrorCode::Invalid);
    assert_eq!(refused(client.edit_queue("nobody", edit)).0, ErrorCode::NotFound);
    assert_eq!(refused(client.redrive("nobody", 0)).0, ErrorCode::NotFound);
    let names: Vec<String> =
        client.list_queues().unwrap().into_iter().map(|queue| queue.name).collect();
    assert_eq!(names, ["d", "m"]);
}

/// A handle that is only looked after every 100 ms would take twice this long.
#[test]
fn async_handles_are_rung() {
    const ROUNDS: u32 = 400;
    let daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("q", durable()).unwrap();
    let producer = producer(&client, "q");
    let consumer = consumer(&client, "q");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let all = async {
        let mut producer = AsyncBrokeredProducer::new(producer).unwrap();
        let mut consumer = AsyncBrokeredConsumer::new(consumer).unwrap();
        for round in 0..ROUNDS {
            let receipt = producer.send(&round.to_le_bytes()).await.unwrap();
            producer.wait(&receipt).await.unwrap();
            let delivery = consumer.receive().await.unwrap();
            assert_eq!(delivery.payload(), round.to_le_bytes());
            consumer.ack_confirmed(&delivery).await.unwrap();
        }
    };
    let patience = Duration::from_millis(100) * 3 * ROUNDS / 2;
    runtime.block_on(async { tokio::time::timeout(patience, all).await }).expect("rung in time");
}

#[test]
fn nothing_left_is_said_each_time() {
    let daemon = Durable::start();
    let client = daemon.client();
    for (name, spec) in [("q", durable()), ("m", in_memory())] {
        client.create_queue(name, spec).unwrap();
        let mut sending = producer(&client, name);
        let mut receiving = consumer(&client, name);
        let mut looking =
            client.brokered_consumer(name, ConsumerOptions::default().browse(true)).unwrap();
        let mut delivery = Delivery::default();
        for round in 0..4 {
            publish(&mut sending, (0..round).map(|n| format!("m{n}")));
            for one in [&mut looking, &mut receiving] {
                let mut had = 0;
                while one.receive_or_drained(&mut delivery, Some(PATIENCE)).unwrap() {
                    had += 1;
                    if delivery.attempt() > 0 {
                        one.ack_confirmed(&delivery, PATIENCE).unwrap();
                    }
                }
                assert_eq!(had, round);
            }
            receiving.set_credit(2 + round).unwrap();
        }
        // What one has given back oneself is not nothing.
        for round in 0..50 {
            publish(&mut sending, [format!("again {round}")]);
            let mut attempts = Vec::new();
            while receiving.receive_or_drained(&mut delivery, Some(PATIENCE)).unwrap() {
                attempts.push(delivery.attempt());
                match delivery.attempt() {
                    1 => receiving.nack(&delivery, Duration::ZERO).unwrap(),
                    _ => receiving.ack(&delivery).unwrap(),
                }
            }
            assert_eq!(attempts, [1, 2], "round {round} of {name}");
        }
    }
}

#[test]
fn async_consumers_have_every_confirmed_form() {
    let daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("q", durable()).unwrap();
    publish(&mut producer(&client, "q"), ["m".to_owned()]);
    let consumer = consumer(&client, "q");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let all = async {
        let mut consumer = AsyncBrokeredConsumer::new(consumer).unwrap();
        let first = consumer.receive().await.unwrap();
        consumer.extend_confirmed(&first, Duration::from_secs(3600)).await.unwrap();
        consumer.nack_confirmed(&first, Duration::ZERO).await.unwrap();
        let second = consumer.receive().await.unwrap();
        assert_eq!(second.attempt(), 2);
        assert!(is_lost(consumer.extend_confirmed(&first, Duration::ZERO).await));
        assert!(is_lost(consumer.nack_confirmed(&first, Duration::ZERO).await));
        assert!(is_lost(consumer.reject_confirmed(&first).await));
        consumer.reject_confirmed(&second).await.unwrap();
    };
    runtime.block_on(async { tokio::time::timeout(PATIENCE, all).await }).expect("in time");
    assert_eq!(inside(&client, "q").messages, 0);
}

/// What lay in the ring of a consumer, or was put by, when its lease ended is not given to its user any more.
#[test]
fn deliveries_whose_lease_is_over_are_not_received() {
    for (looked, name) in [(false, "in the ring"), (true, "put by")] {
        for spec in [durable(), in_memory()] {
            let daemon = Durable::start();
            let client = daemon.client();
            let rules =
                |lease_ms| DeliverySpec { lease_ms: Some(lease_ms), ..DeliverySpec::default() };
            client.create_queue("q", with_rules(spec, rules(200))).unwrap();
            let mut slow = consumer(&client, "q");
            publish(&mut producer(&client, "q"), (0..4).map(|n| format!("m{n}")));
            let delivered = || {
                let handles = client.queue_info("q").unwrap().handles;
                handles
                    .iter()
                    .any(|one| one.role == Role::Consume && one.messages >= 4)
                    .then_some(())
            };
            eventually("all are delivered", delivered);
            // Whoever waits for an answer puts by what comes before it.
            slow.set_credit(0).unwrap();
            if looked {
                slow.flush(PATIENCE).unwrap();
            }
            eventually_inside(&client, "q", |info| (info.ready, info.unacknowledged) == (4, 0));
            let stale = slow.receive_timeout(QUIET).map(|delivery| text(&delivery).to_owned());
            assert_eq!(stale, Err(ReceiveError::Timeout), "{name}");
            // They come once more, and are its own then.
            client.edit_queue("q", rules(0)).unwrap();
            slow.set_credit(16).unwrap();
            let seen = consume(&mut slow, 4).into_iter().map(|(_, text)| text);
            assert_eq!(seen.collect::<Vec<_>>(), ["m0", "m1", "m2", "m3"], "{name}");
        }
    }
}

/// Neither is what a purge has taken.
#[test]
fn deliveries_that_a_purge_has_taken_are_not_received() {
    let daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("q", durable()).unwrap();
    let mut receiver = consumer(&client, "q");
    let mut sender = producer(&client, "q");
    publish(&mut sender, (0..4).map(|n| format!("m{n}")));
    eventually_inside(&client, "q", |info| info.unacknowledged == 4);
    assert_eq!(client.purge_queue("q").unwrap(), 4);
    publish(&mut sender, ["after".to_owned()]);
    assert_eq!(consume(&mut receiver, 1), [(5, "after".to_owned())]);
}
