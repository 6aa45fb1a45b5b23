//! Messages whose time is over. Whoever gives a message out looks at the clock; this file is for those that nobody asks for.
//!
//! A *look* says: no message of this range expires before this time. It is due a little after the first of them does, so that a queue
//! needs about 128 of them for each TTL in use, whatever the number of messages.

use std::collections::BTreeMap;

use ringmain_client::layout::metadata::{Times, times};

use super::canary::{self, Canary};
use super::dispatch::Step;
use super::group::{Doomed, Group, Reason};
use super::queue::Queue;
use super::record::MessageBody;
use super::returns::NS_PER_MS;
use super::time::Timer;
use super::{Log, Logic, Message};

/// Of a message without a TTL.
pub(super) const NEVER_NS: u64 = u64::MAX;
/// It is not known whether or when: the message has to be read.
pub(super) const UNKNOWN_NS: u64 = 0;

/// Looks in one TTL.
const LOOKS_PER_TTL: u64 = 128;
/// A power of two, about a millisecond.
const GRAIN_NS_MIN: u64 = 1 << 20;

/// How far behind the first message that was never given out others are taken out: each in between becomes an entry.
const REACH: u64 = 1 << 16;
/// So many messages of a group may wait for being moved before more are looked for.
const DOOMED_MAX: usize = 1024;

/// When to look at which messages, on the realtime clock.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Looks {
    /// Time to {first, last} sequence.
    due: BTreeMap<u64, (u64, u64)>,
}

fn hull(range: (u64, u64), other: (u64, u64)) -> (u64, u64) {
    (range.0.min(other.0), range.1.max(other.1))
}

impl Looks {
    /// From `first` to `last`, at this time.
    pub(super) fn add(&mut self, at_ns: u64, first: u64, last: u64) {
        let range = self.due.entry(at_ns).or_insert((first, last));
        *range = hull(*range, (first, last));
    }

    fn first(&self) -> Option<(u64, (u64, u64))> {
        self.due.first_key_value().map(|(at_ns, range)| (*at_ns, *range))
    }

    /// What is left of the first one.
    fn go_on(&mut self, first: u64) {
        if let Some(mut entry) = self.due.first_entry() {
            if first > entry.get().1 {
                entry.remove();
            } else {
                entry.get_mut().0 = first;
            }
        }
    }

    /// As a checkpoint has them.
    pub(super) fn all(&self) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        self.due.iter().map(|(at_ns, (first, last))| (*at_ns, *first, *last))
    }
}

/// The shorter one of a queue's TTL (0: none) and a message's own.
fn shorter(queue_ms: u64, own_ms: Option<u64>) -> Option<u64> {
    match (queue_ms, own_ms) {
        (0, own_ms) => own_ms,
        (queue_ms, None) => Some(queue_ms),
        (queue_ms, Some(own_ms)) => Some(own_ms.min(queue_ms)),
    }
}

fn after(published_ns: u64, ms: u64) -> u64 {
    published_ns.saturating_add(ms.saturating_mul(NS_PER_MS))
}

/// When a message may be given out, and until when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    pub(super) due_ns: u64,
    pub(super) expires_ns: u64,
}

impl Window {
    pub(super) fn of(queue_ttl_ms: u64, body: &MessageBody<'_>) -> Self {
        // Only messages without metadata, or with metadata that was checked, are taken.
        let times = if body.metadata.is_empty() {
            Times::default()
        } else {
            times(body.metadata).unwrap_or_default()
        };
        let ttl_ms = shorter(queue_ttl_ms, times.ttl_ms);
        Self {
            due_ns: times.delay_ms.map_or(0, |ms| after(body.published_ns, ms)),
            expires_ns: ttl_ms.map_or(NEVER_NS, |ms| after(body.published_ns, ms)),
        }
    }
}

impl Queue {
    /// A message with this TTL of its own was appended, or is still there: it will be looked at.
    pub(super) fn expires(&mut self, sequence: u64, published_ns: u64, own_ms: Option<u64>) {
        let Some(ttl_ms) = shorter(self.definition.ttl_ms, own_ms) else { return };
        self.uses_ttl = true;
        let expires_ns = after(published_ns, ttl_ms);
        if expires_ns == NEVER_NS {
            return;
        }
        let part_ns = (ttl_ms.saturating_mul(NS_PER_MS) / LOOKS_PER_TTL).max(GRAIN_NS_MIN);
        let grain_ns = 1 << part_ns.ilog2();
        let at_ns = expires_ns.checked_next_multiple_of(grain_ns).unwrap_or(expires_ns);
        self.looks.add(at_ns, sequence, sequence);
    }

    /// What a lease notes of when its message expires. One that is still to be looked at is looked at when it comes back: that look
    /// passes over what is with consumers, and there may be no later one.
    pub(super) fn known_expiry(&self, sequence: u64, window: Window) -> u64 {
        let is_to_come = self.looks.first().is_some_and(|(at_ns, (first, last))| {
            at_ns == UNKNOWN_NS && (first..=last).contains(&sequence)
        });
        if is_to_come { UNKNOWN_NS } else { window.expires_ns }
    }

    /// All messages are looked at soon: when they expire is not known any more.
    pub(super) fn look_at_all(&mut self) {
        self.uses_ttl |= self.definition.ttl_ms > 0;
        if self.uses_ttl && self.next_sequence > 1 {
            self.looks.add(UNKNOWN_NS, 1, self.next_sequence - 1);
        }
    }

    /// A group has got messages that may have been looked at while it did not have them: while they were with consumers of other groups,
    /// or, in a stream, acknowledged.
    pub(super) fn look_again(&mut self, group: usize) {
        let Some(group) = self.groups.get(group).filter(|_| self.uses_ttl) else { return };
        let first = group.ready.first_key_value().map_or(group.fresh, |(first, _)| *first);
        let end = if self.is_stream() { self.next_sequence } else { group.fresh };
        if first < end {
            self.looks.add(UNKNOWN_NS, first, end - 1);
        }
    }

    /// The first message from a place on that some group may still give out.
    fn next_back(&self, first: u64, last: u64) -> Option<u64> {
        let next = |group: &Group| {
            let ready = group.ready.range(first..=last).next().map(|(sequence, _)| *sequence);
            let delayed = group.delayed.range(first..=last).next().map(|(sequence, _)| *sequence);
            let fresh = Some(group.fresh.max(first)).filter(|fresh| *fresh <= last);
            [ready, delayed, fresh].into_iter().flatten().min()
        };
        self.live_groups().filter_map(next).min()
    }

    /// Takes an expired message out of each group that does not have it with a consumer.
    fn expire(&mut self, sequence: u64) {
        for group in &mut self.groups {
            if group.deleted || group.doomed.contains_key(&sequence) {
                continue;
            }
            if sequence.saturating_sub(group.fresh) >= REACH {
                let range = (sequence, sequence);
                group.beyond = Some(group.beyond.map_or(range, |beyond| hull(beyond, range)));
                continue;
            }
            if let Some(count) = group.take(sequence) {
                let doomed = Doomed { count, reason: Reason::Expired, waiter: None };
                group.doomed.insert(sequence, doomed);
            }
        }
    }

    /// What was out of reach of a group may be in reach now: it is looked at again. Whether there was anything.
    fn reach_beyond(&mut self) -> bool {
        let mut any = false;
        for group in &mut self.groups {
            let Some((first, last)) = group.beyond else { continue };
            // What is still out of reach after that look begins behind it: this comes to an end.
            if first.saturating_sub(group.fresh) < REACH {
                group.beyond = None;
                let first = first.max(group.fresh);
                if first <= last {
                    self.looks.add(UNKNOWN_NS, first, last);
                    any = true;
                }
            }
        }
        any
    }
}

impl Logic {
    /// Looks at the messages whose time may be over.
    pub(super) fn look_for_expired(
        &mut self,
        index: u32,
        log: &mut dyn Log,
        budget: &mut u32,
    ) -> Step {
        let now = self.now;
        loop {
            let Some(queue) = self.queues.get_mut(index) else { return Step::Done };
            let due = queue.looks.first().filter(|(at_ns, _)| *at_ns <= now.realtime_ns);
            let Some((_, (first, last))) = due else {
                if queue.reach_beyond() {
                    continue;
                }
                break;
            };
            if self.failed.is_some() {
                return Step::Done;
            }
            let Some(sequence) = queue.next_back(first, last) else {
                queue.looks.go_on(last + 1);
                continue;
            };
            queue.looks.go_on(sequence);
            if sequence >= queue.durable_end {
                // The queue is looked at again when it is durable.
                return Step::Done;
            }
            if queue.live_groups().any(|group| group.doomed.len() >= DOOMED_MAX) {
                return Step::Later;
            }
            if *budget == 0 {
                return Step::More;
            }
            *budget -= 1;
            let body = match log.message(queue.definition.id, sequence) {
                Message::Pending => return Step::Later,
                // Who is to give it out says so.
                Message::Lost(_) | Message::Gone => None,
                Message::Ready(body) => MessageBody::parse(body),
            };
            queue.looks.go_on(sequence + 1);
            let Some(body) = body else { continue };
            if Window::of(queue.definition.ttl_ms, &body).expires_ns <= now.realtime_ns {
                queue.expire(sequence);
            } else {
                let own_ms = times(body.metadata).unwrap_or_default().ttl_ms;
                queue.expires(sequence, body.published_ns, own_ms);
            }
        }
        self.arm_looks(index);
        Step::Done
    }

    fn arm_looks(&mut self, index: u32) {
        let now = self.now;
        let Some(queue) = self.queues.get_mut(index) else { return };
        let at_ns = queue.looks.first().map(|(at_ns, _)| {
            now.monotonic_ns.saturating_add(at_ns.saturating_sub(now.realtime_ns))
        });
        if queue.looks_armed_ns == at_ns {
            return;
        }
        if let Some(armed_ns) = std::mem::replace(&mut queue.looks_armed_ns, at_ns) {
            self.timers.remove(&(armed_ns, Timer::Queue(index)));
        }
        if let Some(at_ns) = at_ns {
            self.timers.insert((at_ns, Timer::Queue(index)));
        }
    }

    /// The looks of a queue as a checkpoint has them. What is below the first message that was never given out may have been looked at
    /// while it was with a consumer: it is looked at again.
    pub(super) fn looks_to_keep(&self, queue: &Queue) -> Vec<(u64, u64, u64)> {
        if !queue.uses_ttl || canary::planted(Canary::ForgetLooks) {
            return Vec::new();
        }
        let beyond = queue.groups.iter().filter_map(|group| group.beyond);
        let beyond = beyond.map(|(first, last)| (UNKNOWN_NS, first, last));
        let mut looks: Vec<_> = beyond.chain(queue.looks.all()).collect();
        let back = queue.groups.iter().flat_map(|group| {
            let leased = self
                .members(group)
                .flat_map(|member| member.held_leases().map(|(_, lease)| lease.sequence));
            group.back().chain(leased)
        });
        let range = back.fold(None, |range, sequence| {
            let one = (sequence, sequence);
            Some(range.map_or(one, |range| hull(range, one)))
        });
        looks.extend(range.map(|(first, last)| (UNKNOWN_NS, first, last)));
        looks
    }
}
