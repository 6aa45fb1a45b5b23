//! Flight records, as the demonstration uses them, with a tag that says who published them.

use std::io::Read;
use std::sync::Arc;

const SAMPLE: &[u8] = include_bytes!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../examples/data/flights-sample.ndjson.gz"
));

/// The records in memory.
#[derive(Debug, Clone)]
pub(super) struct Records(Arc<Vec<String>>);

impl Records {
    /// The sample that comes with the program.
    pub(super) fn load() -> Self {
        let mut text = String::new();
        flate2::read::MultiGzDecoder::new(SAMPLE)
            .read_to_string(&mut text)
            .expect("the sample is whole");
        Self(Arc::new(text.lines().map(str::to_owned).collect()))
    }

    /// The line that this life publishes as its `number`-th.
    pub(super) fn line(&self, life: usize, number: usize) -> String {
        let record = &self.0[(life.wrapping_mul(7919) + number) % self.0.len()];
        format!("{life} {number} {record}")
    }

    /// Life and number of a line, if it is one of ours, unaltered.
    pub(super) fn identify(&self, line: &str) -> Option<(usize, usize)> {
        let mut words = line.splitn(3, ' ');
        let life = words.next()?.parse().ok()?;
        let number = words.next()?.parse().ok()?;
        (self.line(life, number) == line).then_some((life, number))
    }
}
