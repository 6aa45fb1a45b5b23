//! What is durable, in order, and what of it has a witness on the disk. No I/O.

use std::collections::VecDeque;

use super::canary::{Canary, planted};
use super::types::Lsn;
use crate::disk::Ticket;

/// A batch in flight.
#[derive(Debug)]
struct Pending<T> {
    ticket: Ticket,
    last_lsn: Lsn,
    /// `durable_lsn` in its header.
    witness: Lsn,
    batch: Option<T>,
    done: bool,
}

/// Batches in flight, oldest first. `T` comes back with the completion and is handed out when the batch is durable.
#[derive(Debug)]
pub(super) struct Frontier<T> {
    durable: Lsn,
    witnessed: Lsn,
    pending: VecDeque<Pending<T>>,
}

impl<T> Frontier<T> {
    pub(super) fn new(durable: Lsn, witnessed: Lsn) -> Self {
        Self { durable, witnessed, pending: VecDeque::new() }
    }

    /// Every record up to this one is on stable storage.
    pub(super) fn durable(&self) -> Lsn {
        self.durable
    }

    /// The highest `durable_lsn` in a durable header.
    pub(super) fn witnessed(&self) -> Lsn {
        self.witnessed
    }

    pub(super) fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// A batch has been handed to the disk.
    pub(super) fn started(&mut self, ticket: Ticket, last_lsn: Lsn, witness: Lsn) {
        if planted(Canary::ConfirmEarly) {
            self.durable = self.durable.max(last_lsn);
        }
        self.pending.push_back(Pending { ticket, last_lsn, witness, batch: None, done: false });
    }

    /// A batch is on stable storage, all by itself.
    pub(super) fn completed(&mut self, ticket: Ticket, batch: T) {
        let Some(pending) = self.pending.iter_mut().find(|one| one.ticket == ticket) else {
            return;
        };
        pending.done = true;
        pending.batch = Some(batch);
        if planted(Canary::ConfirmOutOfOrder) {
            self.durable = self.durable.max(pending.last_lsn);
        }
    }

    /// The next batch of which all before it are durable as well, if it has no record from `limit` on.
    pub(super) fn next_durable(&mut self, limit: Lsn) -> Option<T> {
        let front = self.pending.front()?;
        if !front.done || front.last_lsn >= limit {
            return None;
        }
        let pending = self.pending.pop_front()?;
        self.durable = self.durable.max(pending.last_lsn);
        self.witnessed = self.witnessed.max(pending.witness);
        pending.batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn confirms_in_order_whatever_completes_first() {
        let mut frontier = Frontier::new(10, 7);
        frontier.started(Ticket(1), 12, 10);
        frontier.started(Ticket(2), 20, 10);
        frontier.completed(Ticket(2), "second");
        assert_eq!((frontier.next_durable(Lsn::MAX), frontier.durable()), (None, 10));
        frontier.completed(Ticket(1), "first");
        assert_eq!((frontier.next_durable(Lsn::MAX), frontier.durable()), (Some("first"), 12));
        assert_eq!((frontier.next_durable(Lsn::MAX), frontier.durable()), (Some("second"), 20));
        assert_eq!((frontier.next_durable(Lsn::MAX), frontier.witnessed()), (None, 10));
        assert_eq!(frontier.in_flight(), 0);
    }

    #[test]
    fn nothing_is_confirmed_from_a_failure_on() {
        let mut frontier = Frontier::new(0, 0);
        frontier.started(Ticket(1), 1, 0);
        frontier.started(Ticket(2), 2, 0);
        frontier.completed(Ticket(1), ());
        frontier.completed(Ticket(2), ());
        assert_eq!(frontier.next_durable(2), Some(()));
        assert_eq!((frontier.next_durable(2), frontier.durable()), (None, 1));
    }

    #[test]
    fn what_never_completes_holds_everything_behind_it() {
        let mut frontier = Frontier::new(0, 0);
        frontier.started(Ticket(1), 1, 0);
        frontier.started(Ticket(2), 2, 0);
        frontier.completed(Ticket(2), ());
        frontier.completed(Ticket(9), ());
        assert_eq!(frontier.next_durable(Lsn::MAX), None);
        assert_eq!((frontier.durable(), frontier.in_flight()), (0, 2));
    }
}
