//! The broker goes and comes back; handles notice nothing.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use ringmain_client::{Closed, Kind, ReceiveError, Selector, SendError};

use crate::harness::{Daemon, PATIENCE, create, until, until_info};

/// Of a sender whose messages have eight bytes.
const LAST_WORD: &[u8] = b"";

#[test]
fn traffic_goes_on_while_brokers_are_killed() {
    for kind in [Kind::Spsc, Kind::Mpmc] {
        let (daemon, client) = Daemon::with_queue(kind, 64, 64);
        let mut producer = client.producer("q").expect("attach");
        let mut consumer = client.consumer("q").expect("attach");
        let stop = std::sync::Arc::new(std::sync::OnceLock::new());
        let stopped = std::sync::Arc::clone(&stop);
        let sender = std::thread::spawn(move || {
            let mut sent = 0_u64;
            while stopped.get().is_none() {
                producer.send(&sent.to_le_bytes()).expect("the queue stays open");
                sent += 1;
                if sent.is_multiple_of(10_000) {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            producer.send(LAST_WORD).expect("the queue stays open");
            sent
        });
        let receiver = std::thread::spawn(move || {
            let mut buffer = Vec::new();
            let mut received = 0_u64;
            loop {
                consumer.receive_timeout(&mut buffer, PATIENCE).expect("it comes");
                if buffer == LAST_WORD {
                    return (received, consumer);
                }
                assert_eq!(buffer, received.to_le_bytes());
                received += 1;
            }
        });
        for round in 2..5 {
            daemon.kill_broker();
            // The same client, whose connection broke.
            let status = client.status().expect("the next broker answers");
            assert!(status.broker_starts >= round, "{status:?}");
            let info = client.queue_info("q").expect("the queue was adopted");
            assert_eq!((info.producers, info.consumers), (1, 1));
        }
        stop.set(()).expect("once");
        let sent = sender.join().expect("the sender ends well");
        let (received, _consumer) = receiver.join().expect("the receiver ends well");
        assert_eq!(received, sent);
    }
}

#[test]
fn a_waiting_handle_connects_again_by_itself() {
    let (daemon, client) = Daemon::with_queue(Kind::Mpmc, 64, 64);
    let mut consumer = client.consumer("q").expect("attach");
    let receiver = std::thread::spawn(move || {
        let mut buffer = Vec::new();
        consumer.receive_timeout(&mut buffer, PATIENCE).expect("it comes");
        consumer
    });
    until_info(&client, |info| info.handles.iter().any(|handle| handle.waiting_ns.is_some()));
    daemon.kill_broker();
    let other = daemon.client();
    until_info(&other, |info| info.handles.iter().all(|handle| handle.state == "attached"));
    other.producer("q").expect("attach").send(b"x").expect("there is room");
    receiver.join().expect("the receiver ends well");
}

#[test]
fn handles_of_a_daemon_that_is_gone_are_closed() {
    let (mut daemon, client) = Daemon::with_queue(Kind::Mpmc, 64, 64);
    let mut producer = client.producer("q").expect("attach");
    let mut consumer = client.consumer("q").expect("attach");
    daemon.replace();
    // Nobody has told the handles yet: they still serve each other.
    producer.send(b"x").expect("there is room");
    let mut buffer = Vec::new();
    consumer.receive(&mut buffer).expect("it is there");
    let received = consumer.receive_timeout(&mut buffer, PATIENCE);
    assert_eq!(received, Err(ReceiveError::Closed(Closed::Deleted)));
    while producer.try_send(b"x").is_ok() {}
    assert_eq!(producer.send(b"x"), Err(SendError::Closed(Closed::Deleted)));
    drop((producer, consumer));
    // The client itself serves on with the new daemon, doorbells included.
    create(&client, "q", Kind::Mpmc, 64, 64);
    let mut selector = Selector::new(&client).expect("the daemon answers");
    selector.add(client.consumer("q").expect("attach")).expect("the daemon answers");
    client.producer("q").expect("attach").send(b"x").expect("there is room");
    assert_eq!(selector.wait(Some(PATIENCE)).expect("no fork").len(), 1);
}

#[test]
fn handles_that_only_poll_notice_it_as_well() {
    let (mut daemon, client) = Daemon::with_queue(Kind::Mpmc, 64, 64);
    let mut producer = client.producer("q").expect("attach");
    let mut consumer = client.consumer("q").expect("attach");
    daemon.replace();
    let mut buffer = Vec::new();
    let end = loop {
        match consumer.receive_timeout(&mut buffer, Duration::from_millis(2)) {
            Err(ReceiveError::Timeout) => {}
            end => break end,
        }
    };
    assert_eq!(end, Err(ReceiveError::Closed(Closed::Deleted)));
    while producer.try_send(b"x") != Err(SendError::Closed(Closed::Deleted)) {}
}

#[test]
fn a_selector_serves_on_with_another_daemon() {
    let (mut daemon, client) = Daemon::with_queue(Kind::Mpmc, 64, 64);
    let mut selector = Selector::new(&client).expect("the daemon answers");
    let old = selector.add(client.consumer("q").expect("attach")).expect("the daemon answers");
    daemon.replace();
    let ready = selector.wait(Some(PATIENCE)).expect("no fork");
    assert_eq!(ready, [old], "a lost queue is ready to say so");
    let consumer = selector.get_mut(old).expect("it is in the selector");
    let received = consumer.try_receive(&mut Vec::new());
    assert_eq!(received, Err(ReceiveError::Closed(Closed::Deleted)));
    drop(selector.remove(old));
    create(&client, "q", Kind::Mpmc, 64, 64);
    let new = selector.add(client.consumer("q").expect("attach")).expect("bound anew");
    assert!(!selector.arm().expect("no fork"));
    daemon.client().producer("q").expect("attach").send(b"x").expect("there is room");
    assert_eq!(selector.wait(Some(PATIENCE)).expect("no fork"), [new]);
}

#[test]
fn a_doorbell_is_rung_although_the_broker_was_away_when_it_was_needed() {
    let (daemon, client) = Daemon::with_queue(Kind::Mpmc, 64, 64);
    let other = daemon.client();
    let mut producer = other.producer("q").expect("attach");
    let mut selector = Selector::new(&client).expect("the daemon answers");
    selector.add(client.consumer("q").expect("attach")).expect("the daemon answers");
    assert!(!selector.arm().expect("no fork"));
    let broker = daemon.broker();
    kill(broker, Signal::SIGSTOP).expect("the broker runs");
    // Sending waits for nobody, whatever the broker does.
    producer.send_timeout(b"x", Duration::from_secs(1)).expect("there is room");
    assert!(!readable(&selector, 50), "the doorbell cannot be fetched yet");
    kill(broker, Signal::SIGKILL).expect("the broker is stopped");
    assert!(readable(&selector, 30_000), "the doorbell was never rung");
    assert_eq!(selector.wait(Some(Duration::ZERO)).expect("no fork").len(), 1);
}

fn readable(selector: &Selector, timeout_ms: u16) -> bool {
    use std::os::fd::AsFd;
    let mut watched = [nix::poll::PollFd::new(selector.as_fd(), nix::poll::PollFlags::POLLIN)];
    nix::poll::poll(&mut watched, timeout_ms).expect("poll") == 1
}

#[test]
fn dropping_handles_is_quick_while_the_broker_is_stopped() {
    let (daemon, client) = Daemon::with_queue(Kind::Mpmc, 64, 64);
    let handles: Vec<_> = (0..50).map(|_| client.consumer("q").expect("attach")).collect();
    let broker = daemon.broker();
    kill(broker, Signal::SIGSTOP).expect("the broker runs");
    let started = std::time::Instant::now();
    drop(handles);
    let took = started.elapsed();
    kill(broker, Signal::SIGCONT).expect("the broker is stopped");
    assert!(took < Duration::from_secs(10), "{took:?}");
    // The next connection tells the daemon which handles are left.
    let mut last = u32::MAX;
    let gone = until(PATIENCE, || {
        last = client.queue_info("q").expect("the daemon answers").consumers;
        last == 0
    });
    assert!(gone, "{last} consumers are left");
}

/// Both processes of the daemon are killed, and this producer never waits: it asks.
#[test]
fn a_producer_that_never_waits_can_ask() {
    let (mut daemon, client) = Daemon::with_queue(Kind::Mpmc, 64, 64);
    let mut producer = client.producer("q").expect("attach");
    let mut consumer = client.consumer("q").expect("attach");
    let mut buffer = Vec::new();
    producer.check_connection().expect("the daemon knows it");
    daemon.replace();
    let asked = until(PATIENCE, || {
        producer.try_send(b"x").expect("there is room");
        consumer.try_receive(&mut buffer).expect("it is there");
        producer.check_connection() == Err(SendError::Closed(Closed::Deleted))
    });
    assert!(asked, "it never noticed");
}
