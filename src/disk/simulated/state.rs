//! What a simulated disk holds, and what it does when it is told to.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::super::{
    BLOCK_BYTES, Buffer, Completed, Done, Durability, FileId, Operation, Ticket, check_place, error,
};
use super::InFlight;
use super::faults::{Fault, Faults, Site};
use super::history::{Action, Event};
use super::image::{Content, Image, SECTOR_BYTES};
use super::random::Random;

#[derive(Debug)]
pub(super) struct Pending {
    pub(super) about: InFlight,
    /// Place of its `Begin` in the history; reads leave no trace.
    pub(super) begin: Option<usize>,
    pub(super) content: usize,
    pub(super) kind: PendingKind,
    pub(super) fault: Option<Fault>,
    pub(super) flushed: bool,
}

#[derive(Debug)]
pub(super) enum PendingKind {
    Write {
        buffer: Buffer,
    },
    Read {
        buffer: Buffer,
    },
    Create,
    Remove,
    /// Refused at once: its result waits for the reap.
    Refused(io::Error, Option<Buffer>),
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) initial: Image,
    /// As a process sees it.
    pub(super) live: Image,
    pub(super) history: Vec<Event>,
    /// Content of each open file; an open file is locked.
    pub(super) open: BTreeMap<FileId, usize>,
    pub(super) next_file: u32,
    /// Of the process that may use the disk; a killed one has an older number.
    pub(super) process: u64,
    pub(super) pending: Vec<Pending>,
    pub(super) completed: Vec<Completed>,
    pub(super) held: bool,
    /// Nothing completes.
    pub(super) silent: bool,
    pub(super) order: Option<Random>,
    pub(super) faults: Faults,
    pub(super) unreadable: Vec<(String, Range<u64>)>,
    pub(super) capacity: Option<u64>,
}

/// Files are far shorter than memory.
pub(super) fn index(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

impl State {
    pub(super) fn files(&self) -> Vec<(String, u64)> {
        let names = self.live.names.iter();
        names
            .map(|(name, content)| (name.clone(), self.live.contents[*content].length() as u64))
            .collect()
    }

    pub(super) fn alter(&mut self, name: &str, change: impl Fn(&mut Content)) {
        if let Some(number) = self.live.names.get(name).copied() {
            self.behind(|image| {
                if let Some(content) = image.contents.get_mut(number) {
                    change(Arc::make_mut(content));
                }
            });
        }
    }

    /// Changes what is and what was. Only sensible while nothing is in flight; the history then starts afresh.
    pub(super) fn behind(&mut self, change: impl Fn(&mut Image)) {
        change(&mut self.live);
        self.initial = self.live.clone();
        self.history.clear();
    }

    pub(super) fn begin(&mut self, action: Action) -> usize {
        self.history.push(Event::Begin(action));
        self.history.len() - 1
    }

    pub(super) fn end(&mut self, begin: usize, well: bool) {
        self.history.push(Event::End { begin, well });
    }

    /// Name of an open file; empty if it has none any more.
    pub(super) fn name(&self, content: usize) -> String {
        let named = self.live.names.iter().find(|(_, number)| **number == content);
        named.map(|(name, _)| name.clone()).unwrap_or_default()
    }

    pub(super) fn opened(&self, file: FileId, call: &'static str) -> io::Result<usize> {
        let what = "the file is not open";
        self.open
            .get(&file)
            .copied()
            .ok_or_else(|| error::invalid(call, &format!("file {}", file.0), what))
    }

    pub(super) fn open_content(&mut self, content: usize) -> FileId {
        self.next_file += 1;
        let file = FileId(self.next_file);
        self.open.insert(file, content);
        file
    }

    pub(super) fn new_content(&mut self, length: usize) -> usize {
        self.live.contents.push(Arc::new(Content::zeros(length)));
        self.live.contents.len() - 1
    }

    /// Why a file of this name and length cannot be made.
    pub(super) fn refuse_create(&self, name: &str, bytes: u64) -> Option<io::Error> {
        if bytes == 0 || !bytes.is_multiple_of(BLOCK_BYTES as u64) {
            return Some(io::Error::from_raw_os_error(libc::EINVAL));
        }
        if self.live.names.contains_key(name) {
            return Some(io::Error::from_raw_os_error(libc::EEXIST));
        }
        (self.free_bytes().is_some_and(|free| bytes > free))
            .then(|| io::Error::from_raw_os_error(libc::ENOSPC))
    }

    /// What is left of the capacity, if there is one.
    pub(super) fn free_bytes(&self) -> Option<u64> {
        let creating: u64 = (self.pending.iter())
            .filter(|one| matches!(one.kind, PendingKind::Create))
            .map(|one| one.about.bytes)
            .sum();
        let used: u64 = self.files().iter().map(|(_, length)| length).sum();
        Some(self.capacity?.saturating_sub(used.saturating_add(creating)))
    }

    pub(super) fn read(&self, content: usize, offset: u64, target: &mut [u8]) -> io::Result<()> {
        let name = self.name(content);
        let wanted = offset..offset.saturating_add(target.len() as u64);
        let bad = |(file, bytes): &(String, Range<u64>)| {
            *file == name && bytes.start < wanted.end && wanted.start < bytes.end
        };
        if self.unreadable.iter().any(bad) {
            let eio = io::Error::from_raw_os_error(libc::EIO);
            return Err(error::failed("read", &name, eio));
        }
        let length = target.len();
        if self.live.contents[content].read(index(offset), target) < length {
            let short = io::Error::from(io::ErrorKind::UnexpectedEof);
            return Err(error::failed("read", &name, short));
        }
        Ok(())
    }

    /// Writes as far as the fault lets it, and says so in the history.
    pub(super) fn write(
        &mut self,
        content: usize,
        offset: usize,
        bytes: &[u8],
        begin: usize,
        fault: Option<Fault>,
    ) {
        match fault {
            None => self.live.write(content, offset, bytes),
            Some(Fault::Short) => self.live.write(content, offset, &bytes[..bytes.len() / 2]),
            Some(_) => {}
        }
        self.end(begin, fault.is_none());
    }

    pub(super) fn submit(&mut self, ticket: Ticket, operation: Operation) {
        let site = match &operation {
            Operation::Write { .. } => Site::BeginWrite,
            Operation::Read { .. } => Site::BeginRead,
            Operation::Create { .. } => Site::BeginCreate,
            Operation::Remove { .. } => Site::BeginRemove,
        };
        let fault = self.faults.call(site);
        let mut about = InFlight { ticket, site, file: String::new(), offset: 0, bytes: 0 };
        let (content, begin, kind) = match operation {
            Operation::Write { file, offset, buffer, durability } => {
                about.offset = offset;
                about.bytes = buffer.len() as u64;
                match self.check(file, "write", offset, buffer.len()) {
                    Err(error) => (0, None, PendingKind::Refused(error, Some(buffer))),
                    Ok(content) => {
                        let durable = durability == Durability::Durable;
                        let bytes: Arc<[u8]> = Arc::from(&buffer[..]);
                        let begin =
                            Action::Write { content, offset: index(offset), bytes, durable };
                        (content, Some(begin), PendingKind::Write { buffer })
                    }
                }
            }
            Operation::Read { file, offset, buffer } => {
                about.offset = offset;
                about.bytes = buffer.len() as u64;
                match self.check(file, "read", offset, 0) {
                    Err(error) => (0, None, PendingKind::Refused(error, Some(buffer))),
                    Ok(content) => (content, None, PendingKind::Read { buffer }),
                }
            }
            Operation::Create { name, bytes } => {
                about.file.clone_from(&name);
                about.bytes = bytes;
                match self.refuse_create(&name, bytes) {
                    Some(why) => {
                        let error = error::failed("create", &name, why);
                        (0, None, PendingKind::Refused(error, None))
                    }
                    None => {
                        let length = index(bytes);
                        let content = self.new_content(length);
                        let begin = Action::Create { name, content, length };
                        (content, Some(begin), PendingKind::Create)
                    }
                }
            }
            Operation::Remove { file } => match self.open.remove(&file) {
                None => {
                    let error = error::invalid("remove", "a file", "it is not open");
                    (0, None, PendingKind::Refused(error, None))
                }
                Some(content) => {
                    let name = self.name(content);
                    (content, Some(Action::Remove { name }), PendingKind::Remove)
                }
            },
        };
        if about.file.is_empty() {
            about.file = self.name(content);
        }
        let begin = begin.map(|action| self.begin(action));
        self.pending.push(Pending { about, begin, content, kind, fault, flushed: false });
    }

    pub(super) fn check(
        &self,
        file: FileId,
        call: &'static str,
        offset: u64,
        bytes: usize,
    ) -> io::Result<usize> {
        let content = self.opened(file, call)?;
        let name = self.name(content);
        check_place(call, &name, offset)?;
        let length = self.live.contents[content].length() as u64;
        if bytes != 0 && offset.saturating_add(bytes as u64) > length {
            return Err(error::invalid(call, &name, "it would go beyond the end of the file"));
        }
        Ok(content)
    }

    /// Brings one pending operation to its end.
    pub(super) fn complete(&mut self, index_of: usize) {
        let Pending { about, begin, content, kind, fault, .. } = self.pending.remove(index_of);
        let site = about.site;
        let failure = |call, fault: Fault| error::failed(call, &about.file, fault.error(site));
        let begin = begin.unwrap_or(usize::MAX);
        let (result, buffer) = match kind {
            PendingKind::Refused(error, buffer) => (Err(error), buffer),
            PendingKind::Write { buffer } => {
                self.write(content, index(about.offset), &buffer, begin, fault);
                let result = fault.map_or(Ok(Done::Whole), |fault| Err(failure("write", fault)));
                (result, Some(buffer))
            }
            PendingKind::Read { mut buffer } => {
                let result = match fault {
                    Some(fault) => Err(failure("read", fault)),
                    None => self.read(content, about.offset, &mut buffer).map(|()| Done::Whole),
                };
                (result, Some(buffer))
            }
            PendingKind::Create => {
                self.end(begin, fault.is_none());
                match fault {
                    Some(fault) => (Err(failure("create", fault)), None),
                    None => {
                        self.live.names.insert(about.file.clone(), content);
                        (Ok(Done::Created(self.open_content(content))), None)
                    }
                }
            }
            PendingKind::Remove => {
                self.end(begin, fault.is_none());
                match fault {
                    Some(fault) => (Err(failure("remove", fault)), None),
                    None => {
                        self.live.names.remove(&about.file);
                        (Ok(Done::Whole), None)
                    }
                }
            }
        };
        self.completed.push(Completed { ticket: about.ticket, result, buffer });
    }

    /// One of the held operations, as time would.
    pub(super) fn complete_any(&mut self) {
        if self.silent {
            return;
        }
        let flushed: Vec<usize> =
            (0..self.pending.len()).filter(|at| self.pending[*at].flushed).collect();
        if flushed.is_empty() {
            return;
        }
        let chosen = self.order.as_mut().map_or(0, |random| random.below(flushed.len()));
        self.complete(flushed[chosen]);
    }

    /// What a killed process had in flight.
    pub(super) fn die(&mut self, pending: Pending, random: &mut Random) {
        let Some(begin) = pending.begin else { return };
        self.history.push(Event::Abandon { begin });
        match pending.kind {
            PendingKind::Write { buffer } => {
                for start in (0..buffer.len()).step_by(SECTOR_BYTES) {
                    if random.below(2) == 1 {
                        let bytes = &buffer[start..(start + SECTOR_BYTES).min(buffer.len())];
                        let offset = index(pending.about.offset) + start;
                        let landed = Action::Write {
                            content: pending.content,
                            offset,
                            bytes: Arc::from(bytes),
                            durable: false,
                        };
                        let begin = self.begin(landed);
                        self.write(pending.content, offset, bytes, begin, None);
                    }
                }
            }
            PendingKind::Create if random.below(2) == 1 => {
                let name = pending.about.file;
                let from = format!("{name} being made");
                // Its content is there; its name is not durable yet.
                let (content, length) = (pending.content, index(pending.about.bytes));
                let create = self.begin(Action::Create { name: from.clone(), content, length });
                self.end(create, true);
                let rename = self.begin(Action::Rename { from, to: name.clone() });
                self.live.names.insert(name, content);
                self.end(rename, true);
            }
            PendingKind::Remove if random.below(2) == 1 => {
                let remove = self.begin(Action::Remove { name: pending.about.file.clone() });
                self.live.names.remove(&pending.about.file);
                self.end(remove, true);
            }
            _ => {}
        }
    }
}
