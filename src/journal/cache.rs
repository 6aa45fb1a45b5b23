//! Batches in memory: the ones written lately, in the very buffers they were written from, and the ones read lately.
//!
//! Each of the two has a part of the memory for itself, so that somebody who replays an old backlog does not drive out what all others
//! are about to get.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};

use crate::disk::{BLOCK_BYTES, Buffer};

/// Segment and first block.
type Key = (u64, u32);

/// Free buffers beyond this many are given back to the allocator when the cache itself is full.
const POOL: usize = 16;

/// Small batches that lie one behind the other share memory of this many bytes.
const SHARED_BYTES: usize = 16 * BLOCK_BYTES;

/// What is read takes at most this share of the memory: a quarter.
const READ_SHARE: usize = 4;
/// But never less than this: what was read must still be there when those who wait for it are served.
const READ_BYTES_MIN: usize = 4 << 20;

/// How batches came here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// They were written.
    Written,
    /// They were read from the disk.
    Read,
}

/// One or several whole, verified batches that lie one behind the other.
#[derive(Debug)]
struct Region {
    buffer: Buffer,
    blocks: u32,
    origin: Origin,
}

/// Where a batch is that is in memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Near {
    place: usize,
    offset: usize,
    /// How it came here.
    pub(super) origin: Origin,
}

/// The regions of one origin.
#[derive(Debug, Default)]
struct Part {
    /// Oldest first; may name what is gone.
    order: VecDeque<Key>,
    regions: usize,
    bytes: usize,
    limit: usize,
    /// Memory that is used again.
    pool: Vec<Buffer>,
}

#[derive(Debug)]
pub(super) struct Cache {
    /// Places in `places`.
    regions: BTreeMap<Key, usize>,
    places: Vec<Option<Region>>,
    free: Vec<usize>,
    /// The region that was found last: most ask for what lies beside what was asked for before.
    last: Cell<Option<(Key, usize)>>,
    written: Part,
    read: Part,
    staging_bytes: usize,
    /// The region that the next small batch may be put into.
    shared: Option<Key>,
    /// Bytes of all that was ever read.
    bytes_read: u64,
}

impl Cache {
    pub(super) fn new(limit: usize, staging_bytes: usize) -> Self {
        let read = limit / READ_SHARE;
        Self::of_parts(limit - read, read.max(READ_BYTES_MIN), staging_bytes)
    }

    fn of_parts(written: usize, read: usize, staging_bytes: usize) -> Self {
        Self {
            regions: BTreeMap::new(),
            places: Vec::new(),
            free: Vec::new(),
            last: Cell::new(None),
            written: Part { limit: written, ..Part::default() },
            read: Part { limit: read, ..Part::default() },
            staging_bytes,
            shared: None,
            bytes_read: 0,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.written.bytes + self.read.bytes
    }

    /// How much may be read ahead of those who will ask for it: the other half is for those who wait already.
    pub(super) fn ahead_bytes_max(&self) -> usize {
        self.read.limit / 2
    }

    /// How much of what was read is kept.
    pub(super) fn read_bytes_max(&self) -> usize {
        self.read.limit
    }

    /// Bytes of all that was ever read.
    pub(super) fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// Memory for a new batch. Its content is whatever was there.
    pub(super) fn staging(&mut self) -> Buffer {
        self.written.pool.pop().unwrap_or_else(|| Buffer::new(self.staging_bytes))
    }

    /// Memory to read into. Its content is whatever was there.
    pub(super) fn for_reading(&mut self, bytes: usize) -> Buffer {
        let fits = |buffer: &Buffer| (bytes..=2 * bytes).contains(&buffer.capacity());
        match self.read.pool.iter().position(fits) {
            Some(at) => {
                let mut buffer = self.read.pool.swap_remove(at);
                buffer.set_length(bytes);
                buffer
            }
            None => Buffer::new(bytes),
        }
    }

    /// Takes memory for batches back: as much of it is kept as the cache may hold, because new memory is slow the first time.
    pub(super) fn recycle(&mut self, buffer: Buffer) {
        let capacity = self.staging_bytes.next_multiple_of(BLOCK_BYTES);
        let part = &mut self.written;
        let kept = part.pool.len() * capacity;
        let has_room = part.pool.len() < POOL || part.bytes + kept + capacity <= part.limit;
        if has_room && buffer.capacity() == capacity {
            part.pool.push(buffer);
        }
    }

    /// Keeps verified batches; the buffer is as long as they are.
    pub(super) fn insert(&mut self, segment: u64, block: u32, buffer: Buffer, origin: Origin) {
        let key = (segment, block);
        if origin == Origin::Read {
            self.bytes_read += buffer.len() as u64;
        }
        // A small batch must not hold a large buffer.
        let is_small = buffer.capacity() > 4 * buffer.len();
        match origin {
            Origin::Written if is_small => {
                self.insert_shared(key, &buffer);
                self.recycle(buffer);
            }
            Origin::Read if is_small => {
                self.insert_region(key, copy_of(&buffer, buffer.len()), origin);
                self.take_back(buffer, origin);
            }
            _ => self.insert_region(key, buffer, origin),
        }
    }

    /// Copies a small batch behind the one that lies before it, if that has room: whoever waits for a confirmation waits for
    /// this, too, and a buffer for each batch would be new memory for each.
    fn insert_shared(&mut self, key: Key, batch: &[u8]) {
        if let Some(place) = self.shared
            && let Some(region) = self.regions.get(&place).and_then(|at| self.places[*at].as_mut())
            && region.origin == Origin::Written
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
        self.insert_region(key, copy_of(batch, SHARED_BYTES), Origin::Written);
        self.shared = Some(key);
    }

    fn insert_region(&mut self, key: Key, buffer: Buffer, origin: Origin) {
        let blocks = blocks(&buffer);
        let part = self.part(origin);
        part.bytes += buffer.capacity();
        part.regions += 1;
        part.order.push_back(key);
        self.remove(key);
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        self.places[place] = Some(Region { buffer, blocks, origin });
        self.regions.insert(key, place);
        while self.part(origin).is_over() {
            let Some(oldest) = self.part(origin).order.pop_front() else { break };
            let is_mine = |at: &usize| {
                self.places[*at].as_ref().is_some_and(|region| region.origin == origin)
            };
            if self.regions.get(&oldest).is_some_and(is_mine) {
                self.remove(oldest);
            }
        }
    }

    fn remove(&mut self, key: Key) {
        let Some(place) = self.regions.remove(&key) else { return };
        self.last.set(None);
        self.free.push(place);
        if let Some(region) = self.places[place].take() {
            self.drop_region(region);
        }
    }

    fn part(&mut self, origin: Origin) -> &mut Part {
        match origin {
            Origin::Written => &mut self.written,
            Origin::Read => &mut self.read,
        }
    }

    fn take_back(&mut self, buffer: Buffer, origin: Origin) {
        match origin {
            Origin::Written => self.recycle(buffer),
            Origin::Read if self.read.pool.len() < POOL => self.read.pool.push(buffer),
            Origin::Read => {}
        }
    }

    fn drop_region(&mut self, region: Region) {
        let part = self.part(region.origin);
        part.bytes -= region.buffer.capacity();
        part.regions -= 1;
        self.take_back(region.buffer, region.origin);
    }

    /// From the beginning of a batch on.
    pub(super) fn get(&self, segment: u64, block: u32) -> Option<&[u8]> {
        self.find(segment, block).map(|found| self.bytes_of(found))
    }

    /// Where a batch is.
    #[inline]
    pub(super) fn find(&self, segment: u64, block: u32) -> Option<Near> {
        let last = self.last.get().filter(|(key, _)| key.0 == segment && key.1 <= block);
        if let Some(found) = last.and_then(|(key, place)| self.within(key, place, block)) {
            return Some(found);
        }
        let (&key, &place) = self.regions.range(..=(segment, block)).next_back()?;
        let found = (key.0 == segment).then(|| self.within(key, place, block)).flatten()?;
        self.last.set(Some((key, place)));
        Some(found)
    }

    #[inline]
    fn within(&self, key: Key, place: usize, block: u32) -> Option<Near> {
        let region = self.places.get(place)?.as_ref()?;
        let blocks = block - key.1;
        let offset = blocks as usize * BLOCK_BYTES;
        (blocks < region.blocks).then_some(Near { place, offset, origin: region.origin })
    }

    /// From the beginning of a batch on that was found since the last change.
    #[inline]
    pub(super) fn bytes_of(&self, near: Near) -> &[u8] {
        let region = self.places.get(near.place).and_then(Option::as_ref);
        region.and_then(|region| region.buffer.get(near.offset..)).unwrap_or_default()
    }

    pub(super) fn remove_segment(&mut self, segment: u64) {
        let keys: Vec<Key> =
            self.regions.range((segment, 0)..=(segment, u32::MAX)).map(|(key, _)| *key).collect();
        for key in keys {
            self.remove(key);
        }
        for part in [&mut self.written, &mut self.read] {
            part.order.retain(|key| key.0 != segment);
        }
    }
}

impl Part {
    /// One region may be larger than all that is allowed.
    fn is_over(&self) -> bool {
        self.bytes > self.limit && self.regions > 1
    }
}

fn blocks(batches: &[u8]) -> u32 {
    u32::try_from(batches.len() / BLOCK_BYTES).unwrap_or(u32::MAX)
}

/// In memory of at least so many bytes.
fn copy_of(batches: &[u8], capacity: usize) -> Buffer {
    let mut buffer = Buffer::new(capacity.max(batches.len()));
    buffer.set_length(batches.len());
    buffer.copy_from_slice(batches);
    buffer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_youngest_and_finds_batches_within_regions() {
        let mut cache = Cache::of_parts(4 * BLOCK_BYTES, 0, BLOCK_BYTES);
        let mut two = Buffer::new(2 * BLOCK_BYTES);
        two[BLOCK_BYTES] = 7;
        cache.insert(1, 0, two, Origin::Written);
        assert_eq!(cache.get(1, 1).map(|batch| (batch.len(), batch[0])), Some((BLOCK_BYTES, 7)));
        assert!(cache.get(1, 2).is_none() && cache.get(2, 0).is_none());
        cache.insert(1, 2, Buffer::new(2 * BLOCK_BYTES), Origin::Written);
        cache.insert(2, 0, Buffer::new(BLOCK_BYTES), Origin::Written);
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
        cache.insert(1, 0, buffer, Origin::Written);
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
            cache.insert(segment, block, buffer, Origin::Written);
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

    #[test]
    fn what_is_read_does_not_drive_out_what_was_written() {
        let mut cache = Cache::of_parts(12 * BLOCK_BYTES, 4 * BLOCK_BYTES, BLOCK_BYTES);
        for block in 0..12 {
            cache.insert(9, block, Buffer::new(BLOCK_BYTES), Origin::Written);
        }
        for block in 0..100 {
            cache.insert(1, block, Buffer::new(BLOCK_BYTES), Origin::Read);
        }
        assert!((0..12).all(|block| cache.get(9, block).is_some()));
        assert_eq!(cache.bytes(), 16 * BLOCK_BYTES);
        assert!(cache.get(1, 95).is_none() && cache.get(1, 96).is_some());
        // The same batches may come both ways.
        cache.insert(9, 0, Buffer::new(BLOCK_BYTES), Origin::Read);
        assert_eq!(cache.bytes(), 15 * BLOCK_BYTES);
        cache.remove_segment(9);
        cache.remove_segment(1);
        assert_eq!(cache.bytes(), 0);
    }
}
