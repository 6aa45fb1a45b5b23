//! Programs: TTL, delays, leases that end.

use std::time::Duration;

use ringmain_client::layout::metadata::Metadata;

use super::super::memory::at_ms;
use super::super::model::DELAY_MS_MAX;
use super::{Check, Program};

impl Program {
    /// Most messages have neither a TTL nor a delay.
    pub(super) fn times(&mut self) -> (Vec<u8>, (Option<u64>, Option<u64>)) {
        let ttl_ms = (self.random.below(6) == 0).then(|| 1 + self.random.below(150));
        let delay_ms = (self.random.below(6) == 0).then(|| 1 + self.random.below(DELAY_MS_MAX));
        let metadata = Metadata {
            ttl: ttl_ms.map(Duration::from_millis),
            delay: delay_ms.map(Duration::from_millis),
            ..Metadata::default()
        };
        let mut bytes = Vec::new();
        metadata.encode(&mut bytes).expect("short");
        (bytes, (ttl_ms, delay_ms))
    }

    pub(super) fn time(&mut self) -> Check {
        self.ms += self.random.below(25);
        let (ms, unseen) = (self.ms, self.port.unseen.clone());
        for queue in self.model.queues.values_mut() {
            queue.come_back(
                |_, _, deadline_ms| deadline_ms <= ms,
                |with, slot| !unseen.contains(&(*with, slot)),
            );
        }
        self.gone.retain(|gone| gone.deadline_ms > ms);
        let due = self.logic.next_deadline();
        self.logic.on_time(&mut self.port, at_ms(ms));
        let leases = self.port.leases.len();
        if due.is_none_or(|due| due > ms * 1_000_000) && leases < self.held().count() {
            return Err("the deadline is late".to_owned());
        }
        self.events()
    }
}
