//! One queue with survivors, victims and a model of what must still arrive.

use ringmain_client::layout::{Geometry, State, Word, mpmc, slot, spsc_page};
use ringmain_client::protocol::{Kind, Role};
use ringmain_client::ring::{
    Consumer, Producer, Region, Reserved, RingMemory, Taken, TryReceiveError, TrySendError, View,
    bias, repair,
};
use ringmain_client::sync::atomic::Ordering;

use crate::arena::{Arena, Outbox};
use crate::message::Message;
use crate::structure;

/// Handle of the first victim.
pub const VICTIM: u8 = 1;
/// Handle of the producer that survives (mpmc).
pub const PRODUCER: u8 = 2;
/// Handle of the consumer that survives (mpmc).
pub const CONSUMER: u8 = 3;
/// Handle of the second victim.
pub const SECOND: u8 = 4;

/// Payload bytes of a message of one slot, of two, of three.
pub const ONE: usize = 20;
/// Two slots of 64 bytes.
pub const TWO: usize = 100;
/// Three slots of 64 bytes.
pub const THREE: usize = 150;

/// What the ring holds when the victim starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// Nothing.
    Empty,
    /// Messages of several lengths, the first of one slot.
    Short,
    /// Messages of several lengths, the first of three slots.
    Long,
    /// No room for one more message of one slot.
    Full,
    /// As `Short`; a live consumer holds a message and (mpmc) a live producer has a reservation.
    Bystanders,
    /// As `Short`; a live consumer holds a message.
    Holding,
    /// As `Short`; a live producer has a reservation (mpmc).
    Reserving,
    /// Messages that another dead consumer held, in one and three slots, and one that it did not reach.
    Returned,
    /// Tombstones of one and three slots in front of a message.
    Tombstones,
    /// As `Full`; a live consumer holds the oldest message.
    FullHeld,
    /// As `Full`; the oldest messages are those of `Returned`.
    FullReturned,
    /// As `Full`; what is oldest are tombstones of one and three slots.
    FullTombstones,
}

/// The smallest ring: every position is a slot of its own.
pub fn geometry() -> Geometry {
    Geometry::new(Some(64), Some(64), None).expect("the smallest geometry is valid")
}

/// One queue and what is known about it.
#[derive(Debug)]
pub struct World<'a> {
    /// Its memory.
    pub arena: &'a Arena,
    /// Where children report.
    pub outbox: &'a Outbox,
    /// The surviving producer; on an spsc ring it is the victim when a producer dies.
    pub producer: Producer,
    /// The surviving consumer; likewise.
    pub consumer: Consumer,
    /// What was committed and not given back, by position.
    pub queue: Vec<Message>,
    held: Option<(Taken, Message)>,
    reserved: Option<(Reserved, Message)>,
    /// A surviving sleeper: its role, and the event word when it went to sleep.
    pub asleep: Option<(Role, u32)>,
    /// Number of the next message.
    pub next_id: u64,
    /// Each victim has its side of the ring to itself.
    pub biased: bool,
}

/// The producer with a handle index.
pub fn new_producer(arena: &Arena, handle: u8) -> Result<Producer, String> {
    Producer::new(arena.producer.clone(), arena.geometry, handle)
        .map_err(|fault| format!("attach of a producer: {fault}"))
}

/// The consumer with a handle index.
pub fn new_consumer(arena: &Arena, handle: u8) -> Result<Consumer, String> {
    Consumer::new(arena.consumer.clone(), arena.geometry, handle)
        .map_err(|fault| format!("attach of a consumer: {fault}"))
}

/// Whether a taken message is exactly this one.
pub fn compare(consumer: &Consumer, taken: &Taken, expected: &Message) -> Result<(), String> {
    compare_view(consumer.view(taken), expected)
}

/// Whether a message that can be read is exactly this one.
pub fn compare_view(view: View<'_>, expected: &Message) -> Result<(), String> {
    let taken = view.taken();
    let found = (taken.sequence(), taken.length(), taken.metadata_length(), taken.redelivered());
    let wanted = (expected.position, expected.length, expected.metadata, expected.redelivered);
    if found != wanted {
        return Err(format!(
            "got (position, length, metadata, redelivered) {found:?}, expected {wanted:?}"
        ));
    }
    let mut payload = vec![0; taken.length()];
    view.read(0, &mut payload);
    let mut metadata = vec![0; taken.metadata_length()];
    view.read_metadata(&mut metadata);
    if payload != expected.payload() || metadata != expected.metadata_bytes() {
        return Err(format!("the message at position {} was altered", expected.position));
    }
    Ok(())
}

impl<'a> World<'a> {
    /// A fresh queue whose head and tail stand at slot `offset` of lap `base`, filled.
    pub fn start(
        arena: &'a Arena,
        outbox: &'a Outbox,
        base: u64,
        offset: u64,
        fill: Fill,
    ) -> Result<Self, String> {
        arena.clear();
        for index in 0..Outbox::WORDS {
            outbox.word(index).store(0, std::sync::atomic::Ordering::Relaxed);
        }
        set_lap(arena, base);
        let mut world = Self {
            arena,
            outbox,
            producer: new_producer(arena, PRODUCER)?,
            consumer: new_consumer(arena, CONSUMER)?,
            queue: Vec::new(),
            held: None,
            reserved: None,
            asleep: None,
            next_id: 1,
            biased: false,
        };
        for _ in 0..offset {
            world.send(ONE, 0)?;
            world.receive_one()?;
        }
        world.fill(fill)?;
        Ok(world)
    }

    fn fill(&mut self, fill: Fill) -> Result<(), String> {
        let short = [ONE, THREE, ONE, TWO, ONE];
        match fill {
            Fill::Empty => {}
            Fill::Short => self.send_all(&short)?,
            Fill::Long => self.send_all(&[THREE, ONE, TWO, ONE])?,
            Fill::Full => {
                self.send_all(&[THREE, ONE, TWO])?;
                self.fill_up()?;
            }
            Fill::FullHeld => {
                self.fill(Fill::Full)?;
                self.hold_one()?;
            }
            Fill::Bystanders => {
                self.send_all(&[TWO])?;
                self.send_all(&short)?;
                self.hold_one()?;
                if self.arena.kind == Kind::Mpmc {
                    self.reserve_one()?;
                    self.send_all(&short)?;
                }
            }
            Fill::Holding => {
                self.send_all(&short)?;
                self.hold_one()?;
            }
            Fill::Reserving => {
                self.send_all(&short)?;
                self.reserve_one()?;
                self.send_all(&short)?;
            }
            Fill::Returned => {
                self.send_all(&[ONE, THREE, ONE])?;
                self.return_two()?;
                self.send_all(&[TWO, ONE])?;
            }
            Fill::Tombstones => {
                self.bury(1);
                self.bury(3);
                self.send_all(&[TWO, ONE])?;
            }
            Fill::FullReturned => {
                self.fill(Fill::Returned)?;
                self.fill_up()?;
            }
            Fill::FullTombstones => {
                self.fill(Fill::Tombstones)?;
                self.fill_up()?;
            }
        }
        Ok(())
    }

    fn fill_up(&mut self) -> Result<(), String> {
        while self.try_send(ONE, 0)? {}
        Ok(())
    }

    /// The surviving consumer holds the next message.
    fn hold_one(&mut self) -> Result<(), String> {
        let taken = self.consumer.try_take().map_err(|e| format!("take: {e:?}"))?;
        let message = self.queue.remove(0);
        compare(&self.consumer, &taken, &message)?;
        self.held = Some((taken, message));
        Ok(())
    }

    /// The surviving producer reserves the next slot.
    fn reserve_one(&mut self) -> Result<(), String> {
        let mut message = self.message(ONE, 0);
        message.position = structure::next_claim(self.arena);
        let reserved = self.producer.try_reserve(ONE).map_err(|e| format!("reserve: {e:?}"))?;
        self.reserved = Some((reserved, message));
        Ok(())
    }

    /// Whether the surviving consumer holds a message.
    pub fn holds(&self) -> bool {
        self.held.is_some()
    }

    /// Two messages are held by a consumer that dies and is repaired.
    fn return_two(&mut self) -> Result<(), String> {
        let mut dead = new_consumer(self.arena, SECOND)?;
        for message in &mut self.queue[..2] {
            let taken = dead.try_take().map_err(|e| format!("take: {e:?}"))?;
            compare(&dead, &taken, message)?;
            message.redelivered = true;
        }
        self.repair(SECOND, Role::Consume)?;
        if self.arena.kind == Kind::Spsc {
            self.consumer = new_consumer(self.arena, CONSUMER)?;
        }
        Ok(())
    }

    /// A tombstone of `n` slots at the tail of an mpmc ring, as repair leaves it.
    fn bury(&mut self, n: u32) {
        let RingMemory::Mpmc { ring, .. } = &self.arena.daemon else {
            return;
        };
        let position = structure::next_claim(self.arena);
        let word = Word::new(self.arena.geometry.lap(position), n, 0, State::Tombstone);
        let offset = mpmc::SLOTS + self.arena.geometry.slot_offset(position) + slot::WORD;
        ring.u64_at(offset).store(word.0, Ordering::Release);
        ring.u64_at(mpmc::TAIL).store(position + u64::from(n), Ordering::Release);
    }

    /// A message with the next number.
    pub fn message(&mut self, length: usize, metadata: usize) -> Message {
        self.next_id += 1;
        Message::new(self.next_id, length, metadata)
    }

    fn try_send(&mut self, length: usize, metadata: usize) -> Result<bool, String> {
        let mut message = self.message(length, metadata);
        let sent = self.producer.try_send(0, &message.metadata_bytes(), &message.payload());
        match sent {
            Ok(position) => {
                message.position = position;
                self.queue.push(message);
                Ok(true)
            }
            Err(TrySendError::Full) => Ok(false),
            Err(error) => Err(format!("a survivor's send: {error:?}")),
        }
    }

    fn send(&mut self, length: usize, metadata: usize) -> Result<(), String> {
        if self.try_send(length, metadata)? {
            Ok(())
        } else {
            Err("a survivor finds the ring full though there is room".into())
        }
    }

    fn send_all(&mut self, lengths: &[usize]) -> Result<(), String> {
        lengths.iter().try_for_each(|length| self.send(*length, 0))
    }

    /// Takes one message, which must be the next one by the model, and releases it.
    pub fn receive_one(&mut self) -> Result<(), String> {
        let taken = match self.consumer.try_take() {
            Ok(taken) => taken,
            Err(error) => {
                return Err(format!(
                    "a survivor's take: {error:?}, though {:?} is still to come",
                    self.queue.first()
                ));
            }
        };
        // mpmc: what a dead consumer held comes first, in any order; spsc: everything in order.
        let mut index = 0;
        if self.arena.kind == Kind::Mpmc && self.queue.iter().any(|message| message.redelivered) {
            index = self
                .queue
                .iter()
                .position(|m| m.redelivered && m.position == taken.sequence())
                .ok_or_else(|| format!("got {taken:?} before what a dead consumer held"))?;
        }
        if index >= self.queue.len() {
            return Err(format!("got {taken:?}, though nothing is left"));
        }
        let message = self.queue.remove(index);
        compare(&self.consumer, &taken, &message)?;
        self.consumer.release(taken);
        Ok(())
    }

    /// Receives everything; then the ring is empty.
    pub fn drain(&mut self) -> Result<(), String> {
        while !self.queue.is_empty() {
            self.receive_one()?;
        }
        match self.consumer.try_take() {
            Err(TryReceiveError::Empty) => Ok(()),
            other => Err(format!("nothing is left, but a take answers {other:?}")),
        }
    }

    /// Repairs as the daemon does, twice; the second time nothing is left to do.
    pub fn repair(&self, handle: u8, role: Role) -> Result<repair::Report, String> {
        let run = || {
            repair::dead_handle(&self.arena.daemon, &self.arena.geometry, handle, role)
                .map_err(|fault| format!("repair of handle {handle}: {fault}"))
        };
        let report = run()?;
        let before = self.words();
        let second = run()?;
        if second != repair::Report::default() && self.arena.kind == Kind::Mpmc {
            return Err(format!("a second repair of handle {handle} did {second:?}"));
        }
        if self.words() != before {
            return Err(format!("a second repair of handle {handle} changed words"));
        }
        Ok(report)
    }

    fn words(&self) -> Vec<Word> {
        let slots = self.arena.geometry.slots();
        (0..slots).map(|index| structure::word(self.arena, index)).collect()
    }

    /// What the daemon does after a repair: whoever sleeps looks again.
    pub fn wake_everybody(&self) {
        for role in [Role::Produce, Role::Consume] {
            self.arena.daemon.park(role).bump();
        }
    }

    /// Takes the bias of a dead handle back, before its repair: whether a newcomer has to wait for that. `drops`: the handle may
    /// have claimed what it made free, and does that by exchanges.
    pub fn is_held_out(&self, (handle, role): (u8, Role), drops: bool) -> Result<bool, String> {
        if !bias::revoke(&self.arena.daemon, role) {
            return Err(format!("handle {handle} had no bias"));
        }
        let held_out = match bias::holdout(&self.arena.daemon, role) {
            None => false,
            Some(found) if found == handle => true,
            Some(other) => return Err(format!("a newcomer waits for handle {other}")),
        };
        if !held_out && !drops && structure::is_half_claimed(self.arena, handle, role) {
            return Err("a newcomer would not wait for the end of a claim".into());
        }
        Ok(held_out)
    }

    /// After the repair of handles that were biased nobody has to wait for them.
    pub fn check_bias_is_over(&self, dead: &[(u8, Role)]) -> Result<(), String> {
        for (_, role) in dead {
            let _ = bias::revoke(&self.arena.daemon, *role);
            if let Some(handle) = bias::holdout(&self.arena.daemon, *role) {
                return Err(format!("a newcomer waits for handle {handle}, which is repaired"));
            }
            bias::forget_others(&self.arena.daemon, *role, &[]);
        }
        Ok(())
    }

    /// After all repairs: bystanders finish, everything arrives, and two laps go through the ring.
    pub fn verify(&mut self, dead: &[(u8, Role)]) -> Result<(), String> {
        self.check_sleepers(dead)?;
        structure::check(self.arena, &[PRODUCER, CONSUMER])?;
        if self.arena.kind == Kind::Spsc {
            for (_, role) in dead {
                match role {
                    Role::Produce => self.producer = new_producer(self.arena, VICTIM)?,
                    Role::Consume => self.consumer = new_consumer(self.arena, VICTIM)?,
                }
            }
        }
        self.overtake_bystanders()?;
        if let Some((taken, message)) = self.held.take() {
            compare(&self.consumer, &taken, &message)
                .map_err(|error| format!("held by a live consumer: {error}"))?;
            self.consumer.release(taken);
        }
        if let Some((reserved, mut message)) = self.reserved.take() {
            self.producer
                .write(&reserved, 0, &message.payload())
                .map_err(|error| error.to_string())?;
            message.position = self.producer.commit(reserved, message.length);
            self.queue.push(message);
            self.queue.sort_by_key(|message| message.position);
        }
        structure::check(self.arena, &[])?;
        self.drain()?;
        structure::check(self.arena, &[])?;
        self.laps()
    }

    /// While the bystanders still own their slots another consumer receives what it may, and nothing of theirs.
    fn overtake_bystanders(&mut self) -> Result<(), String> {
        let Some((_, reserved)) = &self.reserved else {
            return Ok(());
        };
        let barrier = reserved.position;
        let other = new_consumer(self.arena, SECOND)?;
        let own = std::mem::replace(&mut self.consumer, other);
        while self.queue.iter().any(|message| message.redelivered || message.position < barrier) {
            self.receive_one()?;
        }
        let result = match self.consumer.try_take() {
            Err(TryReceiveError::Empty) => Ok(()),
            other => Err(format!("beyond what a live producer has reserved: {other:?}")),
        };
        self.consumer = own;
        result
    }

    fn laps(&mut self) -> Result<(), String> {
        let slots = usize::try_from(self.arena.geometry.slots()).expect("a small ring");
        for (length, fit) in [(ONE, slots), (THREE, slots / 3), (ONE, slots)] {
            let mut count = 0;
            while self.try_send(length, 0)? {
                count += 1;
                if count > fit {
                    break;
                }
            }
            if count != fit {
                return Err(format!("{count} messages of {length} bytes fit instead of {fit}"));
            }
            self.drain()?;
            if self.arena.kind == Kind::Mpmc {
                // The dead handle's index is used again.
                self.producer = new_producer(self.arena, VICTIM)?;
                self.consumer = new_consumer(self.arena, SECOND)?;
            }
        }
        structure::check(self.arena, &[])
    }

    /// Puts a survivor to sleep.
    pub fn fall_asleep(&mut self, role: Role) {
        let (park, handle) = match role {
            Role::Produce => (self.producer.own_park(), self.producer.handle()),
            Role::Consume => (self.consumer.own_park(), self.consumer.handle()),
        };
        self.asleep = Some((role, park.event()));
        park.announce(handle);
    }

    fn check_sleepers(&mut self, dead: &[(u8, Role)]) -> Result<(), String> {
        for role in [Role::Produce, Role::Consume] {
            let park = self.arena.daemon.park(role);
            let sleepers: Vec<u8> = park.sleepers().collect();
            let expected: Vec<u8> = match (self.asleep, self.arena.kind) {
                (Some((asleep, _)), Kind::Spsc) if asleep == role => vec![0],
                (Some((asleep, _)), Kind::Mpmc) if asleep == role => {
                    vec![if role == Role::Produce { PRODUCER } else { CONSUMER }]
                }
                _ => vec![],
            };
            if sleepers != expected {
                return Err(format!(
                    "{role:?}: handles {sleepers:?} are marked as asleep instead of {expected:?} \
                     (dead: {dead:?})"
                ));
            }
        }
        if let Some((role, snapshot)) = self.asleep.take() {
            let park = self.arena.daemon.park(role);
            if park.event() == snapshot {
                return Err("a sleeper would not have been woken".into());
            }
            park.retract(if role == Role::Produce { PRODUCER } else { CONSUMER });
        }
        Ok(())
    }

    /// Survivors go on while a corpse lies in the ring and nobody has repaired it: what they may do is done in full. `held_out`:
    /// those of the dead handle's role have to wait.
    pub fn go_on(&mut self, dead: &[(u8, Role)], held_out: bool) -> Result<(), String> {
        let alone = held_out || self.arena.kind == Kind::Spsc;
        let lives = |role| !alone || dead.iter().all(|(_, other)| *other != role);
        if lives(Role::Consume) {
            loop {
                match self.consumer.try_take() {
                    Ok(taken) => {
                        let index = self
                            .queue
                            .iter()
                            .position(|message| message.position == taken.sequence())
                            .ok_or_else(|| format!("before the repair: got {taken:?}"))?;
                        let message = self.queue.remove(index);
                        compare(&self.consumer, &taken, &message)?;
                        self.consumer.release(taken);
                    }
                    Err(TryReceiveError::Empty) => break,
                    Err(error) => return Err(format!("before the repair: {error:?}")),
                }
            }
        }
        if lives(Role::Produce) {
            for length in [THREE, ONE] {
                self.try_send(length, 0).map_err(|error| format!("before the repair: {error}"))?;
            }
        }
        Ok(())
    }

    /// Copies the parts of the model that a snapshot of the memory lacks.
    pub fn model(&self) -> (Vec<Message>, u64) {
        (self.queue.clone(), self.next_id)
    }

    /// Goes back to a snapshot that was taken without bystanders.
    pub fn set_model(&mut self, model: &(Vec<Message>, u64)) -> Result<(), String> {
        (self.queue, self.next_id) = model.clone();
        self.producer = new_producer(self.arena, PRODUCER)?;
        self.consumer = new_consumer(self.arena, CONSUMER)?;
        Ok(())
    }
}

/// Makes an empty queue look as if this many laps had gone through it.
fn set_lap(arena: &Arena, base: u64) {
    if base == 0 {
        return;
    }
    let slots = arena.geometry.slots();
    let position = base * slots;
    let (region, first) = arena.slots();
    let word = match arena.kind {
        Kind::Mpmc => Word::free(base),
        Kind::Spsc => Word::new(base.wrapping_sub(1), 1, 0, State::Published),
    };
    for index in 0..slots {
        let offset = first + arena.geometry.slot_offset(index) + slot::WORD;
        region.u64_at(offset).store(word.0, Ordering::Release);
    }
    let set = |region: &Region, offset: usize| {
        region.u64_at(offset).store(position, Ordering::Release);
    };
    match &arena.daemon {
        RingMemory::Mpmc { ring, .. } => {
            set(ring, mpmc::HEAD);
            set(ring, mpmc::TAIL);
        }
        RingMemory::Spsc { producer, consumer, .. } => {
            set(producer, spsc_page::POSITION);
            set(consumer, spsc_page::POSITION);
            set(consumer, spsc_page::TAKEN);
        }
    }
}
