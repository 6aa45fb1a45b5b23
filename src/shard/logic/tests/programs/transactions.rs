//! Programs: transactions.

use ringmain_client::wire::Outcome;

use super::super::memory::at_ms;
use super::{Check, Program, QUEUES, UNLIMITED};
use crate::shard::logic::{Refusal, TransactionAck, TransactionMessage};

impl Program {
    /// Messages to some queues and acknowledgements in one step; some of the leases are over.
    pub(super) fn transact(&mut self) -> Check {
        let lane = self.random.pick(&QUEUES).expect("some");
        let mut acks = Vec::new();
        for _ in 0..self.random.below(3) {
            if !self.tokens.is_empty() {
                let at = self.random.below(self.tokens.len() as u64) as usize;
                let (handle, lease) = self.tokens[at];
                acks.push(TransactionAck { handle, lease });
            }
        }
        let position = *self.lane_ends.entry(lane).or_default();
        let next = position + 1 + self.random.below(3);
        let payloads: Vec<(u64, Vec<u8>)> = (0..self.random.below(4))
            .map(|number| {
                let queue = self.random.pick(&UNLIMITED).expect("some");
                (queue, format!("{queue}/{lane}/{position}/{number}").into_bytes())
            })
            .collect();
        let messages: Vec<_> = payloads
            .iter()
            .map(|(queue, payload)| TransactionMessage {
                handle: self.producer(*queue).0,
                metadata: &[],
                payload,
            })
            .collect();
        let (now, (from, journaled)) = (at_ms(self.ms), self.producer(lane));
        let log = &mut self.log;
        match self.logic.transact(log, from, position, next, &messages, &acks, now) {
            Ok(()) => {}
            Err(Refusal::Full) if self.log.full => return Ok(()),
            Err(refusal) => return Err(format!("{refusal:?}")),
        }
        self.lane_ends.insert(lane, next);
        let completed = self.model.transaction(&payloads, &acks, now.realtime_ns, |handle| {
            self.consumers.get(&handle).map(|client| client.group.clone())
        });
        let (sequence, outcome) = match completed {
            Some(sequence) => (sequence, Outcome::Done),
            None => (0, Outcome::LeaseLost),
        };
        if outcome == Outcome::Done {
            self.model.lanes.entry(journaled).or_default().push_back((position, sequence));
        }
        self.completions.entry(lane).or_default().push_back((position, sequence, outcome));
        self.records()
    }
}
