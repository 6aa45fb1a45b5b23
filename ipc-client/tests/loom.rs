//! Models: every interleaving (up to a bound on preemptions) and every outcome of weak memory that loom knows, over the
//! very source that runs in production, with the atomics swapped.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p ringmain-client --release --test loom`; `LOOM_MAX_PREEMPTIONS` (2 by default
//! here) makes it deeper.
#![cfg(loom)]

use std::time::Duration;

use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use ringmain_client::layout::pair::{link, shard_page};
use ringmain_client::layout::{
    Geometry, HANDLES, PAGE_BYTES, control, handle_line, mpmc, slot, spsc_page,
};
use ringmain_client::pair::{Link, ShardPage};
use ringmain_client::protocol::{Kind, Role};
use ringmain_client::ring::{
    Consumer, Kernel, Park, Producer, Region, RingMemory, TryReceiveError, View, Visit, bias,
    repair, sleep_once, wake_sleepers,
};
use ringmain_client::sync::atomic::{AtomicU32, Ordering, fence};

/// Cells of a slot that the models write: header and the first words of the body.
const BODY_CELLS: usize = 7;

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(2));
    builder.max_branches = 100_000;
    builder.check(model);
}

fn line_words(line: usize) -> impl Iterator<Item = usize> {
    (line..line + 6 * 8).step_by(8)
}

fn slot_words(first: usize, slots: usize) -> Vec<usize> {
    (0..slots).map(|index| first + index * 64 + slot::WORD).collect()
}

fn slot_cells(first: usize, slots: usize) -> Vec<usize> {
    (0..slots)
        .flat_map(|index| {
            (0..BODY_CELLS).map(move |cell| first + index * 64 + slot::HEADER + cell * 8)
        })
        .collect()
}

fn control_page() -> Region {
    let words = [
        control::MAGIC,
        control::VERSION_AND_KIND,
        control::QUEUE_ID,
        control::GEOMETRY,
        control::CLOSED,
        control::OVERFLOW,
        control::PRODUCER_BIAS,
        control::CONSUMER_BIAS,
        control::REPAIRS,
        control::TOMBSTONES,
        control::RETURNED,
    ];
    Region::modelled(PAGE_BYTES, words, [], [])
}

fn mpmc_memory(geometry: &Geometry, handles: &[u8]) -> RingMemory {
    let slots = geometry.slots() as usize;
    let mut words = vec![mpmc::TAIL, mpmc::HEAD, mpmc::RETURNED, mpmc::FAULT, mpmc::DROPPED];
    for index in 0..HANDLES / 64 {
        words.push(mpmc::CONSUMER_SLEEPERS + 8 * index);
        words.push(mpmc::PRODUCER_SLEEPERS + 8 * index);
    }
    for handle in handles {
        words.extend(line_words(mpmc::HANDLE_LINES + usize::from(*handle) * handle_line::BYTES));
    }
    words.extend(slot_words(mpmc::SLOTS, slots));
    let ring = Region::modelled(
        geometry.region_bytes(Kind::Mpmc),
        words,
        [mpmc::CONSUMER_EVENT, mpmc::PRODUCER_EVENT],
        slot_cells(mpmc::SLOTS, slots),
    );
    RingMemory::Mpmc { control: control_page(), ring }
}

fn spsc_page_region() -> Region {
    let mut words = vec![
        spsc_page::POSITION,
        spsc_page::TAKEN,
        spsc_page::REDELIVERED,
        spsc_page::SLEEPERS,
        spsc_page::SHOWN,
    ];
    words.extend(line_words(spsc_page::HANDLE_LINE));
    Region::modelled(PAGE_BYTES, words, [spsc_page::EVENT], [])
}

fn spsc_memory(geometry: &Geometry) -> RingMemory {
    let slots = geometry.slots() as usize;
    RingMemory::Spsc {
        control: control_page(),
        slots: Region::modelled(
            geometry.region_bytes(Kind::Spsc),
            slot_words(0, slots),
            [],
            slot_cells(0, slots),
        ),
        producer: spsc_page_region(),
        consumer: spsc_page_region(),
    }
}

/// A message of `cells` words that all depend on `number`.
fn message(number: u64, cells: usize) -> Vec<u8> {
    (0..cells as u64).flat_map(|cell| (number * 16 + cell).to_ne_bytes()).collect()
}

/// Takes, reads, checks and releases one message; its number.
fn receive(consumer: &mut Consumer) -> Option<u64> {
    let taken = match consumer.try_take() {
        Ok(taken) => taken,
        Err(TryReceiveError::Empty) => return None,
        Err(other) => panic!("{other:?}"),
    };
    let mut bytes = vec![0; taken.length()];
    consumer.read(&taken, 0, &mut bytes);
    consumer.release(taken);
    let first = u64::from_ne_bytes(bytes[..8].try_into().expect("eight bytes"));
    assert_eq!(bytes, message(first / 16, bytes.len() / 8), "altered");
    Some(first / 16)
}

fn send(producer: &mut Producer, number: u64, cells: usize) -> bool {
    producer.try_send(0, &[], &message(number, cells)).is_ok()
}

/// Moves the ring forward by `laps` messages of one slot so that the model crosses the wrap.
fn advance(memory: &RingMemory, geometry: Geometry, messages: u64, producer: u8, consumer: u8) {
    let mut producer = Producer::new(memory.clone(), geometry, producer).expect("producer");
    let mut consumer = Consumer::new(memory.clone(), geometry, consumer).expect("consumer");
    for number in 0..messages {
        assert!(send(&mut producer, 100 + number, 1));
        assert_eq!(receive(&mut consumer), Some(100 + number));
    }
}

fn in_order(received: &[u64], producer: u64) {
    let own: Vec<u64> = received.iter().copied().filter(|number| number / 10 == producer).collect();
    assert!(own.is_sorted_by(|a, b| a < b), "producer {producer}: {own:?}");
}

#[test]
fn spsc_claim_commit_consume_release() {
    check(|| {
        let geometry = Geometry::for_models(1, 1);
        let memory = spsc_memory(&geometry);
        advance(&memory, geometry, 1, 1, 2);
        let mut producer = Producer::new(memory.clone(), geometry, 1).expect("producer");
        let mut consumer = Consumer::new(memory, geometry, 2).expect("consumer");
        let sender =
            thread::spawn(move || (0..4).take_while(|n| send(&mut producer, *n, 1)).count());
        let mut received: Vec<u64> = (0..3).filter_map(|_| receive(&mut consumer)).collect();
        let sent = sender.join().expect("sender") as u64;
        while let Some(number) = receive(&mut consumer) {
            received.push(number);
        }
        assert_eq!(received, (0..sent).collect::<Vec<_>>());
    });
}

#[test]
fn spsc_over_several_slots_and_batches() {
    check(|| {
        let geometry = Geometry::for_models(2, 2);
        let memory = spsc_memory(&geometry);
        advance(&memory, geometry, 3, 1, 2);
        let mut producer = Producer::new(memory.clone(), geometry, 1).expect("producer");
        let mut consumer = Consumer::new(memory, geometry, 2).expect("consumer");
        let sender = thread::spawn(move || {
            let (one, two) = (message(1, 1), message(2, 1));
            let mut sent = vec![];
            if send(&mut producer, 0, 8) {
                sent.push(0);
            }
            if producer.try_send_batch(&[&one, &two]).is_ok() {
                sent.extend([1, 2]);
            }
            sent
        });
        let mut received: Vec<u64> = (0..2).filter_map(|_| receive(&mut consumer)).collect();
        let sent = sender.join().expect("sender");
        while let Some(number) = receive(&mut consumer) {
            received.push(number);
        }
        assert_eq!(received, sent);
    });
}

/// Reads, checks and collects what it is shown.
#[derive(Default)]
struct Collector {
    numbers: Vec<u64>,
}

impl Visit for Collector {
    fn message(&mut self, view: View<'_>) {
        let mut bytes = vec![0; view.taken().length()];
        view.read(0, &mut bytes);
        let first = u64::from_ne_bytes(bytes[..8].try_into().expect("eight bytes"));
        assert_eq!(bytes, message(first / 16, bytes.len() / 8), "altered");
        self.numbers.push(first / 16);
    }

    fn may_go_on(&self) -> bool {
        true
    }

    fn given_back(&mut self, _producers: &Park) {}
}

fn visited_batches(memory: &RingMemory, geometry: Geometry) {
    advance(memory, geometry, 3, 1, 2);
    let mut producer = Producer::new(memory.clone(), geometry, 1).expect("producer");
    let mut consumer = Consumer::new(memory.clone(), geometry, 2).expect("consumer");
    let sender = thread::spawn(move || {
        let messages: Vec<_> = (0..4).map(|number| message(number, 1)).collect();
        let mut sent = vec![];
        for pair in [0, 2] {
            if producer.try_send_batch(&[&messages[pair], &messages[pair + 1]]).is_ok() {
                sent.extend([pair as u64, pair as u64 + 1]);
            }
        }
        sent
    });
    let mut collector = Collector::default();
    let _ = consumer.try_visit(3, &mut collector);
    let sent = sender.join().expect("sender");
    while consumer.try_visit(2, &mut collector).is_ok() {}
    assert_eq!(collector.numbers, sent);
}

#[test]
fn spsc_visited_batches() {
    check(|| {
        let geometry = Geometry::for_models(2, 2);
        visited_batches(&spsc_memory(&geometry), geometry);
    });
}

#[test]
fn mpmc_visited_batches() {
    check(|| {
        let geometry = Geometry::for_models(2, 2);
        visited_batches(&mpmc_memory(&geometry, &[1, 2]), geometry);
    });
}

/// Producers 1, 2, ... send their numbers, consumers take; afterwards everything sent has been received once.
fn mpmc_model(producers: u64, consumers: u8, sends: u64, takes: usize, cells: usize, offset: u64) {
    let geometry =
        Geometry::for_models(if cells > 6 { 2 } else { 1 }, if cells > 6 { 2 } else { 1 });
    let memory = mpmc_memory(&geometry, &[1, 2, 3, 11, 12]);
    advance(&memory, geometry, offset, 1, 11);
    let senders: Vec<_> = (1..=producers)
        .map(|number| {
            let handle = u8::try_from(number).expect("few");
            let mut producer = Producer::new(memory.clone(), geometry, handle).expect("producer");
            thread::spawn(move || {
                let sent = (0..sends).filter(|n| send(&mut producer, number * 10 + n, cells));
                sent.map(|n| number * 10 + n).collect::<Vec<u64>>()
            })
        })
        .collect();
    let mut ends: Vec<Consumer> = (0..consumers)
        .map(|index| Consumer::new(memory.clone(), geometry, 11 + index).expect("consumer"))
        .collect();
    let mut own = ends.pop().expect("at least one");
    let receivers: Vec<_> = ends
        .into_iter()
        .map(|mut end| {
            thread::spawn(move || (0..takes).filter_map(|_| receive(&mut end)).collect())
        })
        .collect();
    let mut lists: Vec<Vec<u64>> = vec![(0..takes).filter_map(|_| receive(&mut own)).collect()];
    let mut sent: Vec<u64> = senders.into_iter().flat_map(|s| s.join().expect("sender")).collect();
    lists.extend(receivers.into_iter().map(|r| r.join().expect("receiver")));
    lists.push(std::iter::from_fn(|| receive(&mut own)).collect());
    for list in &lists {
        (1..=producers).for_each(|producer| in_order(list, producer));
    }
    let mut received = lists.concat();
    received.sort_unstable();
    sent.sort_unstable();
    assert_eq!(received, sent);
}

#[test]
fn mpmc_two_producers_one_consumer() {
    check(|| mpmc_model(2, 1, 1, 2, 1, 1));
}

#[test]
fn mpmc_two_producers_one_consumer_full_ring() {
    check(|| mpmc_model(2, 1, 2, 1, 1, 0));
}

#[test]
fn mpmc_one_producer_two_consumers() {
    check(|| mpmc_model(1, 2, 2, 1, 1, 1));
}

#[test]
fn mpmc_over_several_slots() {
    check(|| mpmc_model(2, 1, 1, 1, 8, 3));
}

/// The producer and the consumer have their sides to themselves.
fn biased_model(sends: u64, takes: usize, cells: usize, offset: u64) {
    let long = cells > 6;
    let geometry = Geometry::for_models(if long { 2 } else { 1 }, if long { 2 } else { 1 });
    let memory = mpmc_memory(&geometry, &[1, 11]);
    advance(&memory, geometry, offset, 1, 11);
    let (mut producer, mut consumer) = biased_ends(&memory, geometry);
    let sender = thread::spawn(move || {
        (0..sends).filter(|number| send(&mut producer, *number, cells)).collect::<Vec<u64>>()
    });
    let mut received: Vec<u64> = (0..takes).filter_map(|_| receive(&mut consumer)).collect();
    let sent = sender.join().expect("sender");
    received.extend(std::iter::from_fn(|| receive(&mut consumer)));
    assert_eq!(received, sent);
}

/// Handles 1 and 11, each the only one of its role.
fn biased_ends(memory: &RingMemory, geometry: Geometry) -> (Producer, Consumer) {
    bias::grant(memory, Role::Produce, 1);
    bias::grant(memory, Role::Consume, 11);
    let producer = Producer::new(memory.clone(), geometry, 1).expect("producer");
    let consumer = Consumer::new(memory.clone(), geometry, 11).expect("consumer");
    (producer.with_bias(), consumer.with_bias())
}

/// What the daemon and a new handle do before the first claim of that.
fn take_bias_back(memory: &RingMemory, role: Role) {
    if bias::revoke(memory, role) {
        // SeqCst: the daemon's membarrier.
        fence(Ordering::SeqCst);
    }
    while bias::holdout(memory, role).is_some() {
        thread::yield_now();
    }
}

#[test]
fn mpmc_biased_claims_and_takes() {
    check(|| biased_model(3, 1, 1, 1));
}

#[test]
fn mpmc_biased_over_several_slots() {
    check(|| biased_model(2, 1, 8, 3));
}

/// A second producer arrives while the first one claims without exchanges.
#[test]
fn a_second_producer_ends_the_bias_of_the_first() {
    check(|| {
        let geometry = Geometry::for_models(2, 1);
        let memory = mpmc_memory(&geometry, &[1, 2, 11]);
        let (mut first, mut consumer) = biased_ends(&memory, geometry);
        let sender = thread::spawn(move || {
            (10..12).filter(|number| send(&mut first, *number, 1)).collect::<Vec<u64>>()
        });
        take_bias_back(&memory, Role::Produce);
        let mut second = Producer::new(memory, geometry, 2).expect("producer").with_bias();
        let mut sent: Vec<u64> = (20..22).filter(|number| send(&mut second, *number, 1)).collect();
        sent.splice(0..0, sender.join().expect("sender"));
        let received: Vec<u64> = std::iter::from_fn(|| receive(&mut consumer)).collect();
        in_order(&received, 1);
        in_order(&received, 2);
        let mut sorted = received.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, sent, "each once: {received:?}");
    });
}

/// A second consumer arrives while the first one takes without exchanges.
#[test]
fn a_second_consumer_ends_the_bias_of_the_first() {
    check(|| {
        let geometry = Geometry::for_models(2, 1);
        let memory = mpmc_memory(&geometry, &[1, 11, 12]);
        let (mut producer, mut first) = biased_ends(&memory, geometry);
        assert!((0..3).all(|number| send(&mut producer, number, 1)));
        let taker = thread::spawn(move || {
            let taken: Vec<u64> = (0..2).filter_map(|_| receive(&mut first)).collect();
            taken
        });
        take_bias_back(&memory, Role::Consume);
        let mut second = Consumer::new(memory, geometry, 12).expect("consumer").with_bias();
        let mut received: Vec<u64> = (0..2).filter_map(|_| receive(&mut second)).collect();
        received.extend(taker.join().expect("taker"));
        received.extend(std::iter::from_fn(|| receive(&mut second)));
        received.sort_unstable();
        assert_eq!(received, [0, 1, 2], "each once");
    });
}

/// The second one goes, and the daemon gives the bias back to the first in the middle of its work.
#[test]
fn a_bias_comes_back() {
    check(|| {
        let geometry = Geometry::for_models(2, 1);
        let memory = mpmc_memory(&geometry, &[1, 2, 11]);
        let mut consumer = Consumer::new(memory.clone(), geometry, 11).expect("consumer");
        let mut first = Producer::new(memory.clone(), geometry, 1).expect("producer").with_bias();
        let daemon = thread::spawn(move || {
            let mut second = Producer::new(memory.clone(), geometry, 2).expect("producer");
            let sent = send(&mut second, 20, 1);
            drop(second);
            bias::grant(&memory, Role::Produce, 1);
            sent
        });
        let mut sent: Vec<u64> = (10..13).filter(|number| send(&mut first, *number, 1)).collect();
        if daemon.join().expect("daemon") {
            sent.push(20);
        }
        let mut received: Vec<u64> = std::iter::from_fn(|| receive(&mut consumer)).collect();
        in_order(&received, 1);
        received.sort_unstable();
        assert_eq!(received, sent, "each once");
    });
}

/// A dead consumer's repair helps head and tail along beside handles that move them without exchanges.
#[test]
fn repair_beside_biased_handles() {
    check(|| {
        let geometry = Geometry::for_models(1, 1);
        let memory = mpmc_memory(&geometry, &[1, 3, 11, 13]);
        advance(&memory, geometry, 1, 3, 13);
        let (mut producer, mut consumer) = biased_ends(&memory, geometry);
        let repairer = thread::spawn(move || {
            repair::dead_handle(&memory, &geometry, 13, Role::Consume).expect("honest memory");
        });
        let mut received = vec![];
        let mut sent = vec![];
        for number in 0..2 {
            if send(&mut producer, number, 1) {
                sent.push(number);
            }
            received.extend(receive(&mut consumer));
        }
        repairer.join().expect("repairer");
        assert_eq!(received, sent);
    });
}

/// Producers 1, 2, ... send into a full ring and may drop, beside a consumer. What was sent was received or counted as dropped.
fn dropping_model(producers: u64, takes: usize, cells: usize, offset: u64) {
    let long = cells > 6;
    let geometry = Geometry::for_models(if long { 2 } else { 1 }, if long { 2 } else { 1 });
    let memory = mpmc_memory(&geometry, &[1, 2, 3, 11]);
    advance(&memory, geometry, offset, 3, 11);
    let mut filler = Producer::new(memory.clone(), geometry, 3).expect("producer");
    let fill = (0..8).take_while(|number| send(&mut filler, 50 + number, 1)).count() as u64;
    let senders: Vec<_> = (1..=producers)
        .map(|number| {
            let handle = u8::try_from(number).expect("few");
            let mut producer = Producer::new(memory.clone(), geometry, handle).expect("producer");
            thread::spawn(move || producer.dropping(|end| send(end, number * 10, cells)).0)
        })
        .collect();
    let mut consumer = Consumer::new(memory.clone(), geometry, 11).expect("consumer");
    let mut received: Vec<u64> = (0..takes).filter_map(|_| receive(&mut consumer)).collect();
    let sent = senders.into_iter().map(|s| s.join().expect("sender"));
    let sent = sent.filter(|sent| *sent).count() as u64;
    received.extend(std::iter::from_fn(|| receive(&mut consumer)));
    assert_eq!(received.len() as u64 + memory.dropped(), fill + sent, "{received:?}");
    in_order(&received, 5);
    received.sort_unstable();
    assert!(received.is_sorted_by(|a, b| a < b), "received twice: {received:?}");
}

#[test]
fn mpmc_a_drop_beside_a_take() {
    check(|| dropping_model(1, 2, 1, 1));
}

#[test]
fn mpmc_two_drops_beside_a_take() {
    check(|| dropping_model(2, 1, 1, 0));
}

#[test]
fn mpmc_drops_for_several_slots() {
    check(|| dropping_model(1, 2, 8, 3));
}

/// A futex made of a mutex and a condition variable; both barriers are sequentially consistent fences.
struct ModelKernel {
    lock: Mutex<()>,
    wakes: Condvar,
}

impl ModelKernel {
    fn new() -> Arc<Self> {
        Arc::new(Self { lock: Mutex::new(()), wakes: Condvar::new() })
    }
}

impl Kernel for ModelKernel {
    fn heavy_barrier(&self) {
        fence(Ordering::SeqCst);
    }
    fn light_barrier(&self) {
        fence(Ordering::SeqCst);
    }
    fn wait(&self, word: &AtomicU32, expected: u32, _timeout: Option<Duration>) {
        let guard = self.lock.lock().expect("lock");
        // The kernel compares under the lock of the futex's bucket, as here.
        if word.load(Ordering::SeqCst) == expected {
            drop(self.wakes.wait(guard).expect("wait"));
        }
    }
    fn wake(&self, _word: &AtomicU32, count: u32) {
        let _guard = self.lock.lock().expect("lock");
        if count == 1 {
            self.wakes.notify_one();
        } else {
            self.wakes.notify_all();
        }
    }
}

fn notify(park: &Park, kernel: &ModelKernel, count: u32) {
    kernel.light_barrier();
    if park.any_sleeper() {
        wake_sleepers(park, kernel, count);
    }
}

fn receive_sleeping(consumer: &mut Consumer, kernel: &ModelKernel) -> u64 {
    let park = consumer.own_park().clone();
    let handle = consumer.handle();
    loop {
        if let Some(number) = receive(consumer) {
            return number;
        }
        // A wake that is lost leaves every thread asleep: loom reports the deadlock.
        if let Some(number) = sleep_once(&park, handle, kernel, None, || receive(consumer)) {
            return number;
        }
    }
}

#[test]
fn parking_loses_no_wake_spsc() {
    check(|| {
        let geometry = Geometry::for_models(1, 1);
        let memory = spsc_memory(&geometry);
        let mut producer = Producer::new(memory.clone(), geometry, 1).expect("producer");
        let mut consumer = Consumer::new(memory, geometry, 2).expect("consumer");
        let kernel = ModelKernel::new();
        let waking = kernel.clone();
        let sender = thread::spawn(move || {
            assert!(send(&mut producer, 1, 1));
            notify(producer.peer_park(), &waking, 1);
        });
        assert_eq!(receive_sleeping(&mut consumer, &kernel), 1);
        sender.join().expect("sender");
    });
}

#[test]
fn parking_loses_no_wake_with_two_sleepers() {
    check(|| {
        let geometry = Geometry::for_models(1, 1);
        let memory = mpmc_memory(&geometry, &[1, 11, 12]);
        let mut producer = Producer::new(memory.clone(), geometry, 1).expect("producer");
        let kernel = ModelKernel::new();
        let receivers: Vec<_> = [11, 12]
            .into_iter()
            .map(|handle| {
                let mut end = Consumer::new(memory.clone(), geometry, handle).expect("consumer");
                let kernel = kernel.clone();
                thread::spawn(move || receive_sleeping(&mut end, &kernel))
            })
            .collect();
        for number in [1, 2] {
            assert!(send(&mut producer, number, 1));
            notify(producer.peer_park(), &kernel, 1);
        }
        let mut received: Vec<u64> =
            receivers.into_iter().map(|receiver| receiver.join().expect("receiver")).collect();
        received.sort_unstable();
        assert_eq!(received, [1, 2]);
    });
}

/// Handle 3 or 13 is dead in some state; its repair runs beside a live producer and a live consumer.
fn repair_model(geometry: Geometry, dead: (u8, Role), prepare: impl Fn(&RingMemory, Geometry)) {
    let memory = mpmc_memory(&geometry, &[1, 3, 11, 13]);
    prepare(&memory, geometry);
    let mut producer = Producer::new(memory.clone(), geometry, 1).expect("producer");
    let mut consumer = Consumer::new(memory.clone(), geometry, 11).expect("consumer");
    let repaired = memory.clone();
    let repairer = thread::spawn(move || {
        repair::dead_handle(&repaired, &geometry, dead.0, dead.1).expect("honest memory");
    });
    let sender = thread::spawn(move || {
        let sent: Vec<u64> =
            (20..22).take_while(|number| send(&mut producer, *number, 1)).collect();
        (producer, sent)
    });
    let mut received: Vec<u64> = (0..2).filter_map(|_| receive(&mut consumer)).collect();
    repairer.join().expect("repairer");
    let (mut producer, sent) = sender.join().expect("sender");
    received.extend(std::iter::from_fn(|| receive(&mut consumer)));
    in_order(&received, 2);
    let live: Vec<u64> = received.iter().copied().filter(|number| *number >= 20).collect();
    assert_eq!(live, sent, "live messages arrive once, whatever the repair does");
    let left: Vec<u64> = received.iter().copied().filter(|number| *number < 20).collect();
    match dead.1 {
        Role::Produce => {
            assert!(left.is_empty(), "what a dead producer did not commit never appears")
        }
        Role::Consume => assert_eq!(left, [7], "what a dead consumer held is given out once"),
    }
    // No slot is lost: a whole lap fits.
    for number in 0..geometry.slots() {
        assert!(send(&mut producer, number, 1), "slot {number} of a whole lap");
    }
    for number in 0..geometry.slots() {
        assert_eq!(receive(&mut consumer), Some(number));
    }
}

#[test]
fn repair_of_a_writer_beside_live_handles() {
    check(|| {
        repair_model(Geometry::for_models(1, 1), (3, Role::Produce), |memory, geometry| {
            advance(memory, geometry, 1, 3, 13);
            let mut dead = Producer::new(memory.clone(), geometry, 3).expect("producer");
            drop(dead.try_reserve(8).expect("room"));
        });
    });
}

#[test]
fn repair_of_a_holder_beside_live_handles() {
    check(|| {
        repair_model(Geometry::for_models(2, 2), (13, Role::Consume), |memory, geometry| {
            advance(memory, geometry, 3, 3, 13);
            let mut producer = Producer::new(memory.clone(), geometry, 3).expect("producer");
            assert!(send(&mut producer, 7, 8));
            let mut dead = Consumer::new(memory.clone(), geometry, 13).expect("consumer");
            drop(dead.try_take().expect("sent"));
            // It died while it released: the word behind the first is free in the next lap already.
            let RingMemory::Mpmc { ring, .. } = memory else { unreachable!() };
            let behind = mpmc::SLOTS + geometry.slot_offset(4);
            let free = ringmain_client::layout::Word::free(geometry.lap(4) + 1);
            ring.u64_at(behind).store(free.0, Ordering::SeqCst);
        });
    });
}

/// A live producer with a claim must not lose it to the repair of somebody else.
#[test]
fn repair_takes_nothing_from_the_living() {
    check(|| {
        let geometry = Geometry::for_models(1, 1);
        let memory = mpmc_memory(&geometry, &[1, 3, 11]);
        let mut producer = Producer::new(memory.clone(), geometry, 1).expect("producer");
        let mut consumer = Consumer::new(memory.clone(), geometry, 11).expect("consumer");
        let repairer = thread::spawn(move || {
            repair::dead_handle(&memory, &geometry, 3, Role::Produce).expect("honest memory");
        });
        let reserved = producer.try_reserve(8).expect("room");
        producer.write(&reserved, 0, &message(5, 1)).expect("within");
        producer.commit(reserved, 8);
        repairer.join().expect("repairer");
        assert_eq!(receive(&mut consumer), Some(5));
    });
}

/// A shard's bell: an eventfd keeps what was written until it is read.
struct ModelBell {
    rung: Mutex<bool>,
    heard: Condvar,
}

impl ModelBell {
    fn ring(&self) {
        *self.rung.lock().expect("lock") = true;
        self.heard.notify_one();
    }

    fn sleep(&self) {
        let mut rung = self.rung.lock().expect("lock");
        while !*rung {
            rung = self.heard.wait(rung).expect("wait");
        }
        *rung = false;
    }
}

/// Clients that publish, and a shard that sleeps whenever nothing is ready. A ring that is lost leaves it asleep: loom reports
/// the deadlock. Returns what the shard received.
fn doorway(clients: usize, messages: u64, client_barrier: bool) {
    let words = (0..clients).map(|index| link::READY + 8 * index);
    let region = Region::modelled(link::BYTES, words, [], []);
    let ready = Link::new(region).expect("long enough");
    let halves = [shard_page::ASLEEP, shard_page::SLEEPS];
    let page = ShardPage::new(Region::modelled(shard_page::BYTES, [], halves, [])).expect("so");
    let bell = Arc::new(ModelBell { rung: Mutex::new(false), heard: Condvar::new() });
    let geometry = Geometry::for_models(1, 1);
    let mut lanes = Vec::new();
    let mut threads = Vec::new();
    for index in 0..clients {
        let memory = spsc_memory(&geometry);
        let mut producer = Producer::new(memory.clone(), geometry, 1).expect("producer");
        lanes.push(Consumer::new(memory, geometry, 2).expect("consumer"));
        let (ready, page, bell) = (ready.clone(), page.clone(), Arc::clone(&bell));
        threads.push(thread::spawn(move || {
            let mut rung_for = 0;
            for number in 0..messages {
                assert!(send(&mut producer, number, 1), "the lane has room for all");
                ready.set_ready(index as u32);
                if client_barrier {
                    fence(Ordering::SeqCst);
                }
                let sleep = page.sleep();
                if sleep != 0 && sleep != rung_for {
                    bell.ring();
                    rung_for = sleep;
                }
            }
        }));
    }
    let mut received = vec![0; clients];
    while received.iter().any(|count| *count < messages) {
        let mut busy = false;
        for (index, lane) in lanes.iter_mut().enumerate() {
            if ready.take_ready(index as u32) {
                busy = true;
                while let Some(number) = receive(lane) {
                    assert_eq!(number, received[index]);
                    received[index] += 1;
                }
            }
        }
        if busy {
            continue;
        }
        page.set_asleep(true);
        fence(Ordering::SeqCst);
        if !(0..clients).any(|index| ready.is_ready(index as u32)) {
            bell.sleep();
        }
        page.set_asleep(false);
    }
    for thread in threads {
        thread.join().expect("client");
    }
}

#[test]
fn a_shard_hears_a_client_that_publishes_twice() {
    check(|| doorway(1, 2, true));
}

#[test]
fn a_shard_hears_two_clients() {
    check(|| doorway(2, 1, true));
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_clients_barrier_a_ring_is_lost() {
    check(|| doorway(1, 1, false));
}
