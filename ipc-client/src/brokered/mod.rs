//! Handles on brokered queues: messages go to a shard of the daemon, which confirms, stores, delivers and redelivers them.

mod consumer;
mod error;
mod producer;
mod receipt;

pub use consumer::{BrokeredConsumer, Delivery};
pub use error::{AckError, ConfirmError};
pub use producer::BrokeredProducer;
pub use receipt::{Confirmation, Level, Receipt, SettledRun};

use crate::protocol::StartAt;
use crate::wait::WaitPolicy;

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
