//! Session queues, requests and replies.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use ringmain_client::async_io::{AsyncReplier, AsyncRequester};
use ringmain_client::protocol::{ErrorCode, Reply as Answer, Request};
use ringmain_client::{
    Client, DeliverySpec, Plane, QueueSpec, ReceiveError, ReplyError, ReplyTo, RequestError,
};

use crate::brokered_support::*;
use crate::support::*;

fn planes() -> [QueueSpec; 3] {
    [mpmc(), in_memory(), durable()]
}

fn session_queue(spec: QueueSpec) -> QueueSpec {
    QueueSpec { session: true, ..spec }
}

fn is_there(client: &Client, queue: &str) -> bool {
    match client.queue_info(queue) {
        Ok(_) => true,
        Err(error) if error.is_not_found() => false,
        Err(error) => panic!("{error}"),
    }
}

fn eventually_gone(client: &Client, queue: &str) {
    eventually("the end of the session queue", || (!is_there(client, queue)).then_some(()));
}

/// The next request, of either plane, done with.
fn next(client: &Client, queue: &str) -> impl FnMut(Duration) -> Option<(ReplyTo, Vec<u8>)> {
    let plane = client.queue_info(queue).unwrap().plane;
    let mut direct = (plane == Plane::Direct).then(|| client.consumer(queue).unwrap());
    let mut brokered = (plane == Plane::Brokered).then(|| consumer(client, queue));
    move |timeout| {
        if let Some(consumer) = &mut direct {
            let guard = match consumer.take_timeout(timeout) {
                Err(ReceiveError::Timeout | ReceiveError::Empty) => return None,
                other => other.unwrap(),
            };
            let mut payload = Vec::new();
            guard.copy_to(&mut payload).unwrap();
            return Some((guard.reply_to().unwrap(), payload));
        }
        let consumer = brokered.as_mut().unwrap();
        let delivery = match consumer.receive_timeout(timeout) {
            Err(ReceiveError::Timeout | ReceiveError::Empty) => return None,
            other => other.unwrap(),
        };
        consumer.ack(&delivery).unwrap();
        Some((delivery.reply_to().unwrap(), delivery.into_payload()))
    }
}

#[test]
fn session_queues_vanish_with_their_process() {
    let daemon = Durable::start();
    let client = daemon.client();
    for (number, spec) in planes().into_iter().enumerate() {
        for with_broker in [false, true] {
            let queue = format!("q{number}{with_broker}");
            client.create_queue(&queue, spec.clone()).unwrap();
            let child = Actor::started(&daemon.daemon.socket, &["requester", &queue]);
            let reply_queue = child.says();
            let info = client.queue_info(&reply_queue).unwrap();
            assert!(info.session && info.consumers == 1 && !info.durable, "{info:?}");
            assert!(!client.queue_info(&queue).unwrap().session);
            if with_broker {
                signal(daemon.daemon.status().broker_pid, Signal::SIGKILL);
            }
            child.kill();
            eventually_gone(&client, &reply_queue);
            assert!(is_there(&client, &queue));
        }
    }
    eventually("all sessions but this one are gone", || {
        (daemon.daemon.status().handles == 0).then_some(())
    });
}

#[test]
fn session_queues_vanish_with_their_connection_if_nothing_else_is_left() {
    let daemon = Durable::start();
    let client = daemon.client();
    for spec in [mpmc(), in_memory()] {
        let mut raw = Raw::hello(&daemon.daemon.socket, 5);
        assert!(raw.create("mine", session_queue(spec.clone())).session);
        assert!(is_there(&client, "mine"));
        drop(raw);
        eventually_gone(&client, "mine");
        // A name that is free again, and a queue that its owner deletes itself.
        client.create_queue("mine", session_queue(spec)).unwrap();
        client.delete_queue("mine").unwrap();
        assert!(!is_there(&client, "mine"));
    }
}

#[test]
fn session_queues_stay_over_a_brokers_death_while_their_process_lives() {
    let daemon = Durable::start();
    let client = daemon.client();
    for (number, spec) in planes().into_iter().enumerate() {
        let queue = format!("q{number}");
        client.create_queue(&queue, spec).unwrap();
        let mut requester = client.requester(&queue).unwrap();
        let mut requests = next(&client, &queue);
        let mut replier = client.replier();
        let other = daemon.client();
        for round in 0_u32..3 {
            let reply = std::thread::scope(|scope| {
                let answering = scope.spawn(|| {
                    let (to, payload) = requests(PATIENCE).unwrap();
                    replier.reply(&to, &payload).unwrap();
                });
                let reply = requester.request(&round.to_le_bytes(), PATIENCE);
                answering.join().unwrap();
                reply.unwrap()
            });
            assert_eq!(reply.payload(), round.to_le_bytes());
            daemon.daemon.kill_broker();
        }
        let reply_queue = requester.reply_queue().to_owned();
        assert!(is_there(&other, &reply_queue));
        drop(requester);
        eventually_gone(&other, &reply_queue);
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let daemon = Durable::start();
    let client = daemon.client();
    let refused = |name: &str, spec: QueueSpec| {
        let mut raw = Raw::hello(&daemon.daemon.socket, 9);
        raw.refused(&Request::CreateQueue { name: name.into(), spec })
    };
    let (code, text) = refused("x", session_queue(durable()));
    assert!(code == ErrorCode::Invalid && text.contains("durable"), "{text}");
    client.create_queue("short", session_queue(in_memory())).unwrap();
    let rules = DeliverySpec { dead_letter: Some("short".into()), ..DeliverySpec::default() };
    let (code, text) = refused("y", with_rules(in_memory(), rules));
    assert!(code == ErrorCode::Invalid && text.contains("session"), "{text}");
    // The same name for somebody else.
    let (code, _) = refused("short", session_queue(in_memory()));
    assert_eq!(code, ErrorCode::Exists);
    let mut raw = Raw::hello(&daemon.daemon.socket, 10);
    let answer = raw.ask(&Request::QueueInfo { name: "short".into() });
    assert!(matches!(answer, Answer::Queue(info) if info.session));
}

#[test]
fn late_replies_are_dropped_and_order_does_not_matter() {
    let daemon = Durable::start();
    let client = daemon.client();
    for (number, spec) in planes().into_iter().enumerate() {
        let queue = format!("q{number}");
        client.create_queue(&queue, spec).unwrap();
        let mut requests = next(&client, &queue);
        let mut replier = client.replier();
        let mut requester = client.requester(&queue).unwrap();
        let mut kept = Vec::new();
        for _ in 0..3 {
            // Taken in time, answered too late.
            std::thread::scope(|scope| {
                scope.spawn(|| kept.push(requests(PATIENCE).unwrap()));
                let error = requester.request(b"late", Duration::from_millis(200)).unwrap_err();
                assert!(matches!(error, RequestError::Timeout), "{error}");
            });
        }
        while let Some((to, payload)) = kept.pop() {
            replier.reply(&to, &payload).unwrap();
        }
        let mut other = client.requester(&queue).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Relaxed: nothing else is passed on.
                while !done.load(Ordering::Relaxed) {
                    if let Some((to, payload)) = requests(Duration::from_millis(20)) {
                        replier.reply(&to, &payload.to_ascii_uppercase()).unwrap();
                    }
                }
            });
            for round in 0..50 {
                for (name, requester) in [("one", &mut requester), ("two", &mut other)] {
                    let asked = format!("{name} {round}");
                    let reply = requester.request(asked.as_bytes(), PATIENCE).unwrap();
                    assert_eq!(reply.into_payload(), asked.to_ascii_uppercase().into_bytes());
                }
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}

#[test]
fn replies_that_cannot_arrive_are_typed_errors() {
    let daemon = Durable::start();
    let client = daemon.client();
    for (number, spec) in planes().into_iter().enumerate() {
        let queue = format!("q{number}");
        client.create_queue(&queue, spec).unwrap();
        let mut requests = next(&client, &queue);
        let mut replier = client.replier();
        let ask = || {
            let mut requester = client.requester(&queue).unwrap();
            let request = requester.request(b"x", Duration::from_millis(50));
            assert!(matches!(request, Err(RequestError::Timeout)), "{request:?}");
            requester
        };
        // Gone before the first reply, and after one.
        for first in [false, true] {
            let requester = ask();
            // On the brokered planes it may have expired by now: the reply is the same to the same place.
            let to = requests(Duration::from_millis(20)).map_or_else(
                || ReplyTo { queue: requester.reply_queue().to_owned(), correlation: 1 },
                |(to, _)| to,
            );
            if first {
                replier.reply(&to, b"late").unwrap();
            }
            drop(requester);
            eventually_gone(&client, &to.queue);
            for _ in 0..2 {
                let error = replier.reply(&to, b"later").unwrap_err();
                assert!(matches!(error, ReplyError::Gone), "{error:?}");
            }
        }
        let to = ReplyTo { queue: queue.clone(), correlation: 1 };
        let error = replier.reply(&to, b"x").unwrap_err();
        assert!(matches!(&error, ReplyError::NoReplyQueue(name) if *name == queue), "{error:?}");
    }
    // A requester that reads nothing does not hold the server up for long.
    let requester = client.requester("q0").unwrap();
    let to = ReplyTo { queue: requester.reply_queue().to_owned(), correlation: 1 };
    let mut replier = client.replier();
    let full = (0..10_000).find_map(|_| replier.reply_timeout(&to, b"x", Duration::ZERO).err());
    assert!(matches!(full, Some(ReplyError::Full)), "{full:?}");
}

/// A runtime without a clock.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap()
}

#[test]
fn requests_and_replies_as_futures() {
    let daemon = Durable::start();
    let client = daemon.client();
    for (number, spec) in planes().into_iter().enumerate() {
        let queue = format!("q{number}");
        client.create_queue(&queue, spec).unwrap();
        let requester = client.requester(&queue).unwrap();
        let reply_queue = requester.reply_queue().to_owned();
        let late = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut next = next(&client, &queue);
                runtime().block_on(async {
                    let mut replier = AsyncReplier::new(client.replier()).unwrap();
                    loop {
                        let (to, payload) = next(PATIENCE).unwrap();
                        assert_eq!(to.queue, reply_queue);
                        if payload == b"late" {
                            eventually("the time-out", || {
                                late.load(Ordering::Acquire).then_some(())
                            });
                        }
                        replier.reply(&to, &[&payload[..], b"!"].concat(), PATIENCE).await.unwrap();
                        if payload == b"last" {
                            break;
                        }
                    }
                });
            });
            runtime().block_on(async {
                let mut requester = AsyncRequester::new(requester).unwrap();
                let (begun, short) = (Instant::now(), Duration::from_millis(200));
                let error = requester.request(b"late", short).await.unwrap_err();
                assert!(matches!(error, RequestError::Timeout), "{error:?}");
                assert!(begun.elapsed() >= short);
                late.store(true, Ordering::Release);
                // The reply that comes too late belongs to none of these.
                for text in ["1", "2", "3", "last"] {
                    let reply = requester.request(text.as_bytes(), PATIENCE).await.unwrap();
                    assert_eq!(reply.payload(), format!("{text}!").as_bytes());
                }
            });
        });
        assert!(!is_there(&client, &reply_queue));
        runtime().block_on(async {
            let mut replier = AsyncReplier::new(client.replier()).unwrap();
            let mut reply = async |queue: &str| {
                let to = ReplyTo { queue: queue.to_owned(), correlation: 1 };
                replier.reply(&to, b"x", PATIENCE).await.unwrap_err()
            };
            let error = reply(&reply_queue).await;
            assert!(matches!(error, ReplyError::Gone), "{error:?}");
            let error = reply(&queue).await;
            assert!(matches!(error, ReplyError::NoReplyQueue(_)), "{error:?}");
        });
    }
}
