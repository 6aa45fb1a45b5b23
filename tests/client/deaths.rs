//! Processes that are killed with a message in their hands.

use ringmain_client::{Kind, ReceiveError};

use crate::harness::{Daemon, Helper, PATIENCE, helper_client, say, until};

/// Takes a message and never gives it back.
#[test]
fn holder() {
    let Some(client) = helper_client() else {
        return;
    };
    let mut consumer = client.consumer("q").expect("attach");
    let guard = consumer.take().expect("it is there");
    say("holding");
    std::thread::sleep(PATIENCE);
    drop(guard);
}

/// Reserves a slot and never commits it.
#[test]
fn reserver() {
    let Some(client) = helper_client() else {
        return;
    };
    let mut producer = client.producer("q").expect("attach");
    let reservation = producer.reserve(8).expect("there is room");
    say("reserved");
    std::thread::sleep(PATIENCE);
    drop(reservation);
}

#[test]
fn what_a_dead_consumer_held_is_given_out_again() {
    let (daemon, client) = Daemon::with_queue(Kind::Mpmc, 64, 64);
    let mut producer = client.producer("q").expect("attach");
    let mut consumer = client.consumer("q").expect("attach");
    producer.send(b"first").expect("there is room");
    let mut holder = Helper::start("deaths::holder", &daemon);
    holder.wait_for("holding");
    producer.send(b"second").expect("there is room");
    let mut buffer = Vec::new();
    let received = consumer.receive(&mut buffer).expect("it is there");
    assert!(!received.redelivered && buffer == b"second");
    // A process that is stopped is not dead: it keeps what it holds.
    nix::sys::signal::kill(holder.pid(), nix::sys::signal::Signal::SIGSTOP).expect("it runs");
    let stopped = consumer.receive_timeout(&mut buffer, std::time::Duration::from_millis(300));
    assert_eq!(stopped, Err(ReceiveError::Timeout));
    holder.kill();
    let received = consumer.receive_timeout(&mut buffer, PATIENCE).expect("it is given out again");
    assert!(received.redelivered && buffer == b"first");
    assert_eq!(consumer.try_receive(&mut buffer), Err(ReceiveError::Empty));
}

#[test]
fn an_spsc_successor_starts_where_the_dead_consumer_was() {
    let (daemon, client) = Daemon::with_queue(Kind::Spsc, 64, 64);
    let mut producer = client.producer("q").expect("attach");
    producer.send(b"first").expect("there is room");
    producer.send(b"second").expect("there is room");
    let mut holder = Helper::start("deaths::holder", &daemon);
    holder.wait_for("holding");
    assert!(client.consumer("q").expect_err("one at a time").is_busy());
    holder.kill();
    let mut consumer = client.consumer("q").expect("its process is dead");
    let mut buffer = Vec::new();
    assert!(consumer.receive(&mut buffer).expect("it is there").redelivered);
    assert_eq!(buffer, b"first");
    assert!(!consumer.receive(&mut buffer).expect("it is there").redelivered);
    assert_eq!(buffer, b"second");
}

#[test]
fn what_a_dead_producer_reserved_stops_nobody() {
    for kind in [Kind::Spsc, Kind::Mpmc] {
        let (daemon, client) = Daemon::with_queue(kind, 64, 64);
        let mut consumer = client.consumer("q").expect("attach");
        let mut reserver = Helper::start("deaths::reserver", &daemon);
        reserver.wait_for("reserved");
        reserver.kill();
        let mut producer = client.producer("q").expect("attach");
        producer.send(b"behind").expect("there is room");
        let mut buffer = Vec::new();
        consumer.receive_timeout(&mut buffer, PATIENCE).expect("it comes");
        assert_eq!(buffer, b"behind");
        let repaired =
            until(PATIENCE, || client.queue_info("q").is_ok_and(|info| info.repairs == 1));
        assert!(repaired);
    }
}

#[test]
fn what_was_forgotten_is_given_out_when_its_handle_is_dropped() {
    for kind in [Kind::Spsc, Kind::Mpmc] {
        let (_daemon, client) = Daemon::with_queue(kind, 64, 64);
        let mut producer = client.producer("q").expect("attach");
        std::mem::forget(producer.reserve(8).expect("there is room"));
        drop(producer);
        let mut producer = client.producer("q").expect("the one before was given back");
        let mut consumer = client.consumer("q").expect("attach");
        producer.send(b"first").expect("there is room");
        std::mem::forget(consumer.take_timeout(PATIENCE).expect("nobody is in the way"));
        drop(consumer);
        let mut consumer = client.consumer("q").expect("the one before was given back");
        let mut buffer = Vec::new();
        let received = consumer.receive_timeout(&mut buffer, PATIENCE).expect("it is there again");
        assert!(received.redelivered && buffer == b"first");
        // Twice round the ring.
        for n in 0..128_u8 {
            producer.send_timeout(&[n], PATIENCE).expect("every slot came back");
            consumer.receive_timeout(&mut buffer, PATIENCE).expect("it is there");
            assert_eq!(buffer, [n]);
        }
    }
}
