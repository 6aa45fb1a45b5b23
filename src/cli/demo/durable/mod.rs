//! The durable part of the demonstration: records are published, keeper and broker are killed in the middle, a new daemon
//! opens the same journal, the rest is published, and every confirmed record must be there once.

mod consume;
mod produce;

use std::collections::BTreeSet;
use std::time::Instant;

use ringmain_client::WaitPolicy;
use ringmain_client::raw::protocol::{Kind, Plane, QueueSpec};
use serde::Serialize;

use super::flow::Check;
use super::records::{Multiset, Records, Source, fingerprint};
use crate::cli::crew::{Crew, Member};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::helper::{Order, Task};
use crate::cli::host;
use crate::cli::output::{Progress, bar};
use crate::cli::private::{PrivateBroker, Storage};
use crate::cli::statistics::{Microseconds, Samples};
use crate::cli::units;
use consume::Consumed;
use produce::{Produced, Run, WINDOW};

pub(crate) use consume::{ConsumeTask, consume};
pub(crate) use produce::{ProduceTask, produce};

/// Processes on either side.
const MEMBERS: u64 = 2;

/// Records that each publisher has confirmed before it begins.
const NOTHING: [u64; 2] = [0; 2];

/// No more records than these pass: each is written to a disk.
const RECORDS_MAX: usize = 100_000;

const QUEUE: &str = "demo-durable";

/// What came out.
#[derive(Debug, Clone, Serialize)]
pub(super) struct DurableAnswer {
    kind: Kind,
    plane: Plane,
    durable: bool,
    pub(super) producers: u64,
    pub(super) consumers: u64,
    /// Records on the way without a confirmation, of each producer.
    pub(super) window: usize,
    /// Confirmed.
    pub(super) sent: u64,
    /// Of these, received.
    pub(super) messages: u64,
    bytes: u64,
    /// While producers published.
    pub(super) seconds: f64,
    pub(super) messages_per_s: f64,
    pub(super) bytes_per_s: f64,
    pub(super) oversubscribed: bool,
    pub(super) killed: Killed,
    /// From just before a send to its confirmation.
    pub(super) latency: Latency,
    #[serde(flatten)]
    pub(super) check: Check,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Latency {
    pub(super) confirm_us: Microseconds,
}

/// The death in the middle.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Killed {
    /// Records confirmed before.
    pub(super) confirmed: u64,
    /// Records sent before and not confirmed: they were sent again.
    pub(super) unconfirmed: u64,
    /// Of these, in the journal all the same.
    pub(super) unconfirmed_found: u64,
    /// From the start of the new daemon until it served.
    pub(super) restart_ms: u64,
}

/// Where and what.
pub(super) struct Durable<'a> {
    pub(super) source: &'a Source,
    pub(super) records: &'a Records,
    pub(super) slots: u32,
    pub(super) slot_size: u32,
    pub(super) max_message: u32,
    pub(super) wait: WaitPolicy,
}

impl Durable<'_> {
    pub(super) fn run(&self, progress: &mut Progress) -> Outcome<DurableAnswer> {
        let mut broker = PrivateBroker::durable(&Storage::default())?;
        let spec = QueueSpec {
            kind: Some(Kind::Mpmc),
            slots: Some(self.slots),
            slot_size: Some(self.slot_size),
            max_message: Some(self.max_message),
            plane: Some(Plane::Brokered),
            durable: true,
            ..QueueSpec::default()
        };
        broker.connect()?.create_queue(QUEUE, spec)?;
        let before = self.publish_until_killed(&mut broker, progress)?;
        let start = Instant::now();
        broker.restart()?;
        let restart_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let found = self.unconfirmed(&broker, &before)?;
        let (after, consumed) = self.publish_the_rest(&broker, &before, &found, progress)?;
        let confirmed = before.iter().map(Produced::confirmed_count).sum();
        let killed = Killed {
            confirmed,
            unconfirmed: before.iter().map(|one| one.sent).sum::<u64>() - confirmed,
            unconfirmed_found: found.len() as u64,
            restart_ms,
        };
        Ok(self.answer(&before, &after, &consumed, killed))
    }

    fn total(&self) -> u64 {
        self.records.len().min(RECORDS_MAX) as u64
    }

    /// First half: ends with the death of keeper and broker.
    fn publish_until_killed(
        &self,
        broker: &mut PrivateBroker,
        progress: &mut Progress,
    ) -> Outcome<Vec<Produced>> {
        let mut crew = Crew::new();
        let producers = self.start_producers(&mut crew, broker, &NOTHING)?;
        let mut confirmed = vec![0; producers.len()];
        crew.wait_ready()?;
        crew.order_all(Order::Go)?;
        let total = self.total();
        // Short files may be through before the first report.
        while confirmed.iter().sum::<u64>() < total / 2 && !crew.has_results(&producers) {
            crew.listen(&mut |member, count| confirmed[member.index()] = count)?;
            let sum = confirmed.iter().sum();
            progress.show(|| shown(sum, total));
        }
        broker.kill_all()?;
        crew.results(&producers, |_, _| {})
    }

    fn start_producers(
        &self,
        crew: &mut Crew,
        broker: &PrivateBroker,
        skip: &[u64],
    ) -> Outcome<Vec<Member>> {
        let start = |(index, skip): (u64, &u64)| {
            let task = ProduceTask {
                socket: broker.socket().to_path_buf(),
                queue: QUEUE.to_string(),
                wait: self.wait.to_string(),
                source: self.source.clone(),
                records: self.total(),
                index,
                of: MEMBERS,
                skip: *skip,
            };
            crew.start("publishing", &Task::DurableProduce(task), &[])
        };
        (0..).zip(skip).map(start).collect()
    }

    /// Sequences that the new daemon knows and no publisher heard of.
    fn unconfirmed(&self, broker: &PrivateBroker, before: &[Produced]) -> Outcome<Vec<u64>> {
        let info = broker.connect()?.queue_info(QUEUE)?;
        let next = info.brokered.map_or(0, |brokered| brokered.next_sequence);
        let runs = before.iter().flat_map(|one| &one.confirmed);
        let confirmed: BTreeSet<u64> =
            runs.flat_map(|run| run.sequence..run.sequence + run.count).collect();
        if confirmed.last().is_some_and(|last| *last >= next) {
            return Err(Failure::new(
                Exit::Data,
                format_args!(
                    "sequence {:?} was confirmed, the journal ends before {next}",
                    confirmed.last()
                ),
            ));
        }
        Ok((1..next).filter(|sequence| !confirmed.contains(sequence)).collect())
    }

    /// Second half: the records that are not confirmed, and consumers for all of them.
    fn publish_the_rest(
        &self,
        broker: &PrivateBroker,
        before: &[Produced],
        found: &[u64],
        progress: &mut Progress,
    ) -> Outcome<(Vec<Produced>, Vec<Consumed>)> {
        let mut crew = Crew::new();
        let mut consumers = Vec::new();
        for _ in 0..MEMBERS {
            let task = ConsumeTask {
                socket: broker.socket().to_path_buf(),
                queue: QUEUE.to_string(),
                wait: self.wait.to_string(),
                unconfirmed: found.to_vec(),
            };
            consumers.push(crew.start("consuming", &Task::DurableConsume(task), &[])?);
        }
        let skip: Vec<u64> = before.iter().map(Produced::confirmed_count).collect();
        let producers = self.start_producers(&mut crew, broker, &skip)?;
        crew.wait_ready()?;
        crew.order_all(Order::Go)?;
        let (total, mut received) = (self.total(), vec![0; consumers.len()]);
        let mut show = |member: Member, count: u64| {
            if let Some(slot) = received.get_mut(member.index()) {
                *slot = count;
                let sum = received.iter().sum();
                progress.show(|| shown(sum, total));
            }
        };
        let after: Vec<Produced> = crew.results(&producers, &mut show)?;
        if let Some(why) = after.iter().find_map(|one| one.cut_short.as_ref()) {
            return Err(Failure::new(Exit::Unavailable, format_args!("the daemon left: {why}")));
        }
        crew.order(&consumers, Order::Stop)?;
        Ok((after, crew.results(&consumers, &mut show)?))
    }

    #[allow(clippy::cast_precision_loss)] // rates
    fn answer(
        &self,
        before: &[Produced],
        after: &[Produced],
        consumed: &[Consumed],
        killed: Killed,
    ) -> DurableAnswer {
        let both = || before.iter().chain(after);
        let messages: u64 = consumed.iter().map(|one| one.records).sum();
        let bytes: u64 = consumed.iter().map(|one| one.bytes).sum();
        let seconds = (span_ns(before) + span_ns(after)).max(1) as f64 / 1e9;
        let sent: u64 = both().map(Produced::confirmed_count).sum();
        let mut latency = Samples::new();
        both().for_each(|one| latency.add(&one.latency.unpack()));
        DurableAnswer {
            kind: Kind::Mpmc,
            plane: Plane::Brokered,
            durable: true,
            producers: MEMBERS,
            consumers: MEMBERS,
            window: WINDOW,
            sent,
            messages,
            bytes,
            seconds,
            messages_per_s: sent as f64 / seconds,
            bytes_per_s: bytes as f64 / seconds,
            // Publishers, consumers and the shard.
            oversubscribed: (host::cores(1).len() as u64) < 2 * MEMBERS + 1,
            killed,
            latency: Latency { confirm_us: Microseconds::of(&latency) },
            check: self.check(before, after, consumed),
        }
    }

    fn check(&self, before: &[Produced], after: &[Produced], consumed: &[Consumed]) -> Check {
        let mut expected = Multiset::default();
        let mut count = 0;
        for (index, (first, second)) in (0..).zip(before.iter().zip(after)) {
            for Run { first, sequence, count: length } in
                first.confirmed.iter().chain(&second.confirmed)
            {
                for offset in 0..*length {
                    let number = index + (first + offset) * MEMBERS;
                    expected.add(fingerprint(sequence + offset, self.records.get(number)));
                }
                count += length;
            }
        }
        let placed =
            consumed.iter().map(|one| one.placed).fold(Multiset::default(), Multiset::union);
        judge(self.total(), count, expected, placed, consumed)
    }
}

/// Compares what was confirmed with what was consumed.
fn judge(
    total: u64,
    confirmed: u64,
    expected: Multiset,
    placed: Multiset,
    consumed: &[Consumed],
) -> Check {
    let messages: u64 = consumed.iter().map(|one| one.records).sum();
    let lost = total.max(confirmed).saturating_sub(messages);
    let doubled = messages.saturating_sub(confirmed);
    let altered = u64::from(placed != expected && lost + doubled == 0);
    let out_of_order = consumed.iter().map(|one| one.backward).sum();
    Check {
        verified: placed == expected
            && confirmed == total
            && lost + doubled + altered + out_of_order == 0,
        lost,
        doubled,
        altered,
        out_of_order,
        method: "the multiset of all confirmed records with the sequences of their receipts, by 128-bit \
                 sums; the sequences of every consumer grow",
        first_difference: None,
    }
}

fn shown(count: u64, total: u64) -> String {
    #[allow(clippy::cast_precision_loss)] // a share
    let share = count as f64 / total.max(1) as f64;
    format!("durable: {} {} of {}", bar(share, 30), units::count(count), units::count(total))
}

/// From the first start to the last end.
fn span_ns(all: &[Produced]) -> u64 {
    let start = all.iter().map(|one| one.start_ns).min().unwrap_or(0);
    let end = all.iter().map(|one| one.end_ns).max().unwrap_or(0);
    end.saturating_sub(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(records: &[(u64, &str)]) -> Multiset {
        let mut set = Multiset::default();
        records.iter().for_each(|(at, record)| set.add(fingerprint(*at, record.as_bytes())));
        set
    }

    #[test]
    fn what_is_wrong_is_named() {
        let confirmed = set(&[(1, "a"), (2, "b")]);
        let judge = |records: &[(u64, &str)]| {
            let placed = set(records);
            let one = Consumed { records: records.len() as u64, placed, ..Consumed::default() };
            judge(2, 2, confirmed, placed, &[one])
        };
        assert!(judge(&[(2, "b"), (1, "a")]).verified);
        assert_eq!(judge(&[(2, "b")]).lost, 1);
        assert_eq!(judge(&[(2, "b"), (1, "a"), (1, "a")]).doubled, 1);
        assert_eq!(judge(&[(2, "b"), (1, "A")]).altered, 1);
        assert_eq!(judge(&[(1, "b"), (2, "a")]).altered, 1);
    }
}
