//! How fast a producer is with nobody's disk in the way. Not run with the others: `--release -- --ignored --nocapture speed`.

use std::time::{Duration, Instant};

use ringmain_client::ProducerOptions;

use crate::ends::{Daemon, Sizes};
use crate::shard::{Manner, Shard};

/// Processor time of this thread in seconds.
fn cpu_s() -> f64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).expect("it");
    time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9
}

#[test]
#[ignore = "a measurement"]
fn publishing_pipelined() {
    let messages = 4_000_000_u64;
    for (sleeps, slot_size, batch) in
        [(false, 256, 1), (false, 288, 1), (true, 288, 1), (false, 288, 32), (true, 288, 32)]
    {
        let sizes = Sizes {
            slots: 8192,
            slot_size,
            max_message: 1024,
            record_slots: 1024,
            ..Sizes::default()
        };
        let daemon = Daemon::start(sizes);
        let mut producer = daemon
            .client()
            .brokered_producer("durable", ProducerOptions::default())
            .expect("attach");
        let manner = Manner { run: 1024, writing: Duration::ZERO, sleeps };
        let shard = Shard::start(vec![daemon.end()], daemon.doorway(), daemon.doorway(), manner, 0);
        let payload = [7; 256];
        let many = vec![&payload[..]; batch];
        let (started, began_s) = (Instant::now(), cpu_s());
        for _ in 0..messages / batch as u64 {
            if batch == 1 {
                producer.send(&payload).expect("there will be room");
            } else {
                producer.send_batch(&many).expect("there will be room");
            }
        }
        producer.wait_all().expect("confirmed");
        let rate = messages as f64 / started.elapsed().as_secs_f64();
        let own = messages as f64 / (cpu_s() - began_s);
        eprintln!(
            "sleeps={sleeps} slot_size={slot_size} batch={batch}: {rate:.0} messages/s, \
             {own:.0} a second of the producer's own time"
        );
        shard.stop();
    }
}

#[test]
#[ignore = "a measurement"]
fn confirming_one_by_one() {
    for (sleeps, writing) in [(false, 0), (true, 0), (true, 100)] {
        let daemon = Daemon::start(Sizes::default());
        let mut producer = daemon
            .client()
            .brokered_producer("durable", ProducerOptions::default())
            .expect("attach");
        let manner = Manner { run: usize::MAX, writing: Duration::from_micros(writing), sleeps };
        let shard = Shard::start(vec![daemon.end()], daemon.doorway(), daemon.doorway(), manner, 0);
        let mut times: Vec<u128> = (0..20_000)
            .map(|_| {
                let started = Instant::now();
                let receipt = producer.send(&[7; 256]).expect("there is room");
                producer.wait(&receipt).expect("confirmed");
                started.elapsed().as_nanos()
            })
            .collect();
        times.sort_unstable();
        let at = |per_mille: usize| times[times.len() * per_mille / 1000];
        eprintln!(
            "sleeps={sleeps} writing={writing} us: p50 {} ns, p99 {} ns, p99.9 {} ns",
            at(500),
            at(990),
            at(999)
        );
        shard.stop();
    }
}
