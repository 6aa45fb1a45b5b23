//! A shard on a simulated disk, turn by turn, with clients in the same process.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use ringmain_client::layout::metadata::OwnSequence;
use ringmain_client::protocol::{ErrorCode, HandleKey, Kind, Role, StartAt, WakeMode};
use ringmain_client::ring::{self, TryReceiveError, TrySendError};
use ringmain_client::sys::eventfd::EventFd;
use ringmain_client::wire::transaction::{self, Ack, FLAG_TRANSACTION, Transaction};
use ringmain_client::wire::{Down, LeaseToken, Outcome, Up};

use super::control::{FromShard, NewHandle, Outbox, ToShard};
use super::logic::{ControlResult, Limits, LimitsEdit, Logic, QueueDefinition, QueueEdit};
use super::memory::{LinkMemory, PageMemory, PairFiles, PairMemory, PairSize};
use super::thread::{Parts, Shard};
use crate::disk::simulated::{Fault, SimulatedDisk, Simulation, Site};
use crate::journal::{Config, Journal};

const QUEUE: u64 = 7;
const SESSION: u64 = 3;

/// One shard and what surrounds it.
struct World {
    simulation: Simulation,
    shard: Shard<SimulatedDisk>,
    ask: Sender<ToShard>,
    inbox: Receiver<ToShard>,
    answers: Receiver<FromShard>,
    link: Arc<LinkMemory>,
    handles: u8,
}

/// A client's ends of its rings.
struct Client {
    key: HandleKey,
    word: u32,
    up: ring::Producer,
    down: ring::Consumer,
    link: Arc<LinkMemory>,
    files: PairFiles,
    name: String,
    _memory: PairMemory,
}

fn size(role: Role) -> PairSize {
    let (leases, record_slots) = if role == Role::Consume { (64, 512) } else { (0, 64) };
    PairSize { role, slots: 64, slot_size: 128, max_message: 1000, record_slots, leases }
}

impl World {
    fn new() -> Self {
        Self::on(Simulation::new(), &[])
    }

    /// Over a disk that may have a journal, with clients that a shard before had.
    fn on(simulation: Simulation, adopted: &[(&Client, Role)]) -> Self {
        let config = Config { segment_bytes: 256 << 10, journal_id: 5, ..Config::default() };
        let mut logic = Logic::new(0);
        let (journal, _) = Journal::open(simulation.disk(), config, &mut logic).unwrap();
        let page = PageMemory::create(0).unwrap();
        let page = PageMemory::map(page.as_fd()).unwrap();
        let bell = Arc::new(EventFd::new().unwrap());
        let (sender, answers) = channel();
        let outbox = Outbox::new(sender, Arc::clone(&bell));
        let parts = Parts { number: 0, page, outbox, journal, logic, place: None };
        let shard = Shard::new(parts, WakeMode::Fence, bell).unwrap();
        let (ask, inbox) = channel();
        let link = match adopted.first() {
            Some((client, _)) => Arc::clone(&client.link),
            None => {
                let memory = LinkMemory::create().unwrap();
                Arc::new(LinkMemory::map(memory.as_fd()).unwrap())
            }
        };
        let bell = Arc::new(EventFd::new().unwrap());
        ask.send(ToShard::Link { session: SESSION, link: Arc::clone(&link), bell }).unwrap();
        for (client, role) in adopted {
            let geometry = size(*role).geometry().unwrap();
            let memory = PairMemory::map(geometry, &client.files).unwrap();
            let mut handle = Box::new(new_handle(client.key, memory, client.word, true));
            handle.producer = client.name.clone();
            ask.send(ToShard::Attach { request: 0, handle }).unwrap();
        }
        ask.send(ToShard::Adopted).unwrap();
        let handles = u8::try_from(adopted.len()).unwrap();
        let mut world = Self { simulation, shard, ask, inbox, answers, link, handles };
        world.turns();
        world
    }

    /// Until nothing happens any more.
    fn turns(&mut self) {
        let mut quiet = 0;
        while quiet < 5 {
            quiet = if self.shard.turn(&self.inbox) { 0 } else { quiet + 1 };
        }
    }

    fn create_queue(&mut self) {
        self.ask.send(ToShard::Create { request: 1, definition: definition() }).unwrap();
        self.turns();
        let done = self.answers.try_iter().any(|answer| {
            matches!(answer, FromShard::Done { request: 1, result: ControlResult::Done })
        });
        assert!(done, "the queue is stored");
    }

    fn attach(&mut self, role: Role) -> Client {
        self.attach_as(role, "")
    }

    fn attach_as(&mut self, role: Role, name: &str) -> Client {
        self.handles += 1;
        let key = HandleKey { queue: QUEUE, handle: self.handles, epoch: 1 };
        let geometry = size(role).geometry().unwrap();
        let files = PairFiles::create("test", &geometry).unwrap();
        let (theirs, ours) = (
            PairMemory::map(geometry, &files).unwrap(),
            PairMemory::map(geometry, &files).unwrap(),
        );
        theirs.initialise(QUEUE);
        let word = u32::from(self.handles);
        let mut handle = Box::new(new_handle(key, theirs, word, false));
        handle.producer = name.to_owned();
        self.ask.send(ToShard::Attach { request: 2, handle }).unwrap();
        self.turns();
        let attached = self.answers.try_iter().any(|answer| {
            let FromShard::Attached { result, .. } = answer else { return false };
            match result {
                ControlResult::Named { .. } => !name.is_empty(),
                result => name.is_empty() && result == ControlResult::Done,
            }
        });
        assert!(attached);
        let pair = &ours.pair;
        let up = ring::Producer::new(pair.up(), geometry.up(), self.handles).unwrap();
        let down = ring::Consumer::new(pair.down(), geometry.down(), self.handles).unwrap();
        Client {
            key,
            word,
            up,
            down,
            link: Arc::clone(&self.link),
            files,
            name: name.to_owned(),
            _memory: ours,
        }
    }
}

fn definition() -> QueueDefinition {
    QueueDefinition {
        id: QUEUE,
        name: "q".to_owned(),
        kind: Kind::Mpmc,
        durable: true,
        slots: 64,
        slot_size: 128,
        max_message: 1000,
        owner_uid: 0,
        group_gid: 0,
        mode: 0o700,
        max_deliveries: 0,
        dead_letter: String::new(),
        lease_ms: 0,
        limits: Limits::default(),
        ttl_ms: 0,
    }
}

fn new_handle(key: HandleKey, memory: PairMemory, word: u32, adopted: bool) -> NewHandle {
    NewHandle {
        key,
        memory,
        session: SESSION,
        ready_index: word,
        wake_mode: WakeMode::Fence,
        lane: 1000 + u64::from(key.handle),
        group: String::new(),
        from: StartAt::First,
        credit: 16,
        browse: false,
        producer: String::new(),
        adopted,
    }
}

impl Client {
    fn send(&mut self, payload: &[u8]) -> Result<u64, TrySendError> {
        let sent = self.up.try_send(0, &[], payload);
        self.link.link.set_ready(self.word);
        sent
    }

    /// Sends a message as the first producer of a queue that has a name.
    fn send_own(&mut self, sequence: u64) {
        let entry = OwnSequence { producer: 1, epoch: 1, sequence }.encode();
        self.up.try_send(0, &entry, b"own").unwrap();
        self.link.link.set_ready(self.word);
    }

    fn ask(&mut self, up: Up) {
        self.send(up.encode().as_ref()).unwrap();
    }

    /// Everything that came, with the payloads of deliveries.
    fn take(&mut self) -> Vec<(Down, Vec<u8>)> {
        let mut all = Vec::new();
        loop {
            match self.down.try_take() {
                Ok(taken) => {
                    let mut bytes = vec![0; taken.length()];
                    self.down.read(&taken, 0, &mut bytes);
                    self.down.release(taken);
                    let record = Down::decode(&bytes).unwrap();
                    let payload = match record {
                        Down::Delivery(_) => {
                            bytes.split_off(ringmain_client::wire::DELIVERY_HEADER_BYTES)
                        }
                        _ => Vec::new(),
                    };
                    all.push((record, payload));
                }
                Err(TryReceiveError::Empty) => break,
                Err(error) => panic!("{error:?}"),
            }
        }
        self.link.link.set_ready(self.word);
        all
    }

    /// Outcome and number of messages of each completion.
    fn completions(&mut self) -> Vec<(Outcome, u32, u64)> {
        let completion = |record| match record {
            Down::Completed { outcome, count, first_sequence, .. } => {
                (outcome, count, first_sequence)
            }
            other => panic!("{other:?}"),
        };
        self.take().into_iter().map(|(record, _)| completion(record)).collect()
    }

    fn deliveries(&mut self) -> Vec<(LeaseToken, Vec<u8>)> {
        let delivery = |(record, payload)| match record {
            Down::Delivery(header) => Some((header.lease, payload)),
            _ => None,
        };
        self.take().into_iter().filter_map(delivery).collect()
    }
}

/// A broker that died before the record was there would leave a journal without the group, and its consumers would be ended.
#[test]
fn nobody_is_attached_to_a_group_that_is_not_durable() {
    let mut world = World::new();
    world.create_queue();
    world.simulation.hold();
    for number in 1..3_u8 {
        let key = HandleKey { queue: QUEUE, handle: number, epoch: 1 };
        let geometry = size(Role::Consume).geometry().unwrap();
        let files = PairFiles::create("test", &geometry).unwrap();
        let memory = PairMemory::map(geometry, &files).unwrap();
        memory.initialise(QUEUE);
        let mut handle = Box::new(new_handle(key, memory, u32::from(number), false));
        handle.group = "late".to_owned();
        world.ask.send(ToShard::Attach { request: u64::from(number), handle }).unwrap();
    }
    world.turns();
    let attached = |world: &World| -> Vec<(u64, bool)> {
        let attached = |answer| match answer {
            FromShard::Attached { request, result: ControlResult::Done, group_created, .. } => {
                Some((request, group_created))
            }
            _ => None,
        };
        world.answers.try_iter().filter_map(attached).collect()
    };
    assert_eq!(attached(&world), []);
    world.simulation.flow();
    world.simulation.release_all();
    world.turns();
    assert_eq!(attached(&world), [(1, true), (2, false)]);
}

/// An attachment that makes a group.
fn attach_to_group(world: &World, handle: u8) -> HandleKey {
    let key = HandleKey { queue: QUEUE, handle, epoch: 1 };
    let geometry = size(Role::Consume).geometry().unwrap();
    let files = PairFiles::create("test", &geometry).unwrap();
    let memory = PairMemory::map(geometry, &files).unwrap();
    memory.initialise(QUEUE);
    let mut handle = Box::new(new_handle(key, memory, u32::from(handle), false));
    handle.group = "late".to_owned();
    let request = 100 + u64::from(key.handle);
    world.ask.send(ToShard::Attach { request, handle }).unwrap();
    key
}

fn refusals(world: &World) -> Vec<(u64, ErrorCode, String)> {
    let refused = |answer| match answer {
        FromShard::Attached { request, result: ControlResult::Refused(code, text), .. }
        | FromShard::Done { request, result: ControlResult::Refused(code, text) } => {
            Some((request, code, text))
        }
        _ => None,
    };
    world.answers.try_iter().filter_map(refused).collect()
}

/// Requests that wait for room hold up nobody, may be taken back, and are refused when there will be none.
#[test]
fn what_waits_for_room_holds_up_nobody_and_is_refused_when_there_is_none() {
    let simulation = Simulation::new();
    simulation.set_capacity(Some(300 << 10));
    let mut world = World::on(simulation, &[]);
    // With one file there would be no room for messages: a queue is made only behind the shard's back.
    world.ask.send(ToShard::Create { request: 1, definition: definition() }).unwrap();
    world.turns();
    let refused = refusals(&world);
    assert!(matches!(&refused[..], [(1, ErrorCode::Limit, text)] if text.contains("no room")));
    world.shard.logic.create_queue(&mut world.shard.journal, 2, definition());
    world.turns();
    let simulation = world.simulation.clone();
    drop(world);
    simulation.kill(1);
    // The next one needs another file first, and that takes its time.
    simulation.hold();
    let mut world = World::on(simulation, &[]);
    let first = attach_to_group(&world, 1);
    attach_to_group(&world, 2);
    world.ask.send(ToShard::Inform { request: 3, queues: vec![QUEUE], handles: true }).unwrap();
    world.turns();
    let answers: Vec<_> = world.answers.try_iter().collect();
    assert!(
        matches!(&answers[..], [FromShard::Information { request: 3, queues, .. }] if queues.len() == 1),
        "{answers:?}"
    );
    world.ask.send(ToShard::Gone { key: first, died: true }).unwrap();
    world.turns();
    let refused = refusals(&world);
    assert!(matches!(refused[..], [(101, ErrorCode::Closed, _)]), "{refused:?}");
    world.simulation.flow();
    world.simulation.release_all();
    world.turns();
    let refused = refusals(&world);
    assert!(
        matches!(&refused[..], [(102, ErrorCode::Limit, text)] if text.contains("no room")),
        "{refused:?}"
    );
    // When there is room the same is done.
    world.simulation.set_capacity(None);
    attach_to_group(&world, 3);
    std::thread::sleep(
        world
            .shard
            .journal
            .next_deadline()
            .map_or(Duration::ZERO, |due| due.saturating_duration_since(Instant::now())),
    );
    world.turns();
    let attached = world.answers.try_iter().any(|answer| {
        matches!(answer, FromShard::Attached { request: 103, result: ControlResult::Done, .. })
    });
    assert!(attached);
}

#[test]
fn nothing_is_confirmed_or_delivered_before_it_is_durable() {
    let mut world = World::new();
    world.create_queue();
    let mut producer = world.attach(Role::Produce);
    let mut consumer = world.attach(Role::Consume);
    world.simulation.hold();
    for number in 0..3_u8 {
        producer.send(&[number]).unwrap();
    }
    world.turns();
    assert_eq!((producer.completions(), consumer.deliveries().len()), (vec![], 0));
    world.simulation.flow();
    world.simulation.release_all();
    world.turns();
    let confirmed: u32 = producer.completions().iter().map(|(_, count, _)| count).sum();
    assert_eq!(confirmed, 3);
    let deliveries = consumer.deliveries();
    assert_eq!(deliveries.iter().map(|(_, payload)| payload[0]).collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn a_failed_write_is_told_to_everybody_and_what_is_durable_can_be_read() {
    let mut world = World::new();
    world.create_queue();
    let mut producer = world.attach(Role::Produce);
    producer.send(b"before").unwrap();
    world.turns();
    assert_eq!(producer.completions(), [(Outcome::Done, 1, 1)]);
    let writes = world.simulation.calls(Site::BeginWrite);
    world.simulation.fail(Site::BeginWrite, writes + 1, Fault::Error(libc::EIO));
    producer.send(b"lost").unwrap();
    world.turns();
    let failed = (Outcome::JournalFailed, 1, 0);
    assert_eq!(producer.completions(), [failed]);
    assert_eq!(world.shard.page.page.failed().map(|(errno, _)| errno), Some(libc::EIO));
    // From now on at once, and reading goes on.
    producer.send(b"late").unwrap();
    world.turns();
    assert_eq!(producer.completions(), [failed]);
    let mut consumer = world.attach(Role::Consume);
    let deliveries = consumer.deliveries();
    assert_eq!(deliveries.len(), 1);
    let (lease, payload) = &deliveries[0];
    assert_eq!(payload, b"before");
    consumer.ask(Up::Ack { lease: *lease, request: 9 });
    consumer.ask(Up::Flush { request: 10 });
    world.turns();
    let answers: Vec<(u64, Outcome)> = consumer
        .take()
        .into_iter()
        .filter_map(|(record, _)| match record {
            Down::Answer { request, outcome, .. } => Some((request, outcome)),
            _ => None,
        })
        .collect();
    assert_eq!(answers, [(9, Outcome::JournalFailed), (10, Outcome::JournalFailed)]);
}

#[test]
fn a_client_without_room_for_completions_waits_by_itself() {
    let mut world = World::new();
    world.create_queue();
    let mut deaf = world.attach(Role::Produce);
    let mut other = world.attach(Role::Produce);
    let mut sent = 0;
    for _ in 0..1000 {
        while deaf.send(b"m").is_ok() {
            sent += 1;
        }
        world.turns();
    }
    // A full ring of completions, each of at most a lane of messages, and a full lane.
    assert!((64..=65 * 64).contains(&sent), "{sent}");
    other.send(b"other").unwrap();
    world.turns();
    assert_eq!(other.completions().len(), 1);
    let mut confirmed = 0;
    while confirmed < sent {
        let more: u32 = deaf.completions().iter().map(|(_, count, _)| count).sum();
        assert!(more > 0, "{confirmed} of {sent}");
        confirmed += more;
        world.turns();
    }
}

/// A lane that waits for room and whose client then takes no completions loses its place in the line; it is not forgotten.
#[test]
fn a_lane_that_waits_for_room_and_for_its_client_goes_on() {
    let mut world = World::new();
    let limits = Limits { max_messages: 65, ..Limits::default() };
    let limited = QueueDefinition { limits, ..definition() };
    world.ask.send(ToShard::Create { request: 1, definition: limited }).unwrap();
    world.turns();
    let mut client = world.attach(Role::Produce);
    let send = |world: &mut World, client: &mut Client| {
        client.send(b"m").unwrap();
        world.turns();
    };
    // As many completions as their ring has room for, one by one; then one more, and one beyond the limit.
    for _ in 0..64 {
        send(&mut world, &mut client);
    }
    world.simulation.hold();
    for _ in 0..2 {
        send(&mut world, &mut client);
    }
    world.simulation.flow();
    world.turns();
    send(&mut world, &mut client);
    let mut confirmed: u32 = client.completions().iter().map(|(_, count, _)| count).sum();
    assert_eq!(confirmed, 64, "the ring was full");
    world.turns();
    confirmed += client.completions().iter().map(|(_, count, _)| count).sum::<u32>();
    assert_eq!(confirmed, 65, "and the queue");
    let limits = LimitsEdit { max_messages: Some(0), ..LimitsEdit::default() };
    let edit = QueueEdit { limits, ..QueueEdit::default() };
    world.ask.send(ToShard::Edit { request: 2, queue: QUEUE, edit }).unwrap();
    world.turns();
    confirmed += client.completions().iter().map(|(_, count, _)| count).sum::<u32>();
    assert_eq!(confirmed, 67);
}

#[test]
fn another_shard_takes_up_lanes_and_leases_where_they_stood() {
    // The broker dies after each of the steps that lie between two sleeps.
    for held in [false, true] {
        let mut world = World::new();
        world.create_queue();
        let mut producer = world.attach(Role::Produce);
        let mut consumer = world.attach(Role::Consume);
        for number in 0..5_u8 {
            producer.send(&[number]).unwrap();
        }
        world.turns();
        let leased = consumer.deliveries();
        assert_eq!(leased.len(), 5);
        if held {
            world.simulation.hold();
        }
        consumer.ask(Up::Ack { lease: leased[0].0, request: 0 });
        for number in 5..9_u8 {
            producer.send(&[number]).unwrap();
        }
        world.turns();
        producer.send(&[9]).unwrap();
        let simulation = world.simulation.clone();
        drop(world);
        simulation.kill(1);
        simulation.flow();
        let adopted = [(&producer, Role::Produce), (&consumer, Role::Consume)];
        let mut world = World::on(simulation, &adopted);
        let mut sequences = Vec::new();
        for (outcome, count, first) in producer.completions() {
            assert_eq!(outcome, Outcome::Done);
            sequences.extend(first..first + u64::from(count));
        }
        assert_eq!(sequences, (1..=10).collect::<Vec<_>>(), "held: {held}");
        let fresh: Vec<u8> = consumer.deliveries().iter().map(|(_, payload)| payload[0]).collect();
        assert_eq!(fresh, [5, 6, 7, 8, 9], "held: {held}");
        for (lease, _) in &leased[1..] {
            consumer.ask(Up::Ack { lease: *lease, request: u64::from(lease.slot) + 1 });
        }
        world.turns();
        let answers = consumer.take();
        assert_eq!(answers.len(), 4);
        for (record, _) in answers {
            assert!(matches!(record, Down::Answer { outcome: Outcome::Done, .. }), "{record:?}");
        }
        assert_eq!(world.shard.logic.info(QUEUE).unwrap().messages, 5);
    }
}

#[test]
fn the_attachment_under_a_name_is_answered_when_it_is_durable() {
    let mut world = World::new();
    world.create_queue();
    let ask = |world: &mut World, number: u8| {
        let key = HandleKey { queue: QUEUE, handle: number, epoch: 1 };
        let geometry = size(Role::Produce).geometry().unwrap();
        let files = PairFiles::create("test", &geometry).unwrap();
        let memory = PairMemory::map(geometry, &files).unwrap();
        memory.initialise(QUEUE);
        let mut handle = Box::new(new_handle(key, memory, u32::from(number), false));
        handle.producer = "source".to_owned();
        world.ask.send(ToShard::Attach { request: u64::from(number), handle }).unwrap();
        world.turns();
        let answers = world.answers.try_iter();
        let results = answers.filter_map(|answer| match answer {
            FromShard::Attached { result, .. } => Some(result),
            _ => None,
        });
        results.collect::<Vec<_>>()
    };
    world.simulation.hold();
    assert_eq!(ask(&mut world, 1), []);
    world.simulation.flow();
    world.simulation.release_all();
    let result = ControlResult::Named { id: 1, epoch: 2, last: 0 };
    assert_eq!(ask(&mut world, 2).last(), Some(&result));
    let writes = world.simulation.calls(Site::BeginWrite);
    world.simulation.fail(Site::BeginWrite, writes + 1, Fault::Error(libc::EIO));
    for number in [3, 4] {
        assert_eq!(ask(&mut world, number), [ControlResult::JournalFailed(libc::EIO)]);
        let key = HandleKey { queue: QUEUE, handle: number, epoch: 1 };
        assert!(world.shard.handles.place(key).is_none(), "nothing is left of it");
    }
}

#[test]
fn duplicates_in_a_lane_stay_duplicates_under_another_shard() {
    for held in [false, true] {
        let mut world = World::new();
        world.create_queue();
        let mut producer = world.attach_as(Role::Produce, "source");
        let expected = |producer: &mut Client, from: u64| {
            for sequence in [from, from, from + 1, from - from.min(1), from + 2] {
                producer.send_own(sequence.max(1));
            }
        };
        expected(&mut producer, 1);
        world.turns();
        if held {
            world.simulation.hold();
        }
        expected(&mut producer, 4);
        world.turns();
        expected(&mut producer, 7);
        let simulation = world.simulation.clone();
        drop(world);
        simulation.kill(1);
        simulation.flow();
        let mut world = World::on(simulation, &[(&producer, Role::Produce)]);
        world.turns();
        let mut outcomes = Vec::new();
        for (outcome, count, _) in producer.completions() {
            outcomes.extend((0..count).map(|_| outcome == Outcome::Duplicate));
        }
        let once = [false, true, false, true, false];
        assert_eq!(outcomes, once.repeat(3), "held: {held}");
        assert_eq!(world.shard.logic.info(QUEUE).unwrap().messages, 9);
    }
}

/// A transaction as a client of the queue would send it.
fn transaction(messages: &[(HandleKey, &[u8])], acks: &[(HandleKey, LeaseToken)]) -> Vec<u8> {
    let messages = messages.iter().map(|(producer, payload)| transaction::Message {
        producer: *producer,
        metadata: &[],
        payload,
    });
    let acks = acks.iter().map(|(consumer, lease)| Ack { consumer: *consumer, lease: *lease });
    let whole = Transaction { messages: messages.collect(), acks: acks.collect() };
    let mut body = Vec::new();
    whole.encode(&mut body);
    body
}

#[test]
fn a_transaction_has_handles_of_its_session_and_fits_their_rings() {
    let mut world = World::new();
    world.create_queue();
    let mut producer = world.attach(Role::Produce);
    let mut consumer = world.attach(Role::Consume);
    let mut send = |world: &mut World, body: &[u8]| {
        producer.up.try_send(FLAG_TRANSACTION, &[], body).unwrap();
        producer.link.link.set_ready(producer.word);
        world.turns();
        producer.completions()
    };
    let (own, reader) = (HandleKey { queue: QUEUE, handle: 1, epoch: 1 }, consumer.key);
    assert_eq!(send(&mut world, &transaction(&[(own, b"in")], &[])), [(Outcome::Done, 1, 1)]);
    let lease = consumer.deliveries()[0].0;
    let nobody = HandleKey { handle: 99, ..own };
    let later = HandleKey { epoch: 2, ..own };
    let long = [0; 900];
    let refused = [
        (transaction(&[(own, b"x"), (nobody, b"x")], &[]), Outcome::CrossShard),
        (transaction(&[(later, b"x")], &[]), Outcome::CrossShard),
        (transaction(&[(reader, b"x")], &[]), Outcome::CrossShard),
        (transaction(&[(own, b"x")], &[(own, lease)]), Outcome::CrossShard),
        (transaction(&[(own, b"x")], &[(reader, lease), (reader, lease)]), Outcome::LeaseLost),
    ];
    for (body, outcome) in refused {
        assert_eq!(send(&mut world, &body)[0].0, outcome);
    }
    let fits = transaction(&[(own, &long)], &[(reader, lease)]);
    assert_eq!(send(&mut world, &fits), [(Outcome::Done, 1, 2)]);
    assert_eq!(world.shard.logic.info(QUEUE).unwrap().messages, 1);
    // Another session's handles are not its own.
    if let Some(handle) = world.shard.handles.place(reader) {
        world.shard.handles.get_mut(handle).unwrap().session = SESSION + 1;
    }
    let lease = consumer.deliveries()[0].0;
    let body = transaction(&[(own, b"x")], &[(reader, lease)]);
    assert_eq!(send(&mut world, &body), [(Outcome::CrossShard, 1, 0)]);
    // What is no transaction is the end of its handle, and of nothing else.
    producer.up.try_send(FLAG_TRANSACTION, &[], &fits[..fits.len() - 1]).unwrap();
    producer.link.link.set_ready(producer.word);
    world.turns();
    let faults = world.answers.try_iter().filter(|one| matches!(one, FromShard::Fault { .. }));
    assert_eq!(faults.count(), 1);
    assert!(world.shard.handles.place(own).is_none());
    assert!(world.shard.handles.place(reader).is_some());
}

#[test]
fn another_shard_takes_up_transactions_where_they_stood() {
    for held in [false, true] {
        let mut world = World::new();
        world.create_queue();
        let mut producer = world.attach(Role::Produce);
        let mut consumer = world.attach(Role::Consume);
        for number in 0..4_u8 {
            producer.send(&[number]).unwrap();
        }
        world.turns();
        producer.completions();
        let leased = consumer.deliveries();
        let send = |producer: &mut Client, leases: &[LeaseToken]| {
            let acks: Vec<_> = leases.iter().map(|lease| (consumer.key, *lease)).collect();
            let body = transaction(&[(producer.key, b"a"), (producer.key, b"b")], &acks);
            producer.up.try_send(FLAG_TRANSACTION, &[], &body).unwrap();
            producer.link.link.set_ready(producer.word);
        };
        if held {
            world.simulation.hold();
        }
        send(&mut producer, &[leased[0].0]);
        // Its lease is the one before's: nothing of it is done.
        send(&mut producer, &[leased[0].0, leased[1].0]);
        send(&mut producer, &[leased[1].0]);
        world.turns();
        send(&mut producer, &[leased[2].0]);
        send(&mut producer, &[leased[2].0]);
        let simulation = world.simulation.clone();
        drop(world);
        simulation.kill(1);
        simulation.flow();
        let adopted = [(&producer, Role::Produce), (&consumer, Role::Consume)];
        let mut world = World::on(simulation, &adopted);
        world.turns();
        let outcomes: Vec<_> =
            producer.completions().iter().map(|(outcome, _, first)| (*outcome, *first)).collect();
        let (done, lost) = (|first| (Outcome::Done, first), (Outcome::LeaseLost, 0));
        assert_eq!(outcomes, [done(5), lost, done(7), done(9), lost], "held: {held}");
        let info = world.shard.logic.info(QUEUE).unwrap();
        assert_eq!((info.messages, info.next_sequence), (7, 11), "held: {held}");
    }
}

/// The shard sleeps behind a turn that says that nothing is left to do.
#[test]
fn what_a_faulty_consumer_held_is_given_out_before_the_shard_sleeps() {
    // More than a turn takes from one handle.
    for valid in [0, 300] {
        let mut world = World::new();
        world.create_queue();
        let mut producer = world.attach(Role::Produce);
        let mut faulty = world.attach(Role::Consume);
        for number in 0..4_u8 {
            producer.send(&[number]).unwrap();
        }
        world.turns();
        let held = faulty.deliveries();
        assert_eq!(held.len(), 4);
        let mut other = world.attach(Role::Consume);
        assert_eq!(other.deliveries(), []);
        for _ in 0..valid {
            let stale = LeaseToken { attempt: 9, ..held[0].0 };
            faulty.ask(Up::Ack { lease: stale, request: 0 });
        }
        faulty.send(&[0xff; 8]).unwrap();
        while world.shard.turn(&world.inbox) {}
        let sequences = |(lease, _): &(LeaseToken, Vec<u8>)| lease.sequence;
        assert_eq!(other.deliveries().iter().map(sequences).collect::<Vec<_>>(), [1, 2, 3, 4]);
    }
}
