//! Starting a shard: its thread, its disk, its journal, the state of its queues.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, atomic::AtomicU64, atomic::Ordering};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow};
use ringmain_client::layout::control;
use ringmain_client::protocol::{Role, WakeMode};
use ringmain_client::ring::{Kernel, wake_sleepers};
use ringmain_client::sys::affinity::{available_cpus, pin_current_thread};
use ringmain_client::sys::eventfd::EventFd;
use ringmain_client::sys::kernel::HostKernel;
use ringmain_client::sys::memory::create_sealed;
use ringmain_client::sys::slice;

use super::control::{FromShard, Outbox, StartError, Started, ToShard};
use super::logic::{self, Logic};
use super::memory::PageMemory;
use super::thread::{Parts, Shard};
use crate::daemon::JournalBackend;
use crate::disk::{self, Disk, MemoryDisk};
use crate::journal::{Config, Journal, OpenError};

/// Of the shard's thread, in nanoseconds: longer than the kernel's own ones, which are 3 ms at most. So those who wake up on its processor,
/// the disk's own threads and the clients that it has woken, need not wait for the end of its slice; and not so long that its turn
/// comes late beside threads that are always busy (100 ms were).
const SLICE_NS: u64 = 4_000_000;

/// Hosts with fewer CPUs than this have none to spare for a shard alone.
const PINNED_FROM_CPUS: usize = 4;

/// Bytes of a segment of a journal in memory if nothing else is asked for.
const MEMORY_SEGMENT_BYTES: u64 = 16 << 20;

/// Bytes of recently written batches that are kept for delivery.
const CACHE_BYTES: usize = 32 << 20;

/// Where a shard keeps its journal.
#[derive(Debug)]
pub enum Storage {
    /// In this folder, which is created if it is missing.
    Folder {
        /// It.
        path: PathBuf,
        /// How it is written.
        backend: JournalBackend,
        /// An earlier broker of this daemon had it open: what that found out about the disk counts.
        again: bool,
    },
    /// In memory files.
    Memory {
        /// Those that there are.
        files: Vec<(String, OwnedFd)>,
        /// Most bytes of all of them.
        bytes_max: u64,
    },
}

/// What a shard is started with.
#[derive(Debug)]
pub struct Start {
    /// Its number.
    pub shard: u32,
    /// Where its journal is.
    pub storage: Storage,
    /// Its page.
    pub page: PageMemory,
    /// What this process can do.
    pub wake_mode: WakeMode,
    /// Where its thread runs; `None`: see `PINNED_FROM_CPUS`.
    pub cpu: Option<usize>,
    /// Of a new segment; `None` takes the default.
    pub segment_bytes: Option<u64>,
    /// What it is asked.
    pub inbox: Receiver<ToShard>,
    /// What announces that.
    pub bell: Arc<EventFd>,
    /// What it answers.
    pub outbox: Outbox<FromShard>,
}

/// Payload bytes of the longest message that a shard's journal takes, with new segments of this length; `None` is the default.
#[must_use]
pub fn message_bytes_max(durable: bool, segment_bytes: Option<u64>) -> u64 {
    let config = config(durable, segment_bytes);
    logic::message_bytes_max(config.group_bytes_max()) as u64
}

/// The settings of a journal that depend on where it lies.
fn config(durable: bool, segment_bytes: Option<u64>) -> Config {
    let default = if durable { Config::default().segment_bytes } else { MEMORY_SEGMENT_BYTES };
    Config { segment_bytes: segment_bytes.unwrap_or(default), ..Config::default() }
}

/// Starts the thread. Whether its journal can be opened comes as [`FromShard::Started`].
///
/// # Errors
/// There can be no thread.
pub fn start(start: Start) -> io::Result<()> {
    // Signals stay with the main thread: they are there to interrupt its system calls.
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
    let name = format!("shard-{}", start.shard);
    let started = std::thread::Builder::new().name(name).spawn(move || run(start));
    if let Ok(mask) = mask {
        let _ = mask.thread_set_mask();
    }
    started.map(|_| ())
}

fn run(start: Start) {
    let _abort = AbortOnPanic;
    let Start { shard: number, storage, segment_bytes, inbox, outbox, .. } = start;
    let pinned = pin(start.cpu);
    // Where the kernel does not know it or forbids it, the shard is slower and no worse.
    let _ = slice::set_for_current_thread(SLICE_NS);
    let opened = open(number, storage, segment_bytes, &outbox).and_then(|opened| {
        let Opened { journal, logic, place, text } = opened;
        let started = Started {
            queues: logic.queues().cloned().collect(),
            next_queue: logic.next_queue_id(),
            text: format!("{text}{pinned}"),
        };
        let (page, outbox) = (start.page, outbox.clone());
        let parts = Parts { number, page, outbox, journal, logic, place };
        let shard = Shard::new(parts, start.wake_mode, start.bell)
            .map_err(|error| StartError::Io(format!("shard {number}: {error}")))?;
        Ok((shard, started))
    });
    match opened {
        Ok((shard, started)) => {
            outbox.send(FromShard::Started { shard: number, result: Ok(started) });
            shard.run(inbox);
        }
        Err(error) => {
            outbox.send(FromShard::Started { shard: number, result: Err(error) });
            refuse_everything(number, &inbox, &outbox);
        }
    }
}

/// A shard that ends by a bug takes the broker with it: the keeper starts another one, and nobody waits for ever.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// Without a journal: nobody waits for what will not come.
fn refuse_everything(number: u32, inbox: &Receiver<ToShard>, outbox: &Outbox<FromShard>) {
    for message in inbox {
        match message {
            ToShard::Attach { handle, .. } => {
                handle.memory.close(control::CLOSED_FAULT);
                let kernel = HostKernel::new(handle.wake_mode);
                kernel.heavy_barrier();
                let pair = &handle.memory.pair;
                wake_sleepers(&pair.down().park(Role::Consume), &kernel, u32::MAX);
                wake_sleepers(&pair.up().park(Role::Produce), &kernel, u32::MAX);
            }
            ToShard::Gone { key, .. } => outbox.send(FromShard::Released { key }),
            ToShard::Stop { .. } => {
                outbox.send(FromShard::Stopped { shard: number, messages: 0 });
                return;
            }
            // The control thread asks nothing of a shard that it knows not to be there.
            _ => {}
        }
    }
}

/// Pins this thread; what there is to say about it.
fn pin(wanted: Option<usize>) -> String {
    let cpus = available_cpus().unwrap_or_default();
    let cpu = match wanted {
        Some(cpu) => cpu,
        None if cpus.len() >= PINNED_FROM_CPUS => match cpus.last() {
            Some(cpu) => *cpu,
            None => return String::new(),
        },
        None => return String::new(),
    };
    match pin_current_thread(cpu) {
        Ok(_) => format!(", on CPU {cpu}"),
        Err(error) => format!(", not pinned ({error})"),
    }
}

type Disked = Box<dyn Disk>;

/// A journal with the state that it holds.
struct Opened {
    journal: Journal<Disked>,
    logic: Logic,
    /// The folder; `None`: in memory.
    place: Option<PathBuf>,
    text: String,
}

fn open(
    number: u32,
    storage: Storage,
    segment_bytes: Option<u64>,
    outbox: &Outbox<FromShard>,
) -> Result<Opened, StartError> {
    let place = match &storage {
        Storage::Folder { path, .. } => Some(path.clone()),
        Storage::Memory { .. } => None,
    };
    let durable = place.is_some();
    let config =
        Config { shard: number, cache_bytes: CACHE_BYTES, ..config(durable, segment_bytes) };
    let (disk, how): (Disked, String) = match storage {
        Storage::Folder { path, backend, again } => open_folder(&path, backend, again)?,
        Storage::Memory { files, bytes_max } => {
            let disk = memory_disk(number, files, bytes_max, outbox.clone())
                .map_err(|error| StartError::Io(format!("shard {number}: {error}")))?;
            (Box::new(disk), "memory".to_owned())
        }
    };
    let mut logic = Logic::new(number);
    let (journal, report) = Journal::open(disk, config, &mut logic).map_err(|error| {
        let text = format!("shard {number}: {error}");
        match error {
            OpenError::Corrupt(_) | OpenError::Version { .. } => StartError::Damaged(text),
            OpenError::Locked { .. } | OpenError::Io { .. } => StartError::Io(text),
        }
    })?;
    let cut = match report.cut_batches {
        0 => String::new(),
        torn => format!(", {torn} torn batches cut off"),
    };
    let end = match (report.segments, report.clean) {
        (0, _) => "new",
        (_, true) => "closed cleanly",
        (_, false) => "not closed cleanly",
    };
    let text = format!(
        "shard {number}: {how}; {} segments, last LSN {}, {end}{cut}",
        report.segments, report.last_lsn
    );
    Ok(Opened { journal, logic, place, text })
}

fn open_folder(
    path: &Path,
    backend: JournalBackend,
    again: bool,
) -> Result<(Disked, String), StartError> {
    let failed = |error: io::Error| {
        let text = format!("journal folder {}: {error}", path.display());
        match error.kind() {
            io::ErrorKind::PermissionDenied => {
                StartError::Permission(format!("{text}; run as a user who may write there"))
            }
            io::ErrorKind::NotADirectory => {
                StartError::Config(format!("{text}; move that file away"))
            }
            _ => StartError::Io(text),
        }
    };
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        // Its name is durable when the folder above is synced.
        Ok(()) => {
            if let Some(parent) = path.parent() {
                std::fs::File::open(parent).and_then(|file| file.sync_all()).map_err(failed)?;
            }
        }
        Err(_) => {}
    }
    let backend = match backend {
        JournalBackend::Auto => disk::Backend::Auto,
        JournalBackend::Uring => disk::Backend::Uring,
        JournalBackend::Blocking => disk::Backend::Blocking,
    };
    let test = if again { disk::SelfTest::Again } else { disk::SelfTest::Kept };
    let (disk, description) = disk::open_disk_after(test, path, backend).map_err(failed)?;
    Ok((disk, format!("journal in {}, {description}", path.display())))
}

/// A journal in memory: each of its files is stored by the keeper before it is used.
fn memory_disk(
    shard: u32,
    files: Vec<(String, OwnedFd)>,
    bytes_max: u64,
    outbox: Outbox<FromShard>,
) -> io::Result<MemoryDisk> {
    let mut bytes = 0;
    for (_, memory) in &files {
        bytes += std::fs::File::from(memory.try_clone()?).metadata()?.len();
    }
    let used = Arc::new(AtomicU64::new(bytes));
    let sizes: std::collections::HashMap<String, u64> = files
        .iter()
        .filter_map(|(name, memory)| {
            let file = std::fs::File::from(memory.try_clone().ok()?);
            Some((name.clone(), file.metadata().ok()?.len()))
        })
        .collect();
    let sizes = Arc::new(std::sync::Mutex::new(sizes));
    let free_used = Arc::clone(&used);
    let (create_used, create_sizes) = (Arc::clone(&used), Arc::clone(&sizes));
    let create_outbox = outbox.clone();
    let create = move |name: &str, bytes: u64| -> io::Result<OwnedFd> {
        // Relaxed: one thread at a time creates and removes.
        if create_used.load(Ordering::Relaxed).saturating_add(bytes) > bytes_max {
            return Err(Errno::ENOSPC.into());
        }
        let length = usize::try_from(bytes).map_err(|_| io::Error::from(Errno::EFBIG))?;
        let memory = create_sealed(&format!("ringmain:shard-{shard}:{name}"), length)
            .map_err(|error| io::Error::new(io::ErrorKind::StorageFull, error.to_string()))?;
        let (answer, stored) = channel();
        create_outbox.send(FromShard::CreateSegment {
            shard,
            name: name.to_owned(),
            memory: memory.as_fd().try_clone_to_owned()?,
            bytes,
            answer,
        });
        match stored.recv() {
            Ok(Ok(())) => {}
            Ok(Err(reason)) => return Err(io::Error::new(io::ErrorKind::StorageFull, reason)),
            Err(_) => return Err(io::Error::other("the daemon is stopping")),
        }
        create_used.fetch_add(bytes, Ordering::Relaxed);
        if let Ok(mut sizes) = create_sizes.lock() {
            sizes.insert(name.to_owned(), bytes);
        }
        Ok(memory)
    };
    let remove = move |name: &str| {
        let bytes = sizes.lock().ok().and_then(|mut sizes| sizes.remove(name)).unwrap_or(0);
        // Relaxed: see above.
        used.fetch_sub(bytes, Ordering::Relaxed);
        outbox.send(FromShard::RemoveSegment { shard, name: name.to_owned() });
    };
    let disk = MemoryDisk::new(files, Box::new(create), Box::new(remove))?;
    // Relaxed: a figure.
    Ok(disk.limited(Box::new(move || bytes_max.saturating_sub(free_used.load(Ordering::Relaxed)))))
}
