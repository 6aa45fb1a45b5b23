//! What the journal itself costs: messages through append and submit into a disk that does nothing.

use std::hint::black_box;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringmain::disk::{Buffer, Completed, Disk, Done, FileId, Operation, Ticket, Waker};
use ringmain::journal::{
    Config, FLAG_MESSAGE, Journal, Ready, RecordRef, Replay, Snapshot, Stored,
};
use ringmain_client::sys::eventfd::EventFd;

/// Everything completes at once.
#[derive(Debug)]
struct NoDisk {
    completed: Vec<Completed>,
    files: u32,
    waker: Arc<EventFd>,
}

impl Disk for NoDisk {
    fn list(&mut self) -> io::Result<Vec<(String, u64)>> {
        Ok(Vec::new())
    }
    fn open(&mut self, _name: &str) -> io::Result<FileId> {
        Ok(FileId(0))
    }
    fn length(&mut self, _file: FileId) -> io::Result<u64> {
        Ok(0)
    }
    fn read(&mut self, _file: FileId, _offset: u64, _buffer: &mut Buffer) -> io::Result<()> {
        Ok(())
    }
    fn write(&mut self, _file: FileId, _offset: u64, _buffer: &Buffer) -> io::Result<()> {
        Ok(())
    }
    fn create(&mut self, _name: &str, _bytes: u64) -> io::Result<FileId> {
        Ok(FileId(0))
    }
    fn rename(&mut self, _from: &str, _to: &str) -> io::Result<()> {
        Ok(())
    }
    fn sync(&mut self, _file: FileId) -> io::Result<()> {
        Ok(())
    }
    fn sync_directory(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn close(&mut self, _file: FileId) {}
    fn submit(&mut self, ticket: Ticket, operation: Operation) {
        let (done, buffer) = match operation {
            Operation::Write { buffer, .. } | Operation::Read { buffer, .. } => {
                (Done::Whole, Some(buffer))
            }
            Operation::Create { .. } => {
                self.files += 1;
                (Done::Created(FileId(self.files)), None)
            }
            Operation::Remove { .. } => (Done::Whole, None),
        };
        self.completed.push(Completed { ticket, result: Ok(done), buffer });
    }
    fn flush(&mut self) {}
    fn reap(&mut self, completed: &mut Vec<Completed>) {
        completed.append(&mut self.completed);
    }
    fn wait(&mut self, _timeout: Option<Duration>) -> io::Result<()> {
        Ok(())
    }
    fn waker(&self) -> Waker {
        Waker::new(self.waker.clone())
    }
    fn watch(&mut self, _eventfd: BorrowedFd<'_>) -> io::Result<()> {
        Ok(())
    }
    fn unwatch(&mut self, _eventfd: BorrowedFd<'_>) {}
}

/// Needs nothing again.
struct Forgetful;

impl Snapshot for Forgetful {
    fn write(&self, _emit: &mut dyn FnMut(RecordRef<'_>)) {}
    fn is_needed(&self, _queue: u64, _first: u64, _last: u64) -> bool {
        false
    }
    fn needed(
        &self,
        _queue: u64,
        _first: u64,
        last: u64,
        _limit: usize,
        _parts: &mut Vec<(u64, u64)>,
    ) -> u64 {
        last + 1
    }
}

impl Replay for Forgetful {
    fn checkpoint_begin(&mut self) {}
    fn record(&mut self, _record: Stored<'_>) -> Result<(), String> {
        Ok(())
    }
    fn checkpoint_end(&mut self) {}
}

fn append(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("journal");
    group.throughput(Throughput::Elements(1));
    for (name, queues) in [("256 B, one queue", 1), ("256 B, 100 queues", 100)] {
        let waker = Arc::new(EventFd::new().expect("a descriptor"));
        let disk = NoDisk { completed: Vec::new(), files: 0, waker };
        let (mut journal, _) =
            Journal::open(disk, Config::default(), &mut Forgetful).expect("a new journal");
        let mut sequences = vec![0; queues];
        let (head, payload) = ([1; 24], [7; 256]);
        let mut number = 0;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                while journal.is_ready() != Ready::Ready {
                    journal.submit(&Forgetful, Instant::now());
                    black_box(journal.reap());
                }
                number = (number + 1) % queues;
                sequences[number] += 1;
                let (queue, sequence) = (number as u64 + 1, sequences[number]);
                let parts: &[&[u8]] = &[&head, &payload];
                let record = RecordRef { kind: 1, flags: FLAG_MESSAGE, queue, sequence, parts };
                journal.append(record).expect("there is room");
                if sequence.is_multiple_of(1024) {
                    journal.forget(queue, sequence);
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, append);
criterion_main!(benches);
