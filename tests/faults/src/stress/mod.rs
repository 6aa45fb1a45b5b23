//! Stress between processes: checksummed messages of random lengths, both sides sleep whenever they may, and in some cases
//! processes are killed or stopped at random moments.
//!
//! What is checked: every message whose send returned arrives, unaltered, once (or again, marked as redelivered, after its
//! consumer died); each consumer sees each producer's messages in order; nobody sleeps through a wake.

mod biased;
mod member;
mod ping_pong;

use std::time::{Duration, Instant};

use ringmain_client::layout::{Geometry, control};
use ringmain_client::protocol::{Kind, Role, WakeMode};
use ringmain_client::ring::{Kernel, repair, wake_sleepers};
use ringmain_client::sys::kernel::HostKernel;
use ringmain_client::wait::WaitPolicy;

use crate::arena::Arena;
use crate::child::{self, Child, End};
use crate::random::Random;
use crate::runner::{Runner, Size, Tally};
use member::{Job, Ledger};

/// Time after which a case that makes no progress is given up.
const CASE_SECONDS: u32 = 120;

#[derive(Debug, Clone, Copy)]
struct Plan {
    mode: WakeMode,
    producers: usize,
    consumers: usize,
    /// Messages of each producer; with kills the sum over its lives.
    messages: u64,
    kills: u32,
    seed: u64,
    /// Waits as the handles of the client do, and does not dawdle; else everybody sleeps at once.
    wait: Option<WaitPolicy>,
}

/// Runs the suite; the exit code.
pub fn run(arguments: impl Iterator<Item = String>) -> i32 {
    let size = Size::from_environment("RINGMAIN_STRESS");
    let seed = Random::seed_from_environment();
    println!("RINGMAIN_SEED={seed}");
    let mut runner = Runner::new("messages", arguments);
    let rings = [(Kind::Spsc, 1, 1), (Kind::Mpmc, 1, 1), (Kind::Mpmc, 2, 2), (Kind::Mpmc, 3, 3)];
    for (kind, producers, consumers) in rings {
        for mode in [WakeMode::Membarrier, WakeMode::Fence] {
            for (slots, slot_size) in [(64, 64), (256, 256)] {
                let geometry =
                    Geometry::new(Some(slots), Some(slot_size), None).expect("valid sizes");
                let arena = Arena::new(kind, geometry);
                let ring =
                    format!("{kind:?}::{producers}P{consumers}C::{mode:?}::{slots}x{slot_size}");
                let messages = size.choose(30_000, 1_000_000) / producers as u64;
                let plan =
                    Plan { mode, producers, consumers, messages, kills: 0, seed, wait: None };
                runner.case(&format!("calm::{}", ring.to_lowercase()), |tally| {
                    stress(tally, &arena, plan);
                });
                let kills = size.choose(40, 2_000);
                runner.case(&format!("kills::{}", ring.to_lowercase()), |tally| {
                    stress(tally, &arena, Plan { kills, messages: u64::MAX, ..plan });
                });
            }
        }
    }
    for mode in [WakeMode::Membarrier, WakeMode::Fence] {
        let geometry = Geometry::new(Some(256), Some(256), None).expect("valid sizes");
        let arena = Arena::new(Kind::Mpmc, geometry);
        let messages = size.choose(40_000, 2_000_000) / 8;
        let plan = Plan {
            mode,
            producers: 8,
            consumers: 8,
            messages,
            kills: 0,
            seed,
            wait: Some(WaitPolicy::Adaptive),
        };
        let name = format!("crowd::mpmc::8p8c::{mode:?}::adaptive").to_lowercase();
        runner.case(&name, |tally| stress(tally, &arena, plan));
    }
    for (slots, slot_size) in [(64, 64), (256, 256)] {
        let geometry = Geometry::new(Some(slots), Some(slot_size), None).expect("valid sizes");
        let arena = Arena::new(Kind::Mpmc, geometry);
        for wait in [None, Some(WaitPolicy::Adaptive)] {
            let plan = Plan {
                mode: WakeMode::Membarrier,
                producers: 1,
                consumers: 1,
                messages: u64::MAX,
                kills: 300,
                seed,
                wait,
            };
            let pace = if wait.is_some() { "adaptive" } else { "dawdling" };
            runner.case(&format!("biased::{slots}x{slot_size}::{pace}"), |tally| {
                for round in 0..size.choose(1, 30) {
                    biased::run(tally, &arena, Plan { seed: seed.wrapping_add(round), ..plan });
                }
            });
        }
    }
    for kind in [Kind::Spsc, Kind::Mpmc] {
        for mode in [WakeMode::Membarrier, WakeMode::Fence] {
            let rounds = size.choose(20_000, 1_000_000);
            let name = format!("ping-pong::{kind:?}::{mode:?}").to_lowercase();
            runner.case(&name, |tally| ping_pong::run(tally, kind, mode, rounds, seed));
        }
    }
    runner.finish()
}

/// One process of the case, and what it does.
struct Running {
    job: Job,
    child: Child,
}

fn stress(tally: &mut Tally, arena: &Arena, plan: Plan) {
    arena.clear();
    let ledger = Ledger::new();
    let mut random = Random::new(plan.seed);
    let mut members: Vec<Running> = Vec::new();
    let jobs = (0..plan.producers)
        .map(|_| Role::Produce)
        .chain((0..plan.consumers).map(|_| Role::Consume))
        .zip(1u8..)
        .map(|(role, handle)| Job { role, handle, life: 0, messages: plan.messages });
    for job in jobs {
        members.push(start(arena, &ledger, plan, job));
    }
    let mut lives: u64 = 0;
    for _ in 0..plan.kills {
        std::thread::sleep(Duration::from_micros(random.any() % 4000));
        if random.below(8) == 0 {
            pause_one(&members, &mut random);
        }
        // One, sometimes two at once.
        let mut dead = Vec::new();
        for _ in 0..1 + usize::from(random.below(4) == 0) {
            let victim = members.swap_remove(random.below(members.len()));
            victim.child.signal(libc::SIGKILL);
            dead.push(victim);
        }
        for victim in &mut dead {
            match victim.child.wait_at_most(Duration::from_secs(20)) {
                Some(End::Killed) => {}
                // It ended before the signal came, and not well.
                Some(End::Exited(1)) => {
                    tally.check(|| format!("{:?}", victim.job), Err(ledger.complaint()));
                }
                Some(End::Exited(0)) | None => {
                    tally.check(|| format!("{:?}", victim.job), Err("is not to be killed".into()));
                }
                Some(end) => tally.check(|| format!("{:?}", victim.job), end.killed()),
            }
        }
        for victim in &dead {
            bury(tally, arena, plan, victim.job);
        }
        for victim in dead {
            lives += 1;
            members.push(start(arena, &ledger, plan, Job { life: lives, ..victim.job }));
        }
        if !tally.worth_going_on() {
            break;
        }
    }
    finish(tally, arena, plan, &ledger, members);
    tally.units += ledger.check(tally);
}

fn start(arena: &Arena, ledger: &Ledger, plan: Plan, job: Job) -> Running {
    let child = child::spawn_for(CASE_SECONDS, || {
        let kernel = HostKernel::new(plan.mode);
        let code = match member::run(arena, ledger, &kernel, job, plan) {
            Ok(()) => 0,
            Err(error) => {
                ledger.complain(&format!("{job:?}: {error}"));
                1
            }
        };
        child::exit(code);
    });
    Running { job, child }
}

/// A stopped process is alive: nothing of its own is taken away.
fn pause_one(members: &[Running], random: &mut Random) {
    let member = &members[random.below(members.len())];
    member.child.signal(libc::SIGSTOP);
    std::thread::sleep(Duration::from_micros(random.any() % 3000));
    member.child.signal(libc::SIGCONT);
}

/// What the daemon does after a death.
fn bury(tally: &mut Tally, arena: &Arena, plan: Plan, job: Job) {
    let repaired = repair::dead_handle(&arena.daemon, &arena.geometry, job.handle, job.role);
    if let Err(fault) = repaired {
        tally.check(|| format!("repair of {job:?}"), Err(fault.to_string()));
    }
    wake_everybody(arena, plan);
}

fn wake_everybody(arena: &Arena, plan: Plan) {
    let kernel = HostKernel::new(plan.mode);
    kernel.light_barrier();
    for role in [Role::Produce, Role::Consume] {
        wake_sleepers(&arena.daemon.park(role), &kernel, u32::MAX);
    }
}

/// Lets the producers stop, then the consumers when everything is received.
fn finish(tally: &mut Tally, arena: &Arena, plan: Plan, ledger: &Ledger, members: Vec<Running>) {
    if plan.kills > 0 {
        ledger.stop();
        wake_everybody(arena, plan);
    }
    let (mut producers, mut consumers): (Vec<_>, Vec<_>) =
        members.into_iter().partition(|member| member.job.role == Role::Produce);
    let deadline = Instant::now() + Duration::from_secs(u64::from(CASE_SECONDS));
    let mut open = true;
    // Whoever is left when something went wrong is killed when it is dropped.
    while !producers.is_empty() || !consumers.is_empty() {
        for group in [&mut producers, &mut consumers] {
            if let Err((job, error)) = reap(group, ledger) {
                tally.check(|| format!("{job:?}"), Err(error));
                return;
            }
        }
        if Instant::now() > deadline {
            let left = producers.iter().chain(&consumers).map(|member| member.job);
            let left: Vec<Job> = left.collect();
            tally.check(|| format!("{left:?}"), Err("do not come to an end".into()));
            return;
        }
        if producers.is_empty() && open {
            open = false;
            repair::close(arena.daemon.control(), control::CLOSED_DRAINING);
            wake_everybody(arena, plan);
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// Takes those out of the group that have come to a good end.
fn reap(group: &mut Vec<Running>, ledger: &Ledger) -> Result<(), (Job, String)> {
    let mut index = 0;
    while let Some(member) = group.get_mut(index) {
        let error = match member.child.try_wait() {
            None => {
                index += 1;
                continue;
            }
            Some(End::Exited(0)) => {
                group.swap_remove(index);
                continue;
            }
            Some(End::Exited(1)) => ledger.complaint(),
            Some(End::Killed) => "killed by somebody else".into(),
            Some(end) => end.killed().err().unwrap_or_default(),
        };
        return Err((member.job, error));
    }
    Ok(())
}
