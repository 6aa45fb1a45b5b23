//! The process that receives while another one publishes: how old a message is when it gets there.

use std::path::PathBuf;
use std::time::Duration;

use ringmain_client::raw::sys::clock::monotonic_ns;
use ringmain_client::{AckError, Client, ConsumerOptions, Delivery, ReceiveError};
use serde::{Deserialize, Serialize};

use crate::cli::exit::{Failure, Outcome};
use crate::cli::helper::Parent;
use crate::cli::statistics::{Packed, Samples};

/// The time of sending is in front of each message.
pub(super) const SIZE_MIN: u32 = 8;

/// How long a wait goes on before the order to stop is looked at.
const SLICE: Duration = Duration::from_millis(20);

/// How long the daemon may take to answer the last acknowledgements.
const FLUSH_LIMIT: Duration = Duration::from_secs(30);

/// For the receiving process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(super) socket: PathBuf,
    pub(super) queue: String,
}

/// Receives and acknowledges until the order to stop came and nothing is left.
pub(crate) fn run(task: &Task, parent: &Parent) -> Outcome<Packed> {
    let client = Client::connect(&task.socket)?;
    let mut consumer = client
        .brokered_consumer(&task.queue, ConsumerOptions::default())
        .map_err(|error| Failure::queue(&task.queue, error))?;
    let (mut samples, mut delivery) = (Samples::new(), Delivery::default());
    parent.wait_for_go()?;
    loop {
        let stopped = parent.stopped();
        match consumer.receive_into(&mut delivery, Some(SLICE)) {
            Ok(()) => {
                let sent = delivery.payload().first_chunk().map_or(0, |t| u64::from_le_bytes(*t));
                samples.record(monotonic_ns().saturating_sub(sent));
                consumer.ack(&delivery).map_err(failed)?;
            }
            Err(ReceiveError::Empty | ReceiveError::Timeout) if stopped => break,
            Err(ReceiveError::Empty | ReceiveError::Timeout) => {}
            Err(error) => return Err(Failure::receive(&task.queue, &error)),
        }
    }
    consumer.flush(FLUSH_LIMIT).map_err(failed)?;
    Ok(samples.pack())
}

fn failed(error: AckError) -> Failure {
    Failure::internal(format_args!("cannot acknowledge: {error}"))
}
