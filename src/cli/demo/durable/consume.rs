//! The consuming process of the durable part.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use ringmain_client::{AckError, Client, ConsumerOptions, Delivery, ReceiveError};
use serde::{Deserialize, Serialize};

use crate::cli::bench::load::policy;
use crate::cli::demo::records::{Multiset, fingerprint};
use crate::cli::exit::{Failure, Outcome};
use crate::cli::helper::Parent;

/// How long a wait goes on before the order to stop is looked at.
const SLICE: Duration = Duration::from_millis(20);

/// How long the daemon may take to answer the last acknowledgements.
const FLUSH_LIMIT: Duration = Duration::from_secs(30);

/// Progress is reported after so many records.
const REPORT_EVERY: u64 = 1024;

/// For a consuming process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ConsumeTask {
    pub(super) socket: PathBuf,
    pub(super) queue: String,
    pub(super) wait: String,
    /// Sequences that are there although their publisher never heard so: counted by themselves.
    pub(super) unconfirmed: Vec<u64>,
}

/// What passed through one process.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Consumed {
    pub(super) records: u64,
    pub(super) bytes: u64,
    /// Confirmed records with their sequences.
    pub(super) placed: Multiset,
    /// Records that nobody had confirmed.
    pub(super) unconfirmed: u64,
    /// Sequences that did not grow.
    pub(super) backward: u64,
    /// Records that were marked as delivered before.
    pub(super) redelivered: u64,
}

/// Consumes and acknowledges until the order to stop came and nothing is left.
pub(crate) fn consume(task: &ConsumeTask, parent: &Parent) -> Outcome<impl Serialize + use<>> {
    let client = Client::connect(&task.socket)?;
    let options = ConsumerOptions::default().wait(policy(&task.wait)?);
    let mut consumer = client
        .brokered_consumer(&task.queue, options)
        .map_err(|error| Failure::queue(&task.queue, error))?;
    let unconfirmed: BTreeSet<u64> = task.unconfirmed.iter().copied().collect();
    let (mut consumed, mut delivery, mut last) = (Consumed::default(), Delivery::default(), 0);
    parent.wait_for_go()?;
    loop {
        // Looked at before the queue: what was published before the order is seen below.
        let stopped = parent.stopped();
        match consumer.receive_into(&mut delivery, Some(SLICE)) {
            Ok(()) => {}
            Err(ReceiveError::Empty | ReceiveError::Timeout) if stopped => {
                consumer.flush(FLUSH_LIMIT).map_err(failed)?;
                let info = client.queue_info(&task.queue)?;
                if info.brokered.is_none_or(|brokered| brokered.messages == 0) {
                    return Ok(consumed);
                }
                continue;
            }
            Err(ReceiveError::Empty | ReceiveError::Timeout) => continue,
            Err(error) => return Err(Failure::receive(&task.queue, &error)),
        }
        let sequence = delivery.sequence();
        consumed.redelivered += u64::from(delivery.redelivered());
        consumed.backward += u64::from(sequence <= last);
        last = sequence;
        if unconfirmed.contains(&sequence) {
            consumed.unconfirmed += 1;
        } else {
            consumed.records += 1;
            consumed.bytes += delivery.payload().len() as u64;
            consumed.placed.add(fingerprint(sequence, delivery.payload()));
            if consumed.records.is_multiple_of(REPORT_EVERY) {
                parent.progress(consumed.records);
            }
        }
        consumer.ack(&delivery).map_err(failed)?;
    }
}

fn failed(error: AckError) -> Failure {
    Failure::internal(format_args!("cannot acknowledge: {error}"))
}
