//! Both ends of a producer's rings, and what is known of the messages between them. Nothing here waits.

use super::completions;
use super::error::ConfirmError;
use super::ledger::Ledger;
use super::named::OwnSequences;
use super::receipt::{Receipt, Receipts};
use super::shard_link::ShardEnd;
use super::waiting::Pair;
use crate::client::SendError;
use crate::client::internal::Attachment;
use crate::ring::{self, Fault, Kernel, TrySendError};
use crate::sys::clock::monotonic_ns;

/// A shard whose journal failed completes what it has taken with that error. Whoever still waits after this time is told by
/// the handle itself.
const FAILED_GRACE_NS: u64 = 1_000_000_000;

/// Both rings and what is known of the messages between them.
#[derive(Debug)]
pub(crate) struct Ends {
    pub(crate) up: ring::Producer,
    pub(crate) down: ring::Consumer,
    shard: ShardEnd,
    pub(crate) ledger: Ledger,
    window: usize,
    /// Of a producer with a name.
    pub(super) named: Option<OwnSequences>,
    /// The daemon broke the rules: nothing it says is believed any more.
    broken: Option<Fault>,
    /// When it was first seen that the journal failed, in nanoseconds; 0: it has not.
    failed_ns: u64,
}

impl Pair for Ends {
    fn up(&self) -> &ring::Producer {
        &self.up
    }
    fn down(&self) -> &ring::Consumer {
        &self.down
    }
}

/// What a message that found no room waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lacks {
    /// The lane's slots of messages that are settled already: the shard is about to release them.
    Room,
    /// A completion: of the window, or because no slot is released before its message is completed.
    Completion,
}

/// Why nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotSent {
    Lacks(Lacks),
    Never(SendError),
}

impl From<ConfirmError> for NotSent {
    fn from(error: ConfirmError) -> Self {
        Self::Never(match error {
            ConfirmError::Closed(closed) => SendError::Closed(closed),
            ConfirmError::JournalFailed { errno } => SendError::JournalFailed { errno },
            ConfirmError::PeerFault(fault) => SendError::PeerFault(fault),
            ConfirmError::UsedAfterFork => SendError::UsedAfterFork,
            _ => SendError::Lost,
        })
    }
}

impl Ends {
    /// With at most this many messages unsettled.
    pub(super) fn new(
        up: ring::Producer,
        down: ring::Consumer,
        shard: ShardEnd,
        ledger: Ledger,
        window: usize,
        named: Option<OwnSequences>,
    ) -> Self {
        Self { up, down, shard, ledger, window, named, broken: None, failed_ns: 0 }
    }

    /// Takes all completions that are there; whether there were any.
    pub(crate) fn collect(&mut self, attachment: &Attachment) -> Result<bool, ConfirmError> {
        if let Some(fault) = self.broken {
            return Err(ConfirmError::PeerFault(fault));
        }
        let collected = completions::collect(&mut self.down, &mut self.ledger);
        if collected.taken {
            // A shard that found no room for a completion is told.
            attachment.kernel.light_barrier();
            if self.down.peer_park().any_sleeper() {
                self.shard.notify(&attachment.kernel);
            }
        }
        match collected.end {
            Some(ConfirmError::PeerFault(fault)) => {
                self.broken = Some(fault);
                attachment.report(&fault);
                Err(ConfirmError::PeerFault(fault))
            }
            // What was settled before the end came is told first.
            Some(_) if collected.taken => Ok(true),
            Some(error) => Err(error),
            None => Ok(collected.taken),
        }
    }

    /// Sends with `send` if `messages` more fit the window and what takes `slots` slots fits the lane.
    #[inline]
    pub(crate) fn try_send<T>(
        &mut self,
        attachment: &Attachment,
        messages: usize,
        slots: impl Fn() -> u64,
        send: impl FnOnce(&mut ring::Producer, &mut Ledger) -> Result<T, TrySendError>,
    ) -> Result<T, NotSent> {
        if let Some(fault) = self.broken {
            return Err(NotSent::Never(SendError::PeerFault(fault)));
        }
        if let Some(errno) = self.shard.failed() {
            return Err(NotSent::Never(SendError::JournalFailed { errno }));
        }
        if attachment.is_lost() {
            return Err(NotSent::Never(SendError::Lost));
        }
        if self.ledger.is_fenced() {
            return Err(NotSent::Never(SendError::Fenced));
        }
        if !self.fits_window(messages) {
            return Err(NotSent::Lacks(Lacks::Completion));
        }
        match send(&mut self.up, &mut self.ledger) {
            Ok(sent) => {
                self.shard.notify(&attachment.kernel);
                Ok(sent)
            }
            Err(TrySendError::Full) => {
                let lane = attachment.geometry.slots();
                Err(NotSent::Lacks(self.lacks(slots(), lane)))
            }
            Err(TrySendError::Fault(fault)) => {
                self.broken = Some(fault);
                attachment.report(&fault);
                Err(NotSent::Never(SendError::PeerFault(fault)))
            }
            Err(error) => Err(NotSent::Never(error.into())),
        }
    }

    /// A batch larger than the window goes alone.
    #[inline(always)]
    fn fits_window(&self, messages: usize) -> bool {
        let unsettled = self.ledger.unsettled();
        unsettled == 0 || messages <= self.window.saturating_sub(unsettled)
    }

    /// What a full lane of this geometry waits for. A completion comes before the release of its slots: if the slots up to the first unsettled
    /// message suffice, no other completion is needed, and if they do not, no release can come without one.
    fn lacks(&self, slots: u64, lane: u64) -> Lacks {
        let tail = self.up.position();
        let kept_from = self.ledger.unsettled_from().unwrap_or(tail);
        let kept = tail.saturating_sub(kept_from).saturating_add(slots);
        if kept <= lane { Lacks::Room } else { Lacks::Completion }
    }

    /// Sends one message.
    #[inline]
    pub(crate) fn try_send_one(
        &mut self,
        attachment: &Attachment,
        metadata: &[u8],
        payload: &[u8],
    ) -> Result<Receipt, NotSent> {
        match self.named.take() {
            None => self.try_send_unnamed(attachment, metadata, payload),
            Some(mut named) => {
                let sent = self.try_send_named(attachment, &mut named, metadata, payload);
                self.named = Some(named);
                sent
            }
        }
    }

    /// Sends one message with this metadata and no more.
    #[inline]
    pub(super) fn try_send_unnamed(
        &mut self,
        attachment: &Attachment,
        metadata: &[u8],
        payload: &[u8],
    ) -> Result<Receipt, NotSent> {
        let body = || metadata.len().next_multiple_of(8) + payload.len();
        let slots = || attachment.geometry.slots_for(body());
        self.try_send(attachment, 1, slots, |up, ledger| {
            up.try_send(0, metadata, payload).map(|position| ledger.sent(position))
        })
    }

    /// Sends messages in one step.
    pub(crate) fn try_send_all(
        &mut self,
        attachment: &Attachment,
        payloads: &[&[u8]],
    ) -> Result<Receipts, NotSent> {
        match self.named.take() {
            None => self.try_send_batch(attachment, 0, payloads, |up| up.try_send_batch(payloads)),
            Some(mut named) => {
                let sent = self.try_send_all_named(attachment, &mut named, payloads);
                self.named = Some(named);
                sent
            }
        }
    }

    /// Sends a batch with `send`, each message of it with so many bytes of metadata.
    pub(super) fn try_send_batch(
        &mut self,
        attachment: &Attachment,
        metadata: usize,
        payloads: &[&[u8]],
        send: impl FnOnce(&mut ring::Producer) -> Result<u64, TrySendError>,
    ) -> Result<Receipts, NotSent> {
        let metadata = metadata.next_multiple_of(8);
        let slots_of = |payload: &&[u8]| attachment.geometry.slots_for(metadata + payload.len());
        let slots = || payloads.iter().map(slots_of).sum();
        self.try_send(attachment, payloads.len(), slots, |up, ledger| {
            let mut position = send(up)?;
            Ok(ledger.sent_batch(payloads.iter().map(|payload| {
                let own = position;
                position += slots_of(payload);
                own
            })))
        })
    }

    /// What `found` finds in the ledger, or behind the completions that are there now; an error if it never will.
    pub(crate) fn look<T>(
        &mut self,
        attachment: &Attachment,
        mut found: impl FnMut(&mut Ledger) -> Option<Result<T, ConfirmError>>,
    ) -> Option<Result<T, ConfirmError>> {
        if let Some(found) = found(&mut self.ledger) {
            return Some(found);
        }
        match self.news(attachment) {
            Ok(true) => found(&mut self.ledger),
            Ok(false) => None,
            Err(error) => Some(Err(error)),
        }
    }

    /// A look of somebody who waits for completions: whether there is anything new. An error if nothing will come.
    pub(crate) fn news(&mut self, attachment: &Attachment) -> Result<bool, ConfirmError> {
        if self.collect(attachment)? {
            self.failed_ns = 0;
            return Ok(true);
        }
        let Some(errno) = self.shard.failed() else {
            return Ok(false);
        };
        let now_ns = monotonic_ns();
        if self.failed_ns == 0 {
            self.failed_ns = now_ns;
        }
        if now_ns.saturating_sub(self.failed_ns) < FAILED_GRACE_NS {
            return Ok(false);
        }
        Err(ConfirmError::JournalFailed { errno })
    }
}
