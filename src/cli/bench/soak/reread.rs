//! The process that reads a stream from its beginning to its end, again and again.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use ringmain_client::raw::protocol::StartAt;
use ringmain_client::raw::sys::clock::monotonic_ns;
use ringmain_client::{Client, ConsumerOptions, Delivery, ResetOptions};
use serde::{Deserialize, Serialize};

use crate::cli::bench::brokered::{LIMIT, consume};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::helper::Parent;

/// Its group.
const GROUP: &str = "again";

/// Messages that it has at a time.
const CREDIT: u32 = 2048;

/// Messages between two looks at the order to stop.
const LOOK_EVERY: u64 = 1024;

/// For the reading process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(super) socket: PathBuf,
    pub(super) queue: String,
    pub(super) messages: u64,
    pub(super) size: u32,
    /// Messages per second; as fast as it goes if nothing is said.
    pub(super) rate: Option<u32>,
}

/// What it read.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Reread {
    /// Times that it came to the end.
    pub(super) rounds: u64,
    /// Each was checked.
    pub(super) messages: u64,
    pub(super) nanoseconds: u64,
}

/// Reads, checks and acknowledges until the order to stop comes.
pub(crate) fn run(task: &Task, parent: &Parent) -> Outcome<Reread> {
    let client = Client::connect(&task.socket)?;
    let fail = |error| Failure::queue(&task.queue, error);
    let mut read = Reread::default();
    let mut delivery = Delivery::default();
    // Bursts of at most a hundredth of a second.
    let look_every =
        task.rate.map_or(LOOK_EVERY, |rate| u64::from(rate / 100).clamp(1, LOOK_EVERY));
    parent.wait_for_go()?;
    let start_ns = monotonic_ns();
    loop {
        let options = ConsumerOptions::default().group(GROUP).from(StartAt::First).credit(CREDIT);
        let mut consumer = client.brokered_consumer(&task.queue, options).map_err(fail)?;
        for number in 0..task.messages {
            if number % look_every == 0 {
                if parent.stopped() {
                    read.nanoseconds = monotonic_ns() - start_ns;
                    return Ok(read);
                }
                wait_for_turn(task.rate, &read, start_ns);
            }
            consume::next(&mut consumer, &mut delivery)?;
            if consume::check(&task.queue, &delivery, task.size)? != number {
                return Err(Failure::new(
                    Exit::Data,
                    format_args!("message {} of the stream did not come in its turn", number + 1),
                ));
            }
            consumer.ack(&delivery).map_err(consume::unacknowledged)?;
            read.messages += 1;
        }
        consumer.flush(LIMIT).map_err(consume::unacknowledged)?;
        drop(consumer);
        read.rounds += 1;
        let options = ResetOptions::default().force(true);
        client.reset_group(&task.queue, GROUP, StartAt::First, options).map_err(fail)?;
    }
}

/// Sleeps while more was read than the rate allows for.
fn wait_for_turn(rate: Option<u32>, read: &Reread, start_ns: u64) {
    let Some(rate) = rate else { return };
    let due = Duration::from_secs(read.messages / u64::from(rate))
        + Duration::from_secs(read.messages % u64::from(rate)) / rate;
    thread::sleep(due.saturating_sub(Duration::from_nanos(monotonic_ns() - start_ns)));
}
