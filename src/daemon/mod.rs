//! The daemon: two processes, so that rings outlive the one that can fail.
//!
//! ```text
//!  ringmain serve (keeper)                    ringmain broker
//!   lock, listening socket ── descriptor ──►   one thread, poll(2): clients, pidfds, keeper
//!   store {key, bytes, descriptors} ◄─ Apply ─  creates rings, hands out handles, repairs after deaths
//!   restarts the broker       ── Entries ──►   adopts what the store holds
//! ```
//!
//! The keeper does next to nothing: it holds the memory files, the handle table and the pidfds, and it starts the
//! broker again when that has died. The broker tells a client nothing before the keeper has stored it. Data never
//! passes through either of them.

mod adopt;
mod attach;
mod background;
mod bias;
mod broker;
mod brokered;
mod connections;
mod counters;
mod death;
mod direct_rules;
mod doorbells;
mod entries;
mod host_memory;
mod keeper;
mod limits;
mod link;
mod lock;
mod log;
mod peer;
mod permissions;
mod process;
mod queue_info;
mod queues;
mod requests;
mod rings;
mod session_queues;
mod sessions;
mod socket;
mod store;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use broker::broker_main;
pub use brokered::check_times;
pub use direct_rules::check as check_direct_rules;
pub use keeper::serve;

/// How the daemon is started.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Where clients connect. A missing directory of this name is created.
    pub socket: PathBuf,
    /// Folder of the journals; locked, so that no second daemon uses it. It must exist. Without it there are no durable
    /// queues.
    pub data_dir: Option<PathBuf>,
    /// How the shards of the brokered plane run.
    pub shards: ShardOptions,
    /// What one user may have.
    pub limits: Limits,
    /// Creates every ring with [`WakeMode::Fence`](ringmain_client::protocol::WakeMode::Fence), as on a kernel without
    /// `membarrier`.
    pub force_no_membarrier: bool,
    /// Identifies peers as on a kernel without `SO_PEERPIDFD` (before Linux 6.5).
    pub force_no_peer_pidfd: bool,
}

impl ServeOptions {
    /// Defaults for a daemon at this socket.
    pub fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            data_dir: None,
            shards: ShardOptions::default(),
            limits: Limits::default(),
            force_no_membarrier: false,
            force_no_peer_pidfd: false,
        }
    }
}

/// How the shards run: one thread for the durable queues, one for the brokered queues in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardOptions {
    /// The CPU of the shard threads. By default they are not pinned on hosts with fewer than four CPUs, and run on the last
    /// CPU that the daemon may use on others.
    pub cpu: Option<usize>,
    /// How the journal writes.
    pub backend: JournalBackend,
    /// Bytes of a journal segment, a multiple of 4096; 64 MiB by default.
    pub segment_bytes: Option<u64>,
}

/// How the journal writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum JournalBackend {
    /// io_uring where it is allowed, else threads that make blocking calls.
    #[default]
    Auto,
    /// io_uring or nothing.
    Uring,
    /// Threads that make blocking calls.
    Blocking,
}

/// What one user may have at a time. The same for root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Queues that the user owns.
    pub queues: u32,
    /// Bytes of shared memory of these queues.
    pub bytes: u64,
    /// Handles of the user's processes on all queues.
    pub handles: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { queues: 1024, bytes: 1 << 30, handles: 4096 }
    }
}

/// Why the daemon did not start, or stopped. The texts are one line and say what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DaemonError {
    /// An option or a path cannot work.
    #[error("{0}")]
    Config(String),
    /// A file or socket operation failed.
    #[error("{0}")]
    Io(String),
    /// A right is missing.
    #[error("{0}")]
    Permission(String),
    /// The journal is damaged.
    #[error("{0}")]
    Data(String),
    /// Another daemon has the socket or the data folder.
    #[error("{what} is in use by another daemon{}: stop it first, or choose another one", pid_text(*.pid))]
    Held {
        /// The socket or the folder.
        what: String,
        /// Its process id, as far as it can be known.
        pid: Option<u32>,
    },
    /// The broker cannot be started or has lost its keeper.
    #[error("{0}")]
    Unavailable(String),
}

fn pid_text(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (pid {pid})"))
}

impl DaemonError {
    /// Exit code of the process, as in `sysexits.h`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => 78,
            Self::Data(_) => 65,
            Self::Io(_) => 74,
            Self::Permission(_) => 77,
            Self::Held { .. } => 73,
            Self::Unavailable(_) => 69,
        }
    }

    /// An I/O error, told apart by its kind: what a missing right says is how to get it.
    fn io(what: impl std::fmt::Display, error: &std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::PermissionDenied => Self::Permission(format!(
                "{what}: {error}; run as a user who may write there, or choose another path"
            )),
            std::io::ErrorKind::ReadOnlyFilesystem => {
                Self::Config(format!("{what}: {error}; choose a path that can be written"))
            }
            _ => Self::Io(format!("{what}: {error}")),
        }
    }
}
