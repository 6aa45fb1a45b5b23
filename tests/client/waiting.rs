//! Time-outs, blocked handles, and what others see of them.

use std::time::{Duration, Instant};

use ringmain_client::{Kind, ReceiveError, SendError, WaitPolicy};

use crate::harness::{Daemon, PATIENCE, until_info};

#[test]
fn time_outs_are_kept() {
    for policy in WaitPolicy::ALL {
        for kind in [Kind::Spsc, Kind::Mpmc] {
            let (_daemon, client) = Daemon::with_queue(kind, 64, 64);
            let mut producer = client.producer_with("q", policy.into()).expect("attach");
            let mut consumer = client.consumer_with("q", policy.into()).expect("attach");
            let mut buffer = vec![1, 2, 3];
            assert_eq!(consumer.try_receive(&mut buffer), Err(ReceiveError::Empty));
            for timeout_ms in [0, 1, 30, 150] {
                let timeout = Duration::from_millis(timeout_ms);
                let started = Instant::now();
                let received = consumer.receive_timeout(&mut buffer, timeout);
                assert_eq!(received, Err(ReceiveError::Timeout));
                assert!(started.elapsed() >= timeout);
            }
            assert_eq!(buffer, [1, 2, 3], "a buffer is left alone when nothing comes");
            while producer.try_send(b"x").is_ok() {}
            assert_eq!(producer.try_send(b"x"), Err(SendError::Full));
            for timeout_ms in [0, 1, 30, 150] {
                let timeout = Duration::from_millis(timeout_ms);
                let started = Instant::now();
                assert_eq!(producer.send_timeout(b"x", timeout), Err(SendError::Timeout));
                assert_eq!(
                    producer.reserve_timeout(1, Duration::ZERO).map(|_| ()),
                    Err(SendError::Timeout)
                );
                assert!(started.elapsed() >= timeout);
            }
        }
    }
}

#[test]
fn a_blocked_producer_goes_on_when_there_is_room() {
    for policy in WaitPolicy::ALL {
        for kind in [Kind::Spsc, Kind::Mpmc] {
            let (_daemon, client) = Daemon::with_queue(kind, 64, 64);
            let mut producer = client.producer_with("q", policy.into()).expect("attach");
            let mut consumer = client.consumer_with("q", policy.into()).expect("attach");
            let sender = std::thread::spawn(move || {
                for n in 0..5000_u32 {
                    producer.send(&n.to_le_bytes()).expect("the queue stays open");
                }
            });
            let mut buffer = Vec::new();
            for n in 0..5000_u32 {
                if n % 1000 == 0 {
                    // Long enough for the producer to fill the ring and to fall asleep.
                    std::thread::sleep(Duration::from_millis(3));
                }
                consumer.receive_timeout(&mut buffer, PATIENCE).expect("it comes");
                assert_eq!(buffer, n.to_le_bytes());
            }
            sender.join().expect("the sender ends well");
        }
    }
}

#[test]
fn who_waits_is_shown() {
    for policy in WaitPolicy::ALL {
        let (_daemon, client) = Daemon::with_queue(Kind::Mpmc, 64, 64);
        let mut consumer = client.consumer_with("q", policy.into()).expect("attach");
        let mut producer = client.producer("q").expect("attach");
        let waiter = std::thread::spawn(move || {
            let mut buffer = Vec::new();
            consumer.receive_timeout(&mut buffer, PATIENCE).expect("it comes");
            consumer
        });
        until_info(&client, |info| info.handles.iter().any(|handle| handle.waiting_ns.is_some()));
        producer.send(b"x").expect("there is room");
        let _consumer = waiter.join().expect("the waiter ends well");
        let info = client.queue_info("q").expect("the queue is there");
        assert!(info.handles.iter().all(|handle| handle.waiting_ns.is_none()), "{info:#?}");
    }
}

#[test]
fn who_delays_whom_is_shown() {
    let (_daemon, client) = Daemon::with_queue(Kind::Mpmc, 64, 64);
    let mut slow = client.producer("q").expect("attach");
    let mut quick = client.producer("q").expect("attach");
    let mut consumer = client.consumer("q").expect("attach");
    let reservation = slow.reserve(1).expect("there is room");
    quick.send(b"behind").expect("there is room");
    let waiter = std::thread::spawn(move || {
        let mut buffer = Vec::new();
        consumer.receive_timeout(&mut buffer, PATIENCE).expect("it comes");
        buffer
    });
    let info =
        until_info(&client, |info| info.handles.iter().any(|handle| handle.delayed_by.is_some()));
    let delayed_by = info.handles.iter().find_map(|handle| handle.delayed_by);
    let owner =
        info.handles.iter().find(|handle| handle.owned_slots != 0).map(|handle| handle.handle);
    assert_eq!(delayed_by, owner);
    // Given up, not sent: the tombstone uncovers the message behind it, and its consumer wakes up.
    drop(reservation);
    assert_eq!(waiter.join().expect("the waiter ends well"), b"behind");
}
