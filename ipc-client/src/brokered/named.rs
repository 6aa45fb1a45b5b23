//! The own sequences of a named producer.

use super::ends::{Ends, NotSent};
use super::receipt::{Receipt, Receipts};
use crate::client::internal::Attachment;
use crate::layout::metadata::OwnSequence;
use crate::protocol::NamedHandle;

/// What the messages of a named producer are numbered with.
#[derive(Debug)]
pub(crate) struct OwnSequences {
    pub(super) name: String,
    id: u64,
    epoch: u32,
    /// Last one stored when the producer was attached.
    pub(super) stored: u64,
    pub(super) next: u64,
}

impl OwnSequences {
    pub(super) fn new(name: String, handle: NamedHandle) -> Self {
        let NamedHandle { id, epoch, last } = handle;
        Self { name, id, epoch, stored: last, next: last.saturating_add(1) }
    }

    /// The entry of the message that comes so many behind the next one.
    pub(super) fn entry(&self, ahead: usize) -> [u8; OwnSequence::ENTRY_BYTES] {
        let sequence = self.next.saturating_add(ahead as u64);
        OwnSequence { producer: self.id, epoch: self.epoch, sequence }.encode()
    }
}

impl Ends {
    /// Sends one message under the next own sequence.
    pub(super) fn try_send_named(
        &mut self,
        attachment: &Attachment,
        named: &mut OwnSequences,
        metadata: &[u8],
        payload: &[u8],
    ) -> Result<Receipt, NotSent> {
        let entry = named.entry(0);
        let sent = if metadata.is_empty() {
            self.try_send_unnamed(attachment, &entry, payload)
        } else {
            self.try_send_unnamed(attachment, &[&entry, metadata].concat(), payload)
        };
        named.next += u64::from(sent.is_ok());
        sent
    }

    /// Sends messages in one step, under the next own sequences.
    pub(super) fn try_send_all_named(
        &mut self,
        attachment: &Attachment,
        named: &mut OwnSequences,
        payloads: &[&[u8]],
    ) -> Result<Receipts, NotSent> {
        let entries: Vec<_> = (0..payloads.len()).map(|ahead| named.entry(ahead)).collect();
        let sent = self.try_send_batch(attachment, OwnSequence::ENTRY_BYTES, payloads, |up| {
            up.try_send_batch_with(&entries, payloads)
        });
        if sent.is_ok() {
            named.next += payloads.len() as u64;
        }
        sent
    }
}
