//! A sample journal, damaged at every place: the damage is noticed, or it hits what has no witness yet, and nothing more than that is lost.

use std::collections::{BTreeMap, BTreeSet};

use ringmain::disk::BLOCK_BYTES;
use ringmain::disk::simulated::Simulation;
use ringmain::journal::format::{FOOTER, Header, Records};
use ringmain::journal::{FLAG_MESSAGE, Lsn, OpenError, inspect};

use super::driver::Driver;
use super::model::Model;

/// A journal of several segments; its last batch is confirmed and has no witness.
#[derive(Debug)]
pub struct Sample {
    pub simulation: Simulation,
    pub model: Model,
    /// Last record.
    pub last: Lsn,
    /// Last record with a witness.
    pub witnessed: Lsn,
    pub batches: Vec<Place>,
    /// Files of which something counts, and the segments in them.
    used: BTreeMap<String, u64>,
    /// Batches that hold something that is asked for: an unacknowledged message at its newest place, or what is replayed.
    live: BTreeSet<usize>,
    /// Batches in free files that hold messages that are still asked for: the cleaner has copied these.
    copied: BTreeSet<usize>,
}

/// A batch of the sample.
#[derive(Debug, Clone)]
pub struct Place {
    pub file: String,
    pub offset: u64,
    pub bytes: u64,
    pub header: Header,
}

/// What became of a damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is missing.
    Harmless,
    /// The journal is not opened.
    Refused,
    /// A message is not served.
    NoticedAtRead,
    /// What had no witness is cut off.
    Cut,
}

impl Sample {
    pub fn new(seed: u64, segments: usize) -> Result<Self, String> {
        let simulation = Simulation::new();
        simulation.hold();
        let text = |error: OpenError| error.to_string();
        let mut driver = Driver::open(&simulation, Model::default(), seed).map_err(text)?;
        driver.settle();
        while driver.journal.statistics().segments < segments {
            driver.step();
        }
        driver.settle();
        // In the middle of a segment, and without a witness for the last batch.
        for _ in 0..if segments == 1 { 2 } else { 8 } {
            driver.publish_small();
            driver.settle();
        }
        driver.publish_small();
        driver.submit();
        simulation.release_all();
        driver.reap();
        let last = driver.journal.durable();
        let witnessed = last - 1;
        let model = driver.model.clone();
        let simulation = simulation.copy();
        let batches = batches(&simulation);
        let found = batches.iter().map(|place| place.header.durable_lsn).max();
        if found != Some(witnessed) || model.operations.last().map(|last| last.lsn) != Some(last) {
            return Err(format!("a sample of its own kind: {found:?}, {last}"));
        }
        let used = used(&simulation)?;
        let mut sample = Self {
            simulation,
            model,
            last,
            witnessed,
            batches,
            used,
            live: BTreeSet::new(),
            copied: BTreeSet::new(),
        };
        sample.look()?;
        Ok(sample)
    }

    fn batch_at(&self, file: &str, offset: u64) -> Option<usize> {
        self.batches.iter().position(|place| {
            place.file == file && (place.offset..place.offset + place.bytes).contains(&offset)
        })
    }

    /// Whether nothing that is in this file counts.
    fn is_free(&self, file: &str) -> bool {
        !self.used.contains_key(file)
    }

    /// Finds out which batches are asked for.
    fn look(&mut self) -> Result<(), String> {
        let state = self.model.state_at(self.last)?;
        let head = self.used.values().max();
        let (mut live, mut copied) = (BTreeSet::new(), BTreeSet::new());
        let mut newest = BTreeMap::new();
        for (at, place) in self.batches.iter().enumerate() {
            let header = &place.header;
            let is_used = self.used.get(&place.file) == Some(&header.epoch);
            if is_used && Some(&header.epoch) == head {
                live.insert(at);
            }
            let bytes = self.simulation.bytes(&place.file).unwrap_or_default();
            let batch = usize::try_from(place.offset).ok().and_then(|at| bytes.get(at..));
            let records = Records::new(batch.unwrap_or_default(), header);
            for (lsn, record) in (header.first_lsn..).zip(records) {
                let name = (record.queue, record.sequence);
                if record.flags & FLAG_MESSAGE == 0 || !state.lengths.contains_key(&name) {
                    continue;
                }
                if self.is_free(&place.file) {
                    copied.insert(at);
                } else if is_used {
                    let known = newest.entry(name).or_insert((lsn, at));
                    *known = (lsn, at).max(*known);
                }
            }
        }
        if newest.len() != state.lengths.len() {
            return Err(format!(
                "{} of {} messages lie in files in use",
                newest.len(),
                state.lengths.len()
            ));
        }
        live.extend(newest.into_values().map(|(_, at)| at));
        (self.live, self.copied) = (live, copied);
        Ok(())
    }

    /// Whether this byte lies in a batch without a witness.
    pub fn has_no_witness(&self, file: &str, offset: u64) -> bool {
        self.batches.iter().any(|place| {
            place.file == file
                && (place.offset..place.offset + place.bytes).contains(&offset)
                && place.header.end_lsn() - 1 > self.witnessed
        })
    }

    /// Opens a damaged copy.
    pub fn judge(&self, damaged: &Simulation) -> Result<Verdict, String> {
        let mut driver = match Driver::open(damaged, self.model.clone(), 1) {
            Ok(driver) => driver,
            Err(OpenError::Corrupt(damage)) if damage.file.is_empty() => {
                return Err(format!("names no file: {damage}"));
            }
            Err(OpenError::Corrupt(_) | OpenError::Io { .. }) => return Ok(Verdict::Refused),
            Err(other) => return Err(other.to_string()),
        };
        let last = driver.journal.durable();
        if last != self.last && last != self.witnessed {
            return Err(format!(
                "ends at {last}, had {} and a witness for {}",
                self.last, self.witnessed
            ));
        }
        match driver.check(&self.model, (last, last)) {
            Ok(()) if last == self.last => Ok(Verdict::Harmless),
            Ok(()) => Ok(Verdict::Cut),
            Err(what) if what.starts_with("journal corrupt") => Ok(Verdict::NoticedAtRead),
            Err(what) => Err(what),
        }
    }
}

/// Files in use, and the epochs of the segments in them.
fn used(simulation: &Simulation) -> Result<BTreeMap<String, u64>, String> {
    let seen = inspect(&mut simulation.copy().disk()).map_err(|error| error.to_string())?;
    let used = seen.segments.into_iter().filter(|file| ["head", "sealed"].contains(&&*file.state));
    Ok(used.map(|file| (file.file, file.epoch)).collect())
}

/// All batches, stale ones included.
pub fn batches(simulation: &Simulation) -> Vec<Place> {
    let mut places = Vec::new();
    for (file, _) in simulation.files() {
        let bytes = simulation.bytes(&file).unwrap_or_default();
        let mut offset = 0;
        while offset < bytes.len() {
            let header = Header::decode(&bytes[offset..]).ok();
            let header = header.filter(|header| header.flags & FOOTER == 0);
            let length = header.as_ref().map_or(BLOCK_BYTES, Header::disk_bytes);
            places.extend(header.map(|header| Place {
                file: file.clone(),
                offset: offset as u64,
                bytes: length as u64,
                header,
            }));
            offset += length;
        }
    }
    places
}

/// What became of flipped bytes.
#[derive(Debug, Default, Clone, Copy)]
pub struct Flips {
    /// By [`Verdict`].
    pub verdicts: [usize; 4],
    /// Of these, in files that hold nothing.
    pub free: usize,
    /// Of these, in batches that lie there from before.
    pub stale: usize,
    /// Of these, where a message lies that is still asked for, and has a copy elsewhere.
    pub copied: usize,
}

/// Flips a byte at each place, `step` bytes apart, and at each byte of each header.
pub fn flips(sample: &Sample, step: usize, first: usize) -> Result<Flips, String> {
    let mut flips = Flips::default();
    for (file, length) in sample.simulation.files() {
        for offset in 0..length {
            let place = usize::try_from(offset).map_err(|error| error.to_string())?;
            let in_header = place % BLOCK_BYTES < 128;
            if place % step != first % step && !in_header {
                continue;
            }
            let damaged = sample.simulation.copy();
            damaged.flip(&file, offset, 1 << (place % 8));
            let at = |what: String| format!("flip in {file} at {offset}: {what}");
            let verdict = sample.judge(&damaged).map_err(at)?;
            let no_witness = sample.has_no_witness(&file, offset);
            if (verdict == Verdict::Cut) != no_witness {
                return Err(at(format!("{verdict:?}, witness missing: {no_witness}")));
            }
            let batch = sample.batch_at(&file, offset);
            if sample.is_free(&file) {
                if verdict != Verdict::Harmless {
                    return Err(at(format!("{verdict:?} in a free file")));
                }
                flips.free += 1;
                flips.stale += usize::from(batch.is_some());
                flips.copied += usize::from(batch.is_some_and(|at| sample.copied.contains(&at)));
            } else if verdict == Verdict::Harmless
                && batch.is_some_and(|at| sample.live.contains(&at))
            {
                return Err(at("not noticed".to_owned()));
            }
            flips.verdicts[verdict as usize] += 1;
        }
    }
    Ok(flips)
}

/// Shortens each file to every length, `step` bytes apart.
pub fn truncations(sample: &Sample, step: u64) -> Result<[usize; 4], String> {
    let mut counts = [0; 4];
    let (end_of_last, last_file) = sample
        .batches
        .iter()
        .filter(|place| place.header.end_lsn() - 1 > sample.witnessed)
        .map(|place| (place.offset + place.bytes, place.file.clone()))
        .next()
        .ok_or("no batch without a witness")?;
    for (file, length) in sample.simulation.files() {
        for length in (0..length).step_by(usize::try_from(step).map_err(|error| error.to_string())?)
        {
            let damaged = sample.simulation.copy();
            damaged.truncate(&file, length);
            let at = |what: String| format!("{file} shortened to {length}: {what}");
            let verdict = sample.judge(&damaged).map_err(at)?;
            if verdict == Verdict::Cut && !(file == last_file && length < end_of_last) {
                return Err(at("more was cut than the end".to_owned()));
            }
            counts[verdict as usize] += 1;
        }
    }
    Ok(counts)
}

/// Makes each block unreadable: that is never an end.
pub fn unreadable(sample: &Sample) -> Result<[usize; 4], String> {
    let mut counts = [0; 4];
    for (file, length) in sample.simulation.files() {
        for offset in (0..length).step_by(BLOCK_BYTES) {
            let damaged = sample.simulation.copy();
            damaged.make_unreadable(&file, offset..offset + 1);
            let at = |what: String| format!("{file} unreadable at {offset}: {what}");
            let verdict = match sample.judge(&damaged) {
                Err(what) if what.contains("Input/output error") => Verdict::NoticedAtRead,
                other => other.map_err(at)?,
            };
            if verdict == Verdict::Cut {
                return Err(at("cut because of a read error".to_owned()));
            }
            counts[verdict as usize] += 1;
        }
    }
    Ok(counts)
}
