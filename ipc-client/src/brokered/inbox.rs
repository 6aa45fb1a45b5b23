//! What a shard sends to a consumer, told apart: deliveries, answers, the mark that nothing is left.

use std::collections::VecDeque;

use super::delivery::Delivery;
use super::error::AckError;
use super::shard_link::ShardEnd;
use super::waiting::Pair;
use crate::client::ReceiveError;
use crate::client::internal::Attachment;
use crate::pair::{HandleStatus, LeaseTable};
use crate::ring::{self, Fault, Invariant, Kernel, Taken, TryReceiveError, TrySendError};
use crate::sys::clock::monotonic_ns;
use crate::wire::{DELIVERY_HEADER_BYTES, Down, Outcome, RECORD_BYTES_MAX, Up};

/// Deliveries that are put by while an answer is waited for: more than leases there can be.
const STASH_MAX: usize = 2 * crate::layout::pair::lease::LEASES_MAX;

/// Their bytes, except for the first one.
const STASH_BYTES_MAX: usize = 256 << 20;

/// Records that are looked at at a stretch while nobody waits for them.
const RECORDS_PER_LOOK: u32 = 4096;

/// As for producers: how long a shard whose journal failed has for answering by itself.
const FAILED_GRACE_NS: u64 = 1_000_000_000;

/// Both rings of a consumer and what came out of them.
#[derive(Debug)]
pub(crate) struct Inbox {
    pub(super) up: ring::Producer,
    pub(super) down: ring::Consumer,
    pub(super) shard: ShardEnd,
    pub(super) leases: LeaseTable,
    pub(super) status: HandleStatus,
    /// Of the handle; marks its deliveries.
    pub(super) number: u64,
    /// Deliveries that came while an answer was waited for.
    stash: VecDeque<Delivery>,
    stash_bytes: usize,
    /// The last record but answers was the mark that nothing is left.
    drained: bool,
    /// Such a mark is to come: it is sent once after the attachment and once after each credit.
    drained_due: bool,
    /// A message was given back while a mark was to come: that mark may not know of it.
    given_back: bool,
    /// The credit that was asked for last, if not that of the attachment.
    credit: Option<u32>,
    /// Number of the last request that asked for an answer.
    requests: u64,
    /// The answer to that request.
    answer: Option<(Outcome, u64)>,
    /// The daemon broke the rules: nothing it says is believed any more.
    broken: Option<Fault>,
    /// When it was first seen that the journal failed, in nanoseconds; 0: it has not.
    failed_ns: u64,
    /// Messages of the group that a limit discarded, not asked for yet.
    skipped: u64,
    /// The message at which the group came to a stop, and nothing came since.
    unreadable: Option<u64>,
}

/// What one record was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    Delivery,
    Other,
}

/// What a receiver finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    Delivery,
    Drained,
}

impl Pair for Inbox {
    fn up(&self) -> &ring::Producer {
        &self.up
    }
    fn down(&self) -> &ring::Consumer {
        &self.down
    }
}

impl Inbox {
    pub(super) fn new(
        up: ring::Producer,
        down: ring::Consumer,
        shard: ShardEnd,
        (leases, status): (LeaseTable, HandleStatus),
        number: u64,
    ) -> Self {
        Self {
            up,
            down,
            shard,
            leases,
            status,
            number,
            stash: VecDeque::new(),
            stash_bytes: 0,
            drained: false,
            drained_due: true,
            given_back: false,
            credit: None,
            requests: 0,
            answer: None,
            broken: None,
            failed_ns: 0,
            skipped: 0,
            unreadable: None,
        }
    }

    fn break_off(&mut self, attachment: &Attachment, fault: Fault) -> Fault {
        if self.broken.is_none() {
            attachment.report(&fault);
        }
        *self.broken.get_or_insert(fault)
    }

    /// The next delivery, or that nothing is left if that is asked for; `Empty` if neither is there now.
    pub(crate) fn try_receive(
        &mut self,
        attachment: &Attachment,
        until_drained: bool,
        into: &mut Delivery,
    ) -> Result<Found, ReceiveError> {
        while let Some(delivery) = self.stash.pop_front() {
            self.stash_bytes -= delivery.bytes();
            if self.is_held(&delivery) {
                *into = delivery;
                return Ok(Found::Delivery);
            }
        }
        for _ in 0..RECORDS_PER_LOOK {
            let drained = self.drained;
            match self.take(attachment, into) {
                Ok(News::Delivery) if self.is_held(into) => return Ok(Found::Delivery),
                Ok(News::Delivery) => {
                    into.forget();
                    self.drained = drained;
                }
                Ok(News::Other) => {}
                Err(TryReceiveError::Empty) => break,
                Err(error) => return Err(error.into()),
            }
        }
        if until_drained {
            self.ask_for_drained(attachment);
        }
        match self.unreadable {
            Some(sequence) => Err(ReceiveError::Unreadable { sequence }),
            // Said once: who wants to hear it again asks again.
            None if until_drained && std::mem::take(&mut self.drained) => Ok(Found::Drained),
            None => Err(ReceiveError::Empty),
        }
    }

    /// Asks again to be told when nothing is left, by the same credit once more: it was said before what was received since.
    fn ask_for_drained(&mut self, attachment: &Attachment) {
        if self.drained || self.drained_due {
            return;
        }
        let credit = self.status.credit().try_into().unwrap_or(u32::MAX);
        let record = Up::Credit { credit: self.credit.unwrap_or(credit) };
        // Without room it is tried again at the next look.
        if self.up.try_send(0, &[], record.encode().as_ref()).is_ok() {
            self.drained_due = true;
            self.shard.notify(&attachment.kernel);
        }
    }

    /// This credit was asked for.
    pub(super) fn set_credit(&mut self, credit: u32) {
        self.credit = Some(credit);
        self.drained_due = true;
    }

    /// Whether a delivery is still with this consumer. While this process was stopped, or busy with others, its lease may have ended:
    /// then somebody else has the message, or it comes once more.
    #[inline]
    fn is_held(&self, delivery: &Delivery) -> bool {
        // As a rule nothing was taken back, and that is a look at a line that nobody writes.
        delivery.position >= self.status.recalled()
            || delivery.header.lease.attempt == 0
            || self.leases.names(delivery.header.lease, delivery.position)
    }

    /// Takes one record off the ring.
    fn take(
        &mut self,
        attachment: &Attachment,
        into: &mut Delivery,
    ) -> Result<News, TryReceiveError> {
        if let Some(fault) = self.broken {
            return Err(TryReceiveError::Fault(fault));
        }
        let taken = match self.down.try_take() {
            Ok(taken) => taken,
            Err(TryReceiveError::Fault(fault)) => {
                return Err(TryReceiveError::Fault(self.break_off(attachment, fault)));
            }
            Err(error) => return Err(error),
        };
        let position = taken.sequence();
        let length = taken.length();
        let understood = self.understand(&taken, into);
        self.down.release(taken);
        // A shard that found no room for what comes next is told.
        attachment.kernel.light_barrier();
        if self.down.peer_park().any_sleeper() {
            self.shard.notify(&attachment.kernel);
        }
        understood.ok_or_else(|| {
            let fault = Fault { invariant: Invariant::Record, position, value: length as u64 };
            TryReceiveError::Fault(self.break_off(attachment, fault))
        })
    }

    /// Reads a record; `None` if it is none, or answers to nothing.
    fn understand(&mut self, taken: &Taken, into: &mut Delivery) -> Option<News> {
        let mut front = [0; RECORD_BYTES_MAX];
        let length = self.down.read(taken, 0, &mut front);
        match Down::decode(&front[..length]).ok()? {
            Down::Delivery(header) => {
                into.header = header;
                into.position = taken.sequence();
                let payload = taken.length().checked_sub(DELIVERY_HEADER_BYTES)?;
                // Only what the buffers grow by is filled with zeros first.
                into.payload.resize(payload, 0);
                self.down.read(taken, DELIVERY_HEADER_BYTES, &mut into.payload);
                into.metadata.resize(taken.metadata_length(), 0);
                self.down.read_metadata(taken, &mut into.metadata);
                into.consumer = self.number;
                self.drained = false;
                self.unreadable = None;
                Some(News::Delivery)
            }
            Down::Answer { request, outcome, detail } => {
                if request == 0 || request > self.requests {
                    return None;
                }
                // An answer to an earlier request comes after its caller has gone.
                if request == self.requests {
                    self.answer = Some((outcome, detail));
                }
                Some(News::Other)
            }
            Down::Drained => {
                self.drained = !std::mem::take(&mut self.given_back);
                self.drained_due = false;
                self.unreadable = None;
                Some(News::Other)
            }
            Down::Skipped { messages } => {
                self.skipped = self.skipped.saturating_add(messages);
                Some(News::Other)
            }
            Down::Unreadable { sequence } => {
                self.unreadable = Some(sequence).filter(|sequence| *sequence > 0);
                self.drained = false;
                Some(News::Other)
            }
            Down::Completed { .. } => None,
        }
    }

    /// Puts by what is there, so that the shard finds room for answers; until `enough`.
    fn put_by(
        &mut self,
        attachment: &Attachment,
        enough: impl Fn(&Self) -> bool,
    ) -> Result<(), TryReceiveError> {
        for _ in 0..RECORDS_PER_LOOK {
            let full = self.stash.len() >= STASH_MAX || self.stash_bytes >= STASH_BYTES_MAX;
            if enough(self) || full {
                return Ok(());
            }
            let mut delivery = Delivery::default();
            match self.take(attachment, &mut delivery) {
                Ok(News::Delivery) => {
                    self.stash_bytes += delivery.bytes();
                    self.stash.push_back(delivery);
                }
                Ok(News::Other) => {}
                Err(TryReceiveError::Empty) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(super) fn take_skipped(&mut self) -> u64 {
        std::mem::take(&mut self.skipped)
    }

    /// A number for a request that wants an answer.
    pub(crate) fn next_request(&mut self) -> u64 {
        self.requests += 1;
        self.answer = None;
        self.requests
    }

    /// Sends one record to the shard; `false` if there is no room now.
    #[inline]
    pub(crate) fn try_submit(
        &mut self,
        attachment: &Attachment,
        record: &Up,
    ) -> Result<bool, AckError> {
        if let Some(fault) = self.broken {
            return Err(AckError::PeerFault(fault));
        }
        if let Some(errno) = self.shard.failed() {
            return Err(AckError::JournalFailed { errno });
        }
        if attachment.is_lost() {
            return Err(AckError::Lost);
        }
        match self.up.try_send(0, &[], record.encode().as_ref()) {
            Ok(_) => {
                self.shard.notify(&attachment.kernel);
                if let Up::Nack { .. } = record {
                    self.given_back = self.drained_due;
                    self.drained = false;
                }
                Ok(true)
            }
            Err(TrySendError::Full) => Ok(false),
            Err(TrySendError::Closed(closed)) => Err(AckError::Closed(closed)),
            Err(TrySendError::Fault(fault)) => {
                Err(AckError::PeerFault(self.break_off(attachment, fault)))
            }
            // The slots of the ring are as long as the longest record.
            Err(TrySendError::TooLarge { .. }) => Err(AckError::Rejected),
        }
    }

    /// The same for one who waits: what the shard has sent is put by meanwhile, because a shard that finds no room for its answers
    /// takes no requests.
    pub(crate) fn submit_or_put_by(
        &mut self,
        attachment: &Attachment,
        record: &Up,
    ) -> Result<bool, AckError> {
        if self.try_submit(attachment, record)? {
            return Ok(true);
        }
        self.put_by(attachment, |_| false).map_err(receive_to_ack)?;
        self.try_submit(attachment, record)
    }

    /// The answer to the last request, if it is there.
    pub(crate) fn try_answer(&mut self, attachment: &Attachment) -> Option<Result<(), AckError>> {
        if self.answer.is_none() {
            let put_by = self.put_by(attachment, |inbox| inbox.answer.is_some());
            if let Err(error) = put_by {
                return Some(Err(receive_to_ack(error)));
            }
        }
        let Some((outcome, detail)) = self.answer else {
            return self.failed_for_long().map(Err);
        };
        Some(match outcome {
            Outcome::Done => Ok(()),
            Outcome::JournalFailed => {
                Err(AckError::JournalFailed { errno: i32::try_from(detail).unwrap_or(i32::MAX) })
            }
            Outcome::QueueDeleted => Err(AckError::Closed(ring::Closed::Deleted)),
            Outcome::LeaseLost => Err(AckError::LeaseLost),
            // The others are outcomes of messages.
            _ => Err(AckError::Rejected),
        })
    }

    fn failed_for_long(&mut self) -> Option<AckError> {
        let errno = self.shard.failed()?;
        let now_ns = monotonic_ns();
        if self.failed_ns == 0 {
            self.failed_ns = now_ns;
        }
        let over = now_ns.saturating_sub(self.failed_ns) >= FAILED_GRACE_NS;
        over.then_some(AckError::JournalFailed { errno })
    }
}

fn receive_to_ack(error: TryReceiveError) -> AckError {
    match error {
        TryReceiveError::Closed(closed) => AckError::Closed(closed),
        TryReceiveError::Fault(fault) => AckError::PeerFault(fault),
        // Never asked for with this.
        TryReceiveError::Empty => AckError::Timeout,
    }
}
