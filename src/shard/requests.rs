//! What the control thread asks, carried out.

use std::collections::BTreeSet;
use std::os::fd::AsFd;

use ringmain_client::layout::control;
use ringmain_client::pair::LeaseEntry;
use ringmain_client::protocol::{ErrorCode, GroupInfo, HandleKey, JournalInfo, Role, StartAt};
use ringmain_client::wire::Outcome;
use ringmain_client::wire::transaction::FLAG_TRANSACTION;

use super::control::{FromShard, HandleCounters, NewHandle, ToShard};
use super::handle::Handle;
use super::handles::Session;
use super::logic::{ConsumerSpec, ControlResult, GROUPS_MAX, LaneRun, Lsn, Refusal};
use super::memory::{deliverable_bytes, is_deliverable};
use super::thread::{Shard, Stopping, now, ring_doorbells};
use crate::disk::Disk;
use crate::journal::{NoRoom, Room};

/// Groups in one answer: their names have at most 200 bytes, an answer 64 KiB.
const GROUPS_A_PAGE: usize = 128;

impl<D: Disk> Shard<D> {
    /// Carries a request out, or puts it to those that wait for the journal.
    pub(super) fn carry_out(&mut self, request: ToShard) {
        match request {
            ToShard::Create { request, definition } => match self.journal.room() {
                Room::Enough => self.logic.create_queue(&mut self.journal, request, definition),
                Room::Unclear => self.stalled.push_back(ToShard::Create { request, definition }),
                // Nothing could be published to it.
                Room::Lacking(lack) => {
                    let result = ControlResult::Refused(ErrorCode::Limit, self.no_room(&lack));
                    self.outbox.send(FromShard::Done { request, result });
                }
            },
            ToShard::Edit { request, queue, edit } => {
                self.logic.edit_queue(&mut self.journal, request, queue, edit);
            }
            ToShard::Delete { request, queue } => {
                self.deleting.push((request, queue));
                self.logic.delete_queue(&mut self.journal, request, queue);
            }
            ToShard::Purge { request, queue } => {
                self.logic.purge(&mut self.journal, request, queue);
            }
            ToShard::Redrive { request, queue, count, origins } => {
                self.logic.redrive(&mut self.journal, request, queue, count, origins);
            }
            ToShard::Group { request, queue, group, command } => {
                self.logic.group_command(&mut self.journal, request, queue, &group, command);
            }
            ToShard::Groups { request, queue, wanted, after } => {
                let groups = self.groups(queue, wanted.as_deref(), after.as_deref());
                self.outbox.send(FromShard::Groups { request, groups });
            }
            ToShard::Inform { request, queues, handles } => {
                self.inform(request, &queues, handles);
            }
            ToShard::Figures { request } => {
                let journal = Box::new(self.figures());
                self.outbox.send(FromShard::Figures { request, journal });
            }
            ToShard::Link { session, link, bell } => {
                if let Err(error) = self.journal.disk().watch(bell.as_fd()) {
                    let text = format!(
                        "shard {}: a client's eventfd cannot be watched: {error}; raise the limit of open files \
                         (ulimit -n)",
                        self.number()
                    );
                    self.outbox.send(FromShard::Log { text });
                }
                self.handles.sessions.insert(session, Session::new(link, bell));
            }
            ToShard::Unlink { session } => self.unlink(session),
            ToShard::Attach { request, handle } => self.attach(request, handle),
            ToShard::Adopted => {
                self.logic.start(now());
                self.is_started = true;
            }
            ToShard::Gone { key, died } => self.close(key, died),
            ToShard::Stop { close } => {
                self.stopping.get_or_insert_with(|| Stopping::now(close));
            }
        }
    }

    /// A full journal into which nothing fits any more, not even what would make room: whoever waits for it is told, and may ask
    /// again. Whether anybody was.
    pub(super) fn refuse_for_room(&mut self) -> bool {
        if self.stalled.is_empty() && !self.logic.has_commands() {
            return false;
        }
        let Some(lack) = self.journal.is_stuck() else { return false };
        let result = ControlResult::Refused(ErrorCode::Limit, self.no_room(&lack));
        self.logic.refuse_commands(&result);
        for stalled in std::mem::take(&mut self.stalled) {
            match stalled {
                ToShard::Attach { request, handle } => {
                    self.refuse_attach(request, handle.key, result.clone());
                }
                ToShard::Create { request, .. } => {
                    self.outbox.send(FromShard::Done { request, result: result.clone() });
                }
                other => self.stalled.push_back(other),
            }
        }
        true
    }

    /// What is missing, and what to do.
    fn no_room(&self, lack: &NoRoom) -> String {
        let NoRoom { files, file_bytes, free_bytes, detail } = lack;
        let bytes = files.saturating_mul(*file_bytes);
        let free = free_bytes.map(|free| format!("; {free} bytes are free")).unwrap_or_default();
        let why = detail.as_ref().map(|detail| format!(" ({detail})")).unwrap_or_default();
        let files =
            if *files == 1 { "one more file".into() } else { format!("{files} more files") };
        let needs = format!("{bytes} bytes for {files} of {file_bytes}{free}{why}");
        match &self.place {
            Some(place) => format!(
                "no room for the journal in {}: it needs {needs}; free space there, or start the daemon with a smaller \
                 --segment-size",
                place.display()
            ),
            None => format!(
                "no room for the messages of queues in memory: they need {needs}; delete queues, have messages \
                 acknowledged, or start the daemon with a higher --limit-bytes or a smaller --segment-size"
            ),
        }
    }

    fn refuse_attach(&self, request: u64, key: HandleKey, result: ControlResult) {
        self.outbox.send(FromShard::Attached { request, key, result, group_created: false });
    }

    fn unlink(&mut self, session: u64) {
        let Some(found) = self.handles.sessions.get_mut(&session) else { return };
        found.is_leaving = true;
        if found.is_empty()
            && let Some(found) = self.handles.sessions.remove(&session)
        {
            self.journal.disk().unwatch(found.bell.as_fd());
        }
    }

    /// A handle was given back, or its process is dead: what it sent is taken first.
    fn close(&mut self, key: HandleKey, died: bool) {
        let is_this = |stalled: &ToShard| matches!(stalled, ToShard::Attach { handle, .. } if handle.key == key);
        if let Some(at) = self.stalled.iter().position(is_this)
            && let Some(ToShard::Attach { request, .. }) = self.stalled.remove(at)
        {
            let text = "the handle was given back meanwhile".to_owned();
            let result = ControlResult::Refused(ErrorCode::Closed, text);
            return self.refuse_attach(request, key, result);
        }
        let Some(place) = self.handles.place(key) else {
            // Closed before, for what its client did or with its queue.
            self.outbox.send(FromShard::Released { key });
            return;
        };
        if let Some(handle) = self.handles.get_mut(place) {
            handle.closing = Some(died);
            handle.is_drained = false;
        }
        self.handles.list(place);
        self.handles.touch(place);
    }

    /// Opens a handle, or puts it to those that have to wait.
    pub(super) fn attach(&mut self, request: u64, new: Box<NewHandle>) {
        let (key, adopted) = (new.key, new.adopted);
        if !adopted && !new.producer.is_empty() && !self.takes_name(request, &new) {
            return;
        }
        let named = !adopted && !new.producer.is_empty();
        let opened = match new.role() {
            Role::Produce if new.producer.is_empty() => {
                self.logic.open_producer(key, new.lane).map(|()| false)
            }
            Role::Produce if adopted => {
                let adopted = self.logic.adopt_named_producer(key, new.lane, &new.producer);
                adopted.map(|()| false)
            }
            Role::Produce => {
                let (lane, name) = (new.lane, &new.producer);
                let log = &mut self.journal;
                let opened = self.logic.open_named_producer(log, key, lane, name, request, now());
                opened.map(|()| false)
            }
            Role::Consume => {
                let status = new.memory.pair.status();
                let credit = if adopted {
                    u32::try_from(status.credit()).unwrap_or(u32::MAX)
                } else {
                    new.credit
                };
                let from = if adopted && new.browse { shown_up_to(&new) } else { new.from };
                let spec = ConsumerSpec {
                    group: new.group.clone(),
                    from,
                    credit,
                    leases: new.memory.pair.geometry().leases(),
                    browse: new.browse,
                    adopted,
                };
                status.set_credit(u64::from(credit));
                self.logic.open_consumer(&mut self.journal, key, &spec)
            }
        };
        let group_created = opened == Ok(true);
        let result = match opened {
            Ok(_) => self.open(*new),
            Err(Refusal::NoGroup) => {
                // It ended when its group was deleted; the client still has to give it back.
                new.memory.close(control::CLOSED_GROUP_DELETED);
                ControlResult::Done
            }
            Err(Refusal::GroupLimit) => {
                let text = format!("a queue has at most {GROUPS_MAX} groups: delete one first");
                ControlResult::Refused(ErrorCode::Limit, text)
            }
            Err(Refusal::Full | Refusal::Limit) => {
                self.stalled.push_back(ToShard::Attach { request, handle: new });
                return;
            }
            Err(Refusal::JournalFailed(errno)) => ControlResult::JournalFailed(errno),
            Err(Refusal::Unknown) => {
                new.memory.close(control::CLOSED_DELETED);
                let text = "the queue was deleted meanwhile".to_owned();
                ControlResult::Refused(ErrorCode::NotFound, text)
            }
        };
        if named && result == ControlResult::Done {
            // The answer comes when the attachment is durable.
            self.naming.push((request, key));
        } else if !adopted {
            let attached = FromShard::Attached { request, key, result, group_created };
            let lsn = self.logic.group_lsn(key);
            if lsn > self.journal.durable() {
                self.attaching.push((lsn, attached));
            } else {
                self.outbox.send(attached);
            }
        } else if result != ControlResult::Done {
            self.outbox.send(FromShard::Released { key });
        }
    }

    /// Whether the queue remembers the name of a producer; says why if not.
    fn takes_name(&self, request: u64, new: &NewHandle) -> bool {
        let why = self.logic.why_not_named(new.key.queue, &new.producer, now());
        let Some((code, text)) = why else { return true };
        self.refuse_attach(request, new.key, ControlResult::Refused(code, text));
        false
    }

    /// The attachment of a named producer has come to its end.
    fn attached(&mut self, request: u64, key: HandleKey, result: ControlResult) {
        if !matches!(result, ControlResult::Named { .. })
            && let Some(place) = self.handles.place(key)
        {
            self.logic.close_handle(&mut self.handles, key, now());
            self.forget(place);
        }
        self.outbox.send(FromShard::Attached { request, key, result, group_created: false });
    }

    /// The logic knows it: now its rings.
    fn open(&mut self, new: NewHandle) -> ControlResult {
        let (key, adopted, role, browse) = (new.key, new.adopted, new.role(), new.browse);
        if !self.handles.sessions.contains_key(&new.session) {
            self.logic.close_handle(&mut self.handles, key, now());
            let text = "internal error of the daemon (no link): please report it".to_owned();
            return ControlResult::Refused(ErrorCode::Internal, text);
        }
        let handle = Handle::new(key, new.memory, new.session, new.ready_index, new.wake_mode);
        let handle = match handle {
            Ok(handle) if handle.closed().is_none() => handle,
            // It was closed for what its client did; the client still has to give it back.
            Ok(_) => {
                self.logic.close_handle(&mut self.handles, key, now());
                return ControlResult::Done;
            }
            Err(fault) => {
                self.logic.close_handle(&mut self.handles, key, now());
                self.outbox.send(FromShard::Fault { key, what: fault.to_string() });
                return ControlResult::Done;
            }
        };
        let place = self.handles.insert(handle);
        if adopted {
            match role {
                Role::Produce => self.adopt_lane(place),
                Role::Consume if browse => {}
                Role::Consume => self.adopt_leases(place),
            }
        }
        self.handles.touch(place);
        ControlResult::Done
    }

    /// What the journal has of a lane is completed if it was not, and not taken again.
    fn adopt_lane(&mut self, place: usize) {
        let Some(handle) = self.handles.get_mut(place) else { return };
        let rejects = self.logic.rejects(handle.key.queue);
        let runs = self.logic.lane_runs(handle.key, handle.up_position());
        let completed = handle.last_completed();
        let journaled = runs.last().map(last_of).max(completed);
        let mut runs = runs.into_iter().peekable();
        let (mut metadata, mut payload) = (Vec::new(), Vec::new());
        while journaled.is_some_and(|last| handle.up_position() <= last) {
            let (position, flags) = match handle.take(&mut metadata, &mut payload) {
                Ok(Some((position, _, flags))) => (position, flags),
                Ok(None) => break,
                Err(fault) => {
                    handle.fault = Some(fault.to_string());
                    break;
                }
            };
            while runs.peek().is_some_and(|run| last_of(run) < position) {
                runs.next();
            }
            let sequence = runs.peek().and_then(|run| sequence_at(run, position));
            if completed.is_some_and(|last| position <= last) {
                handle.release_completed(position);
            } else if let Some(sequence) = sequence {
                handle.completed(position, position, 1, sequence, Outcome::Done, 0);
            } else {
                // It was refused, and its successors were not: it is too long, or the queue was full, or it was stored before under its
                // own sequence. A queue that rejects has no names.
                let geometry = *handle.memory.pair.geometry();
                let (metadata, payload) = (&metadata[..], payload.len());
                let fits = is_deliverable(&geometry, metadata.len(), payload);
                let (outcome, detail) = if flags & FLAG_TRANSACTION != 0 {
                    // Whatever was wrong with it, nothing of it is done.
                    (Outcome::LeaseLost, 0)
                } else if !fits {
                    (Outcome::TooLarge, deliverable_bytes(&geometry))
                } else if rejects {
                    (Outcome::QueueFull, 0)
                } else {
                    self.logic.refused_before(&self.journal, handle.key, metadata, payload)
                };
                handle.completed(position, position, 1, 0, outcome, detail);
            }
        }
        let (key, position) = (handle.key, handle.released_position());
        self.logic.released(key, position);
    }

    /// The lease table is the truth: a message that was delivered is still with its consumer.
    fn adopt_leases(&mut self, place: usize) {
        let Some(handle) = self.handles.get(place) else { return };
        let (key, sent) = (handle.key, handle.down_position());
        let table = handle.memory.pair.leases();
        for slot in 0..table.entries() {
            let Some(LeaseEntry { attempt, sequence, position }) = table.get(slot) else {
                continue;
            };
            let was_sent = position < sent;
            if !was_sent || !self.logic.adopt_lease(key, slot, sequence, attempt, now()) {
                table.set(slot, None);
            }
        }
    }

    /// Clients that attached to new groups are answered when these are stored.
    pub(super) fn answer_attached(&mut self, durable: Lsn) {
        if self.attaching.is_empty() {
            return;
        }
        let failed = self.logic.failed().is_some();
        for (lsn, attached) in std::mem::take(&mut self.attaching) {
            if lsn <= durable || failed {
                self.outbox.send(attached);
            } else {
                self.attaching.push((lsn, attached));
            }
        }
    }

    /// A page of groups, by name.
    fn groups(
        &self,
        queue: u64,
        wanted: Option<&str>,
        after: Option<&str>,
    ) -> Option<Vec<GroupInfo>> {
        let mut groups = self.logic.groups(queue, wanted, now().realtime_ns)?;
        groups.retain(|group| after.is_none_or(|after| *group.group > *after));
        groups.sort_unstable_by(|a, b| a.group.cmp(&b.group));
        groups.truncate(GROUPS_A_PAGE);
        Some(groups)
    }

    /// Consumers of groups that are deleted.
    pub(super) fn end_consumers(&mut self) {
        for key in std::mem::take(&mut self.handles.ended) {
            if let Some(place) = self.handles.place(key) {
                self.end_handle(place, control::CLOSED_GROUP_DELETED);
            }
        }
    }

    fn figures(&self) -> JournalInfo {
        let figures = self.journal.statistics();
        JournalInfo {
            shard: self.number(),
            folder: self.place.as_ref().map(|place| place.display().to_string()),
            segments: figures.segments as u64,
            spare_segments: figures.spares as u64,
            file_bytes: figures.file_bytes,
            live_bytes: figures.live_bytes,
            written_bytes: figures.written_bytes,
            copied_bytes: figures.copied_bytes,
            cleaned_segments: figures.cleaned,
            freed_segments: figures.freed,
            stalled_groups: u32::try_from(self.logic.stalls().count()).unwrap_or(u32::MAX),
        }
    }

    fn inform(&self, request: u64, queues: &[u64], handles: bool) {
        let infos = queues.iter().filter_map(|id| Some((*id, self.logic.info(*id)?))).collect();
        let mut counters = Vec::new();
        if handles {
            let wanted: BTreeSet<u64> = queues.iter().copied().collect();
            let of = self.handles.all().filter(|(_, handle)| wanted.contains(&handle.key.queue));
            counters.extend(of.map(|(_, handle)| HandleCounters {
                key: handle.key,
                messages: handle.messages,
                bytes: handle.bytes,
                unfinished: handle.unfinished(),
            }));
        }
        self.outbox.send(FromShard::Information {
            request,
            shard: self.number(),
            queues: infos,
            handles: counters,
        });
    }

    /// Answers requests that have come to their ends; the handles of a queue that is deleted end with it.
    pub(super) fn answer_requests(&mut self) {
        for (request, result) in std::mem::take(&mut self.handles.results) {
            if let Some(index) = self.naming.iter().position(|(one, _)| *one == request) {
                let (_, key) = self.naming.swap_remove(index);
                self.attached(request, key, result);
                continue;
            }
            let deleted = self.deleting.iter().position(|(deletion, _)| *deletion == request);
            if let Some(index) = deleted {
                let (_, queue) = self.deleting.swap_remove(index);
                if result == ControlResult::Done {
                    self.end_handles(queue);
                }
            }
            self.outbox.send(FromShard::Done { request, result });
        }
    }

    fn end_handles(&mut self, queue: u64) {
        let of = self.handles.all().filter(|(_, handle)| handle.key.queue == queue);
        let places: Vec<usize> = of.map(|(place, _)| place).collect();
        for place in places {
            self.end_handle(place, control::CLOSED_DELETED);
        }
    }

    fn end_handle(&mut self, place: usize, why: u64) {
        let Some(handle) = self.handles.get_mut(place) else { return };
        let key = handle.key;
        handle.flush();
        handle.close(why);
        ring_doorbells(&self.outbox, handle);
        self.logic.close_handle(&mut self.handles, key, now());
        self.forget(place);
    }
}

/// Where one who looks on goes on under another broker.
fn shown_up_to(new: &NewHandle) -> StartAt {
    let Some(shown) = new.memory.pair.leases().get(0) else { return new.from };
    // The broker that is gone wrote the entry before it sent the message.
    let was_sent = shown.position < new.memory.sent_position();
    StartAt::Sequence(shown.sequence + u64::from(was_sent))
}

fn last_of(run: &LaneRun) -> u64 {
    run.first_position + run.stride * u64::from(run.count.saturating_sub(1))
}

fn sequence_at(run: &LaneRun, position: u64) -> Option<u64> {
    let distance = position.checked_sub(run.first_position)?;
    // A run of one message may have any stride.
    let nth = distance.checked_div(run.stride).unwrap_or(0);
    let is_there = nth * run.stride == distance && nth < u64::from(run.count);
    is_there.then_some(run.first_sequence + nth)
}
