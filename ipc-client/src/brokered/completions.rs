//! Takes what a shard says about the messages of a producer.

use super::error::ConfirmError;
use super::ledger::{Completed, Ledger};
use crate::ring::{self, Fault, Invariant, Taken, TryReceiveError};
use crate::wire::{Down, RECORD_BYTES_MAX};

/// Most records of one look.
const RECORDS_PER_LOOK: u32 = 4096;

/// What a look brought.
#[derive(Debug)]
pub(super) struct Collected {
    /// Whether anything was there.
    pub(super) taken: bool,
    /// Why nothing more will come, if so.
    pub(super) end: Option<ConfirmError>,
}

/// Takes the completions that are there now. Bounded: a shard that writes as fast as this reads does not hold the caller up.
pub(super) fn collect(down: &mut ring::Consumer, ledger: &mut Ledger) -> Collected {
    let mut taken = false;
    for _ in 0..RECORDS_PER_LOOK {
        match down.try_take() {
            Ok(record) => {
                taken = true;
                if let Err(fault) = settle(down, record, ledger) {
                    return Collected { taken, end: Some(ConfirmError::PeerFault(fault)) };
                }
            }
            Err(TryReceiveError::Empty) => return Collected { taken, end: None },
            Err(TryReceiveError::Closed(closed)) => {
                return Collected { taken, end: Some(ConfirmError::Closed(closed)) };
            }
            Err(TryReceiveError::Fault(fault)) => {
                return Collected { taken, end: Some(ConfirmError::PeerFault(fault)) };
            }
        }
    }
    Collected { taken, end: None }
}

fn settle(down: &mut ring::Consumer, record: Taken, ledger: &mut Ledger) -> Result<(), Fault> {
    let fault = Fault {
        invariant: Invariant::Record,
        position: record.sequence(),
        value: record.length() as u64,
    };
    let mut bytes = [0; RECORD_BYTES_MAX];
    let fits = record.length() <= bytes.len();
    let length = down.read(&record, 0, &mut bytes);
    down.release(record);
    match Down::decode(&bytes[..length]) {
        Ok(Down::Completed {
            first_position,
            last_position,
            first_sequence,
            count,
            outcome,
            detail,
        }) if fits => ledger.settle(Completed {
            first_position,
            last_position,
            first_sequence,
            count,
            outcome,
            detail,
        }),
        _ => Err(fault),
    }
}
