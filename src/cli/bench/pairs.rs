//! What interleaved windows say: pairs of what is measured and the probes before and after it.

use serde::Serialize;

use crate::cli::statistics::median;

/// Two probes that differ by more than this share were taken on differently placed cores, or on a disk in different moods.
const DRIFT_MAX: f64 = 0.10;

/// Whether the probes before and after a window are alike. A probe without a sample says nothing.
fn agree(before: f64, after: f64) -> bool {
    let (low, high) = (before.min(after), before.max(after));
    low > 0.0 && high - low <= DRIFT_MAX * low
}

/// A window, or two that are compared, between two probes of the disk; medians in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Between {
    pub(crate) before: Option<u64>,
    pub(crate) after: Option<u64>,
    /// What is to be judged of the pair, if it can be told.
    pub(crate) ratio: Option<f64>,
}

impl Between {
    #[allow(clippy::cast_precision_loss)] // nanoseconds
    pub(crate) fn steady(&self) -> bool {
        let ends = self.before.zip(self.after);
        self.ratio.is_some()
            && ends.is_some_and(|(before, after)| agree(before as f64, after as f64))
    }
}

/// The verdict over pairs between probes of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Judged {
    /// Median. On a disk that is never steady it is worth knowing all the same: if no pair was kept, it is over all.
    pub(crate) ratio: Option<f64>,
    pub(crate) pairs_kept: usize,
    pub(crate) pairs_dropped: usize,
}

impl Judged {
    pub(crate) fn of(pairs: &[Between]) -> Self {
        let kept: Vec<&Between> = pairs.iter().filter(|pair| pair.steady()).collect();
        let (pairs_kept, pairs_dropped) = (kept.len(), pairs.len() - kept.len());
        let judged = if kept.is_empty() { pairs.iter().collect() } else { kept };
        let mut ratios: Vec<f64> = judged.into_iter().filter_map(|pair| pair.ratio).collect();
        Self { ratio: median(&mut ratios), pairs_kept, pairs_dropped }
    }
}

/// Medians of the windows of one pair, in nanoseconds, interpolated between the ticks of the clock.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pair {
    pub(crate) floor_before: f64,
    pub(crate) floor_after: f64,
    pub(crate) ring: f64,
    /// With `park`: a bare futex round trip and a membarrier.
    pub(crate) park: Option<(f64, f64)>,
}

/// The verdict over all pairs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Verdict {
    /// Median of ring over floor. Nothing if no pair was kept.
    pub(crate) ratio_p50: Option<f64>,
    /// With `park`: median of ring over (futex + 2 membarriers).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ratio_park: Option<f64>,
    pub(crate) pairs_kept: usize,
    pub(crate) pairs_dropped: usize,
}

pub(crate) fn judge(pairs: &[Pair]) -> Verdict {
    let kept: Vec<&Pair> = pairs.iter().filter(|pair| pair.steady()).collect();
    let over_floor = |pair: &&Pair| pair.ring / f64::midpoint(pair.floor_before, pair.floor_after);
    let over_park = |pair: &&Pair| {
        let (futex, membarrier) = pair.park?;
        Some(pair.ring / (futex + 2.0 * membarrier).max(1.0))
    };
    Verdict {
        ratio_p50: median(&mut kept.iter().map(over_floor).collect::<Vec<_>>()),
        ratio_park: median(&mut kept.iter().filter_map(over_park).collect::<Vec<_>>()),
        pairs_kept: kept.len(),
        pairs_dropped: pairs.len() - kept.len(),
    }
}

impl Pair {
    fn steady(&self) -> bool {
        self.ring > 0.0 && agree(self.floor_before, self.floor_after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(floor_before: u32, ring: u32, floor_after: u32) -> Pair {
        let [floor_before, ring, floor_after] = [floor_before, ring, floor_after].map(f64::from);
        Pair { floor_before, floor_after, ring, park: None }
    }

    #[test]
    fn unsteady_pairs_are_dropped_and_counted() {
        let pairs = [
            pair(100, 150, 110),
            pair(100, 150, 111),
            pair(460, 150, 120),
            pair(100, 200, 100),
            pair(100, 140, 100),
            pair(0, 140, 0),
        ];
        let verdict = judge(&pairs);
        assert_eq!((verdict.pairs_kept, verdict.pairs_dropped), (3, 3));
        assert!((verdict.ratio_p50.unwrap() - 150.0 / 105.0).abs() < 1e-9);
        assert_eq!(verdict.ratio_park, None);
    }

    #[test]
    fn park_is_judged_over_futex_and_membarriers() {
        let pairs = [Pair { park: Some((40_000.0, 1_000.0)), ..pair(100, 44_100, 100) }];
        assert!((judge(&pairs).ratio_park.unwrap() - 1.05).abs() < 1e-9);
    }

    #[test]
    fn nothing_kept_is_no_ratio() {
        assert_eq!(judge(&[]).ratio_p50, None);
        assert_eq!(judge(&[pair(100, 1, 200)]).ratio_p50, None);
    }

    #[test]
    fn pairs_on_a_disk_that_changed_are_told_apart() {
        let pair =
            |before, ratio, after| Between { before: Some(before), ratio, after: Some(after) };
        assert!(pair(100, Some(1.0), 110).steady());
        assert!(!pair(100, Some(1.0), 111).steady());
        assert!(!pair(100, None, 100).steady());
        assert!(!Between { before: None, ..pair(100, Some(1.0), 100) }.steady());
        let judged = Judged::of(&[pair(100, Some(1.0), 100), pair(100, Some(9.0), 200)]);
        assert_eq!((judged.ratio, judged.pairs_kept, judged.pairs_dropped), (Some(1.0), 1, 1));
        let judged = Judged::of(&[pair(100, Some(9.0), 200)]);
        assert_eq!((judged.ratio, judged.pairs_kept, judged.pairs_dropped), (Some(9.0), 0, 1));
    }
}
