//! Named producers: whatever dies, what is sent again is stored once.

use ringmain_client::{
    BrokeredProducer, Client, ConfirmError, ErrorCode, ProducerOptions, QueueSpec, SendError,
};

use crate::brokered_support::{
    Durable, consume, consumer, durable, in_memory, inside, nothing_comes, publish,
};
use crate::support::PATIENCE;

fn named(client: &Client, name: &str) -> BrokeredProducer {
    client.named_producer("q", name, ProducerOptions::default()).unwrap()
}

fn payload(number: u64) -> String {
    format!("message {number} {}", "x".repeat(usize::try_from(number % 300).unwrap()))
}

#[test]
fn every_message_once_although_everybody_dies() {
    const MESSAGES: u64 = 2000;
    let mut daemon = Durable::start_with(&["--segment-size", "256KiB"]);
    daemon.client().create_queue("q", durable()).unwrap();
    let mut round = 0;
    let mut stored = 0;
    while stored < MESSAGES {
        let client = daemon.client();
        let mut producer = named(&client, "source");
        let known = producer.stored_own_sequence().unwrap();
        assert!(known >= stored, "what was confirmed stays known");
        // A source that does not know how far it came begins earlier: those are duplicates.
        let first = known.saturating_sub(round * 3) + 1;
        assert!(producer.set_next_own_sequence(first));
        let mut receipts = Vec::new();
        for number in first..=MESSAGES.min(first + 499) {
            assert_eq!(producer.next_own_sequence(), Some(number));
            // Batches as well as single messages.
            let body = payload(number);
            let receipt = match number % 5 {
                0 => producer.send_batch_timeout(&[body.as_bytes()], PATIENCE).map(|r| r.last()),
                _ => producer.send_timeout(body.as_bytes(), PATIENCE).map(Some),
            };
            match receipt {
                Ok(receipt) => receipts.push((number, receipt.unwrap())),
                Err(SendError::Timeout) => panic!("no room"),
                Err(_) => break,
            }
        }
        let wait = if stored + 500 >= MESSAGES { receipts.len() } else { 200 };
        for (number, receipt) in &receipts[..wait.min(receipts.len())] {
            let confirmation = producer.wait_timeout(receipt, PATIENCE).unwrap();
            assert_eq!(confirmation.duplicate, *number <= known, "{number}");
            if !confirmation.duplicate {
                assert_eq!(confirmation.sequence, *number);
            }
            stored = stored.max(*number);
        }
        round += 1;
        match round % 3 {
            0 => {
                daemon.daemon.kill_broker();
            }
            1 => daemon.kill_all(),
            _ => daemon.restart(),
        }
    }
    let client = daemon.client();
    let count = usize::try_from(inside(&client, "q").messages).unwrap();
    let seen = consume(&mut consumer(&client, "q"), count);
    let expected: Vec<(u64, String)> =
        (1..=MESSAGES).map(|number| (number, payload(number))).collect();
    assert_eq!(seen, expected);
}

fn a_fence_outlives_the_broker(spec: QueueSpec) {
    let daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("q", spec).unwrap();
    let mut earlier = named(&client, "source");
    publish(&mut earlier, ["one".to_owned()]);
    let mut later = named(&client, "source");
    assert_eq!((later.name(), later.stored_own_sequence()), (Some("source"), Some(1)));
    daemon.daemon.kill_broker();
    let receipt = earlier.send_timeout(b"two, otherwise", PATIENCE).unwrap();
    assert_eq!(earlier.wait_timeout(&receipt, PATIENCE).unwrap_err(), ConfirmError::Fenced);
    assert_eq!(earlier.send_timeout(b"never", PATIENCE).unwrap_err(), SendError::Fenced);
    publish(&mut later, ["two".to_owned()]);
    let mut taking = consumer(&client, "q");
    let seen = consume(&mut taking, 2);
    assert_eq!(seen, [(1, "one".to_owned()), (2, "two".to_owned())]);
    nothing_comes(&mut taking);
}

#[test]
fn the_fence_of_a_durable_queue_outlives_the_broker() {
    a_fence_outlives_the_broker(durable());
}

#[test]
fn the_fence_of_a_queue_in_memory_outlives_the_broker() {
    a_fence_outlives_the_broker(in_memory());
}

#[test]
fn lanes_with_duplicates_are_taken_over() {
    for spec in [durable(), in_memory()] {
        let daemon = Durable::start();
        let client = daemon.client();
        client.create_queue("q", spec).unwrap();
        let mut producer = named(&client, "source");
        let mut next = 1_u64;
        for round in 0..5 {
            let mut expected = Vec::new();
            // Each number twice, and back a little.
            for _ in 0..60 {
                for number in [next, next, next.saturating_sub(2).max(1)] {
                    assert!(producer.set_next_own_sequence(number));
                    let body = payload(number);
                    let receipt = producer.send_timeout(body.as_bytes(), PATIENCE).unwrap();
                    expected.push((receipt, number < next));
                }
                let at = expected.len() - 2;
                expected[at].1 = true;
                expected[at + 1].1 = true;
                next += 1;
            }
            if round > 0 {
                daemon.daemon.kill_broker();
            }
            for (receipt, duplicate) in expected {
                let confirmation = producer.wait_timeout(&receipt, PATIENCE).unwrap();
                assert_eq!(confirmation.duplicate, duplicate, "{}", receipt.number());
            }
        }
        let seen = consume(&mut consumer(&client, "q"), 300);
        let expected: Vec<_> = (1..next).map(|number| (number, payload(number))).collect();
        assert_eq!(seen, expected);
        client.delete_queue("q").unwrap();
    }
}

#[test]
fn names_are_checked_and_belong_to_their_queue() {
    let daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("q", durable()).unwrap();
    client.create_queue("other", durable()).unwrap();
    client.create_queue("direct", QueueSpec::default()).unwrap();
    for name in ["", "a b", "ä", &"x".repeat(201)] {
        let error = client.named_producer("q", name, ProducerOptions::default()).unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::Invalid), "{name:?}: {error}");
    }
    let error = client.named_producer("direct", "a", ProducerOptions::default()).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Invalid), "{error}");
    publish(&mut named(&client, "a"), ["1".to_owned(), "2".to_owned()]);
    assert_eq!(named(&client, "a").stored_own_sequence(), Some(2));
    let elsewhere = client.named_producer("other", "a", ProducerOptions::default()).unwrap();
    assert_eq!(elsewhere.stored_own_sequence(), Some(0));
    let mut unnamed = client.brokered_producer("q", ProducerOptions::default()).unwrap();
    assert_eq!((unnamed.name(), unnamed.next_own_sequence()), (None, None));
    assert!(!unnamed.set_next_own_sequence(1) && !named(&client, "a").set_next_own_sequence(0));
    // Deleting the queue forgets its names, purging does not.
    client.purge_queue("q").unwrap();
    assert_eq!(named(&client, "a").stored_own_sequence(), Some(2));
    client.delete_queue("q").unwrap();
    client.create_queue("q", durable()).unwrap();
    assert_eq!(named(&client, "a").stored_own_sequence(), Some(0));
}

#[test]
fn batches_are_numbered_one_by_one() {
    let daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("q", durable()).unwrap();
    let payloads: Vec<String> = (1..=60).map(|number| payload(number * 37)).collect();
    for round in 0..2 {
        let mut producer = named(&client, "source");
        assert!(producer.set_next_own_sequence(1));
        // Of one message and of many, such that take a slot and such that take several.
        let mut rest = &payloads[..];
        for length in [1, 2, 3, 5, 8, 13, 28] {
            let (batch, behind) = rest.split_at(length);
            rest = behind;
            let batch: Vec<&[u8]> = batch.iter().map(String::as_bytes).collect();
            let receipts = producer.send_batch_timeout(&batch, PATIENCE).unwrap();
            for receipt in receipts.iter() {
                let confirmation = producer.wait_timeout(&receipt, PATIENCE).unwrap();
                let expected = if round == 0 { (receipt.number() + 1, false) } else { (0, true) };
                assert_eq!((confirmation.sequence, confirmation.duplicate), expected);
            }
        }
        assert!(rest.is_empty());
        assert_eq!(producer.next_own_sequence(), Some(61));
    }
    let seen = consume(&mut consumer(&client, "q"), payloads.len());
    let expected: Vec<_> = (1..).zip(payloads).collect();
    assert_eq!(seen, expected);
}
