//! `ringmain peek`, `tail` and `ringmain dead-letter list|redrive`: looking at messages without taking them.

use ringmain_client::raw::protocol::{BrokeredInfo, Plane};
use ringmain_client::{Client, Delivery, StartAt};
use serde_json::json;

use super::Socket;
use super::args::{
    DeadLetterCommand, DeadLetterListArgs, DeadLetterRedriveArgs, PeekArgs, TailArgs,
};
use super::consume::brokered::{browse, print_delivery};
use super::consume::rendering::{Format, Shown};
use super::exit::{Exit, Failure, Outcome};
use super::output::{Style, Table, print, print_json, print_line};
use super::signals;
use super::units;

/// Headers of a dead letter.
mod header {
    pub(super) const REASON: &str = "ringmain-reason";
    pub(super) const ORIGIN_QUEUE: &str = "ringmain-origin-queue";
    pub(super) const ORIGIN_SEQUENCE: &str = "ringmain-origin-sequence";
    pub(super) const DELIVERIES: &str = "ringmain-deliveries";
}

/// Characters of a payload that people see.
const SHOWN_CHARACTERS: usize = 60;

pub(crate) fn run(socket: &Socket, args: &PeekArgs) -> Outcome {
    let client = socket.connect()?;
    brokered(&client, &args.queue)?;
    let format = Format::new(args.format.json, args.with_sequence);
    signals::catch()?;
    let mut left = if args.count == 0 { u64::MAX } else { args.count };
    browse(&client, &args.queue, args.from.unwrap_or_default(), false, |delivery| {
        print_delivery(delivery, format)?;
        left -= 1;
        Ok(left > 0)
    })
}

pub(crate) fn tail(socket: &Socket, args: &TailArgs) -> Outcome {
    let client = socket.connect()?;
    brokered(&client, &args.queue)?;
    let format = Format::new(args.format.json, args.with_sequence);
    signals::catch()?;
    browse(&client, &args.queue, StartAt::Last(args.lines), args.follow, |delivery| {
        print_delivery(delivery, format)?;
        Ok(true)
    })
}

pub(crate) fn dead_letter(socket: &Socket, command: &DeadLetterCommand) -> Outcome {
    let client = socket.connect()?;
    match command {
        DeadLetterCommand::List(args) => list(&client, args),
        DeadLetterCommand::Redrive(args) => redrive(&client, args),
    }
}

/// What the daemon knows of a queue that must be brokered.
fn brokered(client: &Client, queue: &str) -> Outcome<BrokeredInfo> {
    let info = client.queue_info(queue).map_err(|error| Failure::queue(queue, error))?;
    if info.plane == Plane::Direct {
        return Err(Failure::new(
            Exit::Config,
            format_args!(
                "queue {queue} is direct: its messages cannot be shown without being taken; see \
                 'ringmain consume {queue}'"
            ),
        ));
    }
    Ok(info.brokered.unwrap_or_default())
}

/// A dead letter, as it is shown.
struct Letter {
    sequence: u64,
    reason: Option<String>,
    origin: Option<String>,
    origin_sequence: Option<u64>,
    deliveries: Option<u64>,
    document: serde_json::Value,
    payload: String,
}

impl Letter {
    fn read(delivery: &Delivery) -> Self {
        let metadata = delivery.metadata().unwrap_or_default();
        let header = |name: &str| {
            let found = metadata.headers.iter().find(|(header, _)| header == name);
            found.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
        };
        let number = |name: &str| header(name)?.parse().ok();
        Self {
            sequence: delivery.sequence(),
            reason: header(header::REASON),
            origin: header(header::ORIGIN_QUEUE),
            origin_sequence: number(header::ORIGIN_SEQUENCE),
            deliveries: number(header::DELIVERIES),
            document: Shown::delivery(delivery, Format::Json).document(),
            payload: shortened(delivery.payload()),
        }
    }

    fn into_json(self) -> serde_json::Value {
        let mut document = self.document;
        document["reason"] = json!(self.reason);
        document["origin_queue"] = json!(self.origin);
        document["origin_sequence"] = json!(self.origin_sequence);
        document["deliveries"] = json!(self.deliveries);
        document
    }

    fn into_row(self) -> Vec<String> {
        let text = |value: Option<String>| value.unwrap_or_else(|| "-".to_string());
        let number = |value: Option<u64>| text(value.map(|value| value.to_string()));
        vec![
            self.sequence.to_string(),
            text(self.origin),
            number(self.origin_sequence),
            number(self.deliveries),
            text(self.reason),
            self.payload,
        ]
    }
}

fn list(client: &Client, args: &DeadLetterListArgs) -> Outcome {
    let elsewhere = letters_elsewhere(client, &args.queue)?;
    // Those letters that came from it. What came from nowhere is no dead letter.
    let (queue, origin) = match &elsewhere {
        Some(of) => (of, Some(&args.queue)),
        None => (&args.queue, None),
    };
    signals::catch()?;
    let wanted = if args.count == 0 { u64::MAX } else { args.count };
    let mut letters = Vec::new();
    browse(client, queue, StartAt::First, false, |delivery| {
        let letter = Letter::read(delivery);
        let from = letter.origin.as_ref();
        if from.is_some_and(|from| origin.is_none_or(|origin| from == origin)) {
            letters.push(letter);
        }
        Ok((letters.len() as u64) < wanted)
    })?;
    if args.format.json {
        let documents: Vec<_> = letters.into_iter().map(Letter::into_json).collect();
        return print_json(&documents);
    }
    let mut table =
        Table::new(&["SEQUENCE", "ORIGIN", "ORIGIN SEQUENCE", "DELIVERIES", "REASON", "PAYLOAD"]);
    letters.into_iter().for_each(|letter| table.row(letter.into_row()));
    print(&table.render(Style::stdout()))
}

/// The dead-letter queue of a queue that is none itself. One that is may have another one in turn.
fn letters_elsewhere(client: &Client, queue: &str) -> Outcome<Option<String>> {
    let of = brokered(client, queue)?.dead_letter;
    if of.is_empty() {
        return Ok(None);
    }
    let all = client.list_queues().map_err(|error| Failure::queue(queue, error))?;
    let mut rules = all.into_iter().filter_map(|other| other.brokered);
    let is_one = rules.any(|rules| rules.dead_letter == queue);
    Ok((!is_one).then_some(of))
}

fn redrive(client: &Client, args: &DeadLetterRedriveArgs) -> Outcome {
    let queue = &args.queue;
    if let Some(of) = letters_elsewhere(client, queue)? {
        return Err(Failure::new(
            Exit::Config,
            format_args!(
                "queue {queue} sends its dead letters to {of}; use 'ringmain dead-letter redrive {of}'"
            ),
        ));
    }
    let messages =
        client.redrive(queue, args.count).map_err(|error| Failure::queue(queue, error))?;
    if args.format.json {
        return print_json(&json!({ "queue": queue, "messages": messages }));
    }
    print_line(&format!("{queue}: {} sent back", units::messages(messages)))
}

/// The beginning, printable, in one line.
fn shortened(payload: &[u8]) -> String {
    let text = String::from_utf8_lossy(&payload[..payload.len().min(4 * SHOWN_CHARACTERS)]);
    let printable = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut short: String = printable.take(SHOWN_CHARACTERS).collect();
    if text.chars().count() > SHOWN_CHARACTERS || payload.len() > 4 * SHOWN_CHARACTERS {
        short.push_str("...");
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_payloads_are_cut() {
        assert_eq!(shortened(b"a\tb\n"), "a b ");
        assert_eq!(shortened(b"\xff"), "\u{fffd}");
        let long = shortened("ä".repeat(500).as_bytes());
        assert!(long.ends_with("...") && long.chars().count() == SHOWN_CHARACTERS + 3);
    }
}
