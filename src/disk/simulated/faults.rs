//! Errors on order.

use std::collections::BTreeMap;
use std::io;

/// A method of a disk, or an operation given to `submit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    /// `list`
    List,
    /// `open`
    Open,
    /// `length`
    Length,
    /// `read`
    Read,
    /// `write`
    Write,
    /// `create`
    Create,
    /// `rename`
    Rename,
    /// `sync`
    Sync,
    /// `sync_directory`
    SyncDirectory,
    /// `Operation::Write`
    BeginWrite,
    /// `Operation::Read`
    BeginRead,
    /// `Operation::Create`
    BeginCreate,
    /// `Operation::Remove`
    BeginRemove,
}

impl Site {
    /// All there are.
    pub const ALL: [Self; 13] = [
        Self::List,
        Self::Open,
        Self::Length,
        Self::Read,
        Self::Write,
        Self::Create,
        Self::Rename,
        Self::Sync,
        Self::SyncDirectory,
        Self::BeginWrite,
        Self::BeginRead,
        Self::BeginCreate,
        Self::BeginRemove,
    ];
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The kernel says this errno; nothing is known to have been done.
    Error(i32),
    /// The first half is read or written, then nothing more.
    Short,
    /// Nothing at all is read or written, without an errno.
    Zero,
}

impl Fault {
    /// Of every kind: EIO, ENOSPC, EINTR, short, zero.
    pub const ALL: [Self; 5] = [
        Self::Error(libc::EIO),
        Self::Error(libc::ENOSPC),
        Self::Error(libc::EINTR),
        Self::Short,
        Self::Zero,
    ];

    pub(super) fn error(self, site: Site) -> io::Error {
        match self {
            Self::Error(errno) => io::Error::from_raw_os_error(errno),
            Self::Short | Self::Zero => {
                let reads = matches!(site, Site::Read | Site::BeginRead);
                let kind =
                    if reads { io::ErrorKind::UnexpectedEof } else { io::ErrorKind::WriteZero };
                io::Error::new(kind, format!("{site:?}: {self:?}"))
            }
        }
    }
}

/// Counts calls and says which ones fail.
#[derive(Debug, Clone, Default)]
pub(super) struct Faults {
    calls: BTreeMap<Site, u64>,
    total: u64,
    at_site: BTreeMap<(Site, u64), Fault>,
    at_call: BTreeMap<u64, Fault>,
    fired: Vec<(Site, u64, Fault)>,
}

impl Faults {
    /// Counts a call.
    pub(super) fn call(&mut self, site: Site) -> Option<Fault> {
        self.total += 1;
        let nth = self.calls.entry(site).or_insert(0);
        *nth += 1;
        let fault =
            self.at_site.remove(&(site, *nth)).or_else(|| self.at_call.remove(&self.total))?;
        self.fired.push((site, *nth, fault));
        Some(fault)
    }

    pub(super) fn plan(&mut self, site: Site, nth: u64, fault: Fault) {
        self.at_site.insert((site, nth), fault);
    }

    pub(super) fn plan_call(&mut self, nth: u64, fault: Fault) {
        self.at_call.insert(nth, fault);
    }

    pub(super) fn calls(&self, site: Site) -> u64 {
        self.calls.get(&site).copied().unwrap_or(0)
    }

    pub(super) fn total(&self) -> u64 {
        self.total
    }

    pub(super) fn fired(&self) -> &[(Site, u64, Fault)] {
        &self.fired
    }
}
