//! The rings: algorithms over the shared-memory layout, without system calls and without allocation.
//!
//! [`Producer`] and [`Consumer`] are what both kinds have in common: lengths, headers, bodies, batches, counters. The kinds
//! differ in how slots are claimed and given back (`spsc.rs`, `mpmc.rs`; [`bias`] for a side with one handle). [`park`] has the rules of sleeping and waking,
//! [`repair`] what the daemon does after a death.

pub mod bias;
mod consumer;
mod copy;
mod end;
mod error;
mod line;
mod look;
mod mpmc;
pub mod park;
mod producer;
mod region;
pub mod repair;
mod slots;
mod spsc;

pub use consumer::{Consumer, Taken, View, Visit};
pub use error::{Closed, Fault, Invariant, TryReceiveError, TrySendError};
pub use line::{HandleLine, LineSnapshot};
pub use park::{Kernel, Park, sleep_once, wake_sleepers};
pub use producer::{Body, ClaimedBatch, Fill, OutOfBounds, Producer, Reserved};
pub use region::Region;
pub use spsc::{Progress, progress};

use crate::layout::{control, handle_line, mpmc as mpmc_layout, spsc_page};
use crate::protocol::{Overflow, Role};
use crate::sync::atomic::Ordering;

/// The mapped regions of one queue.
#[derive(Debug, Clone)]
pub enum RingMemory {
    /// One producer, one consumer.
    Spsc {
        /// The daemon's page.
        control: Region,
        /// Slots, written by the producer.
        slots: Region,
        /// The producer's page.
        producer: Region,
        /// The consumer's page.
        consumer: Region,
    },
    /// Any number of both.
    Mpmc {
        /// The daemon's page.
        control: Region,
        /// Header, handle lines and slots.
        ring: Region,
    },
}

impl RingMemory {
    /// The page that only the daemon writes.
    pub fn control(&self) -> &Region {
        match self {
            Self::Spsc { control, .. } | Self::Mpmc { control, .. } => control,
        }
    }

    /// Where the handles of one role sleep.
    pub fn park(&self, role: Role) -> Park {
        match (self, role) {
            (Self::Spsc { producer, consumer, .. }, Role::Produce) => {
                Park::spsc(producer, consumer)
            }
            (Self::Spsc { producer, consumer, .. }, Role::Consume) => {
                Park::spsc(consumer, producer)
            }
            (Self::Mpmc { ring, .. }, Role::Produce) => {
                Park::mpmc(ring, mpmc_layout::PRODUCER_SLEEPERS, mpmc_layout::PRODUCER_EVENT)
            }
            (Self::Mpmc { ring, .. }, Role::Consume) => {
                Park::mpmc(ring, mpmc_layout::CONSUMER_SLEEPERS, mpmc_layout::CONSUMER_EVENT)
            }
        }
    }

    /// The line of a handle.
    pub fn line(&self, role: Role, handle: u8) -> HandleLine {
        match (self, role) {
            (Self::Spsc { producer, .. }, Role::Produce) => {
                HandleLine::new(producer, spsc_page::HANDLE_LINE)
            }
            (Self::Spsc { consumer, .. }, Role::Consume) => {
                HandleLine::new(consumer, spsc_page::HANDLE_LINE)
            }
            (Self::Mpmc { ring, .. }, _) => {
                let offset = mpmc_layout::HANDLE_LINES + usize::from(handle) * handle_line::BYTES;
                HandleLine::new(ring, offset)
            }
        }
    }

    /// Messages that producers have dropped for room; a racy look.
    pub fn dropped(&self) -> u64 {
        match self {
            Self::Spsc { .. } => 0,
            // Relaxed: for people.
            Self::Mpmc { ring, .. } => ring.u64_at(mpmc_layout::DROPPED).load(Ordering::Relaxed),
        }
    }

    /// What happens to a message for which there is no room.
    pub fn overflow(&self) -> Overflow {
        overflow_rule(self.control())
    }

    /// Whether the daemon has closed the queue. An unknown value counts as a fault.
    pub fn closed(&self) -> Option<Closed> {
        closed_state(self.control())
    }
}

#[inline(always)]
fn closed_state(page: &Region) -> Option<Closed> {
    // Acquire: partner of the Release in `repair::close`; what was published before it is seen after it.
    let value = page.u64_at(control::CLOSED).load(Ordering::Acquire);
    if value == control::CLOSED_OPEN { None } else { Some(why_closed(value)) }
}

/// An unknown rule is that of a later daemon: the producer waits, which loses nothing.
fn overflow_rule(page: &Region) -> Overflow {
    // Acquire: partner of the Release in `repair::set_overflow`.
    match page.u64_at(control::OVERFLOW).load(Ordering::Acquire) {
        control::OVERFLOW_REJECT => Overflow::Reject,
        control::OVERFLOW_DROP_OLDEST => Overflow::DropOldest,
        _ => Overflow::Block,
    }
}

#[cold]
fn why_closed(value: u64) -> Closed {
    match value {
        control::CLOSED_DRAINING => Closed::Draining,
        control::CLOSED_DELETED => Closed::Deleted,
        control::CLOSED_GROUP_DELETED => Closed::GroupDeleted,
        _ => Closed::Fault,
    }
}
