//! Single operations of the rings, one thread: what a message costs before any cache line travels. What it costs between
//! processes is measured by `ringmain bench`.

use std::os::fd::AsFd;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ringmain_client::Kind;
use ringmain_client::raw::layout::metadata::Metadata;
use ringmain_client::raw::layout::{Geometry, PAGE_BYTES};
use ringmain_client::raw::ring::{Consumer, Producer, Region, RingMemory, repair};
use ringmain_client::raw::sys::map::{Access, Mapping, Populate};
use ringmain_client::raw::sys::memory::create_sealed;

/// A ring in memory as the daemon makes it. The mappings are leaked: they outlive the benchmark.
fn ring(kind: Kind, slot_size: u32) -> (Producer, Consumer) {
    let geometry = Geometry::new(Some(1024), Some(slot_size), None).expect("valid geometry");
    let region = |bytes: usize| {
        let memory = create_sealed("ringmain-bench", bytes).expect("shared memory");
        let mapping = Mapping::map(memory.as_fd(), bytes, Access::ReadWrite, Populate::Now);
        let mapping: &Mapping = Box::leak(Box::new(mapping.expect("mapping")));
        // SAFETY: mapped for ever, page-aligned, sealed, and no reference to the bytes exists.
        unsafe { Region::new(mapping.base(), bytes) }
    };
    let control = region(PAGE_BYTES);
    repair::init_control(&control, 1, kind, &geometry);
    let memory = match kind {
        Kind::Spsc => RingMemory::Spsc {
            control,
            slots: region(geometry.region_bytes(kind)),
            producer: region(PAGE_BYTES),
            consumer: region(PAGE_BYTES),
        },
        Kind::Mpmc => RingMemory::Mpmc { control, ring: region(geometry.region_bytes(kind)) },
    };
    let producer = Producer::new(memory.clone(), geometry, 1).expect("fresh ring");
    (producer, Consumer::new(memory, geometry, 2).expect("fresh ring"))
}

fn send_and_receive(criterion: &mut Criterion) {
    for kind in [Kind::Spsc, Kind::Mpmc] {
        let mut group = criterion.benchmark_group(format!("{kind:?}").to_lowercase());
        for bytes in [48_u32, 256, 4096] {
            let (mut producer, mut consumer) = ring(kind, bytes + 16);
            let payload = vec![7; bytes as usize];
            let mut into = vec![0; bytes as usize];
            group.throughput(Throughput::Bytes(u64::from(bytes)));
            group.bench_function(format!("send and receive {bytes} B"), |bencher| {
                bencher.iter(|| {
                    producer.try_send(0, &[], &payload).expect("room");
                    let taken = consumer.try_take().expect("a message");
                    consumer.read(&taken, 0, &mut into);
                    consumer.release(taken);
                });
            });
        }
        group.throughput(Throughput::Elements(16));
        let (mut producer, mut consumer) = ring(kind, 64);
        let payload = [7; 48];
        let batch = [&payload[..]; 16];
        group.bench_function("batch of 16 x 48 B", |bencher| {
            bencher.iter(|| {
                producer.try_send_batch(&batch).expect("room");
                while let Ok(taken) = consumer.try_take() {
                    consumer.release(taken);
                }
            });
        });
        group.throughput(Throughput::Elements(1));
        let (mut producer, mut consumer) = ring(kind, 256);
        let payload = vec![7; 10_000];
        group.bench_function("send and release 10,000 B over 41 slots", |bencher| {
            bencher.iter(|| {
                producer.try_send(0, &[], &payload).expect("room");
                let taken = consumer.try_take().expect("a message");
                consumer.release(taken);
            });
        });
        let (_, mut consumer) = ring(kind, 64);
        group.bench_function("look at an empty ring", |bencher| {
            bencher.iter(|| assert!(consumer.try_take().is_err()));
        });
        group.finish();
    }
}

fn metadata(criterion: &mut Criterion) {
    let metadata = Metadata {
        key: Some(b"customer-17".to_vec()),
        headers: vec![("content-type".into(), b"application/json".to_vec())],
        ..Metadata::default()
    };
    criterion.bench_function("encode and decode metadata", |bencher| {
        bencher.iter_batched_ref(
            || Vec::with_capacity(128),
            |encoded| {
                metadata.encode(encoded).expect("short");
                Metadata::decode(encoded).expect("just encoded")
            },
            BatchSize::SmallInput,
        );
    });
}

criterion_group!(benches, send_and_receive, metadata);
criterion_main!(benches);
