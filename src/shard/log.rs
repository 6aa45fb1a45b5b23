//! The journal, as the logic sees it.

use super::logic::{Log, Message};
use crate::disk::Disk;
use crate::journal::{AppendError, Fetch, Journal, Location, Lsn, RecordRef};

impl<D: Disk> Log for Journal<D> {
    fn group_bytes_max(&self) -> usize {
        Journal::group_bytes_max(self)
    }

    fn begin(&mut self) {
        Journal::begin(self);
    }

    fn append(&mut self, record: RecordRef<'_>) -> Result<(Lsn, Location), AppendError> {
        Journal::append(self, record)
    }

    fn commit(&mut self) {
        Journal::commit(self);
    }

    fn abort(&mut self) {
        Journal::abort(self);
    }

    fn message(&mut self, queue: u64, sequence: u64) -> Message<'_> {
        fetched(Journal::message(self, queue, sequence))
    }

    fn message_for_reader(&mut self, queue: u64, sequence: u64, earned: &mut u32) -> Message<'_> {
        fetched(Journal::message_for_reader(self, queue, sequence, earned))
    }

    fn forget(&mut self, queue: u64, below: u64) {
        Journal::forget(self, queue, below);
    }
}

#[inline(always)]
fn fetched(fetch: Fetch<'_>) -> Message<'_> {
    match fetch {
        Fetch::Ready(stored) => Message::Ready(stored.body),
        Fetch::Pending => Message::Pending,
        Fetch::Missing => Message::Gone,
        Fetch::Failed(damage) => Message::Lost(damage.to_string()),
    }
}
