//! The kill sweep: a victim dies at its N-th step in shared memory, for every N; the daemon repairs; survivors check.
//!
//! For each case the same queue is set up anew, a child runs one operation and is killed in place of its N-th access,
//! the corpse is read (what was committed, what was held), the daemon's repair runs, and then everything that was
//! committed must arrive once, unaltered, in order, what a dead consumer may have seen must be marked, the words must fit
//! together, and the ring must take and give two whole laps.

pub mod operation;
mod stopped;
pub mod world;

use ringmain_client::layout::{HANDLE_DAEMON, Word};
use ringmain_client::protocol::{Kind, Role};
use ringmain_client::ring::repair;
use ringmain_client::sync::step;

use crate::arena::{Arena, Outbox};
use crate::child;
use crate::runner::{Runner, Size, Tally, guarded};
use operation::Operation;
use world::{Fill, ONE, SECOND, THREE, VICTIM, World};

const SLOTS: u64 = 64;
/// Steps that no operation on the smallest ring needs.
const STEPS_MAX: u32 = 5000;

/// Starting points: lap and slot. All slots of the first lap, and the wrap of the lap number.
fn starts(size: Size, every_slot: bool) -> Vec<(u64, u64)> {
    let last = Word::LAP_MASK;
    let mut starts: Vec<(u64, u64)> = match (size, every_slot) {
        (Size::Long, _) | (_, true) => (0..SLOTS).map(|offset| (0, offset)).collect(),
        _ => [0, 1, 30, 59, 60, 61, 62, 63].map(|offset| (0, offset)).to_vec(),
    };
    starts.extend([(last, 0), (last, 62)]);
    if size == Size::Long {
        starts.extend([61, 63].map(|offset| (last, offset)));
        starts.extend([0, 62].map(|offset| (5, offset)));
    }
    starts
}

/// Runs the suite; the exit code.
pub fn run(arguments: impl Iterator<Item = String>) -> i32 {
    let size = Size::from_environment("RINGMAIN_SWEEP");
    let mut runner = Runner::new("deaths", arguments);
    for kind in [Kind::Mpmc, Kind::Spsc] {
        singles(&mut runner, size, kind);
        pairs(&mut runner, size, kind);
        repairs(&mut runner, size, kind);
    }
    biased(&mut runner, size);
    stopped::run(&mut runner, size);
    runner.finish()
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Mpmc => "mpmc",
        Kind::Spsc => "spsc",
    }
}

/// Operations with the states in which they are swept, and whether at every slot in the short form.
fn sweeps(kind: Kind) -> Vec<(Operation, &'static [Fill], bool)> {
    use Operation as O;
    const SENDS: &[Fill] = &[Fill::Empty, Fill::Short, Fill::Full, Fill::Bystanders];
    const FEW: &[Fill] = &[Fill::Short];
    let takes: &[Fill] = match kind {
        Kind::Mpmc => &[
            Fill::Empty,
            Fill::Short,
            Fill::Long,
            Fill::Full,
            Fill::Bystanders,
            Fill::Returned,
            Fill::Tombstones,
        ],
        Kind::Spsc => &[Fill::Empty, Fill::Short, Fill::Long, Fill::Full, Fill::Returned],
    };
    let mut sweeps = vec![
        (O::Send(ONE, 0), SENDS, true),
        (O::Send(THREE, 0), SENDS, true),
        (O::Send(30, 21), FEW, true),
        (O::Batch, SENDS, true),
        (O::BatchOfSingles, SENDS, true),
        (O::BatchInPlace, SENDS, true),
        (O::Commit, SENDS, true),
        (O::Abort, SENDS, true),
        (O::Receive, takes, true),
        (O::ReceiveBatch, takes, true),
        (O::Visit, takes, true),
        (O::Hold, takes, true),
        (O::Attach(Role::Produce), FEW, false),
        (O::Attach(Role::Consume), FEW, false),
        (O::Detach(Role::Produce), FEW, false),
        (O::Detach(Role::Consume), FEW, false),
        (O::Park(Role::Produce), &[Fill::Full], true),
        (O::Park(Role::Consume), &[Fill::Empty, Fill::Short], true),
        (O::SendAndWake, &[Fill::Empty], true),
        (O::ReceiveAndWake, &[Fill::Full], true),
        (O::Purge, &[Fill::Empty, Fill::Long], true),
    ];
    if kind == Kind::Mpmc {
        const DROPS: &[Fill] =
            &[Fill::Short, Fill::Full, Fill::FullHeld, Fill::FullReturned, Fill::FullTombstones];
        sweeps.extend([
            (O::SendDropping(ONE, 0), DROPS, true),
            (O::SendDropping(THREE, 0), DROPS, true),
            (O::BatchDropping, DROPS, false),
        ]);
    }
    sweeps
}

fn singles(runner: &mut Runner, size: Size, kind: Kind) {
    let arena = Arena::new(kind, world::geometry());
    let outbox = Outbox::new();
    for (operation, fills, every_slot) in sweeps(kind) {
        for fill in fills {
            let case = format!("{}::one::{operation:?}::{fill:?}", name(kind));
            runner.case(&case, |tally| {
                let how = How { fill: *fill, biased: false, meanwhile: false };
                for start in starts(size, every_slot) {
                    sweep_one(tally, &arena, &outbox, start, how, operation);
                }
            });
            // The same, and the survivors go on before the repair.
            if *fill == Fill::Bystanders || operation == Operation::Purge {
                continue;
            }
            runner.case(&format!("{case}::meanwhile"), |tally| {
                let how = How { fill: *fill, biased: false, meanwhile: true };
                for start in starts(size, false) {
                    sweep_one(tally, &arena, &outbox, start, how, operation);
                }
            });
        }
    }
}

/// In which state victims die.
#[derive(Debug, Clone, Copy)]
struct How {
    fill: Fill,
    /// They have their sides of the ring to themselves.
    biased: bool,
    /// The survivors go on before the repair.
    meanwhile: bool,
}

/// Returns how many victims died in the middle of a claim without exchanges.
fn sweep_one(
    tally: &mut Tally,
    arena: &Arena,
    outbox: &Outbox,
    start: (u64, u64),
    How { fill, biased, meanwhile }: How,
    operation: Operation,
) -> u64 {
    let mut inside = 0;
    for steps in 0..STEPS_MAX {
        if !tally.worth_going_on() {
            return inside;
        }
        let mut done = false;
        let result = guarded(|| {
            let mut world = World::start(arena, outbox, start.0, start.1, fill)?;
            world.biased = biased;
            match operation {
                Operation::SendAndWake => world.fall_asleep(Role::Consume),
                Operation::ReceiveAndWake => world.fall_asleep(Role::Produce),
                _ => {}
            }
            done = operation.die(&mut world, VICTIM, steps)?;
            let dead = corpse(operation, VICTIM);
            let held_out = biased && world.is_held_out(dead, operation.drops())?;
            inside += u64::from(held_out);
            if meanwhile {
                world.go_on(&[dead], held_out)?;
            }
            world.repair(dead.0, dead.1)?;
            world.check_bias_is_over(&[dead])?;
            world.wake_everybody();
            world.verify(&[dead])
        });
        let failed = result.is_err();
        tally.check(|| format!("lap {} slot {} step {steps}", start.0, start.1), result);
        if done || (failed && steps > 200) {
            return inside;
        }
    }
    tally.check(|| format!("slot {}", start.1), Err("the operation never ends".into()));
    inside
}

/// Victims that have their sides of an mpmc ring to themselves and claim without exchanges.
fn biased(runner: &mut Runner, size: Size) {
    use Operation as O;
    const SENDS: &[Fill] = &[Fill::Short, Fill::Empty, Fill::Full, Fill::Holding];
    const TAKES: &[Fill] = &[
        Fill::Short,
        Fill::Empty,
        Fill::Long,
        Fill::Full,
        Fill::Reserving,
        Fill::Returned,
        Fill::Tombstones,
    ];
    const DROPS: &[Fill] = &[Fill::Full, Fill::FullHeld, Fill::FullReturned];
    const FEW: &[Fill] = &[Fill::Short];
    let arena = Arena::new(Kind::Mpmc, world::geometry());
    let outbox = Outbox::new();
    let sends =
        [O::Send(ONE, 0), O::Send(THREE, 0), O::Batch, O::BatchInPlace, O::Commit, O::Abort];
    let drops = [O::SendDropping(ONE, 0), O::SendDropping(THREE, 0)];
    let takes = [O::Receive, O::ReceiveBatch, O::Visit, O::Hold];
    let mut list: Vec<(O, &[Fill])> = sends.map(|send| (send, SENDS)).to_vec();
    list.extend(takes.map(|take| (take, TAKES)));
    list.extend(drops.map(|drop| (drop, DROPS)));
    list.extend([O::Detach(Role::Produce), O::Detach(Role::Consume)].map(|end| (end, FEW)));
    list.push((O::Park(Role::Consume), FEW));
    for (operation, fills) in list {
        for fill in fills {
            let case = format!("biased::one::{operation:?}::{fill:?}");
            let detaches = matches!(operation, O::Detach(_));
            runner.case(&case, |tally| {
                let mut inside = 0;
                let how = How { fill: *fill, biased: true, meanwhile: false };
                for start in starts(size, *fill == fills[0] && !detaches) {
                    inside += sweep_one(tally, &arena, &outbox, start, how, operation);
                }
                if inside == 0 && !detaches {
                    let error = "nobody died in the middle of a claim without exchanges";
                    tally.check(|| "all".into(), Err(error.into()));
                }
            });
            // A live handle of the victim's role would have ended the bias; and see `singles`.
            if matches!(fill, Fill::Holding | Fill::Reserving | Fill::FullHeld) {
                continue;
            }
            runner.case(&format!("{case}::meanwhile"), |tally| {
                let how = How { fill: *fill, biased: true, meanwhile: true };
                for start in starts(size, false) {
                    sweep_one(tally, &arena, &outbox, start, how, operation);
                }
            });
        }
    }
    let offsets: &[u64] = size.choose(&[62], &[0, 31, 61, 62, 63]);
    for send in [O::Send(ONE, 0), O::Send(THREE, 0), O::Batch] {
        for take in [O::Receive, O::Hold] {
            for (first, second) in [(send, take), (take, send)] {
                runner.case(&format!("biased::two::{first:?}::{second:?}::Long"), |tally| {
                    let how = How { fill: Fill::Long, biased: true, meanwhile: false };
                    for offset in offsets {
                        sweep_two(tally, &arena, &outbox, *offset, how, (first, second));
                    }
                });
            }
        }
    }
    for (operation, fill) in [
        (O::Send(THREE, 0), Fill::Short),
        (O::Batch, Fill::Empty),
        (O::Receive, Fill::Long),
        (O::Receive, Fill::Tombstones),
    ] {
        runner.case(&format!("biased::daemon::Repair::{operation:?}::{fill:?}"), |tally| {
            let how = How { fill, biased: true, meanwhile: false };
            for offset in offsets {
                let start = (*offset, how);
                sweep_daemon(tally, &arena, &outbox, start, operation, Daemon::Repair, size);
            }
        });
    }
}

/// Who is dead after an operation.
fn corpse(operation: Operation, handle: u8) -> (u8, Role) {
    match operation {
        Operation::Purge => (HANDLE_DAEMON, Role::Consume),
        _ => (handle, operation.role()),
    }
}

fn pairs(runner: &mut Runner, size: Size, kind: Kind) {
    use Operation as O;
    let arena = Arena::new(kind, world::geometry());
    let outbox = Outbox::new();
    let sends = [O::Send(ONE, 0), O::Send(THREE, 0), O::Batch];
    let takes = [O::Receive, O::Hold];
    let mut list: Vec<(O, O)> = Vec::new();
    for send in sends {
        for take in takes {
            list.extend([(send, take), (take, send)]);
        }
    }
    if kind == Kind::Mpmc {
        list.extend(sends.iter().flat_map(|first| sends.map(|second| (*first, second))));
        list.extend(takes.iter().flat_map(|first| takes.map(|second| (*first, second))));
        list.push((O::Abort, O::Receive));
    }
    let fills: &[Fill] = match (size, kind) {
        (Size::Long, Kind::Mpmc) => &[
            Fill::Empty,
            Fill::Long,
            Fill::Full,
            Fill::Bystanders,
            Fill::Returned,
            Fill::Tombstones,
        ],
        (Size::Long, Kind::Spsc) => &[Fill::Empty, Fill::Long, Fill::Full, Fill::Returned],
        (Size::Short, Kind::Spsc) => &[Fill::Empty, Fill::Long],
        (Size::Short, Kind::Mpmc) => &[Fill::Long],
    };
    let offsets: &[u64] = size.choose(&[62], &[0, 31, 61, 62, 63]);
    let mut cases: Vec<((O, O), Fill)> =
        list.into_iter().flat_map(|pair| fills.iter().map(move |fill| (pair, *fill))).collect();
    if kind == Kind::Mpmc {
        let drops = [O::SendDropping(ONE, 0), O::SendDropping(THREE, 0)];
        let others = [O::Receive, O::Send(ONE, 0), drops[1]];
        for (drop, other) in drops.into_iter().flat_map(|drop| others.map(|other| (drop, other))) {
            for fill in [Fill::Full, Fill::FullReturned] {
                cases.extend([((drop, other), fill), ((other, drop), fill)]);
            }
        }
        cases.dedup();
    }
    for ((first, second), fill) in cases {
        let case = format!("{}::two::{first:?}::{second:?}::{fill:?}", name(kind));
        runner.case(&case, |tally| {
            let how = How { fill, biased: false, meanwhile: false };
            for offset in offsets {
                sweep_two(tally, &arena, &outbox, *offset, how, (first, second));
            }
        });
    }
}

fn sweep_two(
    tally: &mut Tally,
    arena: &Arena,
    outbox: &Outbox,
    offset: u64,
    how: How,
    (first, second): (Operation, Operation),
) {
    let (mut first_done, mut first_steps) = (false, 0);
    while !first_done && first_steps < STEPS_MAX && tally.worth_going_on() {
        let (mut second_done, mut second_steps) = (false, 0);
        while !second_done && second_steps < STEPS_MAX && tally.worth_going_on() {
            let result = guarded(|| {
                let mut world = World::start(arena, outbox, 0, offset, how.fill)?;
                world.biased = how.biased;
                first_done = first.die(&mut world, VICTIM, first_steps)?;
                second_done = second.die(&mut world, SECOND, second_steps)?;
                let mut dead = [corpse(first, VICTIM), corpse(second, SECOND)];
                if (first_steps + second_steps) % 2 == 1 {
                    dead.reverse();
                }
                if how.biased {
                    world.is_held_out(corpse(first, VICTIM), first.drops())?;
                    world.is_held_out(corpse(second, SECOND), second.drops())?;
                }
                for (handle, role) in dead {
                    world.repair(handle, role)?;
                }
                world.check_bias_is_over(&dead)?;
                world.wake_everybody();
                world.verify(&dead)
            });
            if result.is_err() && second_steps > 200 {
                second_done = true;
            }
            tally.check(|| format!("slot {offset} steps {first_steps}, {second_steps}"), result);
            second_steps += 1;
        }
        first_steps += 1;
    }
}

/// What the daemon does when it dies over a corpse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Daemon {
    /// Repairs.
    Repair,
    /// Looks at everything as it does when it adopts a ring; nothing may change.
    Adopt,
}

fn repairs(runner: &mut Runner, size: Size, kind: Kind) {
    use Operation as O;
    let arena = Arena::new(kind, world::geometry());
    let outbox = Outbox::new();
    let list: Vec<(O, Fill)> = match (kind, size) {
        (Kind::Mpmc, Size::Short) => vec![
            (O::Send(THREE, 0), Fill::Short),
            (O::Batch, Fill::Empty),
            (O::Receive, Fill::Long),
            (O::SendDropping(THREE, 0), Fill::Full),
        ],
        (Kind::Mpmc, Size::Long) => vec![
            (O::SendDropping(ONE, 0), Fill::FullReturned),
            (O::SendDropping(THREE, 0), Fill::Full),
            (O::BatchDropping, Fill::FullTombstones),
            (O::Send(ONE, 0), Fill::Empty),
            (O::Send(THREE, 0), Fill::Short),
            (O::Batch, Fill::Empty),
            (O::Batch, Fill::Short),
            (O::Receive, Fill::Long),
            (O::Receive, Fill::Full),
            (O::Receive, Fill::Tombstones),
            (O::ReceiveBatch, Fill::Short),
            (O::ReceiveBatch, Fill::Returned),
        ],
        (Kind::Spsc, _) => vec![
            (O::Send(THREE, 0), Fill::Short),
            (O::Batch, Fill::Short),
            (O::Batch, Fill::Empty),
            (O::Receive, Fill::Long),
            (O::ReceiveBatch, Fill::Short),
            (O::ReceiveBatch, Fill::Returned),
        ],
    };
    let offsets: &[u64] = size.choose(&[62], &[0, 31, 61, 62, 63]);
    for (operation, fill) in list {
        for daemon in [Daemon::Repair, Daemon::Adopt] {
            let case = format!("{}::daemon::{daemon:?}::{operation:?}::{fill:?}", name(kind));
            runner.case(&case, |tally| {
                for offset in offsets {
                    let how = How { fill, biased: false, meanwhile: false };
                    let start = (*offset, how);
                    sweep_daemon(tally, &arena, &outbox, start, operation, daemon, size);
                }
            });
        }
    }
}

fn sweep_daemon(
    tally: &mut Tally,
    arena: &Arena,
    outbox: &Outbox,
    (offset, how): (u64, How),
    operation: Operation,
    daemon: Daemon,
    size: Size,
) {
    let mut done = false;
    let mut steps = 0;
    while !done && steps < STEPS_MAX && tally.worth_going_on() {
        let label = || format!("slot {offset} step {steps}");
        let prepared = guarded(|| {
            let mut world = World::start(arena, outbox, 0, offset, how.fill)?;
            world.biased = how.biased;
            done = operation.die(&mut world, VICTIM, steps)?;
            Ok(world)
        });
        let mut world = match prepared {
            Ok(world) => world,
            Err(error) => {
                tally.check(label, Err(error));
                steps += 1;
                continue;
            }
        };
        // Looking changes nothing, so in the short form two corpses are enough for it.
        if daemon == Daemon::Repair || size == Size::Long || steps % 7 == 3 {
            sweep_daemon_steps(tally, &mut world, corpse(operation, VICTIM), daemon, &label());
        }
        steps += 1;
    }
}

fn sweep_daemon_steps(
    tally: &mut Tally,
    world: &mut World,
    dead: (u8, Role),
    daemon: Daemon,
    label: &str,
) {
    let arena = world.arena;
    let (memory, model) = (arena.snapshot(), world.model());
    let mut done = false;
    let mut steps = 0;
    while !done && steps < STEPS_MAX && tally.worth_going_on() {
        let result = guarded(|| {
            arena.restore(&memory);
            world.set_model(&model)?;
            arena.restore(&memory);
            let finished = world.outbox.word(Outbox::WORDS - 1);
            finished.store(0, std::sync::atomic::Ordering::Relaxed);
            child::run(|| {
                step::arm(steps);
                match daemon {
                    Daemon::Repair => {
                        repair::dead_handle(&arena.daemon, &arena.geometry, dead.0, dead.1)
                            .expect("repair");
                    }
                    Daemon::Adopt => look(arena),
                }
                step::disarm();
                finished.store(1, std::sync::atomic::Ordering::Relaxed);
            })
            .killed()?;
            done = finished.load(std::sync::atomic::Ordering::Relaxed) == 1;
            if daemon == Daemon::Adopt && arena.snapshot() != memory {
                return Err("looking at a ring changed it".into());
            }
            world.repair(dead.0, dead.1)?;
            world.check_bias_is_over(&[dead])?;
            world.wake_everybody();
            world.verify(&[dead])
        });
        if result.is_err() && steps > 500 {
            done = true;
        }
        tally.check(|| format!("{label}, the daemon's step {steps}"), result);
        steps += 1;
    }
}

/// Everything that the daemon reads of a ring that it adopts.
fn look(arena: &Arena) {
    let (memory, geometry) = (&arena.daemon, &arena.geometry);
    assert!(memory.closed().is_none());
    repair::positions(memory, geometry);
    for role in [Role::Produce, Role::Consume] {
        repair::owned_by(memory, geometry, VICTIM, role);
        memory.line(role, VICTIM).snapshot();
        memory.park(role).sleepers().count();
        memory.park(role).any_sleeper();
        memory.park(role).doorbell_of(VICTIM);
    }
    for position in 0..4 {
        repair::owner_at(memory, geometry, position);
    }
}
