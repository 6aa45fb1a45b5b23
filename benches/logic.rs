//! What the logic of a shard costs per message: publish, durable, dispatch, acknowledge, on one core, without a disk and without
//! rings. In processor time, so that a busy machine does not matter. `cargo bench --bench logic`.
#![allow(missing_docs, clippy::cast_possible_truncation)]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nix::time::{ClockId, clock_gettime};
use ringmain::shard::logic::{
    AppendError, ConsumerSpec, ControlResult, Delivered, HandleId, Limits, Location, Log, Logic,
    Lsn, Message, Now, Port, QueueDefinition, RecordRef, StartAt,
};
use ringmain_client::protocol::Kind;
use ringmain_client::wire::{DeliveryHeader, LeaseToken, Outcome, Up};

const MESSAGE_BYTES: usize = 256;
/// Records kept; more than are in flight.
const KEPT: usize = 1 << 13;

/// Keeps the last messages, each in a place of its own.
struct RingLog {
    lsn: Lsn,
    bodies: Vec<u8>,
    lengths: Vec<usize>,
}

const BODY_BYTES: usize = 512;

impl Log for RingLog {
    fn group_bytes_max(&self) -> usize {
        1 << 20
    }

    fn begin(&mut self) {}
    fn commit(&mut self) {}
    fn abort(&mut self) {}
    fn append(&mut self, record: RecordRef<'_>) -> Result<(Lsn, Location), AppendError> {
        self.lsn += 1;
        if record.sequence != 0 {
            let at = record.sequence as usize % KEPT;
            let mut end = at * BODY_BYTES;
            for part in record.parts {
                self.bodies[end..end + part.len()].copy_from_slice(part);
                end += part.len();
            }
            self.lengths[at] = end - at * BODY_BYTES;
        } else {
            black_box(record.parts);
        }
        Ok((self.lsn, Location { segment: 1, batch: 0, record: 0 }))
    }
    fn message(&mut self, _queue: u64, sequence: u64) -> Message<'_> {
        let at = sequence as usize % KEPT;
        Message::Ready(&self.bodies[at * BODY_BYTES..at * BODY_BYTES + self.lengths[at]])
    }
    fn forget(&mut self, _queue: u64, _below: u64) {}
}

#[derive(Default)]
struct Clients {
    deliveries: Vec<(HandleId, LeaseToken)>,
    completed: u64,
}

impl Port for Clients {
    fn completed(
        &mut self,
        _handle: HandleId,
        _first: u64,
        _last: u64,
        count: u32,
        _sequence: u64,
        _outcome: Outcome,
        _detail: u64,
    ) {
        self.completed += u64::from(count);
    }
    fn deliver(
        &mut self,
        handle: HandleId,
        header: &DeliveryHeader,
        _flags: u16,
        metadata: &[u8],
        payload: &[u8],
    ) -> Delivered {
        black_box((metadata, payload));
        self.deliveries.push((handle, header.lease));
        Delivered::Sent
    }
    fn answer(&mut self, _handle: HandleId, _request: u64, _outcome: Outcome, _detail: u64) {}
    fn unreadable(&mut self, _handle: HandleId, _sequence: u64) {}
    fn drained(&mut self, _handle: HandleId) {}
    fn skipped(&mut self, _handle: HandleId, _messages: u64) {}
    fn lease(&mut self, _handle: HandleId, slot: u32, lease: Option<(u32, u64)>) {
        black_box((slot, lease));
    }
    fn recalled(&mut self, _: HandleId) {}

    fn seen(&mut self, _handle: HandleId, _slot: u32) -> bool {
        true
    }
    fn ended(&mut self, _handle: HandleId) {}
    fn control(&mut self, _request: u64, result: ControlResult) {
        assert_eq!(result, ControlResult::Done);
    }
}

struct Shard {
    logic: Logic,
    log: RingLog,
    clients: Clients,
    spare: Vec<(HandleId, LeaseToken)>,
    position: u64,
    now: Now,
}

fn handle(number: u8) -> HandleId {
    HandleId { queue: 1, handle: number, epoch: 1 }
}

impl Shard {
    fn new(consumers: u8) -> Self {
        let mut shard = Self {
            logic: Logic::new(0),
            log: RingLog { lsn: 0, bodies: vec![0; KEPT * BODY_BYTES], lengths: vec![0; KEPT] },
            clients: Clients::default(),
            spare: Vec::new(),
            position: 0,
            now: Now { monotonic_ns: 1, realtime_ns: 1 },
        };
        let definition = QueueDefinition {
            id: 1,
            name: "orders".into(),
            kind: Kind::Mpmc,
            durable: true,
            slots: 1024,
            slot_size: 256,
            max_message: 65_536,
            owner_uid: 0,
            group_gid: 0,
            mode: 0o700,
            max_deliveries: 0,
            dead_letter: String::new(),
            lease_ms: 30_000,
            limits: Limits::default(),
            ttl_ms: 0,
        };
        shard.logic.start(shard.now);
        shard.logic.create_queue(&mut shard.log, 1, definition);
        shard.logic.open_producer(handle(1), 1).expect("queue");
        let spec = ConsumerSpec {
            group: String::new(),
            from: StartAt::First,
            credit: 1024,
            leases: 2048,
            browse: false,
            adopted: false,
        };
        for number in 0..consumers {
            shard.logic.open_consumer(&mut shard.log, handle(2 + number), &spec).expect("queue");
        }
        shard
    }

    /// Acknowledges what was delivered, publishes so many messages, makes all that durable, gives it out.
    fn turn(&mut self, messages: u64, payload: &[u8]) {
        self.now.monotonic_ns += 100_000;
        self.now.realtime_ns += 100_000;
        let now = self.now;
        std::mem::swap(&mut self.spare, &mut self.clients.deliveries);
        for (handle, lease) in self.spare.drain(..) {
            let up = Up::Ack { lease, request: 0 };
            self.logic.submission(&mut self.clients, handle, up, false, now).expect("room");
        }
        for _ in 0..messages {
            let (position, next) = (self.position, self.position + 2);
            self.position = next;
            self.logic
                .publish(&mut self.log, handle(1), position, next, 0, &[], payload, now)
                .expect("room");
        }
        self.logic.flush(&mut self.log);
        self.logic.on_durable(self.log.lsn, &mut self.clients, &mut self.log, now);
        self.logic.released(handle(1), self.position);
        while self.logic.dispatch(&mut self.log, &mut self.clients, now) {}
        assert_eq!(self.clients.deliveries.len() as u64, messages);
    }
}

fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every Linux has it").into()
}

fn logic(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("logic");
    group.measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_millis(500));
    let payload = [7; MESSAGE_BYTES];
    for (batch, consumers) in [(1u64, 1), (64, 1), (512, 1), (512, 4)] {
        let mut shard = Shard::new(consumers);
        group.throughput(Throughput::Elements(batch));
        group.bench_function(format!("{batch} messages a turn, {consumers} consumers"), |bench| {
            bench.iter_custom(|turns| {
                let before = processor_time();
                for _ in 0..turns {
                    shard.turn(batch, &payload);
                }
                processor_time() - before
            });
        });
    }
    group.finish();
}

criterion_group!(benches, logic);
criterion_main!(benches);
