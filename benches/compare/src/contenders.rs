//! One run of each contender: so many messages of 64 bytes from one core to another. Returns messages per second.

use ringmain_client::sync::atomic::{AtomicU64, Ordering};
use std::hint::spin_loop;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_queue::ArrayQueue;
use ringmain_client::layout::Geometry;
use ringmain_client::protocol::Kind;
use ringmain_client::ring::{Body, Consumer, Fill, Park, Producer, RingMemory, View, Visit};

use crate::memory::{
    CONSUMER, Members, PRODUCER, board, pin, ring_memory, two_processes, wait_for,
};
use crate::payload::{self, Payload, bytes, bytes_mut};

#[allow(clippy::cast_precision_loss)] // far below 2^53
fn rate(messages: u64, start: Instant) -> f64 {
    messages as f64 / start.elapsed().as_secs_f64()
}

/// A ringmain queue between two processes.
pub(crate) fn ringmain(
    kind: Kind,
    members: Members,
    slots: u32,
    slot_size: u32,
    batch: usize,
    messages: u64,
) -> f64 {
    let geometry = Geometry::new(Some(slots), Some(slot_size), Some(64)).expect("valid geometry");
    let memory = ring_memory(kind, members, &geometry);
    let done = board();
    let receiving = memory.clone();
    two_processes(
        || {
            receive(receiving, geometry, batch, messages);
            done.u64_at(0).store(1, Ordering::Release);
        },
        || {
            let mut producer =
                Producer::new(memory, geometry, PRODUCER).expect("fresh ring").with_bias();
            let start = Instant::now();
            send(&mut producer, batch, messages);
            while done.u64_at(0).load(Ordering::Acquire) == 0 {
                spin_loop();
            }
            rate(messages, start)
        },
    )
}

fn send(producer: &mut Producer, batch: usize, messages: u64) {
    if batch == 1 {
        for n in 0..messages {
            let message = payload::make(n);
            while producer.try_send(0, &[], bytes(&message)).is_err() {
                spin_loop();
            }
        }
        return;
    }
    let mut filler = Filler { first: 0 };
    while filler.first < messages {
        match producer.try_claim_batch(batch, payload::BYTES) {
            Ok(claimed) => {
                producer.fill_batch(claimed, &mut filler);
                filler.first += batch as u64;
            }
            Err(_) => spin_loop(),
        }
    }
}

/// Writes messages in place, as rtrb's chunks are written.
struct Filler {
    first: u64,
}

impl Fill for Filler {
    #[inline(always)]
    fn fill(&mut self, index: usize, body: &mut Body<'_>) {
        let place = body.as_mut_ptr().cast::<Payload>();
        // SAFETY: 64 bytes, aligned to 8, in a claimed slot that nobody else writes.
        unsafe { place.write(payload::make(self.first + index as u64)) };
    }

    #[inline(always)]
    fn may_go_on(&self) -> bool {
        true
    }
}

fn receive(memory: RingMemory, geometry: Geometry, batch: usize, messages: u64) {
    let mut consumer = Consumer::new(memory, geometry, CONSUMER).expect("fresh ring").with_bias();
    if batch > 1 {
        let mut checker = Checker { next: 0 };
        while checker.next < messages {
            if consumer.try_visit(batch, &mut checker).is_err() {
                spin_loop();
            }
        }
        return;
    }
    let mut message: Payload = [0; 8];
    let mut n = 0;
    while n < messages {
        for _ in 0..batch {
            let Ok(taken) = consumer.try_take() else {
                spin_loop();
                break;
            };
            assert_eq!(consumer.read(&taken, 0, bytes_mut(&mut message)), 64);
            consumer.release(taken);
            payload::check(&message, n);
            n += 1;
        }
    }
}

/// Checks each message where it lies, as rtrb's chunks are read.
struct Checker {
    next: u64,
}

impl Visit for Checker {
    #[inline(always)]
    fn message(&mut self, message: View<'_>) {
        assert_eq!(message.taken().length(), payload::BYTES);
        let place = message.payload_ptr().expect("it fits one slot").cast::<Payload>();
        // SAFETY: 64 bytes, aligned to 8, in a slot that the producer does not write before it is given back.
        payload::check(unsafe { &*place }, self.next);
        self.next += 1;
    }

    #[inline(always)]
    fn may_go_on(&self) -> bool {
        true
    }

    #[inline(always)]
    fn given_back(&mut self, _: &Park) {}
}

/// rtrb between two threads, in chunks of `batch`.
pub(crate) fn rtrb(slots: usize, batch: usize, messages: u64) -> f64 {
    let (mut producer, mut consumer) = rtrb::RingBuffer::<Payload>::new(slots);
    let ready = Arc::new(AtomicU64::new(0));
    let receiver_ready = ready.clone();
    let receiver = std::thread::spawn(move || {
        pin(1);
        receiver_ready.store(1, Ordering::Release);
        let mut n = 0;
        while n < messages {
            let Ok(chunk) = consumer.read_chunk(batch) else {
                spin_loop();
                continue;
            };
            for message in chunk {
                payload::check(&message, n);
                n += 1;
            }
        }
    });
    pin(0);
    wait_for(&ready);
    let start = Instant::now();
    let mut n = 0;
    while n < messages {
        let Ok(chunk) = producer.write_chunk_uninit(batch) else {
            spin_loop();
            continue;
        };
        chunk.fill_from_iter((n..).map(payload::make));
        n += batch as u64;
    }
    receiver.join().expect("every message is checked");
    rate(messages, start)
}

/// A call of its own: builds that inlined it into the loop that checks reached 10 to 19 M messages/s on an Intel machine, those
/// that called it 25 to 56.
#[inline(never)]
fn pop(queue: &ArrayQueue<Payload>) -> Option<Payload> {
    queue.pop()
}

/// crossbeam's `ArrayQueue` between two threads.
pub(crate) fn array_queue(slots: usize, messages: u64) -> f64 {
    let queue = Arc::new(ArrayQueue::<Payload>::new(slots));
    let receiving = queue.clone();
    let ready = Arc::new(AtomicU64::new(0));
    let receiver_ready = ready.clone();
    let receiver = std::thread::spawn(move || {
        pin(1);
        receiver_ready.store(1, Ordering::Release);
        let mut n = 0;
        while n < messages {
            let Some(message) = pop(&receiving) else {
                spin_loop();
                continue;
            };
            payload::check(&message, n);
            n += 1;
        }
    });
    pin(0);
    wait_for(&ready);
    let start = Instant::now();
    for n in 0..messages {
        let mut message = payload::make(n);
        while let Err(back) = queue.push(message) {
            message = back;
            spin_loop();
        }
    }
    receiver.join().expect("every message is checked");
    rate(messages, start)
}

/// p50 of the round trip of one cache line between two processes, no ring, in nanoseconds.
pub(crate) fn floor_ns() -> f64 {
    const ROUNDS: u64 = 20_000;
    let lines = board();
    let there = |value: u64| lines.u64_at(0).store(value, Ordering::Release);
    let back = |value: u64| lines.u64_at(256).store(value, Ordering::Release);
    let wait = |line: &AtomicU64, value: u64| while line.load(Ordering::Acquire) != value {};
    two_processes(
        || {
            for round in 1..=ROUNDS {
                wait(lines.u64_at(0), round);
                back(round);
            }
        },
        || {
            let mut samples: Vec<u64> = Vec::with_capacity(64);
            for block in 0..40 {
                let start = Instant::now();
                for round in 1..=ROUNDS / 40 {
                    let round = block * (ROUNDS / 40) + round;
                    there(round);
                    wait(lines.u64_at(256), round);
                }
                samples.push(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
            }
            samples.sort_unstable();
            #[allow(clippy::cast_precision_loss)]
            let median = samples[samples.len() / 2] as f64;
            median / 500.0
        },
    )
}
