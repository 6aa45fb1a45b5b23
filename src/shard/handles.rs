//! All handles of a shard, and what the logic says to them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use ringmain_client::pair::LeaseEntry;
use ringmain_client::protocol::{HandleKey, Role};
use ringmain_client::sys::eventfd::EventFd;
use ringmain_client::wire::{DeliveryHeader, Down, Outcome};

use super::handle::{Handle, Sent};
use super::logic::{ControlResult, Delivered, NumberMap, Port};
use super::memory::LinkMemory;

/// A session as a shard knows it.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) link: Arc<LinkMemory>,
    pub(super) bell: Arc<EventFd>,
    /// Word of the link to place of the handle.
    words: Vec<(u32, usize)>,
    /// It ends with its last handle.
    pub(super) is_leaving: bool,
}

/// The handles, their sessions, and who has something to do.
#[derive(Debug, Default)]
pub(super) struct Handles {
    places: Vec<Option<Handle>>,
    free: Vec<usize>,
    by_key: NumberMap<HandleKey, usize>,
    /// The one that something was said to last: it mostly hears the next thing as well.
    last: Option<(HandleKey, usize)>,
    pub(super) sessions: BTreeMap<u64, Session>,
    /// May have something in `up`: consumers first, their acknowledgements make room.
    consumers: VecDeque<usize>,
    producers: VecDeque<usize>,
    /// Their clients may have to be woken, or records wait for them.
    touched: Vec<usize>,
    /// Answers to control requests.
    pub(super) results: Vec<(u64, ControlResult)>,
    /// Consumers whose groups are deleted.
    pub(super) ended: Vec<HandleKey>,
    /// Consumers whose submissions are held.
    pub(super) submitting: Vec<usize>,
    /// Deliveries that do not fit one slot are put together here.
    scratch: Vec<u8>,
    ready: Vec<usize>,
}

impl Session {
    pub(super) fn new(link: Arc<LinkMemory>, bell: Arc<EventFd>) -> Self {
        Self { link, bell, words: Vec::new(), is_leaving: false }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.words.is_empty()
    }
}

impl Handles {
    pub(super) fn place(&self, key: HandleKey) -> Option<usize> {
        self.by_key.get(&key).copied()
    }

    pub(super) fn get(&self, place: usize) -> Option<&Handle> {
        self.places.get(place).and_then(Option::as_ref)
    }

    pub(super) fn get_mut(&mut self, place: usize) -> Option<&mut Handle> {
        self.places.get_mut(place).and_then(Option::as_mut)
    }

    /// As [`Self::place`], mostly without a search.
    fn place_of(&mut self, key: HandleKey) -> Option<usize> {
        let place = match self.last {
            Some((last, place)) if last == key => place,
            _ => self.place(key)?,
        };
        self.last = Some((key, place));
        Some(place)
    }

    fn by_key_mut(&mut self, key: HandleKey) -> Option<(usize, &mut Handle)> {
        let place = self.place_of(key)?;
        Some((place, self.get_mut(place)?))
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (usize, &Handle)> {
        let place = |(place, handle): (usize, &'_ Option<Handle>)| handle.as_ref().map(|_| place);
        let places: Vec<usize> = self.places.iter().enumerate().filter_map(place).collect();
        places.into_iter().filter_map(|place| Some((place, self.get(place)?)))
    }

    pub(super) fn insert(&mut self, handle: Handle) -> usize {
        let (key, session, word) = (handle.key, handle.session, handle.ready_index);
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        self.places[place] = Some(handle);
        self.by_key.insert(key, place);
        if let Some(session) = self.sessions.get_mut(&session) {
            session.words.push((word, place));
        }
        self.list(place);
        place
    }

    /// Takes a handle out, and its session if that ends with it: the caller unwatches its bell.
    pub(super) fn remove(&mut self, place: usize) -> Option<(Handle, Option<Session>)> {
        let handle = self.places.get_mut(place)?.take()?;
        self.free.push(place);
        self.by_key.remove(&handle.key);
        self.last = None;
        let mut ended = None;
        if let Some(session) = self.sessions.get_mut(&handle.session) {
            session.words.retain(|(_, of)| *of != place);
            if session.is_leaving && session.is_empty() {
                ended = self.sessions.remove(&handle.session);
            }
        }
        Some((handle, ended))
    }

    /// Remembers that a handle may have something in `up`.
    pub(super) fn list(&mut self, place: usize) {
        let Some(handle) = self.places.get_mut(place).and_then(Option::as_mut) else { return };
        if std::mem::replace(&mut handle.is_listed, true) {
            return;
        }
        match handle.role {
            Role::Produce => self.producers.push_back(place),
            Role::Consume => self.consumers.push_back(place),
        }
    }

    /// Remembers that something is to be done for a handle's client at the end of the turn.
    pub(super) fn touch(&mut self, place: usize) {
        let Some(handle) = self.places.get_mut(place).and_then(Option::as_mut) else { return };
        if !std::mem::replace(&mut handle.is_touched, true) {
            self.touched.push(place);
        }
    }

    pub(super) fn take_touched(&mut self) -> Vec<usize> {
        let touched = std::mem::take(&mut self.touched);
        for place in &touched {
            if let Some(handle) = self.get_mut(*place) {
                handle.is_touched = false;
            }
        }
        touched
    }

    /// Gives the storage of [`Self::take_touched`] back.
    pub(super) fn reuse_touched(&mut self, mut storage: Vec<usize>) {
        if self.touched.is_empty() {
            storage.clear();
            self.touched = storage;
        }
    }

    /// The next handle of this role that may have something in `up`.
    pub(super) fn next_listed(&mut self, role: Role) -> Option<usize> {
        let list = match role {
            Role::Produce => &mut self.producers,
            Role::Consume => &mut self.consumers,
        };
        let place = list.pop_front()?;
        if let Some(handle) = self.get_mut(place) {
            handle.is_listed = false;
        }
        Some(place)
    }

    pub(super) fn listed(&self, role: Role) -> usize {
        match role {
            Role::Produce => self.producers.len(),
            Role::Consume => self.consumers.len(),
        }
    }

    /// Looks at the words of all links; whether any was set.
    pub(super) fn look(&mut self) -> bool {
        let mut found = false;
        let mut ready = std::mem::take(&mut self.ready);
        for session in self.sessions.values() {
            for (word, place) in &session.words {
                if session.link.link.take_ready(*word) {
                    ready.push(*place);
                }
            }
        }
        for place in ready.drain(..) {
            found = true;
            self.list(place);
            self.touch(place);
        }
        self.ready = ready;
        found
    }

    /// Whether any word is set; takes nothing.
    pub(super) fn is_ready(&self) -> bool {
        self.sessions
            .values()
            .any(|session| session.words.iter().any(|(word, _)| session.link.link.is_ready(*word)))
    }

    /// Handles whose clients have made room without saying so: asked behind the heavy barrier before a sleep.
    pub(super) fn look_for_room(&mut self) -> bool {
        let mut found = false;
        for place in 0..self.places.len() {
            let has_room = |handle: &Handle| handle.was_blocked() && !handle.is_blocked();
            if self.get(place).is_some_and(has_room) {
                found = true;
                self.list(place);
                self.touch(place);
            }
        }
        found
    }
}

impl Port for Handles {
    fn completed(
        &mut self,
        handle: HandleKey,
        first_position: u64,
        last_position: u64,
        count: u32,
        first_sequence: u64,
        outcome: Outcome,
        detail: u64,
    ) {
        let Some((place, handle)) = self.by_key_mut(handle) else { return };
        handle.completed(first_position, last_position, count, first_sequence, outcome, detail);
        self.touch(place);
    }

    fn deliver(
        &mut self,
        key: HandleKey,
        header: &DeliveryHeader,
        flags: u16,
        metadata: &[u8],
        payload: &[u8],
    ) -> Delivered {
        // To nobody: its leases return when it is closed.
        let Some(place) = self.place_of(key) else { return Delivered::Full };
        let Self { places, scratch, .. } = self;
        let Some(handle) = places[place].as_mut() else { return Delivered::Full };
        // Answers go in first.
        if handle.has_waiting() {
            return Delivered::Full;
        }
        if header.lease.attempt == 0 {
            handle.remember_shown(header.lease.sequence);
        }
        let sent = handle.send_delivery(header, flags, metadata, payload, scratch);
        if sent == Sent::Yes {
            handle.messages += 1;
            handle.bytes += payload.len() as u64;
        }
        self.touch(place);
        match sent {
            Sent::Yes => Delivered::Sent,
            Sent::Full | Sent::Closed => Delivered::Full,
            Sent::TooLarge => Delivered::TooLarge,
        }
    }

    fn answer(&mut self, handle: HandleKey, request: u64, outcome: Outcome, detail: u64) {
        let Some((place, handle)) = self.by_key_mut(handle) else { return };
        handle.record(Down::Answer { request, outcome, detail });
        self.touch(place);
    }

    fn skipped(&mut self, handle: HandleKey, messages: u64) {
        let Some((place, handle)) = self.by_key_mut(handle) else { return };
        handle.record(Down::Skipped { messages });
        self.touch(place);
    }

    fn unreadable(&mut self, handle: HandleKey, sequence: u64) {
        let Some((place, handle)) = self.by_key_mut(handle) else { return };
        handle.record(Down::Unreadable { sequence });
        self.touch(place);
    }

    fn drained(&mut self, handle: HandleKey) {
        let Some((place, handle)) = self.by_key_mut(handle) else { return };
        handle.record(Down::Drained);
        self.touch(place);
    }

    fn lease(&mut self, handle: HandleKey, slot: u32, lease: Option<(u32, u64)>) {
        let Some((_, handle)) = self.by_key_mut(handle) else { return };
        let position = handle.down_position();
        let entry = lease.map(|(attempt, sequence)| LeaseEntry { attempt, sequence, position });
        handle.leases.set(slot, entry);
    }

    fn recalled(&mut self, handle: HandleKey) {
        let Some((_, handle)) = self.by_key_mut(handle) else { return };
        handle.memory.pair.status().set_recalled(handle.down_position());
    }

    fn seen(&mut self, handle: HandleKey, slot: u32) -> bool {
        let Some((_, handle)) = self.by_key_mut(handle) else { return false };
        let entry = handle.leases.get(slot);
        entry.is_some_and(|entry| handle.memory.client_position() > entry.position)
    }

    fn control(&mut self, request: u64, result: ControlResult) {
        self.results.push((request, result));
    }

    fn ended(&mut self, handle: HandleKey) {
        self.ended.push(handle);
    }
}
