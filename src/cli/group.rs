//! `ringmain group list|info|create|reset|delete`.

use ringmain_client::raw::protocol::{ErrorCode, GroupInfo, GroupPlace, Plane};
use ringmain_client::{Client, ClientError, ResetOptions};
use serde_json::json;

use super::Socket;
use super::args::{
    GroupCommand, GroupCreateArgs, GroupDeleteArgs, GroupInfoArgs, GroupListArgs, GroupName,
    GroupResetArgs,
};
use super::consume::brokered::check_start;
use super::exit::{Exit, Failure, Outcome};
use super::output::{Facts, Style, Table, print, print_json, print_line};
use super::units;

pub(crate) fn run(socket: &Socket, command: &GroupCommand) -> Outcome {
    let client = socket.connect()?;
    let queue = match command {
        GroupCommand::List(args) => &args.queue,
        GroupCommand::Info(args) => &args.name.queue,
        GroupCommand::Create(args) => &args.name.queue,
        GroupCommand::Reset(args) => &args.name.queue,
        GroupCommand::Delete(args) => &args.name.queue,
    };
    let info = &client.queue_info(queue).map_err(|error| Failure::queue(queue, error))?;
    if info.plane == Plane::Direct {
        return Err(Failure::new(
            Exit::Config,
            format_args!("queue {queue} is direct: all of its consumers share one group"),
        ));
    }
    match command {
        GroupCommand::List(args) => list(&client, args),
        GroupCommand::Info(args) => show(&client, args),
        GroupCommand::Create(args) => {
            check_start("--from", args.from, info)?;
            create(&client, args)
        }
        GroupCommand::Reset(args) => {
            check_start("--to", args.to, info)?;
            reset(&client, args)
        }
        GroupCommand::Delete(args) => delete(&client, args),
    }
}

/// What a group is called here: the default group has no name.
pub(crate) fn called(group: &str) -> &str {
    if group.is_empty() { "default" } else { group }
}

fn list(client: &Client, args: &GroupListArgs) -> Outcome {
    let groups = client.groups(&args.queue)?;
    if args.format.json {
        return print_json(&groups.iter().map(document).collect::<Vec<_>>());
    }
    let mut table = Table::new(&[
        "GROUP",
        "LAG",
        "LAG BYTES",
        "LAG TIME",
        "CONSUMERS",
        "UNACKED",
        "DELAYED",
        "SKIPPED",
        "NEXT",
    ]);
    for info in &groups {
        table.row(vec![
            called(&info.group).to_string(),
            if info.unused { "unused".to_string() } else { units::count(info.lag_messages) },
            units::bytes(info.lag_bytes),
            lag_time(info),
            info.consumers.to_string(),
            units::count(info.unacknowledged),
            units::count(info.delayed),
            units::count(info.skipped),
            info.next_sequence.to_string(),
        ]);
    }
    print(&table.render(Style::stdout()))
}

fn show(client: &Client, args: &GroupInfoArgs) -> Outcome {
    let GroupName { queue, group } = &args.name;
    let info = client.group_info(queue, group)?;
    if args.format.json {
        return print_json(&document(&info));
    }
    let mut facts = Facts::default();
    facts.add("group", called(&info.group));
    let lag = match info.unused {
        true => "unused: it counts from its first consumer on".to_string(),
        false => {
            let bytes = units::bytes(info.lag_bytes);
            format!("{}, {bytes}", units::messages(info.lag_messages))
        }
    };
    facts.add("lag", lag);
    facts.add("oldest", lag_time(&info));
    facts.add("consumers", info.consumers.to_string());
    facts.add("unacknowledged", units::count(info.unacknowledged));
    facts.add("delayed", units::count(info.delayed));
    facts.add("skipped", units::count(info.skipped));
    if info.stalled {
        facts.add("stalled", "yes: a message cannot be read, see 'ringmain queue info'");
    }
    facts.add("next sequence", info.next_sequence.to_string());
    print(&facts.render(Style::stdout()))
}

fn lag_time(info: &GroupInfo) -> String {
    const MINUTE_NS: u64 = 60_000_000_000;
    match info.lag_ns {
        _ if info.lag_messages == 0 => "-".to_string(),
        MINUTE_NS.. => units::seconds(info.lag_ns / 1_000_000_000),
        _ => units::nanos(info.lag_ns),
    }
}

#[allow(clippy::cast_precision_loss)] // microseconds in seconds
fn document(info: &GroupInfo) -> serde_json::Value {
    json!({
        "group": called(&info.group),
        "lag_messages": info.lag_messages,
        "lag_bytes": info.lag_bytes,
        "lag_seconds": (info.lag_ns / 1000) as f64 / 1e6,
        "consumers": info.consumers,
        "unacknowledged": info.unacknowledged,
        "delayed": info.delayed,
        "next_sequence": info.next_sequence,
        "skipped": info.skipped,
        "unused": info.unused,
        "stalled": info.stalled,
    })
}

fn create(client: &Client, args: &GroupCreateArgs) -> Outcome {
    let GroupName { queue, group } = &args.name;
    let (place, created) = match client.create_group(queue, group, args.from) {
        Ok(place) => (place, true),
        Err(ClientError::Refused { code: ErrorCode::Exists, .. }) if args.if_not_exists => {
            let info = client.group_info(queue, group)?;
            let (sequence, messages) = (info.next_sequence, info.lag_messages);
            (GroupPlace { sequence, messages }, false)
        }
        Err(error) => return Err(error.into()),
    };
    if args.format.json {
        let mut document = place_document(&args.name, place);
        document["created"] = json!(created);
        return print_json(&document);
    }
    let what = if created { "starts at" } else { "exists, it is at" };
    print_line(&sentence(&args.name, what, place))
}

fn reset(client: &Client, args: &GroupResetArgs) -> Outcome {
    let GroupName { queue, group } = &args.name;
    let options = ResetOptions::default().dry_run(args.dry_run).force(args.force);
    let place = client.reset_group(queue, group, args.to, options)?;
    if args.format.json {
        let mut document = place_document(&args.name, place);
        document["dry_run"] = json!(args.dry_run);
        return print_json(&document);
    }
    let what = if args.dry_run { "would start at" } else { "starts at" };
    print_line(&sentence(&args.name, what, place))
}

fn delete(client: &Client, args: &GroupDeleteArgs) -> Outcome {
    let GroupName { queue, group } = &args.name;
    let deleted = match client.delete_group(queue, group, args.force) {
        Ok(()) => true,
        Err(ClientError::Refused { code: ErrorCode::NotFound, .. }) if args.if_exists => false,
        Err(error) => return Err(error.into()),
    };
    if args.format.json {
        let group = called(group);
        return print_json(&json!({ "queue": queue, "group": group, "deleted": deleted }));
    }
    let what = if deleted { "deleted" } else { "does not exist" };
    print_line(&format!("{queue}: group {} {what}", called(group)))
}

fn place_document(name: &GroupName, place: GroupPlace) -> serde_json::Value {
    json!({
        "queue": name.queue,
        "group": called(&name.group),
        "sequence": place.sequence,
        "messages": place.messages,
    })
}

fn sentence(name: &GroupName, what: &str, place: GroupPlace) -> String {
    let GroupName { queue, group } = name;
    let messages = match place.messages {
        0 => "no messages wait".to_string(),
        1 => "1 message waits".to_string(),
        more => format!("{} messages wait", units::count(more)),
    };
    format!("{queue}: group {} {what} message {}, {messages}", called(group), place.sequence)
}
