//! Leases and delays that end. One entry a consumer and a group, not one a message.

use super::Logic;
use super::types::{Now, Port};

/// Whose time it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// No lease of this consumer ends earlier.
    Consumer(u32),
    /// The first delay of this queue's group.
    Group(u32, usize),
    /// The oldest messages of this queue have had their time.
    Age(u32),
    /// Messages of this queue may expire.
    Queue(u32),
}

impl Logic {
    /// When [`Self::on_time`] is due, on the monotonic clock in nanoseconds. May be early, never late.
    pub fn next_deadline(&mut self) -> Option<u64> {
        while let Some(&(at_ns, timer)) = self.timers.first() {
            if let Timer::Consumer(index) = timer {
                match self.consumers.get_mut(index) {
                    Some(consumer) if consumer.held > 0 => {}
                    // Nothing is leased any more: nobody has to wake up for that.
                    other => {
                        if let Some(consumer) = other {
                            consumer.armed_ns = None;
                        }
                        self.timers.pop_first();
                        continue;
                    }
                }
            }
            return Some(at_ns);
        }
        None
    }

    /// Ends the leases and delays that are over.
    pub fn on_time(&mut self, port: &mut dyn Port, now: Now) {
        self.now = now;
        while let Some(&(at_ns, timer)) = self.timers.first() {
            if at_ns > now.monotonic_ns {
                return;
            }
            self.timers.pop_first();
            match timer {
                Timer::Consumer(index) => self.consumer_time(port, index, now),
                Timer::Group(queue, group) => self.group_time(queue, group, now),
                Timer::Age(queue) => self.age_time(queue),
                Timer::Queue(index) => {
                    if let Some(queue) = self.queues.get_mut(index) {
                        queue.looks_armed_ns = None;
                        self.mark(index);
                    }
                }
            }
        }
    }

    fn consumer_time(&mut self, port: &mut dyn Port, index: u32, now: Now) {
        let Some(consumer) = self.consumers.get_mut(index) else { return };
        consumer.armed_ns = None;
        let mut over: Vec<_> = consumer
            .busy_leases()
            .filter(|(_, lease)| lease.deadline_ns <= now.monotonic_ns)
            .collect();
        over.sort_unstable_by_key(|(_, lease)| lease.sequence);
        for (slot, lease) in over {
            self.end_lease(port, index, slot, lease);
        }
        let Some(consumer) = self.consumers.get(index) else { return };
        if let Some(next_ns) = consumer.busy_leases().map(|(_, lease)| lease.deadline_ns).min() {
            self.arm_consumer(index, next_ns);
        }
    }

    fn group_time(&mut self, index: u32, group_index: usize, now: Now) {
        let Some(queue) = self.queues.get_mut(index) else { return };
        let Some(group) = queue.groups.get_mut(group_index) else { return };
        group.armed_ns = None;
        if group.mature(now.monotonic_ns) {
            self.mark(index);
        }
        self.arm_group(index, group_index);
    }

    /// A lease of this consumer ends then.
    pub(super) fn arm_consumer(&mut self, index: u32, at_ns: u64) {
        let Some(consumer) = self.consumers.get_mut(index) else { return };
        if at_ns == u64::MAX || consumer.armed_ns.is_some_and(|armed_ns| armed_ns <= at_ns) {
            return;
        }
        if let Some(armed_ns) = consumer.armed_ns.replace(at_ns) {
            self.timers.remove(&(armed_ns, Timer::Consumer(index)));
        }
        self.timers.insert((at_ns, Timer::Consumer(index)));
    }

    pub(super) fn disarm_consumer(&mut self, index: u32, armed_ns: Option<u64>) {
        if let Some(armed_ns) = armed_ns {
            self.timers.remove(&(armed_ns, Timer::Consumer(index)));
        }
    }

    /// The first delay of a group may have changed.
    pub(super) fn arm_group(&mut self, index: u32, group_index: usize) {
        let Some(queue) = self.queues.get_mut(index) else { return };
        let Some(group) = queue.groups.get_mut(group_index) else { return };
        let timer = Timer::Group(index, group_index);
        let due_ns =
            group.due.first().map(|(due_ns, _)| *due_ns).filter(|due_ns| *due_ns != u64::MAX);
        if group.armed_ns == due_ns {
            return;
        }
        if let Some(armed_ns) = std::mem::replace(&mut group.armed_ns, due_ns) {
            self.timers.remove(&(armed_ns, timer));
        }
        if let Some(due_ns) = due_ns {
            self.timers.insert((due_ns, timer));
        }
    }
}
