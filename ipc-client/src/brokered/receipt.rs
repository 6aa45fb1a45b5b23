//! Receipts of messages that were sent, and what became of them.

use super::error::ConfirmError;

/// A message that is in its lane: received, in shared memory that outlives a killed daemon, not yet on stable storage.
///
/// A receipt is a plain value: keep it, copy it, drop it. Its producer knows what became of the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Receipt {
    /// Of the producer, so that another one's receipts are recognised.
    pub(super) producer: u64,
    /// Messages sent through this producer before.
    pub(super) number: u64,
}

impl Receipt {
    /// Which message of its producer this is, counted from 0.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }
}

/// The receipts of a batch: messages that were sent in one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Receipts {
    pub(super) producer: u64,
    pub(super) first: u64,
    pub(super) count: u64,
}

impl Receipts {
    /// Messages.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.count
    }

    /// Whether the batch was empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The last of them: all others are settled when it is.
    #[must_use]
    pub fn last(&self) -> Option<Receipt> {
        let number = self.first + self.count.checked_sub(1)?;
        Some(Receipt { producer: self.producer, number })
    }

    /// One by one, in the order in which the messages were sent.
    pub fn iter(&self) -> impl Iterator<Item = Receipt> + use<> {
        let producer = self.producer;
        (self.first..self.first + self.count).map(move |number| Receipt { producer, number })
    }
}

/// How safe a confirmed message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Level {
    /// On stable storage.
    Durable,
    /// In the memory of a queue that is not durable: it survives the death of any process, not of the machine.
    Stored,
}

/// A message that is confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Confirmation {
    /// Its place in the queue: dense, from 1. 0 of a duplicate.
    pub sequence: u64,
    /// How safe it is.
    pub level: Level,
    /// Named producers: a message with this own sequence was stored before, and this one was not stored again.
    pub duplicate: bool,
}

/// Messages that were sent one behind the other and are settled, all in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SettledRun {
    /// The first of them; the numbers of the others follow.
    pub first: Receipt,
    /// Messages, at least one.
    pub count: u64,
    /// Confirmed, with the sequence of the first (those of the others follow), or why not.
    pub result: Result<Confirmation, ConfirmError>,
}
