//! Numbers that are never given out twice, not even by different brokers.
//!
//! They are reserved in blocks: what is stored is always ahead of what is in use, so most numbers cost no message to
//! the keeper, and a restart skips the rest of a block.

use super::entries::{CountersEntry, Key, encode};
use super::link::{Item, KeeperLink, LinkLost};

const BLOCK: u32 = 1024;

#[derive(Debug, Clone, Copy)]
pub(super) struct Counters {
    next: CountersEntry,
    /// Numbers below these may be given out.
    reserved: CountersEntry,
}

impl Counters {
    /// Goes on after a broker that had reserved this much.
    pub(super) fn after(stored: Option<CountersEntry>) -> Self {
        let first = CountersEntry { session: 1, queue: 1, doorbell: 1, epoch: 1 };
        let next = stored.unwrap_or(first);
        Self { next, reserved: next }
    }

    pub(super) fn session(&mut self, keeper: &mut KeeperLink) -> Result<u64, LinkLost> {
        self.reserve(keeper, self.next.session >= self.reserved.session)?;
        self.next.session += 1;
        Ok(self.next.session - 1)
    }

    pub(super) fn queue(&mut self, keeper: &mut KeeperLink) -> Result<u64, LinkLost> {
        self.reserve(keeper, self.next.queue >= self.reserved.queue)?;
        self.next.queue += 1;
        Ok(self.next.queue - 1)
    }

    /// Numbers below this one were given to queues by somebody else.
    pub(super) fn skip_queues(&mut self, next: u64) {
        self.next.queue = self.next.queue.max(next);
    }

    /// `None` after four thousand million doorbells.
    pub(super) fn doorbell(&mut self, keeper: &mut KeeperLink) -> Result<Option<u32>, LinkLost> {
        self.reserve(keeper, self.next.doorbell >= self.reserved.doorbell)?;
        if self.next.doorbell >= self.reserved.doorbell {
            return Ok(None);
        }
        self.next.doorbell += 1;
        Ok(Some(self.next.doorbell - 1))
    }

    /// Starts again at 1 after four thousand million handles: it only tells apart successive users of one index.
    pub(super) fn epoch(&mut self, keeper: &mut KeeperLink) -> Result<u32, LinkLost> {
        if self.next.epoch == u32::MAX {
            self.next.epoch = 1;
            self.reserved.epoch = 1;
        }
        self.reserve(keeper, self.next.epoch >= self.reserved.epoch)?;
        self.next.epoch += 1;
        Ok(self.next.epoch - 1)
    }

    fn reserve(&mut self, keeper: &mut KeeperLink, needed: bool) -> Result<(), LinkLost> {
        if !needed {
            return Ok(());
        }
        let reserved = CountersEntry {
            session: self.next.session + u64::from(BLOCK),
            queue: self.next.queue + u64::from(BLOCK),
            doorbell: self.next.doorbell.saturating_add(BLOCK),
            epoch: self.next.epoch.saturating_add(BLOCK),
        };
        let item = Item { key: Key::Counters.bytes(), bytes: encode(&reserved), descriptors: 0 };
        keeper.apply(Vec::new(), vec![item])?;
        self.reserved = reserved;
        Ok(())
    }
}
