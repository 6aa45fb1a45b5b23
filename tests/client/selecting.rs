//! Many queues through one doorbell, in a thread and through `poll(2)`.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, poll};
use ringmain_client::{Closed, Kind, ReceiveError, Selector, Token};

use crate::harness::{Daemon, PATIENCE, create};

const QUEUES: usize = 40;

fn names() -> Vec<String> {
    (0..QUEUES).map(|n| format!("q{n}")).collect()
}

fn many(kind: Kind) -> (Daemon, Selector, HashMap<Token, usize>) {
    let daemon = Daemon::start();
    let client = daemon.client();
    let mut selector = Selector::new(&client).expect("the daemon answers");
    let mut queues = HashMap::new();
    for (number, name) in names().iter().enumerate() {
        create(&client, name, kind, 64, 64);
        let consumer = client.consumer(name).expect("attach");
        queues.insert(selector.add(consumer).expect("the daemon answers"), number);
    }
    assert_eq!(selector.len(), QUEUES);
    (daemon, selector, queues)
}

/// Sends `count` numbers to each queue, from a thread with a client of its own.
fn sender(daemon: &Daemon, count: u32, pause: Option<Duration>) -> std::thread::JoinHandle<()> {
    let client = daemon.client();
    std::thread::spawn(move || {
        let mut producers: Vec<_> =
            names().iter().map(|name| client.producer(name).expect("attach")).collect();
        for n in 0..count {
            for (at, producer) in producers.iter_mut().enumerate() {
                producer.send_timeout(&n.to_le_bytes(), PATIENCE).expect("there is room");
                if let Some(pause) = pause
                    && at % 7 == 0
                {
                    std::thread::sleep(pause);
                }
            }
        }
    })
}

/// Receives until every queue has given `count` numbers in order; `wait` says which queues are ready.
fn collect(
    selector: &mut Selector,
    queues: &HashMap<Token, usize>,
    count: u32,
    mut wait: impl FnMut(&mut Selector) -> Vec<Token>,
) {
    let mut next = [0_u32; QUEUES];
    let mut buffer = Vec::new();
    while next.iter().any(|next| *next < count) {
        for token in wait(selector) {
            let place = &mut next[queues[&token]];
            let consumer = selector.get_mut(token).expect("it is in the selector");
            // Not always all of it: what is left is reported again.
            for _ in 0..5 {
                match consumer.try_receive(&mut buffer) {
                    Ok(_) => {
                        assert_eq!(buffer, place.to_le_bytes());
                        *place += 1;
                    }
                    Err(error) => {
                        assert_eq!(error, ReceiveError::Empty);
                        break;
                    }
                }
            }
        }
    }
}

#[test]
fn one_thread_serves_many_queues() {
    for kind in [Kind::Spsc, Kind::Mpmc] {
        for (count, pause) in [(500, None), (20, Some(Duration::from_micros(300)))] {
            let (daemon, mut selector, queues) = many(kind);
            let sender = sender(&daemon, count, pause);
            collect(&mut selector, &queues, count, |selector| {
                let ready = selector.wait(Some(PATIENCE)).expect("no fork");
                assert!(!ready.is_empty(), "nothing came");
                ready
            });
            sender.join().expect("the sender ends well");
            let nothing = selector.wait(Some(Duration::from_millis(5))).expect("no fork");
            assert!(nothing.is_empty());
        }
    }
}

#[test]
fn poll_tells_of_many_queues() {
    for kind in [Kind::Spsc, Kind::Mpmc] {
        let (daemon, mut selector, queues) = many(kind);
        let sender = sender(&daemon, 20, Some(Duration::from_micros(300)));
        collect(&mut selector, &queues, 20, |selector| {
            if !selector.arm().expect("no fork") {
                let mut watched = [PollFd::new(selector.as_fd(), PollFlags::POLLIN)];
                // Unbounded but for the patience of the test: a ring that is lost is not made up for here.
                let ready = poll(&mut watched, 30_000_u16).expect("poll");
                assert_eq!(ready, 1, "a ring was lost");
            }
            selector.wait(Some(Duration::ZERO)).expect("no fork")
        });
        sender.join().expect("the sender ends well");
        assert!(!selector.arm().expect("no fork"));
        let mut watched = [PollFd::new(selector.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut watched, 5_u16).expect("poll"), 0, "nothing came, but it is readable");
    }
}

#[test]
fn queues_come_and_go() {
    let (daemon, client) = Daemon::with_queue(Kind::Mpmc, 64, 64);
    create(&client, "r", Kind::Mpmc, 64, 64);
    let mut selector = Selector::new(&client).expect("the daemon answers");
    assert!(selector.is_empty());
    let first = selector.add(client.consumer("q").expect("attach")).expect("bind");
    let second = selector.add(client.consumer("r").expect("attach")).expect("bind");
    assert_ne!(first, second);
    assert!(selector.wait(Some(Duration::from_millis(1))).expect("no fork").is_empty());
    let mut consumer = selector.remove(first).expect("it is in the selector");
    assert!(selector.remove(first).is_none() && selector.get_mut(first).is_none());
    let mut producer = daemon.client().producer("q").expect("attach");
    producer.send(b"x").expect("there is room");
    assert!(selector.wait(Some(Duration::from_millis(20))).expect("no fork").is_empty());
    // On its own again, it waits as any other consumer does.
    let mut buffer = Vec::new();
    consumer.receive_timeout(&mut buffer, PATIENCE).expect("it is there");
    let waiter = std::thread::spawn(move || {
        consumer.receive_timeout(&mut buffer, PATIENCE).expect("it comes");
        consumer
    });
    std::thread::sleep(Duration::from_millis(20));
    producer.send(b"x").expect("there is room");
    let consumer = waiter.join().expect("the waiter ends well");
    // And it may come back, with a message that is there already.
    producer.send(b"x").expect("there is room");
    let again = selector.add(consumer).expect("bind");
    assert_eq!(selector.wait(Some(PATIENCE)).expect("no fork"), [again]);
    assert_eq!(selector.wait(Some(PATIENCE)).expect("no fork"), [again], "level, not edge");
}

#[test]
fn a_consumer_in_a_selector_can_wait_on_its_own() {
    let (_daemon, client) = Daemon::with_queue(Kind::Mpmc, 64, 64);
    let mut selector = Selector::new(&client).expect("the daemon answers");
    let token = selector.add(client.consumer("q").expect("attach")).expect("bind");
    assert!(selector.wait(Some(Duration::from_millis(1))).expect("no fork").is_empty());
    let mut producer = client.producer("q").expect("attach");
    let sender = std::thread::spawn(move || {
        for n in 0..100_u8 {
            std::thread::sleep(Duration::from_micros(200));
            producer.send(&[n]).expect("there is room");
        }
    });
    let mut buffer = Vec::new();
    for n in 0..100_u8 {
        let consumer = selector.get_mut(token).expect("it is in the selector");
        consumer.receive_timeout(&mut buffer, PATIENCE).expect("it comes");
        assert_eq!(buffer, [n]);
    }
    sender.join().expect("the sender ends well");
}

#[test]
fn a_closed_queue_is_ready() {
    let (_daemon, client) = Daemon::with_queue(Kind::Mpmc, 64, 64);
    let mut selector = Selector::new(&client).expect("the daemon answers");
    let token = selector.add(client.consumer("q").expect("attach")).expect("bind");
    let deleter = {
        let client = client.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            client.delete_queue("q").expect("it is there");
        })
    };
    assert_eq!(selector.wait(Some(PATIENCE)).expect("no fork"), [token]);
    let consumer = selector.get_mut(token).expect("it is in the selector");
    let received = consumer.try_receive(&mut Vec::new());
    assert_eq!(received, Err(ReceiveError::Closed(Closed::Deleted)));
    deleter.join().expect("the deleter ends well");
}

#[test]
fn selectors_may_be_made_again_and_again() {
    let (_daemon, client) = Daemon::with_queue(Kind::Mpmc, 64, 64);
    let mut producer = client.producer("q").expect("attach");
    for _ in 0..100 {
        let mut selector = Selector::new(&client).expect("doorbells are used again");
        let token = selector.add(client.consumer("q").expect("attach")).expect("bind");
        assert!(!selector.arm().expect("no fork"));
        producer.send(b"x").expect("there is room");
        assert_eq!(selector.wait(Some(PATIENCE)).expect("no fork"), [token]);
        let consumer = selector.get_mut(token).expect("it is in the selector");
        consumer.try_receive(&mut Vec::new()).expect("it is there");
    }
}

#[test]
fn selectors_that_are_gone_count_against_no_limit() {
    let (daemon, client) = Daemon::with_queue(Kind::Mpmc, 64, 64);
    let mut clients = Vec::new();
    // More than the doorbells that one user may have.
    for _ in 0..130 {
        let client = daemon.client();
        let all: Vec<_> =
            (0..16).map(|_| Selector::new(&client).expect("doorbells are given back")).collect();
        drop(all);
        clients.push(client);
    }
    let mut selector = Selector::new(&clients[0]).expect("doorbells are given back");
    let token = selector.add(clients[0].consumer("q").expect("attach")).expect("bind");
    assert!(!selector.arm().expect("no fork"));
    client.producer("q").expect("attach").send(b"x").expect("there is room");
    assert_eq!(selector.wait(Some(PATIENCE)).expect("no fork"), [token]);
}

#[test]
fn a_message_that_is_sent_last_rings_although_its_sender_leaves() {
    let (daemon, client) = Daemon::with_queue(Kind::Mpmc, 64, 64);
    let mut selector = Selector::new(&client).expect("the daemon answers");
    let token = selector.add(client.consumer("q").expect("attach")).expect("bind");
    for _ in 0..20 {
        assert!(!selector.arm().expect("no fork"));
        // A client of its own each time: the doorbell is not known to it, and it is gone at once.
        daemon.client().producer("q").expect("attach").send(b"x").expect("there is room");
        let mut watched = [PollFd::new(selector.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut watched, 30_000_u16).expect("poll"), 1, "the ring was lost");
        assert_eq!(selector.wait(Some(Duration::ZERO)).expect("no fork"), [token]);
        let consumer = selector.get_mut(token).expect("it is in the selector");
        consumer.try_receive(&mut Vec::new()).expect("it is there");
    }
}
