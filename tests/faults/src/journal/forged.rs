//! Batches that are right in everything but one field: none of them continues a journal.

use ringmain::disk::BLOCK_BYTES;
use ringmain::disk::simulated::Simulation;
use ringmain::journal::format::{self, Header};
use ringmain::journal::{Lsn, OpenError};

use super::driver::Driver;
use super::model::Model;
use super::rot::batches;

/// What is wrong with the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// Nothing: it is taken, which shows that the others are refused for their fields.
    None,
    Epoch,
    Incarnation,
    Offset,
    FirstLsn,
    Previous,
    JournalId,
    FileBlocks,
    Body,
}

impl Field {
    pub const WRONG: [Self; 8] = [
        Self::Epoch,
        Self::Incarnation,
        Self::Offset,
        Self::FirstLsn,
        Self::Previous,
        Self::JournalId,
        Self::FileBlocks,
        Self::Body,
    ];
}

/// A journal of the second incarnation, closed without a farewell.
fn journal() -> Result<(Simulation, Lsn), String> {
    let simulation = Simulation::new();
    simulation.hold();
    let mut model = Model::default();
    for _ in 0..2 {
        let mut driver = Driver::open(&simulation, model, 1).map_err(|error| error.to_string())?;
        driver.settle();
        for _ in 0..3 {
            driver.publish_small();
            driver.settle();
        }
        model = driver.model;
    }
    simulation.kill(1);
    let last = model.operations.last().map_or(0, |operation| operation.lsn);
    Ok((simulation.copy(), last))
}

/// Puts a batch behind the last one and opens the journal: whether it was taken.
pub fn forge(field: Field) -> Result<bool, String> {
    let (simulation, last) = journal()?;
    let places = batches(&simulation);
    let end = places
        .iter()
        .max_by_key(|place| (place.header.epoch, place.offset))
        .ok_or("a journal without batches")?;
    let before = end.header;
    let mut header = Header {
        flags: 0,
        offset: end.offset + end.bytes,
        first_lsn: before.end_lsn(),
        durable_lsn: before.durable_lsn,
        count: 1,
        length: 152,
        previous: before.chain(),
        ..before
    };
    match field {
        Field::None | Field::Body => {}
        Field::Epoch => header.epoch -= 1,
        Field::Incarnation => header.incarnation -= 1,
        Field::Offset => header.offset += BLOCK_BYTES as u64,
        Field::FirstLsn => header.first_lsn += 1,
        Field::Previous => header.previous ^= 1,
        Field::JournalId => header.journal_id ^= 1,
        Field::FileBlocks => header.file_blocks += 1,
    }
    // An acknowledgement of the first message that is left.
    let mut batch = vec![0; BLOCK_BYTES];
    batch[128 + 4] = 2;
    batch[128 + 8] = 1;
    batch[128 + 16] = 1;
    format::seal(&mut batch, &mut header);
    if field == Field::Body {
        batch[BLOCK_BYTES - 1] ^= 1;
    }
    let mut bytes = simulation.bytes(&end.file).ok_or("the file is there")?;
    let at = usize::try_from(end.offset + end.bytes).map_err(|error| error.to_string())?;
    bytes[at..at + BLOCK_BYTES].copy_from_slice(&batch);
    simulation.put(&end.file, &bytes);
    match Driver::open(&simulation, Model::default(), 1) {
        Ok(driver) => {
            let taken = driver.journal.durable() > last;
            let expected = field == Field::None;
            if taken != expected {
                return Err(format!("{field:?}: taken: {taken}"));
            }
            Ok(taken)
        }
        Err(OpenError::Corrupt(_)) if matches!(field, Field::JournalId | Field::FileBlocks) => {
            Ok(false)
        }
        Err(error) => Err(format!("{field:?}: {error}")),
    }
}
