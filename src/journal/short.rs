//! Free files that are shorter than new ones are made: the daemon was started with longer segments than before, or the state has grown.
//!
//! While the disk has room nobody needs them, and they are removed. On a full one they keep acknowledgements going: with no
//! longer file to be had, a segment is begun in one of them. It takes no messages. What is not needed for that is given back, so that longer files can
//! be made; when there are as many as messages need, the next segment begins in one of those.

use super::clean::SHARE_MAX;
use super::engine::{Journal, RESERVE, TAIL_BYTES, Task};
use super::space::Spare;
use super::types::Config;
use crate::disk::{BLOCK_BYTES, Disk, Operation};

/// Free files that acknowledgements need beside a segment without messages.
const FOR_ACKS: usize = 2;

/// How long batches may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// A batch that has this many bytes waits for nothing but a place in flight.
    pub(super) batch_bytes: usize,
    /// Longest group of records, each with its header.
    pub(super) group_bytes: usize,
}

impl Limits {
    pub(super) fn of(config: &Config) -> Self {
        Self { batch_bytes: config.batch_bytes, group_bytes: config.group_bytes_max() }
    }

    /// Those of a journal with segments of this length at most.
    fn within(config: &Config, segment_bytes: u64) -> Self {
        let segment_bytes = segment_bytes.min(config.segment_bytes);
        Self::of(&Config { segment_bytes, ..config.clone() }.bounded())
    }

    /// From the preferred ones to those with which nothing goes but what is no message.
    pub(super) fn in_file(config: &Config, bytes: u64, is_short: bool) -> [Self; 2] {
        let preferred = Self::within(config, bytes);
        [preferred, if is_short { Self::within(config, 0) } else { preferred }]
    }

    /// Bytes that a batch may come to have: it takes a whole group as long as it has not reached its target.
    pub(super) fn batch_bytes_max(&self) -> usize {
        self.batch_bytes + self.group_bytes
    }

    /// What a segment must have left for another batch.
    pub(super) fn room_bytes(&self) -> u64 {
        self.batch_bytes_max().next_multiple_of(BLOCK_BYTES) as u64 + TAIL_BYTES
    }
}

impl<D: Disk> Journal<D> {
    /// Of the segment that is written to.
    pub(super) fn limits(&self) -> Limits {
        self.head.as_ref().map_or_else(|| Limits::of(&self.config), |head| head.limits)
    }

    /// The segment that is written to was begun because there was no longer file: it takes no messages.
    pub(super) fn is_head_short(&self) -> bool {
        self.head.as_ref().is_some_and(|head| head.is_short)
    }

    /// As many files as messages need beside the one that they go into.
    pub(super) fn has_reserve(&self) -> bool {
        self.spares.len() >= self.config.spares.min(RESERVE)
    }

    /// Least length of a file in which the next segment may begin.
    pub(super) fn usable_bytes(&self) -> u64 {
        match self.no_space {
            Some(_) => self.wanted_bytes.min(self.least_bytes),
            None => self.wanted_bytes,
        }
    }

    /// Free files in which a segment may begin now, those held ready first.
    pub(super) fn usable_files(&self) -> impl Iterator<Item = &Spare> {
        let least = self.usable_bytes();
        let others = self.surplus.iter().filter(|_| self.no_space.is_some());
        self.spares.iter().chain(others).filter(move |spare| spare.bytes >= least)
    }

    /// The file in which the next segment begins: a long one, or the longest if no long one can be made.
    pub(super) fn next_free_file(&self) -> Option<Spare> {
        let is_whole = |spare: &&Spare| !self.torn.has(spare.file);
        let mut long = self.spares.iter().filter(|spare| spare.bytes >= self.wanted_bytes);
        if long.clone().next().is_some() {
            return long.find(is_whole).copied();
        }
        self.usable_files().filter(is_whole).max_by_key(|spare| spare.bytes).copied()
    }

    /// Free files that copies may go into, and the length of the shortest.
    fn files_for_copies(&self) -> (usize, u64) {
        if !self.is_head_short() {
            return (self.spares.len(), self.config.segment_bytes);
        }
        let head = self.head.iter().map(|head| head.bytes);
        let shortest = self.usable_files().map(|spare| spare.bytes).chain(head).min();
        (self.usable_files().count(), shortest.unwrap_or(0))
    }

    /// Whether so many bytes may be copied: acknowledgements need the last free file, also if that is not finished.
    pub(super) fn may_copy(&self, bytes: u64) -> bool {
        let (files, _) = self.files_for_copies();
        let wanted = if self.takes_files(bytes) { RESERVE } else { 2 };
        files >= self.config.spares.min(wanted)
    }

    /// Whether copies of so many bytes may take more than one file: they come from a longer one. On a full disk that is too much.
    pub(super) fn takes_files(&self, bytes: u64) -> bool {
        let (_, shortest) = self.files_for_copies();
        bytes * 1024 / shortest.max(1) > SHARE_MAX
    }

    /// Removes short files that nothing needs.
    pub(super) fn give_back_short(&mut self) {
        let is_full = self.no_space.is_some();
        let is_served = self.spares.len() >= self.config.spares && !self.wants_longer();
        // As in `drop_surplus`.
        if !self.checkpoint_is_durable() || !(is_full || is_served) {
            return;
        }
        let wanted = if is_full { self.wanted_bytes } else { self.config.segment_bytes };
        let for_acks = match is_served {
            true => 0,
            false => self.config.spares.min(FOR_ACKS).saturating_sub(self.spares.len()),
        };
        // The longest are kept.
        self.surplus.sort_by_key(|spare| std::cmp::Reverse(spare.bytes));
        let long = self.surplus.partition_point(|spare| spare.bytes >= wanted);
        let usable = self.surplus.partition_point(|spare| spare.bytes >= self.least_bytes);
        let kept = usable.min(long + for_acks).max(long);
        self.remove_surplus(kept);
    }

    /// Keeps so many of the free files beyond those held ready.
    pub(super) fn remove_surplus(&mut self, kept: usize) {
        for Spare { file, .. } in self.surplus.split_off(kept) {
            let ticket = self.ticket(Task::Remove);
            self.disk.submit(ticket, Operation::Remove { file });
        }
    }
}
