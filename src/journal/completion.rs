//! What the disk has done: batches become durable, reads and files are there, or something failed.

use std::io;

use super::cache::Origin;
use super::engine::{Journal, Task, Written};
use super::space::Spare;
use super::table::file_name;
use super::types::{Failure, Lsn, Progress};
use crate::disk::{Completed, Disk, Done, errno};

/// After so many batches, free segments are looked for.
const LOOK_BATCHES: u64 = 64;

impl<D: Disk> Journal<D> {
    /// Takes what the disk has done.
    pub fn reap(&mut self) -> Progress {
        let before = self.frontier.durable();
        let mut completed = std::mem::take(&mut self.completed);
        self.disk.reap(&mut completed);
        for one in completed.drain(..) {
            self.complete(one);
        }
        self.completed = completed;
        self.begin_waiting_reads();
        let limit = self.failure.as_ref().map_or(Lsn::MAX, |failure| failure.lsn);
        while let Some(written) = self.frontier.next_durable(limit) {
            self.note_durable(written);
        }
        self.flush();
        let durable = self.frontier.durable();
        Progress {
            durable,
            advanced: durable > before,
            reads: std::mem::take(&mut self.reads_done),
            failed: self.failure.clone(),
        }
    }

    fn complete(&mut self, completed: Completed) {
        let Completed { ticket, result, buffer } = completed;
        let Some(task) = self.tasks.remove(&ticket) else { return };
        match (task, result) {
            (Task::Batch { header, runs, .. }, Ok(_)) => {
                self.frontier.completed(ticket, Written { header, runs, buffer });
            }
            (Task::Batch { header, file_number, .. }, Err(error)) => {
                self.fail(header.first_lsn, file_number, header.offset, &error);
            }
            (Task::Footer { .. }, Ok(_)) => {}
            // On a full disk that is room.
            (Task::Remove, _) => self.retry_at = None,
            (Task::Footer { epoch, offset }, Err(error)) => {
                let number = self.file_of(epoch).map_or(0, |(_, number)| number);
                self.fail(self.frontier.durable() + 1, number, offset, &error);
            }
            (Task::Void { file, .. }, Ok(_)) => self.torn.is_void(file),
            (Task::Void { number, .. }, Err(error)) => {
                self.fail(self.frontier.durable() + 1, number, 0, &error);
            }
            (Task::Read { segment, block, lsn, .. }, result) => {
                let result = result.map(|_| ());
                if self.read_done(segment, block, lsn, result, buffer) {
                    self.reads_done += 1;
                }
            }
            (Task::Create { number, bytes }, Ok(Done::Created(file))) => {
                self.no_space = None;
                self.retry_at = None;
                self.spares.push(Spare { file, number, bytes });
            }
            (Task::Create { .. }, Ok(Done::Whole)) => {}
            (Task::Create { .. }, Err(error)) => self.no_spare(&error),
        }
    }

    /// Nothing is written and nothing is confirmed any more.
    fn fail(&mut self, lsn: Lsn, file_number: u64, offset: u64, error: &io::Error) {
        let file = file_name(file_number);
        let detail = error.to_string();
        let failure = Failure { errno: errno(error), lsn, file, offset, detail };
        self.failure.get_or_insert(failure);
        self.witness_due = None;
        self.retry_at = None;
        self.surplus_due = None;
    }

    fn note_durable(&mut self, written: Written) {
        let Written { header, runs, buffer } = written;
        for run in &runs {
            self.index.insert(*run);
        }
        self.look_for_free |= self.figures.batches.is_multiple_of(LOOK_BATCHES);
        if let Some(head) = &mut self.head
            && head.epoch == header.epoch
        {
            head.contents.add(&runs);
        } else if let Some(segment) =
            self.segments.iter_mut().find(|segment| segment.entry.epoch == header.epoch)
        {
            segment.contents.add(&runs);
        }
        match buffer {
            Some(buffer) if !runs.is_empty() => {
                let block = super::batch::block_number(header.offset);
                self.cache.insert(header.epoch, block, buffer, Origin::Written);
            }
            Some(buffer) => self.cache.recycle(buffer),
            None => {}
        }
    }
}
