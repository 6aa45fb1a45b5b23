//! Everything that honest handles and the daemon do, over memory that somebody attacks.
//!
//! Whatever comes back is typed; here it is checked that what claims to be a message lies within its bounds.

use std::sync::atomic::Ordering as Order;
use std::time::Duration;

use ringmain_client::layout::{HANDLE_DAEMON, mpmc};
use ringmain_client::protocol::Role;
use ringmain_client::ring::{
    Consumer, Fault, Invariant, Kernel, Producer, Reserved, RingMemory, Taken, TryReceiveError,
    TrySendError, bias, repair, sleep_once, wake_sleepers,
};
use ringmain_client::sync::atomic::AtomicU32;
use ringmain_client::sync::step;

use super::mutation::Attacker;
use crate::arena::{Arena, Outbox};
use crate::random::Random;

/// Steps after which an operation is taken for an endless loop: several times what the rings allow themselves.
const STEPS_MAX: u32 = 1 << 24;
/// The same for what the daemon does: it may go round the whole ring.
const DAEMON_STEPS_MAX: u32 = 1 << 26;

/// First of the words that count violations by kind.
pub const VIOLATIONS: usize = 16;

/// All kinds, in the order of their counters.
pub const INVARIANTS: [Invariant; 7] = [
    Invariant::WordState,
    Invariant::WordLap,
    Invariant::ClaimLength,
    Invariant::MessageLength,
    Invariant::Positions,
    Invariant::SeenByMember,
    Invariant::Progress,
];

/// Where an operation reports its number before it starts.
pub const AT_OPERATION: usize = 1;

/// Names of the operations, by number.
pub const OPERATIONS: [&str; 18] = [
    "attach",
    "send",
    "send of several slots",
    "send with metadata",
    "batch",
    "reserve",
    "write and commit",
    "abort",
    "take",
    "read",
    "release",
    "take a batch",
    "sleep",
    "wake",
    "look at sleepers and lines",
    "daemon looks",
    "daemon repairs",
    "daemon purges",
];

struct Nothing;

impl Kernel for Nothing {
    fn heavy_barrier(&self) {}
    fn light_barrier(&self) {}
    fn wait(&self, _word: &AtomicU32, _expected: u32, _timeout: Option<Duration>) {}
    fn wake(&self, _word: &AtomicU32, _count: u32) {}
}

/// The honest side of one queue.
#[derive(Debug)]
pub struct Honest<'a> {
    arena: &'a Arena,
    outbox: &'a Outbox,
    attacker: Attacker,
    producer: Option<Producer>,
    consumer: Option<Consumer>,
    taken: Vec<Taken>,
    reserved: Option<Reserved>,
}

const PAYLOAD: [u8; 8192] = [0x5a; 8192];

impl<'a> Honest<'a> {
    /// Attaches the handles that are honest: on an spsc ring the attacker's peer.
    pub fn attach(arena: &'a Arena, outbox: &'a Outbox, attacker: Attacker) -> Self {
        let mut honest = Self {
            arena,
            outbox,
            attacker,
            producer: None,
            consumer: None,
            taken: Vec::with_capacity(64),
            reserved: None,
        };
        honest.attach_again();
        honest
    }

    fn attach_again(&mut self) {
        start(self.outbox, 0);
        self.taken.clear();
        self.reserved = None;
        let (arena, geometry) = (self.arena, self.arena.geometry);
        if self.attacker != Attacker::Producer {
            let attached = Producer::new(arena.producer.clone(), geometry, 2);
            let attached = attached.map_err(|fault| count(self.outbox, fault)).ok();
            self.producer = attached.map(Producer::with_bias);
            bias::grant(&arena.daemon, Role::Produce, 2);
        }
        if self.attacker != Attacker::Consumer {
            let attached = Consumer::new(arena.consumer.clone(), geometry, 3);
            let attached = attached.map_err(|fault| count(self.outbox, fault)).ok();
            self.consumer = attached.map(Consumer::with_bias);
            bias::grant(&arena.daemon, Role::Consume, 3);
        }
        step::disarm();
    }

    /// One operation at random.
    pub fn act(&mut self, random: &mut Random) {
        match random.below(20) {
            0 => self.attach_again(),
            1..9 => self.produce(random),
            9..17 => self.consume(random),
            17 => self.sleep_and_wake(),
            _ => self.look(random),
        }
        step::disarm();
    }

    fn produce(&mut self, random: &mut Random) {
        let spsc = self.attacker != Attacker::Member;
        // On an spsc ring a reservation is the next message or nothing: it leaves no trace in the ring.
        let operation = match &self.reserved {
            Some(_) if spsc => 6 + random.below(2),
            _ => 1 + random.below(7),
        };
        start(self.outbox, operation);
        let max = self.arena.geometry.max_message();
        let Some(producer) = &mut self.producer else {
            return;
        };
        match operation {
            5 => {
                if self.reserved.is_none() {
                    match producer.try_reserve(random.below(60)) {
                        Ok(reserved) => {
                            assert!(reserved.capacity() <= self.arena.geometry.first_body_bytes());
                            producer.body_ptr(&reserved);
                            self.reserved = Some(reserved);
                        }
                        Err(error) => check_send(self.outbox, error, max),
                    }
                }
                return;
            }
            6 => {
                if let Some(reserved) = self.reserved.take() {
                    let _ = producer.write(&reserved, random.below(60), &PAYLOAD[..20]);
                    producer.commit(reserved, random.below(60));
                }
                return;
            }
            7 => {
                if let Some(reserved) = self.reserved.take() {
                    producer.abort(reserved);
                }
                return;
            }
            _ => {}
        }
        let drops = random.below(3) == 0;
        let any = random.below(max + 2);
        let mut send = |producer: &mut Producer| match operation {
            1 => producer.try_send(0, &[], &PAYLOAD[..random.below(49)]),
            2 => producer.try_send(0, &[], &PAYLOAD[..any]),
            3 => producer.try_send(7, &PAYLOAD[..random.below(70)], &PAYLOAD[..random.below(200)]),
            _ => {
                let lengths: Vec<&[u8]> =
                    (0..random.below(8)).map(|_| &PAYLOAD[..random.below(150)]).collect();
                producer.try_send_batch(&lengths)
            }
        };
        let sent = if drops { producer.dropping(send).0 } else { send(producer) };
        if let Err(error) = sent {
            check_send(self.outbox, error, max);
        }
        producer.position();
        producer.closed();
    }

    fn consume(&mut self, random: &mut Random) {
        let operation = 8 + random.below(4);
        start(self.outbox, operation);
        let Some(consumer) = &mut self.consumer else {
            return;
        };
        match operation {
            8 => match consumer.try_take() {
                Ok(taken) => {
                    check_taken(self.arena, consumer, &taken);
                    self.taken.push(taken);
                }
                Err(error) => check_receive(self.outbox, error),
            },
            9 => {
                for taken in &self.taken {
                    check_taken(self.arena, consumer, taken);
                }
            }
            10 => {
                if !self.taken.is_empty() {
                    // In the order of taking, as an spsc ring wants it.
                    consumer.release(self.taken.remove(0));
                }
            }
            _ => match consumer.try_take_batch(&mut self.taken, random.below(5)) {
                Ok(()) => {}
                Err(error) => check_receive(self.outbox, error),
            },
        }
        if self.taken.len() > 32 {
            for taken in self.taken.drain(..) {
                consumer.release(taken);
            }
        }
        consumer.position();
        consumer.closed();
    }

    fn sleep_and_wake(&mut self) {
        start(self.outbox, 12);
        if let Some(consumer) = &mut self.consumer {
            let park = consumer.own_park().clone();
            let found = sleep_once(&park, 3, &Nothing, None, || consumer.try_take().ok());
            if let Some(taken) = found {
                check_taken(self.arena, consumer, &taken);
                self.taken.push(taken);
            }
            start(self.outbox, 13);
            if consumer.peer_park().any_sleeper() {
                wake_sleepers(consumer.peer_park(), &Nothing, u32::MAX);
            }
        }
        start(self.outbox, 12);
        if let Some(producer) = &mut self.producer {
            sleep_once(producer.own_park(), 2, &Nothing, None, || None::<()>);
            start(self.outbox, 13);
            if producer.peer_park().any_sleeper() {
                wake_sleepers(producer.peer_park(), &Nothing, 1);
            }
        }
    }

    fn look(&self, random: &mut Random) {
        start(self.outbox, 14);
        let memory = &self.arena.daemon;
        for (role, handle) in [(Role::Produce, 2), (Role::Consume, 3)] {
            // The daemon takes a bias back or gives it, whatever the attacker says about who is in the middle of a claim.
            match random.below(4) {
                0 => _ = bias::revoke(memory, role),
                1 => bias::grant(memory, role, handle),
                _ => {}
            }
            assert!(bias::holdout(memory, role).is_none_or(|held_out_by| held_out_by == handle));
            let park = memory.park(role);
            let sleepers: Vec<u8> = park.sleepers().collect();
            assert!(sleepers.len() <= 256);
            for handle in sleepers {
                park.doorbell_of(handle);
            }
            for handle in [0, 1, 2, 3, 255] {
                memory.line(role, handle).snapshot();
            }
        }
    }

    /// Reads, repairs and empties the ring as the broker does after the attacker is dead.
    pub fn broker(&mut self, random: &mut Random) {
        let (memory, geometry) = (&self.arena.daemon, &self.arena.geometry);
        start(self.outbox, 15);
        let (head, tail) = repair::positions(memory, geometry);
        assert!(head <= tail && tail - head <= geometry.slots(), "positions {head}, {tail}");
        for handle in [1, 2, 3, 4, 255] {
            for role in [Role::Produce, Role::Consume] {
                let owned = repair::owned_by(memory, geometry, handle, role);
                assert!(u64::from(owned.slots) <= geometry.slots(), "{owned:?}");
            }
        }
        for position in [0, head, tail, tail.wrapping_sub(1), u64::MAX, random.any()] {
            repair::owner_at(memory, geometry, position);
        }
        start(self.outbox, 16);
        let roles: &[Role] = match self.attacker {
            Attacker::Member => &[Role::Produce, Role::Consume],
            Attacker::Producer => &[Role::Produce],
            Attacker::Consumer => &[Role::Consume],
        };
        for role in roles {
            // A fault is an answer: the broker closes the ring.
            if let Err(fault) = repair::dead_handle(memory, geometry, 1, *role) {
                count(self.outbox, fault);
            }
        }
        if random.below(4) == 0 {
            start(self.outbox, 17);
            if let Ok(messages) = repair::purge(memory, geometry, || true) {
                assert!(messages <= geometry.slots());
            }
            let _ = repair::dead_handle(memory, geometry, HANDLE_DAEMON, Role::Consume);
        }
        step::disarm();
    }
}

/// Reports the operation and starts its countdown.
fn start(outbox: &Outbox, operation: usize) {
    outbox.word(AT_OPERATION).store(operation as u64, Order::Relaxed);
    step::arm(if operation >= 15 { DAEMON_STEPS_MAX } else { STEPS_MAX });
}

fn check_send(outbox: &Outbox, error: TrySendError, max: usize) {
    if let TrySendError::Fault(fault) = error {
        count(outbox, fault);
    }
    if let TrySendError::TooLarge { max: allowed, .. } = error {
        assert!(allowed <= max.max(8192), "{error:?}");
    }
    let _ = format!("{error:?}");
}

fn check_receive(outbox: &Outbox, error: TryReceiveError) {
    if let TryReceiveError::Fault(fault) = error {
        count(outbox, fault);
    }
}

fn count(outbox: &Outbox, fault: Fault) {
    assert!(!fault.to_string().is_empty());
    let known = INVARIANTS.iter().position(|invariant| *invariant == fault.invariant);
    let index = known.expect("every violation is one of the known ones");
    outbox.word(VIOLATIONS + index).fetch_add(1, Order::Relaxed);
}

/// The lengths are bounded, the bytes can be read, and a pointer points into one slot.
fn check_taken(arena: &Arena, consumer: &Consumer, taken: &Taken) {
    let geometry = &arena.geometry;
    assert!(taken.length() <= geometry.max_message(), "{taken:?}");
    let mut bytes = vec![0; taken.length()];
    assert_eq!(consumer.read(taken, 0, &mut bytes), bytes.len());
    assert_eq!(consumer.read(taken, taken.length(), &mut [0; 8]), 0);
    let mut metadata = vec![0; taken.metadata_length()];
    assert_eq!(consumer.read_metadata(taken, &mut metadata), metadata.len());
    if let Some(pointer) = consumer.payload_ptr(taken) {
        let (slots, first) = match &arena.consumer {
            RingMemory::Mpmc { ring, .. } => (ring, mpmc::SLOTS),
            RingMemory::Spsc { slots, .. } => (slots, 0),
        };
        let slot = slots.address(first + geometry.slot_offset(taken.sequence())).addr();
        let end = pointer.addr() + taken.length();
        assert!(pointer.addr() > slot && end <= slot + geometry.slot_size(), "{taken:?}");
    }
}
