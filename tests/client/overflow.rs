//! Full rings whose rule is not to wait.

use std::time::Duration;

use ringmain_client::async_io::AsyncProducer;
use ringmain_client::{
    Client, ClientError, DeliverySpec, ErrorCode, Kind, Metadata, Overflow, QueueSpec, SendError,
    WaitPolicy,
};

use crate::harness::{Daemon, Helper, PATIENCE, helper_client, process, say, until_info};

const SLOTS: u32 = 64;

fn rule(overflow: Overflow) -> DeliverySpec {
    DeliverySpec { overflow: Some(overflow), ..DeliverySpec::default() }
}

fn spec(kind: Kind, overflow: Overflow) -> QueueSpec {
    QueueSpec {
        kind: Some(kind),
        slots: Some(SLOTS),
        slot_size: Some(64),
        delivery: rule(overflow),
        ..QueueSpec::default()
    }
}

/// A daemon with a queue `q` of this rule.
fn with_rule(kind: Kind, overflow: Overflow) -> (Daemon, Client) {
    let daemon = Daemon::start();
    let client = daemon.client();
    let info = client.create_queue("q", spec(kind, overflow)).expect("the queue is new");
    assert_eq!((info.overflow, info.dropped), (overflow, 0));
    (daemon, client)
}

fn numbers(from: u32, to: u32) -> Vec<[u8; 4]> {
    (from..to).map(u32::to_le_bytes).collect()
}

/// Receives everything that is there.
fn drain(consumer: &mut ringmain_client::Consumer) -> Vec<u32> {
    let (mut buffer, mut seen) = (Vec::new(), Vec::new());
    while consumer.try_receive(&mut buffer).is_ok() {
        seen.push(u32::from_le_bytes(buffer[..].try_into().expect("a number")));
    }
    seen
}

#[test]
fn reject_refuses_at_once_and_as_a_whole() {
    for kind in [Kind::Spsc, Kind::Mpmc] {
        for policy in WaitPolicy::ALL {
            let (_daemon, client) = with_rule(kind, Overflow::Reject);
            let mut producer = client.producer_with("q", policy.into()).expect("attach");
            let mut consumer = client.consumer("q").expect("attach");
            for number in numbers(0, SLOTS - 2) {
                producer.send(&number).expect("there is room");
            }
            // Room for two, not for three.
            let three = numbers(100, 103);
            let three: Vec<&[u8]> = three.iter().map(|number| &number[..]).collect();
            assert_eq!(producer.send_batch(&three), Err(SendError::QueueFull));
            assert_eq!(producer.send(&[0; 150]), Err(SendError::QueueFull));
            assert_eq!(client.queue_info("q").expect("it is there").used_slots, 62);
            for number in numbers(SLOTS - 2, SLOTS) {
                producer.send(&number).expect("there is room");
            }
            let refused = Err(SendError::QueueFull);
            assert_eq!(producer.send(b"x"), refused);
            assert_eq!(producer.send_timeout(b"x", PATIENCE), refused);
            assert_eq!(producer.send_timeout(b"x", Duration::ZERO), refused);
            assert_eq!(producer.send_message(&Metadata::default(), b"x"), refused);
            assert_eq!(producer.send_batch_timeout(&three, PATIENCE), refused);
            assert_eq!(producer.reserve(1).map(|_| 0), refused);
            assert_eq!(producer.reserve_timeout(1, PATIENCE).map(|_| 0), refused);
            // These never wait.
            assert_eq!(producer.try_send(b"x"), Err(SendError::Full));
            assert_eq!(producer.try_send_batch(&three), Err(SendError::Full));
            assert_eq!(producer.try_reserve(1).map(|_| ()), Err(SendError::Full));
            assert_eq!(drain(&mut consumer), (0..SLOTS).collect::<Vec<_>>());
            assert_eq!(consumer.take_skipped(), 0);
            producer.send(b"x").expect("there is room again");
        }
    }
}

#[test]
fn drop_oldest_keeps_the_latest_and_tells_everybody() {
    let (daemon, client) = with_rule(Kind::Mpmc, Overflow::DropOldest);
    let mut producer = client.producer("q").expect("attach");
    let mut consumers = [(); 2].map(|()| client.consumer("q").expect("attach"));
    for number in numbers(0, 100) {
        producer.send(&number).expect("room is made");
    }
    drop(producer);
    for consumer in &mut consumers {
        assert_eq!((consumer.take_skipped(), consumer.take_skipped()), (36, 0));
    }
    assert_eq!(client.consumer("q").expect("attach").take_skipped(), 0, "it came later");
    // The count outlives whoever dropped, and the broker.
    daemon.kill_broker();
    let info = until_info(&client, |info| info.producers == 0);
    assert_eq!((info.overflow, info.dropped, info.used_slots), (Overflow::DropOldest, 36, 64));
    // Every form drops: with and without waiting, one and several, long and short.
    let mut producer = client.producer("q").expect("attach");
    producer.try_send(&100_u32.to_le_bytes()).expect("room is made");
    producer.send_timeout(&101_u32.to_le_bytes(), Duration::ZERO).expect("room is made");
    let batch = numbers(102, 105);
    let batch: Vec<&[u8]> = batch.iter().map(|number| &number[..]).collect();
    producer.try_send_batch(&batch).expect("room is made");
    producer.send_batch(&batch).expect("room is made");
    let mut reserved = producer.reserve(4).expect("room is made");
    reserved.write(0, &7_u32.to_le_bytes()).expect("it fits");
    reserved.commit(4).expect("it fits");
    let [mut first, mut second] = consumers;
    assert_eq!((first.take_skipped(), second.take_skipped()), (9, 9));
    let latest = [102, 103, 104, 102, 103, 104, 7];
    assert_eq!(drain(&mut first), (45..102).chain(latest).collect::<Vec<_>>());
    for number in numbers(0, SLOTS) {
        producer.send(&number).expect("there is room");
    }
    producer.send(&[9; 150]).expect("room is made");
    assert_eq!(client.queue_info("q").expect("it is there").dropped, 36 + 9 + 3);
    assert_eq!(first.take_skipped(), 3);
}

#[test]
fn a_message_in_somebodys_hands_is_waited_for() {
    let (_daemon, client) = with_rule(Kind::Mpmc, Overflow::DropOldest);
    let mut producer = client.producer("q").expect("attach");
    let mut consumer = client.consumer("q").expect("attach");
    producer.send(&[0; 4]).expect("there is room");
    let guard = consumer.try_take().expect("it is there");
    while producer.try_send(b"more").is_ok() {}
    assert_eq!(producer.try_send(b"x"), Err(SendError::Full));
    assert_eq!(producer.send_timeout(b"x", Duration::from_millis(20)), Err(SendError::Timeout));
    assert_eq!(client.queue_info("q").expect("it is there").dropped, 0);
    let sender = std::thread::spawn(move || {
        producer.send(b"late").expect("there is room in the end");
        producer
    });
    let info = until_info(&client, |info| info.handles.iter().any(|h| h.waiting_ns.is_some()));
    let holder = info.handles.iter().find(|handle| handle.owned_slots > 0).expect("it holds");
    assert!(
        info.handles.iter().any(|handle| handle.delayed_by == Some(holder.handle)),
        "{info:#?}"
    );
    guard.release();
    let mut producer = sender.join().expect("the sender ends well");
    producer.send(b"x").expect("room is made");
    assert_eq!(consumer.take_skipped(), 1);
}

/// Sends into `q` for ever.
#[test]
fn dropper() {
    let Some(client) = helper_client() else {
        return;
    };
    let mut producer = client.producer("q").expect("attach");
    for number in 0_u64.. {
        producer.send(&number.to_le_bytes()).expect("room is made");
        if number == 1000 {
            say("dropping");
        }
    }
}

#[test]
fn a_producer_that_is_killed_takes_no_count_with_it() {
    let (daemon, client) = with_rule(Kind::Mpmc, Overflow::DropOldest);
    let mut consumer = client.consumer("q").expect("attach");
    let mut before = 0;
    for _ in 0..10 {
        let mut helper = Helper::start("overflow::dropper", &daemon);
        helper.wait_for("dropping");
        helper.kill();
        let info = until_info(&client, |info| info.producers == 0);
        // Every claim is there, was discarded, became nothing with its sender, or was given back by it.
        let accounted = info.dropped + info.used_slots + info.tombstones;
        assert!(info.dropped >= before + 900, "{info:#?}");
        assert!(accounted + info.returned >= info.tail, "a drop is not counted: {info:#?}");
        assert!(accounted <= info.tail + info.repairs, "more than one too many: {info:#?}");
        before = info.dropped;
    }
    assert_eq!(consumer.take_skipped(), before);
}

#[test]
fn a_rule_that_changes_reaches_those_who_wait() {
    for policy in WaitPolicy::ALL {
        let (_daemon, client) = with_rule(Kind::Mpmc, Overflow::Block);
        let mut filler = client.producer("q").expect("attach");
        while filler.try_send(b"x").is_ok() {}
        for overflow in [Overflow::Reject, Overflow::DropOldest] {
            let info = client.edit_queue("q", rule(Overflow::Block)).expect("ours");
            assert_eq!(info.overflow, Overflow::Block);
            let mut producer = client.producer_with("q", policy.into()).expect("attach");
            let sender = std::thread::spawn(move || producer.send(b"y").map(|_| ()));
            until_info(&client, |info| info.handles.iter().any(|h| h.waiting_ns.is_some()));
            assert_eq!(client.edit_queue("q", rule(overflow)).expect("ours").overflow, overflow);
            let sent = sender.join().expect("the sender ends well");
            let expected = match overflow {
                Overflow::Reject => Err(SendError::QueueFull),
                _ => Ok(()),
            };
            assert_eq!(sent, expected);
        }
        assert_eq!(client.queue_info("q").expect("it is there").dropped, 1);
    }
}

#[test]
fn futures_follow_the_rule() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (_daemon, client) = with_rule(Kind::Mpmc, Overflow::Reject);
    runtime.block_on(async {
        let producer = client.producer("q").expect("attach");
        let mut producer = AsyncProducer::new(producer).expect("bind");
        for number in numbers(0, SLOTS) {
            producer.send(&number).await.expect("there is room");
        }
        assert_eq!(producer.send(b"x").await, Err(SendError::QueueFull));
        client.edit_queue("q", rule(Overflow::DropOldest)).expect("ours");
        producer.send(b"last").await.expect("room is made");
        producer.send_batch(&[b"a", b"b"]).await.expect("room is made");
    });
    assert_eq!(client.queue_info("q").expect("it is there").dropped, 3);
}

#[test]
fn a_producer_that_only_drops_notices_that_its_daemon_is_another() {
    let (mut daemon, client) = with_rule(Kind::Mpmc, Overflow::DropOldest);
    let mut producer = client.producer("q").expect("attach");
    daemon.replace();
    let noticed = crate::harness::until(PATIENCE, || {
        (0..1000).any(|_| matches!(producer.send(b"x"), Err(SendError::Closed(_))))
    });
    assert!(noticed, "it sends into a ring that nobody knows");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let (daemon, client) = with_rule(Kind::Spsc, Overflow::Block);
    let broker = process(client.status().expect("it answers").broker_pid);
    let limited = DeliverySpec { max_messages: Some(5), ..rule(Overflow::Reject) };
    let cases = [
        (Kind::Spsc, rule(Overflow::DropOldest), "only the consumer can take"),
        (Kind::Spsc, limited.clone(), "no limits"),
        (Kind::Mpmc, limited, "no limits"),
        (Kind::Mpmc, DeliverySpec { lease_ms: Some(1), ..DeliverySpec::default() }, "no delivery"),
    ];
    client.create_queue("m", spec(Kind::Mpmc, Overflow::Block)).expect("the queue is new");
    for (kind, rules, part) in cases {
        let spec = QueueSpec { delivery: rules.clone(), ..spec(kind, Overflow::Block) };
        let created = client.create_queue("new", spec).map(drop);
        let edited = client.edit_queue(if kind == Kind::Spsc { "q" } else { "m" }, rules).map(drop);
        for result in [created, edited] {
            match result {
                Err(ClientError::Refused { code: ErrorCode::Invalid, message }) => {
                    assert!(message.contains(part), "{message}");
                }
                other => panic!("{other:?}"),
            }
        }
    }
    let edited = client.edit_queue("q", rule(Overflow::Reject)).expect("spsc queues may refuse");
    assert_eq!((edited.kind, edited.overflow), (Kind::Spsc, Overflow::Reject));
    assert!(client.edit_queue("none", rule(Overflow::Reject)).expect_err("none").is_not_found());
    assert_eq!(daemon.broker(), broker);
}
