//! What a producer learns about its messages.

use std::time::Duration;

use ringmain_client::raw::layout::control;
use ringmain_client::raw::wire::{Down, Outcome};
use ringmain_client::{
    BrokeredProducer, ClientError, Closed, ConfirmError, ConsumerOptions, ErrorCode, Level,
    Metadata, ProducerOptions, Receipt, SendError,
};

use crate::ends::{Daemon, End, Sizes};
use crate::shard::{Manner, Shard};

const LONG: Duration = Duration::from_secs(20);

fn pair(sizes: Sizes, options: ProducerOptions) -> (Daemon, BrokeredProducer, End) {
    let daemon = Daemon::start(sizes);
    let producer = daemon.client().brokered_producer("durable", options).expect("attach");
    let end = daemon.end();
    (daemon, producer, end)
}

fn done(positions: &[u64], first_sequence: u64) -> Down {
    Down::Completed {
        first_position: positions[0],
        last_position: *positions.last().expect("some"),
        first_sequence,
        count: u32::try_from(positions.len()).expect("few"),
        outcome: Outcome::Done,
        detail: 0,
    }
}

fn take_all(end: &mut End) -> Vec<u64> {
    std::iter::from_fn(|| end.try_take()).map(|(position, _, _)| position).collect()
}

#[test]
fn receipts_tell_the_sequence_in_any_order() {
    let (_daemon, mut producer, mut end) = pair(Sizes::default(), ProducerOptions::default());
    assert!(producer.is_durable());
    let receipts: Vec<Receipt> = (0..6_usize)
        .map(|length| producer.send(&vec![7; length * 200]).expect("there is room"))
        .collect();
    assert_eq!(producer.try_receipt(&receipts[0]), Ok(None));
    assert_eq!(
        producer.wait_timeout(&receipts[0], Duration::from_millis(5)),
        Err(ConfirmError::Timeout)
    );
    let positions = take_all(&mut end);
    assert_eq!(positions.len(), 6);
    end.tell(&done(&positions[..4], 11));
    end.tell(&done(&positions[4..], 20));
    let expected = [11, 12, 13, 14, 20, 21];
    for index in [3, 0, 5, 4, 1, 2, 5] {
        let confirmation = producer.wait_timeout(&receipts[index], LONG).expect("confirmed");
        assert_eq!((confirmation.sequence, confirmation.level), (expected[index], Level::Durable));
    }
    assert_eq!(producer.unsettled(), 0);
    producer.wait_all().expect("nothing failed");
    let first = producer.next_settled(LONG).expect("told").expect("four");
    assert_eq!((first.first, first.count), (receipts[0], 4));
    let second = producer.try_next_settled().expect("told").expect("two");
    assert_eq!((second.first, second.count), (receipts[4], 2));
    assert_eq!(producer.next_settled(LONG), Ok(None), "nothing is unsettled");
}

#[test]
fn metadata_and_batches_arrive() {
    let (_daemon, mut producer, mut end) = pair(Sizes::default(), ProducerOptions::default());
    let metadata = Metadata { key: Some(b"key".to_vec()), ..Metadata::default() };
    let receipt = producer.send_message(&metadata, b"payload").expect("there is room");
    let batch = producer.send_batch(&[b"a", &[1; 700], b"c"]).expect("there is room");
    let (first, encoded, payload) = end.try_take().expect("it is there");
    assert_eq!(Metadata::decode(&encoded), Ok(metadata));
    assert_eq!(payload, b"payload");
    let mut positions = vec![first];
    for expected in [&b"a"[..], &[1; 700], b"c"] {
        let (position, _, payload) = end.try_take().expect("it is there");
        assert_eq!(payload, expected);
        positions.push(position);
    }
    end.tell(&done(&positions, 1));
    assert_eq!(producer.wait(&receipt).map(|confirmation| confirmation.sequence), Ok(1));
    let confirmed = producer.wait_each(batch.iter(), Some(LONG)).expect("confirmed");
    let sequences: Vec<u64> = confirmed.iter().map(|confirmation| confirmation.sequence).collect();
    assert_eq!(sequences, [2, 3, 4]);
    assert!(producer.send_batch(&[]).expect("nothing to do").is_empty());
}

#[test]
fn the_window_bounds_what_is_unsettled() {
    let (_daemon, mut producer, mut end) =
        pair(Sizes::default(), ProducerOptions::default().window(2));
    producer.try_send(b"1").expect("fits");
    producer.try_send(b"2").expect("fits");
    assert_eq!(producer.try_send(b"3"), Err(SendError::Full));
    assert_eq!(producer.send_timeout(b"3", Duration::from_millis(5)), Err(SendError::Timeout));
    assert_eq!(producer.try_send_batch(&[b"3", b"4", b"5"]), Err(SendError::Full));
    let positions = take_all(&mut end);
    assert_eq!(positions.len(), 2, "what was not sent leaves no trace");
    end.tell(&done(&positions[..1], 1));
    producer.try_send(b"3").expect("fits");
    assert_eq!(producer.try_send(b"4"), Err(SendError::Full));
    end.tell(&done(&positions[1..], 2));
    let positions = take_all(&mut end);
    end.tell(&done(&positions, 3));
    producer.send_batch(&[b"3", b"4", b"5"]).expect("alone it may exceed the window");
    assert_eq!(producer.unsettled(), 3);
}

#[test]
fn failures_are_typed() {
    let (_daemon, mut producer, mut end) = pair(Sizes::default(), ProducerOptions::default());
    let cases = [
        (Outcome::JournalFailed, 28, ConfirmError::JournalFailed { errno: 28 }),
        (Outcome::QueueDeleted, 0, ConfirmError::QueueDeleted),
        (Outcome::TooLarge, 99, ConfirmError::TooLarge { max: 99 }),
        (Outcome::QueueFull, 0, ConfirmError::QueueFull),
        (Outcome::Invalid, 0, ConfirmError::Rejected),
    ];
    let mut receipts = Vec::new();
    for (outcome, detail, _) in cases {
        receipts.push(producer.send(b"x").expect("there is room"));
        let position = take_all(&mut end)[0];
        let mut record = done(&[position], 0);
        if let Down::Completed { outcome: its, detail: more, .. } = &mut record {
            (*its, *more) = (outcome, detail);
        }
        end.tell(&record);
    }
    for (receipt, (_, _, error)) in receipts.iter().zip(cases) {
        assert_eq!(producer.wait(receipt), Err(error));
    }
    assert_eq!(producer.wait_all(), Err(ConfirmError::JournalFailed { errno: 28 }));
    assert_eq!(producer.wait_all(), Ok(()));
}

#[test]
fn a_failed_journal_leaves_nobody_waiting() {
    let (daemon, mut producer, mut end) = pair(Sizes::default(), ProducerOptions::default());
    let receipt = producer.send(b"x").expect("there is room");
    let stored = producer.send(b"y").expect("there is room");
    let positions = take_all(&mut end);
    let doorway = daemon.doorway();
    doorway.page.set_failed(5, 77);
    let failed = ConfirmError::JournalFailed { errno: 5 };
    assert_eq!(producer.send(b"z"), Err(SendError::JournalFailed { errno: 5 }));
    assert_eq!(producer.try_send(b"z"), Err(SendError::JournalFailed { errno: 5 }));
    assert_eq!(producer.wait(&receipt), Err(failed), "though the shard says nothing");
    // What it does say is believed all the same.
    end.tell(&done(&positions, 1));
    assert_eq!(producer.wait(&stored).map(|confirmation| confirmation.sequence), Ok(2));
}

#[test]
fn a_closed_queue_ends_every_wait() {
    for (value, closed) in [
        (control::CLOSED_DELETED, Closed::Deleted),
        (control::CLOSED_DRAINING, Closed::Draining),
        (control::CLOSED_FAULT, Closed::Fault),
    ] {
        let (_daemon, mut producer, end) = pair(Sizes::default(), ProducerOptions::default());
        let receipt = producer.send(b"x").expect("there is room");
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(20));
                end.close(value);
            });
            assert_eq!(producer.wait(&receipt), Err(ConfirmError::Closed(closed)));
        });
        assert_eq!(producer.send(b"x"), Err(SendError::Closed(closed)));
        assert_eq!(producer.wait_all(), Err(ConfirmError::Closed(closed)));
    }
}

#[test]
fn what_was_confirmed_before_a_daemon_stopped_is_told() {
    let (_daemon, mut producer, mut end) = pair(Sizes::default(), ProducerOptions::default());
    let first = producer.send(b"x").expect("there is room");
    let second = producer.send(b"y").expect("there is room");
    let positions = take_all(&mut end);
    end.tell(&done(&positions[..1], 1));
    end.close(control::CLOSED_DRAINING);
    assert_eq!(producer.wait(&second), Err(ConfirmError::Closed(Closed::Draining)));
    assert_eq!(producer.wait(&first).map(|confirmation| confirmation.sequence), Ok(1));
}

#[test]
fn receipts_of_others_are_recognised() {
    let (daemon, mut producer, _end) = pair(Sizes::default(), ProducerOptions::default());
    let mut other =
        daemon.client().brokered_producer("memory", ProducerOptions::default()).expect("attach");
    assert!(!other.is_durable());
    let receipt = producer.send(b"x").expect("there is room");
    assert_eq!(other.try_receipt(&receipt), Err(ConfirmError::ForeignReceipt));
}

#[test]
fn the_other_plane_is_a_clear_error() {
    let daemon = Daemon::start(Sizes::default());
    let client = daemon.client();
    let errors = [
        client.producer("durable").map(|_| ()),
        client.consumer("durable").map(|_| ()),
        client.brokered_producer("direct", ProducerOptions::default()).map(|_| ()),
        client.brokered_consumer("direct", ConsumerOptions::default()).map(|_| ()),
    ];
    let texts = ["brokered_producer", "brokered_consumer", "producer", "consumer"];
    for (error, text) in errors.into_iter().zip(texts) {
        let Err(error @ ClientError::Refused { code: ErrorCode::Invalid, .. }) = error else {
            panic!("{error:?}");
        };
        assert!(error.to_string().ends_with(&format!("attach with Client::{text}")), "{error}");
    }
    assert_eq!(daemon.detached().len(), 4, "no handle is kept");
}

#[test]
fn messages_that_never_fit_are_refused() {
    let (_daemon, mut producer, _end) = pair(Sizes::default(), ProducerOptions::default());
    let max = producer.max_message();
    assert_eq!(max, 16 * 1024);
    let long = vec![0; max + 1];
    let refused = Err(SendError::TooLarge { length: max + 1, max });
    assert_eq!(producer.send(&long), refused);
    producer.send(&long[1..]).expect("just fits");
}

/// Everything that a producer has to wait for at once: a lane of few slots, a ring of few completions, one completion for each
/// message, and nobody who asks for receipts.
#[test]
fn a_full_lane_does_not_stop_completions() {
    for (run, window) in [(1, 0), (7, 0), (usize::MAX, 0), (1, 3), (usize::MAX, 1)] {
        let sizes = Sizes { slots: 64, max_message: 2048, record_slots: 64, ..Sizes::default() };
        let (daemon, mut producer, end) = pair(sizes, ProducerOptions::default().window(window));
        let manner = Manner { run, ..Manner::default() };
        let shard = Shard::start(vec![end], daemon.doorway(), daemon.doorway(), manner, 0);
        let mut last = None;
        for number in 0..20_000_usize {
            last = Some(producer.send(&vec![1; number * 37 % 2000]).expect("there will be room"));
        }
        let confirmation = producer.wait(&last.expect("some")).expect("confirmed");
        assert_eq!(confirmation.sequence, 20_000);
        let (_, sequence) = shard.stop();
        assert_eq!(sequence, 20_000);
    }
}
