//! Taking over the brokered plane of a broker that is gone.
//!
//! The entries come first, in the order of their keys; then the shards are started and get the links and handles. They open
//! their journals, take the handles up where they stood, and only then let messages flow.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use ringmain_client::protocol::HandleKey;
use ringmain_client::sys::eventfd::EventFd;

use super::super::adopt::check_layout;
use super::super::broker::Broker;
use super::super::connections::Failure;
use super::super::entries::{
    BrokeredHandleEntry, BrokeredQueueEntry, Key, LinkEntry, SegmentEntry, ShardEntry, decode,
};
use super::super::link::LinkLost;
use super::super::log::log;
use super::{BrokeredHandle, BrokeredQueue, SHARD_DURABLE, SHARDS, SessionLink, State};
use crate::shard::control::{NewHandle, ToShard};
use crate::shard::memory::{LinkMemory, PairFiles, PairMemory};

/// What waits until the shards are there.
#[derive(Debug, Default)]
pub(in super::super) struct Adopting {
    pages: BTreeMap<u32, (OwnedFd, bool)>,
    handles: Vec<(HandleKey, PairMemory)>,
}

impl Broker {
    pub(in super::super) fn adopt_brokered(
        &mut self,
        adopting: &mut Adopting,
        key: Key,
        bytes: &[u8],
        own: Vec<OwnedFd>,
    ) -> Result<(), String> {
        match key {
            Key::Shard(shard) => {
                let entry: ShardEntry = decode(bytes)?;
                let [page] = exactly(own)?;
                adopting.pages.insert(shard, (page, entry.known));
            }
            Key::Segment(number) => {
                let entry: SegmentEntry = decode(bytes)?;
                let [memory] = exactly(own)?;
                self.brokered.segments.adopt(number, entry, memory);
            }
            Key::Link(session) => {
                let _: LinkEntry = decode(bytes)?;
                let link = adopted_link(own)?;
                self.brokered.links.insert(session, link);
            }
            Key::BrokeredQueue(id) => {
                let entry: BrokeredQueueEntry = decode(bytes)?;
                let state = if entry.creating.is_some() { State::Creating } else { State::Open };
                self.names.insert(entry.name.clone(), id);
                let queue = BrokeredQueue { entry, state, handles: BTreeMap::new() };
                self.brokered.queues.insert(id, queue);
            }
            Key::BrokeredHandle { queue, handle } => {
                self.adopt_brokered_handle(adopting, queue, handle, bytes, own)?;
            }
            _ => return Err("not of the brokered plane".to_owned()),
        }
        Ok(())
    }

    fn adopt_brokered_handle(
        &mut self,
        adopting: &mut Adopting,
        queue: u64,
        index: u8,
        bytes: &[u8],
        own: Vec<OwnedFd>,
    ) -> Result<(), String> {
        let entry: BrokeredHandleEntry = decode(bytes)?;
        check_layout(entry.layout_version)?;
        let [client, shard] = exactly(own)?;
        let geometry = entry.size.geometry().map_err(|error| error.to_string())?;
        let memory = PairMemory::map(geometry, &PairFiles { client, shard })
            .map_err(|error| error.to_string())?;
        let session = self.sessions.get_mut(&entry.session).ok_or("its session is missing")?;
        let found = self.brokered.queues.get_mut(&queue).ok_or("its queue is missing")?;
        let link = self.brokered.links.get_mut(&entry.session).ok_or("its link is missing")?;
        session.handles.insert((queue, index));
        link.indexes.insert(entry.ready_index);
        let key = HandleKey { queue, handle: index, epoch: entry.epoch };
        found.handles.insert(index, BrokeredHandle { entry, closing: false, faulty: false });
        adopting.handles.push((key, memory));
        Ok(())
    }

    /// Starts the shards that there were, and the one of the data folder.
    pub(in super::super) fn start_adopted(&mut self, adopting: Adopting) -> Result<(), LinkLost> {
        for (shard, (page, known)) in adopting.pages {
            if let Err(reason) = self.start_shard(shard, page, known) {
                return Err(LinkLost(format!("shard {shard} cannot start: {reason}")));
            }
        }
        if self.brokered.config.data_dir.is_some() {
            match self.want_shard(SHARD_DURABLE) {
                Ok(()) => {}
                Err(Failure::Lost(lost)) => return Err(lost),
                Err(Failure::Refused(_, text)) => return Err(LinkLost(text)),
            }
        }
        let handles = adopting.handles.len();
        for (key, memory) in adopting.handles {
            let Some(queue) = self.brokered.queues.get(&key.queue) else { continue };
            let shard = queue.entry.shard;
            let Some(handle) = queue.handles.get(&key.handle) else { continue };
            let session = handle.entry.session;
            let handle = Box::new(NewHandle::of(key, &handle.entry, memory, true));
            self.tell_link(shard, session);
            self.brokered.tell(shard, ToShard::Attach { request: 0, handle });
        }
        for shard in SHARDS {
            self.brokered.tell(shard, ToShard::Adopted);
        }
        if handles > 0 {
            log!("{handles} handles of brokered queues are taken over");
        }
        Ok(())
    }
}

fn adopted_link(descriptors: Vec<OwnedFd>) -> Result<SessionLink, String> {
    let mut descriptors = descriptors.into_iter();
    let memory = descriptors.next().ok_or("no descriptor")?;
    let mapped = LinkMemory::map(memory.as_fd()).map_err(|error| error.to_string())?;
    let mut bells = Vec::new();
    for descriptor in descriptors {
        let bell = EventFd::from_descriptor(descriptor).map_err(|error| error.to_string())?;
        bells.push(Arc::new(bell));
    }
    Ok(SessionLink {
        memory,
        bells,
        mapped: Arc::new(mapped),
        indexes: Default::default(),
        told: Default::default(),
    })
}

fn exactly<const N: usize>(descriptors: Vec<OwnedFd>) -> Result<[OwnedFd; N], String> {
    <[OwnedFd; N]>::try_from(descriptors)
        .map_err(|found| format!("{} descriptors, {N} are needed", found.len()))
}
