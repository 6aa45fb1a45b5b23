//! Queues as people see them.

use ringmain_client::raw::protocol::{
    BrokeredInfo, HandleInfo, Kind, Overflow, Plane, QueueInfo, Retention, Role,
};

use crate::cli::output::{Facts, Table};
use crate::cli::units;

pub(super) fn created(info: &QueueInfo) -> String {
    let rings = format!(
        "{} slots of {}",
        units::count(info.slots.into()),
        units::bytes(info.slot_size.into()),
    );
    if info.plane == Plane::Direct {
        let memory = units::bytes(info.memory_bytes);
        return format!(
            "{}: {} queue of {rings} ({memory} of shared memory); {}",
            info.name,
            kind(info),
            rules(info)
        );
    }
    let what = if info.durable { "durable" } else { "brokered" };
    format!("{}: {what} {} queue, rings of {rings}; {}", info.name, kind(info), rules(info))
}

/// The rules of a queue in one line.
pub(super) fn rules(info: &QueueInfo) -> String {
    match (&info.brokered, info.overflow) {
        (Some(info), _) => delivery_rules(info),
        (None, _) if info.plane == Plane::Brokered => String::new(),
        (None, Overflow::Block) => "when it is full producers wait".to_string(),
        (None, Overflow::Reject) => "when it is full messages are refused".to_string(),
        (None, Overflow::DropOldest) => "when it is full the oldest are discarded".to_string(),
    }
}

fn delivery_rules(info: &BrokeredInfo) -> String {
    let deliveries = match (info.max_deliveries, info.dead_letter.as_str()) {
        (0, "") => "any number of deliveries".to_string(),
        (0, queue) => format!("any number of deliveries, rejected messages go to {queue}"),
        (most, "") => format!("at most {most} deliveries, then discarded"),
        (most, queue) => format!("at most {most} deliveries, then to {queue}"),
    };
    let limits = match limits(info).as_str() {
        "" => String::new(),
        limits => format!("; {limits}"),
    };
    let ttl = match info.ttl_ms {
        0 => String::new(),
        ms => format!("; time to live {}", units::duration_ms(ms)),
    };
    format!("{deliveries}; lease {}{ttl}{limits}", lease(info))
}

/// What it keeps, and what happens at a limit; empty if everything is as usual.
fn limits(info: &BrokeredInfo) -> String {
    let mut bounds = Vec::new();
    if info.max_messages > 0 {
        bounds.push(units::messages(info.max_messages));
    }
    if info.max_bytes > 0 {
        bounds.push(units::bytes(info.max_bytes));
    }
    if info.max_age_ms > 0 {
        bounds.push(units::duration_ms(info.max_age_ms));
    }
    let bounds = bounds.join(", ");
    match (info.retention, info.overflow) {
        (Retention::Stream, _) if bounds.is_empty() => "a stream without limits".to_string(),
        (Retention::Stream, _) => format!("a stream of at most {bounds}"),
        _ if bounds.is_empty() => String::new(),
        (_, Overflow::Block) => format!("at most {bounds}, then producers wait"),
        (_, Overflow::Reject) => format!("at most {bounds}, then messages are refused"),
        (_, Overflow::DropOldest) => format!("at most {bounds}, then the oldest are discarded"),
    }
}

fn lease(info: &BrokeredInfo) -> String {
    match info.lease_ms {
        0 => "as long as the consumer lives".to_string(),
        ms => units::duration_ms(ms),
    }
}

pub(super) fn list(queues: &[QueueInfo]) -> Table {
    let mut table = Table::new(&[
        "NAME",
        "KIND",
        "PLANE",
        "DURABLE",
        "SLOTS",
        "SLOT",
        "USED",
        "MESSAGES",
        "READY",
        "UNACKED",
        "STORED",
        "MEMORY",
        "PRODUCERS",
        "CONSUMERS",
        "REPAIRS",
        "STATE",
    ]);
    for queue in queues {
        let brokered = |value: fn(&BrokeredInfo) -> u64| {
            queue.brokered.as_ref().map_or_else(|| "-".to_string(), |b| value(b).to_string())
        };
        table.row(vec![
            queue.name.clone(),
            kind(queue).to_string(),
            queue.plane.to_string(),
            yes(queue.durable).to_string(),
            queue.slots.to_string(),
            queue.slot_size.to_string(),
            if queue.plane == Plane::Direct { queue.used_slots.to_string() } else { "-".into() },
            brokered(|info| info.messages),
            brokered(|info| info.ready),
            brokered(|info| info.unacknowledged),
            queue
                .brokered
                .as_ref()
                .map_or_else(|| "-".to_string(), |info| units::bytes(info.message_bytes)),
            units::bytes(queue.memory_bytes),
            queue.producers.to_string(),
            queue.consumers.to_string(),
            queue.repairs.to_string(),
            queue.state.clone(),
        ]);
    }
    table
}

fn yes(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

pub(super) fn facts(info: &QueueInfo) -> Facts {
    let mut facts = Facts::default();
    facts.add("name", &info.name);
    facts.add("id", info.id);
    let durable = match (info.durable, info.session) {
        (true, _) => "durable",
        (false, false) => "not durable",
        (false, true) => "until the session of its creator ends",
    };
    facts.add("kind", format!("{}, {}, {durable}", kind(info), info.plane));
    facts.add("state", &info.state);
    facts.add("slots", format!("{} of {}", info.slots, units::bytes(info.slot_size.into())));
    facts.add("longest message", units::bytes(info.max_message.into()));
    let handles = info.handles.len();
    facts.add(
        "shared memory",
        match info.plane {
            Plane::Direct => units::bytes(info.memory_bytes),
            // Its rings come and go with its handles.
            Plane::Brokered if handles == 0 => "none while nobody is attached".to_string(),
            Plane::Brokered => {
                format!("{} in the rings of {handles} handles", units::bytes(info.memory_bytes))
            }
        },
    );
    facts.add(
        "rights",
        format!("{:03o}, user {}, group {}", info.mode, info.owner_uid, info.group_gid),
    );
    facts.add("wake mode", format!("{:?}", info.wake_mode).to_lowercase());
    if let Some(rules) = &info.brokered {
        brokered(&mut facts, info.durable, rules);
        return facts;
    }
    facts
        .add("used slots", format!("{} (tail {}, head {})", info.used_slots, info.tail, info.head));
    facts.add("deaths repaired", info.repairs);
    facts.add("discarded claims of dead producers", info.tombstones);
    facts.add("messages of dead consumers given out again", info.returned);
    if info.overflow == Overflow::DropOldest || info.dropped > 0 {
        facts.add("dropped for room", units::count(info.dropped));
    }
    facts.add("rules", rules(info));
    facts
}

fn brokered(facts: &mut Facts, durable: bool, info: &BrokeredInfo) {
    facts.add(
        "messages",
        format!(
            "{} ({} {}); next sequence {}",
            units::count(info.messages),
            units::bytes(info.message_bytes),
            if durable { "of the journal" } else { "of memory" },
            info.next_sequence
        ),
    );
    facts.add("ready", units::count(info.ready));
    facts.add("with consumers", units::count(info.unacknowledged));
    facts.add("delayed", units::count(info.delayed));
    facts.add("redelivered", units::count(info.redelivered));
    facts.add("dead letters", units::count(info.dead_lettered));
    facts.add("discarded", units::count(info.discarded));
    facts.add("expired", units::count(info.expired));
    if !limits(info).is_empty() || info.first_sequence > 1 {
        facts.add("first sequence", info.first_sequence);
    }
    if info.retention == Retention::Stream || info.trimmed > 0 {
        facts.add("left the stream", units::count(info.trimmed));
    }
    if info.overflow == Overflow::DropOldest || info.dropped > 0 {
        facts.add("dropped for room", units::count(info.dropped));
    }
    if info.overflow == Overflow::Reject || info.rejected > 0 {
        facts.add("refused for room", units::count(info.rejected));
    }
    if info.skipped > 0 {
        facts.add("skipped by consumers", units::count(info.skipped));
    }
    if info.stalled_groups > 0 {
        let groups = units::count(info.stalled_groups.into());
        facts.add("stalled groups", format!("{groups}: {}", info.stalled_by));
    }
    if info.blocked_producers > 0 {
        let producers = units::count(info.blocked_producers.into());
        facts.add("waiting producers", format!("{producers}, for {}", info.blocked_by));
    }
    facts.add("rules", delivery_rules(info));
    facts.add("shard", info.shard);
}

pub(super) fn handles(handles: &[HandleInfo]) -> Table {
    let mut table = Table::new(&[
        "HANDLE",
        "ROLE",
        "PID",
        "UID",
        "STATE",
        "MESSAGES",
        "BYTES",
        "OWNS",
        "WAITING",
        "DELAYED BY",
        "DELAYS OTHERS",
    ]);
    let pid_of = |handle: u8| {
        let found = handles.iter().find(|other| other.handle == handle);
        found.map_or_else(|| format!("handle {handle}"), |other| format!("pid {}", other.pid))
    };
    for handle in handles {
        let owns = match (handle.owned_slots, handle.owns_position) {
            (0, _) => "-".to_string(),
            (slots, None) => slots.to_string(),
            (slots, Some(position)) => format!("{slots} from {position}"),
        };
        table.row(vec![
            handle.handle.to_string(),
            match handle.role {
                Role::Produce => "produce".to_string(),
                Role::Consume => "consume".to_string(),
            },
            handle.pid.to_string(),
            handle.uid.to_string(),
            handle.state.clone(),
            units::count(handle.messages),
            units::bytes(handle.bytes),
            owns,
            handle.waiting_ns.map_or_else(|| "-".to_string(), units::nanos),
            handle.delayed_by.map_or_else(|| "-".to_string(), pid_of),
            handle.delays_others_ns.map_or_else(|| "-".to_string(), units::nanos),
        ]);
    }
    table
}

fn kind(info: &QueueInfo) -> &'static str {
    match info.kind {
        Kind::Spsc => "spsc",
        Kind::Mpmc => "mpmc",
    }
}
