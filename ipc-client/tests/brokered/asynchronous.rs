//! The async handles: woken by the shard through a doorbell, futures that are dropped on the way.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ringmain_client::async_io::{AsyncBrokeredConsumer, AsyncBrokeredProducer};
use ringmain_client::raw::layout::control;
use ringmain_client::raw::wire::{DeliveryHeader, Down, LeaseToken, Outcome, Up};
use ringmain_client::{
    AckError, Closed, ConfirmError, ConsumerOptions, Delivery, ProducerOptions, ReceiveError,
    SendError,
};

use crate::ends::{Daemon, End, Sizes};
use crate::shard::{Manner, Shard};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime")
}

fn is_send<T: Send>(value: T) -> T {
    value
}

/// One poll, and then the future is dropped.
fn abandon(future: impl Future) {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    assert!(matches!(future.as_mut().poll(&mut context), Poll::Pending));
}

fn deliver(end: &mut End, sequence: u64) {
    let header = DeliveryHeader {
        lease: LeaseToken { slot: 1, attempt: 1, sequence },
        published_ns: 5,
        lease_ms: 0,
    };
    end.tell(&Down::Delivery(header));
}

#[test]
fn producers_wait_for_room_and_for_confirmation() {
    for (run, window) in [(1, 0), (usize::MAX, 0), (usize::MAX, 1)] {
        let sizes = Sizes { slots: 64, max_message: 1024, record_slots: 64, ..Sizes::default() };
        let daemon = Daemon::start(sizes);
        let client = daemon.client();
        let mut ends = Vec::new();
        let mut producers = Vec::new();
        for _ in 0..3 {
            let options = ProducerOptions::default().window(window);
            producers.push(client.brokered_producer("durable", options).expect("attach"));
            ends.push(daemon.end());
        }
        let manner = Manner { run, ..Manner::default() };
        let shard = Shard::start(ends, daemon.doorway(), daemon.doorway(), manner, 0);
        runtime().block_on(async {
            let mut tasks = Vec::new();
            for producer in producers {
                let mut producer = AsyncBrokeredProducer::new(producer).expect("bind");
                tasks.push(tokio::spawn(is_send(async move {
                    let mut settled = 0;
                    for number in 0..2_000_u64 {
                        let receipt = producer.send(&number.to_le_bytes()).await.expect("sent");
                        if number % 100 == 0 {
                            producer.wait(&receipt).await.expect("confirmed");
                        }
                    }
                    producer.send_batch(&[b"a", b"b"]).await.expect("sent");
                    producer.wait_all().await.expect("confirmed");
                    while let Some(run) = producer.next_settled().await.expect("in order") {
                        settled += run.count;
                    }
                    assert_eq!(settled, 2_002);
                    producer.into_inner().send(b"c").expect("there is room");
                })));
            }
            for task in tasks {
                task.await.expect("the task ends well");
            }
        });
        assert!(shard.stop().1 >= 3 * 2_002);
    }
}

#[test]
fn consumers_wait_for_deliveries_and_answers() {
    let daemon = Daemon::start(Sizes::default());
    let consumer =
        daemon.client().brokered_consumer("durable", ConsumerOptions::default()).expect("attach");
    let mut end = daemon.end();
    let shard = std::thread::spawn(move || {
        for sequence in 1..=500 {
            deliver(&mut end, sequence);
            match end.request() {
                Up::Ack { lease, request: 0 } => assert_eq!(lease.sequence, sequence),
                Up::Ack { lease, request } => {
                    assert_eq!(lease.sequence, sequence);
                    end.tell(&Down::Answer { request, outcome: Outcome::Done, detail: 0 });
                }
                other => panic!("{other:?}"),
            }
        }
        let Up::Flush { request } = end.request() else { panic!("a flush") };
        end.tell(&Down::Answer { request, outcome: Outcome::Done, detail: 0 });
        end.tell(&Down::Drained);
        end
    });
    runtime().block_on(is_send(async {
        let mut consumer = AsyncBrokeredConsumer::new(consumer).expect("bind");
        let mut delivery = Delivery::default();
        for sequence in 1..=500_u64 {
            consumer.receive_into(&mut delivery).await.expect("it comes");
            assert_eq!(delivery.sequence(), sequence);
            match sequence % 2 {
                0 => consumer.ack(&delivery).await.expect("there is room"),
                _ => consumer.ack_confirmed(&delivery).await.expect("answered"),
            }
        }
        consumer.flush().await.expect("answered");
        assert_eq!(consumer.receive_or_drained(&mut delivery).await, Ok(false));
        let mut end = shard.join().expect("the shard ends well");
        abandon(consumer.receive());
        deliver(&mut end, 501);
        let last = consumer.get_mut().receive().expect("it is there");
        abandon(consumer.ack_confirmed(&last));
        assert!(matches!(end.request(), Up::Ack { .. }));
        let Err(error) = consumer.ack(&delivery).await else { panic!("it was used up") };
        assert_eq!(error, AckError::ForeignDelivery);
        end.close(control::CLOSED_DELETED);
        let closed = consumer.receive().await.map(|_| ());
        assert_eq!(closed, Err(ReceiveError::Closed(Closed::Deleted)));
    }));
}

#[test]
fn a_closed_queue_wakes_who_waits() {
    let daemon = Daemon::start(Sizes::default());
    let producer =
        daemon.client().brokered_producer("durable", ProducerOptions::default()).expect("attach");
    let end = daemon.end();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        end.close(control::CLOSED_DRAINING);
    });
    runtime().block_on(async {
        let mut producer = AsyncBrokeredProducer::new(producer).expect("bind");
        let receipt = producer.send(b"x").await.expect("there is room");
        abandon(producer.wait(&receipt));
        let closed = Closed::Draining;
        assert_eq!(producer.wait(&receipt).await, Err(ConfirmError::Closed(closed)));
        assert_eq!(producer.send(b"x").await, Err(SendError::Closed(closed)));
    });
}
