//! One consumer handle and its lease table.

use std::collections::VecDeque;

use super::canary;
use super::earned::Earned;
use super::expiry::{NEVER_NS, UNKNOWN_NS};
use super::types::{HandleId, Port};

/// What an entry of a lease table is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LeaseState {
    Free,
    /// The message is with the consumer.
    Held,
    /// Acknowledged, but that is not durable yet: a broker that takes over must not give the message to another one.
    Settling,
    /// A limit has discarded the message under the consumer, which is still busy with it: its credit is in use until it says
    /// something or its time is over.
    Gone,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Lease {
    pub(super) sequence: u64,
    /// Monotonic; `u64::MAX`: as long as the consumer lives.
    pub(super) deadline_ns: u64,
    /// Number of the delivery.
    pub(super) attempt: u32,
    /// Payload and metadata.
    pub(super) bytes: u32,
    pub(super) state: LeaseState,
    /// When the message expires, if it is back by then; realtime.
    pub(super) expires_ns: u64,
}

const FREE: Lease = Lease {
    sequence: 0,
    deadline_ns: u64::MAX,
    attempt: 0,
    bytes: 0,
    state: LeaseState::Free,
    expires_ns: NEVER_NS,
};

/// Where one who only looks is.
#[derive(Debug)]
pub(super) struct Browser {
    /// Messages in front of `next` that were not acknowledged when it began.
    pub(super) open: VecDeque<u64>,
    pub(super) next: u64,
    /// Messages from the disk that it may have.
    pub(super) earned: Earned,
}

#[derive(Debug)]
pub(super) struct Consumer {
    pub(super) handle: HandleId,
    /// Tells apart successive users of one number.
    pub(super) generation: u32,
    /// `u32::MAX` after the queue was deleted.
    pub(super) queue: u32,
    /// Index in the queue's groups.
    pub(super) group: usize,
    pub(super) credit: u32,
    pub(super) browser: Option<Browser>,
    /// No room in its ring.
    pub(super) blocked: bool,
    /// Wants to hear when nothing is left.
    pub(super) drained_wanted: bool,
    /// Entry in the timers: no lease ends before it.
    pub(super) armed_ns: Option<u64>,
    /// Leases that use credit: held or gone.
    pub(super) held: u32,
    /// Messages that a limit discarded and that it has not been told of.
    pub(super) skipped: u64,
    /// Number of the stall of its group that it was told of last.
    pub(super) stall_told: u64,
    leases: Vec<Lease>,
    free: Vec<u32>,
    leases_max: u32,
}

impl Consumer {
    pub(super) fn new(handle: HandleId, generation: u32, queue: u32, group: usize) -> Self {
        Self {
            handle,
            generation,
            queue,
            group,
            credit: 0,
            browser: None,
            blocked: false,
            drained_wanted: true,
            armed_ns: None,
            held: 0,
            skipped: 0,
            stall_told: 0,
            leases: Vec::new(),
            free: Vec::new(),
            leases_max: 0,
        }
    }

    pub(super) fn set_leases_max(&mut self, leases_max: u32) {
        self.leases_max = leases_max;
    }

    pub(super) fn set_credit(&mut self, credit: u32) {
        self.credit = credit.min(self.leases_max);
    }

    pub(super) fn has_capacity(&self) -> bool {
        !self.blocked
            && self.held < self.credit
            && (!self.free.is_empty() || self.leases.len() < self.leases_max as usize)
    }

    /// A free entry. Only if [`Self::has_capacity`].
    pub(super) fn claim(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.leases.push(FREE);
            u32::try_from(self.leases.len() - 1).unwrap_or(u32::MAX)
        })
    }

    /// A certain entry, of an adopted table.
    pub(super) fn claim_entry(&mut self, slot: u32) -> bool {
        if slot >= self.leases_max {
            return false;
        }
        while self.leases.len() <= slot as usize {
            self.free.push(u32::try_from(self.leases.len()).unwrap_or(u32::MAX));
            self.leases.push(FREE);
        }
        match self.free.iter().position(|free| *free == slot) {
            Some(at) => {
                self.free.swap_remove(at);
                true
            }
            None => false,
        }
    }

    /// Puts an entry back that was claimed and not used.
    pub(super) fn unclaim(&mut self, slot: u32) {
        self.free.push(slot);
    }

    pub(super) fn hold(&mut self, slot: u32, lease: Lease) {
        self.leases[slot as usize] = lease;
        self.held += 1;
    }

    /// The lease that a token names.
    pub(super) fn find(&self, slot: u32, sequence: u64, attempt: u32) -> Option<Lease> {
        self.leases.get(slot as usize).copied().filter(|lease| {
            lease.state == LeaseState::Held
                && lease.sequence == sequence
                && lease.attempt == attempt
        })
    }

    pub(super) fn set_deadline(&mut self, slot: u32, deadline_ns: u64) {
        if let Some(lease) = self.leases.get_mut(slot as usize) {
            lease.deadline_ns = deadline_ns;
        }
    }

    /// Held to settling.
    pub(super) fn settle(&mut self, slot: u32) {
        if let Some(lease) = self.leases.get_mut(slot as usize)
            && lease.state == LeaseState::Held
        {
            lease.state = LeaseState::Settling;
            self.held -= 1;
        }
    }

    /// Held to gone.
    pub(super) fn abandon(&mut self, slot: u32) {
        if let Some(lease) = self.leases.get_mut(slot as usize) {
            lease.state = LeaseState::Gone;
        }
    }

    /// Whether a token names a lease whose message is gone.
    pub(super) fn is_gone(&self, slot: u32, sequence: u64, attempt: u32) -> bool {
        self.leases.get(slot as usize).is_some_and(|lease| {
            (lease.state, lease.sequence, lease.attempt) == (LeaseState::Gone, sequence, attempt)
        })
    }

    /// Leases that use credit, with their entries.
    pub(super) fn busy_leases(&self) -> impl Iterator<Item = (u32, Lease)> + '_ {
        let used = if self.held == 0 { 0 } else { self.leases.len() };
        (0u32..)
            .zip(&self.leases[..used])
            .filter(|(_, lease)| matches!(lease.state, LeaseState::Held | LeaseState::Gone))
            .map(|(slot, lease)| (slot, *lease))
    }

    /// When the messages of its leases expire is not known any more.
    pub(super) fn forget_expiries(&mut self) {
        for lease in &mut self.leases {
            lease.expires_ns = UNKNOWN_NS;
        }
    }

    /// Held, gone or settling to free.
    pub(super) fn release(&mut self, slot: u32) {
        let Some(lease) = self.leases.get_mut(slot as usize) else { return };
        match lease.state {
            LeaseState::Free => return,
            LeaseState::Held | LeaseState::Gone => self.held -= 1,
            LeaseState::Settling => {}
        }
        *lease = FREE;
        self.free.push(slot);
    }

    /// In front of what it gets next.
    pub(super) fn tell_skipped(&mut self, port: &mut dyn Port) {
        if self.skipped > 0 && !canary::planted(canary::Canary::SkipInSilence) {
            port.skipped(self.handle, std::mem::take(&mut self.skipped));
        }
    }

    /// Held leases with their entries.
    pub(super) fn held_leases(&self) -> impl Iterator<Item = (u32, Lease)> + '_ {
        self.busy_leases().filter(|(_, lease)| lease.state == LeaseState::Held)
    }
}
