//! Where the publishing thread and the shard's thread really run: a bare wake costs one thing between two processors and another
//! on one, and the one that is compared with must be the one that was paid.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use serde::Serialize;

/// Time between two looks: a look costs some microseconds of the publishing thread, between two messages.
const PERIOD_NS: u64 = 2_000_000;

/// Place of the number of the processor among the fields of `/proc/PID/stat` behind the name.
const PROCESSOR_FIELD: usize = 36;

/// The processors of the two threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Lie {
    pub(super) client: usize,
    pub(super) shard: usize,
}

/// How often the two were seen to lie so.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Seen {
    #[serde(flatten)]
    pub(super) lie: Lie,
    /// Share of the looks.
    pub(super) share: f64,
}

/// Looks at both threads now and then.
#[derive(Debug)]
pub(super) struct Placement {
    /// `stat` of the shard's thread, if it may be read.
    shard: Option<File>,
    due_ns: u64,
    /// Since the last [`Self::most_frequent`].
    recent: BTreeMap<Lie, u64>,
    all: BTreeMap<Lie, u64>,
}

impl Placement {
    pub(super) fn new(shard: Option<File>) -> Self {
        Self { shard, due_ns: 0, recent: BTreeMap::new(), all: BTreeMap::new() }
    }

    /// To be called by the publishing thread between messages, with the time.
    #[inline]
    pub(super) fn look(&mut self, now_ns: u64) {
        if now_ns >= self.due_ns && self.shard.is_some() {
            self.due_ns = now_ns + PERIOD_NS;
            self.look_now();
        }
    }

    #[cold]
    fn look_now(&mut self) {
        let client = nix::sched::sched_getcpu().ok();
        let mut text = [0; 512];
        let shard = self.shard.as_ref().and_then(|file| {
            let length = file.read_at(&mut text, 0).ok()?;
            processor(std::str::from_utf8(&text[..length]).ok()?)
        });
        if let Some((client, shard)) = client.zip(shard) {
            *self.recent.entry(Lie { client, shard }).or_default() += 1;
        }
    }

    /// Where the two mostly were since the last call; `None` if that cannot be told.
    pub(super) fn most_frequent(&mut self) -> Option<Lie> {
        let recent = std::mem::take(&mut self.recent);
        for (lie, count) in &recent {
            *self.all.entry(*lie).or_default() += count;
        }
        recent.into_iter().max_by_key(|(_, count)| *count).map(|(lie, _)| lie)
    }

    /// All that was seen up to the last [`Self::most_frequent`], most frequent first.
    #[allow(clippy::cast_precision_loss)] // shares
    pub(super) fn seen(&self) -> Vec<Seen> {
        let total = self.all.values().sum::<u64>().max(1) as f64;
        let seen = |(lie, count): (&Lie, &u64)| Seen { lie: *lie, share: *count as f64 / total };
        let mut all: Vec<Seen> = self.all.iter().map(seen).collect();
        all.sort_by(|a, b| b.share.total_cmp(&a.share));
        all
    }

    pub(super) fn forget(&mut self) {
        self.recent.clear();
        self.all.clear();
    }
}

/// The processor that a thread ran on last, out of its `stat`.
fn processor(stat: &str) -> Option<usize> {
    // The name is in brackets and may contain anything.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(PROCESSOR_FIELD)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_of_a_thread_is_found() {
        let own = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let cpus = ringmain_client::affinity::available_cpus().unwrap();
        assert!(cpus.contains(&processor(&own).unwrap()), "{own}");
        let many = (0..50).map(|number| number.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(processor(&format!("7 (a) b) {many}")), Some(36));
        assert_eq!(processor("7 (a) S 1 2"), None);
    }

    #[test]
    fn the_most_frequent_placement_is_of_the_last_windows_and_all_are_told() {
        let mut placement = Placement::new(None);
        let (near, far) = (Lie { client: 0, shard: 0 }, Lie { client: 0, shard: 1 });
        assert_eq!(placement.most_frequent(), None);
        placement.recent = [(near, 3), (far, 1)].into();
        assert_eq!(placement.most_frequent(), Some(near));
        placement.recent = [(near, 1), (far, 3)].into();
        assert_eq!(placement.most_frequent(), Some(far));
        let halves = [Seen { lie: near, share: 0.5 }, Seen { lie: far, share: 0.5 }];
        assert_eq!(placement.seen(), halves);
    }

    #[test]
    fn a_shard_that_runs_is_looked_at_once_in_a_period() {
        let mut placement = Placement::new(File::open("/proc/thread-self/stat").ok());
        for now_ns in 1..100 {
            placement.look(now_ns);
        }
        placement.look(2 * PERIOD_NS);
        assert_eq!(placement.recent.values().sum::<u64>(), 2);
        assert!(placement.most_frequent().is_some());
    }
}
