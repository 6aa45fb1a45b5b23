//! Repair: afterwards the journal verifies and opens, has lost no more than it says, and nothing was deleted.

use std::collections::BTreeMap;

use ringmain::disk::simulated::{CrashOptions, Simulation};
use ringmain::journal::format::Records;
use ringmain::journal::{FLAG_MESSAGE, Lsn, OpenError, repair, verify};

use super::driver::Driver;
use super::model::Model;
use super::rot::{Sample, Verdict};

/// What became of the damaged journals: mended, not to be mended, not damaged after all.
#[derive(Debug, Default, Clone, Copy)]
pub struct Count {
    pub mended: usize,
    pub hopeless: usize,
    pub sound: usize,
}

/// Where a message was written: once, and again for each copy of it.
type Places = BTreeMap<(u64, u64), Vec<Lsn>>;

fn places(sample: &Sample) -> Places {
    let mut places = Places::new();
    for place in &sample.batches {
        let bytes = sample.simulation.bytes(&place.file).unwrap_or_default();
        let batch = usize::try_from(place.offset).ok().and_then(|at| bytes.get(at..));
        let records = Records::new(batch.unwrap_or_default(), &place.header);
        for (lsn, record) in (place.header.first_lsn..).zip(records) {
            if record.flags & FLAG_MESSAGE != 0 {
                places.entry((record.queue, record.sequence)).or_default().push(lsn);
            }
        }
    }
    places
}

/// Damages one byte of each batch and each whole file in turn.
pub fn everywhere(sample: &Sample) -> Result<Count, String> {
    let mut count = Count::default();
    let places = places(sample);
    for place in &sample.batches {
        let damaged = sample.simulation.copy();
        damaged.flip(&place.file, place.offset + 130, 1);
        let at = |what: String| format!("{} at {}: {what}", place.file, place.offset);
        one(sample, &places, &damaged, &mut count).map_err(at)?;
    }
    for (file, length) in sample.simulation.files() {
        let damaged = sample.simulation.copy();
        damaged.truncate(&file, length / 2);
        one(sample, &places, &damaged, &mut count)
            .map_err(|what| format!("{file} halved: {what}"))?;
    }
    Ok(count)
}

fn one(
    sample: &Sample,
    places: &Places,
    damaged: &Simulation,
    count: &mut Count,
) -> Result<(), String> {
    if sample.judge(damaged)? != Verdict::Refused && verify(&mut damaged.disk()).is_ok() {
        count.sound += 1;
        return Ok(());
    }
    let before = damaged.files().len();
    let told = repair(|| Ok(damaged.disk()), false).map_err(|error| error.to_string())?;
    if told.repaired || told.damages.is_empty() || damaged.files().len() != before {
        return Err(format!("a repair that only looks: {told:?}"));
    }
    let report = match repair(|| Ok(damaged.disk()), true) {
        Ok(report) => report,
        Err(OpenError::Corrupt(_)) => {
            count.hopeless += 1;
            return Ok(());
        }
        Err(other) => return Err(other.to_string()),
    };
    count.mended += 1;
    if !report.repaired || damaged.files().len() < before {
        return Err(format!("{report:?}"));
    }
    verify(&mut damaged.disk()).map_err(|error| format!("after the repair: {error}"))?;
    let mut driver = Driver::open(damaged, sample.model.clone(), 1)
        .map_err(|error| format!("after the repair: {error}"))?;
    let last = driver.journal.durable();
    let expected = sample.model.state_at(last)?;
    for (queue, sequence) in expected.lengths.keys() {
        let lsns = places.get(&(*queue, *sequence)).map_or(&[][..], Vec::as_slice);
        let lost = report
            .lost
            .iter()
            .any(|(first, last)| lsns.iter().any(|lsn| (*first..=*last).contains(lsn)));
        match driver.fetch(*queue, *sequence)? {
            None if !lost => return Err(format!("{queue}/{sequence}, LSN {lsns:?}: {report:?}")),
            _ => {}
        }
    }
    // The repair is on stable storage.
    let point = damaged.point();
    let options = CrashOptions { limit: 16, seed: 1, garbage: true };
    drop(driver);
    for state in damaged.crash_states(point, options) {
        Driver::open(&state, Model::default(), 1)
            .map_err(|error| format!("after repair and power cut: {error}"))?;
    }
    Ok(())
}
