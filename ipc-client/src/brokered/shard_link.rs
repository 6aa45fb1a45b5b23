//! How a client tells a shard that there is something for it. See [`crate::pair`] for why no wake-up is lost.

use std::cell::Cell;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use nix::sys::stat::fstat;

use crate::client::ClientError;
use crate::client::internal::{Inner, descriptor_of, map_verified};
use crate::layout::pair::{link, shard_page};
use crate::pair::{Link, ShardPage};
use crate::protocol::{Attached, Memory};
use crate::ring::{Kernel, Region};
use crate::sys::eventfd::EventFd;
use crate::sys::fork::ForkMark;
use crate::sys::kernel::HostKernel;
use crate::sys::map::{Access, Mapping};

/// Link, page and eventfd of one session and shard: all handles share them.
#[derive(Debug)]
pub(crate) struct ShardLink {
    identity: Identity,
    bell: EventFd,
    mark: ForkMark,
    mappings: ManuallyDrop<Mappings>,
}

#[derive(Debug)]
struct Mappings {
    link: Mapping,
    page: Mapping,
}

/// Which files these are. Another daemon has others.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Identity {
    shard: u32,
    link: (u64, u64),
    page: (u64, u64),
    /// As the kernel numbers eventfds; empty where it does not.
    bell: String,
}

/// The shards that handles of one client use.
#[derive(Debug, Default)]
pub(crate) struct ShardLinks {
    known: Mutex<Vec<Weak<ShardLink>>>,
}

impl ShardLinks {
    /// The link that came with a handle: one that another handle has mapped already, or a new one.
    fn take(
        &self,
        attached: &Attached,
        shard: u32,
        descriptors: &[OwnedFd],
        mark: ForkMark,
    ) -> Result<Arc<ShardLink>, ClientError> {
        let link = descriptor_of(attached, descriptors, Memory::Link)?;
        let page = descriptor_of(attached, descriptors, Memory::ShardPage)?;
        let bell = descriptor_of(attached, descriptors, Memory::ShardBell)?;
        let identity = Identity {
            shard,
            link: file_number(link)?,
            page: file_number(page)?,
            bell: eventfd_number(bell),
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|weak| weak.strong_count() != 0);
        let same = known.iter().find_map(|weak| {
            weak.upgrade().filter(|link| !identity.bell.is_empty() && link.identity == identity)
        });
        if let Some(same) = same {
            return Ok(same);
        }
        let mappings = Mappings {
            link: map_verified(link, Memory::Link, link::BYTES, Access::ReadWrite)?,
            page: map_verified(page, Memory::ShardPage, shard_page::BYTES, Access::ReadOnly)?,
        };
        let bell = EventFd::from_descriptor(bell.try_clone_to_owned()?)
            .map_err(|error| ClientError::Protocol(format!("ShardBell: {error}")))?;
        let mappings = ManuallyDrop::new(mappings);
        let new = Arc::new(ShardLink { identity, bell, mark, mappings });
        known.push(Arc::downgrade(&new));
        Ok(new)
    }
}

impl Drop for ShardLink {
    fn drop(&mut self) {
        if !self.mark.is_forked() {
            // SAFETY: dropped once, here; the ends that use the mappings hold the link.
            unsafe { ManuallyDrop::drop(&mut self.mappings) };
        }
    }
}

/// One handle's way to its shard.
#[derive(Debug)]
pub(super) struct ShardEnd {
    // Before the link, which owns the mappings.
    ready: Link,
    page: ShardPage,
    ready_index: u32,
    /// The sleep that this handle has rung for last.
    rung_for: Cell<u32>,
    link: Arc<ShardLink>,
}

impl ShardEnd {
    pub(super) fn new(
        client: &Inner,
        attached: &Attached,
        shard: u32,
        ready_index: u32,
        descriptors: &[OwnedFd],
    ) -> Result<Self, ClientError> {
        let protocol = |text: String| ClientError::Protocol(text);
        if ready_index as usize >= link::HANDLES_MAX {
            return Err(protocol(format!("READY word {ready_index}")));
        }
        let link = client.shard_links.take(attached, shard, descriptors, client.mark())?;
        let region = |mapping: &Mapping| {
            // SAFETY: page-aligned, of this length, sealed; this end keeps the mapping longer than the region. The page is only
            // read, see `ShardPage`.
            unsafe { Region::new(mapping.base(), mapping.len()) }
        };
        let ready = Link::new(region(&link.mappings.link));
        let page = ShardPage::new(region(&link.mappings.page));
        match (ready, page) {
            (Some(ready), Some(page)) => {
                Ok(Self { ready, page, ready_index, rung_for: Cell::new(0), link })
            }
            _ => Err(protocol("link or shard page too short".to_owned())),
        }
    }

    /// After publishing into `up`, or after releasing slots of `down` that the shard waits for: steps b to e.
    #[inline(always)]
    pub(super) fn notify(&self, kernel: &HostKernel) {
        self.ready.set_ready(self.ready_index);
        kernel.light_barrier();
        let sleep = self.page.sleep();
        if sleep != 0 && sleep != self.rung_for.get() {
            self.ring(sleep);
        }
    }

    #[cold]
    #[inline(never)]
    fn ring(&self, sleep: u32) {
        self.link.bell.signal();
        self.rung_for.set(sleep);
    }

    /// The errno, if the journal of the shard failed.
    #[inline(always)]
    pub(super) fn failed(&self) -> Option<i32> {
        self.page.failed().map(|(errno, _)| errno)
    }
}

fn file_number(descriptor: BorrowedFd<'_>) -> Result<(u64, u64), ClientError> {
    let status = fstat(descriptor).map_err(io::Error::from)?;
    Ok((status.st_dev, status.st_ino))
}

/// All eventfds are one file to `fstat`; the kernel tells them apart in `fdinfo`.
fn eventfd_number(descriptor: BorrowedFd<'_>) -> String {
    let path = format!("/proc/self/fdinfo/{}", descriptor.as_raw_fd());
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("eventfd-id:"));
    line.map(str::to_owned).unwrap_or_default()
}
