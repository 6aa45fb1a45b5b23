//! `ringmain queue create|list|info|edit|delete|purge`.

mod show;

use ringmain_client::raw::layout::Geometry;
use ringmain_client::raw::protocol::{DeliverySpec, ErrorCode, Kind, Plane, QueueInfo, QueueSpec};
use ringmain_client::{Client, ClientError};
use serde_json::json;

use super::Socket;
use super::args::{
    DeliveryArgs, PlaneArg, QueueCommand, QueueCreateArgs, QueueDeleteArgs, QueueEditArgs,
    QueueInfoArgs, QueueListArgs, QueuePurgeArgs,
};
use super::exit::{Exit, Failure, Outcome};
use super::output::{Style, print, print_json, print_line};
use super::units;
use ringmain::daemon::{check_direct_rules, check_times};
use ringmain::shard::logic::Limits;

/// Slots in the rings of a brokered queue that does not say otherwise.
pub(crate) const BROKERED_SLOTS: u32 = 1024;

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
        QueueCommand::Edit(args) => {
            let delivery = edited(&args)?;
            edit(&socket.connect()?, &args, delivery)
        }
    }
}

/// A queue that may be asked for.
#[derive(Debug)]
struct CreateConfig {
    name: String,
    spec: QueueSpec,
    /// `None`: whatever there is.
    plane_asked: Option<Plane>,
    if_not_exists: bool,
}

impl CreateConfig {
    fn new(args: QueueCreateArgs) -> Outcome<Self> {
        let plane = plane_of(args.plane, args.durable)?;
        let delivery = delivery(&args.delivery);
        match plane {
            Plane::Direct => check_direct_rules(args.kind.into(), &delivery).map(drop),
            Plane::Brokered => Limits::asked(&delivery).check(args.durable),
        }
        .map_err(Failure::usage)?;
        check_times(&delivery).map_err(Failure::usage)?;
        // The daemon checks again; here the answer does not need a daemon.
        let slots = args.slots.or_else(|| (plane == Plane::Brokered).then_some(BROKERED_SLOTS));
        Geometry::new(slots, args.slot_size, args.max_message).map_err(Failure::usage)?;
        let spec = QueueSpec {
            kind: Some(args.kind.into()),
            slots: args.slots,
            slot_size: args.slot_size,
            max_message: args.max_message,
            mode: args.mode,
            group: args.group,
            plane: Some(plane),
            durable: args.durable,
            delivery,
            session: false,
        };
        let plane_asked = args.plane.map(Plane::from);
        Ok(Self { name: args.name, spec, plane_asked, if_not_exists: args.if_not_exists })
    }
}

impl CreateConfig {
    /// Whether a queue that exists already is of the kind that was asked for. What can be edited may differ.
    fn check_existing(&self, info: &QueueInfo) -> Outcome {
        let QueueSpec { kind, durable, .. } = self.spec;
        let is = match info {
            QueueInfo { durable: false, .. } if durable => "not durable",
            QueueInfo { plane: Plane::Direct, .. } if self.plane_asked == Some(Plane::Brokered) => {
                "direct"
            }
            QueueInfo { plane: Plane::Brokered, .. } if self.plane_asked == Some(Plane::Direct) => {
                "brokered"
            }
            QueueInfo { kind: Kind::Mpmc, .. } if kind == Some(Kind::Spsc) => "mpmc",
            _ => return Ok(()),
        };
        let name = &self.name;
        let why = format_args!("queue {name} exists and is {is}: delete it, or use another name");
        Err(Failure::new(Exit::Config, why))
    }
}

/// Durable queues are brokered.
pub(super) fn plane_of(plane: Option<PlaneArg>, durable: bool) -> Outcome<Plane> {
    match (plane.map(Plane::from), durable) {
        (Some(Plane::Direct), true) => Err(Failure::usage(
            "a durable queue is brokered; leave out --plane direct or --durable",
        )),
        (None, true) => Ok(Plane::Brokered),
        (plane, _) => Ok(plane.unwrap_or_default()),
    }
}

fn delivery(args: &DeliveryArgs) -> DeliverySpec {
    DeliverySpec {
        max_deliveries: args.max_deliveries,
        dead_letter: args.dead_letter.clone(),
        lease_ms: args.lease.map(units::milliseconds),
        retention: args.retention.map(Into::into),
        max_messages: args.max_messages,
        max_bytes: args.max_bytes,
        max_age_ms: args.max_age.map(units::milliseconds),
        overflow: args.overflow.map(Into::into),
        ttl_ms: args.ttl.map(units::milliseconds),
    }
}

fn edited(args: &QueueEditArgs) -> Outcome<DeliverySpec> {
    let mut delivery = delivery(&args.delivery);
    if args.no_dead_letter {
        delivery.dead_letter = Some(String::new());
    }
    if delivery == DeliverySpec::default() {
        return Err(Failure::usage(
            "nothing to change; give --max-deliveries, --dead-letter, --no-dead-letter, --lease, --ttl, \
             --retention, --max-messages, --max-bytes, --max-age or --overflow",
        ));
    }
    Ok(delivery)
}

fn edit(client: &Client, args: &QueueEditArgs, delivery: DeliverySpec) -> Outcome {
    let fail = |error| Failure::queue(&args.name, error);
    let before = client.queue_info(&args.name).map_err(fail)?;
    if before.plane == Plane::Direct {
        check_direct_rules(before.kind, &delivery).map_err(|why| {
            Failure::new(Exit::Config, format_args!("queue {} is direct: {why}", args.name))
        })?;
    }
    // The queue is there: what is not found now is its dead-letter queue.
    let info = client.edit_queue(&args.name, delivery)?;
    if args.format.json {
        return print_json(&info);
    }
    print_line(&format!("{}: {}", info.name, show::rules(&info)))
}

fn create(client: &Client, config: &CreateConfig, json: bool) -> Outcome {
    let info = match client.create_queue(&config.name, config.spec.clone()) {
        Err(ClientError::Refused { code: ErrorCode::Exists, .. }) if config.if_not_exists => {
            let info = client.queue_info(&config.name)?;
            config.check_existing(&info)?;
            info
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
        // Arguments were checked before: a durable queue that is refused does not fit how the daemon is set up.
        Err(ClientError::Refused { code: ErrorCode::Invalid, message }) if config.spec.durable => {
            return Err(Failure::new(Exit::Config, message));
        }
        other => other?,
    };
    if json {
        return print_json(&info);
    }
    print_line(&show::created(&info))
}

fn list(client: &Client, args: QueueListArgs) -> Outcome {
    let queues = client.list_queues()?;
    if args.format.json {
        return print_json(&queues);
    }
    print(&show::list(&queues).render(Style::stdout()))
}

fn info(client: &Client, args: &QueueInfoArgs) -> Outcome {
    let info = client.queue_info(&args.name).map_err(|error| Failure::queue(&args.name, error))?;
    if args.format.json {
        return print_json(&info);
    }
    let style = Style::stdout();
    let mut text = show::facts(&info).render(style);
    if !info.handles.is_empty() {
        text.push('\n');
        text.push_str(&show::handles(&info.handles).render(style));
    }
    print(&text)
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
    print_line(&format!("{}: {} discarded", args.name, units::messages(messages)))
}
