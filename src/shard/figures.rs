//! What the journal of a shard did from its start to its end, in one line of the daemon's log.

use std::fmt;

use serde::Serialize;

use crate::journal::JournalStatistics;

/// Counted since the journal was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// Batches written.
    pub batches: u64,
    /// Bytes of these.
    pub written_bytes: u64,
    /// Segments begun.
    pub segments_begun: u64,
    /// Segments freed.
    pub segments_freed: u64,
    /// Of these, segments of which the cleaner has copied what was needed.
    pub segments_cleaned: u64,
    /// Bytes that it has copied for that.
    pub copied_bytes: u64,
    /// Reads of messages that were not in memory.
    pub reads: u64,
}

/// In front of the figures, behind the name of the shard.
const LEAD: &str = ": the journal of this start: ";

impl Figures {
    /// Of these statistics.
    #[must_use]
    pub fn of(statistics: &JournalStatistics) -> Self {
        Self {
            batches: statistics.batches,
            written_bytes: statistics.written_bytes,
            segments_begun: statistics.checkpoints,
            segments_freed: statistics.freed,
            segments_cleaned: statistics.cleaned,
            copied_bytes: statistics.copied_bytes,
            reads: statistics.reads,
        }
    }

    /// The line of a shard.
    #[must_use]
    pub fn line(&self, shard: u32) -> String {
        format!("shard {shard}{LEAD}{self}")
    }

    /// The last ones of a shard that a log has.
    #[must_use]
    pub fn last_in(log: &str, shard: u32) -> Option<Self> {
        let lead = format!("shard {shard}{LEAD}");
        let (_, text) = log.lines().rev().find_map(|line| line.split_once(&lead))?;
        let mut numbers = text.split(", ").map(|part| part.split(' ').next()?.parse().ok());
        let mut next = || numbers.next().flatten();
        Some(Self {
            batches: next()?,
            written_bytes: next()?,
            segments_begun: next()?,
            segments_freed: next()?,
            segments_cleaned: next()?,
            copied_bytes: next()?,
            reads: next()?,
        })
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} batches, {} bytes written, {} segments begun, {} freed, {} cleaned, {} bytes copied for that, {} reads",
            self.batches,
            self.written_bytes,
            self.segments_begun,
            self.segments_freed,
            self.segments_cleaned,
            self.copied_bytes,
            self.reads
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_logged_is_found_again() {
        let figures = Figures {
            batches: 1,
            written_bytes: 2,
            segments_begun: 3,
            segments_freed: 4,
            segments_cleaned: 5,
            copied_bytes: 6,
            reads: 7,
        };
        let line = figures.line(0);
        let older = Figures::default().line(0);
        let other = Figures::default().line(1);
        let log = format!("ringmain: {older}\nringmain: {line}\nringmain: {other}\nstopped\n");
        assert_eq!(Figures::last_in(&log, 0), Some(figures));
        assert_eq!(Figures::last_in(&log, 2), None);
        assert_eq!(Figures::last_in("shard 0: the journal of this start: many", 0), None);
    }
}
