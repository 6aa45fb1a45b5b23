//! Round trips of 48 bytes between two processes, each pinned to a core, spinning: p50 in nanoseconds.

use ringmain_client::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use ringmain_client::layout::Geometry;
use ringmain_client::protocol::Kind;
use ringmain_client::ring::{Consumer, Producer, RingMemory};

use crate::memory::{CONSUMER, Members, PRODUCER, board, region, ring_memory, two_processes};
use crate::vyukov::{Duties, Vyukov};

const ROUNDS: u64 = 60_000;
const BYTES: usize = 48;

/// Times every round trip by itself, as `bench rtt` does.
fn times(mut round: impl FnMut(u64)) -> f64 {
    let mut samples: Vec<u64> = Vec::with_capacity(usize::try_from(ROUNDS).unwrap_or(0));
    for n in 1..=ROUNDS {
        let start = Instant::now();
        round(n);
        samples.push(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    grouped_median(&mut samples)
}

/// The median, interpolated within the tick of the clock that it falls into: a tick stands for the times nearer to it than
/// to the ticks beside it.
#[allow(clippy::cast_precision_loss)] // nanoseconds
fn grouped_median(samples: &mut [u64]) -> f64 {
    samples.sort_unstable();
    let middle = samples.len() / 2;
    let tick = samples[middle];
    let first = samples.partition_point(|sample| *sample < tick);
    let behind = samples.partition_point(|sample| *sample <= tick);
    let before = samples[..first].last().map_or(tick, |sample| *sample) as f64;
    let after = samples.get(behind).map_or(tick, |sample| *sample) as f64;
    let (low, high) = (f64::midpoint(before, tick as f64), f64::midpoint(after, tick as f64));
    low + (high - low) * (middle - first) as f64 / (behind - first) as f64
}

fn message(n: u64) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    for chunk in bytes.chunks_exact_mut(8) {
        chunk.copy_from_slice(&n.to_ne_bytes());
    }
    bytes
}

/// One cache line in each direction, no ring.
pub(crate) fn floor() -> f64 {
    let lines = board();
    let wait = |line: &AtomicU64, value: u64| while line.load(Ordering::Acquire) != value {};
    two_processes(
        || {
            for n in 1..=ROUNDS {
                wait(lines.u64_at(0), n);
                lines.u64_at(256).store(n, Ordering::Release);
            }
        },
        || {
            times(|n| {
                lines.u64_at(0).store(n, Ordering::Release);
                wait(lines.u64_at(256), n);
            })
        },
    )
}

/// A ringmain queue in each direction.
pub(crate) fn ringmain(kind: Kind, members: Members) -> f64 {
    let geometry = Geometry::new(Some(1024), Some(64), Some(48)).expect("valid geometry");
    let memory = || ring_memory(kind, members, &geometry);
    let (there, back) = (memory(), memory());
    let ends = |out: &RingMemory, back: &RingMemory| {
        let producer = Producer::new(out.clone(), geometry, PRODUCER).expect("fresh ring");
        let consumer = Consumer::new(back.clone(), geometry, CONSUMER).expect("fresh ring");
        (producer.with_bias(), consumer.with_bias())
    };
    let receive = |consumer: &mut Consumer, n: u64| {
        let mut bytes = [0; BYTES];
        let taken = loop {
            if let Ok(taken) = consumer.try_take() {
                break taken;
            }
        };
        consumer.read(&taken, 0, &mut bytes);
        consumer.release(taken);
        assert_eq!(bytes, message(n));
    };
    let send = |producer: &mut Producer, n: u64| {
        producer.try_send(0, &[], &message(n)).expect("the ring is never full");
    };
    two_processes(
        || {
            let (mut producer, mut consumer) = ends(&back, &there);
            for n in 1..=ROUNDS {
                receive(&mut consumer, n);
                send(&mut producer, n);
            }
        },
        || {
            let (mut producer, mut consumer) = ends(&there, &back);
            times(|n| {
                send(&mut producer, n);
                receive(&mut consumer, n);
            })
        },
    )
}

/// The variant with plain stamps in each direction.
pub(crate) fn vyukov(duties: Duties) -> f64 {
    let geometry = Geometry::new(Some(1024), Some(64), Some(48)).expect("valid geometry");
    let queue = || Vyukov::new(region(Vyukov::bytes(&geometry)), geometry, duties);
    let (there, back) = (queue(), queue());
    let receive = |queue: &Vyukov, n: u64| {
        let mut bytes = [0; BYTES];
        while queue.try_receive(&mut bytes).is_none() {}
        assert_eq!(bytes, message(n));
    };
    two_processes(
        || {
            for n in 1..=ROUNDS {
                receive(&there, n);
                assert!(back.try_send(&message(n)));
            }
        },
        || {
            times(|n| {
                assert!(there.try_send(&message(n)));
                receive(&back, n);
            })
        },
    )
}
