//! Decides from what was found in the files what the journal is, and whether something is missing. No I/O.
//!
//! The journal ends where the chain of batches behind its last usable checkpoint ends. If a witness says that more was
//! durable, something is corrupt; otherwise what lies behind was never confirmed, and is cut off.

use std::collections::BTreeMap;

use super::canary::{Canary, planted};
use super::format::{CLEAN, Header, SNAPSHOT, SNAPSHOT_END};
use super::scan::{FileFacts, Found};
use super::table::Entry;
use super::types::{Damage, Lsn};

/// What is to be done next.
#[derive(Debug)]
pub(super) enum Step {
    /// This file must be read before anything can be said.
    Scan(usize),
    /// That is all.
    Done(Box<Recovered>),
}

/// A segment that takes no more batches, and its file.
#[derive(Debug, Clone)]
pub(super) struct Old {
    pub(super) entry: Entry,
    pub(super) file: usize,
    /// The record that frees it.
    pub(super) freed: Option<Lsn>,
}

/// What a journal is.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    /// 0 if nothing has one.
    pub(super) journal_id: u128,
    /// Highest seen.
    pub(super) incarnation: u64,
    /// Highest seen.
    pub(super) epoch: u64,
    /// File of the last segment, and how many of its batches count.
    pub(super) head: Option<(usize, usize)>,
    /// The segments before it, oldest first.
    pub(super) old: Vec<Old>,
    /// Number after that of the last record.
    pub(super) end_lsn: Lsn,
    /// D: the highest `durable_lsn` anywhere.
    pub(super) witnessed: Lsn,
    pub(super) clean: bool,
    pub(super) cut_batches: u32,
    /// Only if loss is accepted: segments that are missing or have holes, and the file that they should be in.
    pub(super) broken: Vec<(Entry, Option<usize>)>,
}

/// Whether a journal that lacks something is taken for what is left of it. Only `journal repair` does so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    Refused,
    Accepted,
}

/// Batches of one segment that follow each other without a gap.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chain<'a> {
    pub(super) batches: &'a [Found],
}

impl<'a> Chain<'a> {
    /// From the beginning of a file.
    pub(super) fn of(found: &'a [Found], epoch: u64, incarnation: u64) -> Self {
        let mut count = 0;
        let mut previous: Option<&Header> = None;
        for batch in found {
            let header = &batch.header;
            let mine = (planted(Canary::IgnoreEpoch) || header.epoch == epoch)
                && (planted(Canary::IgnoreIncarnation) || header.incarnation == incarnation);
            let linked = match previous {
                None => header.offset == 0,
                Some(previous) => {
                    header.offset == previous.end_offset()
                        && header.first_lsn == previous.end_lsn()
                        && header.previous == previous.chain()
                        && header.durable_lsn >= previous.durable_lsn
                }
            };
            if !mine || !linked || batch.error.is_some() || header.durable_lsn >= header.first_lsn {
                break;
            }
            previous = Some(header);
            count += 1;
        }
        Self { batches: &found[..count] }
    }

    fn first(&self) -> Option<&'a Header> {
        self.batches.first().map(|batch| &batch.header)
    }

    fn last(&self) -> Option<&'a Header> {
        self.batches.last().map(|batch| &batch.header)
    }

    /// Batches of the checkpoint at the beginning, if it is whole.
    fn checkpoint(&self) -> Option<&'a [Found]> {
        let end = self.batches.iter().position(|batch| batch.header.flags & SNAPSHOT_END != 0)?;
        let checkpoint = &self.batches[..=end];
        checkpoint.iter().all(|batch| batch.header.flags & SNAPSHOT != 0).then_some(checkpoint)
    }
}

/// What became of a candidate for the last segment.
enum Verdict {
    Scan(usize),
    Usable(Box<Recovered>),
    /// Not usable: the checkpoint is torn, or what comes before it is. Where that shows: LSN, file and place.
    Void(Lsn, usize, u64, &'static str),
    Corrupt(Damage),
}

/// One step of the decision.
pub(super) fn resolve(files: &[FileFacts], loss: Loss) -> Result<Step, Damage> {
    let accepted = loss == Loss::Accepted || planted(Canary::CutWitnessed);
    let Some(newest) = headers(files).map(|(_, header)| header).max_by_key(age) else {
        // Only the ends of the files were seen: a damaged first block hides what follows it.
        if let Some(file) = files.iter().position(|file| file.found.is_none()) {
            return Ok(Step::Scan(file));
        }
        return Ok(Step::Done(Box::new(Recovered { end_lsn: 1, ..Recovered::default() })));
    };
    let journal_id = newest.journal_id;
    if let Some((file, header)) = headers(files).find(|(_, header)| header.journal_id != journal_id)
    {
        let what = "this batch belongs to another journal".to_owned();
        return Err(damage(files, header.first_lsn, file, header.offset, what));
    }
    // A file without a footer may hold anything.
    if let Some(file) = files.iter().position(|file| file.footer.is_none() && file.found.is_none())
    {
        return Ok(Step::Scan(file));
    }
    let witnessed = headers(files).map(|(_, header)| header.durable_lsn).max().unwrap_or(0);
    let incarnation = headers(files).map(|(_, header)| header.incarnation).max().unwrap_or(0);
    let epoch = headers(files).map(|(_, header)| header.epoch).max().unwrap_or(0);
    let mut voids = Vec::new();
    for (file, age) in candidates(files) {
        match judge(files, file, age, witnessed, loss) {
            Verdict::Scan(file) => return Ok(Step::Scan(file)),
            Verdict::Corrupt(damage) => return Err(damage),
            Verdict::Void(lsn, file, offset, what) => voids.push((lsn, file, offset, what)),
            Verdict::Usable(recovered) => {
                let mut recovered = *recovered;
                if recovered.end_lsn <= witnessed && !accepted {
                    return Err(missing(files, &recovered, &voids, witnessed));
                }
                // Free files with old footers may hold the beginning of something newer.
                let live = |file: usize| recovered.old.iter().any(|old| old.file == file);
                let unread =
                    |(index, file): &(usize, &FileFacts)| file.found.is_none() && !live(*index);
                if let Some((file, _)) = files.iter().enumerate().find(unread) {
                    return Ok(Step::Scan(file));
                }
                recovered.cut_batches = cut_batches(files, &recovered);
                let (epoch, incarnation) = match planted(Canary::RepeatIncarnation) {
                    true => age,
                    false => (epoch, incarnation),
                };
                let seen = Recovered { journal_id, incarnation, epoch, witnessed, ..recovered };
                return Ok(Step::Done(Box::new(seen)));
            }
        }
    }
    if witnessed > 0 && !planted(Canary::CutWitnessed) {
        let (_, file, offset, _) = voids.last().copied().unwrap_or((0, 0, 0, ""));
        let what = format!("no usable checkpoint, but records up to {witnessed} were durable");
        let lsn = headers(files).map(|(_, header)| header.first_lsn).min().unwrap_or(1);
        return Err(damage(files, lsn, file, offset, what));
    }
    let nothing = Recovered { journal_id, incarnation, epoch, end_lsn: 1, ..Recovered::default() };
    Ok(Step::Done(Box::new(nothing)))
}

/// What is younger compares greater.
fn age(header: &&Header) -> (u64, u64) {
    if planted(Canary::IgnoreIncarnation) {
        return (0, header.epoch);
    }
    (header.incarnation, header.epoch)
}

/// All valid headers, with the number of their file.
fn headers(files: &[FileFacts]) -> impl Iterator<Item = (usize, &Header)> {
    files.iter().enumerate().flat_map(|(index, file)| {
        let found = file.found.iter().flatten().map(|found| &found.header);
        file.first.iter().chain(&file.trailer).chain(found).map(move |header| (index, header))
    })
}

/// Files that may be the last segment, the youngest first: file, and epoch and incarnation of what is in it.
fn candidates(files: &[FileFacts]) -> Vec<(usize, (u64, u64))> {
    let mut candidates = Vec::new();
    for (index, file) in files.iter().enumerate() {
        // A footer may be of a later incarnation than its segment.
        let found = file.found.iter().flatten().map(|found| &found.header);
        if let Some(header) = file.first.iter().chain(found).max_by_key(age) {
            candidates.push((index, (header.epoch, header.incarnation)));
        }
    }
    let ignored = planted(Canary::IgnoreIncarnation);
    let key = |(_, (epoch, incarnation)): &(usize, (u64, u64))| {
        (if ignored { 0 } else { *incarnation }, *epoch)
    };
    candidates.sort_by_key(|candidate| std::cmp::Reverse(key(candidate)));
    candidates
}

fn judge(
    files: &[FileFacts],
    file: usize,
    (epoch, incarnation): (u64, u64),
    witnessed: Lsn,
    loss: Loss,
) -> Verdict {
    let Some(found) = &files[file].found else { return Verdict::Scan(file) };
    let chain = Chain::of(found, epoch, incarnation);
    let (Some(first), Some(last), Some(checkpoint)) =
        (chain.first(), chain.last(), chain.checkpoint())
    else {
        let offset = chain.last().map_or(0, Header::end_offset);
        let lsn = chain.last().map_or(0, Header::end_lsn);
        return Verdict::Void(lsn, file, offset, "the checkpoint of a segment is not whole");
    };
    let (mut old, mut broken) = (Vec::new(), Vec::new());
    let freed: BTreeMap<u64, Lsn> =
        chain.batches.iter().flat_map(|batch| batch.freed.iter().copied()).collect();
    let entries: Vec<Entry> =
        checkpoint.iter().flat_map(|batch| batch.entries.iter().copied()).collect();
    let before = entries.last().map_or((1, 0), |entry| (entry.end_lsn, entry.chain));
    if before != (first.first_lsn, first.previous) {
        return Verdict::Void(first.first_lsn, file, 0, "a segment does not follow the one before");
    }
    for entry in entries {
        let freed = freed.get(&entry.epoch).copied();
        match locate(files, &entry) {
            Located::Scan(file) => return Verdict::Scan(file),
            Located::Whole(file) => old.push(Old { entry, file, freed }),
            // It may be in use again.
            Located::Broken(..) if freed.is_some() => {}
            Located::Broken(lsn, at, ..) if lsn <= witnessed && loss == Loss::Accepted => {
                broken.push((entry, at));
            }
            // What is lost behind the end of this segment may have freed that one: the end is the damage.
            Located::Broken(lsn, ..)
                if lsn <= witnessed
                    && last.end_lsn() <= witnessed
                    && !planted(Canary::CutWitnessed) => {}
            Located::Broken(lsn, at, offset, what) if lsn <= witnessed => {
                let corrupt = damage(files, lsn, at.unwrap_or(file), offset, what.to_owned());
                return if planted(Canary::CutWitnessed) {
                    Verdict::Void(lsn, at.unwrap_or(file), offset, what)
                } else {
                    Verdict::Corrupt(named(corrupt, &entry, at))
                };
            }
            Located::Broken(lsn, at, offset, what) => {
                return Verdict::Void(lsn, at.unwrap_or(file), offset, what);
            }
        }
    }
    Verdict::Usable(Box::new(Recovered {
        head: Some((file, chain.batches.len())),
        old,
        end_lsn: last.end_lsn(),
        clean: last.flags & CLEAN != 0,
        broken,
        ..Recovered::default()
    }))
}

pub(super) enum Located {
    Scan(usize),
    Whole(usize),
    /// LSN, file, place, what.
    Broken(Lsn, Option<usize>, u64, &'static str),
}

/// The file of a segment, if all of it is there.
pub(super) fn locate(files: &[FileFacts], entry: &Entry) -> Located {
    let gone = Located::Broken(entry.first_lsn, None, 0, "the segment is missing");
    let Some(index) = files.iter().position(|file| file.number == entry.file_number) else {
        return gone;
    };
    let file = &files[index];
    if let Some(footer) = &file.footer
        && footer.epoch == entry.epoch
        && (footer.incarnation, footer.first_lsn) == (entry.incarnation, entry.first_lsn)
        && (footer.end_lsn, footer.end_offset, footer.chain)
            == (entry.end_lsn, entry.end_offset, entry.chain)
    {
        return Located::Whole(index);
    }
    let Some(found) = &file.found else { return Located::Scan(index) };
    let chain = Chain::of(found, entry.epoch, entry.incarnation);
    let whole = chain.batches.iter().any(|batch| {
        let header = &batch.header;
        (header.end_lsn(), header.end_offset(), header.chain())
            == (entry.end_lsn, entry.end_offset, entry.chain)
    });
    if whole && chain.first().is_some_and(|first| first.first_lsn == entry.first_lsn) {
        return Located::Whole(index);
    }
    let (lsn, offset) =
        chain.last().map_or((entry.first_lsn, 0), |last| (last.end_lsn(), last.end_offset()));
    let at_fault = found.iter().find(|batch| batch.header.offset == offset);
    let what = at_fault
        .and_then(|batch| batch.error)
        .unwrap_or("there is no batch of this segment where one must be");
    Located::Broken(lsn, Some(index), offset, what)
}

fn damage(files: &[FileFacts], lsn: Lsn, file: usize, offset: u64, what: String) -> Damage {
    let file = files.get(file).map(|file| file.name.clone()).unwrap_or_default();
    Damage { lsn, file, offset, what }
}

/// A missing file has its name from the table.
fn named(damage: Damage, entry: &Entry, at: Option<usize>) -> Damage {
    match at {
        Some(_) => damage,
        None => Damage { file: super::table::file_name(entry.file_number), ..damage },
    }
}

/// The journal ends before its last witness.
fn missing(
    files: &[FileFacts],
    recovered: &Recovered,
    voids: &[(Lsn, usize, u64, &'static str)],
    witnessed: Lsn,
) -> Damage {
    let lsn = recovered.end_lsn;
    let (head, batches) = recovered.head.unwrap_or_default();
    let end = files[head].found.as_ref().and_then(|found| found[..batches].last());
    let end = end.map_or(0, |batch| batch.header.end_offset());
    let known = format!("records up to {witnessed} were durable");
    // A younger segment with witnesses of its own is where the damage is.
    let younger = voids.iter().rev().find(|(_, file, ..)| {
        let found = files[*file].found.iter().flatten();
        found.map(|batch| batch.header.durable_lsn).max().unwrap_or(0) >= lsn
    });
    match younger {
        Some((_, file, offset, what)) => {
            damage(files, lsn, *file, *offset, format!("{what}; {known}"))
        }
        None => {
            let found = files[head].found.iter().flatten();
            let at_fault = found.filter(|batch| batch.header.offset == end);
            let what = at_fault.filter_map(|batch| batch.error).next();
            let what = what.unwrap_or("there is no batch that continues the journal");
            damage(files, lsn, head, end, format!("{what}; {known}"))
        }
    }
}

/// Batches with valid headers behind the end. What lies before the end may begin where it ends: a frontier has no
/// records, and the one of a clean stop follows another.
fn cut_batches(files: &[FileFacts], recovered: &Recovered) -> u32 {
    let (head, count) = recovered.head.unwrap_or_default();
    let Some(last) = files[head].found.as_ref().and_then(|found| found[..count].last()) else {
        return 0;
    };
    let found = files.iter().enumerate().flat_map(|(index, file)| {
        let kept = if index == head { count } else { 0 };
        file.found.iter().flatten().skip(kept)
    });
    let behind = found.map(|batch| &batch.header).filter(|header| {
        // Witnesses at its end begin where it ends, as they have no records.
        let own = age(header) == age(&&last.header) && header.offset <= last.header.offset;
        age(header) >= age(&&last.header) && header.first_lsn >= last.header.end_lsn() && !own
    });
    u32::try_from(behind.count()).unwrap_or(u32::MAX)
}
