//! Nobody sleeps through a wake, on either side.

use std::time::Duration;

use ringmain_client::{ProducerOptions, WaitPolicy};

use crate::ends::{Daemon, Sizes};
use crate::shard::{Manner, Shard};

fn publish(producers: usize, messages: u64, window: usize, manner: Manner) {
    let daemon = Daemon::start(Sizes::default());
    let client = daemon.client();
    let mut handles = Vec::new();
    let mut ends = Vec::new();
    for number in 0..producers {
        let wait = WaitPolicy::ALL[number % WaitPolicy::ALL.len()];
        let options = ProducerOptions::default().window(window).wait(wait);
        handles.push(client.brokered_producer("durable", options).expect("attach"));
        ends.push(daemon.end());
    }
    let shard = Shard::start(ends, daemon.doorway(), daemon.doorway(), manner, 0);
    std::thread::scope(|scope| {
        for mut producer in handles {
            scope.spawn(move || {
                let mut settled = 0;
                let mut last = 0;
                for number in 0..messages {
                    producer.send(&number.to_le_bytes()).expect("there will be room");
                    while let Some(run) = producer.try_next_settled().expect("in order") {
                        let sequence = run.result.expect("done").sequence;
                        assert!(sequence > last);
                        assert_eq!(run.first.number(), settled);
                        last = sequence + run.count - 1;
                        settled += run.count;
                    }
                }
                producer.wait_all().expect("confirmed");
                while let Some(run) = producer.try_next_settled().expect("in order") {
                    settled += run.count;
                }
                assert_eq!(settled, messages);
            });
        }
    });
    assert_eq!(shard.stop().1, producers as u64 * messages);
}

#[test]
fn a_sleeping_shard_hears_every_producer() {
    publish(1, 30_000, 1, Manner::default());
    publish(3, 20_000, 0, Manner::default());
    publish(3, 5_000, 4, Manner { run: 3, ..Manner::default() });
}

#[test]
fn a_sleeping_producer_hears_its_shard() {
    let slow = Manner { writing: Duration::from_micros(200), ..Manner::default() };
    publish(2, 500, 1, slow);
    publish(1, 20_000, 0, slow);
}
