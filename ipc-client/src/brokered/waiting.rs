//! Whom a brokered handle waits for, and until when.

use std::time::Duration;

use crate::client::internal::Side;
use crate::ring::{self, HandleLine, Park};
use crate::sys::clock::monotonic_ns;

/// When the caller's patience ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(Option<u64>);

impl Deadline {
    /// So long from now; `None`: never.
    pub(crate) fn after(timeout: Option<Duration>) -> Self {
        Self(timeout.map(|timeout| {
            let timeout_ns = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
            monotonic_ns().saturating_add(timeout_ns)
        }))
    }

    /// What is left.
    pub(crate) fn left(self) -> Option<Duration> {
        self.0.map(|until_ns| Duration::from_nanos(until_ns.saturating_sub(monotonic_ns())))
    }

    /// What is left, at most this much.
    pub(crate) fn left_at_most(self, bound: Duration) -> Duration {
        self.left().map_or(bound, |left| left.min(bound))
    }

    /// Whether nothing is left.
    pub(crate) fn is_over(self) -> bool {
        self.left().is_some_and(|left| left.is_zero())
    }
}

/// Both rings of a handle.
pub(crate) trait Pair {
    /// The ring towards the shard.
    fn up(&self) -> &ring::Producer;
    /// The ring towards the client.
    fn down(&self) -> &ring::Consumer;
}

/// A handle that waits for room in its ring towards the shard.
#[derive(Debug)]
pub(crate) struct ForRoom<'a, P>(pub(crate) &'a mut P);

/// A handle that waits for what the shard sends.
#[derive(Debug)]
pub(crate) struct ForNews<'a, P>(pub(crate) &'a mut P);

impl<P: Pair> Side for ForRoom<'_, P> {
    fn position(&self) -> u64 {
        self.0.up().position()
    }
    fn own_park(&self) -> &Park {
        self.0.up().own_park()
    }
    fn line(&self) -> &HandleLine {
        self.0.up().line()
    }
    fn handle(&self) -> u8 {
        self.0.up().handle()
    }
    fn more(&mut self) -> bool {
        // Nobody else sleeps here.
        false
    }
}

impl<P: Pair> Side for ForNews<'_, P> {
    fn position(&self) -> u64 {
        self.0.down().position()
    }
    fn own_park(&self) -> &Park {
        self.0.down().own_park()
    }
    fn line(&self) -> &HandleLine {
        self.0.down().line()
    }
    fn handle(&self) -> u8 {
        self.0.down().handle()
    }
    fn more(&mut self) -> bool {
        // Nobody else sleeps here.
        false
    }
}
