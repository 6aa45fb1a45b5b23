//! Brokers and whole daemons that go away while handles are in use, and forks.

use std::time::Duration;

use ringmain_client::raw::wire::{DeliveryHeader, Down, LeaseToken, Outcome};
use ringmain_client::{
    AckError, ConfirmError, ConsumerOptions, ProducerOptions, ReceiveError, SendError,
};

use crate::ends::{Daemon, Sizes};
use crate::shard::{Manner, Shard};

const LONG: Duration = Duration::from_secs(20);

#[test]
fn a_killed_broker_costs_no_message_and_no_receipt() {
    let mut daemon = Daemon::start(Sizes::default());
    let mut producer =
        daemon.client().brokered_producer("durable", ProducerOptions::default()).expect("attach");
    let mut ends = vec![daemon.end()];
    let mut sequence = 0;
    let mut receipts = Vec::new();
    for round in 0..5_u64 {
        let shard = Shard::start(
            ends,
            daemon.doorway(),
            daemon.doorway(),
            Manner { run: 3, ..Manner::default() },
            sequence,
        );
        for number in 0..500_u64 {
            receipts.push(producer.send(&number.to_le_bytes()).expect("there will be room"));
            if number == 400 {
                producer.wait(&receipts[receipts.len() - 100]).expect("confirmed");
            }
        }
        (ends, sequence) = shard.stop();
        daemon.kill_broker();
        // Sent while nobody is there.
        for number in 0..100_u64 {
            receipts.push(producer.send(&number.to_le_bytes()).expect("there is room"));
        }
        assert!(sequence >= round * 600 + 300);
        daemon.start_broker();
        ends = ends.into_iter().map(crate::ends::End::taken_over).collect();
    }
    let shard = Shard::start(ends, daemon.doorway(), daemon.doorway(), Manner::default(), sequence);
    for (number, receipt) in receipts.iter().enumerate() {
        let confirmation = producer.wait(receipt).expect("confirmed");
        assert_eq!(confirmation.sequence, number as u64 + 1, "each once and in order");
    }
    assert_eq!(shard.stop().1, receipts.len() as u64);
}

#[test]
fn a_new_shard_may_name_completions_again() {
    let daemon = Daemon::start(Sizes::default());
    let mut producer =
        daemon.client().brokered_producer("durable", ProducerOptions::default()).expect("attach");
    let mut end = daemon.end();
    let receipts: Vec<_> = (0..4).map(|_| producer.send(b"x").expect("there is room")).collect();
    let completed = |last_position, count| Down::Completed {
        first_position: 0,
        last_position,
        first_sequence: 1,
        count,
        outcome: Outcome::Done,
        detail: 0,
    };
    end.tell(&completed(1, 2));
    assert_eq!(producer.wait(&receipts[1]).map(|confirmation| confirmation.sequence), Ok(2));
    end.tell(&completed(1, 2));
    end.tell(&completed(3, 4));
    assert_eq!(producer.wait(&receipts[3]).map(|confirmation| confirmation.sequence), Ok(4));
}

#[test]
fn another_daemon_knows_no_handle() {
    let mut daemon = Daemon::start(Sizes::default());
    let client = daemon.client();
    let options = ProducerOptions::default();
    let mut producer = client.brokered_producer("durable", options).expect("attach");
    let mut consumer =
        client.brokered_consumer("durable", ConsumerOptions::default()).expect("attach");
    let _producer_end = daemon.end();
    let mut end = daemon.end();
    let header = DeliveryHeader {
        lease: LeaseToken { slot: 0, attempt: 1, sequence: 1 },
        published_ns: 1,
        lease_ms: 0,
    };
    end.tell(&Down::Delivery(header));
    let delivery = consumer.receive().expect("it is there");
    assert_eq!(delivery.lease(), None);
    let receipt = producer.send(b"x").expect("there is room");
    daemon.kill_broker();
    let soon = Duration::from_millis(5);
    assert_eq!(producer.wait_timeout(&receipt, soon), Err(ConfirmError::Timeout));
    assert_eq!(consumer.receive_timeout(soon).map(|_| ()), Err(ReceiveError::Timeout));
    daemon.forget_handles();
    daemon.start_broker();
    assert_eq!(producer.wait(&receipt), Err(ConfirmError::Lost));
    assert_eq!(producer.wait_all(), Err(ConfirmError::Lost));
    assert_eq!(producer.send(b"y"), Err(SendError::Lost));
    assert_eq!(consumer.receive().map(|_| ()), Err(ReceiveError::Lost));
    assert_eq!(consumer.ack(&delivery), Err(AckError::Lost));
    assert_eq!(consumer.ack_confirmed(&delivery, LONG), Err(AckError::Lost));
}

#[test]
fn a_full_lane_of_a_dead_daemon_is_a_time_out() {
    let mut daemon = Daemon::start(Sizes { slots: 64, max_message: 1024, ..Sizes::default() });
    let mut producer =
        daemon.client().brokered_producer("durable", ProducerOptions::default()).expect("attach");
    let mut consumer =
        daemon.client().brokered_consumer("durable", ConsumerOptions::default()).expect("attach");
    daemon.kill_broker();
    let sent = std::iter::from_fn(|| producer.try_send(b"x").ok()).count();
    assert_eq!(sent, 64);
    let soon = Duration::from_millis(5);
    assert_eq!(producer.send_timeout(b"x", soon), Err(SendError::Timeout));
    assert_eq!(producer.wait_all_timeout(soon), Err(ConfirmError::Timeout));
    consumer.set_credit(3).expect("there is room");
    assert_eq!(consumer.flush(soon), Err(AckError::Timeout));
}

#[test]
fn a_forked_child_is_told() {
    let daemon = Daemon::start(Sizes::default());
    let client = daemon.client();
    let mut producer =
        client.brokered_producer("durable", ProducerOptions::default()).expect("attach");
    let mut consumer =
        client.brokered_consumer("durable", ConsumerOptions::default()).expect("attach");
    let receipt = producer.send(b"x").expect("there is room");
    // SAFETY: the child calls only forms that notice at once that they are in one, and leaves without destructors of others.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let told = producer.send(b"x") == Err(SendError::UsedAfterFork)
            && producer.try_send_batch(&[b"x"]) == Err(SendError::UsedAfterFork)
            && producer.wait(&receipt) == Err(ConfirmError::UsedAfterFork)
            && producer.wait_all() == Err(ConfirmError::UsedAfterFork)
            && producer.try_next_settled() == Err(ConfirmError::UsedAfterFork)
            && consumer.receive().map(|_| ()) == Err(ReceiveError::UsedAfterFork)
            && consumer.set_credit(1) == Err(AckError::UsedAfterFork)
            && consumer.flush(LONG) == Err(AckError::UsedAfterFork);
        drop((producer, consumer));
        // SAFETY: leaves without running what the parent registered.
        unsafe { libc::_exit(if told { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: the child is ours, and `status` is a valid place.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(libc::WIFEXITED(status), "the child was killed: {status:#x}");
    assert_eq!(libc::WEXITSTATUS(status), 0);
    producer.send(b"the parent goes on").expect("there is room");
    assert!(daemon.detached().is_empty());
}

#[test]
fn handles_share_the_link_of_their_session() {
    let daemon = Daemon::start(Sizes::default());
    let client = daemon.client();
    let options = ProducerOptions::default();
    let mut handles: Vec<_> =
        (0..20).map(|_| client.brokered_producer("durable", options).expect("attach")).collect();
    let ends: Vec<_> = handles.iter().map(|_| daemon.end()).collect();
    let shard = Shard::start(ends, daemon.doorway(), daemon.doorway(), Manner::default(), 0);
    for producer in &mut handles {
        let receipt = producer.send(b"x").expect("there is room");
        producer.wait_timeout(&receipt, LONG).expect("confirmed");
    }
    assert_eq!(shard.stop().1, 20);
}
