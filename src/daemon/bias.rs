//! Which handle of a direct mpmc queue may claim without exchanges: the one that has its side to itself. The protocol is
//! `ringmain_client::ring::bias`; here is who has the side to itself, and since when.

use std::time::{Duration, Instant};

use ringmain_client::layout::LAYOUT_VERSION;
use ringmain_client::protocol::{ErrorCode, Kind, Role, WakeMode};

use super::broker::Broker;
use super::connections::{Failure, refuse};
use super::queues::Queue;

/// How long the control thread waits for a consumer to end a claim that has begun. It takes nanoseconds, unless it is stopped.
const HOLDOUT_TIME_MAX: Duration = Duration::from_millis(2);

impl Queue {
    /// A ring of an earlier layout may be taken over by an earlier daemon, which knows nothing of this.
    fn may_be_biased(&self) -> bool {
        self.entry.kind == Kind::Mpmc
            && self.entry.wake_mode == WakeMode::Membarrier
            && self.entry.layout_version == LAYOUT_VERSION
    }

    fn members(&self, role: Role) -> Vec<u8> {
        let with_role = self.handles.iter().filter(|(_, handle)| handle.role == role);
        with_role.map(|(index, _)| *index).collect()
    }

    /// After handles have come or gone, their repair included.
    pub(super) fn settle_bias(&self, role: Role) {
        if self.may_be_biased() {
            self.memory.settle_bias(role, &self.members(role));
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

    /// Before a second handle of the role is given out, or the daemon takes messages itself.
    pub(super) fn revoke_bias(&self, role: Role) -> Result<(), Failure> {
        self.memory.revoke_bias(role).or_else(|()| {
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
    /// Before the daemon or producers take messages of a queue: no consumer is in the middle of a take that expects to be the only one.
    pub(super) fn stop_biased_takes(&self, queue: &Queue) -> Result<(), Failure> {
        queue.revoke_bias(Role::Consume)?;
        let begun = Instant::now();
        while let Some(index) = queue.memory.holdout(Role::Consume) {
            if begun.elapsed() > HOLDOUT_TIME_MAX {
                let session = queue.handles.get(&index).map(|handle| handle.session);
                let session = session.and_then(|number| self.sessions.get(&number));
                let pid = session.map_or(0, |session| session.pid);
                let text = format!(
                    "queue {}: process {pid} is stopped in the middle of a take: continue or end it, and try again",
                    queue.entry.name
                );
                return refuse(ErrorCode::Busy, text);
            }
            std::thread::yield_now();
        }
        Ok(())
    }
}
