//! Editing, purging, redriving.

use ringmain_client::protocol::{DeliverySpec, ErrorCode};

use super::super::broker::{Broker, bug};
use super::super::connections::{Answer, Failure, refuse};
use super::super::peer::Credentials;
use super::{BrokeredQueue, State, Waiting, no_right};
use crate::shard::control::ToShard;
use crate::shard::logic::{LimitsEdit, QueueEdit};

impl Broker {
    /// The shard of a queue, for those who may manage it.
    pub(super) fn managed(&self, user: &Credentials, id: u64) -> Result<u32, Failure> {
        let Some(queue) = self.brokered.queues.get(&id) else {
            return Err(bug("queue without entry").into());
        };
        if !queue.rights(user).may_manage() {
            return no_right(queue, "execute (manage)");
        }
        self.open_shard(queue)
    }

    /// The shard of a queue that is in use.
    pub(super) fn open_shard(&self, queue: &BrokeredQueue) -> Result<u32, Failure> {
        match queue.state {
            State::Open => Ok(queue.entry.shard),
            State::Creating => refuse(
                ErrorCode::Busy,
                format!("queue {} is being created: try again later", queue.entry.name),
            ),
            State::Deleting => {
                refuse(ErrorCode::Closed, format!("queue {} is being deleted", queue.entry.name))
            }
        }
    }

    pub(in super::super) fn edit_brokered(
        &mut self,
        number: u64,
        user: &Credentials,
        id: u64,
        delivery: &DeliverySpec,
    ) -> Result<Option<Answer>, Failure> {
        let shard = self.managed(user, id)?;
        self.check_shard(shard)?;
        let Some(queue) = self.brokered.queues.get(&id) else {
            return Err(bug("queue without entry").into());
        };
        let delivery = self.checked_delivery(user, &queue.entry, Some(id), delivery)?;
        let limits = LimitsEdit::asked(&delivery);
        let edit = QueueEdit {
            max_deliveries: delivery.max_deliveries,
            dead_letter: delivery.dead_letter,
            lease_ms: delivery.lease_ms,
            limits,
            ttl_ms: delivery.ttl_ms,
        };
        let request = self.brokered.request(Waiting::Edit { connection: number, queue: id });
        self.brokered.tell(shard, ToShard::Edit { request, queue: id, edit });
        Ok(None)
    }

    pub(in super::super) fn purge_brokered(
        &mut self,
        number: u64,
        user: &Credentials,
        id: u64,
    ) -> Result<Option<Answer>, Failure> {
        let shard = self.managed(user, id)?;
        self.check_shard(shard)?;
        let request = self.brokered.request(Waiting::Count { connection: number, queue: id });
        self.brokered.tell(shard, ToShard::Purge { request, queue: id });
        Ok(None)
    }

    pub(in super::super) fn redrive_brokered(
        &mut self,
        number: u64,
        user: &Credentials,
        id: u64,
        count: u64,
    ) -> Result<Option<Answer>, Failure> {
        let shard = self.managed(user, id)?;
        self.check_shard(shard)?;
        let request = self.brokered.request(Waiting::Count { connection: number, queue: id });
        let queues = self.brokered.queues.iter();
        let origins = queues.filter(|(_, queue)| queue.rights(user).may_send());
        let origins = origins.map(|(id, _)| *id).collect();
        self.brokered.tell(shard, ToShard::Redrive { request, queue: id, count, origins });
        Ok(None)
    }
}
