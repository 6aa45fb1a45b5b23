//! Whether there is room on the disk for what comes next.

use super::engine::{Journal, RESERVE, Task};
use super::types::{NoRoom, Room};
use crate::disk::Disk;

impl<D: Disk> Journal<D> {
    /// Whether the disk has room for the segment files that messages need. Asks the file system; not for every message.
    pub fn room(&mut self) -> Room {
        let lack = self.lack();
        if lack.files == 0 || self.failure.is_some() {
            return Room::Enough;
        }
        let wanted_bytes = lack.files.saturating_mul(lack.file_bytes);
        match lack.free_bytes {
            // What the file system says may not be all: the attempt tells.
            Some(free) if free >= wanted_bytes => {
                self.retry_at = None;
                Room::Enough
            }
            // The file that is being made has taken a part of what is missing, or one that has just become free is it, or makes room for
            // it.
            Some(_) if self.is_making_file() || self.is_freeing() => Room::Unclear,
            // The attempt makes room.
            Some(_) if self.may_shorten() => {
                self.retry_at = None;
                Room::Unclear
            }
            None if self.no_space.is_none() => Room::Enough,
            Some(_) | None => Room::Lacking(lack),
        }
    }

    /// Whether nothing at all can be appended, and nothing that is under way here will change that: what is missing.
    pub fn is_stuck(&self) -> Option<NoRoom> {
        let is_stuck = self.no_space.is_some()
            && self.staging.is_none()
            && self.usable_files().next().is_none()
            && !self.is_freeing()
            && self.busy() == 0
            && !self.is_making_file();
        is_stuck.then(|| self.lack())
    }

    /// Segment files that messages need and that are not there.
    fn lack(&self) -> NoRoom {
        let no_head = self.head.is_none() || self.is_head_short();
        let wanted = self.config.spares.min(RESERVE) + usize::from(no_head);
        let files = self.spares.iter().chain(&self.surplus);
        let there = files.filter(|spare| spare.bytes >= self.config.segment_bytes).count();
        NoRoom {
            files: wanted.saturating_sub(there).max(usize::from(self.wants_longer())) as u64,
            file_bytes: self.wanted_bytes,
            free_bytes: self.disk.free_bytes(),
            detail: self.no_space.as_ref().map(|(_, detail)| detail.clone()),
        }
    }

    /// Whether a file will soon be free that is long enough, or removed so that there is room for one: what says so is on its way to the disk.
    fn is_freeing(&self) -> bool {
        let mut freed = self.segments.iter().filter(|one| one.freed.is_some());
        let usable = self.usable_bytes();
        freed.any(|one| self.head.is_some() || one.bytes >= usable)
            || self.tasks.values().any(|task| matches!(task, Task::Remove))
    }

    pub(super) fn is_making_file(&self) -> bool {
        self.tasks.values().any(|task| matches!(task, Task::Create { .. }))
    }
}
