//! Nobody sleeps through a message or through room for one, in either wake mode, with real futexes and barriers.

use std::time::Duration;

use ringmain_client::WakeMode;
use ringmain_client::raw::layout::Geometry;
use ringmain_client::raw::protocol::Kind;
use ringmain_client::raw::ring::{
    Consumer, Kernel, Park, Producer, TryReceiveError, TrySendError, sleep_once, wake_sleepers,
};
use ringmain_client::raw::sys::kernel::HostKernel;

use crate::memory::Queue;

/// A wake-up that is lost shows as a sleep of this length.
const LOST: Duration = Duration::from_secs(20);

fn wake(kernel: &HostKernel, park: &Park, count: u32) {
    kernel.light_barrier();
    if park.any_sleeper() {
        wake_sleepers(park, kernel, count);
    }
}

/// Sleeps at once if there is nothing, so that the race between sleeper and waker is met as often as possible.
fn receive(consumer: &mut Consumer, kernel: &HostKernel) -> u64 {
    let park = consumer.own_park().clone();
    let handle = consumer.handle();
    loop {
        let started = std::time::Instant::now();
        let taken = sleep_once(&park, handle, kernel, Some(LOST), || match consumer.try_take() {
            Err(TryReceiveError::Empty) => None,
            taken => Some(taken.expect("the ring is in order")),
        });
        if let Some(taken) = taken {
            let mut bytes = [0; 8];
            assert_eq!(consumer.read(&taken, 0, &mut bytes), 8);
            consumer.release(taken);
            wake(kernel, consumer.peer_park(), u32::MAX);
            return u64::from_ne_bytes(bytes);
        }
        assert!(started.elapsed() < LOST, "a message did not wake its consumer");
    }
}

fn send(producer: &mut Producer, kernel: &HostKernel, value: u64) {
    let park = producer.own_park().clone();
    let handle = producer.handle();
    loop {
        let started = std::time::Instant::now();
        let sent = sleep_once(&park, handle, kernel, Some(LOST), || {
            match producer.try_send(0, &[], &value.to_ne_bytes()) {
                Err(TrySendError::Full) => None,
                sent => Some(sent.expect("the ring is in order")),
            }
        });
        if sent.is_some() {
            wake(kernel, producer.peer_park(), 1);
            return;
        }
        assert!(started.elapsed() < LOST, "room did not wake its producer");
    }
}

fn stream(kind: Kind, mode: WakeMode, messages: u64) {
    let queue = Queue::new(kind, Geometry::new(Some(64), Some(64), None).expect("valid"));
    let mut producer = Producer::new(queue.map(), queue.geometry, 1).expect("fits");
    let mut consumer = Consumer::new(queue.map(), queue.geometry, 2).expect("fits");
    let sender = std::thread::spawn(move || {
        let kernel = HostKernel::new(mode);
        for value in 0..messages {
            send(&mut producer, &kernel, value);
        }
    });
    let kernel = HostKernel::new(mode);
    for value in 0..messages {
        assert_eq!(receive(&mut consumer, &kernel), value);
    }
    sender.join().expect("the sender ends well");
}

fn ping_pong(kind: Kind, mode: WakeMode, rounds: u64) {
    let geometry = Geometry::new(Some(64), Some(64), None).expect("valid");
    let (there, back) = (Queue::new(kind, geometry), Queue::new(kind, geometry));
    let mut ping = Producer::new(there.map(), geometry, 1).expect("fits");
    let mut ping_end = Consumer::new(there.map(), geometry, 2).expect("fits");
    let mut pong = Producer::new(back.map(), geometry, 3).expect("fits");
    let mut pong_end = Consumer::new(back.map(), geometry, 4).expect("fits");
    let answerer = std::thread::spawn(move || {
        let kernel = HostKernel::new(mode);
        for _ in 0..rounds {
            let value = receive(&mut ping_end, &kernel);
            send(&mut pong, &kernel, value);
        }
    });
    let kernel = HostKernel::new(mode);
    for value in 0..rounds {
        send(&mut ping, &kernel, value);
        assert_eq!(receive(&mut pong_end, &kernel), value);
    }
    answerer.join().expect("the answerer ends well");
}

#[test]
fn no_wake_is_lost() {
    for kind in [Kind::Spsc, Kind::Mpmc] {
        for mode in [WakeMode::Membarrier, WakeMode::Fence] {
            if mode == WakeMode::Membarrier && !HostKernel::new(mode).may_park() {
                eprintln!("membarrier is not available here: skipped");
                continue;
            }
            stream(kind, mode, 20_000);
            ping_pong(kind, mode, 5_000);
        }
    }
}

#[test]
fn a_look_takes_nothing() {
    for kind in [Kind::Spsc, Kind::Mpmc] {
        let queue = Queue::new(kind, Geometry::new(Some(64), Some(64), None).expect("valid"));
        let mut producer = Producer::new(queue.map(), queue.geometry, 1).expect("fits");
        let mut consumer = Consumer::new(queue.map(), queue.geometry, 2).expect("fits");
        assert!(!consumer.has_message());
        producer.try_send(0, &[], b"first").expect("there is room");
        producer.try_send(0, &[], b"second").expect("there is room");
        for _ in 0..2 {
            assert!(consumer.has_message());
            assert!(consumer.has_message());
            let taken = consumer.try_take().expect("it is there");
            consumer.release(taken);
        }
        assert!(!consumer.has_message());
        let reserved = producer.try_reserve(8).expect("there is room");
        assert!(!consumer.has_message(), "what is not committed is not there");
        producer.commit(reserved, 8);
        assert!(consumer.has_message());
    }
}
