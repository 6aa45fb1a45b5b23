//! The async handles in one thread and in several, with futures that are dropped on the way.

use std::time::Duration;

use ringmain_client::async_io::{AsyncConsumer, AsyncProducer};
use ringmain_client::{Closed, Kind, ReceiveError, SendError};

use crate::harness::{Daemon, PATIENCE, create};

fn single() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

#[test]
fn one_thread_sends_and_receives() {
    for kind in [Kind::Spsc, Kind::Mpmc] {
        let (_daemon, client) = Daemon::with_queue(kind, 64, 64);
        single().block_on(async {
            let mut producer =
                AsyncProducer::new(client.producer("q").expect("attach")).expect("bind");
            let mut consumer =
                AsyncConsumer::new(client.consumer("q").expect("attach")).expect("bind");
            let sender = tokio::spawn(async move {
                for n in 0..20_000_u32 {
                    producer.send(&n.to_le_bytes()).await.expect("the queue stays open");
                }
                producer
            });
            let mut buffer = Vec::new();
            for n in 0..20_000_u32 {
                if n % 2 == 0 {
                    consumer.receive(&mut buffer).await.expect("it comes");
                } else {
                    let guard = consumer.take().await.expect("it comes");
                    guard.copy_to(&mut buffer).expect("no fork");
                }
                assert_eq!(buffer, n.to_le_bytes());
            }
            let mut producer = sender.await.expect("the sender ends well");
            producer.send_batch(&[b"a", b"b"]).await.expect("there is room");
            consumer.receive(&mut buffer).await.expect("it comes");
            let mut blocking = consumer.into_inner();
            blocking.receive_timeout(&mut buffer, PATIENCE).expect("it comes");
            assert_eq!(buffer, b"b");
        });
    }
}

#[test]
fn many_tasks_share_doorbells() {
    const TASKS: usize = 70;
    let daemon = Daemon::start();
    let client = daemon.client();
    let name = |n: usize| format!("q{n}");
    for n in 0..TASKS {
        create(&client, &name(n), Kind::Mpmc, 64, 64);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut receivers = Vec::new();
        for n in 0..TASKS {
            let mut consumer =
                AsyncConsumer::new(client.consumer(&name(n)).expect("attach")).expect("bind");
            receivers.push(tokio::spawn(async move {
                let mut buffer = Vec::new();
                for round in 0..50_u32 {
                    consumer.receive(&mut buffer).await.expect("it comes");
                    assert_eq!(buffer, round.to_le_bytes());
                }
            }));
        }
        let other = daemon.client();
        let sender = tokio::task::spawn_blocking(move || {
            let mut producers: Vec<_> =
                (0..TASKS).map(|n| other.producer(&name(n)).expect("attach")).collect();
            for round in 0..50_u32 {
                for producer in &mut producers {
                    producer.send(&round.to_le_bytes()).expect("there is room");
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        sender.await.expect("the sender ends well");
        for receiver in receivers {
            let ended = tokio::time::timeout(PATIENCE, receiver).await;
            ended.expect("a ring was lost").expect("the receiver ends well");
        }
    });
}

#[test]
fn a_dropped_future_loses_nothing() {
    let (_daemon, client) = Daemon::with_queue(Kind::Mpmc, 64, 64);
    let mut sender = client.producer("q").expect("attach");
    single().block_on(async {
        let mut consumer = AsyncConsumer::new(client.consumer("q").expect("attach")).expect("bind");
        let mut buffer = Vec::new();
        for n in 0..50_u32 {
            let early =
                tokio::time::timeout(Duration::from_millis(1), consumer.receive(&mut buffer));
            assert!(early.await.is_err(), "nothing was sent");
            sender.send(&n.to_le_bytes()).expect("there is room");
            consumer.receive(&mut buffer).await.expect("it comes");
            assert_eq!(buffer, n.to_le_bytes());
        }
    });
}

#[test]
fn deletion_ends_async_waits() {
    let (_daemon, client) = Daemon::with_queue(Kind::Mpmc, 64, 64);
    create(&client, "full", Kind::Spsc, 64, 64);
    let mut full = client.producer("full").expect("attach");
    while full.try_send(b"x").is_ok() {}
    single().block_on(async {
        let mut producer = AsyncProducer::new(full).expect("bind");
        let mut consumer = AsyncConsumer::new(client.consumer("q").expect("attach")).expect("bind");
        let receiver = tokio::spawn(async move { consumer.receive(&mut Vec::new()).await });
        let sender = tokio::spawn(async move { producer.send(b"x").await });
        tokio::time::sleep(Duration::from_millis(20)).await;
        client.delete_queue("q").expect("it is there");
        client.delete_queue("full").expect("it is there");
        let received = tokio::time::timeout(PATIENCE, receiver).await.expect("it ends");
        assert_eq!(received.expect("no panic"), Err(ReceiveError::Closed(Closed::Deleted)));
        let sent = tokio::time::timeout(PATIENCE, sender).await.expect("it ends");
        assert_eq!(sent.expect("no panic"), Err(SendError::Closed(Closed::Deleted)));
    });
}

#[test]
fn a_handle_outlives_its_runtime_with_an_error() {
    let (_daemon, client) = Daemon::with_queue(Kind::Mpmc, 64, 64);
    let first = single();
    let mut consumer = first.block_on(async {
        AsyncConsumer::new(client.consumer("q").expect("attach")).expect("bind")
    });
    drop(first);
    let mut buffer = Vec::new();
    let received = single().block_on(consumer.receive(&mut buffer));
    assert_eq!(received, Err(ReceiveError::RuntimeStopped));
    client.producer("q").expect("attach").send(b"x").expect("there is room");
    let mut blocking = consumer.into_inner();
    blocking.receive_timeout(&mut buffer, PATIENCE).expect("it is there");
}

#[test]
fn async_waits_notice_another_daemon() {
    let (mut daemon, client) = Daemon::with_queue(Kind::Mpmc, 64, 64);
    let mut full = client.producer("q").expect("attach");
    while full.try_send(b"x").is_ok() {}
    create(&client, "empty", Kind::Spsc, 64, 64);
    single().block_on(async {
        let mut producer = AsyncProducer::new(full).expect("bind");
        let mut consumer =
            AsyncConsumer::new(client.consumer("empty").expect("attach")).expect("bind");
        let receiver = tokio::spawn(async move { consumer.receive(&mut Vec::new()).await });
        let sender = tokio::spawn(async move { producer.send(b"x").await });
        tokio::time::sleep(Duration::from_millis(20)).await;
        daemon.replace();
        let received = tokio::time::timeout(PATIENCE, receiver).await.expect("it ends");
        assert_eq!(received.expect("no panic"), Err(ReceiveError::Closed(Closed::Deleted)));
        let sent = tokio::time::timeout(PATIENCE, sender).await.expect("it ends");
        assert_eq!(sent.expect("no panic"), Err(SendError::Closed(Closed::Deleted)));
    });
}
