//! The disk under a load: a queue that nobody takes anything of does not hold the segments of those that flow, and a stream is never
//! copied.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ringmain::journal::format::{FOOTER, HEADER_BYTES, Header, record_bytes};
use ringmain_client::{Client, ConsumerOptions, DeliverySpec, Retention};

use crate::brokered_support::*;
use crate::support::{BINARY, PATIENCE, eventually};

const SEGMENT_BYTES: usize = 1 << 20;
/// What a segment takes at least: what the longest batch needs is kept free.
const ROOM_BYTES: usize = SEGMENT_BYTES / 2 - (16 << 10);
/// Files that are held ready, and one that is being made or removed.
const SPARES: usize = 4;
/// Flag of messages and flag of copies.
const COPY: u8 = 1 | 128;

fn daemon() -> Durable {
    Durable::start_with(&["--segment-size", "1MiB"])
}

/// Each is another one, and as long as many are.
fn payload(number: usize) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.extend((0..900 + number % 200).map(|at| (number * 31 + at * 7).to_le_bytes()[0]));
    bytes
}

fn segments(data: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(data.join("shard-0")).unwrap();
    let paths = files.map(|file| file.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|ending| ending == "journal")).collect()
}

/// The cleaner's copies in all files, those that are free again among them.
fn copies(data: &Path) -> usize {
    let mut copies = 0;
    for path in segments(data) {
        let bytes = std::fs::read(path).unwrap();
        for (block, start) in bytes.chunks(4096).zip((0..).step_by(4096)) {
            let Ok(header) = Header::decode(block) else { continue };
            if header.offset != start as u64 || header.flags & FOOTER != 0 {
                continue;
            }
            let end = (start + header.length as usize).min(bytes.len());
            let mut at = start + HEADER_BYTES;
            while at + 24 <= end {
                let length = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
                copies += usize::from(bytes[at + 5] & COPY == COPY);
                at += record_bytes(length as usize);
            }
        }
    }
    copies
}

/// Bytes of the batches in segments in use, of a journal that nobody has open.
fn used_bytes(data: &Path) -> u64 {
    let mut command = Command::new(BINARY);
    let output = command.args(["journal", "inspect", "--json"]).arg(data).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    // One document for each shard.
    let shards: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let used = shards.iter().flat_map(|shard| {
        let in_use = |segment: &serde_json::Value| {
            let is_in_use = matches!(segment["state"].as_str(), Some("head" | "sealed"));
            is_in_use.then(|| segment["used_bytes"].as_u64().unwrap())
        };
        shard["segments"].as_array().unwrap().iter().filter_map(in_use)
    });
    let used: Vec<u64> = used.collect();
    assert!(!used.is_empty(), "{text}");
    used.into_iter().sum()
}

/// Takes and acknowledges everything until it is told that nothing more comes and the queue is empty.
fn drain(client: Client, queue: &'static str, is_over: Arc<AtomicBool>) -> impl FnOnce() + Send {
    move || {
        let options = ConsumerOptions::default().credit(256);
        let mut taking = client.brokered_consumer(queue, options).unwrap();
        loop {
            match taking.receive_timeout(QUIET) {
                Ok(delivery) => taking.ack(&delivery).unwrap(),
                // Relaxed: what is sent is known from the queue.
                Err(_) if is_over.load(Ordering::Relaxed) => break,
                Err(_) => {}
            }
        }
        taking.flush(PATIENCE).unwrap();
    }
}

#[test]
fn a_stuck_queue_does_not_hold_the_disk() {
    const MESSAGES: usize = 40_000;
    const EVERY: usize = 20;
    let mut daemon = daemon();
    let data = daemon.data.path().to_owned();
    let client = daemon.client();
    for queue in ["flow", "stuck"] {
        client.create_queue(queue, durable()).unwrap();
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let taking = std::thread::spawn(drain(daemon.client(), "flow", Arc::clone(&is_over)));
    let sent = Arc::new(AtomicUsize::new(0));
    let sending = {
        let (client, sent) = (daemon.client(), Arc::clone(&sent));
        std::thread::spawn(move || {
            let (mut flow, mut stuck) = (producer(&client, "flow"), producer(&client, "stuck"));
            for number in 0..MESSAGES {
                let to = if number % EVERY == 0 { &mut stuck } else { &mut flow };
                to.send_timeout(&payload(number), PATIENCE).unwrap();
                // Relaxed: it only says how much there is about.
                sent.store(number, Ordering::Relaxed);
            }
            flow.wait_all_timeout(PATIENCE).unwrap();
            stuck.wait_all_timeout(PATIENCE).unwrap();
        })
    };
    let live_bytes =
        |sent: usize| (0..sent).step_by(EVERY).map(|n| payload(n).len()).sum::<usize>();
    let is_bounded = |sent: usize| {
        let most = 2 * live_bytes(sent) + 4 * ROOM_BYTES;
        (segments(&data).len() <= most.div_ceil(ROOM_BYTES) + SPARES).then_some(())
    };
    // While it goes on, whenever the cleaner has kept up with it, and when it has ended for good.
    for part in 1..4 {
        eventually("a part of the load", || {
            (sent.load(Ordering::Relaxed) >= MESSAGES / 4 * part).then_some(())
        });
        eventually("a bounded disk", || is_bounded(sent.load(Ordering::Relaxed)));
    }
    sending.join().unwrap();
    eventually_inside(&client, "flow", |info| info.messages == 0);
    is_over.store(true, Ordering::Relaxed);
    taking.join().unwrap();
    eventually("a bounded disk at the end", || is_bounded(MESSAGES));
    daemon.stop();
    let (used, live) = (used_bytes(&data), live_bytes(MESSAGES) as u64);
    assert!(used <= 2 * live + 4 * SEGMENT_BYTES as u64, "{used} bytes for {live}");
    assert!(copies(&data) > 0, "the cleaner has had nothing to do");
    daemon.start_again();
    let client = daemon.client();
    assert_eq!(inside(&client, "stuck").messages, MESSAGES.div_ceil(EVERY) as u64);
    let mut at_last = consumer(&client, "stuck");
    for number in (0..MESSAGES).step_by(EVERY) {
        let delivery = receive(&mut at_last);
        assert!(delivery.payload() == payload(number), "message {number} is altered");
        at_last.ack(&delivery).unwrap();
    }
    at_last.flush(PATIENCE).unwrap();
}

#[test]
fn a_stream_is_never_copied() {
    const MESSAGES: usize = 20_000;
    let mut daemon = daemon();
    let data = daemon.data.path().to_owned();
    let client = daemon.client();
    let rules = DeliverySpec {
        retention: Some(Retention::Stream),
        max_bytes: Some(3 << 20),
        ..DeliverySpec::default()
    };
    client.create_queue("events", with_rules(durable(), rules)).unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let taking = std::thread::spawn(drain(daemon.client(), "events", Arc::clone(&is_over)));
    let mut sending = producer(&client, "events");
    for number in 0..MESSAGES {
        sending.send_timeout(&payload(number), PATIENCE).unwrap();
    }
    sending.wait_all_timeout(PATIENCE).unwrap();
    is_over.store(true, Ordering::Relaxed);
    taking.join().unwrap();
    let most = (3 << 20) / ROOM_BYTES + 2 + SPARES;
    eventually("what it need not keep is gone", || (segments(&data).len() <= most).then_some(()));
    daemon.stop();
    assert_eq!(copies(&data), 0);
}
