//! Programs: producers with names.

use std::collections::VecDeque;

use ringmain_client::layout::metadata::OwnSequence;
use ringmain_client::wire::Outcome;

use super::super::memory::{at_ms, handle};
use super::{Check, NamedClient, Program, UNLIMITED};
use crate::shard::logic::Refusal;

impl Program {
    /// Somebody attaches under a name; whoever has it stays attached now and then, and is fenced.
    pub(super) fn attach_named(&mut self) -> Check {
        let queue = self.random.pick(&UNLIMITED).expect("some");
        let name = self.random.pick(&["a", "b"]).expect("some");
        self.next_handle = if self.next_handle > 250 { 10 } else { self.next_handle + 1 };
        let producer = handle(queue, self.next_handle);
        if self.consumers.contains_key(&producer) || self.named.contains_key(&producer) {
            return Ok(());
        }
        self.next_request += 1;
        let (request, lane) = (self.next_request, 1000 + self.next_request);
        let now = at_ms(self.ms);
        let log = &mut self.log;
        match self.logic.open_named_producer(log, producer, lane, name, request, now) {
            Err(Refusal::Full) if self.log.full => return Ok(()),
            opened => opened.map_err(|refusal| format!("{refusal:?}"))?,
        }
        let rules = self.model.queues.get_mut(&queue).expect("queue");
        let named = rules.named.entry(name.to_owned()).or_default();
        named.epoch += 1;
        let client = NamedClient {
            name: name.to_owned(),
            lane,
            request,
            epoch: named.epoch,
            last: named.last,
            id: None,
            completions: VecDeque::new(),
        };
        self.named.insert(producer, client);
        self.note()
    }

    pub(super) fn detach_named(&mut self) {
        let handles: Vec<_> = self.named.keys().copied().collect();
        let Some(handle) = self.random.pick(&handles) else { return };
        self.logic.close_handle(&mut self.port, handle, at_ms(self.ms));
        self.named.remove(&handle);
    }

    /// Own sequences around the last one: new ones, gaps, and some again.
    pub(super) fn publish_named(&mut self) -> Check {
        let told: Vec<_> = self.named.iter().filter(|(_, client)| client.id.is_some()).collect();
        let told: Vec<_> = told.into_iter().map(|(handle, _)| *handle).collect();
        let Some(handle) = self.random.pick(&told) else { return Ok(()) };
        for _ in 0..=self.random.below(4) {
            let client = self.named.get_mut(&handle).expect("attached");
            let rules = self.model.queues.get_mut(&handle.queue).expect("queue");
            let last = rules.named[&client.name].last;
            let own = (last + 1 + self.random.below(3)).saturating_sub(self.random.below(4)).max(1);
            let position = *self.lane_ends.entry(client.lane).or_default();
            let next = position + 1 + self.random.below(2);
            let payload = format!("{}/{own}/{position}", client.name).into_bytes();
            let producer = client.id.expect("told");
            let entry = OwnSequence { producer, epoch: client.epoch, sequence: own }.encode();
            let now = at_ms(self.ms);
            let log = &mut self.log;
            match self.logic.publish(log, handle, position, next, 0, &entry, &payload, now) {
                Ok(()) => {}
                Err(Refusal::Full) if self.log.full => return Ok(()),
                Err(refusal) => return Err(format!("{refusal:?}")),
            }
            self.lane_ends.insert(client.lane, next);
            let (outcome, sequence) =
                rules.named(&client.name, client.epoch, own, &payload, now.realtime_ns);
            client.completions.push_back((position, sequence, outcome, own));
            if outcome == Outcome::Done {
                self.model.lanes.entry(client.lane).or_default().push_back((position, sequence));
            }
        }
        self.records()
    }
}
