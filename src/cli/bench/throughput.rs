//! `ringmain bench throughput`: messages per second between processes, every payload verified.

use ringmain_client::raw::protocol::Kind;
use serde::Serialize;

use super::lateness::{self, Lateness};
use super::load::{ConsumeTask, Consumed, ProduceTask, Produced, SIZE_MIN, Tally};
use super::queues::{Place, Shape};
use crate::cli::Socket;
use crate::cli::args::ThroughputArgs;
use crate::cli::crew::{Crew, Member};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::helper::{Order, Task};
use crate::cli::host::{self, Host};
use crate::cli::output::{Facts, Progress, Style, print, print_json};
use crate::cli::signals;
use crate::cli::statistics::Microseconds;
use crate::cli::units;

/// What is measured.
#[derive(Debug)]
struct Config {
    shape: Shape,
    size: usize,
    producers: u8,
    consumers: u8,
    batch: usize,
    wait: String,
    duration_ns: u64,
    /// Each message carries its times.
    timed: bool,
}

impl Config {
    fn new(args: &ThroughputArgs) -> Outcome<Self> {
        let kind: Kind = args.kind.into();
        if kind == Kind::Spsc && (args.producers, args.consumers) != (1, 1) {
            return Err(Failure::usage(
                "an spsc queue has one producer and one consumer; use --kind mpmc",
            ));
        }
        if args.size < SIZE_MIN {
            return Err(Failure::usage(format_args!(
                "--size must be at least {SIZE_MIN}: each message carries its number"
            )));
        }
        let shape = Shape::new(kind, args.slots, args.slot_size, args.size)?;
        let slots = (u64::from(args.size) + 16).div_ceil(u64::from(shape.slot_size));
        if slots * u64::from(args.batch) > u64::from(args.slots / 4) {
            return Err(Failure::usage(format_args!(
                "--batch {}: a batch takes at most a quarter of the ring ({} of {} slots); use more \
                 --slots or a smaller batch",
                args.batch,
                args.slots / 4,
                args.slots
            )));
        }
        if args.latency {
            check_timed(args, slots)?;
        }
        Ok(Self {
            shape,
            size: args.size as usize,
            producers: args.producers,
            consumers: args.consumers,
            batch: args.batch as usize,
            wait: args.wait.to_string(),
            duration_ns: u64::try_from(args.duration.as_nanos()).unwrap_or(u64::MAX),
            timed: args.latency,
        })
    }
}

/// Messages that carry their times are written in place, one at a time.
fn check_timed(args: &ThroughputArgs, slots: u64) -> Outcome {
    let problem = if args.size < lateness::SIZE_MIN {
        format!("--size must be at least {}: each message carries its times", lateness::SIZE_MIN)
    } else if args.batch != 1 {
        "a batch has no times of its own; leave --batch out".to_string()
    } else if slots != 1 {
        "a message must fit one slot; leave --slot-size out or use a smaller --size".to_string()
    } else {
        return Ok(());
    };
    Err(Failure::usage(format_args!("--latency: {problem}")))
}

/// What was measured, as it is printed.
#[derive(Debug, Serialize)]
struct Answer {
    bench: &'static str,
    kind: Kind,
    producers: u8,
    consumers: u8,
    size: usize,
    batch: usize,
    wait: String,
    slots: u32,
    slot_size: u32,
    seconds: f64,
    messages_per_s: f64,
    bytes_per_s: f64,
    /// From the call of the producer to the receipt: what it waited for room is in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_us: Option<Microseconds>,
    /// From the moment that the producer had its slot to the receipt.
    #[serde(skip_serializing_if = "Option::is_none")]
    age_us: Option<Microseconds>,
    #[serde(flatten)]
    check: Check,
    pinned: bool,
    oversubscribed: bool,
    host: Host,
}

/// What sent and received come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
struct Check {
    sent: u64,
    received: u64,
    /// Messages whose every byte was compared and found right.
    verified_messages: u64,
    lost: u64,
    doubled: u64,
    altered: u64,
    /// Messages of one producer that one consumer got in the wrong order.
    out_of_order: u64,
    verified: bool,
}

pub(crate) fn run(socket: &Socket, args: &ThroughputArgs) -> Outcome {
    let config = Config::new(args)?;
    signals::catch()?;
    let mut place = Place::new(socket)?;
    let answer = measure(&mut place, &config)?;
    drop(place);
    if args.format.json {
        print_json(&answer)?;
    } else {
        print(&text(&answer))?;
    }
    if answer.check.verified {
        return Ok(());
    }
    Err(Failure::new(Exit::Data, format_args!("not what was sent: {:?}", answer.check)))
}

fn measure(place: &mut Place, config: &Config) -> Outcome<Answer> {
    let queue = place.make("bench-throughput", &config.shape)?;
    let processes = usize::from(config.producers) + usize::from(config.consumers);
    let mut cores = host::cores(processes);
    let pinned = cores.len() >= processes;
    cores.truncate(if pinned { processes } else { 0 });
    let mut cpus = cores.into_iter();
    let mut crew = Crew::new();
    let mut consumers = Vec::new();
    for _ in 0..config.consumers {
        let task = ConsumeTask {
            socket: place.socket().to_path_buf(),
            queue: queue.clone(),
            wait: config.wait.clone(),
            producers: config.producers,
            alone: config.consumers == 1,
            size: config.size,
            batch: config.batch,
            timed: config.timed,
            cpu: cpus.next(),
        };
        consumers.push(crew.start("consumer", &Task::LoadConsume(task), &[])?);
    }
    let mut producers = Vec::new();
    for producer in 0..config.producers {
        let task = ProduceTask {
            socket: place.socket().to_path_buf(),
            queue: queue.clone(),
            wait: config.wait.clone(),
            producer,
            size: config.size,
            batch: config.batch,
            duration_ns: config.duration_ns,
            timed: config.timed,
            cpu: cpus.next(),
        };
        producers.push(crew.start("producer", &Task::LoadProduce(task), &[])?);
    }
    let (produced, consumed) = watch(&mut crew, &producers, &consumers)?;
    drop(crew);
    Ok(answer(config, &produced, &consumed, pinned))
}

fn watch(
    crew: &mut Crew,
    producers: &[Member],
    consumers: &[Member],
) -> Outcome<(Vec<Produced>, Vec<Consumed>)> {
    let mut progress = Progress::new();
    let mut received: Vec<u64> = vec![0; producers.len() + consumers.len()];
    let mut show = |member: Member, messages: u64| {
        if let Some(slot) = received.get_mut(member.index()) {
            *slot = messages;
        }
        let total: u64 = received.iter().sum();
        progress.show(|| format!("{} messages verified", units::count(total)));
    };
    crew.wait_ready()?;
    crew.order_all(Order::Go)?;
    let produced = crew.results(producers, &mut show)?;
    crew.order(consumers, Order::Stop)?;
    let consumed = crew.results(consumers, &mut show)?;
    progress.clear();
    Ok((produced, consumed))
}

#[allow(clippy::cast_precision_loss)] // rates
fn answer(config: &Config, produced: &[Produced], consumed: &[Consumed], pinned: bool) -> Answer {
    let check = check(produced, consumed);
    let start_ns = produced.iter().map(|one| one.start_ns).min().unwrap_or(0);
    let end_ns = consumed.iter().map(|one| one.end_ns).max().unwrap_or(0);
    let seconds = (end_ns.saturating_sub(start_ns)).max(1) as f64 / 1e9;
    let messages_per_s = check.received as f64 / seconds;
    let times = config.timed.then(|| {
        Lateness::summary(consumed.iter().filter_map(|consumer| consumer.lateness.as_ref()))
    });
    Answer {
        bench: "throughput",
        kind: config.shape.kind,
        producers: config.producers,
        consumers: config.consumers,
        size: config.size,
        batch: config.batch,
        wait: config.wait.clone(),
        slots: config.shape.slots,
        slot_size: config.shape.slot_size,
        seconds,
        messages_per_s,
        bytes_per_s: messages_per_s * config.size as f64,
        latency_us: times.map(|(latency, _)| latency.into()),
        age_us: times.map(|(_, age)| age.into()),
        check,
        pinned,
        oversubscribed: !pinned,
        host: Host::look(),
    }
}

/// Compares what was sent with what arrived, producer by producer.
fn check(produced: &[Produced], consumed: &[Consumed]) -> Check {
    let mut check = Check::default();
    let alone = consumed.len() == 1;
    let mut sets_agree = true;
    for (index, one) in produced.iter().enumerate() {
        let mut sums = [0u64; 2];
        let (mut received, mut lost, mut backward) = (0, 0, 0);
        for tally in consumed.iter().filter_map(|consumer| consumer.tallies.get(index)) {
            received += tally.received;
            lost += tally.lost;
            backward += tally.backward;
            sums = [0, 1].map(|i| sums[i].wrapping_add(tally.sums[i]));
        }
        check.sent += one.sent;
        check.received += received;
        if alone {
            // Every number was compared with the one before; those behind the last one seen are missing as well.
            check.doubled += backward;
            check.lost += lost + one.sent.saturating_sub(received + lost - backward.min(received));
        } else {
            check.out_of_order += backward;
            check.lost += one.sent.saturating_sub(received);
            check.doubled += received.saturating_sub(one.sent);
            sets_agree &= sums == Tally::expected_sums(one.sent);
        }
    }
    check.verified_messages = check.received;
    check.altered = consumed.iter().map(|one| one.altered).sum();
    check.received += check.altered;
    let clean = check.lost + check.doubled + check.altered + check.out_of_order == 0;
    check.verified = clean && sets_agree && check.sent == check.received && check.sent > 0;
    check
}

fn text(answer: &Answer) -> String {
    let style = Style::stdout();
    let check = &answer.check;
    let mut facts = Facts::default();
    facts.add(
        "messages",
        format!(
            "{} bytes, batches of {}, {} producers, {} consumers, {}, {} slots of {}, {} waiting",
            answer.size,
            answer.batch,
            answer.producers,
            answer.consumers,
            format!("{:?}", answer.kind).to_lowercase(),
            answer.slots,
            units::bytes(answer.slot_size.into()),
            answer.wait
        ),
    );
    facts.add("host", answer.host.line());
    facts.add(
        "processes",
        if answer.oversubscribed {
            "more than cores: do not compare"
        } else {
            "pinned, a core each"
        },
    );
    facts.add("time", format!("{:.2} s", answer.seconds));
    facts.add("rate", style.bold(&units::rate(answer.messages_per_s)));
    facts.add("payload", units::bytes_rate(answer.bytes_per_s));
    for (name, times) in
        [("call to receipt", answer.latency_us), ("claim to receipt", answer.age_us)]
    {
        if let Some(times) = times {
            facts.add(name, times_line(&times));
        }
    }
    let verdict = if check.verified { style.green("yes") } else { style.red("NO") };
    facts.add(
        "verified",
        format!(
            "{verdict}: {} sent, {} right, {} lost, {} doubled, {} altered, {} out of order",
            units::count(check.sent),
            units::count(check.verified_messages),
            check.lost,
            check.doubled,
            check.altered,
            check.out_of_order
        ),
    );
    facts.render(style)
}

fn times_line(times: &Microseconds) -> String {
    format!(
        "p50 {:.1} µs, p99 {:.1} µs, p99.9 {:.1} µs, max {:.1} µs of {} messages, every one",
        times.p50,
        times.p99,
        times.p999,
        times.max,
        units::count(times.samples)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn consumed(tallies: &[Tally]) -> Consumed {
        Consumed { tallies: tallies.to_vec(), end_ns: 1, ..Consumed::default() }
    }

    fn produced(sent: u64) -> Produced {
        Produced { sent, start_ns: 0 }
    }

    #[test]
    fn one_consumer_is_judged_by_its_numbers() {
        let right = Tally { received: 10, ..Tally::default() };
        assert!(check(&[produced(10)], &[consumed(&[right])]).verified);
        let gap = Tally { received: 8, lost: 1, ..Tally::default() };
        let verdict = check(&[produced(10)], &[consumed(&[gap])]);
        assert_eq!((verdict.lost, verdict.doubled, verdict.verified), (2, 0, false));
        let repeat = Tally { received: 11, backward: 1, ..Tally::default() };
        let verdict = check(&[produced(10)], &[consumed(&[repeat])]);
        assert_eq!((verdict.lost, verdict.doubled, verdict.verified), (0, 1, false));
    }

    #[test]
    fn several_consumers_are_judged_by_their_sums() {
        let sums = Tally::expected_sums(4);
        let half = Tally { received: 2, ..Tally::default() };
        let other = Tally { received: 2, sums, ..Tally::default() };
        let both = [consumed(&[half]), consumed(&[other])];
        assert!(check(&[produced(4)], &both).verified);
        let wrong = Tally { received: 2, sums: [sums[0], 1], ..Tally::default() };
        let both = [consumed(&[half]), consumed(&[wrong])];
        assert!(!check(&[produced(4)], &both).verified);
    }
}
