//! Golden files: the bytes of slots and metadata as this layout version has them. A test that fails here means a new
//! layout version, not a new golden file. `RINGMAIN_GOLDEN=write` writes missing files.
#![cfg(not(loom))]

mod support;

use std::path::PathBuf;
use std::time::Duration;

use ringmain_client::layout::metadata::{Metadata, MetadataError, TraceId};
use ringmain_client::layout::pair::{link, shard_page};
use ringmain_client::layout::{Geometry, LAYOUT_VERSION, PAGE_BYTES, mpmc, spsc_page};
use ringmain_client::pair::{LeaseEntry, Link, Pair, PairGeometry, ShardPage};
use ringmain_client::protocol::{Kind, Overflow, Role};
use ringmain_client::ring::{Consumer, Producer, Region, RingMemory, bias, repair};
use ringmain_client::wire::{DeliveryHeader, Down, LeaseToken, Up};
use support::ring_memory;

fn golden(name: &str, bytes: &[u8]) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let path = folder.join(format!("{name}.v{LAYOUT_VERSION}.hex"));
    let mut text = String::new();
    for (line, chunk) in bytes.chunks(16).enumerate() {
        // Lines of zeros say nothing.
        if chunk.iter().any(|byte| *byte != 0) {
            let hex: Vec<String> = chunk.iter().map(|byte| format!("{byte:02x}")).collect();
            text.push_str(&format!("{:06x}: {}\n", line * 16, hex.join(" ")));
        }
    }
    if !path.exists() && std::env::var("RINGMAIN_GOLDEN").as_deref() == Ok("write") {
        std::fs::write(&path, &text).expect("golden file");
    }
    let expected =
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    assert_eq!(text, expected, "the bytes of {name} changed: this needs a new LAYOUT_VERSION");
}

fn dump(region: &Region, from: usize, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    region.copy_out(from, &mut bytes);
    bytes
}

fn metadata() -> Metadata {
    Metadata {
        key: Some(b"LAS".to_vec()),
        headers: vec![("kind".into(), b"flight".to_vec()), ("empty".into(), vec![])],
        trace: Some(TraceId { trace: [0xaa; 16], span: [0xbb; 8], flags: 1 }),
        ..Metadata::default()
    }
}

/// A ring with one of everything: two messages released, a held one, a batch, a message over several slots.
fn exercise(memory: &RingMemory, geometry: Geometry) {
    let mut producer = Producer::new(memory.clone(), geometry, 3).expect("producer");
    let mut consumer = Consumer::new(memory.clone(), geometry, 5).expect("consumer");
    for payload in [&b"first"[..], b"second"] {
        producer.try_send(0, &[], payload).expect("room");
        let taken = consumer.try_take().expect("sent");
        consumer.release(taken);
    }
    let mut encoded = Vec::new();
    metadata().encode(&mut encoded).expect("short");
    producer.try_send(0, &encoded, b"with metadata").expect("room");
    let held = consumer.try_take().expect("sent");
    let long: Vec<u8> = (0..150).collect();
    producer.try_send(0, &[], &long).expect("room");
    producer.try_send_batch(&[b"a", b"bb", b"ccc"]).expect("room");
    let reserved = producer.try_reserve(9).expect("room");
    if matches!(memory, RingMemory::Mpmc { .. }) {
        producer.abort(reserved);
        let reserved = producer.try_reserve(9).expect("room");
        drop(reserved);
    }
    drop(held);
}

#[test]
fn mpmc_ring() {
    let geometry = Geometry::new(Some(64), Some(64), Some(512)).expect("valid");
    let memory = ring_memory(Kind::Mpmc, &geometry);
    exercise(&memory, geometry);
    let RingMemory::Mpmc { control, ring } = &memory else { unreachable!() };
    golden("mpmc-control", &dump(control, 0, PAGE_BYTES));
    golden("mpmc-header", &dump(ring, 0, mpmc::SLOTS));
    golden("mpmc-slots", &dump(ring, mpmc::SLOTS, geometry.slots_bytes()));
}

#[test]
fn mpmc_ring_that_drops() {
    let geometry = Geometry::new(Some(64), Some(64), Some(512)).expect("valid");
    let memory = ring_memory(Kind::Mpmc, &geometry);
    repair::set_overflow(memory.control(), Overflow::DropOldest);
    let mut producer = Producer::new(memory.clone(), geometry, 3).expect("producer");
    for _ in 0..66 {
        producer.dropping(|end| end.try_send(0, &[], b"x")).0.expect("dropped for");
    }
    let RingMemory::Mpmc { control, ring } = &memory else { unreachable!() };
    golden("mpmc-overflow-control", &dump(control, 0, PAGE_BYTES));
    golden("mpmc-overflow-header", &dump(ring, 0, mpmc::SLOTS));
    golden("mpmc-overflow-slots", &dump(ring, mpmc::SLOTS, 4 * geometry.slot_size()));
}

/// A handle of each role that has its side to itself, then a second consumer, then a rule that bars all of them.
#[test]
fn mpmc_ring_with_biased_sides() {
    let geometry = Geometry::new(Some(64), Some(64), Some(512)).expect("valid");
    let memory = ring_memory(Kind::Mpmc, &geometry);
    bias::grant(&memory, Role::Produce, 3);
    bias::grant(&memory, Role::Consume, 5);
    let mut producer = Producer::new(memory.clone(), geometry, 3).expect("producer").with_bias();
    let mut consumer = Consumer::new(memory.clone(), geometry, 5).expect("consumer").with_bias();
    for payload in [&b"first"[..], b"second", &[7; 150]] {
        producer.try_send(0, &[], payload).expect("room");
    }
    let taken = consumer.try_take().expect("sent");
    consumer.release(taken);
    drop(consumer.try_take().expect("sent"));
    let RingMemory::Mpmc { control, ring } = &memory else { unreachable!() };
    // Beside the control page everything is as claims by exchange leave it.
    golden("mpmc-biased-header", &dump(ring, 0, mpmc::SLOTS));
    golden("mpmc-biased-slots", &dump(ring, mpmc::SLOTS, 8 * geometry.slot_size()));
    assert!(bias::revoke(&memory, Role::Consume));
    bias::bar(&memory, Role::Consume);
    golden("mpmc-biased-control", &dump(control, 0, PAGE_BYTES));
}

#[test]
fn spsc_ring() {
    let geometry = Geometry::new(Some(64), Some(64), Some(512)).expect("valid");
    let memory = ring_memory(Kind::Spsc, &geometry);
    exercise(&memory, geometry);
    let RingMemory::Spsc { control, slots, producer, consumer } = &memory else { unreachable!() };
    golden("spsc-control", &dump(control, 0, PAGE_BYTES));
    golden("spsc-producer-page", &dump(producer, 0, spsc_page::BYTES));
    golden("spsc-consumer-page", &dump(consumer, 0, spsc_page::BYTES));
    golden("spsc-slots", &dump(slots, 0, geometry.slots_bytes()));
}

#[test]
fn metadata_bytes() {
    let mut encoded = Vec::new();
    metadata().encode(&mut encoded).expect("short");
    golden("metadata", &encoded);
    assert_eq!(Metadata::decode(&encoded), Ok(metadata()));
    let request = Metadata {
        ttl: Some(Duration::from_millis(0x0102)),
        delay: Some(Duration::from_micros(1)),
        reply_to: Some("reply.1".into()),
        correlation: Some(0x0304),
        ..Metadata::default()
    };
    let mut bytes = Vec::new();
    request.encode(&mut bytes).expect("short");
    golden("metadata-request", &bytes);
    // A microsecond counts as a millisecond.
    let delay = Some(Duration::from_millis(1));
    assert_eq!(Metadata::decode(&bytes), Ok(Metadata { delay, ..request }));
    for cut in 1..encoded.len() {
        // A cut at an entry's end is valid metadata; anywhere else it is malformed. Never a panic.
        let _ = Metadata::decode(&encoded[..cut]);
    }
    assert_eq!(Metadata::decode(&[1, 0, 9, 0, 1]), Err(MetadataError::Malformed(0)));
    assert_eq!(
        Metadata::decode(&[200, 0, 1, 0, 1]),
        Ok(Metadata::default()),
        "unknown tags are skipped"
    );
}

#[test]
fn both_files_of_a_brokered_handle() {
    let sizes = PairGeometry::new(Role::Consume, 64, 64, 200, 64, 4).expect("valid");
    let client = support::region(sizes.client_file_bytes());
    let shard = support::region(sizes.shard_file_bytes());
    let pair = Pair::new(sizes, client.clone(), shard.clone()).expect("the right lengths");
    repair::init_control(&pair.control(), 7, Kind::Spsc, &sizes.up());
    let mut requests = Producer::new(pair.up(), sizes.up(), 1).expect("producer");
    let mut requested = Consumer::new(pair.up(), sizes.up(), 1).expect("consumer");
    let mut deliveries = Producer::new(pair.down(), sizes.down(), 1).expect("producer");
    let mut delivered = Consumer::new(pair.down(), sizes.down(), 1).expect("consumer");
    let lease = LeaseToken { slot: 2, attempt: 1, sequence: 0x0102 };
    let header = DeliveryHeader { lease, published_ns: 0x0304, lease_ms: 0x0506 };
    let mut bytes = Down::Delivery(header).encode().as_ref().to_vec();
    bytes.extend_from_slice(b"payload");
    deliveries.try_send(0, &[], &bytes).expect("room");
    let drained = Down::Drained.encode();
    deliveries.try_send(0, &[], drained.as_ref()).expect("room");
    let taken = delivered.try_take().expect("sent");
    delivered.release(taken);
    let ups = [
        Up::Ack { lease, request: 0x07 },
        Up::Nack { lease, request: 0x08, delay_ms: 0x09 },
        Up::Extend { lease, request: 0x0a, lease_ms: 0x0b },
        Up::Reject { lease, request: 0x0c },
        Up::Credit { credit: 0x0d },
        Up::Flush { request: 0x0e },
    ];
    for up in ups {
        requests.try_send(0, &[], up.encode().as_ref()).expect("room");
    }
    let taken = requested.try_take().expect("sent");
    requested.release(taken);
    pair.status().set_taken(0x0f);
    pair.status().set_credit(0x10);
    let entry = LeaseEntry { attempt: 1, sequence: 0x0102, position: 0x11 };
    pair.leases().set(2, Some(entry));
    assert_eq!((pair.leases().get(2), pair.leases().get(3)), (Some(entry), None));
    golden("pair-client-file", &dump(&client, 0, client.len()));
    golden("pair-shard-file", &dump(&shard, 0, shard.len()));
}

#[test]
fn link_and_shard_page() {
    let (words, page) = (support::region(link::BYTES), support::region(shard_page::BYTES));
    let link = Link::new(words.clone()).expect("long enough");
    let shard = ShardPage::new(page.clone()).expect("long enough");
    link.set_ready(0);
    link.set_ready(3);
    link.set_ready(u32::MAX);
    assert!(link.take_ready(0) && !link.take_ready(0) && !link.take_ready(u32::MAX));
    for asleep in [true, false, true] {
        shard.set_asleep(asleep);
        assert_eq!(shard.sleep() != 0, asleep);
    }
    shard.set_failed(-5, 0x12);
    assert_eq!(shard.failed(), Some((5, 0x12)));
    golden("link", &dump(&words, 0, words.len()));
    golden("shard-page", &dump(&page, 0, page.len()));
}
