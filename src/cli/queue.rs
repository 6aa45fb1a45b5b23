//! `ringmain queue create|list|info|delete|purge`.

use ringmain_client::raw::layout::Geometry;
use ringmain_client::raw::protocol::{ErrorCode, HandleInfo, QueueInfo, QueueSpec, Role};
use ringmain_client::{Client, ClientError};
use serde_json::json;

use super::Socket;
use super::args::{
    QueueCommand, QueueCreateArgs, QueueDeleteArgs, QueueInfoArgs, QueueListArgs, QueuePurgeArgs,
};
use super::exit::{Exit, Failure, Outcome};
use super::output::{Facts, Style, Table, print, print_json, print_line};
use super::units;

pub(crate) fn run(socket: &Socket, command: QueueCommand) -> Outcome {
    match command {
        QueueCommand::Create(args) => {
            let json = args.format.json;
            let config = CreateConfig::new(args)?;
            create(&socket.connect()?, &config, json)
        }
        QueueCommand::List(args) => list(&socket.connect()?, args),
        QueueCommand::Info(args) => info(&socket.connect()?, &args),
        QueueCommand::Delete(args) => delete(&socket.connect()?, &args),
        QueueCommand::Purge(args) => purge(&socket.connect()?, &args),
    }
}

/// A queue that may be asked for.
#[derive(Debug)]
struct CreateConfig {
    name: String,
    spec: QueueSpec,
    if_not_exists: bool,
}

impl CreateConfig {
    fn new(args: QueueCreateArgs) -> Outcome<Self> {
        if args.durable {
            return Err(Failure::new(
                Exit::Config,
                "durable queues do not exist in this version; leave out --durable",
            ));
        }
        // The daemon checks again; here the answer does not need a daemon.
        Geometry::new(args.slots, args.slot_size, args.max_message).map_err(Failure::usage)?;
        let spec = QueueSpec {
            kind: Some(args.kind.into()),
            slots: args.slots,
            slot_size: args.slot_size,
            max_message: args.max_message,
            mode: args.mode,
            group: args.group,
            ..QueueSpec::default()
        };
        Ok(Self { name: args.name, spec, if_not_exists: args.if_not_exists })
    }
}

fn create(client: &Client, config: &CreateConfig, json: bool) -> Outcome {
    let info = match client.create_queue(&config.name, config.spec.clone()) {
        Err(ClientError::Refused { code: ErrorCode::Exists, .. }) if config.if_not_exists => {
            client.queue_info(&config.name)?
        }
        Err(ClientError::Refused { code: ErrorCode::Exists, .. }) => {
            return Err(Failure::new(
                Exit::Exists,
                format_args!(
                    "queue {0} exists; see 'ringmain queue info {0}', or use --if-not-exists",
                    config.name
                ),
            ));
        }
        other => other?,
    };
    if json {
        return print_json(&info);
    }
    print_line(&format!(
        "{}: {} queue of {} slots of {} ({} of shared memory)",
        info.name,
        kind(&info),
        units::count(info.slots.into()),
        units::bytes(info.slot_size.into()),
        units::bytes(info.memory_bytes),
    ))
}

fn list(client: &Client, args: QueueListArgs) -> Outcome {
    let queues = client.list_queues()?;
    if args.format.json {
        return print_json(&queues);
    }
    let mut table = Table::new(&[
        "NAME",
        "KIND",
        "PLANE",
        "SLOTS",
        "SLOT",
        "USED",
        "MEMORY",
        "PRODUCERS",
        "CONSUMERS",
        "REPAIRS",
        "STATE",
    ]);
    for queue in &queues {
        table.row(vec![
            queue.name.clone(),
            kind(queue).to_string(),
            queue.plane.to_string(),
            queue.slots.to_string(),
            queue.slot_size.to_string(),
            queue.used_slots.to_string(),
            units::bytes(queue.memory_bytes),
            queue.producers.to_string(),
            queue.consumers.to_string(),
            queue.repairs.to_string(),
            queue.state.clone(),
        ]);
    }
    print(&table.render(Style::stdout()))
}

fn info(client: &Client, args: &QueueInfoArgs) -> Outcome {
    let info = client.queue_info(&args.name).map_err(|error| Failure::queue(&args.name, error))?;
    if args.format.json {
        return print_json(&info);
    }
    let style = Style::stdout();
    let mut text = facts(&info).render(style);
    if !info.handles.is_empty() {
        text.push('\n');
        text.push_str(&handles(&info.handles).render(style));
    }
    print(&text)
}

fn facts(info: &QueueInfo) -> Facts {
    let mut facts = Facts::default();
    facts.add("name", &info.name);
    facts.add("id", info.id);
    facts.add("kind", format!("{}, {}, not durable", kind(info), info.plane));
    facts.add("state", &info.state);
    facts.add("slots", format!("{} of {}", info.slots, units::bytes(info.slot_size.into())));
    facts.add("longest message", units::bytes(info.max_message.into()));
    facts.add("shared memory", units::bytes(info.memory_bytes));
    facts.add(
        "rights",
        format!("{:03o}, user {}, group {}", info.mode, info.owner_uid, info.group_gid),
    );
    facts.add("wake mode", format!("{:?}", info.wake_mode).to_lowercase());
    facts
        .add("used slots", format!("{} (tail {}, head {})", info.used_slots, info.tail, info.head));
    facts.add("deaths repaired", info.repairs);
    facts.add("discarded claims of dead producers", info.tombstones);
    facts.add("messages of dead consumers given out again", info.returned);
    facts
}

fn handles(handles: &[HandleInfo]) -> Table {
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

fn delete(client: &Client, args: &QueueDeleteArgs) -> Outcome {
    let deleted = match client.delete_queue(&args.name) {
        Ok(()) => true,
        Err(ClientError::Refused { code: ErrorCode::NotFound, .. }) if args.if_exists => false,
        Err(error) => return Err(Failure::queue(&args.name, error)),
    };
    if args.format.json {
        return print_json(&json!({ "queue": args.name, "deleted": deleted }));
    }
    let what = if deleted { "deleted" } else { "does not exist" };
    print_line(&format!("{}: {what}", args.name))
}

fn purge(client: &Client, args: &QueuePurgeArgs) -> Outcome {
    let messages =
        client.purge_queue(&args.name).map_err(|error| Failure::queue(&args.name, error))?;
    if args.format.json {
        return print_json(&json!({ "queue": args.name, "messages": messages }));
    }
    print_line(&format!("{}: {} messages discarded", args.name, units::count(messages)))
}

fn kind(info: &QueueInfo) -> &'static str {
    match info.kind {
        ringmain_client::raw::protocol::Kind::Spsc => "spsc",
        ringmain_client::raw::protocol::Kind::Mpmc => "mpmc",
    }
}
