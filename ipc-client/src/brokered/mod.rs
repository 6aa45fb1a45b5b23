//! Handles on brokered queues: messages go to a shard of the daemon, which confirms, stores, delivers and redelivers them.

mod completions;
mod consumer;
mod delivery;
mod ends;
mod error;
mod inbox;
mod ledger;
mod memory;
mod named;
mod producer;
mod receipt;
mod shard_link;
mod transaction;
mod waiting;

pub use consumer::BrokeredConsumer;
pub use delivery::Delivery;
pub use error::{AckError, ConfirmError};
pub use producer::BrokeredProducer;
pub use receipt::{Confirmation, Level, Receipt, Receipts, SettledRun};
pub(crate) use shard_link::ShardLinks;
pub use transaction::{Transaction, TransactionError};

/// What [`crate::async_io`] builds on.
#[cfg(feature = "tokio")]
pub(crate) mod internal {
    pub(crate) use super::consumer::milliseconds;
    pub(crate) use super::encode_metadata;
    pub(crate) use super::ends::{Ends, Lacks, NotSent};
    pub(crate) use super::inbox::Found;
    pub(crate) use super::ledger::Ledger;
    pub(crate) use super::waiting::{ForNews, ForRoom};
}

use crate::client::SendError;
use crate::client::internal::encode;
use crate::layout::metadata::{BROKERED_BYTES_MAX, Metadata};
use crate::protocol::StartAt;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::wait::WaitPolicy;

/// A number that no other handle of this process has, and not zero: by it a handle knows its own receipts and deliveries.
fn handle_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    // Relaxed: only the number counts.
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Appends the encoded form, if a brokered queue takes it.
pub(crate) fn encode_metadata(metadata: &Metadata, into: &mut Vec<u8>) -> Result<(), SendError> {
    let start = into.len();
    encode(metadata, into)?;
    let (length, max) = (into.len() - start, BROKERED_BYTES_MAX);
    if length > max { Err(SendError::TooLarge { length, max }) } else { Ok(()) }
}

/// How a [`BrokeredProducer`] behaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProducerOptions {
    /// How it waits.
    pub wait: WaitPolicy,
    /// Most messages that may be sent and not settled; 0, the default, leaves it to the size of the lane.
    pub window: usize,
}

impl ProducerOptions {
    /// The same with another way to wait.
    #[must_use]
    pub fn wait(mut self, wait: WaitPolicy) -> Self {
        self.wait = wait;
        self
    }

    /// The same with another window.
    #[must_use]
    pub fn window(mut self, window: usize) -> Self {
        self.window = window;
        self
    }
}

/// How a [`BrokeredConsumer`] behaves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumerOptions {
    /// How it waits.
    pub wait: WaitPolicy,
    /// Its group: each group sees every message, the consumers of one group share them. Empty, the default, is a group as well.
    pub group: String,
    /// Where the group starts if it does not exist yet; for `browse`, where this consumer starts.
    pub from: StartAt,
    /// Most messages that may be unacknowledged at a time; 0 takes the daemon's default.
    pub credit: u32,
    /// Is shown the messages that are there, and takes none: nothing is acknowledged, nobody else misses anything.
    pub browse: bool,
}

impl ConsumerOptions {
    /// The same with another way to wait.
    #[must_use]
    pub fn wait(mut self, wait: WaitPolicy) -> Self {
        self.wait = wait;
        self
    }

    /// The same with another group.
    #[must_use]
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.group = group.into();
        self
    }

    /// The same with another start.
    #[must_use]
    pub fn from(mut self, from: StartAt) -> Self {
        self.from = from;
        self
    }

    /// The same with another credit.
    #[must_use]
    pub fn credit(mut self, credit: u32) -> Self {
        self.credit = credit;
        self
    }

    /// The same, only to look on.
    #[must_use]
    pub fn browse(mut self, browse: bool) -> Self {
        self.browse = browse;
        self
    }
}
