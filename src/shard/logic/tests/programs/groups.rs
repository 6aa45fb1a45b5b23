//! Programs: groups come, go, and begin elsewhere.

use ringmain_client::protocol::ErrorCode;

use super::super::memory::at_ms;
use super::{Check, Program, QUEUES};
use crate::shard::logic::{ControlResult, GroupCommand, StartAt};

impl Program {
    pub(super) fn start_at(&mut self, queue: u64) -> StartAt {
        let times: Vec<u64> = self.model.queues[&queue].times.values().copied().collect();
        match self.random.below(8) {
            0 | 1 => StartAt::First,
            2 => StartAt::New,
            3 => StartAt::Sequence(self.random.below(times.len() as u64 + 3)),
            4 => StartAt::Last(self.random.below(5)),
            _ => {
                let at_ns = self.random.pick(&times).unwrap_or_else(|| at_ms(self.ms).realtime_ns);
                StartAt::Time(at_ns + self.random.below(3) - 1)
            }
        }
    }

    /// Creates, resets or deletes a group.
    pub(super) fn group(&mut self) -> Check {
        let queue = self.random.pick(&QUEUES).expect("some");
        let group = self.random.pick(&["", "audit", "audit"]).expect("some");
        let start = self.start_at(queue);
        // What was gathered before counts before, and nothing has to be waited for.
        self.logic.flush(&mut self.log);
        self.records()?;
        self.durable_to(self.log.last())?;
        self.log.far.clear();
        let (dry_run, force) = (self.random.below(4) == 0, self.random.below(3) > 0);
        let command = match self.random.below(4) {
            0 => GroupCommand::Create { from: start },
            1 => GroupCommand::Delete { force },
            _ => GroupCommand::Reset { to: start, dry_run, force },
        };
        let is_used = self
            .consumers
            .iter()
            .any(|(with, client)| with.queue == queue && client.group == group && !client.ending);
        let rules = self.model.queues.get_mut(&queue).expect("queue");
        let refused = |code| ControlResult::Refused(code, String::new());
        let there = rules.groups.contains_key(group);
        let place = ControlResult::Group(rules.place(start));
        let expected = match command {
            GroupCommand::Create { .. } if there => refused(ErrorCode::Exists),
            GroupCommand::Delete { .. } if group.is_empty() => refused(ErrorCode::Invalid),
            GroupCommand::Reset { .. } | GroupCommand::Delete { .. } if !there => {
                refused(ErrorCode::NotFound)
            }
            GroupCommand::Reset { dry_run: true, .. } => place,
            GroupCommand::Reset { .. } | GroupCommand::Delete { .. } if is_used && !force => {
                refused(ErrorCode::Busy)
            }
            GroupCommand::Create { .. } => {
                rules.add_group(group, start);
                place
            }
            GroupCommand::Reset { .. } => {
                rules.reset_group(group, start);
                place
            }
            GroupCommand::Delete { .. } => {
                rules.groups.remove(group);
                for (with, client) in &mut self.consumers {
                    client.ending |= with.queue == queue && client.group == group;
                }
                ControlResult::Done
            }
        };
        self.next_request += 1;
        self.controls.insert(self.next_request, expected);
        self.logic.group_command(&mut self.log, self.next_request, queue, group, command);
        self.note()
    }
}
