//! Where durable publishes are measured: a private daemon on the disk in question, or a running one.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{self, FsType};
use ringmain_client::Client;
use ringmain_client::raw::protocol::QueueSpec;
use tempfile::TempDir;

use crate::cli::Socket;
use crate::cli::args::DurableArgs;
use crate::cli::exit::{Failure, Outcome};
use crate::cli::private::{PrivateBroker, Storage};

/// The daemon, and a folder beside its journal.
#[derive(Debug)]
pub(super) struct DurablePlace {
    client: Client,
    socket: PathBuf,
    made: Vec<String>,
    data: PathBuf,
    // Dropped in this order: the queues, the raw file's folder, the daemon.
    folder: TempDir,
    private: Option<PrivateBroker>,
}

impl DurablePlace {
    pub(super) fn new(socket: &Socket, args: &DurableArgs, queues: u32) -> Outcome<Self> {
        let Some(path) = socket.given() else {
            let more = |number: u32| (number + 64).to_string();
            let storage = Storage {
                parent: args.data_dir.clone(),
                backend: args.journal_backend,
                arguments: ["--limit-queues", &more(queues), "--limit-handles", &more(2 * queues)]
                    .map(str::to_string)
                    .to_vec(),
            };
            let private = PrivateBroker::durable(&storage)?;
            let data = private.data().zip(private.data().and_then(Path::parent));
            let (data, parent) =
                data.ok_or_else(|| Failure::internal("no folder of the journal"))?;
            return Ok(Self {
                data: data.to_path_buf(),
                client: private.connect()?,
                socket: private.socket().to_path_buf(),
                made: Vec::new(),
                folder: temporary_in(parent)?,
                private: Some(private),
            });
        };
        let Some(data) = &args.data_dir else {
            return Err(Failure::usage(
                "with --socket, --data-dir names a folder on the disk of that daemon's journal: raw \
                 writes are measured there",
            ));
        };
        Ok(Self {
            client: Client::connect(path)?,
            socket: path.to_path_buf(),
            made: Vec::new(),
            data: data.clone(),
            folder: temporary_in(data)?,
            private: None,
        })
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// For raw writes.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn make(&mut self, count: u32, spec: &QueueSpec) -> Outcome<Vec<String>> {
        for number in 0..count {
            let name = format!("bench-durable-{}-{number}", std::process::id());
            self.client.create_queue(&name, spec.clone())?;
            self.made.push(name);
        }
        Ok(self.made.clone())
    }

    pub(super) fn purge(&self, queues: &[String]) -> Outcome {
        for queue in queues {
            self.client.purge_queue(queue).map_err(|error| Failure::queue(queue, error))?;
        }
        Ok(())
    }

    /// What the daemon said about its journal, if it is the private one.
    pub(super) fn chosen(&self) -> Option<String> {
        let log = self.private.as_ref()?.log();
        let line = log.lines().find(|line| line.contains("disk backend"))?;
        Some(line.trim_start_matches("ringmain: ").to_string())
    }

    /// The folder of the journal of durable queues, if this daemon's data are where `--data-dir` says.
    pub(super) fn journal(&self) -> PathBuf {
        self.data.join("shard-0")
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
    pub(super) fn shard_sleeps(&self) -> Option<u64> {
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
    pub(super) fn shard_stat(&self) -> Option<fs::File> {
        let threads = self.shard_threads()?;
        let (thread, _) = threads.into_iter().find(|(_, name)| name == "shard-0")?;
        fs::File::open(thread.join("stat")).ok()
    }

    /// What the journal lies on.
    pub(super) fn file_system(&self) -> String {
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
