//! Latency distributions: recording, percentiles, and their curve in a terminal.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::units;

/// Longest time that is told apart from longer ones: one hour.
const LONGEST_NS: u64 = 3_600_000_000_000;

/// Times in nanoseconds, with three significant digits.
#[derive(Debug, Clone)]
pub(crate) struct Samples(Histogram<u64>);

impl Samples {
    pub(crate) fn new() -> Self {
        // The bounds are constants that the constructor accepts; one digit less would be accepted as well.
        let histogram = Histogram::new_with_bounds(1, LONGEST_NS, 3);
        Self(histogram.unwrap_or_else(|_| unreachable!("constant bounds")))
    }

    #[inline]
    pub(crate) fn record(&mut self, nanoseconds: u64) {
        self.0.saturating_record(nanoseconds.max(1));
    }

    pub(crate) fn clear(&mut self) {
        self.0.reset();
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for value in other.0.iter_recorded() {
            self.0.saturating_record_n(value.value_iterated_to(), value.count_at_value());
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    pub(crate) fn at(&self, quantile: f64) -> u64 {
        self.0.value_at_quantile(quantile)
    }

    /// The median as of grouped data, in nanoseconds. The clock ticks: all times between two ticks are recorded as one value,
    /// which stands for what lies nearer to it than to the values beside it, evenly spread. Zero of nothing.
    #[allow(clippy::cast_precision_loss)] // counts and times far below 2^53
    pub(crate) fn grouped_median(&self) -> f64 {
        let half = self.count() as f64 / 2.0;
        let mut values =
            self.0.iter_recorded().map(|v| (v.value_iterated_to(), v.count_at_value()));
        let (mut below, mut before) = (0.0, None);
        while let Some((value, count)) = values.next() {
            let (value, count) = (value as f64, count as f64);
            if below + count >= half {
                let after = values.next().map(|(value, _)| value as f64);
                // At either end the group is as wide on its outer side as on its inner one.
                let down = before
                    .map(|before| value - before)
                    .or_else(|| after.map(|after| after - value));
                let up = after.map(|after| after - value).or(down);
                let (low, high) =
                    (value - down.unwrap_or(0.0) / 2.0, value + up.unwrap_or(0.0) / 2.0);
                return low + (high - low) * (half - below) / count;
            }
            below += count;
            before = Some(value);
        }
        0.0
    }

    pub(crate) fn percentiles(&self) -> Percentiles {
        Percentiles {
            p50: self.at(0.5),
            p90: self.at(0.9),
            p99: self.at(0.99),
            p999: self.at(0.999),
            max: self.0.max(),
            samples: self.count(),
        }
    }

    /// For the way between processes.
    pub(crate) fn pack(&self) -> Packed {
        let values = self.0.iter_recorded();
        Packed(values.map(|v| (v.value_iterated_to(), v.count_at_value())).collect())
    }
}

/// Recorded values and how often each came.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Packed(Vec<(u64, u64)>);

impl Packed {
    pub(crate) fn unpack(&self) -> Samples {
        let mut samples = Samples::new();
        for (value, count) in &self.0 {
            samples.0.saturating_record_n(*value, *count);
        }
        samples
    }
}

/// What is printed of a distribution, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Percentiles {
    pub(crate) p50: u64,
    pub(crate) p90: u64,
    pub(crate) p99: u64,
    pub(crate) p999: u64,
    pub(crate) max: u64,
    pub(crate) samples: u64,
}

/// What is printed of a distribution, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Microseconds {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
    pub(crate) samples: u64,
}

impl Microseconds {
    pub(crate) fn of(samples: &Samples) -> Self {
        samples.percentiles().into()
    }

    /// `p50 140 µs  p99 ...`
    pub(crate) fn line(&self) -> String {
        format!(
            "p50 {}  p99 {}  p99.9 {}  max {}  ({} samples)",
            units::micros(self.p50),
            units::micros(self.p99),
            units::micros(self.p999),
            units::micros(self.max),
            units::count(self.samples)
        )
    }
}

impl From<Percentiles> for Microseconds {
    fn from(of: Percentiles) -> Self {
        Self {
            p50: microseconds(of.p50),
            p99: microseconds(of.p99),
            p999: microseconds(of.p999),
            max: microseconds(of.max),
            samples: of.samples,
        }
    }
}

#[allow(clippy::cast_precision_loss)] // times
pub(crate) fn microseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e3
}

/// The value in the middle; the mean of both if there are two. `None` of nothing.
pub(crate) fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n.is_multiple_of(2) => Some(f64::midpoint(values[middle - 1], values[middle])),
        _ => Some(values[middle]),
    }
}

/// A curve: its sign, its name, its values.
pub(crate) type Series<'a> = (char, &'a str, &'a Samples);

const CURVE_COLUMNS: usize = 61;
const CURVE_ROWS: usize = 12;
/// Decades of the horizontal axis: 0 %, 90 %, 99 %, ... 99.999 %.
const CURVE_NINES: usize = 5;

/// Latency over percentile, both on logarithmic scales: each step to the right leaves out nine tenths of what is left.
/// A curve ends where there are too few samples to know more.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a drawing
pub(crate) fn curve(series: &[Series<'_>]) -> String {
    let values = series.iter().filter(|(_, _, samples)| samples.count() > 0);
    let low = values.clone().map(|(_, _, s)| s.0.min()).min().unwrap_or(1).max(1) as f64;
    let high = values.map(|(_, _, s)| last_known(s)).max().unwrap_or(1).max(1) as f64;
    let (low, high) = (low.ln(), high.ln().max(low.ln() + 0.1));
    let mut cells = vec![[' '; CURVE_COLUMNS]; CURVE_ROWS];
    for (sign, _, samples) in series {
        for column in 0..CURVE_COLUMNS {
            let quantile = quantile_of(column);
            if samples.count() as f64 * (1.0 - quantile) < 1.0 {
                break;
            }
            let height = ((samples.at(quantile).max(1) as f64).ln() - low) / (high - low);
            let row = (height.clamp(0.0, 1.0) * (CURVE_ROWS - 1) as f64).round() as usize;
            let line = &mut cells[CURVE_ROWS - 1 - row];
            line[column] = *sign;
        }
    }
    let mut text = String::new();
    for (row, line) in cells.iter().enumerate() {
        let height = 1.0 - row as f64 / (CURVE_ROWS - 1) as f64;
        let label = if row % 3 == 0 || row + 1 == CURVE_ROWS {
            units::nanos((low + height * (high - low)).exp().round() as u64)
        } else {
            String::new()
        };
        let line: String = line.iter().collect();
        text.push_str(&format!("{label:>9} |{}\n", line.trim_end()));
    }
    text.push_str(&format!("{:>9} +{}\n", "", axis()));
    text.push_str(&format!("{:>9}  {}\n", "", axis_labels()));
    let legend: Vec<String> = series
        .iter()
        .map(|(sign, name, s)| format!("{sign} {name} ({} samples)", units::count(s.count())))
        .collect();
    text.push_str(&format!("{:>9}  {}\n", "", legend.join("   ")));
    text
}

#[allow(clippy::cast_precision_loss)] // a drawing
fn quantile_of(column: usize) -> f64 {
    let nines = column as f64 / (CURVE_COLUMNS - 1) as f64 * CURVE_NINES as f64;
    1.0 - 10f64.powf(-nines)
}

/// Value at the last percentile that a curve shows.
#[allow(clippy::cast_precision_loss)] // a drawing
fn last_known(samples: &Samples) -> u64 {
    let known = 1.0 - 1.0 / samples.count() as f64;
    samples.at(known.min(quantile_of(CURVE_COLUMNS - 1)))
}

fn axis() -> String {
    let step = (CURVE_COLUMNS - 1) / CURVE_NINES;
    (0..CURVE_COLUMNS).map(|column| if column % step == 0 { '+' } else { '-' }).collect()
}

fn axis_labels() -> String {
    let step = (CURVE_COLUMNS - 1) / CURVE_NINES;
    let labels = ["0 %", "90", "99", "99.9", "99.99", "99.999 %"];
    let mut text = String::new();
    for (index, label) in labels.iter().enumerate() {
        let start = (index * step).saturating_sub(if index == 0 { 0 } else { label.len() / 2 });
        text.push_str(&" ".repeat(start.saturating_sub(text.len())));
        text.push_str(label);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: impl IntoIterator<Item = u64>) -> Samples {
        let mut samples = Samples::new();
        values.into_iter().for_each(|value| samples.record(value));
        samples
    }

    #[test]
    fn percentiles_survive_packing() {
        let original = samples(1..=1000);
        let packed = serde_json::to_string(&original.pack()).unwrap();
        let copy = serde_json::from_str::<Packed>(&packed).unwrap().unpack();
        assert_eq!(copy.percentiles(), original.percentiles());
        let percentiles = copy.percentiles();
        assert_eq!((percentiles.p50, percentiles.p99, percentiles.samples), (500, 990, 1000));
        let mut both = samples([5000]);
        both.add(&copy);
        assert_eq!(both.count(), 1001);
    }

    #[test]
    fn medians() {
        assert_eq!(median(&mut []), None);
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&mut [4.0, 1.0]), Some(2.5));
    }

    #[test]
    fn a_grouped_median_lies_between_the_ticks() {
        assert!((Samples::new().grouped_median() - 0.0).abs() < 1e-9);
        assert!((samples([7]).grouped_median() - 7.0).abs() < 1e-9);
        assert!((samples([10, 20, 20, 30]).grouped_median() - 20.0).abs() < 1e-9);
        assert!((samples([10, 20, 20, 20, 20, 20]).grouped_median() - 19.0).abs() < 1e-9);
        assert!((samples([10, 10, 10, 20]).grouped_median() - (5.0 + 20.0 / 3.0)).abs() < 1e-9);
        let fine = samples(100..=300);
        assert!((fine.grouped_median() - 200.0).abs() < 1e-9);
    }

    #[test]
    fn a_curve_has_its_size_whatever_the_samples() {
        let empty = Samples::new();
        let one = samples([7]);
        let many = samples((0..100_000).map(|i| 100 + i % 97 * (i % 1013)));
        for list in [vec![('*', "a", &empty)], vec![('*', "a", &one), ('o', "b", &many)]] {
            let text = curve(&list);
            assert_eq!(text.lines().count(), CURVE_ROWS + 3, "{text}");
            assert!(text.lines().all(|line| line.chars().count() < 100), "{text}");
        }
        assert!(curve(&[('o', "b", &many)]).contains("99.999 %"));
    }
}
