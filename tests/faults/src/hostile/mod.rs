//! The hostile peer: somebody writes chosen and random words into every word that he can write, while honest handles and
//! the daemon work on the same ring. Typed errors and (between members of an mpmc ring) garbage are allowed; a panic, an
//! endless loop, or an access outside the regions is not.

pub mod honest;
pub mod mutation;

use std::sync::atomic::Ordering as Order;

use ringmain_client::layout::Geometry;
use ringmain_client::ring::Invariant;
use ringmain_client::sync::step;

use crate::arena::{Arena, Outbox};
use crate::child::{self, End};
use crate::random::Random;
use crate::runner::{Runner, Size, Tally};
use honest::{AT_OPERATION, Honest, INVARIANTS, OPERATIONS, VIOLATIONS};
use mutation::{Attacker, Mutation};

const AT_ROUND: usize = 0;
const MUTATIONS: usize = 2;
const STOP: usize = 3;

/// Rounds that one child does: after a failure the next child goes on behind it.
const ROUNDS_PER_CHILD: u64 = 2000;
/// Seconds after which a child is taken for hung although it counts no steps.
const CHILD_SECONDS: u32 = 300;

/// Runs the suite; the exit code.
pub fn run(arguments: impl Iterator<Item = String>) -> i32 {
    let size = Size::from_environment("RINGMAIN_HOSTILE");
    let seed = Random::seed_from_environment();
    println!("RINGMAIN_SEED={seed}");
    let arguments: Vec<String> = arguments.collect();
    let filtered = arguments.iter().any(|argument| !argument.starts_with('-'));
    let mut runner = Runner::new("mutations", arguments.into_iter());
    let mut seen = [0; INVARIANTS.len()];
    let attackers = [Attacker::Member, Attacker::Producer, Attacker::Consumer];
    for (which, attacker) in attackers.into_iter().enumerate() {
        for (slots, slot_size) in [(64, 64), (128, 176)] {
            let geometry = Geometry::new(Some(slots), Some(slot_size), None).expect("valid sizes");
            let arena = Arena::new(attacker.kind(), geometry);
            let outbox = Outbox::new();
            let name = format!("{attacker:?}::{slots}x{slot_size}");
            let seed = seed.wrapping_add(which as u64) ^ u64::from(slots) << 32;
            runner.case(&format!("alternating::{name}"), |tally| {
                let mutations = size.choose(100_000, 5_000_000);
                alternate(tally, &arena, &outbox, attacker, seed, mutations);
            });
            runner.case(&format!("concurrent::{name}"), |tally| {
                let rounds = size.choose(5_000, 200_000);
                concurrent(tally, &arena, &outbox, attacker, seed, rounds);
            });
            for (index, seen) in seen.iter_mut().enumerate() {
                *seen += outbox.word(VIOLATIONS + index).load(Order::Relaxed);
            }
        }
    }
    runner.case("every kind of violation was reported", |tally| {
        for (invariant, count) in INVARIANTS.iter().zip(seen) {
            // No progress needs a million contrary writes at the right moments.
            let rare = *invariant == Invariant::Progress;
            let enough = count > 0 || rare || filtered;
            tally.check(
                || format!("{invariant:?}"),
                enough.then_some(()).ok_or_else(|| "never".into()),
            );
            println!("    {invariant:?}: {count}");
        }
    });
    runner.finish()
}

/// A ring in some honest state: a few messages went through it, some are in it.
fn prepare(arena: &Arena, random: &mut Random) {
    use ringmain_client::ring::{Consumer, Producer};
    arena.clear();
    let mut producer =
        Producer::new(arena.producer.clone(), arena.geometry, 1).expect("an honest ring");
    let mut consumer =
        Consumer::new(arena.consumer.clone(), arena.geometry, 4).expect("an honest ring");
    let lengths = [0, 20, 48, 49, 100, 150, 300];
    for _ in 0..random.below(100) {
        let payload = vec![7; random.pick(&lengths)];
        producer.try_send(0, &[], &payload).expect("there is room");
        let taken = consumer.try_take().expect("there is a message");
        consumer.release(taken);
    }
    for _ in 0..random.below(12) {
        let payload = vec![8; random.pick(&lengths)];
        producer.try_send(0, &[], &payload).expect("there is room");
    }
}

/// Mutations and operations take turns in one process: everything follows from the seed.
fn alternate(
    tally: &mut Tally,
    arena: &Arena,
    outbox: &Outbox,
    attacker: Attacker,
    seed: u64,
    mutations: u64,
) {
    let mut round = 0;
    let mut done = 0;
    while done < mutations && tally.worth_going_on() {
        outbox.word(MUTATIONS).store(0, Order::Relaxed);
        let end = child::spawn_for(CHILD_SECONDS, || {
            for round in round..round + ROUNDS_PER_CHILD {
                outbox.word(AT_ROUND).store(round, Order::Relaxed);
                let count = one_round(arena, outbox, attacker, seed, round);
                outbox.word(MUTATIONS).fetch_add(count, Order::Relaxed);
            }
            child::exit(0);
        })
        .wait();
        let count = outbox.word(MUTATIONS).load(Order::Relaxed);
        done += count.max(1);
        tally.units += count.saturating_sub(1);
        let at = outbox.word(AT_ROUND).load(Order::Relaxed);
        tally.check(|| describe(outbox, at), judge(end));
        round = at + 1;
    }
}

fn one_round(arena: &Arena, outbox: &Outbox, attacker: Attacker, seed: u64, round: u64) -> u64 {
    let mut random = Random::new(seed ^ round.wrapping_mul(0x2545_f491_4f6c_dd1d));
    prepare(arena, &mut random);
    let mut honest = Honest::attach(arena, outbox, attacker);
    for _ in 0..random.below(4) {
        honest.act(&mut random);
    }
    let mut count = 0;
    for _ in 0..1 + random.below(8) {
        for _ in 0..1 + random.below(3) {
            Mutation::choose(arena, attacker, &mut random).apply(arena, attacker);
            count += 1;
        }
        if attacker == Attacker::Member && random.below(2) == 0 {
            clear_fault(arena);
        }
        for _ in 0..random.below(8) {
            honest.act(&mut random);
        }
    }
    honest.broker(&mut random);
    for _ in 0..3 {
        honest.act(&mut random);
    }
    count
}

/// A member that hides what others have seen: they go on where they would have stopped.
fn clear_fault(arena: &Arena) {
    use ringmain_client::layout::mpmc::FAULT;
    use ringmain_client::sync::atomic::Ordering;
    if let ringmain_client::ring::RingMemory::Mpmc { ring, .. } = &arena.daemon {
        ring.u64_at(FAULT).store(0, Ordering::Relaxed);
    }
}

/// One process mutates as fast as it can while another works.
fn concurrent(
    tally: &mut Tally,
    arena: &Arena,
    outbox: &Outbox,
    attacker: Attacker,
    seed: u64,
    rounds: u64,
) {
    outbox.word(MUTATIONS).store(0, Order::Relaxed);
    outbox.word(STOP).store(0, Order::Relaxed);
    arena.clear();
    let mutator = child::spawn_for(CHILD_SECONDS, || {
        step::disarm();
        let mut random = Random::new(seed);
        while outbox.word(STOP).load(Order::Relaxed) == 0 {
            for _ in 0..16 {
                Mutation::choose(arena, attacker, &mut random).apply(arena, attacker);
            }
            if attacker == Attacker::Member {
                clear_fault(arena);
            }
            outbox.word(MUTATIONS).fetch_add(16, Order::Relaxed);
            // Some ticks for the honest side to come further than its first look.
            for _ in 0..random.below(2000) {
                std::hint::spin_loop();
            }
        }
        child::exit(0);
    });
    let end = child::spawn_for(CHILD_SECONDS, || {
        let mut random = Random::new(!seed);
        for round in 0..rounds {
            outbox.word(AT_ROUND).store(round, Order::Relaxed);
            // Not an honest state for long: the mutator does not stop. Resets positions that have run away.
            arena.clear();
            let mut honest = Honest::attach(arena, outbox, attacker);
            for _ in 0..200 {
                honest.act(&mut random);
            }
            honest.broker(&mut random);
        }
        child::exit(0);
    })
    .wait();
    outbox.word(STOP).store(1, Order::Relaxed);
    let at = outbox.word(AT_ROUND).load(Order::Relaxed);
    tally.check(|| describe(outbox, at), judge(end));
    tally.check(|| "the mutator".into(), judge(mutator.wait()));
    tally.units += outbox.word(MUTATIONS).load(Order::Relaxed);
}

fn describe(outbox: &Outbox, round: u64) -> String {
    let operation = usize::try_from(outbox.word(AT_OPERATION).load(Order::Relaxed)).ok();
    let name = operation.and_then(|at| OPERATIONS.get(at)).unwrap_or(&"?");
    format!("round {round}, {name}")
}

fn judge(end: End) -> Result<(), String> {
    match end {
        End::Exited(0) => Ok(()),
        End::Killed => Err("an operation does not end: too many steps".into()),
        End::Signal(libc::SIGALRM) => Err("hangs without a step".into()),
        other => other.killed(),
    }
}
