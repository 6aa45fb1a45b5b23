//! `ringmain bench transaction`: two publishes and an acknowledgement in one step, over a plain publish.

use std::time::Duration;

use ringmain_client::raw::protocol::Kind;
use ringmain_client::raw::sys::clock::monotonic_ns;
use ringmain_client::{
    BrokeredConsumer, BrokeredProducer, Client, ConsumerOptions, Delivery, ProducerOptions,
    TransactionError,
};
use serde::Serialize;

use super::brokered::consume;
use super::brokered::contrast::{Answer, Contrast, Measure, Names, Plan, Side};
use super::brokered::place::{DurablePlace, need_room};
use super::brokered::probe::RawWriter;
use super::brokered::publish::{Content, Flow, Load, nanoseconds, own_sleeps, unconfirmed};
use super::brokered::{LIMIT, batch_bytes, check_numbered, durable, refuse_socket, shape};
use super::load;
use crate::cli::Socket;
use crate::cli::args::TransactionArgs;
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::output::{Progress, Style, print, print_json};
use crate::cli::signals;
use crate::cli::units;

/// Messages of the input queue.
const INPUTS: u64 = 512;

/// Messages that are on the way while the input queue is filled.
const FILL_WINDOW: u32 = 64;

/// Bytes of a transaction around its messages, as its queues must allow for them.
const AROUND_BYTES: u32 = 1024;

/// What lies in the journal until it is freed, and the raw file.
const ROOM_BYTES: u64 = 1 << 30;

/// What is measured.
#[derive(Debug, Serialize)]
struct Config {
    size: u32,
    window: u32,
    publishes: u32,
    acknowledgements: u32,
}

pub(crate) fn run(socket: &Socket, args: &TransactionArgs) -> Outcome {
    refuse_socket(socket, "bench transaction", "measures a disk that nobody else uses")?;
    check_numbered(args.size)?;
    // The whole is one message of the lane through which it goes.
    let whole = args.size.saturating_mul(2).saturating_add(AROUND_BYTES);
    let shape = shape(Kind::Spsc, whole, FILL_WINDOW)?;
    need_room("bench transaction", &args.disk, ROOM_BYTES)?;
    signals::catch()?;
    let mut place = DurablePlace::private(&args.disk, &[])?;
    let spec = durable(&shape);
    let [plain, input, output] =
        ["plain", "input", "output"].map(|purpose| place.make(purpose, &spec));
    let (plain, input, output) = (plain?, input?, output?);
    let client = place.client();
    let numbered = |queue: &str, window| {
        Load::attach(client, &[queue.to_string()], None, Content::Numbered, args.size, window)
    };
    numbered(&input, FILL_WINDOW)?.fill(INPUTS, |_| {})?;
    let mut publisher = numbered(&plain, 1)?;
    let mut pipe = Pipe::attach(client, &input, &output, args.size)?;
    let mut raw = RawWriter::open(&place, args.disk.journal_backend, batch_bytes(args.size, 1))?;
    let plan = Plan::new(args.duration);
    let found = Contrast::measure(plan, &mut raw, &mut Progress::new(), |side, duration| {
        let (queue, first, flow, sent) = match side {
            Side::Base => {
                let first = publisher.sent(0);
                (&plain, first, publisher.run(duration)?, publisher.sent(0))
            }
            Side::Other => {
                let first = pipe.done;
                (&output, first, pipe.run(duration)?, pipe.done)
            }
        };
        consume::drain(client, queue, args.size, first..sent)?;
        Ok(flow)
    })?;
    let done = pipe.done;
    drop(pipe);
    let load = format!("one at a time, messages of {}", units::bytes(args.size.into()));
    let names = Names {
        bench: "transaction",
        base: "plain durable publish".to_string(),
        other: "transaction: 2 publishes, 1 acknowledgement".to_string(),
        measure: Measure::Median,
        checked: format!(
            "each input once, each output once and in order, of {} transactions",
            units::count(done)
        ),
    };
    let config = Config { size: args.size, window: 1, publishes: 2, acknowledgements: 1 };
    let answer = Answer::new(names, config, &found, &place, &raw);
    if args.format.json { print_json(&answer) } else { print(&answer.text(&load, Style::stdout())) }
}

/// Takes a message, publishes one, and puts another one in its place.
struct Pipe<'a> {
    client: &'a Client,
    size: u32,
    input: BrokeredConsumer,
    back: BrokeredProducer,
    output: BrokeredProducer,
    delivery: Delivery,
    /// To the output and back to the input.
    payloads: [Vec<u8>; 2],
    /// Transactions.
    done: u64,
}

impl<'a> Pipe<'a> {
    fn attach(client: &'a Client, input: &str, output: &str, size: u32) -> Outcome<Self> {
        let producer = |queue: &str| {
            let attached = client.brokered_producer(queue, ProducerOptions::default());
            attached.map_err(|error| Failure::queue(queue, error))
        };
        let consumer = client.brokered_consumer(input, ConsumerOptions::default());
        Ok(Self {
            client,
            size,
            input: consumer.map_err(|error| Failure::queue(input, error))?,
            back: producer(input)?,
            output: producer(output)?,
            delivery: Delivery::default(),
            payloads: [0, 1].map(|_| vec![0; size as usize]),
            done: 0,
        })
    }

    /// One transaction after the other for this long.
    fn run(&mut self, duration: Duration) -> Outcome<Flow> {
        let mut flow = Flow::new();
        let sleeps = own_sleeps();
        let start_ns = monotonic_ns();
        let end_ns = start_ns + nanoseconds(duration);
        loop {
            consume::next(&mut self.input, &mut self.delivery)?;
            let queue = self.input.queue_name();
            if consume::check(queue, &self.delivery, self.size)? != self.done {
                return Err(bad(format_args!(
                    "message {} did not come in its turn",
                    self.done + 1
                )));
            }
            let [output, back] = &mut self.payloads;
            load::fill(output, self.done);
            load::fill(back, self.done + INPUTS);
            let sent_ns = monotonic_ns();
            self.transact()?;
            let now_ns = monotonic_ns();
            flow.samples.record(now_ns - sent_ns);
            self.done += 1;
            if now_ns >= end_ns {
                flow.nanoseconds = now_ns - start_ns;
                flow.sleeps = own_sleeps() - sleeps;
                return Ok(flow);
            }
            signals::check()?;
        }
    }

    /// Puts it together, sends it, and waits until all of it is durable.
    fn transact(&mut self) -> Outcome {
        let mut transaction = self.client.transaction();
        let [output, back] = &self.payloads;
        let gathered = transaction
            .publish(&self.output, output)
            .and_then(|gathered| gathered.publish(&self.back, back))
            .and_then(|gathered| gathered.ack(&self.input, &self.delivery));
        gathered.map_err(failed)?;
        let receipt = transaction.commit_timeout(&mut self.output, LIMIT).map_err(failed)?;
        let confirmed = self.output.wait_timeout(&receipt, LIMIT);
        let confirmed = confirmed.map_err(|error| unconfirmed(self.output.queue_name(), error))?;
        if confirmed.sequence == self.done + 1 {
            Ok(())
        } else {
            Err(bad(format_args!("transaction {} is not in its place", self.done + 1)))
        }
    }
}

fn failed(error: TransactionError) -> Failure {
    match error {
        TransactionError::Send(error) => Failure::send("of the measurement", &error),
        error => Failure::internal(error),
    }
}

fn bad(message: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Data, message)
}
