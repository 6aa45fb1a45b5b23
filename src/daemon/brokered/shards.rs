//! The shards' threads: starting them, what they find, stopping them; the files of the journal in memory.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ringmain_client::protocol::ErrorCode;
use ringmain_client::sys::eventfd::EventFd;

use super::super::broker::Broker;
use super::super::connections::{Failure, refuse};
use super::super::entries::{BrokeredQueueEntry, Key, SegmentEntry, ShardEntry, encode};
use super::super::link::{Item, LinkLost};
use super::super::log::log;
use super::super::queues::{memory_failure, no_room};
use super::{BrokeredQueue, State, Waiting};
use crate::shard::control::{Outbox, StartError, Started, ToShard, Trouble};
use crate::shard::logic::{ControlResult, QueueDefinition};
use crate::shard::memory::PageMemory;
use crate::shard::start::{self, Start, Storage};

/// The durable queues.
pub(in super::super) const SHARD_DURABLE: u32 = 0;
/// The brokered queues that are not durable.
pub(in super::super) const SHARD_MEMORY: u32 = 1;
/// All of them.
pub(in super::super) const SHARDS: [u32; 2] = [SHARD_DURABLE, SHARD_MEMORY];

/// A shard's thread, as the control thread sees it.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) outbox: Outbox<ToShard>,
    /// Its page, writable.
    pub(super) page: OwnedFd,
    progress: Progress,
    /// Whether the keeper has all its queues.
    known: bool,
    /// Of the journal, while it is open.
    in_trouble: Option<Trouble>,
}

#[derive(Debug, PartialEq, Eq)]
enum Progress {
    Opening,
    Open,
    Unavailable(String),
    Stopped { messages: u64 },
}

impl Shard {
    /// Why nothing can be asked of it.
    pub(super) fn trouble(&self) -> Option<String> {
        match &self.progress {
            Progress::Opening | Progress::Open => None,
            Progress::Unavailable(text) => Some(text.clone()),
            Progress::Stopped { .. } => Some("the daemon is stopping".to_owned()),
        }
    }

    /// Whether messages can be stored, now or later.
    pub(super) fn is_sound(&self) -> bool {
        self.trouble().is_none() && !matches!(self.in_trouble, Some(Trouble::Failed(_)))
    }

    /// Whether it answers at once.
    pub(super) fn is_open(&self) -> bool {
        self.progress == Progress::Open
    }

    /// What does not work.
    pub(super) fn trouble_in_words(&self) -> Option<String> {
        match &self.in_trouble {
            Some(Trouble::Failed(text) | Trouble::Full(text)) => Some(text.clone()),
            None => self.trouble(),
        }
    }
}

/// Files of journals in memory, held by the keeper.
#[derive(Debug, Default)]
pub(super) struct Segments {
    /// {shard, name} to its number in the store.
    numbers: BTreeMap<(u32, String), u64>,
    next: u64,
    /// For shards that are not started yet.
    pub(super) found: BTreeMap<u32, Vec<(String, OwnedFd)>>,
}

impl Segments {
    pub(super) fn adopt(&mut self, number: u64, entry: SegmentEntry, memory: OwnedFd) {
        self.next = self.next.max(number + 1);
        self.numbers.insert((entry.shard, entry.name.clone()), number);
        self.found.entry(entry.shard).or_default().push((entry.name, memory));
    }
}

impl super::Brokered {
    pub(super) fn stopped(&mut self, shard: u32, messages: u64) {
        if let Some(shard) = self.shards.get_mut(&shard)
            && !matches!(shard.progress, Progress::Unavailable(_))
        {
            shard.progress = Progress::Stopped { messages };
        }
    }

    pub(super) fn in_trouble(&mut self, shard: u32, trouble: Option<Trouble>) {
        if let Some(shard) = self.shards.get_mut(&shard) {
            shard.in_trouble = trouble;
        }
    }

    /// Whether a shard is being waited for that has never been heard of.
    fn is_unknown(&self) -> bool {
        self.shards.values().any(|shard| !shard.known && shard.progress == Progress::Opening)
    }

    fn is_running(&self) -> bool {
        let running = |shard: &Shard| matches!(shard.progress, Progress::Opening | Progress::Open);
        self.shards.values().any(running)
    }

    /// Sleeps until a shard says something, or until then.
    fn wait(&self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1));
        let mut polled = [PollFd::new(self.inbox.descriptor(), PollFlags::POLLIN)];
        match poll(&mut polled, timeout.unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => {}
            // Nothing that could be done about it; the deadline bounds the loop.
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

impl Broker {
    /// Starts a shard if it does not run.
    pub(super) fn want_shard(&mut self, shard: u32) -> Result<(), Failure> {
        if self.brokered.shards.contains_key(&shard) {
            return Ok(());
        }
        let page = PageMemory::create(shard).map_err(|error| memory_failure(&error))?;
        let item = Item {
            key: Key::Shard(shard).bytes(),
            bytes: encode(&ShardEntry { known: false }),
            descriptors: 1,
        };
        self.keeper.apply_with(Vec::new(), vec![item], &[page.as_fd()])?.or_else(no_room)?;
        self.start_shard(shard, page, false)
            .or_else(|reason| refuse(ErrorCode::Io, format!("the shard cannot start: {reason}")))?;
        self.brokered.tell(shard, ToShard::Adopted);
        Ok(())
    }

    /// Starts a shard's thread with this page.
    pub(super) fn start_shard(
        &mut self,
        shard: u32,
        page: OwnedFd,
        known: bool,
    ) -> Result<(), String> {
        let mapped = PageMemory::map(page.as_fd()).map_err(|error| error.to_string())?;
        let bell = EventFd::new().map(Arc::new).map_err(|error| error.to_string())?;
        let (sender, inbox) = channel();
        let config = &self.brokered.config;
        let storage = if shard == SHARD_DURABLE {
            let folder = config.data_dir.as_ref().map(|path| path.join(format!("shard-{shard}")));
            Storage::Folder {
                path: folder.ok_or("no data folder")?,
                backend: config.shards.backend,
                again: known,
            }
        } else {
            let files = self.brokered.segments.found.remove(&shard).unwrap_or_default();
            Storage::Memory { files, bytes_max: self.config.limits.bytes }
        };
        let start = Start {
            shard,
            storage,
            page: mapped,
            wake_mode: self.wake_mode,
            cpu: config.shards.cpu,
            segment_bytes: config.shards.segment_bytes,
            inbox,
            bell: Arc::clone(&bell),
            outbox: self.brokered.outbox(),
        };
        start::start(start).map_err(|error| error.to_string())?;
        let outbox = Outbox::new(sender, bell);
        let progress = Progress::Opening;
        self.brokered
            .shards
            .insert(shard, Shard { outbox, page, progress, known, in_trouble: None });
        Ok(())
    }

    /// The first time that a journal is opened its queues are not known before: whoever asks for them would be told that there
    /// are none. The error is the journal's.
    pub(in super::super) fn await_shards(&mut self) -> Result<Option<StartError>, LinkLost> {
        while self.brokered.is_unknown() {
            self.brokered.wait(Instant::now() + Duration::from_secs(1));
            for message in self.brokered.inbox.take() {
                if let super::FromShard::Started { result: Err(error), .. } = message {
                    return Ok(Some(error));
                }
                self.on_shard(message)?;
            }
        }
        Ok(None)
    }

    pub(super) fn on_started(
        &mut self,
        shard: u32,
        result: Result<Started, StartError>,
    ) -> Result<(), LinkLost> {
        match result {
            Ok(started) => {
                if !started.text.is_empty() {
                    log!("{}", started.text);
                }
                self.counters.skip_queues(started.next_queue);
                self.reconcile(shard, started.queues)?;
                // What was being created when a session ended is there now, or is not.
                self.session_ended = true;
                if let Some(shard) = self.brokered.shards.get_mut(&shard) {
                    shard.progress = Progress::Open;
                    shard.known = true;
                }
                let bytes = encode(&ShardEntry { known: true });
                let item = Item { key: Key::Shard(shard).bytes(), bytes, descriptors: 0 };
                self.keeper.apply(Vec::new(), vec![item])
            }
            Err(error) => {
                log!("{}", error.text());
                if let Some(shard) = self.brokered.shards.get_mut(&shard) {
                    shard.progress = Progress::Unavailable(error.text().to_owned());
                }
                self.fail_waiting(shard, error.text())
            }
        }
    }

    /// Nobody waits for a shard that will not answer.
    fn fail_waiting(&mut self, shard: u32, text: &str) -> Result<(), LinkLost> {
        let requests: Vec<u64> = self.brokered.waiting.keys().copied().collect();
        for request in requests {
            let queue = match self.brokered.waiting.get(&request) {
                Some(
                    Waiting::Create { queue, .. }
                    | Waiting::Delete { queue, .. }
                    | Waiting::Edit { queue, .. }
                    | Waiting::Count { queue, .. }
                    | Waiting::Group { queue, .. }
                    | Waiting::Groups { queue, .. },
                ) => *queue,
                Some(Waiting::Attach { attached, .. }) => attached.key.queue,
                // Only open shards are asked for it.
                Some(Waiting::Status { .. }) => continue,
                Some(Waiting::Inform(_)) => {
                    self.inform_without(request, shard)?;
                    continue;
                }
                None => continue,
            };
            let queues = &self.brokered.queues;
            if queues.get(&queue).is_none_or(|queue| queue.entry.shard != shard) {
                continue;
            }
            let refused = ControlResult::Refused(ErrorCode::Io, text.to_owned());
            match self.brokered.waiting.get(&request) {
                Some(Waiting::Attach { attached, .. }) => {
                    let key = attached.key;
                    self.on_attached(request, key, refused, false)?;
                }
                Some(Waiting::Groups { .. }) => self.on_groups_refused(request, text)?,
                _ => self.on_done(request, refused)?,
            }
        }
        Ok(())
    }

    /// What the keeper holds of a shard's queues becomes what the journal says.
    fn reconcile(&mut self, shard: u32, found: Vec<QueueDefinition>) -> Result<(), LinkLost> {
        let mut missing: Vec<u64> = self
            .brokered
            .queues
            .iter()
            .filter(|(_, queue)| queue.entry.shard == shard)
            .map(|(id, _)| *id)
            .collect();
        let waiting: Vec<u64> = self
            .brokered
            .waiting
            .values()
            .filter_map(|waiting| match waiting {
                Waiting::Create { queue, .. } => Some(*queue),
                _ => None,
            })
            .collect();
        for definition in found {
            missing.retain(|id| *id != definition.id);
            if let Some(queue) = self.brokered.queues.get_mut(&definition.id) {
                if queue.state == State::Creating {
                    queue.state = State::Open;
                }
                continue;
            }
            if self.names.contains_key(&definition.name) {
                log!(
                    "queue {} of the journal has the name of another queue: delete that one, then start the daemon again",
                    definition.name
                );
                continue;
            }
            let entry = BrokeredQueueEntry {
                name: definition.name,
                kind: definition.kind,
                shard,
                slots: definition.slots,
                slot_size: definition.slot_size,
                max_message: definition.max_message,
                owner_uid: definition.owner_uid,
                group_gid: definition.group_gid,
                mode: definition.mode,
                creating: None,
            };
            let queue = BrokeredQueue { entry, state: State::Open, handles: BTreeMap::new() };
            self.keeper.apply(Vec::new(), vec![queue.item(definition.id)])?;
            self.names.insert(queue.entry.name.clone(), definition.id);
            self.brokered.queues.insert(definition.id, queue);
        }
        for id in missing {
            // Asked for after the journal was opened, or stored by the keeper and not by the journal when the broker died.
            if !waiting.contains(&id) {
                self.forget_brokered_queue(id)?;
            }
        }
        Ok(())
    }

    /// Ends the shards; what they have taken is stored. Says how many messages wait for consumers.
    pub(in super::super) fn stop_shards(&mut self, close: bool, patience: Duration) -> u64 {
        for shard in SHARDS {
            self.brokered.tell(shard, ToShard::Stop { close });
        }
        let deadline = Instant::now() + patience;
        while self.brokered.is_running() && Instant::now() < deadline {
            self.brokered.wait(deadline);
            if self.on_shards().is_err() {
                // Without a keeper there is nobody to tell what was released: the shards go on to their ends all the same.
                self.brokered.wait(deadline);
            }
        }
        self.brokered
            .shards
            .values()
            .map(|shard| match shard.progress {
                Progress::Stopped { messages } => messages,
                _ => 0,
            })
            .sum()
    }

    /// A file of a journal in memory is in use only when the keeper has it.
    pub(super) fn store_segment(
        &mut self,
        shard: u32,
        name: String,
        memory: OwnedFd,
        bytes: u64,
    ) -> Result<Result<(), String>, LinkLost> {
        let number = self.brokered.segments.next;
        let entry = SegmentEntry { shard, name: name.clone(), bytes };
        let item =
            Item { key: Key::Segment(number).bytes(), bytes: encode(&entry), descriptors: 1 };
        let stored = self.keeper.apply_with(Vec::new(), vec![item], &[memory.as_fd()])?;
        if stored.is_ok() {
            self.brokered.segments.next += 1;
            self.brokered.segments.numbers.insert((shard, name), number);
        }
        Ok(stored)
    }

    pub(super) fn remove_segment(&mut self, shard: u32, name: &str) -> Result<(), LinkLost> {
        match self.brokered.segments.numbers.remove(&(shard, name.to_owned())) {
            Some(number) => self.keeper.apply(vec![Key::Segment(number).bytes()], Vec::new()),
            None => Ok(()),
        }
    }
}
