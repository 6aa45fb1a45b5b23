//! Clients of brokered queues that write nonsense: they harm themselves.

use std::os::fd::{AsFd, OwnedFd};

use ringmain_client::Client;
use ringmain_client::layout::pair::{client_file, link};
use ringmain_client::layout::{State, Word};
use ringmain_client::pair::{Pair, PairGeometry};
use ringmain_client::protocol::{Attached, Memory, Reply, Request, Role};
use ringmain_client::ring::{Producer, Region};
use ringmain_client::sync::atomic::Ordering;
use ringmain_client::sys::eventfd::EventFd;
use ringmain_client::sys::map::{Access, Mapping, Populate};

use crate::brokered_support::*;
use crate::support::*;

/// A handle whose memory is written by hand.
struct Bare {
    attached: Attached,
    regions: Vec<(Memory, Region)>,
    bell: EventFd,
    _mappings: Vec<Mapping>,
}

impl Bare {
    fn attach(raw: &mut Raw, name: &str, role: Role) -> Self {
        let (reply, descriptors) = raw.try_ask(&Request::attach(name, role)).unwrap();
        let Reply::Attached(attached) = reply else { panic!("{reply:?}") };
        let mut regions = Vec::new();
        let mut mappings = Vec::new();
        let mut bell = None;
        for (memory, descriptor) in attached.descriptors.iter().zip(descriptors) {
            if *memory == Memory::ShardBell {
                bell = Some(EventFd::from_descriptor(descriptor).unwrap());
                continue;
            }
            let bytes = length(&descriptor);
            let writable =
                Mapping::map(descriptor.as_fd(), bytes, Access::ReadWrite, Populate::Now);
            let may_write = matches!(memory, Memory::ClientFile | Memory::Link);
            assert_eq!(writable.is_ok(), may_write, "{memory:?}");
            let mapping = writable.unwrap_or_else(|_| {
                Mapping::map(descriptor.as_fd(), bytes, Access::ReadOnly, Populate::Now).unwrap()
            });
            // SAFETY: page-aligned and mapped as long as this value lives.
            regions.push((*memory, unsafe { Region::new(mapping.base(), mapping.len()) }));
            mappings.push(mapping);
        }
        Self { attached: *attached, regions, bell: bell.unwrap(), _mappings: mappings }
    }

    fn region(&self, wanted: Memory) -> &Region {
        &self.regions.iter().find(|(memory, _)| *memory == wanted).unwrap().1
    }

    fn pair(&self, role: Role) -> Pair {
        let terms = self.attached.brokered.as_ref().unwrap();
        let geometry = PairGeometry::new(
            role,
            self.attached.slots,
            self.attached.slot_size,
            self.attached.max_message,
            terms.record_slots,
            terms.leases,
        )
        .unwrap();
        let (client, shard) = (self.region(Memory::ClientFile), self.region(Memory::ShardFile));
        Pair::new(geometry, client.clone(), shard.clone()).unwrap()
    }

    fn notify(&self) {
        let index = self.attached.brokered.as_ref().unwrap().ready_index as usize;
        let word = self.region(Memory::Link).u64_at(link::READY + index * 8);
        word.store(1, Ordering::SeqCst);
        self.bell.signal();
    }

    fn write(&self, offset: usize, value: u64) {
        self.region(Memory::ClientFile).u64_at(offset).store(value, Ordering::SeqCst);
    }
}

fn length(descriptor: &OwnedFd) -> usize {
    let file = std::fs::File::from(descriptor.try_clone().unwrap());
    usize::try_from(file.metadata().unwrap().len()).unwrap()
}

/// Another client does not notice.
fn others_go_on(client: &Client, name: &str) {
    let mut sending = producer(client, name);
    publish(&mut sending, (0..50).map(|n| format!("m{n}")));
    let mut receiving = consumer(client, name);
    consume(&mut receiving, 50);
}

fn closed_for_fault(daemon: &Durable, nth: usize) {
    eventually("the handle is closed", || {
        (daemon.daemon.log().matches("is closed:").count() >= nth).then_some(())
    });
}

#[test]
fn nonsense_in_the_rings_ends_that_handle_alone() {
    let daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("q", durable()).unwrap();
    let before = daemon.daemon.status();
    let mut raw = Raw::hello(&daemon.daemon.socket, 9);
    let mut faults = 0;
    let places = [
        (Role::Produce, client_file::UP_SLOTS, Word::new(0, 4000, 0, State::Published).0),
        (Role::Produce, client_file::DOWN_CONSUMER, u64::MAX),
        (Role::Produce, client_file::UP_PRODUCER, u64::MAX),
        (Role::Consume, client_file::UP_SLOTS, Word::new(7, 1, 0, State::Published).0),
        (Role::Consume, client_file::DOWN_CONSUMER, u64::MAX / 2),
    ];
    for (role, offset, value) in places {
        let bare = Bare::attach(&mut raw, "q", role);
        bare.write(offset, value);
        bare.notify();
        if offset == client_file::UP_SLOTS {
            faults += 1;
            closed_for_fault(&daemon, faults);
        }
        // A consumer that only writes nonsense still competes for messages.
        if role == Role::Produce {
            others_go_on(&client, "q");
        }
        let handle = bare.attached.key;
        assert_eq!(raw.ask(&Request::Detach { handle }), Reply::Done);
        others_go_on(&client, "q");
    }
    let status = daemon.daemon.status();
    assert_eq!(status.broker_pid, before.broker_pid, "{}", daemon.daemon.log());
    eventually_inside(&client, "q", |info| info.unacknowledged == 0);
}

#[test]
fn records_that_nobody_knows_end_that_handle_alone() {
    let daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("q", durable()).unwrap();
    let mut raw = Raw::hello(&daemon.daemon.socket, 9);
    for (nth, record) in [&[][..], &[0; 48], &[255; 48], &[1, 2, 3]].into_iter().enumerate() {
        let bare = Bare::attach(&mut raw, "q", Role::Consume);
        let pair = bare.pair(Role::Consume);
        let handle = bare.attached.key.handle;
        let mut up = Producer::new(pair.up(), pair.geometry().up(), handle).unwrap();
        up.try_send(0, &[], record).unwrap();
        bare.notify();
        closed_for_fault(&daemon, nth + 1);
        others_go_on(&client, "q");
    }
}

#[test]
fn a_client_that_reads_nothing_harms_itself() {
    let daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("q", durable()).unwrap();
    let mut raw = Raw::hello(&daemon.daemon.socket, 9);
    // It sends and sends and never takes a completion.
    let bare = Bare::attach(&mut raw, "q", Role::Produce);
    let pair = bare.pair(Role::Produce);
    let mut up = Producer::new(pair.up(), pair.geometry().up(), 1).unwrap();
    let mut sent = 0;
    let mut refused = 0;
    while refused < 50 {
        if up.try_send(0, &[], b"m").is_ok() {
            sent += 1;
        } else {
            refused += 1;
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        bare.notify();
    }
    assert!(sent >= 1000, "{sent}");
    // Another one takes its credit and never reads.
    let _deaf = Bare::attach(&mut raw, "q", Role::Consume);
    let mut sending = producer(&client, "q");
    publish(&mut sending, (0..500).map(|n| format!("m{n}")));
    let mut receiving = consumer(&client, "q");
    let first = receive(&mut receiving);
    assert!(first.sequence() > 1);
    drop(raw);
}

#[test]
fn words_of_other_handles_and_words_of_none_mean_nothing() {
    let daemon = Durable::start();
    let client = daemon.client();
    client.create_queue("q", durable()).unwrap();
    let mut raw = Raw::hello(&daemon.daemon.socket, 9);
    let bare = Bare::attach(&mut raw, "q", Role::Produce);
    let words = bare.region(Memory::Link).clone();
    for round in 0..100 {
        for word in 0..link::HANDLES_MAX {
            words.u64_at(link::READY + word * 8).store(u64::MAX - round, Ordering::SeqCst);
        }
        bare.bell.signal();
    }
    others_go_on(&client, "q");
    assert!(!daemon.daemon.log().contains("is closed:"));
}
