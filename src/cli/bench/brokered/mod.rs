//! What the measurements of brokered queues share: where they take place, who publishes and consumes, what they are compared with.

pub(super) mod conditions;
pub(crate) mod consume;
pub(super) mod contrast;
pub(super) mod place;
pub(super) mod probe;
pub(super) mod publish;

pub(crate) use place::file_system;

use std::time::Duration;

use ringmain_client::raw::layout::Geometry;
use ringmain_client::raw::protocol::{Kind, Plane, QueueSpec};

use super::queues::Shape;
use crate::cli::Socket;
use crate::cli::exit::{Failure, Outcome};

/// Without a message, a confirmation or room for this long something is wrong.
pub(super) const LIMIT: Duration = Duration::from_secs(30);

/// How long a wait goes on before signals are looked at.
const SLICE: Duration = Duration::from_millis(100);

/// What the journal puts around each message, and around each batch, in bytes: enough to know how many blocks a batch
/// takes.
const RECORD_OVERHEAD_BYTES: u64 = 64;
const BATCH_OVERHEAD_BYTES: u64 = 256;

/// Batches do not grow beyond this while they can be written in several.
pub(super) const BATCH_BYTES_MAX: u64 = 256 << 10;

/// Rings of a durable queue for messages of this size, of which so many are on the way.
pub(super) fn shape(kind: Kind, size: u32, window: u32) -> Outcome<Shape> {
    let most = ringmain::shard::start::message_bytes_max(true, None);
    if u64::from(size) > most {
        return Err(Failure::usage(format_args!(
            "--size {size}: the journal takes messages of at most {most} bytes"
        )));
    }
    // Room for those that are confirmed and not yet told, beside the window.
    let slots = window.saturating_mul(2).next_power_of_two().max(64);
    Shape::new(kind, slots.max(slots_for_quarter(size)), None, size)
}

/// A durable queue with such rings.
pub(super) fn durable(shape: &Shape) -> QueueSpec {
    QueueSpec { plane: Some(Plane::Brokered), durable: true, ..shape.spec() }
}

/// A message may take a quarter of a ring.
fn slots_for_quarter(size: u32) -> u32 {
    let most = u64::from(Geometry::SLOT_SIZE_MAX);
    let slots = (u64::from(size) + 16).div_ceil(most) * 4;
    u32::try_from(slots.next_power_of_two()).unwrap_or(u32::MAX)
}

/// Bytes that the journal writes at once when everything that is on the way, so many messages of this size, goes into one batch, or
/// into full ones.
pub(super) fn batch_bytes(size: u32, messages: u64) -> u64 {
    let record = u64::from(size) + RECORD_OVERHEAD_BYTES;
    let all = messages.saturating_mul(record) + BATCH_OVERHEAD_BYTES;
    // Two are in flight: while one is written the other half gathers.
    let one = if messages > 1 { all / 2 } else { all };
    one.max(record + BATCH_OVERHEAD_BYTES)
        .min(BATCH_BYTES_MAX.max(record + BATCH_OVERHEAD_BYTES))
        .next_multiple_of(ringmain::disk::BLOCK_BYTES as u64)
}

/// Messages that are verified carry their number.
pub(super) fn check_numbered(size: u32) -> Outcome {
    if size < consume::SIZE_MIN {
        return Err(Failure::usage(format_args!(
            "--size must be at least {} bytes: each message carries its number",
            consume::SIZE_MIN
        )));
    }
    Ok(())
}

/// For measurements that cannot be made on a daemon that others use.
pub(super) fn refuse_socket(socket: &Socket, command: &str, why: &str) -> Outcome {
    match socket.given() {
        Some(_) => Err(Failure::usage(format_args!(
            "{command} {why}, so it works on a daemon of its own; leave out --socket"
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_writes_what_the_journal_writes() {
        assert_eq!(batch_bytes(256, 1), 4096);
        assert_eq!(batch_bytes(4096, 1), 8192);
        assert_eq!(batch_bytes(256, 100), 4 * 4096);
        assert_eq!(batch_bytes(256, 4096), BATCH_BYTES_MAX);
        assert_eq!(batch_bytes(1 << 20, 1), (1 << 20) + 4096);
    }
}
