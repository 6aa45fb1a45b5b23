//! Batches that are written in place and shown to a visitor, on both kinds of rings: random sizes against a queue of numbers, and
//! panics on either side.
#![cfg(not(loom))]

mod support;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};

use proptest::prelude::*;
use ringmain_client::layout::Geometry;
use ringmain_client::protocol::{Kind, Role};
use ringmain_client::ring::{
    Body, Consumer, Fill, Park, Producer, RingMemory, TryReceiveError, TrySendError, View, Visit,
    bias, progress, repair,
};
use support::ring_memory;

const SLOTS: usize = 64;
/// The kinds, and whether the handles have their sides to themselves.
const RINGS: [(Kind, bool); 3] = [(Kind::Spsc, false), (Kind::Mpmc, false), (Kind::Mpmc, true)];

fn ring((kind, biased): (Kind, bool)) -> (RingMemory, Geometry, Producer, Consumer) {
    let slots = u32::try_from(SLOTS).expect("small");
    let geometry = Geometry::new(Some(slots), Some(80), Some(64)).expect("valid geometry");
    let memory = ring_memory(kind, &geometry);
    let producer = Producer::new(memory.clone(), geometry, 1).expect("producer").with_bias();
    let consumer = Consumer::new(memory.clone(), geometry, 2).expect("consumer").with_bias();
    if biased {
        bias::grant(&memory, Role::Produce, 1);
        bias::grant(&memory, Role::Consume, 2);
    }
    (memory, geometry, producer, consumer)
}

/// Writes numbers from `first` on as messages of `length` bytes; panics at message `panics_at`.
struct Numbers {
    first: u64,
    panics_at: Option<usize>,
}

fn bytes(number: u64, length: usize) -> Vec<u8> {
    (0u64..).map(|at| (number * 31 + at).to_le_bytes()[0]).take(length).collect()
}

impl Fill for Numbers {
    fn fill(&mut self, index: usize, body: &mut Body<'_>) {
        assert_ne!(self.panics_at, Some(index), "planted");
        let message = bytes(self.first + index as u64, body.len());
        body.write(0, &message).expect("it fits");
        body.write(1, &message).expect_err("one byte too far");
    }

    fn may_go_on(&self) -> bool {
        true
    }
}

fn send(
    producer: &mut Producer,
    first: u64,
    count: usize,
    length: usize,
) -> Result<u64, TrySendError> {
    let claimed = producer.try_claim_batch(count, length)?;
    Ok(producer.fill_batch(claimed, &mut Numbers { first, panics_at: None }))
}

/// Collects what it is shown; panics at its message `panics_at`.
#[derive(Default)]
struct Seen {
    messages: Vec<(u64, Vec<u8>)>,
    redelivered: usize,
    panics_at: Option<usize>,
}

impl Visit for Seen {
    fn message(&mut self, message: View<'_>) {
        assert_ne!(self.panics_at, Some(self.messages.len()), "planted");
        let taken = message.taken();
        let mut payload = vec![0; taken.length()];
        message.read(0, &mut payload);
        let in_place = message.payload_ptr().expect("one slot");
        // SAFETY: one thread; the message is held.
        let in_place = unsafe { std::slice::from_raw_parts(in_place, taken.length()) };
        assert_eq!(payload, in_place);
        self.redelivered += usize::from(taken.redelivered());
        self.messages.push((taken.sequence(), payload));
    }

    fn may_go_on(&self) -> bool {
        true
    }

    fn given_back(&mut self, _producers: &Park) {}
}

fn quiet<T>(body: impl FnOnce() -> T) -> std::thread::Result<T> {
    catch_unwind(AssertUnwindSafe(body))
}

proptest! {
    #[test]
    fn what_goes_in_comes_out(
        steps in prop::collection::vec((any::<bool>(), 0..40usize, 0..65usize), 1..200),
        which in 0..RINGS.len(),
    ) {
        let (_, _, mut producer, mut consumer) = ring(RINGS[which]);
        let mut model = VecDeque::new();
        let mut next = 0u64;
        for (sends, count, length) in steps {
            if sends {
                let sent = send(&mut producer, next, count, length);
                if count > SLOTS / 4 {
                    let too_large = matches!(sent, Err(TrySendError::TooLarge { .. }));
                    prop_assert!(too_large);
                } else if model.len() + count > SLOTS {
                    prop_assert_eq!(sent, Err(TrySendError::Full));
                } else {
                    // One slot a message and no tombstones: the position is the number.
                    prop_assert_eq!(sent, Ok(next));
                    model.extend((next..).take(count).map(|n| (n, bytes(n, length))));
                    next += count as u64;
                }
            } else {
                let mut seen = Seen::default();
                let expected: Vec<_> = model.drain(..count.min(model.len())).collect();
                match consumer.try_visit(count, &mut seen) {
                    Ok(shown) => prop_assert_eq!(shown, expected.len()),
                    Err(error) => {
                        prop_assert_eq!(error, TryReceiveError::Empty);
                        prop_assert!(expected.is_empty());
                    }
                }
                prop_assert_eq!(seen.messages, expected);
            }
        }
        prop_assert_eq!(producer.line().snapshot().messages, next);
        prop_assert_eq!(consumer.line().snapshot().messages, next - model.len() as u64);
    }
}

#[test]
fn a_batch_whose_writer_panics_is_not_sent() {
    for which in RINGS {
        for panics_at in [0, 1, 5, 15] {
            // Also at the end of the ring.
            for before in [0, 60] {
                let (_, _, mut producer, mut consumer) = ring(which);
                for n in 0..before {
                    send(&mut producer, n, 1, 8).expect("room");
                    consumer.try_visit(1, &mut Seen::default()).expect("one");
                }
                let claimed = producer.try_claim_batch(16, 8).expect("room");
                let mut numbers = Numbers { first: 1000, panics_at: Some(panics_at) };
                quiet(|| producer.fill_batch(claimed, &mut numbers)).expect_err("planted");
                assert_eq!(
                    consumer.try_visit(16, &mut Seen::default()),
                    Err(TryReceiveError::Empty)
                );
                // What follows is not mixed with what was written, whatever its length.
                send(&mut producer, 2000, 2, 8).expect("room");
                let mut seen = Seen::default();
                assert_eq!(consumer.try_visit(64, &mut seen), Ok(2));
                let numbers = [2000, 2001].map(|n| bytes(n, 8));
                assert!(seen.messages.iter().map(|(_, message)| message).eq(&numbers));
                // And the ring has all its room.
                for n in 0..4 {
                    send(&mut producer, n * 16, 16, 64).expect("room");
                }
                assert_eq!(send(&mut producer, 0, 1, 8), Err(TrySendError::Full));
            }
        }
    }
}

#[test]
fn a_message_whose_visitor_panics_counts_as_received() {
    for which in RINGS {
        let (_, _, mut producer, mut consumer) = ring(which);
        for first in [0, 16] {
            send(&mut producer, first, 16, 8).expect("room");
        }
        let mut seen = Seen { panics_at: Some(18), ..Seen::default() };
        quiet(|| consumer.try_visit(32, &mut seen)).expect_err("planted");
        assert_eq!(seen.messages.len(), 18);
        let mut rest = Seen::default();
        assert_eq!(consumer.try_visit(32, &mut rest), Ok(13));
        assert_eq!(rest.messages[0].1, bytes(19, 8));
        assert_eq!(consumer.line().snapshot().messages, 32);
    }
}

/// Leaves the visit after so many messages, as a process that is killed there would.
struct Dies {
    after: usize,
    dead: bool,
}

impl Visit for Dies {
    fn message(&mut self, _: View<'_>) {
        if self.after == 0 {
            self.dead = true;
            std::panic::resume_unwind(Box::new("killed"));
        }
        self.after -= 1;
    }

    fn may_go_on(&self) -> bool {
        // The dead do nothing, not even at the end of a part.
        !self.dead
    }

    fn given_back(&mut self, _: &Park) {}
}

#[test]
fn a_consumer_that_dies_in_a_batch_has_left_word_by_word_how_far_it_came() {
    for shown in 1..20usize {
        let (memory, geometry, mut producer, mut consumer) = ring(RINGS[0]);
        for first in [0, 16] {
            send(&mut producer, first, 16, 8).expect("room");
        }
        let mut victim = Dies { after: shown, dead: false };
        quiet(|| consumer.try_visit(32, &mut victim)).expect_err("killed");
        let RingMemory::Spsc { consumer: page, .. } = &memory else { unreachable!("spsc") };
        let left = progress(page);
        assert_eq!((left.released, left.taken), (shown as u64, shown as u64 + 1));
        for _ in 0..2 {
            repair::dead_handle(&memory, &geometry, 2, Role::Consume).expect("repair");
        }
        let mut successor = Consumer::new(memory.clone(), geometry, 3).expect("consumer");
        let mut seen = Seen::default();
        assert_eq!(successor.try_visit(64, &mut seen), Ok(32 - shown));
        assert_eq!(seen.messages[0], (shown as u64, bytes(shown as u64, 8)));
        assert_eq!(seen.redelivered, 1, "the one that it was looking at");
    }
}
