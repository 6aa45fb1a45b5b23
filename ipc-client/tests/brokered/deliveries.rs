//! What a consumer receives, and what it says about it.

use std::time::Duration;

use ringmain_client::raw::layout::control;
use ringmain_client::raw::wire::{DeliveryHeader, Down, LeaseToken, Outcome, Up};
use ringmain_client::{
    AckError, BrokeredConsumer, Closed, ConsumerOptions, Delivery, Metadata, ReceiveError, StartAt,
    WaitPolicy,
};

use crate::ends::{Daemon, End, Sizes};

const LONG: Duration = Duration::from_secs(20);
const SOON: Duration = Duration::from_millis(5);

fn pair(sizes: Sizes, options: ConsumerOptions) -> (Daemon, BrokeredConsumer, End) {
    let daemon = Daemon::start(sizes);
    let consumer = daemon.client().brokered_consumer("durable", options).expect("attach");
    let end = daemon.end();
    (daemon, consumer, end)
}

fn default() -> (Daemon, BrokeredConsumer, End) {
    pair(Sizes::default(), ConsumerOptions::default())
}

fn lease(sequence: u64, attempt: u32) -> LeaseToken {
    LeaseToken { slot: u32::try_from(sequence % 64).expect("small"), attempt, sequence }
}

fn try_deliver(end: &mut End, sequence: u64, attempt: u32, payload: &[u8]) -> bool {
    let header = DeliveryHeader {
        lease: lease(sequence, attempt),
        published_ns: 1_000 + sequence,
        lease_ms: 30_000,
    };
    let mut bytes = Down::Delivery(header).encode().as_ref().to_vec();
    bytes.extend_from_slice(payload);
    let metadata = Metadata { key: Some(sequence.to_le_bytes().to_vec()), ..Metadata::default() };
    let mut encoded = Vec::new();
    metadata.encode(&mut encoded).expect("short");
    end.try_send(&encoded, &bytes)
}

fn deliver(end: &mut End, sequence: u64, attempt: u32, payload: &[u8]) {
    assert!(try_deliver(end, sequence, attempt, payload), "the ring is full");
    end.wake();
}

fn answer(end: &mut End, request: u64, outcome: Outcome) {
    end.tell(&Down::Answer { request, outcome, detail: 28 });
}

#[test]
fn deliveries_arrive_as_they_were_sent() {
    let (_daemon, mut consumer, mut end) = default();
    assert_eq!(consumer.try_receive().map(|_| ()), Err(ReceiveError::Empty));
    assert_eq!(consumer.receive_timeout(SOON).map(|_| ()), Err(ReceiveError::Timeout));
    let long: Vec<u8> = (0..16 * 1024_u32).map(|byte| (byte % 251) as u8).collect();
    for (sequence, payload) in [(1, &b""[..]), (2, b"short"), (3, &long)] {
        deliver(&mut end, sequence, u32::try_from(sequence).expect("small"), payload);
        let delivery = consumer.receive().expect("it is there");
        assert_eq!(delivery.payload(), payload);
        assert_eq!((delivery.sequence(), u64::from(delivery.attempt())), (sequence, sequence));
        assert_eq!(delivery.redelivered(), sequence > 1);
        assert_eq!(delivery.published_ns(), 1_000 + sequence);
        assert_eq!(delivery.lease(), Some(Duration::from_secs(30)));
        let metadata = delivery.metadata().expect("well formed");
        assert_eq!(metadata.key, Some(sequence.to_le_bytes().to_vec()));
    }
}

#[test]
fn what_a_consumer_says_reaches_the_shard() {
    let (_daemon, mut consumer, mut end) = default();
    deliver(&mut end, 9, 2, b"x");
    let delivery = consumer.receive().expect("it is there");
    let lease = lease(9, 2);
    consumer.ack(&delivery).expect("there is room");
    consumer.nack(&delivery, Duration::from_micros(1)).expect("there is room");
    consumer.extend(&delivery, Duration::from_secs(2)).expect("there is room");
    consumer.reject(&delivery).expect("there is room");
    consumer.set_credit(5).expect("there is room");
    let expected = [
        Up::Ack { lease, request: 0 },
        Up::Nack { lease, request: 0, delay_ms: 1 },
        Up::Extend { lease, request: 0, lease_ms: 2_000 },
        Up::Reject { lease, request: 0 },
        Up::Credit { credit: 5 },
    ];
    for request in expected {
        assert_eq!(end.try_request(), Some(request));
    }
}

#[test]
fn what_was_asked_for_reaches_the_daemon() {
    let daemon = Daemon::start(Sizes::default());
    let options = ConsumerOptions::default()
        .group("g")
        .from(StartAt::Sequence(4))
        .credit(9)
        .browse(true)
        .wait(WaitPolicy::Park);
    let consumer = daemon.client().brokered_consumer("durable", options).expect("attach");
    let attached = daemon.attached();
    assert_eq!(attached.options.group, "g");
    assert_eq!(attached.options.from, StartAt::Sequence(4));
    assert_eq!((attached.options.credit, attached.options.browse), (9, true));
    assert_eq!((consumer.max_credit(), consumer.max_message()), (64, 16 * 1024));
    drop(consumer);
    assert_eq!(daemon.detached(), [attached.key]);
}

#[test]
fn confirmed_forms_wait_for_their_answer() {
    let (_daemon, mut consumer, mut end) = default();
    deliver(&mut end, 1, 1, b"x");
    let delivery = consumer.receive().expect("it is there");
    let cases = [
        (Outcome::Done, Ok(())),
        (Outcome::LeaseLost, Err(AckError::LeaseLost)),
        (Outcome::JournalFailed, Err(AckError::JournalFailed { errno: 28 })),
        (Outcome::QueueDeleted, Err(AckError::Closed(Closed::Deleted))),
        (Outcome::Invalid, Err(AckError::Rejected)),
    ];
    let shard = std::thread::spawn(move || {
        for (outcome, _) in cases {
            let Up::Ack { request, .. } = end.request() else { panic!("an ack") };
            // What is delivered meanwhile is not in the way.
            deliver(&mut end, request + 100, 1, b"meanwhile");
            answer(&mut end, request, outcome);
        }
        end
    });
    for (_, expected) in cases {
        assert_eq!(consumer.ack_confirmed(&delivery, LONG), expected);
    }
    let mut end = shard.join().expect("the shard ends well");
    deliver(&mut end, 200, 1, b"behind");
    let sequences: Vec<u64> = std::iter::from_fn(|| consumer.try_receive().ok())
        .map(|delivery| delivery.sequence())
        .collect();
    assert_eq!(sequences, [101, 102, 103, 104, 105, 200], "in the order of the ring");
}

#[test]
fn a_late_answer_is_nobody_elses() {
    let (_daemon, mut consumer, mut end) = default();
    deliver(&mut end, 1, 1, b"x");
    let delivery = consumer.receive().expect("it is there");
    assert_eq!(consumer.ack_confirmed(&delivery, SOON), Err(AckError::Timeout));
    let Up::Ack { request, .. } = end.request() else { panic!("an ack") };
    answer(&mut end, request, Outcome::Done);
    assert_eq!(consumer.nack_confirmed(&delivery, SOON, SOON), Err(AckError::Timeout));
    let Up::Nack { request: second, .. } = end.request() else { panic!("a nack") };
    assert_ne!(second, request);
    assert_eq!(consumer.try_receive().map(|_| ()), Err(ReceiveError::Empty));
}

#[test]
fn flush_asks_once_for_all() {
    let (_daemon, mut consumer, mut end) = default();
    consumer.flush(Duration::ZERO).expect("there is nothing to wait for");
    for sequence in 1..=3 {
        deliver(&mut end, sequence, 1, b"x");
        let delivery = consumer.receive().expect("it is there");
        consumer.ack(&delivery).expect("there is room");
    }
    let shard = std::thread::spawn(move || {
        for _ in 0..3 {
            assert!(matches!(end.request(), Up::Ack { request: 0, .. }));
        }
        let Up::Flush { request } = end.request() else { panic!("a flush") };
        answer(&mut end, request, Outcome::Done);
        end
    });
    consumer.flush(LONG).expect("answered");
    let mut end = shard.join().expect("the shard ends well");
    consumer.flush(Duration::ZERO).expect("there is nothing to wait for");
    assert_eq!(end.try_request(), None);
}

#[test]
fn drained_is_told_when_nothing_is_left() {
    let (_daemon, mut consumer, mut end) = default();
    let mut delivery = Delivery::default();
    let late = Err(ReceiveError::Timeout);
    assert_eq!(consumer.receive_or_drained(&mut delivery, Some(SOON)), late);
    deliver(&mut end, 1, 1, b"1");
    end.tell(&Down::Drained);
    assert_eq!(consumer.receive_or_drained(&mut delivery, None), Ok(true));
    assert_eq!(consumer.receive_or_drained(&mut delivery, None), Ok(false));
    assert_eq!(consumer.receive_or_drained(&mut delivery, Some(SOON)), late, "said once");
    assert!(matches!(end.try_request(), Some(Up::Credit { .. })), "it asks again");
    end.tell(&Down::Drained);
    assert_eq!(consumer.receive_or_drained(&mut delivery, None), Ok(false));
    assert_eq!(consumer.ack(&delivery), Err(AckError::ForeignDelivery), "it was used up");
    deliver(&mut end, 2, 1, b"2");
    assert_eq!(consumer.receive_or_drained(&mut delivery, None), Ok(true));
    assert_eq!(consumer.receive_or_drained(&mut delivery, Some(SOON)), late, "no longer so");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            end.tell(&Down::Drained);
        });
        assert_eq!(consumer.receive_or_drained(&mut delivery, None), Ok(false));
    });
}

#[test]
fn only_own_deliveries_that_are_leased_are_acknowledged() {
    let (daemon, mut consumer, mut end) = default();
    let mut other =
        daemon.client().brokered_consumer("durable", ConsumerOptions::default()).expect("attach");
    deliver(&mut end, 1, 1, b"x");
    deliver(&mut end, 2, 0, b"only shown");
    let delivery = consumer.receive().expect("it is there");
    let shown = consumer.receive().expect("it is there");
    assert_eq!(other.ack(&delivery), Err(AckError::ForeignDelivery));
    assert_eq!(consumer.ack(&Delivery::default()), Err(AckError::ForeignDelivery));
    assert_eq!(consumer.ack(&shown), Err(AckError::NotLeased));
    assert_eq!(consumer.ack_confirmed(&shown, LONG), Err(AckError::NotLeased));
    consumer.ack(&delivery).expect("its own");
}

/// A shard that takes no request before it has room for the answers to the ones before.
#[test]
fn full_rings_in_both_directions_come_loose() {
    let sizes =
        Sizes { slots: 64, max_message: 1024, record_slots: 64, leases: 64, ..Sizes::default() };
    let (_daemon, mut consumer, mut end) = pair(sizes, ConsumerOptions::default());
    deliver(&mut end, 1, 1, b"first");
    let first = consumer.receive().expect("it is there");
    let requests = 5_000_u64;
    let shard = std::thread::spawn(move || {
        let mut taken = 0;
        let mut next = 2;
        while taken < requests {
            // Deliveries fill the ring, and the shard takes one request for each that found room.
            if try_deliver(&mut end, next, 1, &[3; 100]) {
                next += 1;
                end.wake();
                if matches!(end.try_request(), Some(Up::Ack { .. })) {
                    taken += 1;
                }
            } else {
                std::thread::yield_now();
            }
        }
        next
    });
    for _ in 0..requests {
        consumer.ack(&first).expect("there will be room");
    }
    // The last ones are taken as the consumer makes room.
    let mut expected = 2;
    while !shard.is_finished() {
        if let Ok(delivery) = consumer.receive_timeout(SOON) {
            assert_eq!(delivery.sequence(), expected);
            expected += 1;
        }
    }
    let next = shard.join().expect("the shard ends well");
    for expected in expected..next {
        assert_eq!(consumer.try_receive().expect("put by or there").sequence(), expected);
    }
}

#[test]
fn a_closed_queue_ends_every_wait() {
    for (value, closed) in
        [(control::CLOSED_DELETED, Closed::Deleted), (control::CLOSED_DRAINING, Closed::Draining)]
    {
        let (_daemon, mut consumer, mut end) = default();
        deliver(&mut end, 1, 1, b"before");
        let delivery = consumer.receive().expect("it is there");
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(20));
                end.close(value);
            });
            assert_eq!(consumer.receive().map(|_| ()), Err(ReceiveError::Closed(closed)));
        });
        assert_eq!(consumer.ack(&delivery), Err(AckError::Closed(closed)));
        assert_eq!(consumer.flush(LONG), Ok(()), "nothing was submitted");
        assert_eq!(consumer.ack_confirmed(&delivery, LONG), Err(AckError::Closed(closed)));
    }
}

#[test]
fn a_failed_journal_refuses_acknowledgements_and_delivers_on() {
    let (daemon, mut consumer, mut end) = default();
    deliver(&mut end, 1, 1, b"x");
    let delivery = consumer.receive().expect("it is there");
    let doorway = daemon.doorway();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            doorway.page.set_failed(5, 1);
        });
        let failed = Err(AckError::JournalFailed { errno: 5 });
        assert_eq!(consumer.ack_confirmed(&delivery, LONG), failed, "though nobody answers");
        assert_eq!(consumer.ack(&delivery), failed);
    });
    deliver(&mut end, 2, 1, b"y");
    assert_eq!(consumer.receive().expect("it is there").payload(), b"y");
}

/// Deliveries as fast as the ring takes them, with a shard that waits for room.
#[test]
fn a_stream_of_deliveries_loses_no_wake() {
    for wait in WaitPolicy::ALL {
        let (daemon, mut consumer, mut end) = pair(
            Sizes { slots: 64, max_message: 1024, ..Sizes::default() },
            ConsumerOptions::default().wait(wait),
        );
        let messages = 20_000_u64;
        let shard = std::thread::spawn(move || {
            let (doorway, stop) = (daemon.doorway(), std::sync::atomic::AtomicBool::new(false));
            let mut next = 1;
            while next <= messages {
                let payload = vec![1; usize::try_from(next * 13 % 700).expect("small")];
                if try_deliver(&mut end, next, 1, &payload) {
                    next += 1;
                    end.wake();
                    continue;
                }
                let handle = end.key.handle;
                end.down.own_park().announce(handle);
                doorway.sleep(&stop, || {
                    let found = try_deliver(&mut end, next, 1, &payload);
                    next += u64::from(found);
                    found
                });
                doorway.link.take_ready(end.ready_index);
                end.down.own_park().retract(handle);
                end.wake();
            }
        });
        let mut delivery = Delivery::default();
        for expected in 1..=messages {
            consumer.receive_into(&mut delivery, None).expect("it will come");
            assert_eq!(delivery.sequence(), expected);
        }
        shard.join().expect("the shard ends well");
    }
}
