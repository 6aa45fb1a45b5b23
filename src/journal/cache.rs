//! Batches in memory: the ones written lately, in the very buffers they were written from, and the ones read lately.

use std::collections::{BTreeMap, VecDeque};

use crate::disk::{BLOCK_BYTES, Buffer};

/// Segment and first block.
type Key = (u64, u32);

/// Free buffers beyond this many are given back to the allocator when the cache itself is full.
const POOL: usize = 16;

/// Small batches that lie one behind the other share memory of this many bytes.
const SHARED_BYTES: usize = 16 * BLOCK_BYTES;

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
    /// The region that the next small batch may be put into.
    shared: Option<Key>,
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
            shared: None,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Memory for a new batch. Its content is whatever was there.
    pub(super) fn staging(&mut self) -> Buffer {
        self.pool.pop().unwrap_or_else(|| Buffer::new(self.staging_bytes))
    }

    /// Takes memory back: as much of it is kept as the cache may hold, because new memory is slow the first time.
    pub(super) fn recycle(&mut self, buffer: Buffer) {
        let capacity = self.staging_bytes.next_multiple_of(BLOCK_BYTES);
        let kept = self.pool.len() * capacity;
        let has_room = self.pool.len() < POOL || self.bytes + kept + capacity <= self.limit;
        if has_room && buffer.capacity() == capacity {
            self.pool.push(buffer);
        }
    }

    /// Keeps verified batches; the buffer is as long as they are.
    pub(super) fn insert(&mut self, segment: u64, block: u32, buffer: Buffer) {
        // A small batch must not hold a large buffer.
        if buffer.capacity() > 4 * buffer.len() {
            self.insert_shared((segment, block), &buffer);
            self.recycle(buffer);
        } else {
            self.insert_region((segment, block), buffer);
        }
    }

    /// Copies a small batch behind the one that lies before it, if that has room: whoever waits for a confirmation waits for
    /// this, too, and a buffer for each batch would be new memory for each.
    fn insert_shared(&mut self, key: Key, batch: &[u8]) {
        if let Some(place) = self.shared
            && let Some(region) = self.regions.get_mut(&place)
            && place.0 == key.0
            && place.1 + region.blocks == key.1
            && region.buffer.len() + batch.len() <= region.buffer.capacity()
        {
            let begin = region.buffer.len();
            region.buffer.set_length(begin + batch.len());
            region.buffer[begin..].copy_from_slice(batch);
            region.blocks += blocks(batch);
            return;
        }
        let mut buffer = Buffer::new(SHARED_BYTES.max(batch.len()));
        buffer.set_length(batch.len());
        buffer.copy_from_slice(batch);
        self.insert_region(key, buffer);
        self.shared = Some(key);
    }

    fn insert_region(&mut self, key: Key, buffer: Buffer) {
        let blocks = blocks(&buffer);
        self.bytes += buffer.capacity();
        match self.regions.insert(key, Region { buffer, blocks }) {
            Some(old) => self.drop_region(old),
            None => self.order.push_back(key),
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

fn blocks(batches: &[u8]) -> u32 {
    u32::try_from(batches.len() / BLOCK_BYTES).unwrap_or(u32::MAX)
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
        let mut cache = Cache::new(1 << 20, 256 * BLOCK_BYTES);
        let mut buffer = cache.staging();
        buffer[5] = 5;
        buffer.set_length(BLOCK_BYTES);
        cache.insert(1, 0, buffer);
        assert_eq!(cache.bytes(), SHARED_BYTES);
        assert_eq!(cache.get(1, 0).map(|batch| batch[5]), Some(5));
        assert_eq!(cache.staging().capacity(), 256 * BLOCK_BYTES);
    }

    #[test]
    fn small_batches_share_memory_as_long_as_they_are_neighbours() {
        let mut cache = Cache::new(1 << 20, 256 * BLOCK_BYTES);
        let put = |cache: &mut Cache, segment, block, value| {
            let mut buffer = cache.staging();
            buffer.set_length(2 * BLOCK_BYTES);
            buffer.fill(value);
            cache.insert(segment, block, buffer);
        };
        let blocks = 2 * u32::try_from(SHARED_BYTES / BLOCK_BYTES).unwrap();
        for block in (0..blocks).step_by(2) {
            put(&mut cache, 1, block, u8::try_from(block).unwrap());
        }
        assert_eq!((cache.bytes(), cache.regions.len()), (2 * SHARED_BYTES, 2));
        // A gap, another segment.
        put(&mut cache, 1, blocks + 1, 101);
        put(&mut cache, 2, blocks + 3, 102);
        assert_eq!(cache.regions.len(), 4);
        let first = |segment, block| cache.get(segment, block).map(|batch| batch[0]);
        for block in (0..blocks).step_by(2) {
            assert_eq!(first(1, block), Some(u8::try_from(block).unwrap()));
        }
        assert_eq!((first(1, blocks), first(1, blocks + 1)), (None, Some(101)));
        assert_eq!((first(2, blocks + 2), first(2, blocks + 3)), (None, Some(102)));
        cache.remove_segment(1);
        assert_eq!((cache.bytes(), cache.regions.len()), (SHARED_BYTES, 1));
    }
}
