//! A simulated disk as one process sees it.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use ringmain_client::sys::eventfd::EventFd;

use super::super::{Buffer, Completed, Disk, FileId, Operation, Ticket, Waker, check_place, error};
use super::history::Action;
use super::{Simulation, Site, State, index};

/// The disk of one process. Dropped, it closes its files, after what it had in flight has completed.
#[derive(Debug)]
pub struct SimulatedDisk {
    simulation: Simulation,
    process: u64,
    waker: Arc<EventFd>,
}

impl SimulatedDisk {
    pub(super) fn new(simulation: Simulation, process: u64) -> Self {
        let waker = EventFd::new().expect("a test has descriptors");
        Self { simulation, process, waker: Arc::new(waker) }
    }

    /// Runs on the state unless this process was killed.
    fn with<T>(&self, run: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.simulation.state();
        if state.process != self.process {
            return Err(io::Error::other("the process of this disk was killed"));
        }
        run(&mut state)
    }
}

impl Drop for SimulatedDisk {
    fn drop(&mut self) {
        let _ = self.with(|state| {
            while !state.pending.is_empty() {
                state.complete(0);
            }
            state.completed.clear();
            state.open.clear();
            Ok(())
        });
    }
}

impl State {
    /// Counts the call; the error it is to fail with, if any.
    fn call(&mut self, site: Site, call: &'static str, file: &str) -> io::Result<()> {
        match self.faults.call(site) {
            None => Ok(()),
            Some(fault) => Err(error::failed(call, file, fault.error(site))),
        }
    }
}

impl Disk for SimulatedDisk {
    fn list(&mut self) -> io::Result<Vec<(String, u64)>> {
        self.with(|state| {
            state.call(Site::List, "list", "the folder")?;
            Ok(state.files())
        })
    }

    fn open(&mut self, name: &str) -> io::Result<FileId> {
        self.with(|state| {
            state.call(Site::Open, "open", name)?;
            let Some(content) = state.live.names.get(name).copied() else {
                let missing = io::Error::from_raw_os_error(libc::ENOENT);
                return Err(error::failed("open", name, missing));
            };
            if state.open.values().any(|other| *other == content) {
                let locked = io::Error::from_raw_os_error(libc::EWOULDBLOCK);
                return Err(error::failed("lock", name, locked));
            }
            Ok(state.open_content(content))
        })
    }

    fn length(&mut self, file: FileId) -> io::Result<u64> {
        self.with(|state| {
            let content = state.opened(file, "length")?;
            let name = state.name(content);
            state.call(Site::Length, "length", &name)?;
            Ok(state.live.contents[content].length() as u64)
        })
    }

    fn read(&mut self, file: FileId, offset: u64, buffer: &mut Buffer) -> io::Result<()> {
        self.with(|state| {
            let content = state.opened(file, "read")?;
            let name = state.name(content);
            check_place("read", &name, offset)?;
            state.call(Site::Read, "read", &name)?;
            state.read(content, offset, buffer)
        })
    }

    fn write(&mut self, file: FileId, offset: u64, buffer: &Buffer) -> io::Result<()> {
        self.with(|state| {
            let content = state.check(file, "write", offset, buffer.len())?;
            let fault = state.faults.call(Site::Write);
            let (bytes, offset) = (Arc::from(&buffer[..]), index(offset));
            let begin = state.begin(Action::Write { content, offset, bytes, durable: true });
            state.write(content, offset, buffer, begin, fault);
            let name = state.name(content);
            fault.map_or(Ok(()), |fault| {
                Err(error::failed("write", &name, fault.error(Site::Write)))
            })
        })
    }

    fn create(&mut self, name: &str, bytes: u64) -> io::Result<FileId> {
        self.with(|state| {
            let fault = state.faults.call(Site::Create);
            if let Some(why) = state.refuse_create(name, bytes) {
                return Err(error::failed("create", name, why));
            }
            let length = index(bytes);
            let content = state.new_content(length);
            let begin = state.begin(Action::Create { name: name.to_owned(), content, length });
            state.end(begin, fault.is_none());
            if let Some(fault) = fault {
                return Err(error::failed("create", name, fault.error(Site::Create)));
            }
            state.live.names.insert(name.to_owned(), content);
            Ok(state.open_content(content))
        })
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.with(|state| {
            state.call(Site::Rename, "rename", from)?;
            if !state.live.names.contains_key(from) {
                let missing = io::Error::from_raw_os_error(libc::ENOENT);
                return Err(error::failed("rename", from, missing));
            }
            let action = Action::Rename { from: from.to_owned(), to: to.to_owned() };
            action.apply(&mut state.live);
            let begin = state.begin(action);
            state.end(begin, true);
            Ok(())
        })
    }

    fn sync(&mut self, file: FileId) -> io::Result<()> {
        self.with(|state| {
            let content = state.opened(file, "sync")?;
            let name = state.name(content);
            let begin = state.begin(Action::Sync { content });
            let result = state.call(Site::Sync, "sync", &name);
            state.end(begin, result.is_ok());
            result
        })
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        self.with(|state| {
            let begin = state.begin(Action::SyncDirectory);
            let result = state.call(Site::SyncDirectory, "sync", "the folder");
            state.end(begin, result.is_ok());
            result
        })
    }

    fn free_bytes(&self) -> Option<u64> {
        self.simulation.state().free_bytes()
    }

    fn close(&mut self, file: FileId) {
        let _ = self.with(|state| {
            state.open.remove(&file);
            Ok(())
        });
    }

    fn submit(&mut self, ticket: Ticket, operation: Operation) {
        let _ = self.with(|state| {
            state.submit(ticket, operation);
            Ok(())
        });
    }

    fn flush(&mut self) {
        let _ = self.with(|state| {
            for pending in &mut state.pending {
                pending.flushed = true;
            }
            while !state.held && !state.pending.is_empty() {
                state.complete(0);
            }
            Ok(())
        });
    }

    fn reap(&mut self, completed: &mut Vec<Completed>) {
        let _ = self.with(|state| {
            completed.append(&mut state.completed);
            Ok(())
        });
    }

    /// Time passes: a held operation completes if nothing has completed yet. Never sleeps.
    fn wait(&mut self, _timeout: Option<Duration>) -> io::Result<()> {
        self.waker.drain();
        self.with(|state| {
            if state.completed.is_empty() {
                state.complete_any();
            }
            Ok(())
        })
    }

    fn waker(&self) -> Waker {
        Waker::new(self.waker.clone())
    }

    fn watch(&mut self, _eventfd: BorrowedFd<'_>) -> io::Result<()> {
        Ok(())
    }

    fn unwatch(&mut self, _eventfd: BorrowedFd<'_>) {}
}
