//! Batches in memory: the ones written lately, in the very buffers they were written from, and the ones read lately.

use std::collections::{BTreeMap, VecDeque};

use crate::disk::{BLOCK_BYTES, Buffer};

/// Segment and first block.
type Key = (u64, u32);

/// Buffers beyond this many are given back to the allocator.
const POOL: usize = 16;

/// One or several whole, verified batches that lie one behind the other.
#[derive(Debug)]
struct Region {
    buffer: Buffer,
    blocks: u32,
}

#[derive(Debug)]
pub(super) struct Cache {
    regions: BTreeMap<Key, Region>,
    /// Oldest first; may name what is gone.
    order: VecDeque<Key>,
    bytes: usize,
    limit: usize,
    pool: Vec<Buffer>,
    staging_bytes: usize,
}

impl Cache {
    pub(super) fn new(limit: usize, staging_bytes: usize) -> Self {
        Self {
            regions: BTreeMap::new(),
            order: VecDeque::new(),
            bytes: 0,
            limit,
            pool: Vec::new(),
            staging_bytes,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Memory for a new batch. Its content is whatever was there.
    pub(super) fn staging(&mut self) -> Buffer {
        self.pool.pop().unwrap_or_else(|| Buffer::new(self.staging_bytes))
    }

    /// Takes memory back.
    pub(super) fn recycle(&mut self, buffer: Buffer) {
        if self.pool.len() < POOL
            && buffer.capacity() == self.staging_bytes.next_multiple_of(BLOCK_BYTES)
        {
            self.pool.push(buffer);
        }
    }

    /// Keeps verified batches; the buffer is as long as they are.
    pub(super) fn insert(&mut self, segment: u64, block: u32, buffer: Buffer) {
        // A small batch must not hold a large buffer.
        let buffer = if buffer.capacity() > 4 * buffer.len() {
            let mut exact = Buffer::new(buffer.len());
            exact.copy_from_slice(&buffer);
            self.recycle(buffer);
            exact
        } else {
            buffer
        };
        let blocks = u32::try_from(buffer.len() / BLOCK_BYTES).unwrap_or(u32::MAX);
        self.bytes += buffer.capacity();
        match self.regions.insert((segment, block), Region { buffer, blocks }) {
            Some(old) => self.drop_region(old),
            None => self.order.push_back((segment, block)),
        }
        while self.bytes > self.limit && self.regions.len() > 1 {
            let Some(oldest) = self.order.pop_front() else { break };
            if let Some(old) = self.regions.remove(&oldest) {
                self.drop_region(old);
            }
        }
    }

    fn drop_region(&mut self, region: Region) {
        self.bytes -= region.buffer.capacity();
        self.recycle(region.buffer);
    }

    /// From the beginning of a batch on.
    pub(super) fn get(&self, segment: u64, block: u32) -> Option<&[u8]> {
        let (key, region) = self.regions.range(..=(segment, block)).next_back()?;
        if key.0 != segment || block - key.1 >= region.blocks {
            return None;
        }
        region.buffer.get((block - key.1) as usize * BLOCK_BYTES..)
    }

    pub(super) fn remove_segment(&mut self, segment: u64) {
        let keys: Vec<Key> =
            self.regions.range((segment, 0)..=(segment, u32::MAX)).map(|(key, _)| *key).collect();
        for key in keys {
            if let Some(region) = self.regions.remove(&key) {
                self.drop_region(region);
            }
        }
        self.order.retain(|key| key.0 != segment);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_youngest_and_finds_batches_within_regions() {
        let mut cache = Cache::new(4 * BLOCK_BYTES, BLOCK_BYTES);
        let mut two = Buffer::new(2 * BLOCK_BYTES);
        two[BLOCK_BYTES] = 7;
        cache.insert(1, 0, two);
        assert_eq!(cache.get(1, 1).map(|batch| (batch.len(), batch[0])), Some((BLOCK_BYTES, 7)));
        assert!(cache.get(1, 2).is_none() && cache.get(2, 0).is_none());
        cache.insert(1, 2, Buffer::new(2 * BLOCK_BYTES));
        cache.insert(2, 0, Buffer::new(BLOCK_BYTES));
        assert!(cache.get(1, 0).is_none(), "the oldest is gone");
        assert!(cache.get(1, 3).is_some() && cache.get(2, 0).is_some());
        cache.remove_segment(1);
        assert_eq!(cache.bytes(), BLOCK_BYTES);
    }

    #[test]
    fn a_small_batch_gives_its_large_buffer_back() {
        let mut cache = Cache::new(1 << 20, 64 * BLOCK_BYTES);
        let mut buffer = cache.staging();
        buffer[5] = 5;
        buffer.set_length(BLOCK_BYTES);
        cache.insert(1, 0, buffer);
        assert_eq!(cache.bytes(), BLOCK_BYTES);
        assert_eq!(cache.get(1, 0).map(|batch| batch[5]), Some(5));
        assert_eq!(cache.staging().capacity(), 64 * BLOCK_BYTES);
    }
}
