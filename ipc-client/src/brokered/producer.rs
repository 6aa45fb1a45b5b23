//! The sending handle of a brokered queue.

use std::cell::Cell;
use std::marker::PhantomData;
use std::time::Duration;

use super::error::ConfirmError;
use super::receipt::{Confirmation, Receipt, SettledRun};
use crate::client::SendError;
use crate::layout::metadata::Metadata;
use crate::protocol::Kind;

/// Sends messages to one brokered queue and learns what became of them.
///
/// A producer may move to another thread, but two threads cannot share one. Dropping it gives the handle back; what was sent
/// arrives all the same.
#[derive(Debug)]
pub struct BrokeredProducer {
    not_sync: PhantomData<Cell<()>>,
}

#[allow(unused_variables, clippy::missing_errors_doc)]
impl BrokeredProducer {
    pub(crate) fn attach(
        client: &std::sync::Arc<crate::client::internal::Inner>,
        queue: &str,
        options: super::ProducerOptions,
    ) -> Result<Self, crate::client::ClientError> {
        todo!()
    }
    /// Name of the queue.
    #[must_use]
    pub fn queue_name(&self) -> &str {
        todo!()
    }
    /// Kind of the queue.
    #[must_use]
    pub fn kind(&self) -> Kind {
        todo!()
    }
    /// Whether a confirmed message is on stable storage.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        todo!()
    }
    /// Longest payload in bytes.
    #[must_use]
    pub fn max_message(&self) -> usize {
        todo!()
    }
    /// Messages that were sent and are not settled, as far as this process has looked.
    #[must_use]
    pub fn unsettled(&self) -> usize {
        todo!()
    }
    /// `Full` at once if there is no room in the lane or the window.
    pub fn try_send(&mut self, payload: &[u8]) -> Result<Receipt, SendError> {
        todo!()
    }
    /// Waits for room as long as it takes.
    pub fn send(&mut self, payload: &[u8]) -> Result<Receipt, SendError> {
        todo!()
    }
    /// Waits for room at most this long.
    pub fn send_timeout(
        &mut self,
        payload: &[u8],
        timeout: Duration,
    ) -> Result<Receipt, SendError> {
        todo!()
    }
    /// With metadata.
    pub fn try_send_message(
        &mut self,
        metadata: &Metadata,
        payload: &[u8],
    ) -> Result<Receipt, SendError> {
        todo!()
    }
    /// With metadata.
    pub fn send_message(
        &mut self,
        metadata: &Metadata,
        payload: &[u8],
    ) -> Result<Receipt, SendError> {
        todo!()
    }
    /// With metadata.
    pub fn send_message_timeout(
        &mut self,
        metadata: &Metadata,
        payload: &[u8],
        timeout: Duration,
    ) -> Result<Receipt, SendError> {
        todo!()
    }
    /// All of these messages in one step. The receipt of the last: all before it are settled when it is.
    pub fn send_batch(&mut self, payloads: &[&[u8]]) -> Result<Receipt, SendError> {
        todo!()
    }
    /// What became of the message, if that is known now.
    pub fn try_receipt(&mut self, receipt: &Receipt) -> Result<Option<Confirmation>, ConfirmError> {
        todo!()
    }
    /// Waits until it is known.
    pub fn wait(&mut self, receipt: &Receipt) -> Result<Confirmation, ConfirmError> {
        todo!()
    }
    /// Waits at most this long.
    pub fn wait_timeout(
        &mut self,
        receipt: &Receipt,
        timeout: Duration,
    ) -> Result<Confirmation, ConfirmError> {
        todo!()
    }
    /// Waits until everything that was sent is settled; the first error since the last call, if there was one.
    pub fn wait_all(&mut self) -> Result<(), ConfirmError> {
        todo!()
    }
    /// The same, at most this long.
    pub fn wait_all_timeout(&mut self, timeout: Duration) -> Result<(), ConfirmError> {
        todo!()
    }
    /// The next messages, in the order in which they were sent, that are settled and were not told here before; `None` if there are none now.
    pub fn try_next_settled(&mut self) -> Result<Option<SettledRun>, ConfirmError> {
        todo!()
    }
    /// The same; waits at most this long ([`ConfirmError::Timeout`]). At once if nothing is unsettled: `None`.
    pub fn next_settled(&mut self, timeout: Duration) -> Result<Option<SettledRun>, ConfirmError> {
        todo!()
    }
}
