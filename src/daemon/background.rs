//! What takes long and touches nothing of the broker: done on a thread of its own, so that nobody's repair waits for it.
//!
//! Allocating and freeing memory takes the kernel about a quarter of a millisecond for each megabyte.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use nix::sys::signal::SigSet;
use ringmain_client::sys::eventfd::EventFd;

use crate::shard::control::Outbox;

/// Runs `work` on a new thread, or here if there can be none. Signals stay with the main thread.
pub(super) fn run(name: &str, work: impl FnOnce() + Send + 'static) {
    // The closure is handed over in a box that comes back if the thread cannot be started.
    let work = Arc::new(std::sync::Mutex::new(Some(work)));
    let theirs = Arc::clone(&work);
    let take =
        |work: &std::sync::Mutex<Option<_>>| work.lock().ok().and_then(|mut work| work.take());
    let mask = SigSet::all().thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_SETMASK);
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        if let Some(work) = take(&theirs) {
            work();
        }
    });
    if let Ok(mask) = mask {
        let _ = mask.thread_set_mask();
    }
    if started.is_err()
        && let Some(work) = work.lock().ok().and_then(|mut work| work.take())
    {
        work();
    }
}

/// Results of background work, announced through a descriptor that poll(2) can watch.
#[derive(Debug)]
pub(super) struct Results<T> {
    sender: Sender<T>,
    receiver: Receiver<T>,
    bell: Arc<EventFd>,
}

impl<T: Send + 'static> Results<T> {
    pub(super) fn new() -> io::Result<Self> {
        let (sender, receiver) = channel();
        Ok(Self { sender, receiver, bell: Arc::new(EventFd::new()?) })
    }

    /// Readable while there may be a result.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Computes a result in the background.
    pub(super) fn compute(&self, name: &str, work: impl FnOnce() -> T + Send + 'static) {
        let (sender, bell) = (self.sender.clone(), Arc::clone(&self.bell));
        run(name, move || {
            let _ = sender.send(work());
            bell.signal();
        });
    }

    /// For threads that have results of their own accord.
    pub(super) fn outbox(&self) -> Outbox<T> {
        Outbox::new(self.sender.clone(), Arc::clone(&self.bell))
    }

    /// What is there.
    pub(super) fn take(&self) -> Vec<T> {
        self.bell.drain();
        self.receiver.try_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    #[test]
    fn results_are_announced() {
        let results = Results::new().unwrap();
        assert_eq!(results.take(), Vec::<u32>::new());
        for number in 0..3 {
            results.compute("test", move || number);
        }
        let mut seen = Vec::new();
        while seen.len() < 3 {
            let mut polled = [PollFd::new(results.descriptor(), PollFlags::POLLIN)];
            poll(&mut polled, PollTimeout::NONE).unwrap();
            seen.extend(results.take());
        }
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2]);
    }
}
