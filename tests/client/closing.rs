//! What handles say when their queue goes.

use ringmain_client::{Closed, Kind, ReceiveError, SendError, WaitPolicy};

use crate::harness::{Daemon, PATIENCE, until, until_info};

#[test]
fn deletion_ends_every_wait() {
    for policy in WaitPolicy::ALL {
        for kind in [Kind::Spsc, Kind::Mpmc] {
            let (_daemon, client) = Daemon::with_queue(kind, 64, 64);
            let mut producer = client.producer_with("q", policy.into()).expect("attach");
            let mut consumer = client.consumer_with("q", policy.into()).expect("attach");
            let receiver = std::thread::spawn(move || {
                let mut buffer = Vec::new();
                consumer.receive_timeout(&mut buffer, PATIENCE)
            });
            until_info(&client, |info| {
                info.handles.iter().any(|handle| handle.waiting_ns.is_some())
            });
            client.delete_queue("q").expect("it is there");
            let received = receiver.join().expect("no panic");
            assert_eq!(received, Err(ReceiveError::Closed(Closed::Deleted)));
            assert_eq!(producer.try_send(b"x"), Err(SendError::Closed(Closed::Deleted)));
            assert_eq!(producer.send(b"x"), Err(SendError::Closed(Closed::Deleted)));
        }
    }
}

#[test]
fn deletion_ends_the_wait_for_room() {
    for kind in [Kind::Spsc, Kind::Mpmc] {
        let (_daemon, client) = Daemon::with_queue(kind, 64, 64);
        let mut producer = client.producer("q").expect("attach");
        while producer.try_send(b"x").is_ok() {}
        let sender = std::thread::spawn(move || producer.send_timeout(b"x", PATIENCE));
        until_info(&client, |info| info.handles.iter().any(|handle| handle.waiting_ns.is_some()));
        client.delete_queue("q").expect("it is there");
        let sent = sender.join().expect("no panic");
        assert_eq!(sent, Err(SendError::Closed(Closed::Deleted)));
    }
}

#[test]
fn a_stopped_daemon_lets_consumers_finish() {
    let (daemon, client) = Daemon::with_queue(Kind::Mpmc, 64, 64);
    let mut producer = client.producer("q").expect("attach");
    let mut consumer = client.consumer("q").expect("attach");
    for _ in 0..3 {
        producer.send(b"left").expect("there is room");
    }
    daemon.terminate();
    let refused = SendError::Closed(Closed::Draining);
    assert!(until(PATIENCE, || producer.try_send(b"late") == Err(refused)));
    let mut buffer = Vec::new();
    let mut left = 0;
    let end = loop {
        match consumer.receive_timeout(&mut buffer, PATIENCE) {
            Ok(_) => left += usize::from(buffer == b"left"),
            Err(error) => break error,
        }
    };
    assert_eq!((left, end), (3, ReceiveError::Closed(Closed::Draining)));
}
