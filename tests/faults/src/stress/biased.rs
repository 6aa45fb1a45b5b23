//! Handles that have their side of a ring to themselves claim without exchanges, while others of their role come and go, well
//! or by SIGKILL, and are stopped in the middle of anything. This process plays the daemon.

use std::time::Duration;

use ringmain_client::layout::{handle_line, mpmc};
use ringmain_client::protocol::Role;
use ringmain_client::ring::{RingMemory, bias, repair};
use ringmain_client::sync::atomic::Ordering;
use ringmain_client::sys::membarrier;

use super::member::{Job, Ledger};
use super::{Plan, Running, bury, finish, start, wake_everybody};
use crate::arena::Arena;
use crate::child::End;
use crate::random::Random;
use crate::runner::Tally;

/// Most handles of one role.
const MEMBERS_MAX: usize = 3;
/// How often a process is stopped so that it is in the middle of a claim.
const STOPS_MAX: u32 = 20;
/// Longest time for an end that was asked for.
const END_MAX: Duration = Duration::from_secs(20);

/// The queue as the daemon knows it.
struct Queue<'a> {
    arena: &'a Arena,
    ledger: &'a Ledger,
    plan: Plan,
    members: Vec<Running>,
    lives: u64,
    /// How often a newcomer found another one in the middle of a claim without exchanges.
    stopped_inside: u64,
}

/// Whether a handle says so; also when `bias::holdout` does not look.
fn is_inside(arena: &Arena, handle: u8) -> bool {
    let RingMemory::Mpmc { ring, .. } = &arena.daemon else { return false };
    let line = mpmc::HANDLE_LINES + usize::from(handle) * handle_line::BYTES;
    ring.u64_at(line + handle_line::INSIDE).load(Ordering::Acquire) != 0
}

/// Runs a case; `kills` counts all events.
pub(super) fn run(tally: &mut Tally, arena: &Arena, plan: Plan) {
    if !membarrier::supported() {
        println!("    this kernel has no membarrier: nobody is biased");
        return;
    }
    arena.clear();
    let ledger = Ledger::new();
    let mut random = Random::new(plan.seed);
    let mut queue =
        Queue { arena, ledger: &ledger, plan, members: Vec::new(), lives: 0, stopped_inside: 0 };
    queue.come(Role::Produce);
    queue.come(Role::Consume);
    for _ in 0..plan.kills {
        std::thread::sleep(Duration::from_micros(random.any() % 3000));
        if ledger.is_full() || !tally.worth_going_on() {
            break;
        }
        let result = queue.event(&mut random);
        tally.check(|| "event".into(), result);
    }
    if queue.stopped_inside == 0 && plan.wait.is_some() {
        tally.check(|| "all stops".into(), Err("nobody was in the middle of a claim".into()));
    }
    finish(tally, arena, plan, &ledger, queue.members);
    tally.units += ledger.check(tally);
}

impl Queue<'_> {
    fn event(&mut self, random: &mut Random) -> Result<(), String> {
        let role = random.pick(&[Role::Produce, Role::Consume]);
        let victim = random.pick(&self.of(role));
        match random.below(5) {
            0 => self.leave(victim)?,
            1 => self.die(victim)?,
            // The newcomer finds whoever was alone in the middle of whatever it is, for a while.
            2..4 if self.of(role).len() == 1 => {
                self.stop(victim);
                self.come(role);
                std::thread::sleep(Duration::from_micros(random.any() % 4000));
                if random.below(4) == 0 {
                    return self.die(victim);
                }
                self.members[victim].child.signal(libc::SIGCONT);
            }
            _ if self.of(role).len() < MEMBERS_MAX => self.come(role),
            _ => self.leave(victim)?,
        }
        Ok(())
    }

    /// Stops a member, in the middle of a claim if that can be had.
    fn stop(&mut self, place: usize) {
        let member = &self.members[place];
        for attempt in 1.. {
            member.child.signal(libc::SIGSTOP);
            std::thread::sleep(Duration::from_micros(100));
            if is_inside(self.arena, member.job.handle) {
                self.stopped_inside += 1;
                return;
            }
            if attempt == STOPS_MAX {
                return;
            }
            member.child.signal(libc::SIGCONT);
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Places of the members of a role.
    fn of(&self, role: Role) -> Vec<usize> {
        let with_role = self.members.iter().enumerate();
        with_role.filter(|(_, member)| member.job.role == role).map(|(place, _)| place).collect()
    }

    fn come(&mut self, role: Role) {
        let taken = |index: &u8| self.members.iter().any(|member| member.job.handle == *index);
        let handle = (1..64).find(|index| !taken(index)).expect("a few members");
        if bias::revoke(&self.arena.daemon, role) {
            assert!(membarrier::issue(), "membarrier is refused though it is supported");
        }
        self.ledger.set_leaving(handle, false);
        self.lives += 1;
        let job = Job { role, handle, life: self.lives, messages: self.plan.messages };
        self.members.push(start(self.arena, self.ledger, self.plan, job));
        self.settle(role);
    }

    /// What the daemon does when handles have come or gone.
    fn settle(&self, role: Role) {
        let places = self.of(role);
        let handles: Vec<u8> = places.iter().map(|at| self.members[*at].job.handle).collect();
        bias::forget_others(&self.arena.daemon, role, &handles);
        if let [handle] = handles.as_slice() {
            bias::grant(&self.arena.daemon, role, *handle);
        }
    }

    fn leave(&mut self, place: usize) -> Result<(), String> {
        let job = self.members[place].job;
        self.ledger.set_leaving(job.handle, true);
        wake_everybody(self.arena, self.plan);
        let mut member = self.members.swap_remove(place);
        match member.child.wait_at_most(END_MAX) {
            Some(End::Exited(0)) => {}
            other => return Err(self.complaint(job, other)),
        }
        let memory = &self.arena.daemon;
        let owned = repair::owned_by(memory, &self.arena.geometry, job.handle, job.role);
        if owned.slots > 0 {
            return Err(format!("{job:?} has left and owns {owned:?}"));
        }
        memory.park(job.role).retract(job.handle);
        memory.line(job.role, job.handle).clear();
        self.gone(job.role);
        Ok(())
    }

    fn die(&mut self, place: usize) -> Result<(), String> {
        let mut member = self.members.swap_remove(place);
        member.child.signal(libc::SIGKILL);
        match member.child.wait_at_most(END_MAX) {
            Some(End::Killed) => {}
            // It had no number for another message.
            Some(End::Exited(0)) if self.ledger.is_full() => {}
            other => return Err(self.complaint(member.job, other)),
        }
        let mut tally = Tally::default();
        bury(&mut tally, self.arena, self.plan, member.job);
        self.gone(member.job.role);
        if tally.failures() > 0 { Err(format!("repair of {:?}", member.job)) } else { Ok(()) }
    }

    fn gone(&mut self, role: Role) {
        self.settle(role);
        if self.of(role).is_empty() {
            self.come(role);
        }
    }

    fn complaint(&self, job: Job, end: Option<End>) -> String {
        match end {
            Some(End::Exited(1)) => self.ledger.complaint(),
            other => format!("{job:?} ended as {other:?}"),
        }
    }
}
