//! Where durable queues are measured: a private daemon on the disk in question, or a running one.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{self, FsType};
use nix::sys::statvfs::statvfs;
use ringmain_client::Client;
use ringmain_client::raw::protocol::QueueSpec;
use tempfile::TempDir;

use crate::cli::args::DiskArgs;
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::private::{PrivateBroker, Storage};
use crate::cli::units;

/// The daemon, and a folder beside its journal.
#[derive(Debug)]
pub(in crate::cli::bench) struct DurablePlace {
    client: Client,
    socket: PathBuf,
    made: Vec<String>,
    data: PathBuf,
    // Dropped in this order: the queues, the raw file's folder, the daemon.
    folder: TempDir,
    private: Option<PrivateBroker>,
}

impl DurablePlace {
    /// A private daemon, whose journal is in a temporary folder under this one, started with these arguments of `serve` beside others.
    pub(in crate::cli::bench) fn private(disk: &DiskArgs, arguments: &[&str]) -> Outcome<Self> {
        let storage = Storage {
            parent: disk.data_dir.clone(),
            backend: disk.journal_backend,
            arguments: arguments.iter().map(ToString::to_string).collect(),
        };
        let private = PrivateBroker::durable(&storage)?;
        let data = private.data().zip(private.data().and_then(Path::parent));
        let (data, parent) = data.ok_or_else(|| Failure::internal("no folder of the journal"))?;
        Ok(Self {
            data: data.to_path_buf(),
            client: private.connect()?,
            socket: private.socket().to_path_buf(),
            made: Vec::new(),
            folder: temporary_in(parent)?,
            private: Some(private),
        })
    }

    /// A running daemon, whose journal lies on the disk of this folder.
    pub(in crate::cli::bench) fn running(socket: &Path, data: &Path) -> Outcome<Self> {
        Ok(Self {
            client: Client::connect(socket)?,
            socket: socket.to_path_buf(),
            made: Vec::new(),
            data: data.to_path_buf(),
            folder: temporary_in(data)?,
            private: None,
        })
    }

    pub(in crate::cli::bench) fn client(&self) -> &Client {
        &self.client
    }

    pub(in crate::cli::bench) fn socket(&self) -> &Path {
        &self.socket
    }

    /// For raw writes.
    pub(in crate::cli::bench) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Makes a queue; its name tells what it is for.
    pub(in crate::cli::bench) fn make(
        &mut self,
        purpose: &str,
        spec: &QueueSpec,
    ) -> Outcome<String> {
        let name = format!("bench-{purpose}-{}", std::process::id());
        self.client.create_queue(&name, spec.clone())?;
        self.made.push(name.clone());
        Ok(name)
    }

    pub(in crate::cli::bench) fn purge(&self, queue: &str) -> Outcome {
        let purged = self.client.purge_queue(queue);
        purged.map(|_| ()).map_err(|error| Failure::queue(queue, error))
    }

    /// What the daemon said about its journal, if it is the private one.
    pub(in crate::cli::bench) fn chosen(&self) -> Option<String> {
        let log = self.private.as_ref()?.log();
        let line = log.lines().find(|line| line.contains("disk backend"))?;
        Some(line.trim_start_matches("ringmain: ").to_string())
    }

    /// The folder of the journal of durable queues, if this daemon's data are where `--data-dir` says.
    pub(in crate::cli::bench) fn journal(&self) -> PathBuf {
        self.data.join("shard-0")
    }

    /// Bytes of all files of the journal.
    pub(in crate::cli::bench) fn journal_bytes(&self) -> u64 {
        let files = fs::read_dir(self.journal()).into_iter().flatten().flatten();
        files.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
    }

    /// Stops the private daemon, once nobody is attached any more; what it has said.
    pub(in crate::cli::bench) fn stop(mut self) -> Outcome<String> {
        let private = self.private.take();
        let private = private.ok_or_else(|| Failure::internal("a daemon that others use"))?;
        Ok(private.stop())
    }

    /// Folders of the threads of the shards in `/proc`, and their names.
    fn shard_threads(&self) -> Option<Vec<(PathBuf, String)>> {
        let broker = self.client.status().ok()?.broker_pid;
        let threads = fs::read_dir(format!("/proc/{broker}/task")).ok()?.flatten();
        let named = threads.filter_map(|thread| {
            let name = fs::read_to_string(thread.path().join("comm")).ok()?;
            name.contains("shard").then(|| (thread.path(), name.trim().to_string()))
        });
        Some(named.collect())
    }

    /// Times that the threads of the shards gave up their processor to wait, if they can be told.
    pub(in crate::cli::bench) fn shard_sleeps(&self) -> Option<u64> {
        let mut found = None;
        for (thread, _) in self.shard_threads()? {
            let status = fs::read_to_string(thread.join("status")).ok()?;
            let line = status.lines().find(|l| l.starts_with("voluntary_ctxt_switches"))?;
            let sleeps: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
            found = Some(found.unwrap_or(0) + sleeps);
        }
        found
    }

    /// What the kernel says about the thread of the durable queues.
    pub(in crate::cli::bench) fn shard_stat(&self) -> Option<fs::File> {
        let threads = self.shard_threads()?;
        let (thread, _) = threads.into_iter().find(|(_, name)| name == "shard-0")?;
        fs::File::open(thread.join("stat")).ok()
    }

    /// What the journal lies on.
    pub(in crate::cli::bench) fn file_system(&self) -> String {
        file_system(self.folder.path())
    }
}

impl Drop for DurablePlace {
    fn drop(&mut self) {
        if self.private.is_none() {
            for name in &self.made {
                let _ = self.client.delete_queue(name);
            }
        }
    }
}

fn temporary_in(parent: &Path) -> Outcome<TempDir> {
    tempfile::Builder::new()
        .prefix("ringmain-raw-")
        .tempdir_in(parent)
        .map_err(|error| Failure::file(parent, "make a temporary folder in", &error))
}

/// Refuses a folder whose file system has less room than a measurement takes; without a folder the one of temporary files.
pub(in crate::cli::bench) fn need_room(command: &str, disk: &DiskArgs, bytes: u64) -> Outcome {
    let default = std::env::temp_dir();
    let folder = disk.data_dir.as_deref().unwrap_or(&default);
    let stat = statvfs(folder).map_err(|errno| Failure::file(folder, "look at", &errno.into()))?;
    let free = stat.blocks_available().saturating_mul(stat.fragment_size());
    if free >= bytes {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Temporary,
        format_args!(
            "{command} takes up to {} and {} has {} free: name a folder with more room by --data-dir",
            units::bytes(bytes),
            folder.display(),
            units::bytes(free)
        ),
    ))
}

/// Kind of the file system under a folder.
pub(crate) fn file_system(folder: &Path) -> String {
    let known: [(FsType, &str); 7] = [
        (statfs::EXT4_SUPER_MAGIC, "ext4"),
        (statfs::XFS_SUPER_MAGIC, "xfs"),
        (statfs::BTRFS_SUPER_MAGIC, "btrfs"),
        (statfs::TMPFS_MAGIC, "tmpfs"),
        (statfs::OVERLAYFS_SUPER_MAGIC, "overlay"),
        (statfs::NFS_SUPER_MAGIC, "nfs"),
        (statfs::FUSE_SUPER_MAGIC, "fuse"),
    ];
    match statfs::statfs(folder) {
        Ok(stat) => {
            let kind = stat.filesystem_type();
            let name = known.iter().find(|(magic, _)| *magic == kind);
            name.map_or_else(|| format!("{:#x}", kind.0), |(_, name)| (*name).to_string())
        }
        Err(error) => format!("unknown ({error})"),
    }
}
