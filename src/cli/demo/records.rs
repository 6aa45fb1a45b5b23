//! Records: the lines of a file, plain or gzip, or the sample that comes with the program.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use serde::{Deserialize, Serialize};

use crate::cli::exit::{Exit, Failure, Outcome};

/// 100,000 flights of January 2001.
const SAMPLE: &[u8] =
    include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/flights-sample.ndjson.gz"));

/// All records are held in memory, by each process.
const BYTES_MAX: u64 = 1 << 30;

/// Where the records come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Source {
    Sample,
    File(PathBuf),
}

impl Source {
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Sample => "built-in sample: 100,000 US flights of January 2001".to_string(),
            Self::File(path) => path.display().to_string(),
        }
    }
}

/// Records in memory.
#[derive(Debug)]
pub(crate) struct Records {
    bytes: Vec<u8>,
    ranges: Vec<Range<usize>>,
}

impl Records {
    pub(crate) fn load(source: &Source) -> Outcome<Self> {
        let (bytes, name) = match source {
            Source::Sample => (unpack(SAMPLE), Path::new("the built-in sample")),
            Source::File(path) => (File::open(path).and_then(unpack), path.as_path()),
        };
        let bytes = bytes.map_err(|error| Failure::file(name, "read", &error))?;
        if bytes.len() as u64 > BYTES_MAX {
            return Err(Failure::new(
                Exit::Data,
                format_args!("{} has more than {BYTES_MAX} bytes of records", name.display()),
            ));
        }
        let records = Self::split(bytes);
        if records.ranges.is_empty() {
            return Err(Failure::new(Exit::Data, format_args!("{} has no lines", name.display())));
        }
        Ok(records)
    }

    /// Lines without their line breaks; a last line without one counts.
    fn split(bytes: Vec<u8>) -> Self {
        let (mut ranges, mut start) = (Vec::new(), 0);
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let length = line.len() - usize::from(line.ends_with(b"\n"));
            ranges.push(start..start + length);
            start += line.len();
        }
        Self { bytes, ranges }
    }

    pub(crate) fn len(&self) -> usize {
        self.ranges.len()
    }

    /// The record of this number, counted over several passes.
    #[inline]
    pub(crate) fn get(&self, number: u64) -> &[u8] {
        let count = self.ranges.len() as u64;
        // Below the count, which is a usize.
        let index = usize::try_from(number % count).unwrap_or(0);
        &self.bytes[self.ranges[index].clone()]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.ranges.iter().map(|range| &self.bytes[range.clone()])
    }

    pub(crate) fn longest(&self) -> usize {
        self.ranges.iter().map(Range::len).max().unwrap_or(0)
    }

    /// Length of the record in the middle.
    pub(crate) fn median_length(&self) -> usize {
        let mut lengths: Vec<usize> = self.ranges.iter().map(Range::len).collect();
        let middle = lengths.len() / 2;
        *lengths.select_nth_unstable(middle).1
    }
}

/// Everything, decompressed if it is gzip; one byte more than [`BYTES_MAX`] at most.
fn unpack(input: impl Read) -> io::Result<Vec<u8>> {
    let mut input = io::BufReader::new(input);
    let gzip = io::BufRead::fill_buf(&mut input)?.starts_with(&[0x1f, 0x8b]);
    let mut bytes = Vec::new();
    if gzip {
        MultiGzDecoder::new(input).take(BYTES_MAX + 1).read_to_end(&mut bytes)?;
    } else {
        input.take(BYTES_MAX + 1).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// A 128-bit hash of a record and a number: two folded multiplications per 16 bytes. It tells records apart that
/// differ by accident; it is no defence against one who looks for a collision.
pub(crate) fn fingerprint(number: u64, record: &[u8]) -> [u64; 2] {
    const KEYS: [[u64; 2]; 2] = [
        [0xa076_1d64_78bd_642f, 0xe703_7ed1_a0b4_28db],
        [0x8ebc_6af0_9c88_c6e3, 0x5899_65cc_7537_4cc3],
    ];
    let length = record.len() as u64;
    let mut lanes = KEYS.map(|[first, second]| fold(number ^ first, length ^ second));
    let mut add = |low: u64, high: u64| {
        for (lane, [first, second]) in lanes.iter_mut().zip(KEYS) {
            *lane = fold(low ^ *lane ^ first, high ^ lane.rotate_left(32) ^ second);
        }
    };
    let mut blocks = record.chunks_exact(16);
    for block in &mut blocks {
        let (low, high) = block.split_at(8);
        add(word(low), word(high));
    }
    let rest = blocks.remainder();
    let (low, high) = rest.split_at(rest.len().min(8));
    add(word(low), word(high));
    lanes
}

/// Up to eight bytes as a number; the length of the record is in the hash, so zeros at the end are no collision.
#[inline]
fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

#[inline]
#[allow(clippy::cast_possible_truncation)] // both halves are used
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// A hash of a set in which order does not matter and repetition does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Multiset {
    sums: [u64; 2],
    count: u64,
}

impl Multiset {
    #[inline]
    pub(crate) fn add(&mut self, fingerprint: [u64; 2]) {
        self.add_times(fingerprint, 1);
    }

    pub(crate) fn add_times(&mut self, fingerprint: [u64; 2], times: u64) {
        for (sum, lane) in self.sums.iter_mut().zip(fingerprint) {
            *sum = sum.wrapping_add(lane.wrapping_mul(times));
        }
        self.count = self.count.wrapping_add(times);
    }

    /// Both together.
    pub(crate) fn union(self, other: Self) -> Self {
        Self {
            sums: [0, 1].map(|lane| self.sums[lane].wrapping_add(other.sums[lane])),
            count: self.count.wrapping_add(other.count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_sample_is_whole() {
        let records = Records::load(&Source::Sample).unwrap();
        assert_eq!(records.len(), 100_000);
        assert!(records.iter().all(|record| record.starts_with(b"{\"date\":\"2001-01-")));
        assert_eq!(records.get(100_003), records.get(3));
        assert!((60..100).contains(&records.median_length()));
        assert!(records.longest() >= records.median_length());
    }

    #[test]
    fn lines_are_records() {
        let split = |text: &str| {
            let records = Records::split(Vec::from(text));
            records.iter().map(|r| String::from_utf8_lossy(r).into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(split("a\n\nb"), ["a", "", "b"]);
        assert_eq!(split("a\n"), ["a"]);
        assert!(split("").is_empty());
    }

    #[test]
    fn fingerprints_differ() {
        let texts = ["", "\0", "\0\0", "a", "b", "ab", "0123456789abcdef", "0123456789abcdef\0"];
        let mut seen = HashSet::new();
        for text in texts {
            for number in 0..4 {
                assert!(seen.insert(fingerprint(number, text.as_bytes())), "{text:?} {number}");
            }
        }
        let record = b"0123456789abcdefghijklmnopqrstuvwxyz".to_vec();
        for byte in 0..record.len() {
            let mut changed = record.clone();
            changed[byte] ^= 1;
            assert!(seen.insert(fingerprint(0, &changed)));
        }
    }

    #[test]
    fn multisets_ignore_order_and_see_repetition() {
        let of = |numbers: &[u64]| {
            let mut set = Multiset::default();
            numbers.iter().for_each(|number| set.add(fingerprint(*number, b"x")));
            set
        };
        assert_eq!(of(&[1, 2, 3]), of(&[3, 1, 2]));
        assert_ne!(of(&[1, 2, 2]), of(&[1, 1, 2]));
        assert_eq!(of(&[1, 2]).union(of(&[3])), of(&[1, 2, 3]));
        let mut twice = Multiset::default();
        twice.add_times(fingerprint(1, b"x"), 2);
        assert_eq!(twice, of(&[1, 1]));
    }
}
