//! Opening: what the disk holds, made durable, read, decided upon and replayed. Writes nothing.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;

use super::canary::{Canary, planted};
use super::contents::Contents;
use super::engine::{Identity, Journal, Start};
use super::format::{self, Records, SNAPSHOT, SNAPSHOT_END};
use super::index::{Index, Run};
use super::recovery::{Loss, Old, Recovered, Step, resolve};
use super::scan::{FileFacts, Window};
use super::space::{Segment, Spare, Torn};
use super::table::{Entry, file_number};
use super::types::{
    Config, Damage, FLAG_COPY, FLAG_MESSAGE, KIND_RESERVED, Location, Lsn, OpenError, OpenReport,
    Replay, Stored,
};
use crate::disk::{BLOCK_BYTES, Buffer, Disk, FileId};

/// Flags of a copy. Of other records the second one says nothing here.
const COPIED: u8 = FLAG_MESSAGE | FLAG_COPY;

/// What opening a folder of files has told.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) files: Vec<FileFacts>,
    pub(super) recovered: Recovered,
    pub(super) scanned_bytes: u64,
}

fn failed(call: &'static str, file: &str) -> impl FnOnce(io::Error) -> OpenError {
    move |error| match error.kind() {
        io::ErrorKind::WouldBlock if call == "open" => OpenError::Locked { file: file.to_owned() },
        _ => OpenError::Io { call, file: file.to_owned(), offset: 0, error },
    }
}

/// Opens and locks all segment files.
fn open_files(disk: &mut impl Disk) -> Result<Vec<(u64, String, u64, FileId)>, OpenError> {
    let mut files: Vec<(u64, String, u64, FileId)> = Vec::new();
    loop {
        let listed = disk.list().map_err(failed("list", ""))?;
        let names = listed.iter().filter_map(|(name, _)| Some((file_number(name)?, name)));
        let mut changed = false;
        for (number, name) in names {
            if files.iter().any(|(known, ..)| *known == number) {
                continue;
            }
            changed = true;
            let file = match disk.open(name) {
                Ok(file) => file,
                // Removed since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed("open", name)(error)),
            };
            let bytes = disk.length(file).map_err(failed("measure", name))?;
            files.push((number, name.clone(), bytes, file));
        }
        // Until its locks are gone a dying process may have made files and removed some: what is there now counts.
        if !changed {
            let is_there = |(_, name, ..): &(u64, String, u64, FileId)| {
                listed.iter().any(|(listed, _)| listed == name)
            };
            files.retain(is_there);
            files.sort_unstable_by_key(|(number, ..)| *number);
            return Ok(files);
        }
    }
}

impl Survey {
    /// Opens the files and finds out what the journal is.
    pub(super) fn of(disk: &mut impl Disk, loss: Loss) -> Result<Self, OpenError> {
        let opened = open_files(disk)?;
        // No decision may rest on what a killed process left in a cache.
        if !planted(Canary::SkipOpenSync) {
            for (_, name, _, file) in &opened {
                disk.sync(*file).map_err(failed("sync", name))?;
            }
        }
        if !planted(Canary::SkipDirectorySync) {
            disk.sync_directory().map_err(failed("sync", ""))?;
        }
        let mut files = Vec::new();
        for (number, name, bytes, file) in opened {
            files.push(FileFacts::look(disk, (number, name, bytes), file)?);
        }
        let mut scanned_bytes = 0;
        let recovered = loop {
            match resolve(&files, loss).map_err(OpenError::Corrupt)? {
                Step::Scan(file) => scanned_bytes += files[file].scan(disk)?,
                Step::Done(recovered) => break *recovered,
            }
        };
        Ok(Self { files, recovered, scanned_bytes })
    }

    /// The last segment, as the next checkpoint will name it.
    pub(super) fn head_entry(&self) -> Option<(Entry, usize)> {
        let (file, count) = self.recovered.head?;
        let facts = &self.files[file];
        let chain = facts.found.as_ref()?.get(..count)?;
        let (first, last) = (&chain.first()?.header, &chain.last()?.header);
        let entry = Entry {
            epoch: first.epoch,
            incarnation: first.incarnation,
            file_number: facts.number,
            first_lsn: first.first_lsn,
            end_lsn: last.end_lsn(),
            end_offset: last.end_offset(),
            chain: last.chain(),
        };
        Some((entry, file))
    }

    /// The files whose first batch is younger than everything that counts.
    fn torn(&self, disk: &mut impl Disk) -> Result<Torn, OpenError> {
        let end = self.head_entry().map_or((0, 0), |(entry, _)| (entry.incarnation, entry.epoch));
        let mut torn = Torn::default();
        for facts in &self.files {
            if facts.first.as_ref().is_some_and(|first| (first.incarnation, first.epoch) > end) {
                let mut block = Buffer::new(BLOCK_BYTES);
                facts.read(disk, 0, &mut block)?;
                torn.add(facts.file, block);
            }
        }
        Ok(torn)
    }

    /// Runs of messages of a segment.
    fn runs(&self, entry: &Entry, file: usize) -> Vec<Run> {
        let facts = &self.files[file];
        if let Some(footer) = &facts.footer
            && footer.epoch == entry.epoch
            && footer.chain == entry.chain
        {
            return footer.runs.clone();
        }
        let found = facts.found.iter().flatten();
        let mine = found.take_while(|found| {
            found.header.epoch == entry.epoch && found.header.end_lsn() <= entry.end_lsn
        });
        mine.flat_map(|found| found.runs.iter().copied()).collect()
    }

    fn has_footer(&self, entry: &Entry, file: usize) -> bool {
        let footer = self.files[file].footer.as_ref();
        footer.is_some_and(|footer| footer.epoch == entry.epoch && footer.chain == entry.chain)
    }
}

/// Gives the records of the last segment to the owner.
pub(super) fn replay(
    disk: &mut impl Disk,
    survey: &Survey,
    replay: &mut dyn Replay,
) -> Result<u64, OpenError> {
    let Some((file, count)) = survey.recovered.head else { return Ok(0) };
    let facts = &survey.files[file];
    let mut window = Window::new(facts.bytes);
    replay.checkpoint_begin();
    for found in facts.found.iter().flatten().take(count) {
        let header = &found.header;
        let corrupt = |lsn: Lsn, what: String| {
            let (file, offset) = (facts.name.clone(), header.offset);
            OpenError::Corrupt(Damage { lsn, file, offset, what })
        };
        let place = (facts.file, facts.name.as_str());
        let bytes = window.at(disk, place, header.offset, header.disk_bytes())?;
        // It is read for the second time.
        if let Some(what) = format::body_error(bytes, header) {
            return Err(corrupt(header.first_lsn, what.to_owned()));
        }
        for (lsn, record) in (header.first_lsn..).zip(Records::new(bytes, header)) {
            let is_copy = record.flags & COPIED == COPIED && !planted(Canary::ReplayCopies);
            if record.kind >= KIND_RESERVED || is_copy {
                continue;
            }
            let location = Location {
                segment: header.epoch,
                batch: super::batch::block_number(header.offset),
                record: record.offset,
            };
            let stored = Stored {
                lsn,
                location,
                kind: record.kind,
                flags: record.flags,
                queue: record.queue,
                sequence: record.sequence,
                body: record.body,
            };
            replay.record(stored).map_err(|what| corrupt(lsn, what))?;
        }
        if header.flags & (SNAPSHOT | SNAPSHOT_END) == SNAPSHOT | SNAPSHOT_END {
            replay.checkpoint_end();
        }
    }
    Ok(window.read_bytes)
}

/// From the keys of a hash map, which the operating system makes.
fn random_id() -> u128 {
    let half = || u128::from(RandomState::new().build_hasher().finish());
    (half() << 64 | half()).max(1)
}

impl<D: Disk> Journal<D> {
    /// Reads the journal of a disk; writes nothing before the first [`Self::submit`]. Until then [`Self::is_ready`] is `Full`.
    ///
    /// # Errors
    /// See [`OpenError`]. Nothing is changed then.
    pub fn open(
        mut disk: D,
        config: Config,
        owner: &mut dyn Replay,
    ) -> Result<(Self, OpenReport), OpenError> {
        let config = config.bounded();
        let survey = Survey::of(&mut disk, Loss::Refused)?;
        let replayed_bytes = replay(&mut disk, &survey, owner)?;
        let recovered = &survey.recovered;
        let journal_id = match (recovered.journal_id, config.journal_id) {
            (0, 0) => random_id(),
            (0, chosen) => chosen,
            (known, _) => known,
        };
        let incarnation = recovered.incarnation + 1;
        let identity = Identity { journal_id, incarnation, shard: config.shard };
        let report = OpenReport {
            journal_id,
            incarnation,
            last_lsn: recovered.end_lsn - 1,
            witnessed_lsn: recovered.witnessed,
            clean: recovered.clean,
            cut_batches: recovered.cut_batches,
            segments: recovered.old.len() + usize::from(recovered.head.is_some()),
            scanned_bytes: survey.scanned_bytes + replayed_bytes,
        };
        let torn = survey.torn(&mut disk)?;
        let start = prepare(survey, torn, identity, &config);
        Ok((Self::start(disk, config, start), report))
    }
}

fn prepare(survey: Survey, torn: Torn, identity: Identity, config: &Config) -> Start {
    let mut index = Index::default();
    let mut segments = Vec::new();
    let mut used = Vec::new();
    let head = survey.head_entry();
    let chain = head.map_or(0, |(entry, _)| entry.chain);
    let head = head.map(|(entry, file)| Old { entry, file, freed: None });
    for Old { entry, file, freed } in survey.recovered.old.iter().cloned().chain(head) {
        used.push(file);
        let mut contents = Contents::default();
        if freed.is_none() {
            let runs = survey.runs(&entry, file);
            runs.iter().for_each(|run| index.insert(*run));
            contents.add(&runs);
        }
        let facts = &survey.files[file];
        let mut segment = Segment::new(entry, facts.file, facts.bytes, contents);
        segment.has_footer = survey.has_footer(&entry, file);
        segment.freed = freed;
        segments.push(segment);
    }
    let (mut spares, mut surplus) = (Vec::new(), Vec::new());
    for (_, facts) in survey.files.iter().enumerate().filter(|(at, _)| !used.contains(at)) {
        let spare = Spare { file: facts.file, number: facts.number, bytes: facts.bytes };
        // One more than is held ready: the next segment begins at once.
        let useful = spare.bytes == config.segment_bytes && spares.len() <= config.spares;
        if useful { spares.push(spare) } else { surplus.push(spare) }
    }
    let highest = survey.files.iter().map(|facts| facts.number).max().unwrap_or(0);
    Start {
        identity,
        next_epoch: survey.recovered.epoch + 1,
        next_file: highest + 1,
        end_lsn: survey.recovered.end_lsn,
        witnessed: survey.recovered.witnessed,
        chain,
        segments,
        spares,
        surplus,
        torn,
        index,
    }
}
