//! Whole reads and writes out of system calls that may do less.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::{BLOCK_BYTES, Buffer, SyncMode};

/// How often the kernel may say "not now" to one operation: it never should, and a caller must not hang when it does.
const TRIES: u32 = 1000;

/// The kernel's own limit for one call is a little below 2 GiB.
pub(super) const CALL_BYTES: usize = 1 << 30;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write,
}

/// How far one operation is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Progress {
    /// Bytes, whole blocks.
    pub(super) done: usize,
    tries: u32,
}

/// What to do after a call.
#[derive(Debug)]
pub(super) enum Step {
    Finished,
    /// Call again for what is missing.
    Again,
    Failed(io::Error),
}

impl Progress {
    /// Counts in what a call returned: bytes or errno. `length` is the whole operation's.
    ///
    /// What was written of a block that is not whole is written again: direct I/O goes by blocks, and the bytes are the same.
    pub(super) fn advance(
        &mut self,
        result: Result<usize, i32>,
        length: usize,
        direction: Direction,
    ) -> Step {
        let bytes = match result {
            Err(libc::EINTR | libc::EAGAIN) if self.tries < TRIES => {
                self.tries += 1;
                return Step::Again;
            }
            Err(errno) => return Step::Failed(io::Error::from_raw_os_error(errno)),
            Ok(bytes) => bytes,
        };
        let reached = self.done.saturating_add(bytes);
        if reached >= length {
            self.done = length;
            return Step::Finished;
        }
        let whole = reached / BLOCK_BYTES * BLOCK_BYTES;
        if whole == self.done {
            return Step::Failed(io::Error::from(match direction {
                Direction::Read => io::ErrorKind::UnexpectedEof,
                Direction::Write => io::ErrorKind::WriteZero,
            }));
        }
        self.done = whole;
        Step::Again
    }

    /// Whether a sync may be tried again: only when it was not tried at all.
    pub(super) fn retry_sync(&mut self, errno: i32) -> bool {
        self.tries += 1;
        matches!(errno, libc::EINTR | libc::EAGAIN | libc::ECANCELED) && self.tries < TRIES
    }
}

/// Fills the buffer.
pub(super) fn read(file: &File, offset: u64, buffer: &mut Buffer) -> io::Result<()> {
    let length = buffer.len();
    let mut progress = Progress::default();
    loop {
        let rest = &mut buffer[progress.done..];
        let place = place(offset, progress.done)?;
        // SAFETY: the pointer and the length are those of a mutably borrowed slice.
        let read = unsafe {
            libc::pread(
                file.as_raw_fd(),
                rest.as_mut_ptr().cast(),
                rest.len().min(CALL_BYTES),
                place,
            )
        };
        match progress.advance(returned(read), length, Direction::Read) {
            Step::Finished => return Ok(()),
            Step::Again => {}
            Step::Failed(error) => return Err(error),
        }
    }
}

/// Writes the buffer; with a mode, durably.
pub(super) fn write(
    file: &File,
    offset: u64,
    buffer: &[u8],
    durable: Option<SyncMode>,
) -> io::Result<()> {
    let flags = if durable == Some(SyncMode::Dsync) { libc::RWF_DSYNC } else { 0 };
    let mut progress = Progress::default();
    loop {
        let rest = &buffer[progress.done..];
        let place = place(offset, progress.done)?;
        let part = libc::iovec {
            iov_base: rest.as_ptr().cast_mut().cast(),
            iov_len: rest.len().min(CALL_BYTES),
        };
        // SAFETY: one iovec over a borrowed slice, which the call only reads from.
        let written = unsafe {
            if flags == 0 {
                libc::pwrite(file.as_raw_fd(), part.iov_base, part.iov_len, place)
            } else {
                libc::pwritev2(file.as_raw_fd(), &raw const part, 1, place, flags)
            }
        };
        match progress.advance(returned(written), buffer.len(), Direction::Write) {
            Step::Finished => break,
            Step::Again => {}
            Step::Failed(error) => return Err(error),
        }
    }
    if durable == Some(SyncMode::Fdatasync) { file.sync_data() } else { Ok(()) }
}

fn place(offset: u64, done: usize) -> io::Result<i64> {
    let place = offset.checked_add(done as u64).and_then(|place| i64::try_from(place).ok());
    place.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
}

fn returned(value: isize) -> Result<usize, i32> {
    usize::try_from(value)
        .map_err(|_| io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: usize = 4 * BLOCK_BYTES;

    fn advance(progress: &mut Progress, result: Result<usize, i32>) -> Step {
        progress.advance(result, LENGTH, Direction::Write)
    }

    #[test]
    fn short_calls_go_on_at_a_whole_block() {
        let mut progress = Progress::default();
        assert!(matches!(advance(&mut progress, Ok(BLOCK_BYTES + 700)), Step::Again));
        assert_eq!(progress.done, BLOCK_BYTES);
        assert!(matches!(advance(&mut progress, Ok(2 * BLOCK_BYTES)), Step::Again));
        assert!(matches!(advance(&mut progress, Ok(BLOCK_BYTES)), Step::Finished));
    }

    #[test]
    fn no_progress_is_an_error() {
        for bytes in [0, 1, BLOCK_BYTES - 1] {
            let Step::Failed(error) = advance(&mut Progress::default(), Ok(bytes)) else {
                panic!("{bytes} bytes are no progress");
            };
            assert_eq!(error.kind(), io::ErrorKind::WriteZero);
        }
        let end = Progress::default().advance(Ok(0), LENGTH, Direction::Read);
        assert!(matches!(end, Step::Failed(error) if error.kind() == io::ErrorKind::UnexpectedEof));
    }

    #[test]
    fn interruptions_are_repeated_but_not_for_ever() {
        let mut progress = Progress::default();
        for _ in 0..TRIES {
            assert!(matches!(advance(&mut progress, Err(libc::EINTR)), Step::Again));
        }
        let end = advance(&mut progress, Err(libc::EAGAIN));
        assert!(matches!(end, Step::Failed(error) if error.raw_os_error() == Some(libc::EAGAIN)));
    }

    #[test]
    fn errors_of_the_disk_are_final() {
        for errno in [libc::EIO, libc::ENOSPC, libc::EDQUOT] {
            let end = advance(&mut Progress::default(), Err(errno));
            assert!(matches!(end, Step::Failed(error) if error.raw_os_error() == Some(errno)));
            assert!(!Progress::default().retry_sync(errno));
        }
        assert!(Progress::default().retry_sync(libc::ECANCELED));
    }
}
