//! The disks under test.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use ringmain::disk::simulated::Simulation;
use ringmain::disk::{
    Availability, BlockingDisk, Disk, MemoryDisk, SyncMode, UringDisk, availability,
};
use ringmain_client::sys::memory::create_sealed;
use tempfile::TempDir;

/// A disk, and what it lies on.
pub(crate) struct Backend {
    pub(crate) name: &'static str,
    pub(crate) disk: Box<dyn Disk>,
    /// Where the files are, if they are files.
    pub(crate) folder: Option<TempDir>,
    /// Names that a memory disk had removed.
    pub(crate) removed: Arc<Mutex<Vec<String>>>,
}

impl Backend {
    pub(crate) fn path(&self) -> Option<&Path> {
        self.folder.as_ref().map(TempDir::path)
    }
}

fn on_files(
    name: &'static str,
    make: impl FnOnce(&Path, SyncMode) -> io::Result<Box<dyn Disk>>,
    mode: SyncMode,
) -> Backend {
    let folder = tempfile::tempdir().unwrap();
    let disk = make(folder.path(), mode).unwrap();
    Backend { name, disk, folder: Some(folder), removed: Arc::default() }
}

pub(crate) fn uring(mode: SyncMode) -> Option<Backend> {
    match availability() {
        Availability::Allowed => {}
        refused => {
            eprintln!("skipped: {refused}");
            return None;
        }
    }
    Some(on_files("uring", |path, mode| Ok(Box::new(UringDisk::new(path, mode)?)), mode))
}

pub(crate) fn blocking(mode: SyncMode) -> Backend {
    on_files("blocking", |path, mode| Ok(Box::new(BlockingDisk::new(path, mode)?)), mode)
}

pub(crate) fn memory() -> Backend {
    let removed: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = removed.clone();
    let create = Box::new(|_: &str, bytes: u64| {
        let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
        create_sealed("ringmain-test", bytes).map_err(io::Error::other)
    });
    let remove = Box::new(move |name: &str| log.lock().unwrap().push(name.to_owned()));
    let disk = MemoryDisk::new(Vec::new(), create, remove).unwrap();
    Backend { name: "memory", disk: Box::new(disk), folder: None, removed }
}

pub(crate) fn simulated() -> Backend {
    let disk = Simulation::new().disk();
    Backend { name: "simulated", disk: Box::new(disk), folder: None, removed: Arc::default() }
}

/// Every disk in every mode that it has.
pub(crate) fn all() -> Vec<Backend> {
    let modes = [SyncMode::Dsync, SyncMode::Fdatasync];
    let mut all: Vec<Backend> = modes.into_iter().filter_map(uring).collect();
    all.extend(modes.map(blocking));
    all.extend([memory(), simulated()]);
    all
}
