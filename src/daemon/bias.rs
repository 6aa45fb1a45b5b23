//! Which handle of a direct mpmc queue may claim without exchanges: the one that has its side to itself. The protocol is
//! `ringmain_client::ring::bias`; here is who has the side to itself, and since when.

use std::time::{Duration, Instant};

use ringmain_client::layout::LAYOUT_VERSION;
use ringmain_client::protocol::{ErrorCode, Kind, Role, WakeMode};
use ringmain_client::sys::membarrier;

use super::broker::{Broker, bug};
use super::connections::{Failure, refuse};
use super::queues::Queue;

/// How long the control thread waits for a consumer to end a claim that has begun, and how often it looks. A claim takes
/// nanoseconds, but its process may have lost its processor to others in them. Repairs of other queues wait meanwhile.
const HOLDOUT_TIME_MAX: Duration = Duration::from_millis(10);
const HOLDOUT_POLL: Duration = Duration::from_micros(50);

impl Queue {
    /// A ring of an earlier layout may be taken over by an earlier daemon, which knows nothing of this. What a daemon cannot take
    /// back it does not give.
    fn may_be_biased(&self) -> bool {
        self.entry.kind == Kind::Mpmc
            && self.entry.wake_mode == WakeMode::Membarrier
            && self.entry.layout_version == LAYOUT_VERSION
            && membarrier::supported()
    }

    fn members(&self, role: Role) -> Vec<u8> {
        let with_role = self.handles.iter().filter(|(_, handle)| handle.role == role);
        with_role.map(|(index, _)| *index).collect()
    }

    /// After handles have come or gone, their repair included.
    pub(super) fn settle_bias(&self, role: Role) {
        let members = self.members(role);
        self.memory.forget_bias_of_others(role, &members);
        if let [handle] = members.as_slice()
            && self.may_be_biased()
        {
            self.memory.grant_bias(role, *handle);
        }
    }

    /// The same where it is not known whether anything has changed: the broker before may have died over it.
    pub(super) fn adopt_bias(&self) {
        for role in [Role::Produce, Role::Consume] {
            if self.members(role).len() > 1 && self.memory.revoke_bias(role).is_err() {
                // The next attachment tries again and is refused if it cannot be.
                continue;
            }
            self.settle_bias(role);
        }
    }

    /// Before a second handle of the role is given out, or the daemon takes messages itself. After an error everything is as before.
    pub(super) fn revoke_bias(&self, role: Role) -> Result<(), Failure> {
        self.memory.revoke_bias(role).or_else(|()| {
            self.settle_bias(role);
            refuse(
                ErrorCode::Io,
                format!(
                    "queue {}: the kernel refuses membarrier to the daemon, though it offered it when the queue was created; \
                     restart the daemon, or attach one handle of each role",
                    self.entry.name
                ),
            )
        })
    }
}

impl Broker {
    /// Before the daemon or producers take messages of a queue: no consumer is in the middle of a take that expects to be the
    /// only one, or begins one. After an error everything is as before.
    pub(super) fn stop_biased_takes(&mut self, id: u64) -> Result<(), Failure> {
        let begun = Instant::now();
        loop {
            let Some(queue) = self.queues.get(&id) else {
                return Err(bug("queue without entry").into());
            };
            queue.revoke_bias(Role::Consume)?;
            let Some(index) = await_holdout(queue, begun) else {
                return Ok(());
            };
            let Some(session) = queue.handles.get(&index).map(|handle| handle.session) else {
                // The word names nobody who is left, and is put right.
                queue.settle_bias(Role::Consume);
                continue;
            };
            // It may be dead, and that not noticed yet. Its repair may then bias the side towards another one: revoked once more.
            self.look_at(session)?;
            let Some(found) = self.sessions.get(&session) else { continue };
            let pid = found.pid;
            let Some(queue) = self.queues.get(&id) else { continue };
            queue.settle_bias(Role::Consume);
            let text = format!(
                "queue {}: process {pid} is stopped in the middle of a take: continue or end it, and try again",
                queue.entry.name
            );
            return refuse(ErrorCode::Busy, text);
        }
    }
}

/// Whoever is in the middle of a take at the end of the time for it.
fn await_holdout(queue: &Queue, begun: Instant) -> Option<u8> {
    loop {
        let index = queue.memory.holdout(Role::Consume)?;
        if begun.elapsed() > HOLDOUT_TIME_MAX {
            return Some(index);
        }
        std::thread::sleep(HOLDOUT_POLL);
    }
}
