//! Golden files: the bytes of slots and metadata as layout version 1 has them. A test that fails here means a new
//! layout version, not a new golden file. `RINGMAIN_GOLDEN=write` writes missing files.
#![cfg(not(loom))]

mod support;

use std::path::PathBuf;

use ringmain_client::layout::metadata::{Metadata, MetadataError, TraceId};
use ringmain_client::layout::{Geometry, LAYOUT_VERSION, PAGE_BYTES, mpmc, spsc_page};
use ringmain_client::protocol::Kind;
use ringmain_client::ring::{Consumer, Producer, Region, RingMemory};
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
    for cut in 1..encoded.len() {
        // A cut at an entry's end is valid metadata; anywhere else it is malformed. Never a panic.
        let _ = Metadata::decode(&encoded[..cut]);
    }
    assert_eq!(Metadata::decode(&[1, 0, 9, 0, 1]), Err(MetadataError::Malformed(0)));
    assert_eq!(
        Metadata::decode(&[9, 0, 1, 0, 1]),
        Ok(Metadata::default()),
        "unknown tags are skipped"
    );
}
