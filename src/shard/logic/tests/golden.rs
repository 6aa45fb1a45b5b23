//! Golden file: the bytes of every record. A test that fails here means a new form of that record, not a new golden file.
//! `RINGMAIN_GOLDEN=write` writes a missing file.

use std::fmt::Write as _;
use std::path::PathBuf;

use ringmain_client::protocol::{Overflow, Retention};

use super::memory::definition;
use crate::shard::logic::Limits;
use crate::shard::logic::marks::Mark;
use crate::shard::logic::record::{
    self, GroupCreated, GroupReset, GroupState, LaneState, List, LooksState, MarkList, MessageBody,
    NamedState, OpenRun, ProducerAttached, ProducerState, ProducersForgotten, QueueState, Returned,
    ShardState, Transaction, TrimReason, kind,
};

fn list(fill: impl FnOnce(&mut List)) -> Vec<u8> {
    let mut list = List::default();
    list.begin(300);
    fill(&mut list);
    list.as_bytes().to_vec()
}

const RETURNED: [Returned; 2] = [
    Returned { sequence: 7, count: 2, rejected: false, delay_ms: 0 },
    Returned { sequence: 5, count: 1, rejected: true, delay_ms: 60_000 },
];

const OPEN: [OpenRun; 2] = [
    OpenRun { first: 3, messages: 200, count: 1, rejected: false, delay_ms: 0 },
    OpenRun { first: 1 << 40, messages: 1, count: 0, rejected: true, delay_ms: 9 },
];

fn marks() -> Vec<u8> {
    let mut list = MarkList::default();
    list.begin(70_000);
    for (sequence, published_ns, bytes_below) in
        [(1, 1_700_000_000_000_000_000, 0), (499, 1_700_000_000_250_000_000, 65_536)]
    {
        list.mark(&Mark { sequence, published_ns, bytes_below });
    }
    list.as_bytes().to_vec()
}

/// One of each.
pub(super) fn bodies() -> Vec<(&'static str, u8, Vec<u8>)> {
    let message = MessageBody {
        published_ns: 1_700_000_000_000_000_000,
        lane: 9,
        position: 4096,
        span: 3,
        flags: 1,
        metadata: &[1, 0, 1, 0, b'k'],
        payload: b"payload",
    };
    let mut body = message.header().to_vec();
    body.extend_from_slice(message.metadata);
    body.extend_from_slice(message.payload);
    assert_eq!(MessageBody::parse(&body), Some(message));
    let mut orders = definition(5, "orders");
    orders.dead_letter = "dead".to_owned();
    orders.limits = Limits {
        retention: Retention::Stream,
        max_messages: 1_000_000,
        max_bytes: 1 << 30,
        max_age_ms: 86_400_000,
        overflow: Overflow::Block,
        stream_from: 1,
    };
    orders.ttl_ms = 3_600_000;
    let created = GroupCreated { group: 1, name: "audit".to_owned(), from: 400 };
    let reset = GroupReset { group: 300, becomes: 302, to: 7 };
    let shard = ShardState { shard: 1, next_queue_id: 6 };
    let queue = QueueState {
        definition: orders.clone(),
        next_sequence: 500,
        next_group: 2,
        published_ns: 1_700_000_000_000_000_000,
        redelivered: 1,
        dead_lettered: 2,
        discarded: 3,
        first: 400,
        trimmed: 4,
        dropped: 5,
        expired: 7,
    };
    let group =
        GroupState { group: 1, name: "audit".to_owned(), fresh: 450, bytes: 12_800, skipped: 6 };
    let looks = LooksState { looks: vec![(0, 3, 9), (1_700_000_000_000_000_000, 450, 499)] };
    let lane = LaneState { lane: 9, runs: vec![(4096, 3, 2, 498)] };
    let attached = ProducerAttached {
        id: 3,
        epoch: 2,
        at_ns: 1_700_000_000_000_000_000,
        name: "import".to_owned(),
    };
    let transaction = Transaction { lane: 9, position: 4096, span: 3, sequence: 498, messages: 2 };
    let forgotten = ProducersForgotten { ids: vec![1, 300] };
    let producer = ProducerState {
        id: 3,
        epoch: 2,
        last: 1_000_000,
        used_ns: 1_700_000_000_000_000_000,
        name: "import".to_owned(),
    };
    let named = NamedState { next: 4, producers: vec![producer] };
    vec![
        ("message", kind::MESSAGE, body),
        ("queue-created", kind::QUEUE_CREATED, record::encode(&orders)),
        ("queue-edited", kind::QUEUE_EDITED, record::encode(&orders)),
        ("group-created", kind::GROUP_CREATED, record::encode(&created)),
        (
            "acknowledged",
            kind::ACKNOWLEDGED,
            list(|list| [7, 8, 9, 2, 1 << 40, 3].into_iter().for_each(|one| list.range(one))),
        ),
        (
            "returned",
            kind::RETURNED,
            list(|list| RETURNED.iter().for_each(|one| list.returned(one))),
        ),
        ("purged", kind::PURGED, 500u64.to_le_bytes().to_vec()),
        ("trimmed", kind::TRIMMED, record::encode_trimmed(500, TrimReason::Age).to_vec()),
        ("group-deleted", kind::GROUP_DELETED, record::encode(&300u32)),
        ("group-reset", kind::GROUP_RESET, record::encode(&reset)),
        ("producer-attached", kind::PRODUCER_ATTACHED, record::encode(&attached)),
        ("transaction", kind::TRANSACTION, record::encode(&transaction)),
        ("producers-forgotten", kind::PRODUCERS_FORGOTTEN, record::encode(&forgotten)),
        ("shard-state", kind::SHARD_STATE, record::encode(&shard)),
        ("queue-state", kind::QUEUE_STATE, record::encode(&queue)),
        ("group-state", kind::GROUP_STATE, record::encode(&group)),
        (
            "open-messages",
            kind::OPEN_MESSAGES,
            list(|list| OPEN.iter().for_each(|one| list.open_run(one))),
        ),
        ("lane-state", kind::LANE_STATE, record::encode(&lane)),
        ("marks", kind::MARKS, marks()),
        ("named-state", kind::NAMED_STATE, record::encode(&named)),
        (
            "expired",
            kind::EXPIRED,
            list(|list| [7, 8, 9].into_iter().for_each(|one| list.range(one))),
        ),
        ("looks-state", kind::LOOKS_STATE, record::encode(&looks)),
    ]
}

#[test]
fn the_bytes_of_records_stay() {
    let mut text = String::new();
    for (name, kind, body) in bodies() {
        let hex: Vec<String> = body.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(text, "{name} {kind}: {}", hex.join(" ")).expect("memory");
    }
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/shard-records.v1.hex");
    if !path.exists() && std::env::var("RINGMAIN_GOLDEN").as_deref() == Ok("write") {
        std::fs::write(&path, &text).expect("golden file");
    }
    let expected =
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    assert_eq!(text, expected, "records changed: they need a new form");
}

#[test]
fn lists_come_back() {
    let sequences = [7, 8, 9, 2, 1 << 40, 3, u64::MAX - 1];
    let mut found = Vec::new();
    record::read_ranges(
        &list(|list| sequences.into_iter().for_each(|one| list.range(one))),
        |group, first, count| {
            assert_eq!(group, 300);
            found.extend(first..first + count);
            Ok(())
        },
    )
    .expect("ours");
    assert_eq!(found, sequences);
    let mut found = Vec::new();
    let body = list(|list| RETURNED.iter().for_each(|one| list.returned(one)));
    record::read_returned(&body, |_, one| {
        found.push(one);
        Ok(())
    })
    .expect("ours");
    assert_eq!(found, RETURNED);
    let mut found = Vec::new();
    let body = list(|list| OPEN.iter().for_each(|one| list.open_run(one)));
    record::read_open_runs(&body, |_, one| {
        found.push(one);
        Ok(())
    })
    .expect("ours");
    assert_eq!(found, OPEN);
}

/// Any bytes: an error or not, never a panic, and never a loop over a length that was read.
#[test]
fn damaged_records_are_errors() {
    use super::memory::MemoryLog;
    use crate::journal::{Location, Replay, Stored};

    let mut log = MemoryLog::default();
    let mut logic = crate::shard::logic::Logic::new(7);
    logic.start(super::memory::at_ms(0));
    for id in [4, 5] {
        let definition = definition(id, &format!("q{id}"));
        logic.create_queue(&mut log, 0, definition);
    }
    for (_, kind, body) in bodies() {
        for at in 0..body.len() {
            for flip in [1u8, 0x80, 0xff] {
                let mut body = body.clone();
                body[at] ^= flip;
                for length in [at, body.len()] {
                    let mut logic = log.replay(false, 0).expect("ours");
                    let record = Stored {
                        lsn: 9,
                        location: Location { segment: 1, batch: 0, record: 0 },
                        kind,
                        flags: 0,
                        queue: 5,
                        sequence: 1,
                        body: &body[..length],
                    };
                    let _ = logic.record(record);
                    logic.start(super::memory::at_ms(0));
                }
            }
        }
    }
}
