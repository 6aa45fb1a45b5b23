//! Repair of several dead handles at once.
#![cfg(not(loom))]

mod support;

use ringmain_client::layout::{Geometry, control};
use ringmain_client::protocol::{Kind, Role};
use ringmain_client::ring::{Consumer, Producer, RingMemory, repair};
use ringmain_client::sync::atomic::Ordering;
use support::ring_memory;

fn repairs(memory: &RingMemory) -> u64 {
    // Relaxed: a counter.
    memory.control().u64_at(control::REPAIRS).load(Ordering::Relaxed)
}

#[test]
fn one_pass_repairs_all_that_died_and_nobody_else() {
    let geometry = Geometry::new(Some(64), Some(64), None).expect("valid");
    let memory = ring_memory(Kind::Mpmc, &geometry);
    let produce = |handle| Producer::new(memory.clone(), geometry, handle).expect("attached");
    let consume = |handle| Consumer::new(memory.clone(), geometry, handle).expect("attached");
    let mut sender = produce(1);
    for n in 0..6_u8 {
        sender.try_send(0, &[], &[n]).expect("room");
    }
    // Indexes in different words of the set, live and dead by turns.
    let mut consumers = [2, 63, 64, 200, 254].map(consume);
    let held = consumers.each_mut().map(|consumer| consumer.try_take().expect("a message"));
    let mut dying = produce(130);
    let reserved = dying.try_reserve(8).expect("room");
    let mut living = produce(131);
    let kept = living.try_reserve(8).expect("room");
    let dead =
        [(63, Role::Consume), (130, Role::Produce), (200, Role::Consume), (254, Role::Consume)];
    let report = repair::dead_handles(&memory, &geometry, &dead).expect("honest memory");
    assert_eq!((report.returned, report.tombstones, report.freed), (3, 1, 0));
    assert_eq!(repairs(&memory), 4);
    let again = repair::dead_handles(&memory, &geometry, &dead).expect("honest memory");
    assert_eq!(again, repair::Report::default());
    for (handle, role) in dead {
        assert_eq!(repair::owned_by(&memory, &geometry, handle, role).slots, 0);
    }
    for (handle, role) in [(2, Role::Consume), (64, Role::Consume), (131, Role::Produce)] {
        assert_eq!(repair::owned_by(&memory, &geometry, handle, role).slots, 1, "{handle}");
    }
    // The dead ones write nothing any more.
    let _ = reserved;
    let [mut first, _, mut third, ..] = consumers;
    let [of_first, _, of_third, ..] = held;
    first.release(of_first);
    third.release(of_third);
    living.commit(kept, 8);
    let mut sequences = Vec::new();
    while let Ok(taken) = first.try_take() {
        sequences.push((taken.sequence(), taken.redelivered()));
        first.release(taken);
    }
    assert_eq!(sequences, [(1, true), (3, true), (4, true), (5, false), (7, false)]);
    for _ in 0..64 {
        sender.try_send(0, &[], b"x").expect("every slot came back");
    }
}

#[test]
fn both_ends_of_an_spsc_ring_may_die_at_once() {
    let geometry = Geometry::new(Some(64), Some(64), None).expect("valid");
    let memory = ring_memory(Kind::Spsc, &geometry);
    let mut producer = Producer::new(memory.clone(), geometry, 1).expect("attached");
    let mut consumer = Consumer::new(memory.clone(), geometry, 2).expect("attached");
    producer.try_send(0, &[], b"x").expect("room");
    let _ = consumer.try_take().expect("a message");
    let dead = [(1, Role::Produce), (2, Role::Consume)];
    let report = repair::dead_handles(&memory, &geometry, &dead).expect("honest memory");
    assert_eq!((report.returned, repairs(&memory)), (1, 2));
    let mut successor = Consumer::new(memory, geometry, 2).expect("attached");
    let taken = successor.try_take().expect("it is given again");
    assert!(taken.redelivered());
    successor.release(taken);
}
