//! Every form of sending and receiving, for every length.

use std::time::Duration;

use ringmain_client::{
    Client, Consumer, Kind, Metadata, Producer, QueueSpec, ReceiveError, SendError, TraceId,
};

use crate::harness::{Daemon, PATIENCE, create, payload};

const KINDS: [Kind; 2] = [Kind::Spsc, Kind::Mpmc];

/// Sends one message in the form with this number.
fn send(producer: &mut Producer, form: usize, bytes: &[u8]) {
    let metadata = metadata();
    let reserve = producer.try_reserve(bytes.len()).is_ok();
    let room = bytes.len() + 200 < producer.max_message();
    let sent = match form {
        0 => producer.try_send(bytes),
        1 => producer.send(bytes),
        2 => producer.send_timeout(bytes, PATIENCE),
        3 if room => producer.try_send_message(&metadata, bytes),
        4 if room => producer.send_message(&metadata, bytes),
        5 if room => producer.send_message_timeout(&metadata, bytes, PATIENCE),
        6 if reserve => {
            let mut reservation = producer.reserve(bytes.len()).expect("there is room");
            let (first, second) = bytes.split_at(bytes.len() / 2);
            reservation.write(first.len(), second).expect("it fits");
            reservation.write(0, first).expect("it fits");
            reservation.commit(bytes.len())
        }
        7 if reserve => {
            let mut reservation =
                producer.reserve_timeout(bytes.len(), PATIENCE).expect("there is room");
            // SAFETY: the consumer does not look at a slot before it is committed.
            let place = unsafe { reservation.as_mut_slice() };
            place[..bytes.len()].copy_from_slice(bytes);
            reservation.commit(bytes.len())
        }
        8 => producer.try_send_batch(&[bytes]),
        _ => producer.send_batch_timeout(&[bytes], PATIENCE),
    };
    sent.expect("there is room");
}

/// Receives one message in the form with this number and compares it.
fn receive(consumer: &mut Consumer, form: usize, bytes: &[u8]) {
    let mut buffer = vec![0xAA; 3];
    match form {
        0 => {
            assert_eq!(consumer.try_receive(&mut buffer).expect("it is there").length, bytes.len())
        }
        1 => assert!(!consumer.receive(&mut buffer).expect("it is there").redelivered),
        2 => {
            consumer.receive_timeout(&mut buffer, PATIENCE).expect("it is there");
        }
        3 => {
            let guard = consumer.try_take().expect("it is there");
            assert_eq!(guard.len(), bytes.len());
            guard.copy_to(&mut buffer).expect("no fork");
        }
        4 => {
            let guard = consumer.take().expect("it is there");
            buffer = vec![0; bytes.len()];
            let (first, second) = buffer.split_at_mut(bytes.len() / 3);
            assert_eq!(guard.read_at(first.len(), second).expect("no fork"), second.len());
            assert_eq!(guard.read_at(0, first).expect("no fork"), first.len());
            assert_eq!(guard.read_at(bytes.len(), &mut [0; 8]).expect("no fork"), 0);
            guard.release();
        }
        5 => {
            let guard = consumer.take_timeout(PATIENCE).expect("it is there");
            // SAFETY: nobody writes to the slot while the guard holds it.
            match unsafe { guard.as_slice() } {
                Some(slice) => buffer = slice.to_vec(),
                None => assert_eq!(guard.copy_to(&mut buffer), Ok(bytes.len())),
            }
        }
        6 => {
            let count = consumer.try_receive_batch(1, |message| {
                message.copy_to(&mut buffer).expect("no fork");
            });
            assert_eq!(count, Ok(1));
        }
        7 => {
            let count = consumer.receive_batch(9, |message| {
                message.copy_to(&mut buffer).expect("no fork");
            });
            assert_eq!(count, Ok(1));
        }
        _ => {
            let count = consumer.receive_batch_timeout(9, PATIENCE, |message| {
                message.copy_to(&mut buffer).expect("no fork");
            });
            assert_eq!(count, Ok(1));
        }
    }
    assert!(buffer == bytes, "a message of {} bytes came back altered (form {form})", bytes.len());
}

/// Lengths from nothing to the longest: all around the borders of the first slots, then in odd steps, then the last.
fn lengths(slot_size: usize, max: usize) -> impl Iterator<Item = usize> {
    let dense = (slot_size * 3 + 16).min(max);
    let step = (max / 400).max(1) | 1;
    (0..=dense).chain((dense..max).step_by(step)).chain(max.saturating_sub(3)..=max)
}

#[test]
fn every_length_in_every_form() {
    let daemon = Daemon::start();
    let client = daemon.client();
    for kind in KINDS {
        for slot_size in [64, 80, 256, 1024, 4096] {
            let name = format!("{kind:?}.{slot_size}");
            create(&client, &name, kind, 64, slot_size);
            let mut producer = client.producer(&name).expect("attach");
            let mut consumer = client.consumer(&name).expect("attach");
            let max = producer.max_message();
            for (nth, length) in lengths(slot_size as usize, max).enumerate() {
                let bytes = payload(length);
                send(&mut producer, nth % 10, &bytes);
                receive(&mut consumer, nth % 9, &bytes);
            }
            let error = producer.try_send(&payload(max + 1)).expect_err("too long");
            assert_eq!(error, SendError::TooLarge { length: max + 1, max });
        }
    }
}

#[test]
fn small_slots_take_every_length_in_each_form() {
    let daemon = Daemon::start();
    let client = daemon.client();
    for kind in KINDS {
        let name = format!("{kind:?}");
        create(&client, &name, kind, 64, 64);
        let mut producer = client.producer(&name).expect("attach");
        let mut consumer = client.consumer(&name).expect("attach");
        for length in 0..=producer.max_message() {
            let bytes = payload(length);
            for form in 0..10 {
                send(&mut producer, form, &bytes);
                receive(&mut consumer, (form + length) % 9, &bytes);
            }
        }
    }
}

fn metadata() -> Metadata {
    Metadata {
        key: Some(b"customer 7".to_vec()),
        headers: vec![("kind".into(), b"order".to_vec()), ("kind".into(), Vec::new())],
        trace: Some(TraceId { trace: [1; 16], span: [2; 8], flags: 1 }),
        ..Metadata::default()
    }
}

#[test]
fn metadata_comes_along() {
    let (_daemon, client) = Daemon::with_queue(Kind::Mpmc, 64, 64);
    let mut producer = client.producer("q").expect("attach");
    let mut consumer = client.consumer("q").expect("attach");
    for length in [0, 1, 7, 100, 300] {
        producer.send_message(&metadata(), &payload(length)).expect("there is room");
        producer.send(&payload(length)).expect("there is room");
        let guard = consumer.take().expect("it is there");
        assert_eq!(guard.metadata().expect("well-formed"), metadata());
        let mut buffer = Vec::new();
        guard.copy_to(&mut buffer).expect("no fork");
        assert_eq!(buffer, payload(length));
        guard.release();
        assert_eq!(consumer.take().expect("it is there").metadata(), Ok(Metadata::default()));
    }
    let nameless = Metadata { headers: vec![(String::new(), vec![1])], ..Metadata::default() };
    assert_eq!(producer.try_send_message(&nameless, b""), Err(SendError::InvalidMetadata));
    let timed = Metadata { ttl: Some(Duration::from_secs(1)), ..Metadata::default() };
    assert_eq!(producer.try_send_message(&timed, b""), Err(SendError::TimesOnDirect));
    let long = Metadata { key: Some(vec![0; 70_000]), ..Metadata::default() };
    let error = producer.try_send_message(&long, b"");
    assert!(
        matches!(error, Err(SendError::TooLarge { .. } | SendError::InvalidMetadata)),
        "{error:?}"
    );
    assert_eq!(consumer.try_take().map(|_| ()), Err(ReceiveError::Empty));
}

fn pair(client: &Client) -> (Producer, Consumer) {
    (client.producer("q").expect("attach"), client.consumer("q").expect("attach"))
}

#[test]
fn batches_are_all_or_nothing_and_keep_their_order() {
    for kind in KINDS {
        let (_daemon, client) = Daemon::with_queue(kind, 64, 64);
        let (mut producer, mut consumer) = pair(&client);
        let payloads: Vec<Vec<u8>> = (0..8).map(|n| payload(n * 13)).collect();
        let batch: Vec<&[u8]> = payloads.iter().map(Vec::as_slice).collect();
        let mut expected = Vec::new();
        while producer.try_send_batch(&batch).is_ok() {
            expected.extend(payloads.iter().cloned());
        }
        assert!(expected.len() > 8);
        assert_eq!(producer.try_send_batch(&[]).map(|_| ()), Ok(()));
        let error = producer.send_batch_timeout(&batch, Duration::from_millis(5));
        assert_eq!(error, Err(SendError::Timeout));
        let mut received = Vec::new();
        assert_eq!(consumer.try_receive_batch(0, |_| unreachable!()), Ok(0));
        while let Ok(count) = consumer.try_receive_batch(5, |message| {
            let mut buffer = Vec::new();
            message.copy_to(&mut buffer).expect("no fork");
            received.push(buffer);
        }) {
            assert!((1..=5).contains(&count));
        }
        assert_eq!(received, expected);
        let large = payload(500);
        let error = producer.try_send_batch(&[&large, &large, &large]);
        assert!(matches!(error, Err(SendError::TooLarge { .. })), "{error:?}");
    }
}

#[test]
fn a_panic_in_a_batch_loses_nothing_but_its_own_message() {
    for kind in KINDS {
        let (_daemon, client) = Daemon::with_queue(kind, 64, 64);
        let (mut producer, mut consumer) = pair(&client);
        for n in 0..6_u8 {
            producer.send(&[n]).expect("there is room");
        }
        let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            consumer.receive_batch(4, |message| assert!(message.sequence() < 2, "expected"))
        }));
        assert!(seen.is_err());
        let mut rest = Vec::new();
        let mut buffer = Vec::new();
        while consumer.try_receive(&mut buffer).is_ok() {
            rest.push(buffer[0]);
        }
        assert_eq!(rest, [3, 4, 5]);
        // Every slot came back.
        for n in 0..64_u8 {
            producer.try_send(&[n]).expect("there is room");
        }
        assert_eq!(producer.try_send(&[0]), Err(SendError::Full));
    }
}

#[test]
fn what_a_panic_left_unseen_goes_to_the_next_consumer() {
    for kind in KINDS {
        let (_daemon, client) = Daemon::with_queue(kind, 64, 64);
        let (mut producer, mut consumer) = pair(&client);
        for n in 0..6_u8 {
            producer.send(&[n]).expect("there is room");
        }
        let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            consumer.receive_batch(4, |message| assert!(message.sequence() < 2, "expected"))
        }));
        assert!(seen.is_err());
        drop(consumer);
        let mut next = client.consumer("q").expect("the first one has left nothing behind");
        let mut buffer = Vec::new();
        for n in 3..6_u8 {
            next.try_receive(&mut buffer).expect("it is there");
            assert_eq!(buffer, [n]);
        }
        for n in 0..64_u8 {
            producer.try_send(&[n]).expect("every slot came back");
        }
    }
}

#[test]
fn what_is_reserved_is_bounded_and_can_be_given_up() {
    for kind in KINDS {
        let (_daemon, client) = Daemon::with_queue(kind, 64, 64);
        let (mut producer, mut consumer) = pair(&client);
        let error = producer.try_reserve(4096).map(|_| ());
        assert!(matches!(error, Err(SendError::TooLarge { length: 4096, .. })), "{error:?}");
        for round in 0..200_u32 {
            let mut given_up = producer.try_reserve(4).expect("there is room");
            given_up.write(0, b"lost").expect("it fits");
            drop(given_up);
            let mut kept = producer.try_reserve(4).expect("there is room");
            let capacity = kept.capacity();
            assert!(capacity >= 4);
            kept.write(0, &round.to_le_bytes()).expect("it fits");
            let past = kept.write(capacity - 3, &[0; 4]);
            assert_eq!(past, Err(SendError::TooLarge { length: capacity + 1, max: capacity }));
            assert!(kept.write(usize::MAX, &[0; 4]).is_err());
            kept.commit(4).expect("it fits");
            let mut buffer = Vec::new();
            consumer.try_receive(&mut buffer).expect("it is there");
            assert_eq!(buffer, round.to_le_bytes());
            assert_eq!(consumer.try_receive(&mut buffer), Err(ReceiveError::Empty));
        }
        let too_long = producer.try_reserve(4).expect("there is room").commit(1000);
        assert!(matches!(too_long, Err(SendError::TooLarge { length: 1000, .. })));
        assert_eq!(consumer.try_take().map(|_| ()), Err(ReceiveError::Empty));
    }
}

#[test]
fn sequences_grow() {
    for kind in KINDS {
        let (_daemon, client) = Daemon::with_queue(kind, 64, 64);
        let (mut producer, mut consumer) = pair(&client);
        let mut buffer = Vec::new();
        let mut last = None;
        for length in [1, 200, 0, 64, 3] {
            let sent = producer.send(&payload(length)).expect("there is room");
            let received = consumer.receive(&mut buffer).expect("it is there");
            assert_eq!(received.sequence, sent);
            assert!(last.is_none_or(|last| last < sent));
            last = Some(sent);
        }
    }
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let (_daemon, client) = Daemon::with_queue(Kind::Spsc, 64, 64);
    assert!(client.producer("absent").expect_err("no such queue").is_not_found());
    assert!(client.create_queue("q", QueueSpec::default()).expect_err("it exists").is_exists());
    assert!(client.queue_info("absent").expect_err("no such queue").is_not_found());
    let first = client.producer("q").expect("attach");
    assert!(client.producer("q").expect_err("one at a time").is_busy());
    drop(first);
    drop(client.producer("q").expect("it was given back"));
    client.delete_queue("q").expect("it is there");
    assert!(client.delete_queue("q").expect_err("it is gone").is_not_found());
    assert!(client.list_queues().expect("the daemon answers").is_empty());
}

#[test]
fn many_queues_are_listed_in_order() {
    let daemon = Daemon::start();
    let client = daemon.client();
    let mut names: Vec<String> =
        (0..300).map(|n| format!("queue-{n}-{}", "x".repeat(100))).collect();
    for name in &names {
        create(&client, name, Kind::Spsc, 64, 64);
    }
    names.sort();
    let listed = client.list_queues().expect("the daemon answers");
    assert_eq!(listed.into_iter().map(|queue| queue.name).collect::<Vec<_>>(), names);
}
