//! Free files of another length than new ones get: the daemon was started with longer or shorter segments than before, or the state has
//! grown.
//!
//! *Shorter ones.* While the disk has room nobody needs them, and they are removed. On a full one they keep acknowledgements going: with no
//! longer file to be had, a segment is begun in one of them. It takes no messages. What is not needed for that is given back, so that longer files can
//! be made; when there are as many as messages need, the next segment begins in one of those.
//!
//! *Longer ones* serve as well as any. On a disk that is full before there are as many files as messages need, they are removed where more of
//! the length that is wanted find room in their place; a segment in such a file is left when nothing in it is needed.

use super::batch::Batch;
use super::clean::SHARE_MAX;
use super::engine::{Journal, RESERVE, TAIL_BYTES, Task};
use super::space::Spare;
use super::types::{Config, Snapshot};
use crate::disk::{BLOCK_BYTES, Disk, FileId, Operation};

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

    /// The file in which the next segment begins: the shortest that is long enough, or the longest if no such file can be made.
    pub(super) fn next_free_file(&self) -> Option<Spare> {
        let is_whole = |spare: &&Spare| !self.torn.has(spare.file);
        let long = self.spares.iter().filter(|spare| spare.bytes >= self.wanted_bytes);
        if long.clone().next().is_some() {
            return long.filter(is_whole).min_by_key(|spare| spare.bytes).copied();
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

    /// Whether more files of the wanted length find room in the place of longer ones that are free, or whose segment is the last one and can
    /// be left.
    fn gains(&self) -> bool {
        let free = self.spares.iter().chain(&self.surplus).map(|spare| spare.bytes);
        let head = self.head.iter().map(|head| head.bytes);
        let mut long: Vec<u64> =
            free.chain(head).filter(|bytes| *bytes > self.wanted_bytes).collect();
        long.sort_unstable_by_key(|bytes| std::cmp::Reverse(*bytes));
        let mut room = self.free_bytes();
        long.into_iter().zip(1..).any(|(bytes, removed)| {
            room += bytes;
            room / self.wanted_bytes > removed
        })
    }

    /// Whether the last file could not be made for want of room, and there still is not enough.
    fn lacks_room(&self) -> bool {
        matches!(self.no_space, Some((libc::ENOSPC | libc::EDQUOT, _)))
            && self.free_bytes() < self.wanted_bytes
    }

    /// What is known to be free. The file system does not tell what a quota leaves of it.
    fn free_bytes(&self) -> u64 {
        match self.no_space {
            Some((libc::EDQUOT, _)) => 0,
            _ => self.disk.free_bytes().unwrap_or(0),
        }
    }

    /// The free file that is to be removed for that: the longest. The last one stays, because acknowledgements need it, unless the last
    /// segment has as much room for them.
    fn too_long(&self) -> Option<FileId> {
        let is_long =
            |spare: &&Spare| spare.bytes > self.wanted_bytes && !self.torn.is_written(spare.file);
        let files = self.spares.iter().chain(&self.surplus);
        let longest = files.clone().filter(is_long).max_by_key(|spare| spare.bytes)?;
        let left = self.head.as_ref().map_or(0, |head| head.bytes - head.next_offset);
        let is_last = files.count() == 1 && left < self.wanted_bytes;
        (!is_last && self.gains()).then_some(longest.file)
    }

    /// Whether [`Self::give_back_long`] will give something back after the next attempt.
    pub(super) fn may_shorten(&self) -> bool {
        self.head.is_some() && self.spares.len() < self.config.spares && self.too_long().is_some()
    }

    /// No file could be made: gives room to it. One at a time: a file of the wanted length fits into the place of each.
    pub(super) fn give_back_long(&mut self) {
        // As in `drop_surplus`.
        if self.checkpoint_is_durable()
            && self.lacks_room()
            && self.spares.len() < self.config.spares
            && let Some(file) = self.too_long()
        {
            self.spares.retain(|spare| spare.file != file);
            self.surplus.retain(|spare| spare.file != file);
            self.remove(file);
        }
    }

    /// Whether the last segment is to be left for a shorter file because its own is too long for a full disk, and nothing in it is needed.
    /// Looked at once for each file that could not be made.
    pub(super) fn is_head_too_long(&mut self, snapshot: &dyn Snapshot) -> bool {
        if !std::mem::take(&mut self.look_at_head) || self.has_reserve() {
            return false;
        }
        let is_durable = self.next_lsn <= self.durable() + 1;
        let next_bytes = self.next_free_file().map_or(u64::MAX, |spare| spare.bytes);
        let Some(head) = &mut self.head else { return false };
        let is_idle = is_durable && self.staging.as_ref().is_some_and(Batch::is_empty);
        let bytes = head.bytes;
        is_idle
            && next_bytes < bytes
            && bytes > self.wanted_bytes
            && !head.contents.is_needed(snapshot)
            && self.lacks_room()
            && self.gains()
    }

    fn remove(&mut self, file: FileId) {
        let ticket = self.ticket(Task::Remove);
        self.disk.submit(ticket, Operation::Remove { file });
    }

    /// Keeps so many of the free files beyond those held ready.
    pub(super) fn remove_surplus(&mut self, kept: usize) {
        for Spare { file, .. } in self.surplus.split_off(kept) {
            self.remove(file);
        }
    }
}
