//! Requests about the groups of a queue.

use ringmain_client::protocol::{ErrorCode, GroupInfo, Kind, Reply, Role};

use super::super::broker::{Broker, bug};
use super::super::connections::{Answer, Failure, refuse};
use super::super::link::LinkLost;
use super::super::peer::Credentials;
use super::{BrokeredQueue, ControlResult, Waiting, failure, no_right};
use crate::shard::control::ToShard;
use crate::shard::logic::GroupCommand;

/// Longest name of a group in bytes.
const GROUP_BYTES_MAX: usize = 200;

/// Refuses what cannot be the name of a group; the default group has an empty one.
pub(super) fn check_group_name(name: &str) -> Result<(), Failure> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if name.len() > GROUP_BYTES_MAX || !name.bytes().all(good) {
        let text = format!(
            "group name: at most {GROUP_BYTES_MAX} characters of A-Z a-z 0-9 . _ - are allowed"
        );
        return refuse(ErrorCode::Invalid, text);
    }
    Ok(())
}

impl Broker {
    /// A page of the groups of a queue, or one of them, for those who may see the queue.
    pub(in super::super) fn brokered_groups(
        &mut self,
        number: u64,
        user: &Credentials,
        id: u64,
        wanted: Option<String>,
        after: Option<String>,
    ) -> Result<Option<Answer>, Failure> {
        let Some(queue) = self.brokered.queues.get(&id) else {
            return Err(bug("queue without entry").into());
        };
        if !queue.rights(user).may_see() {
            return no_right(queue, "read, write or execute");
        }
        let shard = queue.entry.shard;
        self.check_shard(shard)?;
        let one = wanted.clone();
        let waiting = Waiting::Groups { connection: number, queue: id, one };
        let request = self.brokered.request(waiting);
        self.brokered.tell(shard, ToShard::Groups { request, queue: id, wanted, after });
        Ok(None)
    }

    /// Whoever may consume may create a group, as consuming does; the other requests are for those who may manage the queue.
    pub(in super::super) fn brokered_group_command(
        &mut self,
        number: u64,
        user: &Credentials,
        id: u64,
        group: String,
        command: GroupCommand,
    ) -> Result<Option<Answer>, Failure> {
        check_group_name(&group)?;
        let is_creation = matches!(command, GroupCommand::Create { .. });
        let may_consume =
            |queue: &BrokeredQueue| queue.rights(user).may_attach(Kind::Spsc, Role::Consume);
        let shard = match self.brokered.queues.get(&id) {
            Some(queue) if is_creation && !may_consume(queue) => return no_right(queue, "read"),
            Some(queue) if is_creation => self.open_shard(queue)?,
            _ => self.managed(user, id)?,
        };
        self.check_shard(shard)?;
        let request = self.brokered.request(Waiting::Group { connection: number, queue: id });
        self.brokered.tell(shard, ToShard::Group { request, queue: id, group, command });
        Ok(None)
    }

    pub(super) fn on_group_done(
        &mut self,
        connection: u64,
        result: &ControlResult,
    ) -> Result<(), LinkLost> {
        let outcome = match (result, failure(result)) {
            (_, Some(failure)) => Err(failure),
            (ControlResult::Group(place), None) => Ok(Some(Answer::of(Reply::Group(*place)))),
            _ => Ok(Some(Answer::of(Reply::Done))),
        };
        self.answer(connection, outcome)
    }

    /// The shard will not answer.
    pub(super) fn on_groups_refused(&mut self, request: u64, text: &str) -> Result<(), LinkLost> {
        match self.brokered.waiting.remove(&request) {
            Some(Waiting::Groups { connection, .. }) => {
                self.answer(connection, refuse(ErrorCode::Io, text))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn on_groups(
        &mut self,
        request: u64,
        groups: Option<Vec<GroupInfo>>,
    ) -> Result<(), LinkLost> {
        let Some(Waiting::Groups { connection, queue, one }) =
            self.brokered.waiting.remove(&request)
        else {
            return Ok(());
        };
        let queue = self.brokered.queues.get(&queue).map(|queue| queue.entry.name.as_str());
        let outcome = match (groups, queue, one) {
            (None, ..) | (_, None, _) => {
                refuse(ErrorCode::NotFound, "the queue was deleted meanwhile")
            }
            (Some(groups), Some(queue), Some(group)) if groups.is_empty() => {
                let group = if group.is_empty() { "default" } else { &group };
                let text = format!(
                    "queue {queue} has no group {group}; see `ringmain group list {queue}`"
                );
                refuse(ErrorCode::NotFound, text)
            }
            (Some(groups), ..) => Ok(Some(Answer::of(Reply::Groups(groups)))),
        };
        self.answer(connection, outcome)
    }
}
