//! A daemon that breaks the rules: typed errors, and nothing else.

use std::time::Duration;

use ringmain_client::raw::layout::{State, Word, spsc_page};
use ringmain_client::raw::ring::RingMemory;
use ringmain_client::raw::sync::atomic::Ordering;
use ringmain_client::raw::wire::{Down, Outcome};
use ringmain_client::{
    AckError, ConfirmError, ConsumerOptions, Delivery, Invariant, ProducerOptions, ReceiveError,
    SendError,
};

use crate::ends::{Daemon, Sizes};

const LONG: Duration = Duration::from_secs(20);

fn is_record(fault: &ringmain_client::Fault) -> bool {
    fault.invariant == Invariant::Record
}

#[test]
fn records_that_are_none_break_the_handle_off() {
    let completed = |first_position, count| Down::Completed {
        first_position,
        last_position: first_position,
        first_sequence: 1,
        count,
        outcome: Outcome::Done,
        detail: 0,
    };
    let records = [
        vec![],
        vec![0; 4],
        vec![200; 48],
        Down::Drained.encode().as_ref().to_vec(),
        Down::Answer { request: 1, outcome: Outcome::Done, detail: 0 }.encode().as_ref().to_vec(),
        completed(5, 1).encode().as_ref().to_vec(),
        completed(0, 0).encode().as_ref().to_vec(),
        completed(0, 9).encode().as_ref().to_vec(),
        completed(0, 1).encode().as_ref()[..43].to_vec(),
    ];
    for record in records {
        let daemon = Daemon::start(Sizes::default());
        let mut producer = daemon
            .client()
            .brokered_producer("durable", ProducerOptions::default())
            .expect("attach");
        let mut end = daemon.end();
        let receipt = producer.send(b"x").expect("there is room");
        assert!(end.try_send(&[], &record));
        end.wake();
        for _ in 0..2 {
            match producer.wait_timeout(&receipt, LONG) {
                Err(ConfirmError::PeerFault(fault)) if is_record(&fault) => {}
                other => panic!("{record:?}: {other:?}"),
            }
        }
        assert!(matches!(producer.wait_all(), Err(ConfirmError::PeerFault(_))));
        assert!(matches!(producer.send(b"y"), Err(SendError::PeerFault(_))));
    }
}

#[test]
fn deliveries_that_are_none_break_the_handle_off() {
    let records = [
        vec![],
        vec![17; 39],
        vec![99; 100],
        Down::Answer { request: 1, outcome: Outcome::Done, detail: 0 }.encode().as_ref().to_vec(),
        Down::Answer { request: 0, outcome: Outcome::Done, detail: 0 }.encode().as_ref().to_vec(),
    ];
    for record in records {
        let daemon = Daemon::start(Sizes::default());
        let mut consumer = daemon
            .client()
            .brokered_consumer("durable", ConsumerOptions::default())
            .expect("attach");
        let mut end = daemon.end();
        assert!(end.try_send(&[], &record));
        end.wake();
        for _ in 0..2 {
            match consumer.receive_timeout(LONG) {
                Err(ReceiveError::PeerFault(fault)) if is_record(&fault) => {}
                other => panic!("{record:?}: {other:?}"),
            }
        }
        assert!(matches!(consumer.set_credit(1), Err(AckError::PeerFault(_))));
    }
}

#[test]
fn positions_of_the_daemon_are_bounded() {
    let sizes = Sizes { slots: 64, max_message: 1024, ..Sizes::default() };
    for position in [1, 65, u64::MAX, 1 << 62] {
        let daemon = Daemon::start(sizes);
        let mut producer = daemon
            .client()
            .brokered_producer("durable", ProducerOptions::default())
            .expect("attach");
        let end = daemon.end();
        // The lane's consumer claims to have come further than anything was sent, or backwards.
        let RingMemory::Spsc { consumer, .. } = end.pair.up() else { panic!("spsc") };
        while producer.try_send(b"x").is_ok() {}
        consumer.u64_at(spsc_page::POSITION).store(64, Ordering::SeqCst);
        producer.try_send(b"x").expect("there is room");
        consumer.u64_at(spsc_page::POSITION).store(position, Ordering::SeqCst);
        let fault = loop {
            match producer.send_timeout(b"x", Duration::from_millis(5)) {
                Ok(_) => {}
                Err(SendError::Timeout) => break false,
                Err(SendError::PeerFault(_)) => break true,
                Err(other) => panic!("{other:?}"),
            }
        };
        assert!(fault || position == 65, "{position}");
    }
}

/// Numbers that look random (SplitMix64) and are the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("below the bound")
    }

    /// What a word may hold that leads an honest reader astray.
    fn word(&mut self) -> u64 {
        match self.below(4) {
            0 => self.next(),
            1 => self.next() % 256,
            2 => Word::new(self.next() % 3, 1, 0, State::Published).0,
            _ => 1 << self.below(64),
        }
    }
}

/// Words at random all over the shard's file, while every form is called.
#[test]
fn no_word_of_the_daemon_does_worse_than_an_error() {
    let mut random = Random(7);
    let soon = Duration::from_micros(200);
    for round in 0..150_usize {
        let daemon = Daemon::start(Sizes { slots: 64, max_message: 1024, ..Sizes::default() });
        let client = daemon.client();
        let mut producer =
            client.brokered_producer("durable", ProducerOptions::default()).expect("attach");
        let mut consumer =
            client.brokered_consumer("durable", ConsumerOptions::default()).expect("attach");
        let ends = [daemon.end(), daemon.end()];
        let mut delivery = Delivery::default();
        for _ in 0..40 {
            for end in &ends {
                let RingMemory::Spsc { control, slots, producer, .. } = end.pair.down() else {
                    unreachable!("a pair has spsc rings")
                };
                let RingMemory::Spsc { consumer, .. } = end.pair.up() else {
                    unreachable!("a pair has spsc rings")
                };
                // In two rounds of three the slots alone: the other words end the handle soon.
                let regions = [&slots, &slots, &producer, &consumer, &control];
                let region = regions[random.below(if round % 3 == 0 { 5 } else { 2 })];
                let near = if random.below(2) == 0 { 2048 } else { region.len() };
                let offset = random.below(near) / 8 * 8;
                region.u64_at(offset).store(random.word(), Ordering::SeqCst);
            }
            let _ = producer.send_timeout(&[1; 300], soon);
            let _ = producer.try_next_settled();
            let _ = producer.wait_all_timeout(soon);
            let _ = consumer.receive_or_drained(&mut delivery, Some(soon));
            let _ = consumer.ack(&delivery);
            let _ = consumer.flush(soon);
        }
    }
}
