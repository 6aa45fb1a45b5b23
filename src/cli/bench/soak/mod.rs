//! `ringmain bench soak`: confirmations at half the maximum rate for minutes, while segments are used again and cleaned and a stream is
//! replayed; raw durable writes of the same minutes beside them.

mod answer;
pub(crate) mod reread;

use std::time::{Duration, Instant};

use ringmain::shard::figures::Figures;
use ringmain_client::raw::protocol::{DeliverySpec, Kind, QueueSpec, Retention};

use super::brokered::conditions::Conditions;
use super::brokered::consume::{self, Consumers};
use super::brokered::place::{DurablePlace, need_room};
use super::brokered::probe::RawWriter;
use super::brokered::publish::{Content, Flow, Load};
use super::brokered::{batch_bytes, check_numbered, durable, refuse_socket, shape};
use crate::cli::Socket;
use crate::cli::args::SoakArgs;
use crate::cli::crew::{Crew, Member};
use crate::cli::exit::{Failure, Outcome};
use crate::cli::helper::{Order, Task as HelperTask};
use crate::cli::output::{Progress, Style, print, print_json};
use crate::cli::signals;
use crate::cli::statistics::Samples;
use answer::{Answer, Minute};
use reread::Reread;

/// Payload bytes that the work queue holds before its producer waits.
const WORK_BYTES: u64 = 64 << 20;

/// Bytes of messages that nobody reads, at most; one message in so many, at most.
const STUCK_BYTES: u64 = 32 << 20;
const STUCK_EACH: u64 = 1000;

/// Length of a segment file, and files beside those whose messages are needed: what the cleaner allows, spares, freed ones that are
/// kept for a while, the raw file.
const SEGMENT_BYTES: u64 = 64 << 20;
const OTHER_FILES: u64 = 17;

/// One stretch of publishing and of raw writes, and the part of it for raw writes.
const ROUND: Duration = Duration::from_secs(2);
const PROBE_SHARE: f64 = 0.1;

/// How long the maximum is measured.
const MAXIMUM: Duration = Duration::from_secs(5);

/// Where the shorter of these runs end up: so many of them are in what is measured at least.
const PARTS_MIN: u32 = 5;

const MINUTE: Duration = Duration::from_secs(60);

/// Messages on the way while the stream is made.
const FILL_WINDOW: u32 = 4096;

pub(crate) fn run(socket: &Socket, args: &SoakArgs) -> Outcome {
    refuse_socket(socket, "bench soak", "measures a disk that nobody else uses")?;
    check_numbered(args.size)?;
    let stream_messages = args.stream / u64::from(args.size);
    if stream_messages == 0 {
        return Err(Failure::usage("--stream is smaller than one message"));
    }
    let needed = room(args);
    need_room("bench soak", &args.disk, needed)?;
    signals::catch()?;
    let mut soak = Soak::start(args, stream_messages)?;
    let mut progress = Progress::new();
    let maximum = soak.maximum(args.duration, &mut progress)?;
    let rate = args.rate.map_or(maximum / 2.0, f64::from);
    let minutes = soak.go_on(args, rate, &mut progress)?;
    let end = soak.finish()?;
    let answer = Answer::new(args, needed, (maximum, rate), &minutes, end);
    if args.format.json { print_json(&answer) } else { print(&answer.text(Style::stdout())) }
}

/// Bytes on the disk, at most: twice what is needed and some files.
fn room(args: &SoakArgs) -> u64 {
    let messages = WORK_BYTES.saturating_add(args.stream) / u64::from(args.size);
    let needed = messages.saturating_mul(u64::from(args.size) + 64).saturating_add(STUCK_BYTES);
    needed.saturating_mul(2).saturating_add(OTHER_FILES * SEGMENT_BYTES)
}

/// One message goes to the queue that nobody reads with every so many of the work queue.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // far below 2^63
fn stuck_each(args: &SoakArgs, rate: f64) -> u64 {
    let all = (rate * args.duration.as_secs_f64()) as u64;
    let most = STUCK_BYTES / (u64::from(args.size) + 64);
    all.div_ceil(most.max(1)).max(STUCK_EACH)
}

/// All that takes part.
struct Soak {
    work: String,
    stuck: String,
    raw: RawWriter,
    probe: Samples,
    stream: reread::Task,
    // Dropped in this order: nobody must meet a daemon that stops.
    load: Load,
    consumers: Consumers,
    rereader: Option<(Crew, Member)>,
    place: DurablePlace,
}

/// The publishing one, the shard's, the reader of the stream, and the consumers.
fn busy_processes(args: &SoakArgs) -> u32 {
    args.consumers + 3
}

/// What there is to say when it is over.
struct End {
    conditions: Conditions,
    reread: Reread,
    /// If the daemon has said them.
    journal: Option<Figures>,
    consumed: u64,
    stuck: u64,
}

impl Soak {
    fn start(args: &SoakArgs, stream_messages: u64) -> Outcome<Self> {
        let mut place = DurablePlace::private(&args.disk, &[])?;
        let limited = |kind, delivery| -> Outcome<QueueSpec> {
            Ok(QueueSpec { delivery, ..durable(&shape(kind, args.size, args.window)?) })
        };
        let bound = DeliverySpec { max_bytes: Some(WORK_BYTES), ..DeliverySpec::default() };
        let work = place.make("work", &limited(Kind::Mpmc, bound)?)?;
        let stuck = place.make("stuck", &limited(Kind::Spsc, DeliverySpec::default())?)?;
        let kept = DeliverySpec { retention: Some(Retention::Stream), ..DeliverySpec::default() };
        let stream =
            QueueSpec { delivery: kept, ..durable(&shape(Kind::Spsc, args.size, FILL_WINDOW)?) };
        let stream = place.make("stream", &stream)?;
        let client = place.client();
        let numbered = |queue: &str, window| {
            let queues = [queue.to_string()];
            Load::attach(client, &queues, None, Content::Numbered, args.size, window)
        };
        numbered(&stream, FILL_WINDOW)?.fill(stream_messages, |_| {})?;
        let load = numbered(&work, args.window)?;
        let task = consume::Task {
            socket: place.socket().to_path_buf(),
            queue: work.clone(),
            group: String::new(),
            content: Content::Numbered,
            size: args.size,
            alone: args.consumers == 1,
        };
        let consumers = Consumers::start((0..args.consumers).map(|_| task.clone()))?;
        let bytes = batch_bytes(args.size, u64::from(args.window));
        let stream = reread::Task {
            socket: place.socket().to_path_buf(),
            queue: stream,
            messages: stream_messages,
            size: args.size,
            rate: args.replay_rate,
        };
        Ok(Self {
            work,
            stuck,
            raw: RawWriter::open(&place, args.disk.journal_backend, bytes)?,
            probe: Samples::new(),
            stream,
            load,
            consumers,
            rereader: None,
            place,
        })
    }

    /// Messages per second that the work queue takes and its consumers get.
    fn maximum(&mut self, duration: Duration, progress: &mut Progress) -> Outcome<f64> {
        progress.show(|| "measuring the maximum rate".to_string());
        let length = MAXIMUM.min(duration / PARTS_MIN);
        // Before it counts the queue is as full as it gets.
        let before = self.load.run(length / PARTS_MIN);
        self.consumers.explain(before)?;
        let published = self.load.run(length);
        let flow = self.consumers.explain(published)?;
        self.consumers.wait_until_read(self.place.client(), &self.work)?;
        Ok(flow.rate())
    }

    /// Everything at once, minute by minute.
    fn go_on(
        &mut self,
        args: &SoakArgs,
        rate: f64,
        progress: &mut Progress,
    ) -> Outcome<Vec<Minute>> {
        self.load.add_queue(self.place.client(), &self.stuck)?;
        let each = stuck_each(args, rate);
        let mut crew = Crew::new();
        let member = crew.start("reading", &HelperTask::Reread(self.stream.clone()), &[])?;
        crew.wait_ready()?;
        crew.order_all(Order::Go)?;
        self.rereader = Some((crew, member));
        let round = ROUND.min(args.duration / PARTS_MIN);
        let probing = round.mul_f64(PROBE_SHARE);
        let start = Instant::now();
        let (mut minutes, mut minute) = (Vec::new(), Minute::new());
        while start.elapsed() < args.duration {
            progress
                .show(|| format!("{} of {} s", start.elapsed().as_secs(), args.duration.as_secs()));
            let published = self.load.run_paced(round - probing, rate, each, &mut minute.scheduled);
            let flow = self.explain(published)?;
            self.raw.sample(probing, &mut minute.probe)?;
            minute.add(&flow, self.place.journal_bytes());
            let number = u32::try_from(minutes.len()).unwrap_or(u32::MAX);
            let is_over = start.elapsed() >= MINUTE.saturating_mul(number.saturating_add(1));
            if is_over || start.elapsed() >= args.duration {
                progress.finish(&minute.line(number + 1));
                self.probe.add(&minute.probe);
                minutes.push(std::mem::replace(&mut minute, Minute::new()));
            }
        }
        Ok(minutes)
    }

    /// If publishing failed because another process has, that one says why.
    fn explain(&mut self, published: Outcome<Flow>) -> Outcome<Flow> {
        if let Some((crew, _)) = &mut self.rereader
            && matches!(published, Err(Failure::Message { .. }))
        {
            crew.listen(&mut |_, _| {})?;
        }
        self.consumers.explain(published)
    }

    /// Everything that was published was received, once; then the daemon stops and says what its journal did.
    fn finish(mut self) -> Outcome<End> {
        let (mut crew, member) =
            self.rereader.take().ok_or_else(|| Failure::internal("nobody reads the stream"))?;
        crew.order(&[member], Order::Stop)?;
        let reread = crew.results::<Reread>(&[member], |_, _| {})?.pop().unwrap_or_default();
        self.consumers.wait_until_read(self.place.client(), &self.work)?;
        let consumed = self.consumers.finish()?;
        let sent = self.load.sent(0);
        consume::verify(&self.work, &consumed, sent)?;
        let stuck = self.load.sent(1);
        consume::drain(self.place.client(), &self.stuck, self.stream.size, 0..stuck)?;
        let conditions = Conditions::new(&self.place, &self.raw, &self.probe);
        let Self { load, consumers, raw, place, .. } = self;
        drop((load, consumers, crew, raw));
        let journal = Figures::last_in(&place.stop()?, 0);
        Ok(End { conditions, reread, journal, consumed: sent, stuck })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::DiskArgs;

    #[test]
    fn what_nobody_reads_is_bounded() {
        let mut args = SoakArgs {
            size: 256,
            window: 1,
            consumers: 1,
            duration: Duration::from_secs(3600),
            rate: None,
            replay_rate: None,
            stream: 128 << 20,
            disk: DiskArgs { journal_backend: None, data_dir: None },
            format: crate::cli::args::Format { json: false },
        };
        assert_eq!(stuck_each(&args, 10.0), STUCK_EACH);
        let each = stuck_each(&args, 1e6);
        assert!(3_600_000_000 / each * 320 <= STUCK_BYTES, "{each}");
        assert!((1 << 30..2 << 30).contains(&room(&args)), "{}", room(&args));
        args.size = 8;
        assert!(room(&args) > 3 << 30);
    }
}
