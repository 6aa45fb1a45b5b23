//! Who gets what.

use ringmain_client::protocol::Kind;
use ringmain_client::wire::{DeliveryHeader, LeaseToken};

use super::canary::Canary;
use super::consumer::{Consumer, Lease, LeaseState};
use super::expiry::Window;
use super::group::{ASIDE_NS, Delayed, Doomed, Reason};
use super::queue::Queue;
use super::record::MessageBody;
use super::returns::NS_PER_MS;
use super::slab::Slab;
use super::types::{Delivered, HandleId, Now, Port};
use super::{Log, Logic, Message, canary, headers};

/// Messages that one call gives out at most.
const BUDGET: u32 = 1024;
/// Of these, messages of one group at a time.
const SHARE: u32 = 256;

/// Of a message that was stored since the start: no repair has given it up.
pub(super) const NOT_THERE: &str = "it is not in the journal";

/// How looking at a queue ended; what has to come back sooner is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// Nothing more can be done until something happens.
    Done,
    /// A message is being read, or the journal has no room: to be tried again next turn.
    Later,
    /// The budget is used up.
    More,
}

/// What became of one message.
enum Given {
    To(u32, u64),
    Aside,
    /// Nobody gets it any more.
    Doomed(Reason),
    /// Not before this time, on the monotonic clock.
    Early(u64),
    Blocked,
    Later,
    Lost(String),
}

impl Logic {
    /// There is room in the delivery ring of a handle; whether that answered [`Delivered::Full`] before: [`Self::dispatch`] may have
    /// something for it.
    pub fn room(&mut self, handle: HandleId) -> bool {
        let Some(&super::handles::HandleRef::Consumer(number)) = self.handles.get(&handle) else {
            return false;
        };
        let Some(consumer) = self.consumers.get_mut(number) else { return false };
        let was_blocked = std::mem::take(&mut consumer.blocked);
        if was_blocked {
            let queue = consumer.queue;
            self.mark(queue);
        }
        was_blocked
    }

    /// Gives out what is durable, a bounded number of messages. `true`: there is more to do at once.
    pub fn dispatch(&mut self, log: &mut dyn Log, port: &mut dyn Port, now: Now) -> bool {
        self.now = now;
        if !self.started {
            return false;
        }
        let (mut budget, mut more) = (BUDGET, false);
        self.step_redrives(log, &mut budget);
        // Those that have to wait are looked at once a call. Who got something goes behind those who got nothing: else the first
        // could take everything that may be given out, call after call.
        let mut left = self.dirty.len();
        let mut served = std::mem::take(&mut self.served);
        while left > 0
            && let Some(index) = self.dirty.pop_front()
        {
            left -= 1;
            if let Some(queue) = self.queues.get_mut(index) {
                queue.dirty = false;
            }
            let before = budget;
            let step = self.dispatch_queue(index, log, port, &mut budget);
            self.unblock(index);
            match step {
                Step::Done => {}
                Step::Later if budget < before => served.push(index),
                Step::Later => self.mark(index),
                Step::More => {
                    served.push(index);
                    more = true;
                    break;
                }
            }
        }
        for index in served.drain(..) {
            self.mark(index);
        }
        self.served = served;
        more || budget == 0
    }

    fn dispatch_queue(
        &mut self,
        index: u32,
        log: &mut dyn Log,
        port: &mut dyn Port,
        budget: &mut u32,
    ) -> Step {
        let (groups, first) = match self.queues.get(index) {
            Some(queue) if !queue.deleted => (queue.groups.len(), queue.turn),
            _ => return Step::Done,
        };
        let mut whole = self.look_for_expired(index, log, budget);
        // Whoever comes behind one that got something is the first next time: what may be read from the disk at a time may be enough
        // for one only.
        for number in 0..=groups {
            let group = first.wrapping_add(number) % (groups + 1);
            if group == groups {
                let (before, looked) = (*budget, self.browse(index, log, port, budget));
                whole = whole.max(looked);
                if *budget < before
                    && let Some(queue) = self.queues.get_mut(index)
                {
                    queue.turn = 0;
                }
                continue;
            }
            if self.queues.get(index).is_none_or(|queue| queue.groups[group].deleted) {
                continue;
            }
            let mut share = SHARE.min(*budget);
            let whole_share = share;
            *budget -= share;
            let given = self.give_out(index, group, log, port, &mut share);
            let moved = self.move_doomed(index, group, log, port, &mut share);
            *budget += share;
            whole = whole.max(given).max(moved);
            if share < whole_share
                && let Some(queue) = self.queues.get_mut(index)
            {
                queue.turn = group + 1;
            }
            self.report_end(index, group, port);
        }
        whole
    }

    /// Messages of one group to its consumers in turn.
    fn give_out(
        &mut self,
        index: u32,
        group_index: usize,
        log: &mut dyn Log,
        port: &mut dyn Port,
        budget: &mut u32,
    ) -> Step {
        let Some(queue) = self.queues.get_mut(index) else { return Step::Done };
        let (end, is_waited_for) = (queue.next_sequence, queue.is_waited_for());
        let mut earned = queue.groups[group_index].earned.look(end, is_waited_for);
        let step = self.give_out_earned(index, group_index, log, port, budget, &mut earned);
        if let Some(queue) = self.queues.get_mut(index) {
            queue.groups[group_index].earned.leave(earned);
        }
        step
    }

    fn give_out_earned(
        &mut self,
        index: u32,
        group_index: usize,
        log: &mut dyn Log,
        port: &mut dyn Port,
        budget: &mut u32,
        earned: &mut u32,
    ) -> Step {
        let now = self.now;
        loop {
            let Some(queue) = self.queues.get_mut(index) else { return Step::Done };
            let end = Self::dispatch_end(queue);
            let limit = queue.definition.max_deliveries;
            let group = &mut queue.groups[group_index];
            if group.stalled.is_some() || waits_for_predecessor(queue.definition.kind, group) {
                return Step::Done;
            }
            let (sequence, count) = match group.ready.first_key_value() {
                Some((&sequence, &count)) => (sequence, count),
                None if group.fresh < end => (group.fresh, 0),
                None => return Step::Done,
            };
            if limit > 0 && count >= limit {
                // The limit was lowered since it came back.
                group.ready.remove(&sequence);
                let doomed = Doomed { count, reason: Reason::MaxDeliveries, waiter: None };
                group.doomed.insert(sequence, doomed);
                continue;
            }
            let Some(number) = next_consumer(group, &self.consumers) else { return Step::Done };
            if *budget == 0 {
                return Step::More;
            }
            *budget -= 1;
            let consumers = &mut self.consumers;
            match give(queue, consumers, (number, &mut *earned), (sequence, count), log, port, now)
            {
                Given::To(number, deadline_ns) => {
                    let group = &mut queue.groups[group_index];
                    let again = canary::planted(canary::Canary::DeliverTwice) && sequence % 7 == 3;
                    if sequence == group.fresh {
                        group.fresh += 1;
                        if again {
                            group.ready.insert(sequence, 0);
                        }
                    } else if !again {
                        group.ready.remove(&sequence);
                    }
                    group.leased += 1;
                    queue.redelivered += u64::from(count > 0);
                    self.arm_consumer(number, deadline_ns);
                }
                Given::Aside => {
                    let group = &mut queue.groups[group_index];
                    group.take(sequence);
                    group.delay(sequence, Delayed { count, due_ns: ASIDE_NS });
                }
                Given::Doomed(reason) => {
                    let group = &mut queue.groups[group_index];
                    group.take(sequence);
                    group.doomed.insert(sequence, Doomed { count, reason, waiter: None });
                    if reason == Reason::Gone {
                        self.losses_untold.extend(queue.loss(sequence));
                    }
                }
                Given::Early(due_ns) => {
                    let group = &mut queue.groups[group_index];
                    group.take(sequence);
                    group.delay(sequence, Delayed { count, due_ns });
                    self.arm_group(index, group_index);
                }
                Given::Blocked => {}
                Given::Later if canary::planted(Canary::OvertakeFar) => {
                    let group = &mut queue.groups[group_index];
                    group.take(sequence);
                    group.delay(sequence, Delayed { count, due_ns: now.monotonic_ns });
                    self.arm_group(index, group_index);
                }
                Given::Later => {
                    *budget += 1;
                    return Step::Later;
                }
                Given::Lost(what) => {
                    let stall = self.stalls.begin(sequence, what);
                    queue.groups[group_index].stalled = Some(stall);
                    return Step::Done;
                }
            }
        }
    }

    /// Tells those who want to know that nothing is left: nothing to be given out, nothing with others that may come back; and
    /// everybody in a group that cannot go on.
    fn report_end(&mut self, index: u32, group_index: usize, port: &mut dyn Port) {
        let Some(queue) = self.queues.get(index) else { return };
        let group = &queue.groups[group_index];
        if let Some(stall) = &group.stalled {
            for number in &group.consumers {
                let Some(consumer) = self.consumers.get_mut(*number) else { continue };
                if std::mem::replace(&mut consumer.stall_told, stall.number) != stall.number {
                    port.unreadable(consumer.handle, stall.sequence);
                }
            }
        } else if self.stalls.any() {
            for number in &group.consumers {
                let Some(consumer) = self.consumers.get_mut(*number) else { continue };
                if std::mem::take(&mut consumer.stall_told) > 0 {
                    port.unreadable(consumer.handle, 0);
                }
            }
        }
        if !group.ready.is_empty() || !group.doomed.is_empty() || group.fresh < queue.durable_end {
            return;
        }
        for number in &group.consumers {
            if let Some(consumer) = self.consumers.get_mut(*number)
                && consumer.drained_wanted
                && consumer.held_leases().count() as u64 == group.leased
            {
                consumer.drained_wanted = false;
                consumer.tell_skipped(port);
                port.drained(consumer.handle);
            }
        }
    }

    /// Messages to those who only look.
    fn browse(
        &mut self,
        index: u32,
        log: &mut dyn Log,
        port: &mut dyn Port,
        budget: &mut u32,
    ) -> Step {
        let Some(queue) = self.queues.get_mut(index) else { return Step::Done };
        let (mut whole, first) = (Step::Done, queue.browser_turn);
        let browsers = queue.browsers.len();
        for number in 0..browsers {
            let at = first.wrapping_add(number) % browsers;
            let Some(consumer) = self.consumers.get_mut(queue.browsers[at]) else { continue };
            let mut share = SHARE.min(*budget);
            let whole_share = share;
            *budget -= share;
            whole = whole.max(show(queue, consumer, log, port, &mut share));
            *budget += share;
            if share < whole_share {
                queue.browser_turn = at + 1;
            }
        }
        whole
    }
}

/// On an `spsc` queue a second consumer is there only while the first is on its way out: what that one holds comes back before
/// anything newer is given out. Closing it marks the queue.
fn waits_for_predecessor(kind: Kind, group: &super::group::Group) -> bool {
    kind == Kind::Spsc && group.consumers.len() > 1
}

/// The consumer whose turn it is, of those that can take a message.
fn next_consumer(group: &mut super::group::Group, consumers: &Slab<Consumer>) -> Option<u32> {
    // One that left may have been the last.
    let mut at = group.turn;
    for _ in 0..group.consumers.len() {
        if at >= group.consumers.len() {
            at = 0;
        }
        let number = group.consumers[at];
        at += 1;
        if consumers.get(number).is_some_and(Consumer::has_capacity) {
            group.turn = at;
            return Some(number);
        }
    }
    None
}

/// One message to one consumer, whose group has earned so many from the disk. The lease is in the table before the message is in the ring.
fn give(
    queue: &Queue,
    consumers: &mut Slab<Consumer>,
    (number, earned): (u32, &mut u32),
    (sequence, count): (u64, u32),
    log: &mut dyn Log,
    port: &mut dyn Port,
    now: Now,
) -> Given {
    let definition = &queue.definition;
    let lost = |what: &str| {
        Given::Lost(format!("message {sequence} of queue {}: {what}", definition.name))
    };
    let body = match log.message_for_reader(definition.id, sequence, earned) {
        Message::Pending => return Given::Later,
        Message::Lost(what) => return lost(&what),
        Message::Gone if sequence < queue.replayed_end => return Given::Doomed(Reason::Gone),
        Message::Gone => return lost(NOT_THERE),
        Message::Ready(body) => match MessageBody::parse(body) {
            Some(body) => body,
            None => return lost("malformed record"),
        },
    };
    let window = Window::of(definition.ttl_ms, &body);
    if window.expires_ns <= now.realtime_ns && !canary::planted(Canary::DeliverExpired) {
        return Given::Doomed(Reason::Expired);
    }
    // One that was delivered before was due.
    if count == 0 && window.due_ns > now.realtime_ns && !canary::planted(Canary::DeliverEarly) {
        let left_ns = window.due_ns - now.realtime_ns;
        return Given::Early(now.monotonic_ns.saturating_add(left_ns).min(ASIDE_NS - 1));
    }
    let Some(consumer) = consumers.get_mut(number) else { return Given::Blocked };
    let handle = consumer.handle;
    consumer.tell_skipped(port);
    let slot = consumer.claim();
    let attempt = count + 1;
    let header = DeliveryHeader {
        lease: LeaseToken { slot, attempt, sequence },
        published_ns: body.published_ns,
        lease_ms: definition.lease_ms,
    };
    port.lease(handle, slot, Some((attempt, sequence)));
    match port.deliver(handle, &header, body.flags, body.metadata, body.payload) {
        Delivered::Sent => {}
        refused => {
            port.lease(handle, slot, None);
            consumer.unclaim(slot);
            if refused == Delivered::TooLarge {
                return Given::Aside;
            }
            consumer.blocked = true;
            return Given::Blocked;
        }
    }
    let deadline_ns = match definition.lease_ms {
        0 => u64::MAX,
        ms => now.monotonic_ns.saturating_add(ms.saturating_mul(NS_PER_MS)),
    };
    let bytes = u32::try_from(body.metadata.len() + body.payload.len()).unwrap_or(u32::MAX);
    let state = LeaseState::Held;
    let expires_ns = queue.known_expiry(sequence, window);
    consumer.hold(slot, Lease { sequence, deadline_ns, attempt, bytes, state, expires_ns });
    Given::To(number, deadline_ns)
}

/// What comes in front of a message that is only shown.
fn shown(sequence: u64, published_ns: u64) -> DeliveryHeader {
    let lease = LeaseToken { slot: 0, attempt: 0, sequence };
    DeliveryHeader { lease, published_ns, lease_ms: 0 }
}

/// Messages to one who only looks, as far as there is room.
fn show(
    queue: &Queue,
    consumer: &mut Consumer,
    log: &mut dyn Log,
    port: &mut dyn Port,
    budget: &mut u32,
) -> Step {
    let handle = consumer.handle;
    if consumer.blocked {
        return Step::Done;
    }
    let Some(browser) = &mut consumer.browser else { return Step::Done };
    let mut earned = browser.earned.look(queue.next_sequence, false);
    let step = loop {
        let sequence = match browser.open.front() {
            Some(&sequence) => sequence,
            None if browser.next < queue.durable_end => browser.next,
            None => break Step::Done,
        };
        if *budget == 0 {
            break Step::More;
        }
        *budget -= 1;
        // What was purged meanwhile is not shown, nor what cannot be read.
        let kept = queue.is_stream() && sequence >= queue.first;
        let gone = !kept
            && queue.groups.iter().all(|group| {
                sequence < group.fresh && group.leased == 0 && !group.has_back(sequence)
            });
        let message = if gone {
            Message::Gone
        } else {
            log.message_for_reader(queue.definition.id, sequence, &mut earned)
        };
        match message {
            Message::Pending => {
                *budget += 1;
                break Step::Later;
            }
            Message::Gone => {}
            Message::Lost(what) => {
                let header = shown(sequence, 0);
                let mut metadata = Vec::new();
                headers::push(&mut metadata, headers::UNREADABLE, &what);
                if port.deliver(handle, &header, 0, &metadata, &[]) == Delivered::Full {
                    consumer.blocked = true;
                    browser.earned.leave(earned);
                    return Step::Done;
                }
            }
            Message::Ready(body) => {
                if let Some(body) = MessageBody::parse(body) {
                    let header = shown(sequence, body.published_ns);
                    let mut given =
                        port.deliver(handle, &header, body.flags, body.metadata, body.payload);
                    if given == Delivered::TooLarge {
                        let mut metadata = Vec::new();
                        let bytes = body.payload.len().to_string();
                        headers::push(&mut metadata, headers::WITHHELD, &bytes);
                        given = port.deliver(handle, &header, 0, &metadata, &[]);
                    }
                    if given == Delivered::Full {
                        consumer.blocked = true;
                        browser.earned.leave(earned);
                        return Step::Done;
                    }
                }
            }
        }
        if browser.open.pop_front().is_none() {
            browser.next += 1;
        }
    };
    browser.earned.leave(earned);
    if step == Step::Done && consumer.drained_wanted {
        consumer.drained_wanted = false;
        port.drained(handle);
    }
    step
}
