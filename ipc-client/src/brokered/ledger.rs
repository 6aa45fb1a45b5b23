//! What a producer knows of its messages: which are unsettled, and what became of the others. No memory is shared here.
//!
//! Messages are numbered as they are sent. The lane positions of those that are unsettled stand in a queue; a completion settles
//! some of them from its front and becomes a run, which takes in the run before if both tell the same. So one producer
//! alone on its queue has one run, however much it sends, and no message costs an allocation.

use std::collections::VecDeque;

use super::error::ConfirmError;
use super::receipt::{Confirmation, Level, Receipt, Receipts, SettledRun};
use crate::ring::{Fault, Invariant};
use crate::wire::Outcome;

/// Runs that are remembered: with each run of another kind than the one before the oldest goes.
const RUNS_MAX: usize = 1 << 16;

/// As [`crate::wire::Down::Completed`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Completed {
    pub(super) first_position: u64,
    pub(super) last_position: u64,
    pub(super) first_sequence: u64,
    pub(super) count: u32,
    pub(super) outcome: Outcome,
    pub(super) detail: u64,
}

#[derive(Debug, Clone, Copy)]
struct Run {
    /// Number of the first message.
    first: u64,
    count: u64,
    /// Of the first message; the others follow. Only if it is done.
    sequence: u64,
    outcome: Outcome,
    detail: u64,
}

impl Run {
    fn takes(&self, next: &Self) -> bool {
        let alike = self.outcome == next.outcome && self.detail == next.detail;
        alike
            && (self.outcome != Outcome::Done
                || self.sequence.checked_add(self.count) == Some(next.sequence))
    }

    fn end(&self) -> u64 {
        self.first + self.count
    }
}

/// What is known about one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    Unsettled,
    Settled(Result<Confirmation, ConfirmError>),
}

#[derive(Debug)]
pub(crate) struct Ledger {
    producer: u64,
    level: Level,
    /// Number of the next message to be sent.
    next: u64,
    /// Lane positions of unsettled messages, ascending; the last one has the number `next - 1`.
    unsettled: VecDeque<u64>,
    /// Lane position of the last message that is settled.
    settled_to: Option<u64>,
    /// Ascending, without gaps.
    runs: VecDeque<Run>,
    /// Number of the next message that [`Self::tell`] has to tell about.
    told: u64,
    /// The first failure since [`Self::all_settled`].
    failure: Option<ConfirmError>,
    /// Somebody else has the producer's name now.
    fenced: bool,
}

impl Ledger {
    pub(crate) fn new(producer: u64, durable: bool) -> Self {
        Self {
            producer,
            level: if durable { Level::Durable } else { Level::Stored },
            next: 0,
            unsettled: VecDeque::new(),
            settled_to: None,
            runs: VecDeque::new(),
            told: 0,
            failure: None,
            fenced: false,
        }
    }

    /// A message is in the lane.
    #[inline]
    pub(crate) fn sent(&mut self, position: u64) -> Receipt {
        self.unsettled.push_back(position);
        let number = self.next;
        self.next += 1;
        Receipt { producer: self.producer, number }
    }

    /// Messages are in the lane.
    pub(crate) fn sent_batch(&mut self, positions: impl Iterator<Item = u64>) -> Receipts {
        let first = self.next;
        self.unsettled.extend(positions);
        self.next = self.settled_end() + self.unsettled.len() as u64;
        Receipts { producer: self.producer, first, count: self.next - first }
    }

    /// Number of the first message that is unsettled. Kept by the runs, so that it need not be counted on the way in.
    fn settled_end(&self) -> u64 {
        self.runs.back().map_or(0, Run::end)
    }

    /// Messages that are unsettled.
    #[inline]
    pub(crate) fn unsettled(&self) -> usize {
        self.unsettled.len()
    }

    /// Lane position of the first unsettled message.
    pub(crate) fn unsettled_from(&self) -> Option<u64> {
        self.unsettled.front().copied()
    }

    /// The shard completed some messages. What it says must fit what was sent; messages that were settled before may be
    /// named again, as a shard does that took over from another one.
    pub(crate) fn settle(&mut self, completed: Completed) -> Result<(), Fault> {
        let fault = Fault {
            invariant: Invariant::Record,
            position: completed.first_position,
            value: completed.last_position,
        };
        let ordered = completed.first_position <= completed.last_position;
        let numbered = completed.outcome != Outcome::Done
            || completed.first_sequence.checked_add(u64::from(completed.count)).is_some();
        if completed.count == 0 || !ordered || !numbered {
            return Err(fault);
        }
        if self.settled_to.is_some_and(|position| completed.last_position <= position) {
            return Ok(());
        }
        let front = self.unsettled_from().ok_or(fault)?;
        let Ok(last) = self.unsettled.binary_search(&completed.last_position) else {
            return Err(fault);
        };
        let settled = last as u64 + 1;
        let Some(known) = u64::from(completed.count).checked_sub(settled) else {
            return Err(fault);
        };
        let starts = if known == 0 {
            completed.first_position == front
        } else {
            completed.first_position < front
        };
        if !starts {
            return Err(fault);
        }
        let run = Run {
            first: self.settled_end(),
            count: settled,
            sequence: completed.first_sequence.wrapping_add(known),
            outcome: completed.outcome,
            detail: completed.detail,
        };
        self.unsettled.drain(..=last);
        self.settled_to = Some(completed.last_position);
        self.remember(run);
        Ok(())
    }

    /// Whether nothing is stored any more because somebody else has the producer's name.
    #[inline]
    pub(crate) fn is_fenced(&self) -> bool {
        self.fenced
    }

    fn remember(&mut self, run: Run) {
        self.fenced |= run.outcome == Outcome::Fenced;
        if self.failure.is_none() {
            self.failure = failure(run.outcome, run.detail);
        }
        match self.runs.back_mut() {
            Some(before) if before.takes(&run) => before.count += run.count,
            _ => {
                if self.runs.len() == RUNS_MAX {
                    self.runs.pop_front();
                }
                self.runs.push_back(run);
            }
        }
    }

    /// What became of a message.
    pub(crate) fn look_up(&self, receipt: &Receipt) -> Result<Known, ConfirmError> {
        if receipt.producer != self.producer || receipt.number >= self.next {
            return Err(ConfirmError::ForeignReceipt);
        }
        if receipt.number >= self.settled_end() {
            return Ok(Known::Unsettled);
        }
        // The last run is asked first: that is where most of those who ask look.
        let last = self.runs.back().filter(|run| receipt.number >= run.first);
        let run = last.or_else(|| {
            let behind = self.runs.partition_point(|run| run.first <= receipt.number);
            self.runs.get(behind.checked_sub(1)?)
        });
        match run {
            Some(run) => Ok(Known::Settled(self.result(run, receipt.number))),
            None => Err(ConfirmError::Forgotten),
        }
    }

    fn result(&self, run: &Run, number: u64) -> Result<Confirmation, ConfirmError> {
        match failure(run.outcome, run.detail) {
            Some(error) => Err(error),
            None if run.outcome == Outcome::Duplicate => {
                Ok(Confirmation { sequence: 0, level: self.level, duplicate: true })
            }
            None => Ok(Confirmation {
                sequence: run.sequence.wrapping_add(number - run.first),
                level: self.level,
                duplicate: false,
            }),
        }
    }

    /// The next messages that are settled and were not told about.
    pub(crate) fn tell(&mut self) -> Result<Option<SettledRun>, ConfirmError> {
        if self.told >= self.settled_end() {
            return Ok(None);
        }
        let behind = self.runs.partition_point(|run| run.first <= self.told);
        let Some(run) = behind.checked_sub(1).and_then(|index| self.runs.get(index)) else {
            // What was forgotten is told once.
            self.told = self.runs.front().map_or(self.next, |run| run.first);
            return Err(ConfirmError::Forgotten);
        };
        let told = SettledRun {
            first: Receipt { producer: self.producer, number: self.told },
            count: run.end() - self.told,
            result: self.result(run, self.told),
        };
        self.told = run.end();
        Ok(Some(told))
    }

    /// The same, and `None` inside once nothing is unsettled.
    pub(crate) fn tell_or_end(&mut self) -> Option<Result<Option<SettledRun>, ConfirmError>> {
        match self.tell() {
            Ok(None) if !self.unsettled.is_empty() => None,
            told => Some(told),
        }
    }

    /// What became of a message, once it is settled or never will be.
    pub(crate) fn settled(&self, receipt: &Receipt) -> Option<Result<Confirmation, ConfirmError>> {
        match self.look_up(receipt) {
            Ok(Known::Unsettled) => None,
            Ok(Known::Settled(result)) => Some(result),
            Err(error) => Some(Err(error)),
        }
    }

    /// Once nothing is unsettled, the first failure since the last time.
    pub(crate) fn all_settled(&mut self) -> Option<Result<(), ConfirmError>> {
        self.unsettled.is_empty().then(|| self.failure.take().map_or(Ok(()), Err))
    }
}

fn failure(outcome: Outcome, detail: u64) -> Option<ConfirmError> {
    Some(match outcome {
        Outcome::Done | Outcome::Duplicate => return None,
        Outcome::JournalFailed => {
            ConfirmError::JournalFailed { errno: i32::try_from(detail).unwrap_or(i32::MAX) }
        }
        Outcome::QueueDeleted => ConfirmError::QueueDeleted,
        Outcome::TooLarge => ConfirmError::TooLarge { max: detail },
        Outcome::QueueFull => ConfirmError::QueueFull,
        Outcome::Fenced => ConfirmError::Fenced,
        Outcome::LeaseLost => ConfirmError::LeaseLost,
        Outcome::CrossShard => ConfirmError::CrossShard,
        Outcome::Invalid => ConfirmError::Rejected,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(positions: &[u64], first_sequence: u64) -> Completed {
        Completed {
            first_position: positions[0],
            last_position: *positions.last().expect("some"),
            first_sequence,
            count: u32::try_from(positions.len()).expect("few"),
            outcome: Outcome::Done,
            detail: 0,
        }
    }

    fn sequence(ledger: &Ledger, receipt: &Receipt) -> Option<u64> {
        match ledger.look_up(receipt) {
            Ok(Known::Settled(Ok(confirmation))) => Some(confirmation.sequence),
            _ => None,
        }
    }

    #[test]
    fn receipts_are_found_in_any_order() {
        let mut ledger = Ledger::new(1, true);
        let positions = [0, 2, 3, 7, 8, 9];
        let receipts: Vec<_> = positions.map(|position| ledger.sent(position)).to_vec();
        assert_eq!(ledger.look_up(&receipts[0]), Ok(Known::Unsettled));
        ledger.settle(completed(&positions[..2], 10)).expect("fits");
        ledger.settle(completed(&positions[2..3], 12)).expect("fits");
        ledger.settle(completed(&positions[3..5], 100)).expect("fits");
        assert_eq!(ledger.runs.len(), 2, "a run that goes on is one run");
        let expected = [Some(10), Some(11), Some(12), Some(100), Some(101), None];
        for index in [4, 0, 5, 2, 3, 1] {
            assert_eq!(sequence(&ledger, &receipts[index]), expected[index]);
        }
        assert_eq!((ledger.unsettled(), ledger.unsettled_from()), (1, Some(9)));
        let foreign = Receipt { producer: 2, number: 0 };
        assert_eq!(ledger.look_up(&foreign), Err(ConfirmError::ForeignReceipt));
    }

    #[test]
    fn settled_messages_are_told_once_and_in_order() {
        let mut ledger = Ledger::new(1, false);
        for position in 0..4 {
            ledger.sent(position);
        }
        ledger.settle(completed(&[0, 1], 1)).expect("fits");
        let run = ledger.tell().expect("known").expect("two");
        assert_eq!((run.first.number, run.count), (0, 2));
        ledger.settle(completed(&[2], 3)).expect("fits");
        let failed = Completed { outcome: Outcome::JournalFailed, detail: 5, ..completed(&[3], 0) };
        ledger.settle(failed).expect("fits");
        let run = ledger.tell().expect("known").expect("one");
        assert_eq!((run.first.number, run.count), (2, 1));
        assert_eq!(
            run.result,
            Ok(Confirmation { sequence: 3, level: Level::Stored, duplicate: false })
        );
        let run = ledger.tell().expect("known").expect("one");
        assert_eq!(run.result, Err(ConfirmError::JournalFailed { errno: 5 }));
        assert_eq!(ledger.tell(), Ok(None));
        assert_eq!(ledger.all_settled(), Some(Err(ConfirmError::JournalFailed { errno: 5 })));
        assert_eq!(ledger.all_settled(), Some(Ok(())));
    }

    #[test]
    fn a_completion_that_overlaps_an_earlier_one_settles_the_rest() {
        let mut ledger = Ledger::new(1, true);
        let receipts: Vec<_> = (0..5).map(|position| ledger.sent(position * 2)).collect();
        ledger.settle(completed(&[0, 2], 1)).expect("fits");
        ledger.settle(completed(&[0, 2], 1)).expect("known");
        ledger.settle(completed(&[0, 2, 4, 6], 1)).expect("fits");
        assert_eq!(sequence(&ledger, &receipts[3]), Some(4));
        ledger.settle(completed(&[8], 9)).expect("fits");
        ledger.settle(completed(&[8], 9)).expect("known");
        assert_eq!(sequence(&ledger, &receipts[4]), Some(9));
    }

    #[test]
    fn duplicates_are_confirmed_and_a_fence_is_final() {
        let mut ledger = Ledger::new(1, true);
        let receipts: Vec<_> = (0..4).map(|position| ledger.sent(position)).collect();
        let told = |outcome, positions: &[u64]| Completed { outcome, ..completed(positions, 0) };
        ledger.settle(told(Outcome::Duplicate, &[0, 1])).expect("fits");
        ledger.settle(completed(&[2], 7)).expect("fits");
        let confirmed = |sequence, duplicate| {
            Some(Ok(Confirmation { sequence, level: Level::Durable, duplicate }))
        };
        assert_eq!(ledger.settled(&receipts[1]), confirmed(0, true));
        assert_eq!(ledger.settled(&receipts[2]), confirmed(7, false));
        assert!(!ledger.is_fenced());
        ledger.settle(told(Outcome::Fenced, &[3])).expect("fits");
        assert_eq!(ledger.settled(&receipts[3]), Some(Err(ConfirmError::Fenced)));
        assert!(ledger.is_fenced());
    }

    #[test]
    fn completions_that_fit_nothing_are_faults() {
        let good = [0, 2, 4];
        let bad = [
            Completed { count: 0, ..completed(&good, 1) },
            Completed { count: 2, ..completed(&good, 1) },
            Completed { count: 4, ..completed(&good, 1) },
            Completed { first_position: 1, ..completed(&good, 1) },
            Completed { last_position: 3, ..completed(&good, 1) },
            Completed { last_position: 6, ..completed(&good, 1) },
            Completed { first_position: 4, last_position: 0, ..completed(&good, 1) },
            Completed { first_sequence: u64::MAX, ..completed(&good, 1) },
            completed(&good[1..], 1),
        ];
        for record in bad {
            let mut ledger = Ledger::new(1, true);
            assert!(ledger.settle(completed(&good, 1)).is_err(), "nothing was sent");
            for position in good {
                ledger.sent(position);
            }
            assert!(ledger.settle(record).is_err(), "{record:?}");
            assert_eq!(ledger.unsettled(), 3);
        }
    }

    #[test]
    fn the_oldest_runs_are_forgotten() {
        let mut ledger = Ledger::new(1, true);
        let first = ledger.sent(0);
        ledger.settle(completed(&[0], 1)).expect("fits");
        for position in 1..=RUNS_MAX as u64 {
            ledger.sent(position);
            ledger.settle(completed(&[position], 1 + 2 * position)).expect("fits");
        }
        assert_eq!(ledger.look_up(&first), Err(ConfirmError::Forgotten));
        let second = Receipt { producer: 1, number: 1 };
        assert_eq!(sequence(&ledger, &second), Some(3));
        assert_eq!(ledger.tell(), Err(ConfirmError::Forgotten));
        assert_eq!(ledger.tell().expect("known").expect("one").first.number, 1);
    }

    #[test]
    fn a_batch_has_receipts_for_all() {
        let mut ledger = Ledger::new(1, true);
        ledger.sent(0);
        let batch = ledger.sent_batch([1, 3, 4].into_iter());
        assert_eq!(batch.iter().map(|receipt| receipt.number).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(batch.last().map(|receipt| receipt.number), Some(3));
        ledger.settle(completed(&[0, 1, 3, 4], 7)).expect("fits");
        assert_eq!(sequence(&ledger, &batch.last().expect("some")), Some(10));
        assert!(ledger.sent_batch([].into_iter()).is_empty());
    }
}
