//! A disk behind a pointer: which backend it is is known when the program runs.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::{Buffer, Completed, Disk, FileId, Operation, Ticket, Waker};

impl<D: Disk + ?Sized> Disk for Box<D> {
    fn list(&mut self) -> io::Result<Vec<(String, u64)>> {
        (**self).list()
    }
    fn open(&mut self, name: &str) -> io::Result<FileId> {
        (**self).open(name)
    }
    fn length(&mut self, file: FileId) -> io::Result<u64> {
        (**self).length(file)
    }
    fn read(&mut self, file: FileId, offset: u64, buffer: &mut Buffer) -> io::Result<()> {
        (**self).read(file, offset, buffer)
    }
    fn write(&mut self, file: FileId, offset: u64, buffer: &Buffer) -> io::Result<()> {
        (**self).write(file, offset, buffer)
    }
    fn create(&mut self, name: &str, bytes: u64) -> io::Result<FileId> {
        (**self).create(name, bytes)
    }
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        (**self).rename(from, to)
    }
    fn sync(&mut self, file: FileId) -> io::Result<()> {
        (**self).sync(file)
    }
    fn sync_directory(&mut self) -> io::Result<()> {
        (**self).sync_directory()
    }
    fn free_bytes(&self) -> Option<u64> {
        (**self).free_bytes()
    }
    fn close(&mut self, file: FileId) {
        (**self).close(file);
    }
    fn submit(&mut self, ticket: Ticket, operation: Operation) {
        (**self).submit(ticket, operation);
    }
    fn flush(&mut self) {
        (**self).flush();
    }
    fn reap(&mut self, completed: &mut Vec<Completed>) {
        (**self).reap(completed);
    }
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        (**self).wait(timeout)
    }
    fn waker(&self) -> Waker {
        (**self).waker()
    }
    fn watch(&mut self, eventfd: BorrowedFd<'_>) -> io::Result<()> {
        (**self).watch(eventfd)
    }
    fn unwatch(&mut self, eventfd: BorrowedFd<'_>) {
        (**self).unwatch(eventfd);
    }
}
