//! Looks at a journal that nobody uses: every byte of it, or an overview. Writes nothing.

use serde::Serialize;

use super::format::{FOOTER, Header};
use super::open::Survey;
use super::recovery::{Chain, Located, Loss, locate};
use super::scan::{FileFacts, Found};
use super::types::{Damage, Lsn, OpenError};
use crate::disk::Disk;

/// A journal in which nothing is missing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Id of the journal, hexadecimal; empty if there is none yet.
    pub journal_id: String,
    /// How often it was opened and written to.
    pub incarnation: u64,
    /// Last record.
    pub last_lsn: Lsn,
    /// Last record with a witness.
    pub witnessed_lsn: Lsn,
    /// It was closed cleanly.
    pub clean: bool,
    /// Batches behind the end, which the next start cuts off.
    pub cut_batches: u32,
    /// Segments with records.
    pub segments: usize,
    /// Of these, without a valid index: the next start reads them as a whole.
    pub segments_without_index: usize,
    /// Batches.
    pub batches: u64,
    /// Records.
    pub records: u64,
    /// Messages, acknowledged ones included.
    pub messages: u64,
    /// Bytes of all batches.
    pub bytes: u64,
    /// Files in which nothing counts: made ahead of need, or freed.
    pub free_files: usize,
    /// Of these, with remains of an earlier use; the others are full of zeros.
    pub free_files_used_before: usize,
}

/// One segment file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SegmentInfo {
    /// Name of the file.
    pub file: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// `head`, `sealed`, `freed`, `free` (nothing in it counts) or `unknown` (the journal is damaged).
    pub state: String,
    /// Epoch; 0 if there is no batch.
    pub epoch: u64,
    /// Incarnation of its batches.
    pub incarnation: u64,
    /// First record.
    pub first_lsn: Lsn,
    /// Last record; one less than the first if there is none.
    pub last_lsn: Lsn,
    /// Batches.
    pub batches: u64,
    /// Messages.
    pub messages: u64,
    /// Bytes of the batches.
    pub used_bytes: u64,
    /// It has a valid index.
    pub index: bool,
}

/// What there is, damaged or not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// As [`VerifyReport`]; zeros if the journal is damaged.
    pub report: VerifyReport,
    /// All files, by name.
    pub segments: Vec<SegmentInfo>,
    /// Why it cannot be opened, in words.
    pub damage: Option<String>,
}

/// Checks every byte that counts, and reads all others: a free file may hold anything, but it must be readable.
///
/// # Errors
/// [`OpenError::Corrupt`] names the first damage; [`OpenError::Io`] and the others say why nothing can be said.
pub fn verify(disk: &mut impl Disk) -> Result<VerifyReport, OpenError> {
    let mut survey = Survey::of(disk, Loss::Refused)?;
    let mut report = begin(&survey);
    for old in survey.recovered.old.clone() {
        if old.freed.is_some() {
            continue;
        }
        let facts = &mut survey.files[old.file];
        report.segments_without_index += usize::from(facts.footer.is_none());
        facts.scan(disk)?;
        // Now without its help.
        facts.footer = None;
        if let Located::Broken(lsn, _, offset, what) = locate(&survey.files, &old.entry) {
            let file = survey.files[old.file].name.clone();
            return Err(OpenError::Corrupt(Damage { lsn, file, offset, what: what.to_owned() }));
        }
    }
    for file in &mut survey.files {
        file.scan(disk)?;
    }
    report.count_all(&survey);
    Ok(report)
}

fn chain(facts: &FileFacts, epoch: u64, incarnation: u64) -> &[Found] {
    facts.found.as_ref().map_or(&[], |found| Chain::of(found, epoch, incarnation).batches)
}

fn begin(survey: &Survey) -> VerifyReport {
    let recovered = &survey.recovered;
    let journal_id = match recovered.journal_id {
        0 => String::new(),
        id => format!("{id:032x}"),
    };
    VerifyReport {
        journal_id,
        incarnation: recovered.incarnation,
        last_lsn: recovered.end_lsn - 1,
        witnessed_lsn: recovered.witnessed,
        clean: recovered.clean,
        cut_batches: recovered.cut_batches,
        segments: recovered.old.len() + usize::from(recovered.head.is_some()),
        ..VerifyReport::default()
    }
}

fn messages(batch: &Found) -> u64 {
    batch.runs.iter().map(|run| u64::from(run.count)).sum()
}

impl VerifyReport {
    /// Counts what the journal consists of; all its files have been read.
    fn count_all(&mut self, survey: &Survey) {
        for old in survey.recovered.old.iter().filter(|old| old.freed.is_none()) {
            let chain = chain(&survey.files[old.file], old.entry.epoch, old.entry.incarnation);
            let counted = chain.iter().filter(|batch| batch.header.end_lsn() <= old.entry.end_lsn);
            counted.for_each(|batch| self.count(batch));
        }
        if let Some((file, count)) = survey.recovered.head {
            let found = survey.files[file].found.iter().flatten();
            found.take(count).for_each(|batch| self.count(batch));
        }
        let states = (0..survey.files.len()).map(|at| state(survey, at));
        for (file, _) in survey.files.iter().zip(states).filter(|(_, state)| is_free(state)) {
            let remains = file.litter || file.trailer.is_some();
            let remains = remains || file.found.as_ref().is_some_and(|found| !found.is_empty());
            self.free_files += 1;
            self.free_files_used_before += usize::from(remains);
        }
    }

    fn count(&mut self, batch: &Found) {
        self.batches += 1;
        self.records += u64::from(batch.header.count);
        self.messages += messages(batch);
        self.bytes += batch.header.disk_bytes() as u64;
    }
}

/// An overview, of a damaged journal as well.
///
/// # Errors
/// [`OpenError`], except [`OpenError::Corrupt`], which becomes part of the answer.
pub fn inspect(disk: &mut impl Disk) -> Result<Inspection, OpenError> {
    match Survey::of(disk, Loss::Refused) {
        Ok(mut survey) => {
            for file in &mut survey.files {
                file.scan(disk)?;
            }
            let states: Vec<&str> = (0..survey.files.len()).map(|at| state(&survey, at)).collect();
            let infos = survey.files.iter().zip(states).map(|(file, state)| info(file, state));
            let mut report = begin(&survey);
            report.count_all(&survey);
            Ok(Inspection { segments: infos.collect(), damage: None, report })
        }
        Err(OpenError::Corrupt(damage)) => {
            let mut segments = Vec::new();
            for (name, _) in disk.list().map_err(|error| OpenError::Io {
                call: "list",
                file: String::new(),
                offset: 0,
                error,
            })? {
                segments.push(SegmentInfo {
                    file: name,
                    state: "unknown".to_owned(),
                    ..SegmentInfo::default()
                });
            }
            let damage = Some(damage.to_string());
            Ok(Inspection { report: VerifyReport::default(), segments, damage })
        }
        Err(other) => Err(other),
    }
}

fn state(survey: &Survey, at: usize) -> &'static str {
    let recovered = &survey.recovered;
    if recovered.head.is_some_and(|(head, _)| head == at) {
        return "head";
    }
    match recovered.old.iter().find(|old| old.file == at) {
        Some(old) if old.freed.is_some() => "freed",
        Some(_) => "sealed",
        None => "free",
    }
}

fn is_free(state: &str) -> bool {
    matches!(state, "free" | "freed")
}

fn info(file: &FileFacts, state: &str) -> SegmentInfo {
    let newest: Option<&Header> = (file.found.iter().flatten().map(|batch| &batch.header))
        .chain(&file.first)
        .filter(|header| header.flags & FOOTER == 0)
        .max_by_key(|header| (header.incarnation, header.epoch));
    let (epoch, incarnation) = newest.map_or((0, 0), |header| (header.epoch, header.incarnation));
    let batches = chain(file, epoch, incarnation);
    let first_lsn = batches.first().map_or(0, |batch| batch.header.first_lsn);
    SegmentInfo {
        file: file.name.clone(),
        bytes: file.bytes,
        state: state.to_owned(),
        epoch,
        incarnation,
        first_lsn,
        last_lsn: batches.last().map_or(0, |batch| batch.header.end_lsn().saturating_sub(1)),
        batches: batches.len() as u64,
        messages: batches.iter().map(messages).sum(),
        used_bytes: batches.last().map_or(0, |batch| batch.header.end_offset()),
        index: file.footer.is_some(),
    }
}
