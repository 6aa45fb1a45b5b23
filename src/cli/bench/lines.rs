//! Memory that two processes share without a ring: what the floor is measured with.

use ringmain_client::raw::sync::atomic::{AtomicU32, Ordering};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::thread;

use ringmain_client::raw::layout::PAGE_BYTES;
use ringmain_client::raw::ring::Region;
use ringmain_client::raw::sys::map::{Access, Mapping, Populate};
use ringmain_client::raw::sys::memory;

use crate::cli::exit::{Failure, Outcome};

/// Bytes of a cache line.
pub(crate) const LINE_BYTES: usize = 64;

/// After this many looks without a change a waiting process lets others run: on a host with one processor the peer
/// could not answer otherwise. With a core each, it is never reached.
const LOOKS_MAX: u32 = 1 << 20;

/// Cache lines that a message of this many bytes takes in a ring, its slot's header included.
pub(crate) fn lines_of(message_bytes: usize) -> usize {
    (message_bytes + ringmain_client::raw::layout::slot::BODY).div_ceil(LINE_BYTES)
}

/// The two directions.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Direction {
    /// From the one who measures.
    Out,
    /// To the one who measures.
    Back,
}

/// A memory file with lines for both directions and a futex word for each.
#[derive(Debug)]
pub(crate) struct SharedLines {
    region: Region,
    /// Lines per direction.
    lines: usize,
    // Keeps the region's memory mapped.
    _mapping: Mapping,
}

impl SharedLines {
    /// New memory; the descriptor is for the two processes.
    pub(crate) fn create(lines: usize) -> Outcome<OwnedFd> {
        memory::create_sealed("ringmain-floor", bytes(lines))
            .map_err(|error| Failure::system("make shared memory", error))
    }

    /// Maps memory that [`Self::create`] made.
    pub(crate) fn map(memory: BorrowedFd<'_>, lines: usize) -> Outcome<Self> {
        let fail = |error: &dyn std::fmt::Display| Failure::system("map shared memory", error);
        memory::verify_sealed(memory, bytes(lines)).map_err(|error| fail(&error))?;
        let mapping = Mapping::map(memory, bytes(lines), Access::ReadWrite, Populate::Now)
            .map_err(|error| fail(&error))?;
        // SAFETY: the mapping has this base and length, is page-aligned, writable, sealed against shrinking, and lives
        // as long as the region, which is not cloned out of this struct.
        let region = unsafe { Region::new(mapping.base(), mapping.len()) };
        Ok(Self { region, lines, _mapping: mapping })
    }

    /// Opens the memory behind a descriptor that the parent passed on.
    pub(crate) fn inherit(descriptor: i32, lines: usize) -> Outcome<Self> {
        let path = format!("/proc/self/fd/{descriptor}");
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|error| Failure::file(path.as_ref(), "open", &error))?;
        Self::map(file.as_fd(), lines)
    }

    /// Writes one word of every line, the last line last.
    #[inline]
    pub(crate) fn write(&self, direction: Direction, value: u64) {
        let base = self.base(direction);
        for line in 0..self.lines - 1 {
            // Relaxed: the last line's Release publishes them.
            self.region.u64_at(base + line * LINE_BYTES).store(value, Ordering::Relaxed);
        }
        let last = base + (self.lines - 1) * LINE_BYTES;
        // Release: partner of the Acquire in `wait`.
        self.region.u64_at(last).store(value, Ordering::Release);
    }

    /// Waits until the last line does not hold `old`, reads every line, returns the last line's value.
    #[inline]
    pub(crate) fn wait(&self, direction: Direction, old: u64) -> u64 {
        let base = self.base(direction);
        let last = self.region.u64_at(base + (self.lines - 1) * LINE_BYTES);
        let mut looks = 0;
        let value = loop {
            // Acquire: partner of the Release in `write`.
            let value = last.load(Ordering::Acquire);
            if value != old {
                break value;
            }
            looks += 1;
            if looks == LOOKS_MAX {
                looks = 0;
                thread::yield_now();
            }
        };
        for line in 0..self.lines - 1 {
            // Relaxed: ordered by the Acquire above; black_box, so that the load is not left out.
            std::hint::black_box(
                self.region.u64_at(base + line * LINE_BYTES).load(Ordering::Relaxed),
            );
        }
        value
    }

    /// The word that the receiver of this direction sleeps on.
    pub(crate) fn futex(&self, direction: Direction) -> &AtomicU32 {
        self.region.u32_at(match direction {
            Direction::Out => 0,
            Direction::Back => 1024,
        })
    }

    fn base(&self, direction: Direction) -> usize {
        match direction {
            Direction::Out => PAGE_BYTES,
            Direction::Back => PAGE_BYTES + self.lines.div_ceil(64) * PAGE_BYTES,
        }
    }
}

/// A page for the futex words, then whole pages of lines for each direction.
fn bytes(lines: usize) -> usize {
    PAGE_BYTES * (1 + 2 * lines.div_ceil(PAGE_BYTES / LINE_BYTES))
}

/// The number under which a child finds the memory.
pub(crate) fn number(memory: &OwnedFd) -> i32 {
    memory.as_raw_fd()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_include_the_header() {
        assert_eq!([0, 48, 49, 64, 112, 113].map(lines_of), [1, 1, 2, 2, 2, 3]);
    }

    #[test]
    fn values_go_both_ways() {
        for lines in [1, 2, 65] {
            let memory = SharedLines::create(lines).unwrap();
            let shared = SharedLines::map(memory.as_fd(), lines).unwrap();
            let other = SharedLines::inherit(number(&memory), lines).unwrap();
            shared.write(Direction::Out, 7);
            assert_eq!(other.wait(Direction::Out, 0), 7);
            assert_eq!(
                shared.region.u64_at(shared.base(Direction::Back)).load(Ordering::Relaxed),
                0
            );
            other.write(Direction::Back, 8);
            assert_eq!(shared.wait(Direction::Back, 0), 8);
        }
    }
}
