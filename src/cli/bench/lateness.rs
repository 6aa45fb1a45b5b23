//! How late messages are: times that travel inside generated messages.
//!
//! The producer reads the clock when it asks for room and again when it has its slot, and writes both into the message;
//! the consumer reads it as soon as it has a copy. All three read the same monotonic clock.

use std::time::Duration;

use ringmain_client::raw::sys::clock::monotonic_ns;
use ringmain_client::{Producer, SendError};
use serde::{Deserialize, Serialize};

use super::load::word_of;
use crate::cli::exit::{Failure, Outcome};
use crate::cli::statistics::{Packed, Percentiles, Samples};

/// Smallest message that carries its number, two times and a check of both.
pub(crate) const SIZE_MIN: u32 = 32;

const CALLED: usize = 1;
const CLAIMED: usize = 2;
const CHECK: usize = 3;

/// Times of the messages of one consumer.
#[derive(Debug, Clone)]
pub(crate) struct Lateness {
    latency: Samples,
    age: Samples,
}

/// For the way between processes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct PackedLateness {
    latency: Packed,
    age: Packed,
}

impl Lateness {
    pub(crate) fn new() -> Self {
        Self { latency: Samples::new(), age: Samples::new() }
    }

    /// Takes the times out of a message that was just received, and leaves what is there without them. A message whose
    /// times do not fit each other stays as it is: it does not verify.
    #[inline]
    pub(crate) fn take(&mut self, message: &mut [u8]) {
        let received_ns = monotonic_ns();
        if let Some((called_ns, claimed_ns)) = take_times(message) {
            self.latency.record(received_ns.saturating_sub(called_ns));
            self.age.record(received_ns.saturating_sub(claimed_ns));
        }
    }

    pub(crate) fn pack(&self) -> PackedLateness {
        PackedLateness { latency: self.latency.pack(), age: self.age.pack() }
    }

    /// From the call of the producer to the receipt, and from the claim to the receipt.
    pub(crate) fn summary<'a>(
        all: impl Iterator<Item = &'a PackedLateness>,
    ) -> (Percentiles, Percentiles) {
        let mut sum = Self::new();
        for one in all {
            sum.latency.add(&one.latency.unpack());
            sum.age.add(&one.age.unpack());
        }
        (sum.latency.percentiles(), sum.age.percentiles())
    }
}

/// Sends a generated message with its times, and waits for room as long as it takes, `slice` at a time.
pub(crate) fn send(producer: &mut Producer, message: &mut [u8], slice: Duration) -> Outcome {
    let fail = |error: SendError| Failure::send("of the measurement", &error);
    let called_ns = monotonic_ns();
    let mut reservation = loop {
        match producer.reserve_timeout(message.len(), slice) {
            Ok(reservation) => break reservation,
            Err(SendError::Full | SendError::Timeout) => {}
            Err(error) => return Err(fail(error)),
        }
    };
    put_times(message, called_ns, monotonic_ns());
    reservation.write(0, message).map_err(fail)?;
    reservation.commit(message.len()).map(|_| ()).map_err(fail)
}

fn word(message: &[u8], index: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*message.get(index * 8..)?.first_chunk()?))
}

fn set_word(message: &mut [u8], index: usize, value: u64) {
    if let Some(place) = message.get_mut(index * 8..).and_then(<[u8]>::first_chunk_mut) {
        *place = value.to_le_bytes();
    }
}

fn check(called_ns: u64, claimed_ns: u64) -> u64 {
    called_ns ^ claimed_ns.rotate_left(32)
}

fn put_times(message: &mut [u8], called_ns: u64, claimed_ns: u64) {
    let stamp = word(message, 0).unwrap_or_default();
    for (index, value) in
        [(CALLED, called_ns), (CLAIMED, claimed_ns), (CHECK, check(called_ns, claimed_ns))]
    {
        set_word(message, index, value ^ word_of(stamp, index));
    }
}

fn take_times(message: &mut [u8]) -> Option<(u64, u64)> {
    let stamp = word(message, 0)?;
    let hidden = |index| Some(word(message, index)? ^ word_of(stamp, index));
    let (called_ns, claimed_ns) = (hidden(CALLED)?, hidden(CLAIMED)?);
    if hidden(CHECK)? != check(called_ns, claimed_ns) {
        return None;
    }
    for index in [CALLED, CLAIMED, CHECK] {
        set_word(message, index, word_of(stamp, index));
    }
    Some((called_ns, claimed_ns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_travel_and_leave_no_trace() {
        for size in [32, 33, 64, 100] {
            let plain = crate::cli::bench::load::sample(size, 77);
            let mut message = plain.clone();
            put_times(&mut message, 5_000, 6_000);
            assert_ne!(message, plain);
            assert_eq!(take_times(&mut message), Some((5_000, 6_000)));
            assert_eq!(message, plain);
        }
    }

    #[test]
    fn times_that_were_altered_are_not_taken() {
        let mut message = crate::cli::bench::load::sample(64, 77);
        put_times(&mut message, 5_000, 6_000);
        for byte in 8..32 {
            let mut altered = message.clone();
            altered[byte] ^= 1;
            let before = altered.clone();
            assert_eq!(take_times(&mut altered), None);
            assert_eq!(altered, before);
        }
        assert_eq!(take_times(&mut [0; 8]), None);
    }
}
