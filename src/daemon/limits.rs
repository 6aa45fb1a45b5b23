//! What one user has, against what one user may have.

use ringmain_client::protocol::ErrorCode;

use super::broker::Broker;
use super::connections::{Failure, refuse};

impl Broker {
    /// Whether the user may own one more queue of this size.
    pub(super) fn check_queue_limits(&self, uid: u32, bytes: u64) -> Result<(), Failure> {
        let limits = self.config.limits;
        let (mut queues, mut used) = (0_u32, 0_u64);
        for pending in self.allocating.values().filter(|pending| pending.entry.owner_uid == uid) {
            queues += 1;
            used = used.saturating_add(pending.bytes);
        }
        for queue in self.queues.values().filter(|queue| queue.entry.owner_uid == uid) {
            queues += 1;
            used = used.saturating_add(queue.memory_bytes());
        }
        queues += u32::try_from(
            self.brokered.queues.values().filter(|queue| queue.entry.owner_uid == uid).count(),
        )
        .unwrap_or(u32::MAX);
        used = used.saturating_add(self.brokered.memory_of(&self.sessions, uid));
        if queues >= limits.queues {
            let text = format!(
                "user {uid} has {queues} queues, the limit is {}: delete some, or start the daemon with a higher limit",
                limits.queues
            );
            return refuse(ErrorCode::Limit, text);
        }
        if used.saturating_add(bytes) > limits.bytes {
            let text = format!(
                "a queue of {bytes} bytes exceeds the limit of {} bytes for user {uid} ({used} are in use): ask for \
                 fewer or smaller slots, delete queues, or start the daemon with a higher limit",
                limits.bytes
            );
            return refuse(ErrorCode::Limit, text);
        }
        Ok(())
    }

    /// Whether the user's processes may have a handle on a brokered queue with this much memory.
    pub(super) fn check_memory_limit(&self, uid: u32, bytes: u64) -> Result<(), Failure> {
        let limit = self.config.limits.bytes;
        let direct: u64 = self
            .queues
            .values()
            .filter(|queue| queue.entry.owner_uid == uid)
            .map(super::queues::Queue::memory_bytes)
            .sum();
        let used = direct.saturating_add(self.brokered.memory_of(&self.sessions, uid));
        if used.saturating_add(bytes) > limit {
            let text = format!(
                "a handle of {bytes} bytes exceeds the limit of {limit} bytes for user {uid} ({used} are in use): close \
                 handles, delete queues, or start the daemon with a higher limit"
            );
            return refuse(ErrorCode::Limit, text);
        }
        Ok(())
    }

    /// Whether the user's processes may have one more handle.
    pub(super) fn check_handle_limit(&self, uid: u32) -> Result<(), Failure> {
        let limit = self.config.limits.handles;
        let used: usize = self
            .sessions
            .values()
            .filter(|session| session.uid == uid)
            .map(|session| session.handles.len())
            .sum();
        if used >= limit as usize {
            let text = format!(
                "user {uid} has {used} handles, the limit is {limit}: close some, or start the daemon with a higher \
                 limit"
            );
            return refuse(ErrorCode::Limit, text);
        }
        Ok(())
    }
}
