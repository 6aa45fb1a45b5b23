//! All wait policies under load, with more threads than cores.

use std::collections::BTreeMap;
use std::time::Duration;

use ringmain_client::{Kind, ReceiveError, WaitPolicy};

use crate::harness::Daemon;

/// Every message arrives once, whoever takes it.
fn crowd(policy: WaitPolicy, producers: u32, consumers: u32, messages: u32) {
    let (_daemon, client) = Daemon::with_queue(Kind::Mpmc, 64, 64);
    let mut threads = Vec::new();
    for number in 0..producers {
        let mut producer = client.producer_with("q", policy.into()).expect("attach");
        threads.push(std::thread::spawn(move || {
            for n in 0..messages {
                let mut bytes = [0; 40];
                bytes[..4].copy_from_slice(&number.to_le_bytes());
                bytes[36..].copy_from_slice(&n.to_le_bytes());
                producer.send(&bytes).expect("the queue stays open");
            }
        }));
    }
    let mut receivers = Vec::new();
    for _ in 0..consumers {
        let mut consumer = client.consumer_with("q", policy.into()).expect("attach");
        receivers.push(std::thread::spawn(move || {
            let mut last: BTreeMap<u32, u32> = BTreeMap::new();
            let mut count = 0_u32;
            let mut buffer = Vec::new();
            loop {
                match consumer.receive_timeout(&mut buffer, Duration::from_secs(3)) {
                    Ok(_) => {}
                    Err(ReceiveError::Timeout) => return count,
                    Err(error) => panic!("{error}"),
                }
                let part = |range: std::ops::Range<usize>| {
                    u32::from_le_bytes(buffer[range].try_into().expect("four bytes"))
                };
                let (producer, n) = (part(0..4), part(36..40));
                // One consumer sees the messages of one producer in order.
                let before = last.insert(producer, n);
                assert!(before.is_none_or(|before| before < n), "{before:?} before {n}");
                count += 1;
            }
        }));
    }
    for thread in threads {
        thread.join().expect("the producer ends well");
    }
    let counts: Vec<u32> = receivers
        .into_iter()
        .map(|thread| thread.join().expect("the consumer ends well"))
        .collect();
    assert_eq!(counts.iter().sum::<u32>(), producers * messages, "{counts:?}");
}

#[test]
fn a_crowd_that_parks() {
    crowd(WaitPolicy::Park, 8, 8, 500);
}

#[test]
fn a_crowd_that_adapts() {
    crowd(WaitPolicy::Adaptive, 8, 8, 2000);
}

#[test]
fn a_crowd_that_spins() {
    crowd(WaitPolicy::Spin, 3, 3, 500);
}

#[test]
fn policies_may_be_mixed() {
    for (there, back) in [
        (WaitPolicy::Spin, WaitPolicy::Park),
        (WaitPolicy::Park, WaitPolicy::Adaptive),
        (WaitPolicy::Adaptive, WaitPolicy::Spin),
    ] {
        for kind in [Kind::Spsc, Kind::Mpmc] {
            let (daemon, client) = Daemon::with_queue(kind, 64, 64);
            crate::harness::create(&client, "back", kind, 64, 64);
            let other = daemon.client();
            let answerer = std::thread::spawn(move || {
                let mut consumer = other.consumer_with("q", there.into()).expect("attach");
                let mut producer = other.producer_with("back", there.into()).expect("attach");
                let mut buffer = Vec::new();
                while consumer.receive(&mut buffer).is_ok() {
                    producer.send(&buffer).expect("there is room");
                }
            });
            let mut producer = client.producer_with("q", back.into()).expect("attach");
            let mut consumer = client.consumer_with("back", back.into()).expect("attach");
            let mut buffer = Vec::new();
            for n in 0..2000_u32 {
                producer.send(&n.to_le_bytes()).expect("there is room");
                consumer.receive(&mut buffer).expect("the answer comes");
                assert_eq!(buffer, n.to_le_bytes());
            }
            client.delete_queue("q").expect("it is there");
            answerer.join().expect("the answerer ends well");
        }
    }
}
